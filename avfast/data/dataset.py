"""Prepared clips as the model sees them, by position."""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avfast.data.batch import Sample
from avfast.data.clip_index import ClipNames, Entry, open_index
from avfast.data.labels import Annotations, read_annotations
from avfast.data.logmel import FrontEnd
from avfast.data.opencv import cv2
from avfast.data.shards import (
    ANNOTATIONS,
    FACTS,
    PROPOSALS,
    SOUND,
    Members,
    decode_jpeg,
    decode_sound,
    frame_member,
)
from avfast.errors import DamagedClip, InputError

JPEG_MARKER = b"\xff"
JPEG_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive

CLIPS_FOR_LENGTH = 100
"""How many clips are looked at to tell how long they are."""


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
            InputError: When ``root`` is no such folder, lacks a shard, or has no clip in ``split``.
        """
        self.root = Path(root)
        self._index = open_index(self.root)
        self.classes: list[str] = self._index.head["classes"]
        self.preparation: dict[str, Any] = self._index.head["options"]
        self._positions = self._index.positions(split)
        if not len(self._positions):
            raise InputError(f"{self.root}: no clip in the split {split!r}; add some to the labels")
        self.clips = ClipNames(self._index, self._positions)
        for shard in self._index.head["shards"]:
            if shard["name"].startswith(f"{split}-"):
                self._look_for(self.root / shard["name"])
        self.image_size = image_size
        self.proposals = proposals
        self.front_end = front_end
        self.pictures = pictures

    def __len__(self) -> int:
        """How many clips the split has."""
        return len(self._positions)

    def __getitem__(self, position: int) -> Sample:
        """Read and decode one clip.

        Raises:
            DamagedClip: Naming shard and clip.
            InputError: The shard is missing.
            MemoryError: There is none left.
        """
        entry = self._entry(position)
        members = self._read(entry)
        try:
            return decode(
                members,
                entry.clip,
                [float(name in entry.labels) for name in self.classes],
                self.image_size,
                self.proposals,
                self.front_end,
                self.pictures,
            )
        except (ValueError, KeyError, cv2.error, soundfile.SoundFileError) as error:
            if getattr(error, "code", None) == cv2.Error.StsNoMem:
                raise MemoryError(str(error)) from error
            raise self._damaged(entry, str(error)) from error

    @staticmethod
    def _look_for(shard: Path) -> None:
        try:
            shard.stat()
        except OSError as error:
            raise InputError(_missing(shard, error)) from error

    def labels(self) -> NDArray[np.bool_]:
        """[N, C], which classes each clip has, without reading the clips."""
        return self._index.targets(self._positions)

    def members(self, position: int) -> dict[str, bytes]:
        """What the shards hold of one clip, as ``clips.pack`` made it.

        Raises:
            DamagedClip: Naming shard and clip.
            InputError: The shard is missing.
        """
        return self._read(self._entry(position))

    def annotations(self) -> Annotations | None:
        """Ground truth of this split's clips, None where the data has none."""
        path = self.root / ANNOTATIONS
        return read_annotations(path).of(self.clips) if path.is_file() else None

    def clip_seconds(self) -> float:
        """Typical length of a clip: the median over a hundred that lie evenly in the split.

        Raises:
            DamagedClip: None of them can be read.
        """
        lengths, faults = [], []
        for position in range(0, len(self), math.ceil(len(self) / CLIPS_FOR_LENGTH)):
            try:
                lengths.append(self._seconds(position))
            except DamagedClip as fault:
                faults.append(fault)
        if not lengths:
            raise faults[0]
        return round(statistics.median(lengths), 3)

    def _entry(self, position: int) -> Entry:
        return self._index[self._positions[position]]

    def _seconds(self, position: int) -> float:
        entry = self._entry(position)
        facts = json.loads(self._read(replace(entry, members={FACTS: entry.members[FACTS]}))[FACTS])
        shown = facts["frame_times"][-1] + 1 / self.preparation["fps"] if facts["frame_times"] else 0.0
        return max(shown, facts["sound_seconds"])

    def _read(self, entry: Entry) -> dict[str, bytes]:
        """A clip's members, by one read of the stretch of the shard that holds them."""
        places = entry.members
        start = min(offset for offset, _, _ in places.values())
        end = max(offset + size for offset, size, _ in places.values())
        try:
            with self._shard(entry).open("rb", buffering=0) as file:
                file.seek(start)
                stretch = file.read(end - start)
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(_missing(self._shard(entry), error)) from error
        except OSError as error:
            raise self._damaged(entry, error.strerror or str(error)) from error
        members = {name: stretch[at - start : at - start + size] for name, (at, size, _) in places.items()}
        for name, (_, _, checksum) in places.items():
            if zlib.crc32(members[name]) != checksum:
                raise self._damaged(entry, f"checksum of the member {name} differs")
        return members

    def _shard(self, entry: Entry) -> Path:
        return self.root / self._index.head["shards"][entry.shard]["name"]

    def _damaged(self, entry: Entry, reason: str) -> DamagedClip:
        error = DamagedClip(
            f"{self._shard(entry)}: damaged: cannot read the clip {entry.clip!r} ({reason}); "
            "prepare the data again"
        )
        error.clip = entry.clip
        return error


def _missing(shard: Path, error: OSError) -> str:
    return f"{shard}: {error.strerror}; put this shard back, or prepare the data again"


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
