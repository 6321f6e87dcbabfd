"""Checkpoints: written whole or not at all, verified when read, and enough to resume a run exactly."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avfast.data.files import TEMPORARY_PREFIX, atomic_write
from avfast.errors import InputError

LAST, PREVIOUS = "last.pt", "previous.pt"
"""A run's state, and what that file was before it was last written."""

FORMAT = "avfast-checkpoint-3"
_FAMILY = FORMAT.rstrip("0123456789")

_ZIP, _PICKLE = b"PK", b"\x80"
"""How files begin that torch writes now, and that it wrote long ago."""


class Damaged(InputError):
    """A file that was a checkpoint, or the beginning of one, and is not whole."""


def resumable(folder: Path) -> bool:
    """Whether the folder of a run has a state to go on from."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def save(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint; a process killed meanwhile leaves the file's previous content.

    Args:
        path: The file to create or replace.
        state: Tensors, numbers, strings and None, in dicts, lists and tuples: what ``load`` can read back.
        previous: Takes what ``path`` held, once the new content is written.

    Raises:
        OSError: The disk is full or fails; ``path`` and ``previous`` are as they were.
    """
    with atomic_write(path) as file:
        try:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()  # a full disk shows here at the latest
        except RuntimeError as error:  # torch's writer hides what the system said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        if previous is not None and path.is_file():
            _also_as(path, previous)


def load(path: Path, device: torch.device | str = "cpu", keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is ever executed.

    Args:
        path: A file that ``save`` wrote.
        device: Where its tensors go.
        keys: What the state must have.

    Returns:
        The state that was saved.

    Raises:
        Damaged: The file is a checkpoint no more.
        InputError: The file is missing, or no checkpoint of this version of avfast.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or name another run")
    _verify(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch.load names no type for what weights_only refuses or cannot parse
        raise InputError(
            f"{path}: refused, it does not hold weights and numbers alone; use avfast's own"
        ) from error
    _check_kind(path, state, keys)
    del state["format"]
    return state


def load_latest(
    path: Path, previous: Path, device: torch.device | str, keys: Sequence[str]
) -> tuple[dict[str, Any], str | None]:
    """Read a checkpoint that is rotated; the previous one takes its place where it is damaged or missing.

    As a resumed run repeats its steps exactly, that costs the time of the steps between and nothing else. A
    file that is whole, but none of ours, is never replaced without being asked.

    Args:
        path: The file that ``save`` wrote last.
        previous: What ``save`` had written before.
        device: Where tensors go.
        keys: What the state must have.

    Returns:
        The state, and a line to show where it is the previous one.

    Raises:
        InputError: Neither can be used, or ``path`` is foreign; then the message offers the previous one.
    """
    try:
        if path.is_file() or not previous.is_file():
            return load(path, device, keys), None
        fault = InputError(f"{path}: not there")
    except InputError as error:
        if not previous.is_file():
            raise
        fault = error
    try:
        state = load(previous, device, keys)
    except InputError as error:
        raise InputError(f"{fault}; nor can the one before it be used: {error}") from error
    if path.is_file() and not isinstance(fault, Damaged):
        raise InputError(
            f"{fault}. {previous.name} beside it is good: to go on from there, remove {path.name} and repeat "
            "the command"
        )
    _also_as(previous, path)
    return state, f"{fault}; going on from {previous.name}, the checkpoint before it"


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        InputError: They are of another architecture than the model; ``path`` tells where they come from.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path}: its weights do not fit the model that its configuration describes; "
            "use the version of avfast that wrote it, or train again"
        ) from error


def random_states(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state of every global random generator: Python's, NumPy's and torch's, also on a CUDA device."""
    generator = np.random.get_state(legacy=False)  # noqa: NPY002 - saved, not drawn from
    key = torch.from_numpy(generator["state"]["key"].astype(np.int64))  # checkpoints hold tensors, not arrays
    return {
        "python": random.getstate(),
        "numpy": {**generator, "state": {**generator["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if torch.device(device).type == "cuda" else None,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Undo everything drawn since ``random_states()`` returned ``states``."""
    random.setstate(states["python"])
    generator = states["numpy"]
    key = generator["state"]["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state({**generator, "state": {**generator["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if torch.device(device).type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def _verify(path: Path) -> None:
    """Compare every member of the archive with its checksum, which ``torch.load`` does not."""
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":
        raise InputError(f"{path}: a safetensors file, not a checkpoint; name it so, or name a run's folder")
    if start.startswith(_PICKLE):
        raise InputError(f"{path}: a bare pickle, which could run code; not a checkpoint of avfast, refused")
    if start.strip(b"\0") and not _ZIP.startswith(start[:2]):
        raise InputError(f"{path}: not a checkpoint; name a run folder that avfast.train wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except Exception as error:  # zipfile fails in as many ways as there are bytes
        raise Damaged(
            f"{path}: damaged, or not a checkpoint ({str(error) or type(error).__name__})"
        ) from error
    if member is not None:
        raise Damaged(f"{path}: damaged, the checksum of {member} is wrong")


def _check_kind(path: Path, state: object, keys: Sequence[str]) -> None:
    """Refuse what is whole but not what was asked for."""
    version = state.get("format") if isinstance(state, dict) else None
    if version == FORMAT and isinstance(state, dict):
        lacking = [key for key in keys if key not in state]
        if lacking:
            raise InputError(
                f"{path}: lacks {', '.join(lacking)}; it is another checkpoint of a run under a wrong name"
            )
        return
    if isinstance(version, str) and version.startswith(_FAMILY) and version[len(_FAMILY) :].isdecimal():
        newer = int(version[len(_FAMILY) :]) > int(FORMAT[len(_FAMILY) :])
        remedy = "a newer avfast; update this one" if newer else "an older avfast; use that, or train again"
        raise InputError(f"{path}: format {version}, this version reads {FORMAT}; it was written by {remedy}")
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"{path}: not a checkpoint of avfast but a bare state dict (with {next(iter(state))!r}); "
            "--visual-weights and --audio-weights take those"
        )
    raise InputError(f"{path}: not a checkpoint of avfast; name a run folder that avfast.train wrote")


def _also_as(path: Path, name: Path) -> None:
    """Give a file a second name, atomically; without hard links it is renamed."""
    link = name.with_name(f"{TEMPORARY_PREFIX}{name.name}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # not every file system has them
        path.replace(name)
        return
    link.replace(name)
    link.unlink(missing_ok=True)  # it stays where both were the same file already
