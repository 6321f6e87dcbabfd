"""Prepared clips in WebDataset tar files, with an index that reaches every member directly."""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avfast.data.batch import Sample
from avfast.data.files import atomic_write, write_text
from avfast.data.labels import Annotations, LabelledClip, read_annotations
from avfast.data.logmel import FrontEnd
from avfast.data.media import SAMPLE_RATE
from avfast.data.opencv import cv2
from avfast.errors import InputError

FORMAT = 1
"""Version of the index and of a clip's members."""

INDEX = "index.json"
ANNOTATIONS = "annotations.csv"

FACTS, PROPOSALS, SOUND = "json", "proposals.npy", "flac"
"""Members of a clip beside its frames; a member is missing where the clip lacks the modality."""

PROPOSAL_COLUMNS = ("frame", "x1", "y1", "x2", "y2", "score")
"""Of the member float32 [R, 6]; pixels of the JPEG; by frame, then best first."""

JPEG_QUALITY = 95

JPEG_MARKER = b"\xff"
JPEG_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive

SHARD_BYTES = 256 << 20
"""A shard is closed before it grows beyond this, unless one clip alone is larger."""

CLIPS_FOR_LENGTH = 100
"""How many clips are looked at to tell how long they are."""

Members = Mapping[str, bytes]
"""A clip's members by their extension, in the order of the file."""


def frame_member(index: int) -> str:
    """Extension of a frame's member."""
    return f"{index:05d}.jpg"


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """A picture [H, W, 3] (RGB) as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """What ``encode_jpeg`` wrote: [H, W, 3] (RGB).

    Raises:
        ValueError: It is not a JPEG.
    """
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError("a frame is not a JPEG")
    return np.ascontiguousarray(bgr[..., ::-1])


def encode_array(array: NDArray[Any]) -> bytes:
    """An array in NumPy's file format."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encode_sound(waveform: NDArray[np.float32]) -> bytes:
    """A waveform [T] at 16 kHz as 16-bit FLAC; louder than -1 to 1 is clipped."""
    file = io.BytesIO()
    soundfile.write(file, waveform.clip(-1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def encode_facts(facts: Mapping[str, Any]) -> bytes:
    """A mapping as one line of JSON."""
    return json.dumps(facts, ensure_ascii=False).encode()


def write_members(file: IO[bytes], key: str, members: Members) -> dict[str, tuple[int, int, int]]:
    """Append a clip to a tar file; nothing but ``key`` and ``members`` decides the bytes written.

    Returns:
        Offset, size and CRC-32 of each member's data.
    """
    places = {}
    for extension, data in members.items():
        header = tarfile.TarInfo(f"{key}.{extension}")
        header.size = len(data)
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        places[extension] = (file.tell(), len(data), zlib.crc32(data))
        file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    return places


def end_tar(file: IO[bytes]) -> None:
    """Append what marks the end of a tar file."""
    file.write(bytes(2 * tarfile.BLOCKSIZE))


def read_members(path: Path) -> dict[str, bytes]:
    """The members of a tar file that holds one clip."""
    with tarfile.open(path) as tar:
        return {info.name.partition(".")[2]: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def write_shards(
    root: Path,
    classes: Sequence[str],
    clips: Iterable[tuple[LabelledClip, Path]],
    options: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Pack clips into shards, a series for each split, and write the index last.

    The same clips in the same order give the same bytes. The index makes the folder readable; until it is
    there, a run that was cut short leaves nothing that can be mistaken for a data set.

    Args:
        root: An existing folder.
        classes: Names of the classes, in the order of the target's columns.
        clips: Each clip with the tar file of its members (see ``read_members``), sorted by split.
        options: What the clips were prepared with, for the record.
        shard_bytes: See ``SHARD_BYTES``.
    """
    shards: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for name, group in _shard_plan(clips, shard_bytes):
        with atomic_write(root / name) as file:
            for clip, staged in group:
                key = f"{len(entries):07d}"
                members = _with_labels(read_members(staged), clip)
                places = write_members(file, key, members)
                entry = {"clip": clip.clip, "split": clip.split, "labels": list(clip.labels)}
                entries.append(entry | {"shard": len(shards), "key": key, "members": places})
            end_tar(file)
            shards.append({"name": name, "bytes": file.tell()})
    index = {"format": FORMAT, "classes": list(classes), "options": dict(options), "shards": shards}
    write_text(root / INDEX, json.dumps(index | {"clips": entries}, ensure_ascii=False) + "\n")


def _shard_plan(
    clips: Iterable[tuple[LabelledClip, Path]], shard_bytes: int
) -> Iterable[tuple[str, list[tuple[LabelledClip, Path]]]]:
    """Name and clips of each shard, decided by the staged files' sizes."""
    group: list[tuple[LabelledClip, Path]] = []
    number = size = 0
    for clip, staged in clips:
        growth = staged.stat().st_size
        other_split = bool(group) and group[0][0].split != clip.split
        if group and (other_split or size + growth > shard_bytes):
            yield f"{group[0][0].split}-{number:05d}.tar", group
            group, size, number = [], 0, 0 if other_split else number + 1
        group.append((clip, staged))
        size += growth
    if group:
        yield f"{group[0][0].split}-{number:05d}.tar", group


def _with_labels(members: dict[str, bytes], clip: LabelledClip) -> Members:
    facts = {"clip": clip.clip, "split": clip.split, "labels": list(clip.labels)}
    return members | {FACTS: encode_facts(facts | json.loads(members[FACTS]))}


def read_index(root: Path) -> dict[str, Any]:
    """The index of a folder of shards.

    Raises:
        InputError: When the folder has no index that this version can read.
    """
    path = Path(root) / INDEX
    if not path.is_file():
        raise InputError(f"{path}: no such file; make shards with python -m avfast.prepare")
    try:
        index = json.loads(path.read_bytes())
        version = index["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: damaged; prepare the data again") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, this version reads {FORMAT}; prepare the data again")
    return index


class ShardDataset(Dataset[Sample]):
    """The prepared clips of one split, by position.

    Every item is read from its place in a shard, so any order, and any subset on any worker, costs the same.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        image_size: int,
        proposals: int,
        front_end: FrontEnd,
        pictures: bool = True,
    ) -> None:
        """Open a folder of shards.

        Args:
            root: What ``avfast.prepare`` wrote.
            split: train, val or test.
            image_size: S; frames are stretched to S x S pixels.
            proposals: Boxes to keep of each frame, the best ones, at most as many as were prepared.
            front_end: Turns a clip's sound into audio instances.
            pictures: Whether frames are decoded; without, samples have regions but no frames.

        Raises:
            InputError: When ``root`` is no such folder, or has no clip in ``split``.
        """
        self.root = Path(root)
        index = read_index(self.root)
        self.classes: list[str] = index["classes"]
        self.preparation: dict[str, Any] = index["options"]
        self._shards: list[dict[str, Any]] = index["shards"]
        self._entries: list[dict[str, Any]] = [e for e in index["clips"] if e["split"] == split]
        if not self._entries:
            raise InputError(f"{self.root}: no clip in the split {split!r}; add some to the labels")
        self.clips: list[str] = [entry["clip"] for entry in self._entries]
        self.image_size = image_size
        self.proposals = proposals
        self.front_end = front_end
        self.pictures = pictures

    def __len__(self) -> int:
        """How many clips the split has."""
        return len(self._entries)

    def __getitem__(self, position: int) -> Sample:
        """Read and decode one clip.

        Raises:
            InputError: Naming the shard, when it is missing or damaged.
        """
        entry = self._entries[position]
        members = self._read(entry)
        try:
            return decode(
                members,
                entry["clip"],
                [float(name in entry["labels"]) for name in self.classes],
                self.image_size,
                self.proposals,
                self.front_end,
                self.pictures,
            )
        except (ValueError, KeyError, cv2.error, soundfile.SoundFileError) as error:
            raise self._damaged(entry, str(error)) from error

    def labels(self) -> NDArray[np.bool_]:
        """[N, C], which classes each clip has, without reading the clips."""
        return np.array([[name in entry["labels"] for name in self.classes] for entry in self._entries])

    def members(self, position: int) -> dict[str, bytes]:
        """What the shards hold of one clip, as ``preparation.pack`` made it.

        Raises:
            InputError: Naming the shard, when it is missing or damaged.
        """
        return self._read(self._entries[position])

    def annotations(self) -> Annotations | None:
        """Ground truth of this split's clips, None where the data has none."""
        path = self.root / ANNOTATIONS
        return read_annotations(path).of(self.clips) if path.is_file() else None

    def clip_seconds(self) -> float:
        """Typical length of a clip: the median over a hundred that lie evenly in the split."""
        step = math.ceil(len(self._entries) / CLIPS_FOR_LENGTH)
        return round(statistics.median(map(self._seconds, self._entries[::step])), 3)

    def _seconds(self, entry: Mapping[str, Any]) -> float:
        facts = json.loads(self._read({**entry, "members": {FACTS: entry["members"][FACTS]}})[FACTS])
        shown = facts["frame_times"][-1] + 1 / self.preparation["fps"] if facts["frame_times"] else 0.0
        return max(shown, facts["sound_seconds"])

    def _read(self, entry: Mapping[str, Any]) -> dict[str, bytes]:
        """A clip's members, by one read of the stretch of the shard that holds them."""
        places = entry["members"]
        start = min(offset for offset, _, _ in places.values())
        end = max(offset + size for offset, size, _ in places.values())
        try:
            with self._shard(entry).open("rb", buffering=0) as file:
                file.seek(start)
                stretch = file.read(end - start)
        except OSError as error:
            raise self._damaged(entry, error.strerror or str(error)) from error
        members = {name: stretch[at - start : at - start + size] for name, (at, size, _) in places.items()}
        for name, (_, _, checksum) in places.items():
            if zlib.crc32(members[name]) != checksum:
                raise self._damaged(entry, f"checksum of {entry['key']}.{name} differs")
        return members

    def _shard(self, entry: Mapping[str, Any]) -> Path:
        return self.root / self._shards[entry["shard"]]["name"]

    def _damaged(self, entry: Mapping[str, Any], reason: str) -> InputError:
        return InputError(
            f"{self._shard(entry)}: missing or damaged: cannot read the clip {entry['clip']!r} ({reason}); "
            "prepare the data again"
        )


def decode(
    members: Members,
    clip: str,
    target: Sequence[float],
    image_size: int,
    proposals: int,
    front_end: FrontEnd,
    pictures: bool = True,
) -> Sample:
    """A clip's members as the model sees them.

    Args:
        members: As ``clips.pack`` makes them.
        clip: Its name.
        target: [C], 1 for a label that it has, else 0.
        image_size: S; frames are stretched to S x S pixels.
        proposals: Boxes to keep of each frame, the best ones.
        front_end: Turns its sound into audio instances.
        pictures: Whether to decode the frames.

    Raises:
        ValueError, KeyError, cv2.error, SoundFileError: The members are damaged.
    """
    facts = json.loads(members[FACTS])
    times = facts["frame_times"]
    pictured = [members[frame_member(index)] for index in range(len(times))]
    images = [decode_jpeg(data) for data in pictured] if pictures else []
    sizes = [_jpeg_size(data) for data in pictured]
    boxes, box_frames, objectness = _regions(members, sizes, image_size, proposals)
    waveform = decode_sound(members[SOUND]) if SOUND in members else np.zeros(0, np.float32)
    audio = front_end(torch.from_numpy(waveform))
    return Sample(
        clip=clip,
        frames=_frames(images, image_size),
        frame_times=torch.tensor(times, dtype=torch.float32),
        boxes=boxes,
        box_frames=box_frames,
        objectness=objectness,
        frame_size=(facts["frame_size"][0], facts["frame_size"][1]),
        audio=audio,
        segments=front_end.segments(len(audio)),
        target=torch.tensor(target),
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the frame header, so that pictures need not be decoded for it."""
    place = 2  # after the start-of-image marker
    while data[place : place + 1] == JPEG_MARKER:
        if data[place + 1] in JPEG_FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("a frame is not a JPEG")


def _frames(images: Sequence[NDArray[np.uint8]], side: int) -> Tensor:
    frames = np.zeros((len(images), side, side, 3), np.uint8)
    for frame, image in zip(frames, images, strict=True):
        shrinks = max(image.shape[:2]) > side
        cv2.resize(image, (side, side), frame, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def _regions(
    members: Members, sizes: Sequence[tuple[int, int]], side: int, proposals: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in the stretched frames, their frames, their scores: the best of each frame."""
    if not sizes:
        return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    table = np.load(io.BytesIO(members[PROPOSALS]), allow_pickle=False)
    rows = table[:, 0].astype(np.int64)
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    table, rows = table[rank < proposals], rows[rank < proposals]
    corners = np.array([size * 2 for size in sizes], np.float32)
    return (
        torch.from_numpy(table[:, 1:5] * (side / corners[rows])),
        torch.from_numpy(rows),
        torch.from_numpy(table[:, 5].copy()),
    )


def decode_sound(data: bytes) -> NDArray[np.float32]:
    """What ``encode_sound`` wrote: [T] at 16 kHz."""
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]
