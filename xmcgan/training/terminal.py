"""What a training run says on the terminal."""

from typing import TYPE_CHECKING, Any

from clu import parameter_overview
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xmcgan.config import LOSSES
from xmcgan.data.pipeline import steps_per_epoch
from xmcgan.training.metrics import SKIPPED
from xmcgan.training.signals import StopSignal
from xmcgan.training.state import TrainState

if TYPE_CHECKING:
    from xmcgan.training.loop import Run

_RESIZE_NAMES = {"crop": "cropped to a square", "squash": "squashed to a square"}
_SHOWN = {
    "d_loss": "d_loss",
    "g_loss": "g_loss",
    "margin": "d_margin",
    "sentence": "real_sentence_accuracy",
    "word": "real_word_accuracy",
}


def print_summary(run: "Run", state: TrainState, first_step: int) -> None:
    """Say what is about to be trained, on what, and where it goes."""
    config = run.config
    num_images = len(run.train_source)
    epochs = run.num_steps / steps_per_epoch(num_images, config.batch_size, config.d_steps)
    parts = f" in {config.num_microbatches} parts" * (config.num_microbatches > 1)
    lines = {
        "generator": f"{_millions(state.g_params):.2f} M parameters, {config.image_size} px",
        "discriminator": f"{_millions(state.d_params):.2f} M parameters",
        "text encoder": f"{config.text.weights}, {_millions(run.frozen_params['text']):.1f} M",
        "losses": ", ".join(name for name in LOSSES if config.losses[name].enabled),
        "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, {config.dtype}",
        "data": f"{config.data.name}, {num_images:,} training images; samples "
        f"from {run.sample_split!r}; {_RESIZE_NAMES[config.data.resize]}",
        "batch": f"{config.batch_size} images{parts}, "
        f"{config.d_steps} discriminator updates a step",
        "steps": f"{run.num_steps:,} ({epochs:.1f} epochs)"
        + (f", resumed at {first_step:,}" if first_step else ""),
        "workdir": str(run.workdir),
    }
    for name, text in lines.items():
        run.console.print(f"{name:>14}  {text}", markup=False)


def progress_bar(console: Console) -> Progress:
    """Return a bar of steps, shown where the console is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("steps, left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def print_step(console: Console, step: int, scalars: dict[str, float]) -> None:
    """Print a line of the log, as far as it fits."""
    values = [f"{k} {scalars[v]:.3f}" for k, v in _SHOWN.items() if v in scalars]
    rate = f"{scalars['images_per_second']:.1f} images/s"
    console.print(f"step {step:>6}  {'  '.join(values)}  {rate}")
    if scalars[SKIPPED]:
        console.print(
            f"warning: {scalars[SKIPPED]:.0f} updates were skipped: a gradient was not finite"
        )


def print_end(run: "Run", step: int, stop: StopSignal) -> None:
    """Say how the run ended and where its results are."""
    if stop.received is None:
        run.console.print(f"finished: {step:,} steps")
    elif step == 0:
        run.console.print(f"stopped by {stop.received.name} before the first step")
        return
    else:
        run.console.print(
            f"stopped by {stop.received.name} and saved at step {step:,} of {run.num_steps:,}; "
            "the same command goes on from there"
        )
    results = {
        "samples": run.workdir / "samples",
        "checkpoint": run.workdir / "checkpoints" / str(step),
        "report": run.workdir / "report.md",
        "logs": f"tensorboard --logdir {run.workdir / 'tensorboard'}",
    }
    for name, text in results.items():
        run.console.print(f"{name:>10}  {text}", markup=False)


def _millions(params: Any) -> float:
    """Count the parameters of a network, in millions."""
    return parameter_overview.count_parameters(params) / 1e6
