"""One media file to finished clips in the staging folder: what a worker of the preparation job does."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from avfast.data import shards
from avfast.data.files import atomic_write
from avfast.data.labels import LabelledClip
from avfast.data.media import SAMPLE_RATE, Frame, read_frames, sound_blocks
from avfast.data.opencv import cv2
from avfast.data.proposals import EdgeBoxesParameters, propose
from avfast.data.windows import cut
from avfast.errors import InputError

T = TypeVar("T")

Seconds = tuple[int, int]
"""Start and end of a clip in its file, rounded."""

LONGEST = 3600
"""Seconds of picture or sound in one clip; a longer file must be cut."""

UNEXPECTED = "unexpected error: "
"""Begins the reason of a clip that was skipped by what may be a fault of ours."""


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a prepared clip, beside the clip."""

    fps: float = 1.0
    """Frames per second of video."""
    long_side: int = 640
    """Pixels; larger pictures are scaled down to this."""
    proposals: int = 100
    """Boxes kept of a frame, at most."""
    edge_boxes: EdgeBoxesParameters = field(default_factory=EdgeBoxesParameters)
    """Parameters of EdgeBoxes."""
    edge_model: Path | None = None
    """OpenCV's structured edge forest; None for gradients."""
    clip_seconds: int | None = None
    """Files are cut into clips of this length; None keeps each file whole."""

    def record(self) -> dict[str, Any]:
        """The same as plain values; an edge model counts by its content, not by its place."""
        record = asdict(self)
        if self.edge_model is not None:
            record["edge_model"] = hashlib.sha256(self.edge_model.read_bytes()).hexdigest()
        if self.clip_seconds is None:  # as before there was such a setting: what was prepared stays valid
            del record["clip_seconds"]
        return record

    @classmethod
    def of_record(cls, record: Mapping[str, Any], edge_model: Path | None = None) -> Settings:
        """The settings that ``record`` described.

        Args:
            record: May hold more.
            edge_model: The file whose digest the record holds; None where it holds none.

        Raises:
            InputError: It is another edge model.
        """
        values = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        edge_boxes = EdgeBoxesParameters(**values["edge_boxes"])
        settings = cls(**{**values, "edge_boxes": edge_boxes, "edge_model": edge_model})
        if settings.record()["edge_model"] != values["edge_model"]:
            wanted = values["edge_model"] and f"the edge model with SHA-256 {values['edge_model']}"
            raise InputError(
                f"the run's clips were prepared with {wanted or 'edges from gradients'}; "
                f"{'give its file as --edge-model' if wanted else 'leave out --edge-model'}"
            )
        return settings


@dataclass(frozen=True)
class PreparedFrame:
    """A sampled frame as shards hold it."""

    time: float
    """Seconds from the start of the file."""
    source_size: tuple[int, int]
    """(width, height) in pixels of the source picture."""
    jpeg: bytes
    proposals: NDArray[np.float32]
    """[R, 5], best first: xyxy in pixels of the JPEG, then the score."""


@dataclass(frozen=True)
class Outcome:
    """What became of one clip: a row of the manifest."""

    clip: str
    status: str
    """ok or skipped."""
    reason: str = ""
    """Why it was skipped, or what it lacks."""


@dataclass(frozen=True)
class Staged:
    """A finished clip that waits to be packed."""

    file: str
    """Name of the clip that it was cut from."""
    seconds: Seconds
    """Its place in that file."""
    clip: LabelledClip
    path: Path
    """A tar file of its members."""
    lacks: str
    """What it lacks."""


@dataclass(frozen=True)
class Task:
    """A file to prepare."""

    clip: LabelledClip
    video: Path
    """Where its picture is."""
    sound: Path
    """Where its sound is: the same file, or a sidecar."""
    stem: Path
    """In the staging folder: what is staged is named after it. Tells the state of the input files."""
    staged: tuple[Seconds, ...] = ()
    """Clips that an earlier run staged, by their place in the file."""

    @property
    def finished(self) -> Path:
        """Exists once all clips of the file are staged."""
        return self.stem.with_suffix(".done")

    def stage(self, seconds: Seconds, members: shards.Members, settings: Settings) -> Staged:
        """Write a clip to the staging folder."""
        with atomic_write(self._path(seconds)) as file:
            shards.write_members(file, "clip", members)
            shards.end_tar(file)
        return self.read_staged(seconds, settings)

    def read_staged(self, seconds: Seconds, settings: Settings) -> Staged:
        """A clip that is staged: it has the labels and the split of its file."""
        path, clip = self._path(seconds), self.clip
        if settings.clip_seconds is not None:
            clip = replace(clip, clip=f"{clip.clip}#{_digits(seconds)}")
        lacks = json.loads(shards.read_members(path)[shards.FACTS])["lacks"]
        return Staged(self.clip.clip, seconds, clip, path, lacks)

    def _path(self, seconds: Seconds) -> Path:
        return self.stem.with_suffix(f".{_digits(seconds)}.tar")


def _digits(seconds: Seconds) -> str:
    """A place in a file as names tell it."""
    return f"{seconds[0]:05d}-{seconds[1]:05d}"


def inventory(staging: Path) -> Mapping[str, tuple[Seconds, ...]]:
    """The clips that are staged, in order, by the name of their task's stem."""
    found: dict[str, tuple[Seconds, ...]] = defaultdict(tuple)
    for path in sorted(staging.glob("*.tar")):
        stem, digits, _ = path.name.split(".")
        start, end = digits.split("-")
        found[stem] += ((int(start), int(end)),)
    return found


def prepare_file(task: Task, settings: Settings) -> Iterator[Staged | Outcome]:
    """Read, encode and stage the clips of one file, as far as they are not staged yet.

    Memory holds one clip at a time, and the first frame and block of sound of the next.

    Yields:
        Each clip as it is staged. Where the file, or what is left of it, cannot be used: an outcome that says
        why, and the end.

    Raises:
        OSError: When the staging folder cannot be written.
    """
    cv2.setNumThreads(1)  # files are the unit of parallel work
    for seconds in task.staged:
        yield task.read_staged(seconds, settings)
    for found in _or_reason(_encoded(task, settings)):
        if isinstance(found, str):
            yield Outcome(task.clip.clip, "skipped", found)
            return
        yield task.stage(*found, settings)
    task.finished.touch()


def _or_reason(
    clips: Iterator[tuple[Seconds, shards.Members]],
) -> Iterator[tuple[Seconds, shards.Members] | str]:
    """The same clips, with an exception turned into its text."""
    try:
        yield from clips
    except InputError as error:
        yield str(error)
    except Exception as error:  # whatever a file provokes in a decoder, the other clips go on
        if _wants_memory(error):
            yield "needs more memory than a clip may take; see --clip-memory"
        else:
            yield f"{UNEXPECTED}{type(error).__name__}: {error}"


def _wants_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem
    )


def _encoded(task: Task, settings: Settings) -> Iterator[tuple[Seconds, shards.Members]]:
    """Place and members of each clip of a file that is not staged yet."""
    lacks: list[str] = []
    length = settings.clip_seconds or LONGEST + 1
    starts = {start for start, _ in task.staged}

    def encode(frame: Frame) -> PreparedFrame:
        if frame.time // length * length in starts:  # only its time is needed
            return PreparedFrame(frame.time, frame.source_size, b"", np.zeros((0, 5), np.float32))
        return prepare_frame(frame, settings)

    pictures = map(encode, read_frames(task.video, settings.fps, settings.long_side))
    windows = cut(
        _tolerant(pictures, task.video, lacks),
        _tolerant(sound_blocks(task.sound), task.sound, lacks),
        length,
        frame_seconds=1 / settings.fps,
    )
    window = None
    for window in windows:
        start, end = round(window.start), round(window.end)
        if settings.clip_seconds is None and window.end > LONGEST:
            raise InputError(f"longer than {LONGEST} s; cut it into clips with --clip-seconds")
        if start not in starts:
            missing = ["no picture"] * (not window.frames) + ["no sound"] * (not len(window.sound))
            note = "; ".join(dict.fromkeys([*lacks, *missing]))
            yield (start, max(end, start + 1)), pack(window.frames, window.sound, note, window.start)
    if window is None:
        raise InputError("; ".join(dict.fromkeys(lacks)) or "neither picture nor sound could be read")


def prepare_frame(frame: Frame, settings: Settings) -> PreparedFrame:
    """Find a frame's proposals and compress it."""
    found = propose(frame.image, settings.proposals, settings.edge_boxes, settings.edge_model)
    proposals = np.hstack([found.boxes, found.scores[:, None]])
    return PreparedFrame(frame.time, frame.source_size, shards.encode_jpeg(frame.image), proposals)


def pack(
    frames: Sequence[PreparedFrame], sound: NDArray[np.float32], note: str = "", start: float = 0.0
) -> dict[str, bytes]:
    """The members of a clip.

    Args:
        frames: In the order of time; may be empty.
        sound: [T] at 16 kHz; may be empty.
        note: What the clip lacks.
        start: Seconds into the file at which the clip begins; its own times count from there.
    """
    facts = {
        "frame_times": [round(frame.time - start, 6) for frame in frames],
        "frame_size": frames[0].source_size if frames else (0, 0),
        "sound_seconds": round(len(sound) / SAMPLE_RATE, 6),
        "lacks": note,
    }
    members = {shards.FACTS: shards.encode_facts(facts)}
    members |= {shards.frame_member(index): frame.jpeg for index, frame in enumerate(frames)}
    if frames:
        rows = [np.insert(frame.proposals, 0, index, axis=1) for index, frame in enumerate(frames)]
        members[shards.PROPOSALS] = shards.encode_array(np.concatenate(rows))
    if len(sound):
        members[shards.SOUND] = shards.encode_sound(sound)
    return members


def unpack(members: Mapping[str, bytes]) -> tuple[list[PreparedFrame], NDArray[np.float32]]:
    """What ``pack`` put together: the frames, with times from the clip's start, and the sound."""
    facts = json.loads(members[shards.FACTS])
    times, size = facts["frame_times"], tuple(facts["frame_size"])
    table = np.zeros((0, len(shards.PROPOSAL_COLUMNS)), np.float32)
    if times:
        table = np.load(io.BytesIO(members[shards.PROPOSALS]), allow_pickle=False)
    frames = [
        PreparedFrame(time, size, members[shards.frame_member(index)], table[table[:, 0] == index, 1:])
        for index, time in enumerate(times)
    ]
    silence = np.zeros(0, np.float32)
    return frames, shards.decode_sound(members[shards.SOUND]) if shards.SOUND in members else silence


def _tolerant(stream: Iterator[T], path: Path, lacks: list[str]) -> Iterator[T]:
    """A modality; when its file cannot be read, this is noted and the other goes on."""
    try:
        yield from stream
    except InputError as error:
        lacks.append(str(error).removeprefix(f"{path}: "))
