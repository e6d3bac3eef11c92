"""Which runs an ablation table is made of: combinations of losses, each with several seeds."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from xmcgan.config import apply_override, load_config, validate
from xmcgan.errors import ConfigError, did_you_mean
from xmcgan.utils.variants import ABLATION_NAMES

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
    """Return the rows of the table: no contrastive loss, each of the grid alone, pairs, and all.

    Raises:
        ConfigError: a loss that is not in `variants.ABLATION_NAMES`, or is given twice.
    """
    for name in grid:
        if name not in ABLATION_NAMES:
            known = ", ".join(ABLATION_NAMES)
            hint = did_you_mean(name, ABLATION_NAMES)
            raise ConfigError(f"--grid: unknown loss {name!r}. Known: {known}{hint}")
    if len(set(grid)) < len(grid):
        raise ConfigError(f"--grid {','.join(grid)} names a loss twice")
    sizes = sorted({size for size in (1, 2, len(grid)) if size <= len(grid)})
    rows = [each for size in sizes for each in itertools.combinations(grid, size)]
    return [BASELINE, *("+".join(row) for row in rows)]


def read_rows(text: str) -> list[str]:
    """Return the rows of a list such as "none,sentence+word", or of "paper", its ablation table's.

    Raises:
        ConfigError: an unknown loss, or a row that is given twice.
    """
    rows = list(PAPER_ROWS) if text == "paper" else text.split(",")
    for row in rows:
        for name in row.split("+"):
            if row != BASELINE and name not in ABLATION_NAMES:
                known = ", ".join([*ABLATION_NAMES, BASELINE, "paper"])
                hint = did_you_mean(name, [*ABLATION_NAMES, BASELINE, "paper"])
                raise ConfigError(f"--rows: unknown loss {name!r}. Known: {known}{hint}")
    losses = [frozenset(row.split("+")) for row in rows]
    names = sum(row.count("+") + 1 for row in rows)
    if len(set(losses)) < len(rows) or sum(map(len, losses)) < names:
        raise ConfigError(f"--rows {text} names a row, or a loss of a row, twice")
    return rows


def plan_cells(
    spec: str, rows: Sequence[str], *, seeds: int, overrides: Sequence[str], out: Path
) -> list[Cell]:
    """Return all runs of a table, every row with its first seed before any with its second.

    The `seeds` seeds of each row are the config's own and those after it; `overrides` are
    `field=value`, the same for all runs.

    Raises:
        ConfigError: a config that does not exist or cannot work, an override of what the table
            itself varies, or no seed.
    """
    if "ablation=" in spec:
        raise ConfigError(f"--config {spec}: the table sets ablation=; leave it out")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: at least 1")
    for override in overrides:
        if override.startswith("losses.") and ".enabled" in override:
            raise ConfigError(f"--config.{override}: the table switches the losses; leave it out")
    return [_cell(spec, losses, extra, overrides, out) for extra in range(seeds) for losses in rows]


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
