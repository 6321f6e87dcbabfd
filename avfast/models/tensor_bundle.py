"""Variables of a TensorFlow checkpoint, read without TensorFlow."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avfast.errors import InputError

FLOAT = 1  # TensorFlow's DT_FLOAT
FOOTER = 48  # bytes
MAGIC = 0xDB4775248B80FB57

# Fields of BundleEntryProto and of the messages in it.
DTYPE, SHAPE, OFFSET, SIZE = 1, 2, 4, 5
DIMENSION, LENGTH = 2, 1

Fields = dict[int, list[int | bytes]]


def read_bundle(prefix: Path) -> dict[str, NDArray[np.float32]]:
    """Read the float32 variables of a checkpoint in one piece.

    The index is a table of LevelDB's format from names to messages that say where a tensor lies in the data.

    Args:
        prefix: What ``.index`` and ``.data-00000-of-00001`` are appended to.

    Returns:
        Name to array.

    Raises:
        InputError: The files are missing, cut short or of another format.
    """
    try:
        index = Path(f"{prefix}.index").read_bytes()
        data = Path(f"{prefix}.data-00000-of-00001").read_bytes()
    except OSError as error:
        raise InputError(
            f"{prefix}: no TensorFlow checkpoint ({error.strerror}: {error.filename})"
        ) from error
    try:
        return dict(_tensors(index, data))
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise InputError(f"{prefix}.index: damaged, or not the index of a TensorFlow checkpoint") from error


def _tensors(index: bytes, data: bytes) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, message in _table(index):
        entry = _fields(message)
        if not name or entry.get(DTYPE) != [FLOAT]:  # the first is about the checkpoint as a whole
            continue
        dimensions = [
            _fields(_bytes(d)) for s in entry.get(SHAPE, []) for d in _fields(_bytes(s)).get(DIMENSION, [])
        ]
        shape = [_number(dimension.get(LENGTH, [0])[0]) for dimension in dimensions]
        offset, size = (_number(entry.get(field, [0])[0]) for field in (OFFSET, SIZE))
        if size != 4 * math.prod(shape) or offset + size > len(data):
            raise ValueError(name)
        yield name.decode(), np.frombuffer(data, "<f4", size // 4, offset).reshape(shape)


def _table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table."""
    footer = index[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("no table")
    _, position = _varint(footer, 0)
    _, position = _varint(footer, position)
    for _, place in _block(index, *_handle(footer, position)):
        yield from _block(index, *_handle(place, 0))


def _handle(data: bytes, position: int) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, position = _varint(data, position)
    return offset, _varint(data, position)[0]


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """A block's entries; each key begins with as much of the one before as it says."""
    if index[offset + size] != 0:
        raise ValueError("compressed")
    block = index[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, position, key = len(block) - 4 - 4 * restarts, 0, b""
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _fields(message: bytes) -> Fields:
    """A protocol buffer's fields by number, undecoded."""
    found: Fields = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        value: int | bytes
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            if kind == 2:
                length, position = _varint(message, position)
            else:
                length = {1: 8, 5: 4}[kind]
            value = message[position : position + length]
            position += length
        found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, low ones first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7


def _number(value: int | bytes) -> int:
    if isinstance(value, int):
        return value
    raise TypeError("expected a number")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise TypeError("expected a message")
