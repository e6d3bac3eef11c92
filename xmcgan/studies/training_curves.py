"""Curves of training as a picture: a panel for what belongs together."""

import fnmatch
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from xmcgan.evaluation.figures import draw_panels
from xmcgan.training.logging import Curves

_COLUMNS = 3
_MAX_POINTS = 400  # of a curve: more than the pixels that a panel is wide
# Title and names of curves; `*` stands for anything, and alone for the label of its curve. Curves
# that fit none get a panel each.
PANELS = {
    "losses of the discriminator": ("d_loss", "d_*_loss"),
    "losses of the generator": ("g_loss", "g_*_loss"),
    "logits of the discriminator": ("d_margin", "d_real_logit", "d_fake_logit"),
    "retrieval accuracy, real images": ("real_*_accuracy",),
    "retrieval accuracy, generated images": ("fake_*_accuracy",),
    "gradient norms": ("d_grad_norm", "g_grad_norm"),
    "likeness of two images (1: the same)": ("real_similarity", "fake_similarity"),
    "hinge to contrastive gradient": ("g_hinge_to_contrast",),
    "spectral norms of the discriminator": ("d_spectral_norm_*",),
    "retrieval entropy, real images": ("real_*_entropy",),
    "retrieval entropy, generated images": ("fake_*_entropy",),
    "images per second": ("images_per_second",),
    "shares of time and of the peak": ("data_wait_share", "peak_share"),
    "skipped updates": ("skipped_updates",),
}
_LOG_SCALE = ("gradient norms", "hinge to contrastive gradient")
# Okabe and Ito: told apart by people who see few colors. Black is for sums.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999", "#E69F00", "#56B4E9")


def draw_curves(curves: Curves, title: str, *, chance: float, resumed_at: Sequence[int]) -> Figure:
    """Draw all curves of a log.

    `chance` is the retrieval accuracy of a guess; `resumed_at` are steps at which a run went on.
    """
    panels = _assign(curves)
    figure, axes = draw_panels(len(panels), "", (4.4, 2.6), _COLUMNS)
    # Set by hand: a layout that is computed takes longer than the drawing.
    figure.set_layout_engine(None)
    height = figure.get_figheight()
    margins = {"left": 0.045, "right": 0.985, "bottom": 0.5 / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**margins, wspace=0.17, hspace=0.45)
    figure.suptitle(title, fontsize=12, y=1 - 0.2 / height)
    colors: dict[str, str] = {}  # one label, one color in all panels
    for axis, (name, labels) in zip(axes, panels.items(), strict=True):
        for curve, label in labels.items():
            steps, values = curves[curve]
            new = _COLORS[len(colors) % len(_COLORS)]
            color = "black" if curve in ("d_loss", "g_loss") else colors.setdefault(label, new)
            marker = "." if len(steps) == 1 else ""  # a line of one point is nothing
            axis.plot(
                *thinned(steps, values), marker=marker, color=color, linewidth=1.3, label=label
            )
        if name.startswith("retrieval accuracy"):
            axis.set_ylim(0, 1)
            axis.axhline(chance, color="#666666", linestyle=":", linewidth=1, label="chance")
        if name in _LOG_SCALE:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
        for step in resumed_at:
            axis.axvline(step, color="#999999", linestyle="--", linewidth=0.8, zorder=0)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            axis.legend(fontsize=8, frameon=False)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8, labelpad=1)
    return figure


def thinned(
    steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return at most 400 points, each the mean of as many neighbors; NaN spreads."""
    size = -(-len(steps) // _MAX_POINTS)
    starts = np.arange(0, len(steps), max(size, 1))
    counts = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _assign(curves: Curves) -> dict[str, dict[str, str]]:
    """Return by panel the labels of its curves; updates that were never skipped have no panel."""
    left = [name for name in curves if name != "skipped_updates" or curves[name][1].any()]
    panels: dict[str, dict[str, str]] = {}
    for title, patterns in PANELS.items():
        for pattern in patterns:
            before, star, after = pattern.partition("*")
            for name in fnmatch.filter(left, pattern):
                label = name.removeprefix(before).removesuffix(after) if star else name
                panels.setdefault(title, {})[name] = label.replace("_", " ")
                left.remove(name)
    return panels | {name: {name: name.replace("_", " ")} for name in left}
