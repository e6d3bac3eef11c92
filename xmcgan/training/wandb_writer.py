"""Weights & Biases as one more writer of a run, off unless `--config.wandb.project` names one.

The package is imported only then. Its own variables work: `WANDB_MODE=offline` keeps everything in
`WORKDIR/wandb/`, for `wandb sync` later.
"""

import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from xmcgan.errors import ConfigError
from xmcgan.training.writers import Images, MetricWriter
from xmcgan.utils.files import write_text

ID_FILE = "wandb_run_id"
_FINISH_SECONDS = 120


class WandbWriter(MetricWriter):
    """Write to a run of Weights & Biases; nothing that fails there stops the training.

    After the first failure, a warning is printed and nothing more is sent: the other writers have
    it all.
    """

    def __init__(
        self, workdir: Path, *, project: str, entity: str, name: str, first_step: int
    ) -> None:
        """Begin a run, or go on with the one whose id the workdir keeps.

        Args:
            workdir: keeps the id, and what was not uploaded.
            project: its name there.
            entity: user or team; empty for the default one.
            name: of the run, on the page.
            first_step: the step the training goes on from; 0 begins another run.

        Raises:
            ConfigError: the package is missing, or does not know who you are.
        """
        wandb = self._wandb = import_wandb()
        self._run: Any = None
        try:
            self._run = wandb.init(
                project=project,
                entity=entity or None,
                name=name,
                id=_run_id(workdir, first_step),
                resume="allow",
                dir=str(workdir),
                # The terminal and the source code stay here; a dead network ends no training.
                settings=wandb.Settings(
                    console="off", save_code=False, finish_timeout=_FINISH_SECONDS
                ),
            )
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise ConfigError(
                f"Weights & Biases does not start: {error} Or set WANDB_MODE=offline, or leave out "
                "--config.wandb.project."
            ) from None
        except Exception as error:
            self._give_up(error)

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Write the numbers at their step."""
        self._log(step, lambda: {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Images) -> None:
        """Write the images, a list a name."""
        wandb = self._wandb
        self._log(
            step, lambda: {name: [wandb.Image(i) for i in batch] for name, batch in images.items()}
        )

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write the texts as they are."""
        self._log(step, lambda: dict(texts))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the choices as the config of the run."""
        self._try(lambda run: run.config.update(dict(hparams), allow_val_change=True))

    def close(self) -> None:
        """Wait until all is sent; a run that was stopped counts as finished, and can be resumed."""
        self._try(lambda run: run.finish())

    def _log(self, step: int, values: Callable[[], dict[str, Any]]) -> None:
        self._try(lambda run: run.log(values(), step=step))

    def _try(self, call: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        print(
            f"warning: Weights & Biases failed and gets nothing more of this run: {error}",
            file=sys.stderr,
        )


def import_wandb() -> ModuleType:
    """Import the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        wandb = None
    # A folder of that name, which the package makes where it runs, can be imported, too.
    if wandb is None or not hasattr(wandb, "init"):
        raise ConfigError(
            "--config.wandb.project needs a package that is not installed: pip install wandb"
        )
    return wandb


def _run_id(workdir: Path, first_step: int) -> str:
    """Return the id that the workdir keeps; a new one for a run that begins."""
    path = workdir / ID_FILE
    if first_step and path.exists() and (kept := path.read_text(encoding="utf-8").strip()):
        return kept
    new = secrets.token_hex(4)
    write_text(path, f"{new}\n")
    return new
