"""Which runs an ablation table is made of: combinations of losses, each with several seeds."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from xmcgan.config import apply_override, load_config, validate
from xmcgan.errors import ConfigError

BASELINE = "none"  # the hinge loss alone
PAPER_ROWS: Sequence[str] = (
    BASELINE, "sentence", "word", "image", "pretrained", "image+pretrained", "sentence+word",
    "sentence+word+image", "sentence+word+pretrained", "sentence+word+image+pretrained",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of the table; `losses` names its row: "none", "word", "sentence+word"."""

    losses: str
    seed: int
    workdir: Path
    spec: str  # `NAME:variant` of its config
    overrides: tuple[str, ...]  # `field=value`
    config: ConfigDict  # what the two give

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.losses}, seed {self.seed}"

    @property
    def train_command(self) -> list[str]:
        """Command line that trains the run, or resumes it."""
        overrides = [f"--config.{override}" for override in self.overrides]
        flags = ["--config", self.spec, "--workdir", str(self.workdir), *overrides]
        return [sys.executable, "-m", "xmcgan.train", *flags]


def combinations(grid: Sequence[str]) -> list[str]:
    """Return the rows of the table: no contrastive loss, each of the grid alone, pairs, and all."""
    sizes = sorted({size for size in (1, 2, len(grid)) if size <= len(grid)})
    rows = [each for size in sizes for each in itertools.combinations(grid, size)]
    return [BASELINE, *("+".join(row) for row in rows)]


def read_rows(text: str) -> list[str]:
    """Return the rows of a list such as "none,sentence+word", or of "paper", its ablation table."""
    return list(PAPER_ROWS) if text == "paper" else text.split(",")


def plan_cells(
    spec: str, rows: Sequence[str], *, seeds: int, overrides: Sequence[str], out: Path
) -> list[Cell]:
    """Return all runs of a table, every row with its first seed before any with its second.

    The `seeds` seeds of each row are the config's own and those after it; `overrides` are
    `field=value`, the same for all runs. Raises ConfigError for what makes no table.
    """
    if "ablation=" in spec:
        raise ConfigError(f"--config {spec}: the table sets ablation=; leave it out")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: at least 1")
    for override in overrides:
        if override.startswith("losses.") and ".enabled" in override:
            raise ConfigError(f"--config.{override}: the table switches the losses; leave it out")
    losses = [row.split("+") for row in rows]
    if len(set(map(frozenset, losses))) < len(rows) or any(
        len({*row}) < len(row) for row in losses
    ):
        raise ConfigError(f"a row, or a loss of a row, is named twice: {', '.join(rows)}")
    return [_cell(spec, row, extra, overrides, out) for extra in range(seeds) for row in rows]


def _cell(spec: str, losses: str, extra: int, overrides: Sequence[str], out: Path) -> Cell:
    full = f"{spec}{',' if ':' in spec else ':'}ablation={losses}"
    config = load_config(full)
    for override in overrides:
        apply_override(config, override)
    if extra:
        overrides = (*overrides, f"seed={config.seed + extra}")
        apply_override(config, overrides[-1])
    validate(config)
    workdir = out / "runs" / losses / f"seed_{config.seed}"
    return Cell(losses, config.seed, workdir, full, tuple(overrides), config)
