"""Checkpoints: written whole or not at all, verified when read, and enough to resume a run exactly."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avfast.data.files import atomic_write
from avfast.errors import InputError

FORMAT = "avfast-checkpoint-2"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; a process killed meanwhile leaves the file's previous content.

    Args:
        path: The file to create or replace.
        state: Tensors, numbers, strings and None, in dicts, lists and tuples: what ``load`` can read back.
    """
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is ever executed.

    Args:
        path: A file that ``save`` wrote.
        device: Where its tensors go.

    Returns:
        The state that was saved.

    Raises:
        InputError: The file is missing, damaged, or no checkpoint of avfast.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or name another run")
    _verify(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (
        Exception
    ) as error:  # torch.load names no type for content that weights_only refuses or cannot parse
        raise InputError(
            f"{path}: refused, it holds more than weights and numbers; use avfast's own"
        ) from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of this version of avfast; name a run folder that it wrote"
        )
    return state


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


def random_states() -> dict[str, Any]:
    """The state of every global random generator: Python's, NumPy's and torch's, on all devices."""
    generator = np.random.get_state(legacy=False)  # noqa: NPY002 - saved, not drawn from
    key = torch.from_numpy(generator["state"]["key"].astype(np.int64))  # checkpoints hold tensors, not arrays
    return {
        "python": random.getstate(),
        "numpy": {**generator, "state": {**generator["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Undo everything drawn since ``random_states()`` returned ``states``."""
    random.setstate(states["python"])
    generator = states["numpy"]
    key = generator["state"]["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state({**generator, "state": {**generator["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def _verify(path: Path) -> None:
    """Compare every member of the archive with its checksum, which ``torch.load`` does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path}: damaged, or not a checkpoint ({error}); delete it or name another"
        ) from error
    if damaged is not None:
        raise InputError(f"{path}: damaged, the checksum of {damaged} is wrong; delete it or name another")
