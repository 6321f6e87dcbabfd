"""Whether and how torch.compile can generate code for a model here."""

from __future__ import annotations

from typing import Any

import torch

from avfast.errors import InputError


def code_generation(device: torch.device) -> dict[str, Any]:
    """Arguments of ``torch.compile`` for models that train there: bags differ in size from batch to batch.

    Raises:
        InputError: There is no compiler that works.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # of many kinds, by what is missing
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--compile: torch cannot generate code for {device.type} here ({reason}); install a C++ "
            "compiler (for CUDA: Triton), or leave it out"
        ) from error
    return {"dynamic": True}
