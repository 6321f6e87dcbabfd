"""Guards of a run of training: signals, steps that are not finite, memory and disks that run out."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from avfast import checkpoint
from avfast.errors import InputError, Interrupted

OnNaN = Literal["stop", "skip"]

MOST_SKIPPED_IN_A_ROW = 10
"""Steps that are not finite after which ``--on-nan skip`` stops as well: that many are no accident."""

PATIENCE_SECONDS = 1.0
"""A signal within this time of the first is the same wish: launchers pass on what a terminal sent already."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = re.compile("(allocate|enough|out of|insufficient) memory|ALLOC_FAILED", re.I)
_NO_SHARED_MEMORY = re.compile("shared memory", re.I)
_WORKER_KILLED = re.compile(r"DataLoader worker .* killed by signal: Killed")


@dataclass
class Guard:
    """What ``guarded`` knows of a run."""

    folder: Path
    """Of the run."""
    costly: Mapping[str, Any] = field(default_factory=dict)
    """Options that decide how much memory a step takes, with their values."""
    deferring: bool = False
    """Whether the first signal waits for ``signalled`` to be looked at."""
    signalled: int | None = None
    """The signal that came."""
    quiet: bool = False
    """Whether another process says that it came."""
    _since: float = 0.0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets ``signalled``, unless it is repeated."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False

    def receive(self, number: int, _: FrameType | None) -> None:
        """Take note of a signal, or obey it at once."""
        if not self.deferring:
            raise Interrupted(number)
        if self.signalled is None:
            self.signalled, self._since = number, time.monotonic()
            if not self.quiet:
                os.write(
                    2, b"\nstopping after this step; Ctrl-C again stops at once\n"
                )  # print may be under way
        elif number == signal.SIGINT and time.monotonic() - self._since > PATIENCE_SECONDS:
            raise Interrupted(number)


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Guard]:
    """Turn what ends a run from outside into one line that says how to go on.

    Args:
        folder: Of the run.

    Yields:
        The guard, whose ``costly`` and ``deferred`` the run should use.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
        InputError: Memory or disk ran out.
    """
    guard = Guard(folder)
    with _handlers(guard):
        try:
            yield guard
        except Interrupted as stop:
            if not checkpoint.resumable(folder):
                raise
            raise Interrupted(stop.number, f"{folder} is saved", "--resume") from None
        except OSError as error:
            if error.errno not in _FULL:
                raise
            remedy = "go on with --resume" if checkpoint.resumable(folder) else "start again"
            raise InputError(
                f"{error.filename or folder}: the disk is full; what was saved before is "
                f"whole; free some space and {remedy}"
            ) from error
        except (MemoryError, RuntimeError) as error:
            advice = _memory_advice(error, guard.costly)
            if advice is None:
                raise
            raise InputError(advice) from error


@contextlib.contextmanager
def _handlers(guard: Guard) -> Iterator[None]:
    """Let a guard receive the signals; only a program's main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, guard.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(_: int) -> None:
    """For a reading process: it ends when its parent does, so that the parent can still finish a step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _memory_advice(error: Exception, costly: Mapping[str, Any]) -> str | None:
    """Which option to lower; None if the error is of another kind."""
    text = str(error)
    reason = next((line for line in reversed(text.splitlines()) if line), type(error).__name__)
    if _NO_SHARED_MEMORY.search(text):
        return f"out of shared memory ({reason}): use --workers 0, or enlarge /dev/shm"
    if _WORKER_KILLED.search(text):
        return "a reading process was killed, probably for want of memory: lower --workers or --cache-gib"
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not _NO_MEMORY.search(text):
        return None
    options = ", ".join(f"{name} (now {value})" for name, value in costly.items())
    return (
        f"out of memory ({reason[:200]}): lower {options}, or use --precision bfloat16, and start again; "
        "--cache-gib and --workers may be lowered with --resume"
    )


# --- steps that are not finite ----------------------------------------------------------------------


def gradient_norm(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Euclidean norm of all gradients together, which are scaled down to ``limit`` if that is above 0."""
    if limit > 0:
        return clip_grad_norm_(parameters, limit)
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


class Rewind:
    """What a step changes before its optimiser does: buffers and random states, to be put back."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.device, self.random = device, checkpoint.random_states(device)

    def buffers_back(self) -> None:
        """Forget the statistics of a batch that is skipped."""
        for buffer, before in self.buffers:
            buffer.copy_(before)

    def all_back(self) -> None:
        """Be where the step began, so that it can be repeated."""
        self.buffers_back()
        checkpoint.restore_random_states(self.random, self.device)


def spoilt(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradients are not finite."""
    named = model.named_parameters()
    return [name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
