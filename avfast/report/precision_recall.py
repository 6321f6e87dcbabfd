"""Precision against recall, a curve per class."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from avfast.metrics import BoolArray, FloatArray, average_precision, precision_recall
from avfast.report.colours import class_colour

DASHES = ("-", "--", ":", "-.")
"""So that colour is not the only mark."""


def draw_precision_recall(axes: Axes, scores: FloatArray, labels: BoolArray, classes: Sequence[str]) -> Axes:
    """Draw the curve of every class, the best by average precision first in the legend.

    Args:
        axes: Where to draw.
        scores: [N, C].
        labels: [N, C].
        classes: C names.

    Returns:
        The axes.
    """
    ap = [average_precision(scores[:, c], labels[:, c]) for c in range(len(classes))]
    for c in sorted(range(len(classes)), key=lambda c: -ap[c]):
        precision, recall = precision_recall(scores[:, c], labels[:, c])
        (line,) = axes.step(recall, precision, where="pre", label=f"{classes[c]}  {ap[c]:.2f}")
        line.set(color=class_colour(c), linestyle=DASHES[c % len(DASHES)], linewidth=1.8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(title="class, AP", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return axes
