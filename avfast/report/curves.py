"""The learning curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avfast.report.figure import save


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and validation scores over training steps.

    Args:
        lines: Of ``metrics.jsonl``: training lines have ``step`` and ``loss``, validation lines ``step`` and
            ``val``
            with ``loss``, ``micro_f1`` and ``map``.
        path: The PNG file to create or replace.
    """
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "val" in line]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, training, [line["loss"] for line in training], "training")
    _curve(left, validation, [line["val"]["loss"] for line in validation], "validation")
    _curve(right, validation, [line["val"]["micro_f1"] for line in validation], "micro-F1")
    _curve(right, validation, [line["val"]["map"] for line in validation], "mAP")
    left.set(title="Loss", xlabel="step", ylim=(0, None))
    right.set(title="Validation", xlabel="step", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)


def _curve(axes: Axes, lines: Sequence[Mapping[str, Any]], values: Sequence[float], label: str) -> None:
    marker = "o" if len(lines) < 2 else None  # a single point has no line
    axes.plot([line["step"] for line in lines], values, label=label, marker=marker)
