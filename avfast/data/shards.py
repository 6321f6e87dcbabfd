"""The format of prepared clips: WebDataset tar files, and an index that reaches every member directly."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from avfast.data.clip_index import IndexBuilder, Place, key, write_index
from avfast.data.files import atomic_write
from avfast.data.labels import LabelledClip
from avfast.data.media import SAMPLE_RATE
from avfast.data.opencv import cv2

ANNOTATIONS = "annotations.csv"

FACTS, PROPOSALS, SOUND = "json", "proposals.npy", "flac"
"""Members of a clip beside its frames; a member is missing where the clip lacks the modality."""

PROPOSAL_COLUMNS = ("frame", "x1", "y1", "x2", "y2", "score")
"""Of the member float32 [R, 6]; pixels of the JPEG; by frame, then best first."""

JPEG_QUALITY = 95

SHARD_BYTES = 256 << 20
"""A shard is closed before it grows beyond this, unless one clip alone is larger."""

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


def decode_sound(data: bytes) -> NDArray[np.float32]:
    """What ``encode_sound`` wrote: [T] at 16 kHz."""
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def encode_facts(facts: Mapping[str, Any]) -> bytes:
    """A mapping as one line of JSON."""
    return json.dumps(facts, ensure_ascii=False).encode()


def write_members(file: IO[bytes], key: str, members: Members) -> dict[str, Place]:
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
    index = IndexBuilder()
    for name, group in _shard_plan(clips, shard_bytes):
        with atomic_write(root / name) as file:
            for clip, staged in group:
                members = _with_labels(read_members(staged), clip)
                places = write_members(file, key(len(index)), members)
                index.add(clip.clip, clip.split, clip.labels, len(shards), places)
            end_tar(file)
            shards.append({"name": name, "bytes": file.tell()})
    write_index(root, index.finish(classes, options, shards))


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
