"""What localising a video gives, as plain values, and the versioned JSON that holds it."""

from __future__ import annotations

import json
from bisect import bisect_right as bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avfast.data.files import write_text
from avfast.data.preview import Preview
from avfast.errors import InputError

FORMAT = "avfast-localization"
VERSION = 1
"""Counts changes that break a reader; new keys do not."""

Box = tuple[float, float, float, float]
"""xyxy in pixels of the upright source picture."""


@dataclass(frozen=True)
class Region:
    """A place in one sampled frame."""

    time: float
    """Seconds, of the frame."""
    box: Box
    score: float
    """On the scale of the class's visual view, whose threshold it is compared with."""


@dataclass(frozen=True)
class Segment:
    """A stretch of sound, as long as the system's audio instances are; neighbours may overlap."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    score: float
    """On the scale of the class's audio view, whose threshold it is compared with."""


@dataclass(frozen=True)
class Event:
    """A class seen or heard without a break."""

    modality: str
    """``visual`` or ``audio``."""
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    peak: float
    """Seconds: the time of the best region, or the middle of the best segment."""
    score: float
    """Of that region or segment."""
    box: Box | None = None
    """Of that region; None for sound."""


@dataclass(frozen=True)
class ClassResult:
    """All that is said of one class."""

    name: str
    colour: str
    """``#rrggbb``, the class's colour wherever this result is drawn."""
    present: bool
    """Whether some window holds it."""
    score: float
    """The highest of the windows' scores."""
    views: dict[str, float]
    """By modality: the highest of the windows' scores by it alone."""
    threshold: float
    """From which score on a window holds the class."""
    view_thresholds: dict[str, float]
    """By modality: from which score on a region, a segment, or a window's view speaks for it."""
    regions: list[Region]
    """By time, then best first; of every sampled frame its best region, and few more."""
    segments: list[Segment]
    """By time; all of them."""
    events: list[Event]
    """By time."""

    def seen(self) -> list[Region]:
        """The regions that make up the visual events, by time, then best first."""
        spans = [(event.start, event.end) for event in self.events if event.modality == "visual"]
        starts = [start for start, _ in spans]
        least = self.view_thresholds.get("visual", 0.0)
        return [
            region
            for region in self.regions
            if region.score >= least
            and region.score > 0
            and (index := bisect(starts, region.time)) > 0
            and region.time <= spans[index - 1][1]
        ]


@dataclass(frozen=True)
class ScoredWindow:
    """A stretch of the video that was scored as one bag."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    scores: list[float]
    """[C], in the order of the classes."""
    views: dict[str, list[float]]
    """By modality, [C]: the scores by it alone."""
    present: list[bool]
    """[C], whether it holds the class: its score reaches the threshold, or, where one of two modalities is
    missing, the other's view reaches its own."""


@dataclass(frozen=True)
class Video:
    """The file that was localised."""

    name: str
    """File name without folders."""
    path: str
    """Absolute."""
    seconds: float
    """Length: that of its picture or of its sound, whichever is longer."""
    width: int
    """Pixels of the upright picture; 0 without picture."""
    height: int
    """Pixels."""
    frame_times: list[float]
    """Seconds, of the sampled frames; empty without picture."""
    sound_seconds: float
    """Length of the sound; 0 without."""
    notes: list[str]
    """What it lacks."""


@dataclass(frozen=True)
class Run:
    """What it was localised with."""

    path: str
    """Absolute folder of the run."""
    system: str
    seed: int
    versions: dict[str, str]
    """Of avfast, torch and Python."""
    config: dict[str, Any]
    """The run's ``config.json``."""


@dataclass(frozen=True)
class Sampling:
    """How the video was cut up."""

    fps: float
    """Sampled frames per second."""
    window: float
    """Seconds that one bag covers; a shorter video is one bag, the last may be longer by half a hop."""
    hop: float
    """Seconds from one window to the next."""
    regions_per_frame: int
    """How many regions of a frame are kept for a class, at most."""


@dataclass(frozen=True)
class Localization:
    """What a run says of a video: which classes, where in the picture and when in the sound."""

    video: Video
    run: Run
    sampling: Sampling
    classes: list[ClassResult]
    """In the order of the run's classes."""
    windows: list[ScoredWindow]
    """By time; a region or segment has its score from the window in which it lies most centrally."""
    preview: Preview | None = field(default=None, compare=False, repr=False)
    """To draw the result on; not in the JSON."""

    def to_json(self) -> str:
        """The content of ``<stem>.json``: one line, scores with float32's seven digits."""
        value = {"format": FORMAT, "version": VERSION, **vars(self)}
        del value["preview"]
        return (
            json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=vars) + "\n"
        )

    def save(self, path: Path) -> None:
        """Write ``<stem>.json``."""
        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str) -> Localization:
        """Read what ``to_json`` wrote; keys that this version does not know are passed over.

        Raises:
            InputError: It is something else, of another version, or damaged.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError(f"not JSON ({error}); give a file that avfast.localize wrote") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError("not a localisation; give a .json file that avfast.localize wrote")
        if value.get("version") != VERSION:
            raise InputError(
                f"version {value.get('version')} of the format, this avfast reads {VERSION}; localise again"
            )
        try:
            return cls(
                video=_fill(Video, value["video"]),
                run=_fill(Run, value["run"]),
                sampling=_fill(Sampling, value["sampling"]),
                classes=[_class_result(entry) for entry in value["classes"]],
                windows=[_fill(ScoredWindow, entry) for entry in value["windows"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"damaged localisation ({error!r}); localise again") from error

    @classmethod
    def load(cls, path: Path) -> Localization:
        """Read ``<stem>.json``.

        Raises:
            InputError: Naming the file, when it is missing or is no localisation.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; run avfast.localize first") from error
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}") from error


def _fill(kind: type[Any], value: Mapping[str, Any]) -> Any:
    return kind(**{name: value[name] for name in kind.__dataclass_fields__})


def _class_result(value: Mapping[str, Any]) -> ClassResult:
    return _fill(
        ClassResult,
        {
            **value,
            "regions": [_boxed(Region, entry) for entry in value["regions"]],
            "segments": [_fill(Segment, entry) for entry in value["segments"]],
            "events": [_boxed(Event, entry) for entry in value["events"]],
        },
    )


def _boxed(kind: type[Any], value: Mapping[str, Any]) -> Any:
    return _fill(kind, {**value, "box": _box(value["box"])})


def _box(value: Sequence[float] | None) -> Box | None:
    if value is None:
        return None
    x1, y1, x2, y2 = value
    return x1, y1, x2, y2
