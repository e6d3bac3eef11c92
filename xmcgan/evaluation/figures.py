"""Figures of several panels that look alike."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw_panels(
    num: int, title: str, size: tuple[float, float], columns: int, *, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure and `num` empty panels of it, each of `size` inches, `columns` per row."""
    rows = -(-num // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for axis in axes:
        axis.tick_params(labelsize=8, which="both")
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[num:]:
        axis.set_axis_off()
    return figure, axes[:num]


def add_legend(figure: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """Put one legend for all panels below them, with each label once."""
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
    handles = {label: handle for each in pairs for handle, label in each}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
