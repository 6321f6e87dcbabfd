"""Ranks: the processes that ``torchrun`` starts for one run of training, and what they tell each other."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avfast.errors import BAD_INPUT

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: longer than any of them reads, validates or writes alone."""


@dataclass(frozen=True)
class World:
    """One process's place among the ranks of a run; a run of one process is a world of its own.

    What a rank may meet alone (a signal, an unreadable clip, a loss that is not finite) ``any`` makes known
    to all. All ranks must call the same methods in the same order, ``share`` and ``seed`` apart.
    """

    rank: int = 0
    """0 to ``size`` - 1; rank 0 alone writes and prints."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Rank within this machine, which is the number of its GPU."""
    launch: str | None = None
    """Names the ``torchrun`` that started this process; None without it."""
    restarts: int = 0
    """How often that has started its ranks again."""

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def quiet(self) -> bool | None:
        """What tqdm calls ``disable``: rank 0 shows progress, on a terminal."""
        return None if self.main else True

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of a list: each item is in one part, and parts differ by one item at most."""
        return items[self.rank :: self.size]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        return bool(self.total(torch.tensor(float(flag))) > 0)

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor of one shape and device over all ranks, the same bits on each of them."""
        if self.size == 1:
            return values
        summed = values.detach().clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, value: T) -> list[T]:
        """The values of all ranks by rank, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        gathered: list[T] = [value] * self.size if self.main else []
        dist.gather_object(value, gathered if self.main else None)
        return gathered

    def collect(self, part: Sequence[T]) -> list[T]:
        """The inverse of ``share``: the whole list, in its order, on rank 0; an empty one on the others."""
        turns = itertools.zip_longest(
            *([(item,) for item in items] for items in self.gather(part)), fillvalue=()
        )
        return [item for turn in turns for place in turn for item in place]

    def once(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns on rank 0, which alone calls it, on every rank."""
        if self.size == 1:
            return compute()
        values = [compute() if self.main else None]
        dist.broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def local_turns(self) -> Iterator[None]:
        """Within, one rank of each machine goes first, and leaves what it downloads to the others."""
        if self.local_rank:
            self.any(False)
        yield
        if not self.local_rank:
            self.any(False)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model as the ranks train it together: its gradients are the means over ranks.

        Starts from the state of rank 0. All ranks must use all parameters in every step, also one without
        clips.
        """
        return DistributedDataParallel(model) if self.size > 1 else model

    def seed(self, *numbers: int) -> None:
        """Start every global random generator of this process from the rank and these numbers."""
        python, numpy, torch_ = np.random.SeedSequence([*numbers, self.rank]).generate_state(3).tolist()
        random.seed(python)
        np.random.seed(numpy)  # noqa: NPY002 - the global generator, for libraries that use it
        torch.manual_seed(torch_)


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world of this process; within, the ranks can speak to each other, and rank 0 alone prints.

    Without ``torchrun`` it is a world of one. When a rank fails or dies, the others leave by ``SystemExit``
    instead of waiting for it.

    Yields:
        The world.
    """
    world = _described()
    if world.size == 1:
        yield world
        return
    # Objects and flags travel in CPU memory, by gloo, also where gradients do by NCCL.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store(), rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    with contextlib.ExitStack() as stack:
        if not world.main:
            nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield world
            dist.barrier()  # leaving earlier would cut off the connections of a rank that still writes
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            sys.exit(_farewell(error))
    dist.destroy_process_group()


def first_to_fail() -> bool:
    """Whether no rank has failed before this one; the first to fail says why, on behalf of all."""
    return _described().size == 1 or _store().add("failed", 1) == 1


def _described() -> World:
    """The world that torchrun's environment variables describe."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    return World(rank, size, local_rank, os.environ["TORCHELASTIC_RUN_ID"], restarts)


@functools.cache
def _store() -> dist.Store:
    """What all ranks can read and write without a process group; torchrun's agent keeps it."""
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(
        f"avfast/{_described().restarts}", store
    )  # the dead of an earlier start have theirs


def _farewell(error: RuntimeError) -> str | int:
    """What to leave with when another rank is gone: it has said why, unless it was killed."""
    if not first_to_fail():
        return BAD_INPUT
    reason = str(error).splitlines()[0].rpartition("] ")[2]
    return f"avfast: error: a rank of this run is gone, or too slow ({reason}); --resume goes on from last.pt"
