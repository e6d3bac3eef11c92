"""The ablation table as a picture."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmcgan.studies.ablation.plan import BASELINE
from xmcgan.studies.ablation.table import Row, better, label, ruler, scale

_MOST_COLUMNS = 3


def chart(rows: Sequence[Row], names: Sequence[str], heading: str) -> Figure:
    """Draw each score as a panel: a line a combination, with its mean, interval and seeds.

    Args:
        rows: of the table.
        names: of the scores to show.
        heading: stands above.
    """
    columns = min(_MOST_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    size = (4.3 * columns + 1.2, lines * (0.33 * len(rows) + 1.2) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel, name in zip(panels.flat, names, strict=False):
        _draw(panel, rows, name)
    for panel in list(panels.flat)[len(names) :]:
        panel.set_axis_off()
    first = panels[0, 0]
    first.set_yticks(range(len(rows)), [row.losses for row in rows], fontsize=9)
    first.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    figure.suptitle(heading, fontsize=11)
    handles = {
        label: line
        for panel in figure.axes
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
    )
    return figure


def _draw(panel: Axes, rows: Sequence[Row], name: str) -> None:
    factor = scale(name)
    shown: list[float] = []
    for height, row in enumerate(rows):
        mean = row.mean(name)
        if mean is None:
            continue
        seeds = [factor * value for value in row.values(name).values()]
        shown += seeds
        if len(seeds) > 1:
            panel.plot(seeds, [height] * len(seeds), "o", color="#9bbcf2", ms=5, label="a seed")
        if mean.low is not None and mean.high is not None:
            bounds = [factor * mean.low, factor * mean.high]
            panel.plot(bounds, [height, height], color="#1f6feb", lw=1.6, label="95 % interval")
        panel.plot([factor * mean.value], [height], "D", color="#0b3d91", ms=5, label="mean")
        if row.losses == BASELINE:
            panel.axvline(
                factor * mean.value, color="#555555", ls="--", lw=1, label="without these losses"
            )
    chance = ruler(rows, f"{name}_shuffled")
    if chance is not None:
        shown.append(factor * chance)
        panel.axvline(
            factor * chance, color="#d9822b", ls=":", lw=1.6, label="chance (shuffled captions)"
        )
    _fit(panel, shown)
    panel.set_title(f"{label(name)} ({better(rows, name)} is better)", fontsize=10)
    panel.tick_params(labelsize=9)
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _fit(panel: Axes, shown: Sequence[float]) -> None:
    """Show all seeds; the wide intervals of few seeds may leave the panel."""
    room = 0.75 * (max(shown) - min(shown)) or 1.0
    low, high = panel.get_xlim()
    panel.set_xlim(max(low, min(shown) - room), min(high, max(shown) + room))
