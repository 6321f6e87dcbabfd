"""What the benchmarks share: two threads, the devices, how a case is timed, and memory figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
on_devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])]
)
CALLS_PER_ROUND = 50  # on CUDA, between two synchronisations


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The figures of benchmarks/README.md are for two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def compiled(benchmark: BenchmarkFixture, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.compile(function)``; where nothing is timed without code generation, which takes seconds."""
    return torch.compile(function, backend="eager" if benchmark.disabled else "inductor")


def limit(device: str, written: list[Tensor], read: int = 0) -> Callable[[], object]:
    """The least work that memory allows.

    Args:
        device: Where.
        written: What the operation writes.
        read: Bytes that it must read.

    Returns:
        On the CPU: fills fresh memory for ``written``. On CUDA: a copy that moves as many bytes as the
        operation, reads and writes together.
    """
    if device == "cpu":
        return lambda: [torch.empty_like(x).fill_(1) for x in written]
    moved = read + sum(x.nbytes for x in written)
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The most memory that torch held during a call, beyond what it held before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def record(benchmark: BenchmarkFixture, function: Callable[[], object], device: str = "cpu") -> None:
    """Times ``function``, which has run before, and notes its peak memory.

    On CUDA a round is many calls and one synchronisation, so that launches overlap as they do in a model;
    ``calls`` in the results says how many to divide by. With --benchmark-disable, one call and no more.
    """
    if benchmark.disabled:
        benchmark(function)
        return
    function()
    benchmark.extra_info["peak_mb"] = round(peak_bytes(function, device) / 1e6, 3)
    if device == "cpu":
        benchmark(function)
        return

    def calls() -> None:
        for _ in range(CALLS_PER_ROUND):
            function()
        torch.cuda.synchronize()

    benchmark.extra_info["calls"] = CALLS_PER_ROUND
    benchmark.pedantic(calls, rounds=20, warmup_rounds=2)
