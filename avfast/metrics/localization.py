"""How well classes are found in the picture and in the sound, against annotated places and times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avfast.metrics.classification import BoolArray, FloatArray, f1_precision_recall, ratio

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
    estimated: Mapping[str, Sequence[Event]],
    reference: Mapping[str, Sequence[Event]],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Segment-based F1 and error rate at 1 s: DCASE 2017 task 4, subtask B.

    After Mesaros, Heittola and Virtanen, "Metrics for polyphonic sound event detection", Applied Sciences
    2016, with the conventions of ``sed_eval``, which the challenge used: an event makes every segment that it
    touches active, so one of no length does unless it lies on a border. Per segment, misses and false alarms
    are paired as substitutions; what is left over are deletions or insertions. For a class alone there is
    nothing to substitute. Error rates are counts divided by the number of active reference segments; without
    any, where ``sed_eval`` divides by zero, the divisor is 1, so that insertions still show.

    Args:
        estimated: What the system heard in each clip; a clip that is absent is silent.
        reference: What is to be heard in each clip. Its clips are the ones that count; one without events
            counts for insertions.
        classes: C names.

    Returns:
        ``segment_f1``, ``segment_precision`` and ``segment_recall`` in [0, 1]; ``segment_er``, 0 or more and
        possibly above 1, with its parts ``substitutions``, ``deletions`` and ``insertions``; ``per_class``
        with ``f1``, ``precision``, ``recall``, ``er`` and ``support`` (active reference segments) by name.

    Raises:
        ValueError: An event's time is not finite, or its label no index of a class.
    """
    hits = np.zeros(len(classes), np.int64)
    misses, alarms = hits.copy(), hits.copy()
    substitutions = deletions = insertions = 0
    for clip, events in reference.items():
        heard = estimated.get(clip, ())
        length = max((_last_segment(event) for event in (*events, *heard)), default=0)
        truth, guess = _event_roll(events, length, len(classes)), _event_roll(heard, length, len(classes))
        missed, alarmed = (truth & ~guess), (guess & ~truth)
        hits += (truth & guess).sum(axis=0)
        misses += missed.sum(axis=0)
        alarms += alarmed.sum(axis=0)
        wrong, extra = missed.sum(axis=1), alarmed.sum(axis=1)
        substitutions += int(np.minimum(wrong, extra).sum())
        deletions += int(np.maximum(wrong - extra, 0).sum())
        insertions += int(np.maximum(extra - wrong, 0).sum())
    support = hits + misses
    active = max(int(support.sum()), 1)
    overall = f1_precision_recall(hits.sum(), (hits + alarms).sum(), support.sum())
    return {
        **{f"segment_{name}": value for name, value in overall.items()},
        "segment_er": (substitutions + deletions + insertions) / active,
        "substitutions": substitutions / active,
        "deletions": deletions / active,
        "insertions": insertions / active,
        "per_class": {
            name: {
                **f1_precision_recall(hits[c], hits[c] + alarms[c], support[c]),
                "er": float((misses[c] + alarms[c]) / max(support[c], 1)),
                "support": int(support[c]),
            }
            for c, name in enumerate(classes)
        },
    }


def _near(box: AnnotatedBox, time: float) -> bool:
    return box.start - BOX_TIME_TOLERANCE <= time <= box.end + BOX_TIME_TOLERANCE


def _contains(box: Sequence[float], region: FloatArray) -> bool:
    x, y = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def _area(box: Sequence[float] | FloatArray) -> float:
    return max(0.0, float(box[2] - box[0])) * max(0.0, float(box[3] - box[1]))


def _first_segment(event: Event) -> int:
    return max(0, math.floor(event.start / SEGMENT_LENGTH))


def _last_segment(event: Event) -> int:
    """One past the last segment that the event touches."""
    if not (math.isfinite(event.start) and math.isfinite(event.end)):
        raise ValueError(f"event: expected finite times, got {event.start} to {event.end}")
    return max(0, math.ceil(event.end / SEGMENT_LENGTH))


def _event_roll(events: Sequence[Event], length: int, classes: int) -> BoolArray:
    """Which classes are active in which segment: bool [length, C]."""
    roll = np.zeros((length, classes), dtype=bool)
    for event in events:
        if not 0 <= event.label < classes:
            raise ValueError(f"event: expected a label from 0 to {classes - 1}, got {event.label}")
        roll[_first_segment(event) : _last_segment(event), event.label] = True
    return roll
