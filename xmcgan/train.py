"""Train XMC-GAN.

    python -m xmcgan.train --config NAME[:variant] [--workdir DIR] [--config.field=value ...]
    srun python -m xmcgan.train --distributed --config NAME[:variant] --workdir DIR

The same command resumes a run that was stopped.
"""

import argparse
import contextlib
import re
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from xmcgan import build
from xmcgan import config as configs
from xmcgan.data import DataSet, Source, pipeline
from xmcgan.errors import CheckpointError, ConfigError, TrainingError, did_you_mean, run_cli
from xmcgan.losses import build_losses
from xmcgan.sampling.sample_grid import FixedSamples
from xmcgan.sampling.sampler import Sampler
from xmcgan.training import logging, monitoring
from xmcgan.training.checkpoint import Checkpointer
from xmcgan.training.sentence_statistics import sentence_statistics
from xmcgan.training.state import TrainState, create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils import distributed, files
from xmcgan.utils import mesh as meshes
from xmcgan.utils.provenance import record_end, record_start


def train(config: ConfigDict, workdir: Path) -> int:
    """Train until the last step or a signal; resume from the newest checkpoint in `workdir`.

    Returns:
        Exit status: 0 finished, 130 stopped by Ctrl-C, 143 by SIGTERM, both after saving.

    Raises:
        UserError: A mistake in config, data, weights or workdir.
    """
    # ------------------------------------------------------------------ Devices and workdir
    is_host0 = distributed.is_host0()
    console = Console(highlight=False, soft_wrap=True, quiet=not is_host0)
    with distributed.raise_on_all():
        configs.validate(config)
        mesh = meshes.make_mesh(fsdp=config.mesh.fsdp)
        configs.check_devices(config, mesh.size)
        losses = build_losses(config)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(monitoring.StopSignal())
        data_set = DataSet(config.data.name, config.data.data_dir, **config.data.fields)
        with distributed.raise_on_all():
            if is_host0:
                if config.wandb.project:
                    logging.import_wandb()
                stack.enter_context(files.lock_workdir(workdir))
                data_set.prepare()
        with distributed.raise_on_all():
            if not workdir.exists():
                raise CheckpointError(
                    f"{workdir}, made by process 0, is not there: all processes need one workdir, "
                    "on a file system that they share"
                )

            # ------------------------------------------------------------------------- Data
            train_split = data_set.load(config.data.train_split)
            sample_split = (
                config.data.sample_split or data_set.held_out() or config.data.train_split
            )
            sample_source = data_set.load(sample_split)
            train_source: Source = train_split
            if max_damaged := config.data.max_damaged_records:
                train_source = pipeline.SkippingSource(train_split, max_damaged)
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
            }
            frozen_params = meshes.put(frozen_params, everywhere)

            # --------------------------------------------- Trained networks and the step
            networks = build.build_networks(config, text.width)

            def init(rng: jax.Array) -> TrainState:
                lengths: Any = {"max_tokens": config.text.max_tokens, "word_dim": text.width}
                return create_state(networks, rng, sentence_dim=text.width, **lengths)

            shapes = jax.eval_shape(init, jax.random.key(config.seed))
            sharding = meshes.state_sharding(mesh, shapes)
            train_step = make_train_step(networks, frozen, losses, config)
            jitted_step = jax.jit(
                train_step,
                in_shardings=(sharding, everywhere, meshes.batch_sharding(mesh)),
                out_shardings=(sharding, everywhere),
                donate_argnums=0,
            )
            sampler = Sampler(
                networks.generator, text, tokenizer, mesh, text_params=frozen_params["text"]
            )
            fixed = FixedSamples(sample_source, sampler, workdir / "samples", config)

        # -------------------------------------------- State: of the newest checkpoint, or new
        fingerprint = configs.fingerprint(config) | {"data": train_split.fingerprint()}
        shared = configs.shared_fields(config) | {"number of steps": num_steps}
        distributed.require_same(fingerprint | shared)
        checkpointer = stack.enter_context(
            Checkpointer(
                workdir / "checkpoints", keep=config.keep_checkpoints, fingerprint=fingerprint
            )
        )
        extra: dict[str, Any] = {}
        if checkpoint := config.restore_step or checkpointer.latest_step():
            placed = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding
            )
            state, extra = checkpointer.restore(
                checkpoint, placed, allow_mismatch=config.allow_mismatch
            )
        else:
            state = jax.jit(init, out_shardings=sharding)(jax.random.key(config.seed))
            if "whitening" in state.g_batch_stats:
                encode = jax.jit(lambda *tokens: text.apply(frozen_params["text"], *tokens)[1])
                found = sentence_statistics(train_source, tokenizer, encode, config.seed)
                state = with_whitening(state, found, sharding)
        first_step = int(state.step)

        # ---------------------------------------------------------------------------- Logs
        if is_host0:
            configs.save_config(config, workdir / "config.json")
        logging.print_summary(
            console,
            config,
            {
                "generator": state.g_params,
                "discriminator": state.d_params,
                "text": frozen_params["text"],
            },
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
            record_start(workdir, first_step, num_steps)
        stack.enter_context(monitoring.explain_out_of_memory(config))
        writer = stack.enter_context(logging.open_writers(workdir, first_step, **config.wandb))
        writer.write_hparams(fingerprint)
        averages = logging.MetricAverages(extra.get("metrics"))
        skips = monitoring.SkipCount(
            config.stop_after_skipped_steps, extra.get("skipped_in_row", 0)
        )
        health, vote = monitoring.HealthWatch(), monitoring.StopVote(stop, mesh)

        def batches_from(step: int) -> Generator[dict[str, jax.Array]]:
            """Batches on the devices: (d_steps, b, ...)."""
            batches = pipeline.train_batches(
                train_source,
                tokenizer,
                batch_size=config.batch_size,
                d_steps=config.d_steps,
                image_size=config.image_size,
                resize=config.data.resize,
                flip=config.data.flip,
                seed=config.seed,
                start_step=step,
                num_workers=config.data.num_workers,
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
            checkpointer.save(step, state, record)

        def warn(text: str) -> None:
            console.print(f"warning: {text}", markup=False)

        # ---------------------------------------------------------------------------- Loop
        batches = stack.enter_context(contextlib.closing(batches_from(first_step)))
        batch = next(batches)
        compile_start = time.monotonic()
        console.print("compiling the training step ...")
        compiled_step = jitted_step.lower(state, frozen_params, batch).compile()
        distributed.all_gather_json("compiled")  # a collective would not wait for the slowest
        console.print(f"compiled in {time.monotonic() - compile_start:.0f} s")
        progress = stack.enter_context(logging.progress_bar(console))
        task = progress.add_task("training", total=num_steps, completed=first_step)
        clock = logging.StepClock(first_step, config.batch_size)
        step = saved_step = first_step
        while step < num_steps and not vote.should_stop():
            state, metrics = compiled_step(state, frozen_params, batch)
            step += 1
            averages.add(metrics)
            batch = next(batches)
            # One step in flight: enough to keep the devices busy, and Ctrl-C is quick.
            skips.add(metrics[logging.SKIPPED])
            if skips.limit_reached():
                save(step)
                with contextlib.closing(batches_from(step - 1)) as again:
                    last_batch = next(again)
                path = save_batch(last_batch, workdir / "nonfinite" / f"step_{step}.npz")
                before = state.replace(step=state.step - 1)  # nothing else changed
                first = monitoring.find_first_nonfinite(
                    train_step, before, frozen_params, last_batch
                )
                raise TrainingError(
                    f"{config.stop_after_skipped_steps} steps in a row were skipped because a "
                    f"gradient was not finite; first of all: {first}. The state is checkpoint "
                    f"{step}, the last batch is in {path}. The same command resumes with the next "
                    "batch; lower the learning rates, or try --config.dtype=float32."
                )
            progress.update(task, completed=step)
            if step % config.log_every_steps == 0:
                scalars = averages.compute_and_reset(step) | clock.read_and_reset(step)
                writer.write_scalars(step, scalars)
                logging.print_step(console, step, scalars)
                for warning in health.warnings(scalars):
                    warn(warning)
            with clock.exclude():
                is_sampled = step % config.sample_every_steps == 0 or step == num_steps
                if is_sampled and (warning := fixed.draw(state, step, writer)):
                    warn(warning)
                if step % config.checkpoint_every_steps == 0:
                    save(step)
                    saved_step = step
        if saved_step != step:
            save(step)
    if is_host0:
        record_end(workdir, step, stop.outcome)
    logging.print_end(console, workdir, step, num_steps, stop.outcome)
    return stop.exit_status


def with_whitening(state: TrainState, found: dict[str, Any], sharding: Any) -> TrainState:
    """Set what whitens the generator's sentences; the statistics of the training captions."""
    where = sharding.g_batch_stats["whitening"]
    placed = {name: meshes.put(value, where[name]) for name, value in found.items()}
    return state.replace(
        g_batch_stats=state.g_batch_stats | {"whitening": placed},
        ema_batch_stats=state.ema_batch_stats | {"whitening": jax.tree.map(jnp.copy, placed)},
    )


def save_batch(batch: dict[str, jax.Array], path: Path) -> Path:
    """Write a batch of all processes to a file, by process 0."""
    arrays = {name: meshes.fetch(value) for name, value in batch.items()}
    if distributed.is_host0():
        path.parent.mkdir(exist_ok=True)
        with files.atomic_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    return path


def parse_args(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags of the command line, and the overrides `field=value` in their order."""
    parser = argparse.ArgumentParser(
        prog="python -m xmcgan.train",
        usage="%(prog)s --config NAME[:VARIANT] [--workdir DIR]\n"
        "                              [--config.FIELD=VALUE ...]",
        description="Train XMC-GAN. The same command resumes a run that was stopped.",
        epilog=f"configs: {', '.join(configs.known_configs())}\n"
        "variants: see the head of configs/NAME.py; fields: see xmcgan/config.py\n"
        "exit status: 0 finished, 2 a mistake (named), 130 Ctrl-C, saved, 143 SIGTERM,\n"
        "saved, 75 or 134 another of several processes was lost, 1 a fault of the program",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:VARIANT]",
        help="such as shapes:quickstart or folder:name=my_photos,64",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="of the run (default: runs/ and the config's name)",
    )
    parser.add_argument(
        "--config.FIELD",
        metavar="VALUE",
        dest="ignored",
        help="set a field, such as --config.batch_size=8; repeatable",
    )
    distributed.add_flags(parser)
    args, rest = parser.parse_known_args(arguments)
    overrides = read_overrides(parser, rest)
    if args.workdir is None:
        args.workdir = Path("runs") / re.sub(r"[^A-Za-z0-9.+_-]+", "_", args.config)
    return args, overrides


def read_overrides(parser: argparse.ArgumentParser, rest: list[str]) -> list[str]:
    """Return `field=value` for each `--config.field` in `rest`, which the parser does not know.

    Raises:
        ConfigError: Unknown flag.
    """
    overrides, rest = [], list(rest)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--config."):
            known = [string for action in parser._actions for string in action.option_strings]
            raise ConfigError(f"unknown argument {flag!r}{did_you_mean(flag, known)}")
        override = flag.removeprefix("--config.")
        if "=" not in override and rest and not rest[0].startswith("--"):
            override += f"={rest.pop(0)}"
        overrides.append(override)
    return overrides


def main() -> int:
    args, overrides = parse_args()
    config = configs.load_config(args.config)
    for override in overrides:
        configs.apply_override(config, override)
    distributed.use_compilation_cache()
    distributed.use_cpu_cores_as_devices(config.batch_size // max(config.num_microbatches, 1))
    with distributed.session(args):
        return train(config, args.workdir)


if __name__ == "__main__":
    run_cli(main)
