"""The index of a folder of shards as columns: any number of clips in little memory, which processes share."""

from __future__ import annotations

import hashlib
import json
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from avfast.data.files import atomic_write
from avfast.errors import InputError

FORMAT = 1
"""Version of the index and of a clip's members."""

INDEX = "index.json"
COLUMNS = "index.npz"
"""The same as ``INDEX`` for this package's own use, to be memory-mapped; without it ``INDEX`` is parsed."""

Place = tuple[int, int, int]
"""Offset in its shard, size and CRC-32 of a member's data."""

_COLUMNS = {
    "names": "B",  # UTF-8, one after the other; *_ends say where the next clip begins
    "name_ends": "q",
    "splits": "B",
    "labels": "I",
    "label_ends": "q",
    "shards": "I",
    "kinds": "H",  # of members
    "offsets": "q",
    "sizes": "q",
    "checksums": "I",
    "member_ends": "q",
}
_ENTRY = {"clip", "split", "labels", "shard", "members"}


@dataclass(frozen=True)
class Entry:
    """One clip of the index."""

    clip: str
    split: str
    labels: tuple[str, ...]
    shard: int
    """Position in ``ClipIndex.shards``."""
    members: Mapping[str, Place]
    """By extension, in the order of the file."""


@dataclass
class IndexBuilder:
    """Gathers clips, in the order of the index."""

    columns: dict[str, array[int]] = field(default_factory=lambda: {n: array(t) for n, t in _COLUMNS.items()})
    splits: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many clips there are by now."""
        return len(self.columns["splits"])

    def add(
        self, clip: str, split: str, labels: Iterable[str], shard: int, members: Mapping[str, Place]
    ) -> None:
        """Append a clip; the arguments are those of ``Entry``."""
        columns = self.columns
        columns["names"].frombytes(clip.encode())
        columns["splits"].append(_number(self.splits, split))
        columns["labels"].extend(_number(self.labels, label) for label in labels)
        columns["shards"].append(shard)
        for kind, (offset, size, checksum) in members.items():
            columns["kinds"].append(_number(self.kinds, kind))
            columns["offsets"].append(offset)
            columns["sizes"].append(size)
            columns["checksums"].append(checksum)
        for ends, values in (("name_ends", "names"), ("label_ends", "labels"), ("member_ends", "kinds")):
            columns[ends].append(len(columns[values]))

    def finish(
        self, classes: Sequence[str], options: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]
    ) -> ClipIndex:
        """The index, with what it says beside the clips."""
        head = {"classes": list(classes), "options": dict(options), "shards": list(shards)}
        names = {"splits": list(self.splits), "labels": list(self.labels), "kinds": list(self.kinds)}
        columns = {n: np.frombuffer(values, values.typecode) for n, values in self.columns.items()}
        return ClipIndex(head, names, columns)


@dataclass(frozen=True)
class ClipIndex:
    """What ``index.json`` says, as arrays."""

    head: dict[str, Any]
    """``classes``, ``options`` and ``shards``, as in the file."""
    names: dict[str, list[str]]
    """What the numbers in the columns ``splits``, ``labels`` and ``kinds`` mean."""
    columns: dict[str, NDArray[Any]]
    root: Path | None = None
    """The folder whose ``COLUMNS`` are mapped; None for arrays of this process."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same file; nothing is copied."""
        if self.root is None:
            return ClipIndex, (self.head, self.names, self.columns)
        return open_index, (self.root,)

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.columns["splits"])

    def __getitem__(self, position: int) -> Entry:
        """One clip."""
        columns, span = self.columns, self._span("member_ends", position)
        kinds = (self.names["kinds"][kind] for kind in columns["kinds"][span].tolist())
        places = (columns[name][span].tolist() for name in ("offsets", "sizes", "checksums"))
        return Entry(
            self.name(position),
            self.names["splits"][columns["splits"][position]],
            tuple(self.names["labels"][label] for label in self._labels(position)),
            int(columns["shards"][position]),
            dict(zip(kinds, zip(*places, strict=True), strict=True)),
        )

    def name(self, position: int) -> str:
        """The name of a clip."""
        return self.columns["names"][self._span("name_ends", position)].tobytes().decode()

    def positions(self, split: str) -> NDArray[np.int64]:
        """Where the clips of a split are, in order."""
        splits = self.names["splits"]
        return np.flatnonzero(self.columns["splits"] == (splits.index(split) if split in splits else -1))

    def targets(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[N, C], which classes clips have."""
        classes = {name: column for column, name in enumerate(self.head["classes"])}
        column = np.array([classes.get(name, -1) for name in self.names["labels"]], np.int64)
        ends = self.columns["label_ends"]
        counts = np.diff(ends, prepend=0)
        chosen = np.zeros(len(self), np.int64)
        chosen[positions] = 1 + np.arange(len(positions))
        rows = np.repeat(chosen, counts) - 1
        found = np.zeros((len(positions), len(classes)), np.bool_)
        labels = column[self.columns["labels"]]
        wanted = (rows >= 0) & (labels >= 0)
        found[rows[wanted], labels[wanted]] = True
        return found

    def json_lines(self) -> Iterator[str]:
        """The text of ``INDEX``, in pieces."""
        yield json.dumps({"format": FORMAT, **self.head, "clips": []}, ensure_ascii=False)[:-2]
        for position in range(len(self)):
            entry = self[position]
            clip = {"clip": entry.clip, "split": entry.split, "labels": entry.labels, "shard": entry.shard}
            text = json.dumps(clip | {"key": key(position), "members": entry.members}, ensure_ascii=False)
            yield f", {text}" if position else text
        yield "]}\n"

    def _span(self, ends: str, position: int) -> slice:
        values = self.columns[ends]
        return slice(int(values[position - 1]) if position else 0, int(values[position]))

    def _labels(self, position: int) -> list[int]:
        return self.columns["labels"][self._span("label_ends", position)].tolist()


class ClipNames(Sequence[str]):
    """The names of some clips of an index, decoded when they are asked for."""

    def __init__(self, clips: ClipIndex, positions: NDArray[np.int64]) -> None:
        """Args:
        clips: The index.
        positions: Which of them.
        """
        self._clips, self._positions = clips, positions

    def __len__(self) -> int:
        """How many there are."""
        return len(self._positions)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        """One name, or those of a slice."""
        if isinstance(position, slice):
            return [self._clips.name(int(place)) for place in self._positions[position]]
        return self._clips.name(int(self._positions[position]))


def key(position: int) -> str:
    """What the members of a clip are named after."""
    return f"{position:07d}"


def write_index(root: Path, index: ClipIndex) -> None:
    """Write ``INDEX``, which makes a folder readable, and ``COLUMNS``."""
    with atomic_write(root / INDEX) as file:
        for text in index.json_lines():
            file.write(text.encode())
    write_columns(root, index)


def write_columns(root: Path, index: ClipIndex) -> None:
    """Write ``COLUMNS`` beside ``INDEX``; nothing but the clips decides its bytes."""
    text = json.dumps({"head": index.head, "names": index.names}).encode()
    with atomic_write(root / COLUMNS) as file:
        digest = np.frombuffer(bytes.fromhex(index_digest(root)), np.uint8)
        np.savez(file, digest=digest, text=np.frombuffer(text, np.uint8), **index.columns)  # type: ignore[arg-type]


def open_index(root: Path) -> ClipIndex:
    """The index of a folder of shards.

    Raises:
        InputError: When the folder has no index that this version can read.
    """
    path = root / INDEX
    if not path.is_file():
        raise InputError(f"{path}: no such file; make shards with python -m avfast.prepare")
    mapped = _mapped(root)
    return _parsed(path) if mapped is None else mapped


def index_digest(root: Path) -> str:
    """SHA-256 of a folder's ``INDEX``."""
    digest = hashlib.sha256()
    with (root / INDEX).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _parsed(path: Path) -> ClipIndex:
    """The index from its JSON, a clip at a time, as all of them would take gigabytes as Python objects."""
    builder = IndexBuilder()

    def absorb(value: dict[str, Any]) -> Any:
        if not value.keys() >= _ENTRY:
            return value
        builder.add(*(value[name] for name in ("clip", "split", "labels", "shard", "members")))
        return None

    try:
        index = json.loads(path.read_bytes(), object_hook=absorb)
        version = index["format"]
        if version == FORMAT:
            if any(clip is not None for clip in index["clips"]):
                raise ValueError("an entry lacks something")
            return builder.finish(index["classes"], index["options"], index["shards"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged; prepare the data again") from error
    raise InputError(f"{path}: format {version}, this version reads {FORMAT}; prepare the data again")


def _mapped(root: Path) -> ClipIndex | None:
    """The index from its columns, or None where they are not those of the JSON."""
    try:
        arrays = _map_npz(root / COLUMNS)
        if arrays["digest"].tobytes().hex() != index_digest(root):
            return None
        text = json.loads(arrays["text"].tobytes())
        return ClipIndex(text["head"], text["names"], {name: arrays[name] for name in _COLUMNS}, root)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _map_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed .npz, memory-mapped, which ``numpy.load`` does for .npy alone."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:
            raise ValueError("a checksum differs")
        return {info.filename.removesuffix(".npy"): _map_npy(path, file, info) for info in archive.infolist()}


def _map_npy(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> NDArray[Any]:
    file.seek(info.header_offset + 26)
    name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    file.seek(name + extra, 1)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if not shape[0]:  # nothing to map
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", file.tell(), shape))


def _number(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))
