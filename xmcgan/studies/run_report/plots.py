"""Curves of training as a picture: a panel for what belongs together."""

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmcgan.studies.run_report.log import Curves, thinned

_COLUMNS = 3
# Told apart by people who see few colours (Okabe and Ito); one curve, one colour in all panels.
_COLORS = {
    "sum": "#000000",
    "hinge": "#999999",
    "sentence": "#0072B2",
    "word": "#D55E00",
    "image discriminator": "#009E73",
    "image pretrained": "#CC79A7",
    "discriminator": "#0072B2",
    "generator": "#D55E00",
    "margin": "#000000",
    "real": "#0072B2",
    "generated": "#D55E00",
    "max": "#0072B2",
    "mean": "#D55E00",
}
_OTHER_COLOR = "#0072B2"
_LABELS = {
    "d_loss": "sum",
    "g_loss": "sum",
    "d_margin": "margin",
    "d_real_logit": "real",
    "d_fake_logit": "generated",
    "d_grad_norm": "discriminator",
    "g_grad_norm": "generator",
    "real_similarity": "real",
    "fake_similarity": "generated",
}
_FEW_TICKS = 20  # more than so many times from bottom to top: powers of ten are labels enough
_OFTEN_ZERO = "skipped_updates"  # shown where it ever is not


class Panel(NamedTuple):
    """Name what one panel shows.

    Attributes:
        title: stands above.
        names: of the curves; `*` stands for anything, and alone for the label of its curve.
        scale: of the y axis.
        is_share: between 0 and 1, with chance as a line.
    """

    title: str
    names: tuple[str, ...]
    scale: str = "linear"
    is_share: bool = False


PANELS = (
    Panel("losses of the discriminator", ("d_loss", "d_*_loss")),
    Panel("losses of the generator", ("g_loss", "g_*_loss")),
    Panel("logits of the discriminator", ("d_margin", "d_real_logit", "d_fake_logit")),
    Panel("retrieval accuracy, real images", ("real_*_accuracy",), is_share=True),
    Panel("retrieval accuracy, generated images", ("fake_*_accuracy",), is_share=True),
    Panel("gradient norms", ("d_grad_norm", "g_grad_norm"), scale="log"),
    Panel("likeness of two images (1: the same)", ("real_similarity", "fake_similarity")),
    Panel("hinge to contrastive gradient", ("g_hinge_to_contrast",), scale="log"),
    Panel("spectral norms of the discriminator", ("d_spectral_norm_*",)),
    Panel("retrieval entropy, real images", ("real_*_entropy",)),
    Panel("retrieval entropy, generated images", ("fake_*_entropy",)),
    Panel("images per second", ("images_per_second",)),
    Panel("skipped updates", ("skipped_updates",)),
)


def draw_curves(curves: Curves, title: str, *, chance: float, resumed_at: Sequence[int]) -> Figure:
    """Draw all curves of a log.

    Args:
        curves: by name.
        title: stands above.
        chance: retrieval accuracy of a guess.
        resumed_at: steps at which the run went on.
    """
    panels = _filled(curves)
    rows = -(-len(panels) // _COLUMNS)
    height = 2.6 * rows + 0.9
    figure = Figure(figsize=(4.4 * _COLUMNS, height))
    # Set by hand: a layout that is computed takes longer than the drawing.
    margins = {"left": 0.045, "right": 0.985, "bottom": 0.5 / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**margins, wspace=0.17, hspace=0.45)
    figure.suptitle(title, fontsize=12, y=1 - 0.2 / height)
    axes = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axis, (panel, names) in zip(axes, panels, strict=False):
        _draw(axis, panel, {name: curves[name] for name in names})
        if panel.is_share:
            axis.set_ylim(0, 1)
            axis.axhline(chance, color="#666666", linestyle=":", linewidth=1, label="chance")
        for step in resumed_at:
            axis.axvline(step, color="#999999", linestyle="--", linewidth=0.8, zorder=0)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _filled(curves: Curves) -> list[tuple[Panel, list[str]]]:
    """Return the panels that have curves, with their names; what fits none comes last."""
    left = [name for name in curves if name != _OFTEN_ZERO or curves[name][1].any()]
    panels = []
    for panel in PANELS:
        names = [name for pattern in panel.names for name in fnmatch.filter(left, pattern)]
        left = [name for name in left if name not in names]
        if names:
            panels.append((panel, names))
    return panels + [(Panel(name, (name,)), [name]) for name in left]


def _draw(axis: Axes, panel: Panel, curves: Curves) -> None:
    for name, (steps, values) in curves.items():
        label = _label(name, panel)
        marker = "." if len(steps) == 1 else ""  # a line of one point is nothing
        color = _COLORS.get(label, _OTHER_COLOR)
        axis.plot(*thinned(steps, values), marker=marker, color=color, linewidth=1.3, label=label)
    axis.set_yscale(panel.scale)
    if panel.scale == "log":
        low, high = axis.get_ylim()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if high < _FEW_TICKS * low else "")
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("step", fontsize=8, labelpad=1)
    axis.tick_params(labelsize=8, which="both")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _label(name: str, panel: Panel) -> str:
    """Return what tells a curve from the others of its panel, in words."""
    for pattern in panel.names:
        before, star, after = pattern.partition("*")
        if star and fnmatch.fnmatch(name, pattern):
            return name.removeprefix(before).removesuffix(after).replace("_", " ")
    return _LABELS.get(name, name.replace("_", " "))
