"""The rows of an ablation table: what each combination of losses reached, as cells of text."""

import dataclasses
from collections.abc import Sequence

from xmcgan.evaluation.metrics.retrieval import RETRIEVALS
from xmcgan.evaluation.results import Result
from xmcgan.studies.ablation.estimates import Estimate, difference, mean_over_seeds
from xmcgan.studies.ablation.plan import BASELINE
from xmcgan.utils.statistics import Score

# What stands in the table beside the Frechet distance, where the evaluation has it.
_SHOWN = (
    "clip/score",
    "clip/r_precision",
    "shapes/colors",
    "shapes/objects",
    "shapes/background",
    "shapes/positions",
    "shapes/placement",
)
# Scores that are the ruler of another one: what real images reach, and what chance gives.
RULERS = {"_real": "real images", "_shuffled": "shuffled captions"}


@dataclasses.dataclass(frozen=True)
class Row:
    """Hold what one combination of losses reached.

    Attributes:
        losses: its name.
        results: by seed, of the runs that have one.
    """

    losses: str
    results: dict[int, Result]

    def scores(self, name: str) -> dict[int, Score]:
        """Return a score by seed, of the seeds that have it."""
        found = ((seed, result.scores.get(name)) for seed, result in self.results.items())
        return {seed: score for seed, score in found if score is not None}

    def values(self, name: str) -> dict[int, float]:
        """Return the value of a score by seed."""
        return {seed: score.value for seed, score in self.scores(name).items()}

    def mean(self, name: str) -> Estimate | None:
        """Return the mean of a score over seeds, None where no run has it."""
        scores = list(self.scores(name).values())
        return mean_over_seeds(scores) if scores else None

    def difference(self, name: str, baseline: "Row") -> Estimate | None:
        """Return how far a score lies from the baseline's, None where no seed has both."""
        return difference(self.values(name), baseline.values(name))


def shown_names(rows: Sequence[Row], primary: str) -> list[str]:
    """Return the scores that the table shows, the Frechet distance first."""
    there = {name for row in rows for result in row.results.values() for name in result.scores}
    protocol = primary.partition("/")[0]
    retrievals = (f"{protocol}/{name}" for name in RETRIEVALS)
    return [name for name in (primary, *retrievals, *_SHOWN) if name in there]


def scale(name: str) -> int:
    """Return what a score is multiplied with to be shown: shares are in percent."""
    return 100 if name.startswith("shapes/") or "/retrieval@" in name else 1


def label(name: str) -> str:
    """Return a score's name as a heading, with its unit."""
    return name.rpartition("/")[2] + (", %" if scale(name) == 100 else "")


def better(rows: Sequence[Row], name: str) -> str:
    """Return which direction of a score is better, "lower" or "higher"."""
    return next(score.better for row in rows for score in row.scores(name).values())


def score_cells(rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """Return the header and the cells of the means, and of the rulers below them."""
    cells = [["losses", "seeds", *map(label, names)]]
    for row in rows:
        means = [_text(row.mean(name), name) for name in names]
        cells.append([row.losses, str(len(row.results)), *means])
    for suffix, kind in RULERS.items():
        values = [ruler(rows, name + suffix) for name in names]
        if any(value is not None for value in values):
            shown = [
                "-" if v is None else _number(v, n) for v, n in zip(values, names, strict=True)
            ]
            cells.append([kind, "", *shown])
    return cells


def difference_cells(rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """Return the header and the cells of the differences to the baseline."""
    baseline = next(row for row in rows if row.losses == BASELINE)
    cells = [["losses", *map(label, names)]]
    for row in rows:
        if row is not baseline:
            found = [_text(row.difference(name, baseline), name, "+") for name in names]
            cells.append([row.losses, *found])
    return cells


def ruler(rows: Sequence[Row], name: str) -> float | None:
    """Return the mean of a score over all runs, None where none has it."""
    values = [value for row in rows for value in row.values(name).values()]
    return sum(values) / len(values) if values else None


def _text(found: Estimate | None, name: str, sign: str = "") -> str:
    if found is None:
        return "-"
    value = _number(found.value, name, sign)
    if found.low is None or found.high is None:
        return value
    return f"{value} ({_number(found.low, name, sign)} to {_number(found.high, name, sign)})"


def _number(value: float, name: str, sign: str = "") -> str:
    digits = 1 if scale(name) == 100 else 3 if name.startswith("clip/") else 2
    return f"{scale(name) * value:{sign}.{digits}f}"
