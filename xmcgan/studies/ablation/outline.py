"""What a table will cost, before it is made."""

import statistics
from collections.abc import Sequence

from xmcgan.data import DataSet
from xmcgan.data.pipeline import num_steps
from xmcgan.errors import DataError
from xmcgan.studies.ablation.plan import Cell
from xmcgan.studies.ablation.scoring import (
    Scoring,
    find_result,
    finished_step,
    images_per_second,
    is_of_config,
)
from xmcgan.training.retention import committed_steps


def outline(cells: Sequence[Cell], scoring: Scoring) -> str:
    """Return a line a run with how far it is, and what is left to do.

    The time follows from what runs of the table have logged of their speed; before the first it is
    not known.

    Args:
        cells: the runs.
        scoring: how they are scored.
    """
    length = _planned_steps(cells[0])
    lines = [f"{len(cells)} runs, each of {f'{length:,} steps' if length else 'unknown length'}:"]
    images, evaluations, seconds = 0, 0, []
    for cell in cells:
        result = find_result(cell, scoring)
        step = finished_step(cell)
        done = max(committed_steps(cell.workdir / "checkpoints"), default=0)
        state = "done" if result else "trained" if step else f"at step {done:,}"
        if done and not is_of_config(cell):
            state = "in the way: a run of another config, which training will refuse"
        lines.append(f"  {cell.name}: {state}")
        evaluations += result is None
        seconds += [result.seconds] if result else []
        images += 0 if step else max((length or 0) - done, 0) * cell.config.batch_size
    speeds = [speed for cell in cells for speed in images_per_second(cell)]
    lines.append(
        f"left: {images:,} images of generator updates, {evaluations} evaluations of "
        f"{scoring.num_samples:,} images"
    )
    if speeds and length:
        left = images / statistics.median(speeds)
        left += evaluations * statistics.median(seconds) if seconds else 0
        what = "" if seconds or not evaluations else ", evaluations not counted"
        lines.append(
            f"time: about {left / 60:.0f} minutes at the {statistics.median(speeds):.0f} images a "
            f"second that were logged; start and compilation of each program come to it{what}"
        )
    else:
        lines.append("time: not known before a run of this table has logged its speed")
    return "\n".join(lines)


def _planned_steps(cell: Cell) -> int | None:
    """Return the length of a run, None where it counts in passes over data not yet prepared."""
    config = cell.config
    if config.num_train_steps:
        return config.num_train_steps
    try:
        data_set = DataSet(config.data.name, config.data.data_dir, **config.data.fields)
        source = data_set.load(config.data.train_split)
    except DataError:
        return None
    return num_steps(config.num_epochs, len(source), config.batch_size, config.d_steps)
