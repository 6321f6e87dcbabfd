"""The border between torch and the native module: registering ops with torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("avfast", "DEF")


def register(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Defines a functional op of namespace ``avfast`` and returns the overload to call.

    Only kernels behind the dispatcher may hand tensors to the native module: the dispatcher has by then
    resolved negative and conjugate views, which the native border cannot see. No autograd kernel is
    registered: an ``autograd.Function`` outside the op costs a third of the time per call.

    Args:
        schema: Name, arguments and results in torch's schema language.
        kernel: Computes the results from real tensors, on the CPU or on CUDA.
        fake: Computes the results' shapes, dtypes and strides from tensors without memory.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"avfast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.avfast, name).default
