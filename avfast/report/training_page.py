"""The page that tells how a run went: curves, classes, and the clips it did best and worst on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avfast.metrics import BoolArray, FloatArray
from avfast.report.figure import svg
from avfast.report.page import render
from avfast.report.precision_recall import draw_precision_recall

SHOWN_CLIPS = 3
"""Best and worst clips each."""

PER_CLASS = {"f1": "F1", "precision": "precision", "recall": "recall", "ap": "AP", "support": "clips"}


@dataclass(frozen=True)
class ScoredSplit:
    """What a run says of a split."""

    clips: Sequence[str]
    """N names."""
    scores: FloatArray
    """[N, C]."""
    labels: BoolArray
    """[N, C]."""
    thresholds: float | FloatArray
    """From which score on a class is found; one for all, or [C]."""

    @property
    def margins(self) -> FloatArray:
        """[N]: how far the class nearest to a wrong decision is from it; below 0 where one is wrong."""
        return (np.where(self.labels, 1, -1) * (self.scores - self.thresholds)).min(axis=1)

    def best(self) -> list[int]:
        """Positions of the clips with labels that were decided most surely, the surest first."""
        order = np.argsort(-self.margins, kind="stable")
        return [int(i) for i in order if self.labels[i].any()][:SHOWN_CLIPS]

    def worst(self) -> list[int]:
        """Positions of the clips with the gravest mistakes, the gravest first."""
        order = np.argsort(self.margins, kind="stable")
        return [int(i) for i in order if self.margins[i] < 0][:SHOWN_CLIPS]


def training_page(
    name: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    curves: bytes,
    split: ScoredSplit,
    draw_clip: Callable[[int], bytes] | None,
) -> str:
    """The report of a run.

    Args:
        name: Of the run's folder.
        config: Its ``config.json``.
        metrics: Its ``metrics.json``.
        curves: Its ``curves.png``; empty without.
        split: The split that ``metrics`` is of.
        draw_clip: From a position in the split to a PNG of what was found there; None where the data has no
            media.

    Returns:
        A self-contained HTML document.
    """
    classes = list(metrics["per_class"])
    found = split.scores >= split.thresholds
    clips = {
        kind: [_clip(i, split, found, classes, draw_clip) for i in positions] if draw_clip else []
        for kind, positions in (("best", split.best()), ("worst", split.worst()))
    }
    return render(
        "training.html.j2",
        name=name,
        config=config,
        metrics=metrics,
        figures=list(_figures(metrics)),
        curves=curves,
        rows=[
            {"class": label} | {title: entry[key] for key, title in PER_CLASS.items()}
            for label, entry in metrics["per_class"].items()
        ],
        precision_recall=_precision_recall(split, classes),
        chosen=[
            ("Best clips", "Every class decided right, and most surely.", clips["best"]),
            ("Worst clips", "A class decided wrong, by the widest margin.", clips["worst"]),
        ],
        settings=[(key, value) for group in ("model", "recipe") for key, value in config[group].items()],
    )


def _clip(
    position: int,
    split: ScoredSplit,
    found: BoolArray,
    classes: Sequence[str],
    draw_clip: Callable[[int], bytes],
) -> dict[str, Any]:
    return {
        "name": split.clips[position],
        "labels": [classes[c] for c in np.flatnonzero(split.labels[position]).tolist()],
        "found": [classes[c] for c in np.flatnonzero(found[position]).tolist()],
        "picture": draw_clip(position),
    }


def _figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What matters most, as text."""
    micro = metrics["micro"]
    yield "Clips", f"{metrics['clips']} of the {metrics['split']} split"
    yield "Micro-F1", f"{micro['f1']:.3f} (precision {micro['precision']:.3f}, recall {micro['recall']:.3f})"
    yield "Macro-F1", f"{metrics['macro']['f1']:.3f}"
    yield "mAP", f"{metrics['map']:.3f}"
    names = {"visual": "Picture alone", "audio": "Sound alone"}
    for modality, view in metrics.get("views", {}).items():
        yield names[modality], f"micro-F1 {view['micro']['f1']:.3f}"
    places = metrics.get("localization", {})
    if "visual" in places:
        yield (
            "Regions",
            f"CorLoc {places['visual']['corloc']:.3f}, pointing {places['visual']['pointing']:.3f}",
        )
    if "audio" in places:
        audio = places["audio"]
        yield "Segments", f"F1 {audio['segment_f1']:.3f}, error rate {audio['segment_er']:.3f}"


def _precision_recall(split: ScoredSplit, classes: Sequence[str]) -> bytes:
    figure = Figure(figsize=(9, max(3.6, 0.25 * len(classes))), layout="constrained")
    draw_precision_recall(figure.subplots(), split.scores, split.labels, classes)
    return svg(figure)
