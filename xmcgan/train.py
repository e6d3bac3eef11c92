"""Train XMC-GAN.

    python -m xmcgan.train --config NAME[:variant] [--workdir DIR] [--config.field=value ...]
    srun python -m xmcgan.train --distributed --config NAME[:variant] --workdir DIR

The same command resumes a run that was stopped.
"""

import contextlib
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from xmcgan import config as configs
from xmcgan.data import DataSet, Source, pipeline
from xmcgan.errors import run_cli
from xmcgan.losses import build_losses, loss_params
from xmcgan.sampling import init_from
from xmcgan.sampling.sample_grid import FixedSamples
from xmcgan.sampling.sampler import Sampler
from xmcgan.training import build, command_line, logging, monitoring, profiling
from xmcgan.training.checkpoint import Checkpointer
from xmcgan.training.state import create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils import distributed, files
from xmcgan.utils import mesh as meshes
from xmcgan.utils.provenance import record_end, record_start


def train(config: ConfigDict, workdir: Path) -> int:
    """Train until the last step or a signal; resume from the newest checkpoint in `workdir`.

    Returns the exit status: 0 finished, 130 stopped by Ctrl-C, 143 by SIGTERM, both after saving.
    """
    # ------------------------------------------------------------------ Devices and workdir
    is_host0 = distributed.is_host0()
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not is_host0)
    with distributed.raise_on_all():
        configs.validate(config)
        build.replace_missing_image_network(config)
        mesh = meshes.make_mesh(fsdp=config.mesh.fsdp)
        configs.check_devices(config, mesh.size)
        losses = build_losses(config)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(monitoring.StopSignal())
        data = config.data
        data_set = DataSet(data.name, data.data_dir, **data.fields)
        with distributed.raise_on_all():
            if is_host0:
                if config.wandb.project:
                    logging.import_wandb()
                stack.enter_context(files.lock_workdir(workdir))
                data_set.prepare()
        with distributed.raise_on_all():
            files.require_shared(workdir)

            # ------------------------------------------------------------------------- Data
            train_split = data_set.load(data.train_split)
            sample_split = data.sample_split or data_set.held_out() or data.train_split
            sample_source = data_set.load(sample_split)
            train_source: Source = train_split
            if data.max_damaged_records:
                train_source = pipeline.SkippingSource(train_split, data.max_damaged_records)
            sizes = (len(train_source), config.batch_size, config.d_steps)
            num_steps = config.num_train_steps or pipeline.num_steps(config.num_epochs, *sizes)

            # ----------------------------------- Frozen encoders, a copy on every device
            text, tokenizer = build.build_text_encoder(config)
            image = build.build_image_encoder(config)
            frozen = FrozenNetworks(text.apply, image.apply if image else None)
            everywhere = meshes.replicated(mesh)
            frozen_params = {
                "text": text.params,
                "image": image.params if image else None,
                "discriminator": build.load_discriminator_trunk(config),
                "losses": loss_params(losses),
            }
            frozen_params = meshes.put(frozen_params, everywhere)

            # --------------------------------------------- Trained networks and the step
            networks = build.build_networks(config, text.width, num_steps)
            lengths = {"max_tokens": config.text.max_tokens, "word_dim": text.width}
            init = partial(create_state, networks, sentence_dim=text.width, **lengths)
            shapes = jax.eval_shape(init, jax.random.key(config.seed))
            build.check_freeze(config, shapes)
            sharding = meshes.state_sharding(mesh, shapes)
            train_step = make_train_step(networks, frozen, losses, config)
            jitted_step = jax.jit(
                train_step,
                in_shardings=(sharding, everywhere, meshes.batch_sharding(mesh)),
                out_shardings=(sharding, everywhere),
                donate_argnums=0,
            )
            text_params = frozen_params["text"]
            sampler = Sampler(networks.generator, text, tokenizer, mesh, text_params=text_params)
            fixed = FixedSamples(sample_source, sampler, workdir / "samples", config)

        # -------------------------------------------- State: of the newest checkpoint, or new
        fingerprint = configs.fingerprint(config) | {"data": train_split.fingerprint()}
        shared = configs.shared_fields(config) | {"number of steps": num_steps}
        distributed.require_same(fingerprint | shared)
        folder, keep = workdir / "checkpoints", config.keep_checkpoints
        checkpointer = stack.enter_context(Checkpointer(folder, keep=keep, fingerprint=fingerprint))
        old: dict[str, Any] = {}  # record of the checkpoint
        started_from: dict[str, Any] = {}
        if saved := config.restore_step or checkpointer.latest_step():
            placed = jax.tree.map(lambda x, place: x.update(sharding=place), shapes, sharding)
            state, old = checkpointer.restore(saved, placed, allow_mismatch=config.allow_mismatch)
        else:
            state = jax.jit(init, out_shardings=sharding)(jax.random.key(config.seed))
            if "whitening" in state.g_batch_stats:
                from xmcgan.training.sentence_statistics import with_whitening

                encode = jax.jit(lambda *tokens: text.apply(text_params, *tokens)[1])
                state = with_whitening(state, train_source, tokenizer, encode, config.seed)
            if config.init_from:
                state, started_from = init_from.start_from(state, config.init_from)
        first_step = int(state.step)

        # ---------------------------------------------------------------------------- Logs
        if is_host0:
            configs.save_config(config, workdir / "config.json")
        logging.print_summary(
            console,
            config,
            params=(state.g_params, state.d_params, text_params),
            losses=list(losses),
            num_images=len(train_source),
            sample_split=sample_split,
            steps=(first_step, num_steps, pipeline.steps_per_epoch(*sizes)),
            workdir=workdir,
        )
        if first_step >= num_steps:
            console.print(
                f"This run is finished: {first_step} of {num_steps} steps. Train it longer with "
                "--config.num_train_steps=N, or give another --workdir."
            )
            return 0
        if is_host0:
            record_start(workdir, first_step, num_steps, started_from)
            if started_from:
                console.print(f"init_from: {init_from.describe(started_from)}", markup=False)
        stack.enter_context(monitoring.explain_out_of_memory(config))
        writer = stack.enter_context(logging.open_writers(workdir, first_step, **config.wandb))
        writer.write_hparams(fingerprint)
        averages = logging.MetricAverages(old.get("metrics"))
        skips = monitoring.SkipCount(config.stop_after_skipped_steps, old.get("skipped_in_row", 0))
        scores = monitoring.Scores(config, workdir, num_steps)
        health, vote = monitoring.HealthWatch(), monitoring.StopVote(stop, mesh)

        def batches_from(step: int) -> Generator[dict[str, jax.Array]]:
            """Batches on the devices: (d_steps, b, ...)."""
            batches = pipeline.train_batches(
                train_source,
                tokenizer,
                batch_size=config.batch_size,
                d_steps=config.d_steps,
                image_size=config.image_size,
                resize=data.resize,
                flip=data.flip,
                seed=config.seed,
                start_step=step,
                num_workers=data.num_workers,
                share=(jax.process_index(), jax.process_count()),
            )
            with contextlib.closing(batches):  # ends its threads and worker processes
                for batch in batches:
                    yield meshes.put_shares(batch, meshes.batch_sharding(mesh))

        def save(step: int) -> None:
            record = {
                "examples_seen": step * config.batch_size * config.d_steps,
                "num_train_steps": num_steps,
                "metrics": averages.state(step),
                "skipped_in_row": skips.consecutive(),
            }
            writer.flush()  # what is logged up to a checkpoint outlives the process
            checkpointer.save(step, state, record)

        # ---------------------------------------------------------------------------- Loop
        batches = stack.enter_context(contextlib.closing(batches_from(first_step)))
        batch = next(batches)
        compiled_step, at_peak = profiling.compile_step(
            console, config, jitted_step, state, frozen_params, batch
        )
        trace = stack.enter_context(profiling.Trace(config.profile.steps, workdir / "tensorboard"))
        progress = stack.enter_context(logging.progress_bar(console))
        task = progress.add_task("training", total=num_steps, completed=first_step)
        clock = profiling.StepClock(first_step, config.batch_size, at_peak)
        step = saved_step = first_step
        while step < num_steps and not vote.should_stop():
            step += 1
            state, metrics = trace.run(step, compiled_step, state, frozen_params, batch)
            averages.add(metrics)
            with clock.waiting():
                batch = next(batches)
            # One step in flight: enough to keep the devices busy, and Ctrl-C is quick.
            skips.add(metrics[logging.SKIPPED])
            if skips.limit_reached():
                save(step)
                with contextlib.closing(batches_from(step - 1)) as again:
                    last_batch = next(again)
                before = state.replace(step=state.step - 1)  # nothing else changed
                raise monitoring.nonfinite_error(
                    train_step, before, frozen_params, last_batch, workdir / "nonfinite"
                )
            progress.update(task, completed=step)
            if step % config.log_every_steps == 0:
                scalars = averages.compute_and_reset(step) | clock.read_and_reset(step)
                writer.write_scalars(step, scalars)
                logging.print_step(console, step, scalars)
                for warning in health.warnings(scalars):
                    console.print(f"warning: {warning}")
            with clock.exclude():
                is_sampled = step % config.sample_every_steps == 0 or step == num_steps
                if is_sampled and (warning := fixed.draw(state, step, writer)):
                    console.print(f"warning: {warning}")
                if step % config.checkpoint_every_steps == 0 or scores.is_due(step):
                    save(step)
                    saved_step = step
                scores.update(step, checkpointer, writer, console)
        del batch  # of shared memory, which must go before its workers
        if saved_step != step:
            save(step)
    if is_host0:
        record_end(workdir, step, stop.outcome)
    logging.print_end(console, workdir, step, num_steps, stop.outcome)
    return stop.exit_status


def main() -> int:
    args, overrides = command_line.parse_args()
    config = configs.load_config(args.config)
    for override in overrides:
        configs.apply_override(config, override)
    distributed.use_cpu_cores_as_devices(config.batch_size // max(config.num_microbatches, 1))
    if args.dry_run:
        return command_line.dry_run(config)
    distributed.use_compilation_cache()
    with distributed.session(args):
        return train(config, args.workdir)


if __name__ == "__main__":
    run_cli(main)
