"""Which runs an ablation table is made of: combinations of losses, each with several seeds."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from xmcgan.config import apply_override, load_config, validate
from xmcgan.errors import ConfigError, did_you_mean
from xmcgan.variants import ABLATION_NAMES

BASELINE = "none"  # the hinge loss alone


@dataclasses.dataclass(frozen=True)
class Cell:
    """Hold one training run of the table.

    Attributes:
        losses: name of its row, as after `ablation=`: "none", "word" or "sentence+word".
        seed: of the run.
        workdir: takes the run.
        spec: `NAME:variant` of its config.
        overrides: `field=value`, in their order.
        config: what the two give.
    """

    losses: str
    seed: int
    workdir: Path
    spec: str
    overrides: tuple[str, ...]
    config: ConfigDict

    @property
    def name(self) -> str:
        """Return what the cell is called in messages."""
        return f"{self.losses}, seed {self.seed}"


def combinations(grid: Sequence[str]) -> list[str]:
    """Return the rows of the table: no contrastive loss, each alone, pairs, and all.

    With all four losses these are all rows of the paper's ablation table, among others.

    Args:
        grid: names of `variants.ABLATION_NAMES`, each once.

    Raises:
        ConfigError: none, an unknown one, or one twice.
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


def plan_cells(
    spec: str, grid: Sequence[str], *, seeds: int, overrides: Sequence[str], out: Path
) -> list[Cell]:
    """Return all runs of a table, every row with its first seed before any with its second.

    Args:
        spec: `NAME[:variant]` of a config, without `ablation=`.
        grid: names of the losses.
        seeds: runs of each row, with seeds from the config's own on.
        overrides: `field=value`, the same for all runs.
        out: folder of the table.

    Raises:
        ConfigError: a config that does not exist or cannot work, an override of what the table
            itself varies, or no seed.
    """
    if "ablation=" in spec:
        raise ConfigError(f"--config {spec}: the grid sets ablation=; leave it out")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: at least 1")
    for override in overrides:
        if override.startswith("losses.") and ".enabled" in override:
            raise ConfigError(f"--config.{override}: the grid switches the losses; leave it out")
    cells = [_cell(spec, losses, 0, overrides, out) for losses in combinations(grid)]
    return [
        _cell(spec, cell.losses, extra, overrides, out) for extra in range(seeds) for cell in cells
    ]


def _cell(spec: str, losses: str, extra: int, overrides: Sequence[str], out: Path) -> Cell:
    full = f"{spec}{',' if ':' in spec else ':'}ablation={losses}"
    config = load_config(full)
    for override in overrides:
        apply_override(config, override)
    added = [f"seed={config.seed + extra}"] if extra else []
    for override in added:
        apply_override(config, override)
    validate(config)
    workdir = out / "runs" / losses / f"seed_{config.seed}"
    return Cell(losses, config.seed, workdir, full, (*overrides, *added), config)
