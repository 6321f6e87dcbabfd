"""What the benchmarks share: two threads, one device at a time, and memory figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The figures of benchmarks/README.md are for two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that torch held for CPU tensors during a call, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def record(benchmark: pytest.FixtureRequest, function: Callable[[], object]) -> None:
    """Times ``function`` after one warm-up, and notes its peak memory."""
    function()
    benchmark.extra_info["peak_mb"] = round(peak_bytes(function) / 1e6, 3)
    benchmark(function)
