"""How good scores are: classification of clips, and localisation in picture and sound.

Scores and labels are NumPy arrays; N clips, C classes. A ratio whose denominator is zero is 0, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

MIN_OVERLAP = 0.5  # IoU from which CorLoc calls a region right, as in PASCAL VOC
BOX_TIME_TOLERANCE = 0.25  # s between a frame and the time of an annotated box that counts as the frame's own
SEGMENT_LENGTH = 1.0  # s, the resolution of segment-based scores in DCASE challenges


@dataclass(frozen=True)
class Regions:
    """The R scored regions of one clip."""

    times: FloatArray
    """[R], seconds, the times of the regions' frames."""
    boxes: FloatArray
    """[R, 4], xyxy in pixels of the source picture."""
    scores: FloatArray
    """[R, C], higher means more of the class."""


@dataclass(frozen=True)
class AnnotatedBox:
    """Ground truth: an object of a class is in a box from ``start`` to ``end`` (which may be equal)."""

    label: int
    """Index of the class."""
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    box: tuple[float, float, float, float]
    """xyxy in pixels of the source picture."""


@dataclass(frozen=True)
class Event:
    """A sound of a class from ``start`` to ``end``, annotated or detected."""

    label: int
    """Index of the class."""
    start: float
    """Seconds."""
    end: float
    """Seconds."""


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``, or 0 where the denominator is 0."""
    return float(numerator / denominator) if denominator else 0.0


def f1_precision_recall(hits: float, predicted: float, actual: float) -> dict[str, float]:
    """F1, precision and recall from counts of true positives, predictions and references."""
    return {
        "f1": ratio(2 * hits, predicted + actual),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, actual),
    }


def micro_f1(decisions: BoolArray, labels: BoolArray) -> dict[str, float]:
    """F1, precision and recall over all (clip, class) pairs at once.

    Args:
        decisions: [N, C], what the system says.
        labels: [N, C], what is true.

    Returns:
        ``{"f1", "precision", "recall"}``, each in [0, 1].
    """
    decisions, labels = _pairs(decisions, labels)
    return f1_precision_recall((decisions & labels).sum(), decisions.sum(), labels.sum())


def average_precision(scores: FloatArray, labels: BoolArray) -> float:
    """Area under the precision-recall staircase of one class, without interpolation.

    Clips with equal scores enter together, so their order does not matter.

    Args:
        scores: [N], finite.
        labels: [N].

    Returns:
        A number in [0, 1]; 0 without a positive clip.
    """
    scores, labels = _ranking(scores, labels)
    hits, ranked = _counts_at_each_score(scores, labels)[1:]
    if not len(hits) or not hits[-1]:
        return 0.0
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / ranked).sum() / hits[-1])


def best_threshold(scores: FloatArray, labels: BoolArray) -> float:
    """The global threshold that maximises micro-F1, searched over every decision the scores allow.

    A pair is positive where ``score >= threshold``. Two thresholds between the same neighbouring scores
    decide alike, so the search is exact; the one returned lies midway between the neighbours. Among equally
    good places the widest gap between neighbours wins (the largest margin), then the higher threshold.

    Args:
        scores: [N, C], finite.
        labels: [N, C].

    Returns:
        The threshold. Without a positive label nothing is worth predicting: it lies just above all scores.
        Without any score it is 0.
    """
    scores, labels = _ranking(scores, labels)
    if not scores.size:
        return 0.0
    values, hits, ranked = _counts_at_each_score(scores.ravel(), labels.ravel())
    if not hits[-1]:
        return float(np.nextafter(values[0], np.inf))
    quality = 2 * hits / (ranked + hits[-1])
    gaps = np.append(values[:-1] - values[1:], 0.0)
    best = int(np.lexsort((-np.arange(len(values)), gaps, quality))[-1])
    # As a float32, so that float32 scores decide as these do; neighbours without one between give the upper.
    middle = float(np.float32(values[best] - gaps[best] / 2))
    lower = values[best + 1] if best + 1 < len(values) else -np.inf
    return middle if lower < middle <= values[best] else float(values[best])


def classification(
    scores: FloatArray, labels: BoolArray, threshold: float, classes: Sequence[str]
) -> dict[str, Any]:
    """Everything that is said about clip-level decisions.

    A class without a positive clip has support 0, its recall and average precision are 0 by convention, and
    it takes no part in the macro averages and mAP; its false positives do count in the micro figures.

    Args:
        scores: [N, C], finite.
        labels: [N, C].
        threshold: A pair is positive where its score is at least this.
        classes: C names.

    Returns:
        ``{"micro", "macro", "map", "per_class"}``; the first two hold F1, precision and recall, ``per_class``
        maps each name to the same with ``ap`` and ``support`` (number of positive clips).
    """
    scores, labels = _ranking(scores, labels)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"scores: expected [N, {len(classes)}], one column a class, got {list(scores.shape)}"
        )
    decisions = scores >= threshold
    per_class: dict[str, dict[str, float]] = {}
    for c, name in enumerate(classes):
        per_class[name] = {
            **micro_f1(decisions[:, c], labels[:, c]),
            "ap": average_precision(scores[:, c], labels[:, c]),
            "support": int(labels[:, c].sum()),
        }
    supported = [entry for entry in per_class.values() if entry["support"]]
    macro = {
        key: ratio(sum(entry[key] for entry in supported), len(supported))
        for key in ("f1", "precision", "recall", "ap")
    }
    mean_ap = macro.pop("ap")
    return {"micro": micro_f1(decisions, labels), "macro": macro, "map": mean_ap, "per_class": per_class}


def region_localization(
    regions: Mapping[str, Regions], truth: Mapping[str, Sequence[AnnotatedBox]]
) -> dict[str, float]:
    """CorLoc and the pointing game over the (clip, class) pairs that have an annotated box.

    For each pair the best-scoring region over the whole clip is compared with the boxes annotated for its own
    frame: those whose interval is at most ``BOX_TIME_TOLERANCE`` away from the frame's time. CorLoc
    (Deselaers et al., IJCV 2012) asks for IoU >= 0.5 with one of them, the pointing game (Zhang et al., IJCV
    2018) for the region's centre inside one. A clip without regions fails both. Among equal scores the first
    region is taken.

    Args:
        regions: The scored regions of each clip; a clip that is absent has none.
        truth: The annotated boxes of each clip.

    Returns:
        ``{"corloc", "pointing"}``, shares of the pairs, 0 without a pair.
    """
    pairs = overlaps = points = 0
    for clip, boxes in truth.items():
        for label in sorted({box.label for box in boxes}):
            pairs += 1
            found = regions.get(clip)
            if found is None or not len(found.times):
                continue
            best = int(np.argmax(found.scores[:, label]))
            time, region = float(found.times[best]), found.boxes[best]
            own = [b.box for b in boxes if b.label == label and _near(b, time)]
            overlaps += any(iou(region, box) >= MIN_OVERLAP for box in own)
            points += any(_contains(box, region) for box in own)
    return {"corloc": ratio(overlaps, pairs), "pointing": ratio(points, pairs)}


def iou(a: Sequence[float] | FloatArray, b: Sequence[float] | FloatArray) -> float:
    """Intersection over union of two xyxy boxes in continuous coordinates; 0 where the union is empty."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return ratio(shared, _area(a) + _area(b) - shared)


def audio_localization(
    estimated: Mapping[str, Sequence[Event]], reference: Mapping[str, Sequence[Event]], classes: int
) -> dict[str, float]:
    """Micro-averaged segment-based F1 and error rate, at 1 s.

    After Mesaros, Heittola and Virtanen, "Metrics for polyphonic sound event detection", Applied Sciences
    2016: an event makes every segment that it touches active; per segment, errors are substitutions,
    deletions and insertions, summed and divided by the number of active reference segments. Without any, the
    divisor is 1, so that insertions still show.

    Args:
        estimated: What the system heard in each clip; a clip that is absent is silent.
        reference: What is to be heard in each clip. Its clips are the ones that count.
        classes: C.

    Returns:
        ``{"segment_f1", "segment_er"}``: F1 in [0, 1]; the error rate is 0 or more, and may exceed 1.
    """
    hits = predicted = actual = errors = 0
    for clip, events in reference.items():
        heard = estimated.get(clip, ())
        length = max((_last_segment(event) for event in (*events, *heard)), default=0)
        truth, guess = _event_roll(events, length, classes), _event_roll(heard, length, classes)
        hits += int((truth & guess).sum())
        predicted += int(guess.sum())
        actual += int(truth.sum())
        # Substitutions pair a missed class with a wrong one in the same segment, so the larger count remains.
        errors += int(np.maximum((truth & ~guess).sum(axis=1), (guess & ~truth).sum(axis=1)).sum())
    return {
        "segment_f1": f1_precision_recall(hits, predicted, actual)["f1"],
        "segment_er": float(errors / max(actual, 1)),
    }


def _pairs(decisions: BoolArray, labels: BoolArray) -> tuple[BoolArray, BoolArray]:
    decisions, labels = np.asarray(decisions, dtype=bool), np.asarray(labels, dtype=bool)
    if decisions.shape != labels.shape:
        raise ValueError(
            f"labels: expected the shape of the scores {list(decisions.shape)}, got {list(labels.shape)}"
        )
    return decisions, labels


def _ranking(scores: FloatArray, labels: BoolArray) -> tuple[FloatArray, BoolArray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.shape != labels.shape:
        raise ValueError(
            f"labels: expected the shape of the scores {list(scores.shape)}, got {list(labels.shape)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"scores: expected finite numbers, got {int((~np.isfinite(scores)).sum())} that are not"
        )
    return scores, labels


def _counts_at_each_score(
    scores: FloatArray, labels: BoolArray
) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct scores from high to low, and for each how many positives and pairs score at least that."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = (
        np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1) if len(ordered) else np.array([], int)
    )
    return ordered[last], np.cumsum(labels[order], dtype=np.int64)[last], last.astype(np.int64) + 1


def _near(box: AnnotatedBox, time: float) -> bool:
    return box.start - BOX_TIME_TOLERANCE <= time <= box.end + BOX_TIME_TOLERANCE


def _contains(box: Sequence[float], region: FloatArray) -> bool:
    x, y = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def _area(box: Sequence[float] | FloatArray) -> float:
    return max(0.0, float(box[2] - box[0])) * max(0.0, float(box[3] - box[1]))


def _first_segment(event: Event) -> int:
    return max(0, int(np.floor(event.start / SEGMENT_LENGTH)))


def _last_segment(event: Event) -> int:
    """One past the last segment that the event touches."""
    return max(0, int(np.ceil(event.end / SEGMENT_LENGTH)))


def _event_roll(events: Sequence[Event], length: int, classes: int) -> BoolArray:
    """Which classes are active in which segment: bool [length, C]."""
    roll = np.zeros((length, classes), dtype=bool)
    for event in events:
        roll[_first_segment(event) : _last_segment(event), event.label] = True
    return roll
