"""The child process that calls are made in."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator

import pytest

from avfast import sandbox
from avfast.sandbox import Limits, pack, run


def count(number: int) -> Iterator[tuple[int, int]]:
    for index in range(number):
        yield index, os.getpid()


def crash_after(number: int) -> Iterator[int]:
    yield from range(number)
    ctypes.string_at(0)


def work(seconds: float, items: int) -> Iterator[int]:
    for index in range(items):
        time.sleep(seconds)
        yield index


def take(size: int) -> Iterator[int]:
    yield len(bytearray(size))


def fail(error: Exception) -> Iterator[None]:
    yield None
    raise error


class Stubborn(Exception):
    """Cannot be made from its text alone."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def fail_stubbornly() -> Iterator[None]:
    yield None
    raise Stubborn("a", "b")


LIMITS = Limits()


def test_one_child_serves_many_calls() -> None:
    first = run(pack(count, 3), LIMITS).read()
    assert [index for index, _ in first] == [0, 1, 2]
    assert first[0][1] != os.getpid()
    assert run(pack(count, 3), LIMITS).read() == first


def test_a_crash_keeps_what_came_before() -> None:
    result = run(pack(crash_after, 2), LIMITS)
    assert result.read() == [0, 1]
    assert result.death == "crashed the decoder (SIGSEGV)"
    assert len(run(pack(count, 1), LIMITS).read()) == 1


def test_time_is_counted_from_item_to_item() -> None:
    assert run(pack(work, 0.4, 3), Limits(seconds=1.0)).read() == [0, 1, 2]
    assert run(pack(work, 60.0, 3), Limits(seconds=0.5)).death == "took longer than 0.5 s"


def test_memory() -> None:
    assert run(pack(take, 300 << 20), Limits(memory=1 << 30)).read() == [300 << 20]
    with pytest.raises(MemoryError):
        run(pack(take, 300 << 20), Limits(memory=200 << 20)).read()
    assert run(pack(take, 300 << 20), Limits(memory=1 << 30)).read() == [300 << 20]


def test_errors_come_through() -> None:
    with pytest.raises(OSError, match="No space") as raised:
        run(pack(fail, OSError(28, "No space left on device", "out")), LIMITS).read()
    assert (raised.value.errno, raised.value.filename) == (28, "out")
    with pytest.raises(RuntimeError, match="Stubborn: ab"):
        run(pack(fail_stubbornly), LIMITS).read()


def test_a_child_that_is_killed_or_idle_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = run(pack(count, 1), LIMITS).read()[0][1]
    os.kill(pid, signal.SIGKILL)
    assert "killed" in run(pack(count, 1), LIMITS).death
    child = sandbox._Child()
    monkeypatch.setattr(sandbox._mine, "child", child, raising=False)
    child.process.kill()  # in place of a long wait
    child.process.wait()
    child.process.returncode = 0
    assert len(run(pack(count, 1), LIMITS).read()) == 1
