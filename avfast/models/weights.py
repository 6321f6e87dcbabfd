"""State dicts that users have, by path or URL, checked by name and shape before they reach a network."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor, nn

from avfast.errors import InputError

SHOWN_KEYS = 6

PATIENCE = 30.0  # s without a byte after which a server counts as unreachable

_NUMPY_ARRAYS: list[Any] = [
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *(np.ndarray, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType),
]
"""What a pickle of NumPy arrays names, which runs no code: PCA parameters may be stored as such."""


def read_state_dict(source: str | Path) -> dict[str, Tensor]:
    """Read a state dict saved by ``torch.save``, or arrays by ``numpy.savez``; nothing in it is executed.

    Args:
        source: A .pth, .pt or .npz file, or the URL of a .pth or .pt file. A URL is downloaded once, by
            ``torch.hub``; the checksum, where there is one, is the beginning of the SHA-256 that ends the
            file's name (``-7be5be79.pth``) or that follows the URL (``#sha256=7be5be79...``).

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        InputError: If the file is absent, cannot be had, has another checksum, or holds something else.
    """
    state = _download(str(source)) if "://" in str(source) else _read(Path(source))
    if isinstance(state, Mapping):
        arrays = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in state.items()}
        if all(isinstance(value, Tensor) for value in arrays.values()):
            return arrays
    raise InputError(f"{source}: holds no state dict; save one with torch.save(model.state_dict(), ...)")


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        with torch.serialization.safe_globals(_NUMPY_ARRAYS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such weights file") from error
    except Exception as error:  # the unpickler fails in as many ways as there are bytes
        raise InputError(f"{path}: not a state dict that torch.load(weights_only=True) can read") from error


def _download(url: str) -> Any:
    """The content of a URL; ``torch.hub`` keeps the file, and does not ask for it again."""
    address, _, fragment = url.partition("#")
    name, checked = _kept_as(url, address, fragment)
    place = Path(torch.hub.get_dir()) / "checkpoints" / name
    known = place.is_file()
    try:
        with torch.serialization.safe_globals(_NUMPY_ARRAYS), _patience():
            return torch.hub.load_state_dict_from_url(
                address, file_name=name, check_hash=checked, map_location="cpu", weights_only=True
            )
    except Exception as error:  # downloads and unpicklers fail in many ways
        if known:
            raise InputError(
                f"{place}: damaged, or not a state dict; delete it to download it again"
            ) from error
        place.unlink(missing_ok=True)
        if "invalid hash value" in str(error):
            raise InputError(
                f"{address}: the download is not the expected file ({error}); try again, or give "
                "the path of a file that you trust"
            ) from error
        if isinstance(error, OSError | HTTPException):
            raise InputError(
                f"{address}: cannot be downloaded ({error}); without a network, put the file at {place}, or "
                "give a path in place of the URL"
            ) from error
        raise InputError(f"{address}: the download is no state dict, or was cut short; try again") from error


def _kept_as(url: str, address: str, fragment: str) -> tuple[str, bool]:
    """The file name for a download, and whether ``torch.hub`` shall compare it with the file's checksum."""
    path = Path(urlparse(address).path)
    if re.search(r"-[a-f0-9]{8,64}\.", path.name) and not fragment:
        return path.name, True
    if not fragment:  # files of one name from two places must not be mistaken for each other
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', address.partition('://')[2])}{path.suffix}", False
    digits = re.fullmatch(r"sha256=([a-f0-9]{8,64})", fragment.lower())
    if digits is None:
        raise InputError(f"{url}: expected #sha256= and 8 to 64 hexadecimal digits after the URL")
    return f"weights-{digits[1]}{path.suffix or '.pth'}", True


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Do not wait for ever for a server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_into(module: nn.Module, source: str | Path, ignore: Iterable[str] = ()) -> None:
    """Fill a network from a file that must hold exactly its parameters.

    Args:
        module: The network; unchanged when the file does not fit.
        source: See ``read_state_dict``.
        ignore: Beginnings of keys that the file may hold and the network has no use for.

    Raises:
        InputError: If the file cannot be read, or names or shapes differ; the message lists them.
    """
    fill(module, read_state_dict(source), source, ignore)


def fill(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, ignore: Iterable[str] = ()
) -> None:
    """Fill a network from a state dict; as ``load_into``, ``source`` is what an error calls it."""
    ignore = tuple(ignore)
    own = module.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith(ignore)}
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
            f"{source}: not the weights of {type(module).__name__}: "
            f"missing keys: {_some(missing)}; unexpected keys: {_some(unexpected)}; "
            f"wrong shapes: {_some(misfits)}"
        )
    module.load_state_dict(given, strict=False)


def _some(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN_KEYS} more" if len(items) > SHOWN_KEYS else ""
    return (", ".join(items[:SHOWN_KEYS]) or "none") + more
