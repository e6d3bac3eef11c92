"""What a run reports: metrics to files, TensorBoard and Weights & Biases, lines to the terminal."""

import contextlib
import io
import itertools
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat, TextIO

import jax
import numpy as np
from clu import parameter_overview
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from xmcgan.errors import ConfigError, TrainingError
from xmcgan.utils.distributed import is_host0
from xmcgan.utils.files import atomic_file, is_in_bucket, local_folder, write_text

SKIPPED = "skipped_updates"  # the one metric that is summed, not averaged
WANDB_ID_FILE = "wandb_run_id"

Scalars = Mapping[str, SupportsFloat]
Images = Mapping[str, UInt8[np.ndarray, "n h w 3"]]
# By name: steps and values. A value that is not finite is NaN.
Curves = dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]


# The interface of `clu.metric_writers`, which needs TensorFlow.
class MetricWriter(contextlib.AbstractContextManager):
    """Writer that forwards to `writers`; subclasses write what they can show, ignoring the rest."""

    def __init__(self, *writers: "MetricWriter") -> None:
        self._writers = writers

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Write numbers by name; a slash in a name groups them."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Images) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the choices a run was started with."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Copy what is written to the bucket, if the workdir is in one; on a disk it is there."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Flush and close; nothing may be written afterwards."""
        for writer in self._writers:
            writer.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


class JsonLinesWriter(MetricWriter):
    """Writer of one JSON object per line: `{"step": 100, "time": 1700000000.0, "g_loss": 1.5}`."""

    def __init__(self, path: Path, last_step: float = math.inf) -> None:
        """Append to `path`, after removing half-written lines and those beyond `last_step`."""
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line, values in _read_lines(path) if values["step"] <= last_step]
        if path.exists():
            with atomic_file(path) as file:
                file.writelines(kept)
        self._path = path
        self._file: TextIO = io.StringIO()  # nothing can be appended to an object
        if is_in_bucket(path):
            self._file.write(b"".join(kept).decode())
        else:
            self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        line: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in scalars.items():
            number = float(value)
            # A bare NaN is not valid JSON; the string "NaN" is, and `float` reads it.
            line[name] = number if math.isfinite(number) else json.dumps(number)
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()  # so that whoever follows the file sees whole lines

    def flush(self) -> None:
        if isinstance(self._file, io.StringIO):
            write_text(self._path, self._file.getvalue())

    def close(self) -> None:
        self.flush()
        self._file.close()


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the whole lines of a log, which may be missing or growing, and what they say."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
            values = json.loads(line)
            if int(values["step"]) == values["step"] and line.endswith(b"\n"):
                found.append((line, values))
    return found


def read_curves(path: Path) -> Curves:
    """Read the lines of `JsonLinesWriter`, by name in order of appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for _, values in _read_lines(path):
        for name, value in values.items():
            if name not in ("step", "time") and isinstance(value, int | float | str):
                with contextlib.suppress(ValueError, OverflowError):  # "NaN" is a number
                    points.setdefault(name, []).append((values["step"], float(value)))
    columns = {name: np.array(pairs).T for name, pairs in points.items() if pairs}
    return {n: (steps, np.where(np.isfinite(v), v, np.nan)) for n, (steps, v) in columns.items()}


class TensorBoardWriter(MetricWriter):
    """Writer of event files; TensorBoard hides what earlier ones say from `purge_step` on."""

    def __init__(self, directory: Path, *, purge_step: int | None = None) -> None:
        super().__init__()
        self._directory, self._numbers = directory, itertools.count(purge_step or 0)
        self._open(purge_step)

    def _open(self, purge_step: int | None = None) -> None:
        self._opened = contextlib.ExitStack()
        folder = self._opened.enter_context(local_folder(self._directory))
        # The default file name is unique only within a second.
        suffix = f".{os.getpid()}.{next(self._numbers)}"
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)
        self._opened.callback(self._writer.close)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def write_images(self, step: int, images: Images) -> None:
        for name, batch in images.items():
            if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
                raise ValueError(
                    f"{name} must be uint8 (n, h, w, 3), not {batch.dtype} {batch.shape}"
                )
            for index, image in enumerate(batch):
                tag = name if len(batch) == 1 else f"{name}_{index:02d}"
                self._writer.add_image(tag, image, step, dataformats="HWC")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        rows = [f"| {name} | {value} |" for name, value in sorted(hparams.items())]
        self._writer.add_text("hparams", "\n".join(["| name | value |", "|---|---|", *rows]))

    def flush(self) -> None:
        if is_in_bucket(self._directory):
            self.close()
            self._open()  # another file: what was copied is never copied again

    def close(self) -> None:
        self._opened.close()


class WandbWriter(MetricWriter):
    """Writer to a run of Weights & Biases; after a failure it warns and sends nothing more."""

    def __init__(self, workdir: Path, project: str, entity: str, first_step: int) -> None:
        super().__init__()
        wandb = self._wandb = import_wandb()
        self._run: Any = None
        id_path = workdir / WANDB_ID_FILE  # of the run that a resumed one continues
        if not first_step or not id_path.exists():
            write_text(id_path, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=project,
                entity=entity or None,
                name=workdir.resolve().name,
                id=id_path.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=None if is_in_bucket(workdir) else str(workdir),
                # The terminal and the source code are not uploaded; a dead network ends no run.
                settings=wandb.Settings(console="off", save_code=False, finish_timeout=120),
            )
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            text = f"Weights & Biases does not start: {error} Or set WANDB_MODE=offline"
            raise ConfigError(f"{text}, or leave out --config.wandb.project.") from None
        except Exception as error:
            self._give_up(error)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        values = {name: float(value) for name, value in scalars.items()}
        self._try(lambda run: run.log(values, step=step))

    def write_images(self, step: int, images: Images) -> None:
        image = self._wandb.Image
        self._try(lambda run: run.log({n: [*map(image, b)] for n, b in images.items()}, step=step))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._try(lambda run: run.config.update(dict(hparams), allow_val_change=True))

    def close(self) -> None:
        self._try(lambda run: run.finish())  # waits for the upload

    def _try(self, call: Callable[[Any], Any]) -> None:
        if self._run is not None:
            try:
                call(self._run)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        text = f"warning: Weights & Biases failed; no more of this run is sent: {error}"
        print(text, file=sys.stderr)


def import_wandb() -> ModuleType:
    """Import the optional package; raises ConfigError if it is not installed."""
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        wandb = None
    # A folder called wandb, which the package creates where it runs, can be imported, too.
    if wandb is None or not hasattr(wandb, "init"):
        raise ConfigError("--config.wandb.project needs a missing package: pip install wandb")
    return wandb


def open_writers(
    workdir: Path, first_step: int, *, project: str = "", entity: str = ""
) -> MetricWriter:
    """Open the logs of a workdir without what was logged after `first_step`; of process 0 only.

    `project` and `entity` are of Weights & Biases, which is off without a project.
    """
    if not is_host0():
        return MetricWriter()
    json_lines = JsonLinesWriter(workdir / "metrics.jsonl", first_step)
    tensorboard = TensorBoardWriter(workdir / "tensorboard", purge_step=first_step + 1)
    wandb = [WandbWriter(workdir, project, entity, first_step)] if project else []
    return MetricWriter(json_lines, tensorboard, *wandb)


class MetricAverages:
    """Averages of the metrics of steps, fetched from the devices only when they are read.

    A step with a skipped update counts only in the sum of these: its losses are not finite.
    `stored` is what `state` returned before the run was interrupted.
    """

    def __init__(self, stored: dict[str, Any] | None = None) -> None:
        stored = stored or {"sums": {}, "count": 0, "skipped": 0.0}
        self._sums: dict[str, float] = dict(stored["sums"])
        self._count, self._skipped = stored["count"], stored["skipped"]
        self._waiting: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._waiting.append(metrics)

    def state(self, step: int) -> dict[str, Any]:
        """Return sums and counts as JSON values, exact to the bit; refuse sums not finite."""
        for metrics in jax.device_get(self._waiting):
            skipped = float(metrics.pop(SKIPPED))
            self._skipped += skipped
            if not skipped:
                self._count += 1
                for name, value in metrics.items():
                    self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._waiting = []
        if bad := sorted(name for name, total in self._sums.items() if not math.isfinite(total)):
            raise TrainingError(
                f"not finite in the steps up to {step}: {', '.join(bad)}. The last checkpoint is "
                "intact. Lower the learning rates, or try --config.dtype=float32."
            )
        return {"sums": dict(self._sums), "count": self._count, "skipped": self._skipped}

    def compute_and_reset(self, step: int) -> dict[str, float]:
        """Return the averages and the number of skipped updates; raises like `state`."""
        stored = self.state(step)
        self._sums, self._count, self._skipped = {}, 0, 0.0
        averages = {name: total / stored["count"] for name, total in stored["sums"].items()}
        return averages | {SKIPPED: stored["skipped"]}


def image_network_line(config: ConfigDict) -> dict[str, str]:
    """Return what stands in for the image loss's network, if anything does."""
    loss, name = config.losses.image_pretrained, config.losses.image_pretrained.in_place_of
    text = f"{loss.network} in place of {name}, whose weights are not in weights/{name}: python "
    return {"image network": f"{text}scripts/fetch_weights.py {name} --accept"} if name else {}


def print_summary(
    console: Console,
    config: ConfigDict,
    *,
    params: tuple[Any, Any, Any],
    losses: Sequence[str],
    num_images: int,
    sample_split: str,
    steps: tuple[int, int, float],
    workdir: Path,
) -> None:
    """Print what is about to be trained; `steps` are the first, the last, and those per epoch."""
    count = parameter_overview.count_parameters
    generator, discriminator, text = (count(tree) / 1e6 for tree in params)
    first_step, num_steps, steps_per_epoch = steps
    parts = f" in {config.num_microbatches} microbatches" * (config.num_microbatches > 1)
    lines = {
        "generator": f"{generator:.2f} M parameters, {config.image_size} px",
        "discriminator": f"{discriminator:.2f} M parameters",
        "text encoder": f"{config.text.weights}, {text:.1f} M",
        "losses": ", ".join(losses),
        **image_network_line(config),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {config.dtype}",
        "data": f"{config.data.name}, {num_images:,} training images; samples from "
        f"{sample_split!r}; {config.data.resize} to a square",
        "batch": f"{config.batch_size} images{parts}, {config.d_steps} discriminator updates per "
        "step",
        "steps": f"{num_steps:,} ({num_steps / steps_per_epoch:.1f} epochs)"
        + f", resumed at {first_step:,}" * (first_step > 0),
        "workdir": str(workdir),
    }
    for name, line in lines.items():
        console.print(f"{name:>14}  {line}")


def progress_bar(console: Console) -> Progress:
    """Return a bar of steps, shown only on a terminal."""
    text_and_bar = Progress.get_default_columns()[:2]
    counts = (MofNCompleteColumn(), TextColumn("steps, left"), TimeRemainingColumn())
    return Progress(*text_and_bar, *counts, console=console, disable=not console.is_terminal)


def print_step(console: Console, step: int, scalars: Mapping[str, float]) -> None:
    """Print one line with the most telling metrics."""
    shown = {"d_loss": "d_loss", "g_loss": "g_loss", "d_margin": "margin",
             "real_sentence_accuracy": "sentence", "real_word_accuracy": "word"}  # fmt: skip
    values = [f"{label} {scalars[name]:.3f}" for name, label in shown.items() if name in scalars]
    rates = [f"{scalars['images_per_second']:.1f} images/s"]
    shares = {"data_wait_share": "waits for data", "peak_share": "of the peak"}
    rates += [f"{scalars[name]:.0%} {text}" for name, text in shares.items() if name in scalars]
    console.print(f"step {step:>6}  {'  '.join(values)}  {', '.join(rates)}")
    if skipped := scalars[SKIPPED]:
        console.print(f"warning: {skipped:.0f} updates were skipped: a gradient was not finite")


def print_end(console: Console, workdir: Path, step: int, num_steps: int, how: str) -> None:
    """Print how a run ended, "finished" or the name of a signal, and where its results are."""
    if step == 0:
        console.print(f"stopped by {how} before the first step")
        return
    resume = f" and saved at step {step:,} of {num_steps:,}; the same command resumes the run"
    is_finished = how == "finished"
    console.print(f"finished: {step:,} steps" if is_finished else f"stopped by {how}{resume}")
    results = {
        "samples": workdir / "samples",
        "checkpoint": workdir / "checkpoints" / str(step),
        "report": f"python scripts/report.py --workdir {workdir}",
        "logs": f"tensorboard --logdir {workdir / 'tensorboard'}",
    }
    for name, text in results.items():
        console.print(f"{name:>10}  {text}")
