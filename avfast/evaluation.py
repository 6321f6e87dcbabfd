"""From a trained model to what is said of it: scores, decisions, detected events and their metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from avfast import metrics
from avfast.data.batch import Batch
from avfast.data.files import write_json, write_text
from avfast.data.labels import Annotations
from avfast.metrics import AnnotatedBox, BoolArray, Event, FloatArray, Regions
from avfast.metrics.localization import SEGMENT_LENGTH
from avfast.models import Output, System

MILLISECONDS = 3  # decimals of a second
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Segments:
    """The A scored audio segments of one clip, or its A moments in the picture."""

    bounds: FloatArray
    """[A, 2], start and end in seconds; neighbours may overlap."""
    evidence: FloatArray
    """[A, C], on the scale of the view: the mean over the segments is the clip's score in that view."""


@dataclass(frozen=True)
class Predictions:
    """What a model says of the N clips of one split, on the CPU."""

    clips: list[str]
    """N names."""
    loss: float
    """The training loss, mean over clips and classes."""
    scores: FloatArray
    """[N, C]."""
    labels: BoolArray
    """[N, C]."""
    views: dict[str, FloatArray]
    """Modality to [N, C], the scores that it gives alone."""
    regions: dict[str, Regions]
    """By clip; empty where the model scores no regions, or ``predict`` was not asked for instances."""
    segments: dict[str, Segments]
    """By clip; empty as ``regions``."""
    class_losses: FloatArray = field(default_factory=lambda: np.zeros(0))
    """[C], the training loss of each class, mean over clips; empty where it was not measured."""
    moments: dict[str, Segments] = field(default_factory=dict)
    """By clip; the regions of one time taken together, empty where the model scores no regions."""


ThresholdRule = Literal["global", "per-class"]
THRESHOLD_RULES: tuple[ThresholdRule, ...] = get_args(ThresholdRule)


@dataclass(frozen=True)
class Thresholds:
    """From which score on a (clip, class) pair is positive; chosen on clips that are not tested.

    Each is one number for all classes, or [C].
    """

    scores: float | FloatArray
    """For the model's scores."""
    views: dict[str, float | FloatArray]
    """For the scores of each modality alone."""

    def state(self) -> dict[str, Any]:
        """As numbers and lists, for a checkpoint; ``from_state`` reads it."""
        views = {modality: np.asarray(values).tolist() for modality, values in self.views.items()}
        return {"scores": np.asarray(self.scores).tolist(), "views": views}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Thresholds:
        """What ``state`` returned, as thresholds again."""
        return cls(_threshold(state["scores"]), {m: _threshold(v) for m, v in state["views"].items()})


def predict(
    model: System,
    batches: Iterable[Batch],
    device: torch.device,
    regions_of: Callable[[Batch], Tensor | None] = lambda _: None,
    instances: bool = True,
) -> Predictions:
    """Run a model over a split.

    Args:
        model: The model; left in evaluation mode.
        batches: At least one batch, on any device.
        device: Where the model is.
        regions_of: Pooled regions of a batch that need not be computed again
            (``avfast.cache.CachedRegions``).
        instances: Whether to keep the scores of regions and segments, which take up to a hundred times the
            memory of the clips' scores.

    Returns:
        The scores of all clips, in the order of the batches.
    """
    return join(predict_parts(model, batches, device, regions_of, instances))


@torch.no_grad()
def predict_parts(
    model: System,
    batches: Iterable[Batch],
    device: torch.device,
    regions_of: Callable[[Batch], Tensor | None] = lambda _: None,
    instances: bool = True,
) -> list[Predictions]:
    """As ``predict``, each batch for itself; ``join`` makes one of them."""
    model.eval()
    return [_predict_batch(model, batch.to(device), regions_of, instances) for batch in batches]


def _predict_batch(
    model: System, batch: Batch, regions_of: Callable[[Batch], Tensor | None], instances: bool
) -> Predictions:
    output = model(batch, regions_of(batch))
    losses = _array(model.losses(output, batch.targets))
    class_losses = losses.sum(axis=0) / max(1, len(losses))  # of a batch without any clip: zeros
    seen, heard = (instances and modality in output.streams for modality in ("visual", "audio"))
    return Predictions(
        clips=batch.clips,
        loss=float(class_losses.mean()),
        scores=_array(output.scores),
        labels=_array(batch.targets) > 0,
        views={modality: _array(view) for modality, view in output.views.items()},
        regions=_regions(batch, output) if seen else {},
        segments=_segments(batch, output) if heard else {},
        class_losses=class_losses,
        moments=_moments(batch, output) if seen else {},
    )


def join(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of at least one batch, or of several, as if they were one."""
    shares = np.array([len(part.clips) for part in parts], float)
    class_losses = np.average([part.class_losses for part in parts], axis=0, weights=shares)
    return Predictions(
        clips=[clip for part in parts for clip in part.clips],
        loss=float(class_losses.mean()),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        views={m: np.concatenate([part.views[m] for part in parts]) for m in parts[0].views},
        regions={clip: regions for part in parts for clip, regions in part.regions.items()},
        segments={clip: segments for part in parts for clip, segments in part.segments.items()},
        class_losses=class_losses,
        moments={clip: moments for part in parts for clip, moments in part.moments.items()},
    )


def choose_thresholds(predictions: Predictions, rule: ThresholdRule = "global") -> Thresholds:
    """The thresholds that suit these clips (the validation split's) best.

    Args:
        predictions: Of the validation split.
        rule: ``global`` maximises micro-F1 with one threshold for all classes, ``per-class`` the F1 of every
            class with its own. Either is the mean over resamples of the clips, see ``metrics.bagged``.
    """
    choose: Callable[[FloatArray, BoolArray], float | FloatArray]
    choose = metrics.class_thresholds if rule == "per-class" else metrics.best_threshold
    return Thresholds(
        metrics.bagged(choose, predictions.scores, predictions.labels),
        {
            modality: metrics.bagged(choose, scores, predictions.labels)
            for modality, scores in predictions.views.items()
        },
    )


def detect_events(
    predictions: Predictions, thresholds: Thresholds, modality: str = "audio"
) -> dict[str, list[Event]]:
    """Which classes are heard (or seen) when, decided with what clip labels alone can teach.

    The audio view scores a clip by the mean over its segments of their evidence ``A * D / ||phi||``. A
    segment is active for a class if the clip as a whole is predicted positive, and the segment's own evidence
    both speaks for the class (it is above zero, the boundary that the hinge loss teaches) and reaches the
    threshold that the view's clip scores must reach. Nothing is tuned on annotated intervals. Of overlapping
    segments, each stands for the time that is nearest to its centre.

    Args:
        predictions: Of a model with a stream of the modality; without one nothing is detected.
        thresholds: From the validation split.
        modality: audio, or visual, where the regions of one time make a segment.

    Returns:
        The events of every clip that has segments, by class and time.
    """
    events: dict[str, list[Event]] = {}
    scored = predictions.segments if modality == "audio" else predictions.moments
    for clip, scores in zip(predictions.clips, predictions.scores, strict=True):
        if clip not in scored:
            continue
        segments = scored[clip]
        spans = cells(segments.bounds)
        least = np.maximum(thresholds.views[modality], TINY)
        active = (segments.evidence >= least) & (scores >= thresholds.scores)
        events[clip] = [
            Event(label, float(spans[first, 0]), float(spans[last, 1]))
            for label in range(scores.shape[0])
            for first, last in runs(active[:, label])
        ]
    return events


def summarise(
    predictions: Predictions,
    thresholds: Thresholds,
    classes: Sequence[str],
    annotations: Annotations | None,
) -> dict[str, Any]:
    """The figures of ``metrics.json``.

    Args:
        predictions: Of the split to report.
        thresholds: From the validation split.
        classes: C names.
        annotations: Ground truth of places and times, for the modalities that have it.

    Returns:
        ``clips``, ``threshold`` (None where each class has its own, see ``per_class``), the figures of
        ``metrics.classification``, the same of each modality alone in ``views``, with its own thresholds,
        and, where there is ground truth, ``localization``.
    """
    result = {
        "clips": len(predictions.clips),
        "threshold": _single(thresholds.scores),
        **metrics.classification(predictions.scores, predictions.labels, thresholds.scores, classes),
    }
    places = _localization(predictions, thresholds, classes, annotations) if annotations is not None else {}
    if places:
        result["localization"] = places
    result["views"] = {
        modality: {
            "threshold": _single(thresholds.views[modality]),
            **metrics.classification(scores, predictions.labels, thresholds.views[modality], classes),
        }
        for modality, scores in predictions.views.items()
    }
    return result


def table(summary: Mapping[str, Any]) -> str:
    """The figures of a summary that matter most, a line each, for a person to read."""
    micro = summary["micro"]
    rows = [
        ("clips", str(summary["clips"])),
        (
            "micro-F1",
            f"{micro['f1']:.3f}  (precision {micro['precision']:.3f}, recall {micro['recall']:.3f})",
        ),
        ("macro-F1", f"{summary['macro']['f1']:.3f}"),
        ("mAP", f"{summary['map']:.3f}  (ROC area {summary['auc']:.3f}, d' {summary['d_prime']:.2f})"),
    ]
    rows += [(f"{m} alone, micro-F1", f"{view['micro']['f1']:.3f}") for m, view in summary["views"].items()]
    places = summary.get("localization", {})
    visual = places.get("visual", {})
    if "corloc" in visual:
        rows.append(("region CorLoc", f"{visual['corloc']:.3f}  (pointing game {visual['pointing']:.3f})"))
    for modality, place in places.items():
        if "segment_f1" in place:
            figure = f"{place['segment_f1']:.3f}  (error rate {place['segment_er']:.3f})"
            rows.append((f"{modality} segment F1", figure))
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{summary['split']} split", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def write_results(
    folder: Path, summary: Mapping[str, Any], predictions: Predictions, classes: Sequence[str]
) -> None:
    """Write ``metrics.json`` and ``scores.csv`` (clip, class, score, label; a row per clip and class)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "class", "score", "label"])
    for clip, scores, labels in zip(predictions.clips, predictions.scores, predictions.labels, strict=True):
        for name, score, label in zip(classes, scores, labels, strict=True):
            writer.writerow([clip, name, repr(float(score)), int(label)])
    write_text(folder / "scores.csv", text.getvalue())
    write_json(folder / "metrics.json", summary)


def _array(tensor: Tensor) -> FloatArray:
    return tensor.double().cpu().numpy()


def _threshold(value: float | Sequence[float]) -> float | FloatArray:
    return np.array(value) if isinstance(value, Sequence) else value


def _single(threshold: float | FloatArray) -> float | None:
    return threshold if isinstance(threshold, float) else None


def _bags(offsets: Tensor) -> Iterator[slice]:
    bounds = offsets.tolist()
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _regions(batch: Batch, output: Output) -> dict[str, Regions]:
    times, boxes = _array(batch.region_times), _array(batch.region_boxes)
    scores = _array(output.streams["visual"].instances)
    bags = zip(batch.clips, _bags(batch.region_offsets), strict=True)
    return {clip: Regions(times[bag], boxes[bag], scores[bag]) for clip, bag in bags}


def _segments(batch: Batch, output: Output) -> dict[str, Segments]:
    bounds, evidence = _array(batch.segments), _array(output.evidence("audio"))
    bags = zip(batch.clips, _bags(batch.segment_offsets), strict=True)
    return {clip: Segments(bounds[bag], evidence[bag]) for clip, bag in bags}


def _moments(batch: Batch, output: Output) -> dict[str, Segments]:
    times, evidence = _array(batch.region_times), _array(output.evidence("visual"))
    bags = zip(batch.clips, _bags(batch.region_offsets), strict=True)
    return {clip: _by_time(times[bag], evidence[bag]) for clip, bag in bags}


def _by_time(times: FloatArray, evidence: FloatArray) -> Segments:
    """Mean evidence of the regions [R, C] of each time; a time stands for what is nearest to it."""
    centres, index = np.unique(times, return_inverse=True)
    sums = np.zeros((len(centres), evidence.shape[1]))
    np.add.at(sums, index, evidence)
    step = float(np.diff(centres).min()) if len(centres) > 1 else SEGMENT_LENGTH
    bounds = np.stack([np.maximum(centres - step / 2, 0), centres + step / 2], axis=1)
    bounds = bounds.round(MILLISECONDS)  # so that a time on a border of segments stays there
    return Segments(bounds, sums / np.bincount(index, minlength=len(centres))[:, None])


def cells(bounds: FloatArray) -> FloatArray:
    """The part of each segment nearest to its own centre: overlapping windows [A, 2] as tiles."""
    if not len(bounds):
        return bounds
    centres = bounds.mean(axis=1)
    between = (centres[1:] + centres[:-1]) / 2
    start = np.maximum(bounds[:, 0], np.concatenate([[-np.inf], between]))
    end = np.minimum(bounds[:, 1], np.concatenate([between, [np.inf]]))
    return np.stack([start, end], axis=1)


def runs(active: BoolArray) -> Iterator[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.diff(np.concatenate([[False], active, [False]]).astype(np.int8))
    return zip(np.flatnonzero(edges > 0).tolist(), (np.flatnonzero(edges < 0) - 1).tolist(), strict=True)


def _localization(
    predictions: Predictions, thresholds: Thresholds, classes: Sequence[str], annotations: Annotations
) -> dict[str, dict[str, float]]:
    index = {name: c for c, name in enumerate(classes)}
    result = {}
    if annotations.visual and "visual" in predictions.views:
        boxes: dict[str, list[AnnotatedBox]] = {}
        for row in annotations.visual:
            if row.label in index and row.box is not None:
                box = AnnotatedBox(index[row.label], row.start, row.end, row.box)
                boxes.setdefault(row.clip, []).append(box)
        result["visual"] = metrics.region_localization(predictions.regions, boxes)
    for modality, rows in (("visual", annotations.seen), ("audio", annotations.audio)):
        if rows and modality in predictions.views and modality not in result:
            reference: dict[str, list[Event]] = {clip: [] for clip in _annotated(predictions, annotations)}
            for row in rows:
                if row.label in index:
                    reference[row.clip].append(Event(index[row.label], row.start, row.end))
            detected = detect_events(predictions, thresholds, modality)
            result[modality] = metrics.audio_localization(detected, reference, classes)
    return result


def _annotated(predictions: Predictions, annotations: Annotations) -> list[str]:
    """Clips whose silence means something: those with annotations, and those where nothing happens at all."""
    described = {row.clip for row in annotations.rows}
    pairs = zip(predictions.clips, predictions.labels, strict=True)
    return [clip for clip, labels in pairs if clip in described or not labels.any()]
