"""A trained model as one safetensors file, read without pickle, with all that is needed to use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from avfast.data.files import write_bytes
from avfast.errors import InputError
from avfast.models import ModelConfig, build

SUFFIX = ".safetensors"
FORMAT = "avfast-model-1"
STATED = ("config", "classes", "thresholds", "epoch", "step", "val")
"""What a run's best checkpoint holds beside its weights; each is JSON in the file's metadata."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a run's best checkpoint.

    Args:
        path: The file to create or replace.
        state: As ``checkpoint.load`` gives it.
    """
    weights = {name: value.cpu().contiguous().clone() for name, value in state["model"].items()}
    stated = {name: json.dumps(state[name]) for name in STATED}
    metadata = {"format": FORMAT, "sha256": _digest(weights), **stated}
    write_bytes(path, safetensors.torch.save(weights, metadata))


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote, as the state that it was given.

    Raises:
        InputError: The file is missing, damaged, no model of this version of avfast, or does not hold the
            weights that its configuration asks for.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; write it with python -m avfast.export RUN")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({error}); export it again") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a model of this version of avfast (format {metadata.get('format')}, expected "
            f"{FORMAT}); write it with python -m avfast.export RUN"
        )
    if metadata.get("sha256") != _digest(weights):
        raise InputError(f"{path}: damaged, the checksum of its weights is wrong; export it again")
    try:
        state = {name: json.loads(metadata[name]) for name in STATED}
        with torch.device("meta"):  # takes no memory, whatever the configuration asks for
            expected = build(ModelConfig(**state["config"]["model"]), len(state["classes"])).state_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata describes no model ({error}); export it again") from error
    if {name: value.shape for name, value in expected.items()} != {k: v.shape for k, v in weights.items()}:
        raise InputError(f"{path}: its weights are not those of the model that it describes; export it again")
    return {**state, "model": weights}


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
