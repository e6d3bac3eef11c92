"""The training loop: from a config to a trained workdir."""

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict
from rich.console import Console

from xmcgan import build
from xmcgan import config as configs
from xmcgan.data import DataSet, Source, Split, pipeline
from xmcgan.errors import CheckpointError, TrainingError
from xmcgan.losses import build_losses
from xmcgan.sampling.fixed_samples import FixedSamples
from xmcgan.sampling.sampler import Sampler
from xmcgan.training import logging
from xmcgan.training.checkpoint import Checkpointer
from xmcgan.training.logging import (
    SKIPPED,
    MetricAverages,
    MetricWriter,
    StepClock,
    import_wandb,
    open_writers,
)
from xmcgan.training.monitoring import (
    HealthWatch,
    SkipCount,
    StopSignal,
    StopVote,
    explain_out_of_memory,
    find_first_nonfinite,
)
from xmcgan.training.sentence_statistics import sentence_statistics
from xmcgan.training.state import TrainState, create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils.distributed import all_gather_json, is_host0, raise_on_all, require_same
from xmcgan.utils.files import atomic_file, lock_workdir
from xmcgan.utils.mesh import (
    batch_sharding,
    fetch,
    make_mesh,
    put,
    put_shares,
    replicated,
    state_sharding,
)
from xmcgan.utils.provenance import record_end, record_start


def train(config: ConfigDict, workdir: Path) -> int:
    """Train until the last step, or until a signal says stop; resume where a run stands.

    Args:
        config: see `xmcgan.config.default_config`.
        workdir: takes checkpoints, logs and samples of one run at a time; the same folder for all
            of its processes.

    Returns:
        Exit status: 0 finished, 130 stopped by Ctrl-C, 143 by SIGTERM, both after saving.

    Raises:
        UserError: a mistake in config, data, weights or workdir, named.
    """
    with raise_on_all():
        configs.validate(config)
        mesh = make_mesh(fsdp=config.mesh.fsdp)
        configs.check_devices(config, mesh.size)
    with contextlib.ExitStack() as held, StopSignal() as stop:
        with raise_on_all():
            if is_host0():
                if config.wandb.project:
                    import_wandb()
                held.enter_context(lock_workdir(workdir))
                open_data_set(config).prepare()
        with raise_on_all():
            run = Run(config, workdir, mesh)
        require_same(
            run.fingerprint() | configs.shared_fields(config) | {"number of steps": run.num_steps}
        )
        return run.train(stop)


class Run:
    """Hold the parts of one training run.

    Args:
        config: a validated config.
        workdir: of this run alone.
        mesh: devices that share every batch.
    """

    def __init__(self, config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh) -> None:
        self.config, self.workdir, self.mesh = config, workdir, mesh
        if not workdir.exists():
            raise CheckpointError(
                f"{workdir}, made by process 0, is not there: all processes need one workdir, on "
                "a file system that they share"
            )
        self.console = Console(highlight=False, soft_wrap=True, quiet=not is_host0())
        # Data.
        train_split, self.sample_source, self.sample_split = open_data(config)
        self.data_fingerprint = train_split.fingerprint()
        self.train_source: Source = train_split
        if most := config.data.max_damaged_records:
            self.train_source = pipeline.SkippingSource(train_split, most)
        self.num_steps = config.num_train_steps or pipeline.num_steps(
            config.num_epochs, len(self.train_source), config.batch_size, config.d_steps
        )
        # Frozen networks.
        self.text, self.tokenizer = build.build_text_encoder(config)
        image = build.build_image_encoder(config)
        frozen_params = {
            "text": self.text.params,
            "image": image.params if image else None,
            "discriminator": build.load_discriminator_trunk(config),
        }
        self.frozen_params = put(frozen_params, replicated(mesh))
        # Trained networks.
        self.networks = build.build_networks(config, self.text.width)
        self.shapes = jax.eval_shape(self.create_state, jax.random.key(config.seed))
        self.state_sharding = state_sharding(mesh, self.shapes)
        self.frozen = FrozenNetworks(self.text.apply, image.apply if image else None)
        self.losses = build_losses(config)
        self.step_fn = jax.jit(
            make_train_step(self.networks, self.frozen, self.losses, config),
            in_shardings=(self.state_sharding, replicated(mesh), batch_sharding(mesh)),
            out_shardings=(self.state_sharding, replicated(mesh)),
            donate_argnums=0,
        )
        self.health = HealthWatch()
        text_params = self.frozen_params["text"]
        self.fixed = FixedSamples(
            self.sample_source,
            Sampler(
                self.networks.generator, self.text, self.tokenizer, mesh, text_params=text_params
            ),
            workdir / "samples",
            config,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what a resumed run must share with its start."""
        return configs.fingerprint(self.config) | {"data": self.data_fingerprint}

    def create_state(self, rng: PRNGKeyArray) -> TrainState:
        """Draw the state before step 0."""
        return create_state(
            self.networks,
            rng,
            max_tokens=self.config.text.max_tokens,
            word_dim=self.text.width,
            sentence_dim=self.text.width,
        )

    def train(self, stop: StopSignal) -> int:
        """Restore, train and save; see `train`."""
        fingerprint = self.fingerprint()
        checkpoints = self.workdir / "checkpoints"
        with Checkpointer(
            checkpoints, keep=self.config.keep_checkpoints, fingerprint=fingerprint
        ) as checkpointer:
            state, extra = self._restore(checkpointer)
            first_step = int(state.step)
            if is_host0():
                configs.save_config(self.config, self.workdir / "config.json")
            self._print_summary(state, first_step)
            if first_step >= self.num_steps:
                self.console.print(
                    f"This run is finished: {first_step} of {self.num_steps} steps. Train it "
                    "longer with --config.num_train_steps=N, or give another --workdir."
                )
                return 0
            if is_host0():
                record_start(self.workdir, first_step, self.num_steps)
            with (
                explain_out_of_memory(self.config),
                open_writers(self.workdir, first_step, **self.config.wandb) as writer,
            ):
                writer.write_hparams(fingerprint)
                last_step = self._loop(state, first_step, extra, checkpointer, writer, stop)
        if is_host0():
            record_end(self.workdir, last_step, stop.outcome)
            if last_step:
                self.write_report()
        logging.print_end(self.console, self.workdir, last_step, self.num_steps, stop.outcome)
        return stop.exit_status

    def _print_summary(self, state: TrainState, first_step: int) -> None:
        config, num_images = self.config, len(self.train_source)
        logging.print_summary(
            self.console,
            config,
            {
                "generator": state.g_params,
                "discriminator": state.d_params,
                "text": self.frozen_params["text"],
            },
            losses=[name for name in configs.LOSSES if config.losses[name].enabled],
            num_images=num_images,
            sample_split=self.sample_split,
            steps=(
                first_step,
                self.num_steps,
                pipeline.steps_per_epoch(num_images, config.batch_size, config.d_steps),
            ),
            workdir=self.workdir,
        )

    def write_report(self) -> None:
        """Write the page of the run; a failure is a warning: all that it shows is saved."""
        try:
            from xmcgan.studies.run_report import (
                write_report,  # its plots take a second to import
            )

            write_report(self.workdir)
        except Exception as error:
            again = f"python scripts/report.py --workdir {self.workdir}"
            self.console.print(
                f"warning: no report was written ({error}); try {again}", markup=False
            )

    def _restore(self, checkpointer: Checkpointer) -> tuple[TrainState, dict[str, Any]]:
        step = self.config.restore_step or checkpointer.latest_step()
        if step is None:
            rng = jax.random.key(self.config.seed)
            state = jax.jit(self.create_state, out_shardings=self.state_sharding)(rng)
            return self._with_sentence_statistics(state), {}
        placed = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.shapes,
            self.state_sharding,
        )
        return checkpointer.restore(step, placed, allow_mismatch=self.config.allow_mismatch)

    def _with_sentence_statistics(self, state: TrainState) -> TrainState:
        """Set what the generator knows of the training captions before it starts."""
        if not self.config.generator.whiten_sentence:
            return state
        encode = jax.jit(lambda *tokens: self.text.apply(self.frozen_params["text"], *tokens)[1])
        found = sentence_statistics(self.train_source, self.tokenizer, encode, self.config.seed)
        where = self.state_sharding.g_batch_stats["whitening"]
        placed = {name: put(value, where[name]) for name, value in found.items()}
        return state.replace(
            g_batch_stats=state.g_batch_stats | {"whitening": placed},
            ema_batch_stats=state.ema_batch_stats | {"whitening": jax.tree.map(jnp.copy, placed)},
        )

    def _loop(
        self,
        state: TrainState,
        first_step: int,
        extra: dict[str, Any],
        checkpointer: Checkpointer,
        writer: MetricWriter,
        stop: StopSignal,
    ) -> int:
        """Run steps from `first_step`; return how many are done."""
        config, step, saved_step = self.config, first_step, first_step
        averages, vote = MetricAverages(extra.get("metrics")), StopVote(stop, self.mesh)
        skips = SkipCount(config.stop_after_skipped_steps, extra.get("skipped_in_row", 0))
        with (
            contextlib.closing(self._batches(first_step)) as batches,
            logging.progress_bar(self.console) as progress,
        ):
            step_fn = self._compile(state, next_batch := next(batches))
            clock = StepClock(first_step, config.batch_size)
            task = progress.add_task("training", total=self.num_steps, completed=first_step)
            while step < self.num_steps and not vote.should_stop():
                state, metrics = step_fn(state, self.frozen_params, next_batch)
                step += 1
                averages.add(metrics)
                next_batch = next(batches)
                # One step in flight: enough to keep the devices busy, and Ctrl-C is quick.
                skips.add(metrics[SKIPPED])
                if skips.limit_reached():
                    self._save(step, state, averages, skips, checkpointer)
                    self._explain_skips(step, state)
                progress.update(task, completed=step)
                if step % config.log_every_steps == 0:
                    self._log(
                        step, averages.compute_and_reset(step) | clock.read_and_reset(step), writer
                    )
                with clock.exclude():
                    if step % config.sample_every_steps == 0 or step == self.num_steps:
                        self._sample(step, state, writer)
                    if step % config.checkpoint_every_steps == 0:
                        self._save(step, state, averages, skips, checkpointer)
                        saved_step = step
        if saved_step != step:
            self._save(step, state, averages, skips, checkpointer)
        return step

    def _explain_skips(self, step: int, state: TrainState) -> NoReturn:
        """Keep the last step's batch and say what in it is not finite first."""
        with contextlib.closing(self._batches(step - 1)) as batches:
            batch = next(batches)
        path = self.workdir / "not_finite" / f"step_{step}.npz"
        arrays = {name: fetch(value) for name, value in batch.items()}
        if is_host0():
            path.parent.mkdir(exist_ok=True)
            with atomic_file(path) as file:
                np.savez(file, allow_pickle=False, **arrays)
        before = state.replace(step=state.step - 1)  # nothing else changed
        step_fn = make_train_step(self.networks, self.frozen, self.losses, self.config)
        first = find_first_nonfinite(step_fn, before, self.frozen_params, batch)
        raise TrainingError(
            f"{self.config.stop_after_skipped_steps} steps in a row were skipped because a "
            f"gradient was not finite; first of all: {first}. The state is checkpoint {step}, the "
            f"last batch is in {path}. The same command goes on with the next batch; lower the "
            "learning rates, or try --config.dtype=float32."
        )

    def _save(
        self,
        step: int,
        state: TrainState,
        averages: MetricAverages,
        skips: SkipCount,
        checkpointer: Checkpointer,
    ) -> None:
        examples_seen = step * self.config.batch_size * self.config.d_steps
        extra = {
            "examples_seen": examples_seen,
            "num_train_steps": self.num_steps,
            "metrics": averages.state(step),
            "skipped_in_row": skips.consecutive(),
        }
        checkpointer.save(step, state, extra)

    def _batches(self, first_step: int) -> Generator[dict[str, jax.Array]]:
        """Yield batches on the devices, from that of step `first_step` on."""
        config, sharding = self.config, batch_sharding(self.mesh)
        batches = pipeline.train_batches(
            self.train_source,
            self.tokenizer,
            batch_size=config.batch_size,
            d_steps=config.d_steps,
            image_size=config.image_size,
            resize=config.data.resize,
            flip=config.data.flip,
            seed=config.seed,
            start_step=first_step,
            num_workers=config.data.num_workers,
            share=(jax.process_index(), jax.process_count()),
        )
        with contextlib.closing(batches):  # ends its threads and worker processes
            for batch in batches:
                yield put_shares(batch, sharding)

    def _compile(self, state: TrainState, batch: dict[str, jax.Array]) -> Any:
        start = time.monotonic()
        self.console.print("compiling the training step ...")
        compiled = self.step_fn.lower(state, self.frozen_params, batch).compile()
        all_gather_json("compiled")  # a collective would not wait minutes for the slowest
        self.console.print(f"compiled in {time.monotonic() - start:.0f} s")
        return compiled

    def _log(self, step: int, scalars: dict[str, float], writer: MetricWriter) -> None:
        writer.write_scalars(step, scalars)
        logging.print_step(self.console, step, scalars)
        for warning in self.health.warnings(scalars):
            self.console.print(f"warning: {warning}", markup=False)

    def _sample(self, step: int, state: TrainState, writer: MetricWriter) -> None:
        if warning := self.fixed.draw(state, step, writer):
            self.console.print(f"warning: {warning}", markup=False)


def open_data_set(config: ConfigDict) -> DataSet:
    """Return the data set that a config names."""
    return DataSet(config.data.name, config.data.data_dir, **config.data.fields)


def open_data(config: ConfigDict) -> tuple[Split, Split, str]:
    """Open the training split, and the split that sample grids take their captions from.

    Returns:
        Both splits, and the name of the second.

    Raises:
        DataError: the data are not prepared, damaged, or lack a split that was asked for.
    """
    data, data_set = config.data, open_data_set(config)
    sample_split = data.sample_split or data_set.held_out() or data.train_split
    return data_set.load(data.train_split), data_set.load(sample_split), sample_split
