"""From the scores of a video's windows to its regions, segments and events by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from avfast.data.batch import Batch
from avfast.data.clips import PreparedFrame
from avfast.data.windows import Window
from avfast.evaluation import TINY, Thresholds, cells, runs
from avfast.localization import Box, ClassResult, Event, Region, ScoredWindow, Segment
from avfast.metrics import BoolArray, FloatArray, ratio
from avfast.models import Output
from avfast.report.colours import class_colour

SAME_PLACE = 0.5  # share of the smaller of two regions inside the other from which they are one thing


class Findings:
    """Gathers, window by window, what a model says of one file; each frame and segment counts once."""

    def __init__(
        self, classes: Sequence[str], thresholds: Thresholds, fps: float, regions_per_frame: int
    ) -> None:
        """Args:
        classes: C names.
        thresholds: The run's.
        fps: Sampled frames per second.
        regions_per_frame: How many regions of a frame to keep for a class, at most.
        """
        self.classes, self.fps, self.regions_per_frame = list(classes), fps, regions_per_frame
        self.threshold = np.broadcast_to(thresholds.scores, len(classes))
        self.view_thresholds = {
            modality: np.broadcast_to(value, len(classes)) for modality, value in thresholds.views.items()
        }
        self.windows: list[ScoredWindow] = []
        self.present = np.zeros(len(classes), bool)
        self.regions: list[list[Region]] = [[] for _ in classes]
        self.segments: list[list[Segment]] = [[] for _ in classes]
        self.active: dict[str, list[BoolArray]] = {"visual": [], "audio": []}

    def add(self, window: Window[PreparedFrame], batch: Batch, output: Output) -> None:
        """Take in what the model says of the next window.

        Args:
            window: Its frames tell the times of the batch's.
            batch: The window as one clip, whose times count from the window's start; on the CPU.
            output: Of that batch.
        """
        scores = _array(output.scores[0])
        views = {modality: _numbers(_array(view[0])) for modality, view in output.views.items()}
        present = self._decide(batch, output)
        self.windows.append(
            ScoredWindow(
                _number(window.start), _number(window.end), _numbers(scores), views, present.tolist()
            )
        )
        self.present |= present
        if "visual" in output.streams:
            self._add_regions(window, batch, _array(output.evidence("visual")), present)
        if "audio" in output.streams:
            self._add_segments(window, batch, _array(output.evidence("audio")), present)

    def result(self, seconds: float) -> tuple[list[ClassResult], list[ScoredWindow]]:
        """All that was found.

        Args:
            seconds: Length of the file.

        Returns:
            One result a class, and the windows.
        """
        return [self._class_result(c, seconds) for c in range(len(self.classes))], self.windows

    def _decide(self, batch: Batch, output: Output) -> BoolArray:
        """[C], the classes that the window holds.

        Where a modality of the system has no instances its view is zero, and the threshold of the sum of
        views would be far too low or too high; then the other modality decides alone, by its own threshold.
        """
        counts = {"visual": len(batch.rois), "audio": len(batch.audio)}
        given = [modality for modality in output.views if counts[modality]]
        if len(given) == len(output.views) or not given:
            return _array(output.scores[0]) >= self.threshold
        return _array(output.views[given[0]][0]) >= self.view_thresholds[given[0]]

    def _add_regions(
        self, window: Window[PreparedFrame], batch: Batch, evidence: FloatArray, present: BoolArray
    ) -> None:
        rows, boxes = batch.rois[:, 0].long().numpy(), _array(batch.region_boxes)
        least = self._least("visual")
        for row, frame in enumerate(window.frames):
            if not window.core[0] <= frame.time < window.core[1]:
                continue
            place = boxes[rows == row]
            for c, scores in enumerate(evidence[rows == row].T):
                kept = _apart(scores, place, least[c], self.regions_per_frame)
                self.regions[c] += [
                    Region(round(frame.time, 6), _box(place[index]), _number(scores[index])) for index in kept
                ]
            self.active["visual"].append(present & (evidence[rows == row].max(axis=0) >= least))

    def _add_segments(
        self, window: Window[PreparedFrame], batch: Batch, evidence: FloatArray, present: BoolArray
    ) -> None:
        bounds = _array(batch.segments) + window.start
        centres = bounds.mean(axis=1)
        own = (window.core[0] <= centres) & (centres < window.core[1])
        for (start, end), scores in zip(bounds[own], evidence[own], strict=True):
            for c, score in enumerate(scores):
                self.segments[c].append(Segment(round(start, 6), round(end, 6), _number(score)))
        self.active["audio"] += list(present & (evidence[own] >= self._least("audio")))

    def _least(self, modality: str) -> FloatArray:
        """[C], from which evidence on an instance speaks for a class, as in ``evaluation.detect_events``."""
        return np.maximum(self.view_thresholds[modality], TINY)

    def _class_result(self, c: int, seconds: float) -> ClassResult:
        return ClassResult(
            name=self.classes[c],
            colour=class_colour(c),
            present=bool(self.present[c]),
            score=max(window.scores[c] for window in self.windows),
            views={
                modality: max(window.views[modality][c] for window in self.windows)
                for modality in self.view_thresholds
            },
            threshold=_number(self.threshold[c]),
            view_thresholds={m: _number(values[c]) for m, values in self.view_thresholds.items()},
            regions=self.regions[c],
            segments=self.segments[c],
            events=sorted(
                [*self._seen(c, seconds), *self._heard(c)], key=lambda event: (event.start, event.modality)
            ),
        )

    def _seen(self, c: int, seconds: float) -> Iterator[Event]:
        best = best_by_frame(self.regions[c])
        times = np.array([region.time for region in best])
        spans = cells(np.stack([times - 1 / self.fps, times + 1 / self.fps], axis=1)).clip(0, seconds)
        for first, last in runs(self._active("visual", c)):
            peak = max(best[first : last + 1], key=lambda region: region.score)
            start, end = _number(spans[first, 0]), _number(spans[last, 1])
            yield Event("visual", start, end, peak.time, peak.score, peak.box)

    def _heard(self, c: int) -> Iterator[Event]:
        found = self.segments[c]
        spans = cells(np.array([(s.start, s.end) for s in found]).reshape(-1, 2))
        for first, last in runs(self._active("audio", c)):
            peak = max(found[first : last + 1], key=lambda segment: segment.score)
            middle = _number((peak.start + peak.end) / 2)
            yield Event("audio", _number(spans[first, 0]), _number(spans[last, 1]), middle, peak.score)

    def _active(self, modality: str, c: int) -> BoolArray:
        return np.array([row[c] for row in self.active[modality]], bool)


def best_by_frame(regions: Sequence[Region]) -> list[Region]:
    """The best region of every frame that has one, from a class's regions by time, then best first."""
    best: dict[float, Region] = {}
    for region in regions:
        best.setdefault(region.time, region)
    return list(best.values())


def _apart(scores: FloatArray, boxes: FloatArray, least: float, count: int) -> list[int]:
    """The best of a frame's regions, and others that reach ``least`` and lie elsewhere, best first."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if len(kept) == count or (kept and scores[index] < least):
            break
        if all(_shared(boxes[index], boxes[other]) < SAME_PLACE for other in kept):
            kept.append(index)
    return kept


def _shared(a: FloatArray, b: FloatArray) -> float:
    """Intersection of two xyxy boxes over the area of the smaller."""
    width, height = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0).tolist()
    return ratio(width * height, min(float(np.prod(box[2:] - box[:2])) for box in (a, b)))


def _box(values: FloatArray) -> Box:
    x1, y1, x2, y2 = (round(float(value), 2) for value in values)
    return x1, y1, x2, y2


def _number(value: float) -> float:
    """With the digits that float32 has."""
    return float(f"{value:.7g}")


def _numbers(values: FloatArray) -> list[float]:
    return [_number(value) for value in values]


def _array(tensor: Tensor) -> FloatArray:
    return tensor.double().cpu().numpy()
