"""Computing the same bits twice: what ``--deterministic`` asks of torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from avfast.errors import InputError


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch choose operations that give the same bits each time, and refuse those that cannot.

    The ops of avfast need no choice: they take each sum in a fixed order. cuBLAS reads its setting when
    CUDA starts, so enter before anything is computed there; one that the user made is left alone.

    Args:
        wanted: False does nothing.

    Raises:
        InputError: An operation has no deterministic form.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which would choose by speed
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).splitlines()[0].split(", but you set")[0]
        raise InputError(
            f"--deterministic: {reason}; leave the option out, or use --device cpu or another --system"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
