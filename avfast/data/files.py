"""Files that are either whole or absent, whenever the process dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from avfast.errors import InputError

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only once it is complete and on disk.

    The bytes go to a temporary file in the same folder, which is flushed, synchronised and renamed when the
    block ends, and deleted when it raises. A killed process leaves at most a file named ``.tmp-*``.

    Args:
        path: The file to create or replace; its folder must exist.

    Yields:
        A binary file open for writing (and seeking).

    Raises:
        OSError: The disk is full or fails; it names ``path``.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp makes private files
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    _sync_folder(path.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` to ``path`` atomically, as indented JSON that ends with a newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Read a mapping that ``write_json`` wrote.

    Args:
        path: The file.
        remedy: What to do where it cannot be read: the end of the error's message.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: missing or damaged; {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged, it holds no mapping; {remedy}")
    return value


def _sync_folder(folder: Path) -> None:
    """Put a rename on disk; some file systems do not offer this, and need it less."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def exclusive(folder: Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time work in an existing folder. The dead hold nothing.

    Raises:
        BlockingIOError: Another process works there, and ``wait`` is False.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
