"""The learning curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avfast.report.figure import save

LEGEND_CLASSES = 20  # more would hide the curves


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and validation scores over training steps, over all classes and class by class.

    Args:
        lines: Of ``metrics.jsonl``: training lines have ``step`` and ``loss``, validation lines ``step`` and
            ``val`` with ``loss``, ``micro_f1``, ``map`` and ``per_class``, which has ``loss`` and ``f1`` by
            class.
        path: The PNG file to create or replace.
    """
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "val" in line]
    figure = Figure(figsize=(10, 7), layout="constrained")
    (loss, score), (class_loss, class_score) = figure.subplots(2, 2)
    _curve(loss, training, [line["loss"] for line in training], "training")
    _curve(loss, validation, [line["val"]["loss"] for line in validation], "validation")
    _curve(score, validation, [line["val"]["micro_f1"] for line in validation], "micro-F1")
    _curve(score, validation, [line["val"]["map"] for line in validation], "mAP")
    classes = list(validation[-1]["val"]["per_class"]) if validation else []
    for name in classes:
        rows = [line["val"]["per_class"][name] for line in validation]
        _curve(class_loss, validation, [row["loss"] for row in rows], name)
        _curve(class_score, validation, [row["f1"] for row in rows], name)
    loss.set(title="Loss", ylim=(0, None))
    score.set(title="Validation", ylim=(0, 1))
    class_loss.set(title="Validation loss by class", ylim=(0, None))
    class_score.set(title="Validation F1 by class", ylim=(0, 1))
    for axes in (loss, score, class_loss, class_score):
        axes.set(xlabel="step")
        axes.grid(alpha=0.3)
    for axes in (loss, score):
        axes.legend()
    if len(classes) <= LEGEND_CLASSES:
        class_score.legend(fontsize="small")
    save(figure, path)


def _curve(axes: Axes, lines: Sequence[Mapping[str, Any]], values: Sequence[float], label: str) -> None:
    marker = "o" if len(lines) < 2 else None  # a single point has no line
    axes.plot([line["step"] for line in lines], values, label=label, marker=marker)
