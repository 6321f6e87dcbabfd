"""State dicts that users already have, checked by name and shape before they reach a network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from avfast.errors import InputError

SHOWN_KEYS = 6


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict saved by ``torch.save``; nothing in the file is executed.

    Args:
        path: A .pth or .pt file.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        InputError: If the file is absent, is no such file, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such weights file") from error
    except Exception as error:  # the unpickler fails in as many ways as there are bytes
        raise InputError(f"{path}: not a state dict that torch.load(weights_only=True) can read") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict; save one with torch.save(model.state_dict(), ...)")
    return state


def load_into(module: nn.Module, path: Path, ignore: Iterable[str] = ()) -> None:
    """Fill a network from a file that must hold exactly its parameters.

    Args:
        module: The network; unchanged when the file does not fit.
        path: A .pth or .pt file.
        ignore: Beginnings of keys that the file may hold and the network has no use for.

    Raises:
        InputError: If the file cannot be read, or names or shapes differ; the message lists them.
    """
    ignore = tuple(ignore)
    own = module.state_dict()
    given = {k: v for k, v in read_state_dict(path).items() if k in own or not k.startswith(ignore)}
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # absent from older files
    missing = sorted(own.keys() - given.keys() - counters)
    unexpected = sorted(given.keys() - own.keys())
    misfits = [
        f"{key} {list(given[key].shape)} in place of {list(own[key].shape)}"
        for key in sorted(own.keys() & given.keys())
        if given[key].shape != own[key].shape
    ]
    if missing or unexpected or misfits:
        raise InputError(
            f"{path}: not the weights of {type(module).__name__}: "
            f"missing keys: {_some(missing)}; unexpected keys: {_some(unexpected)}; "
            f"wrong shapes: {_some(misfits)}"
        )
    module.load_state_dict(given, strict=False)


def _some(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN_KEYS} more" if len(items) > SHOWN_KEYS else ""
    return (", ".join(items[:SHOWN_KEYS]) or "none") + more
