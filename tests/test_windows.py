"""Cutting along time: windows hold what lies in them, cores tile the file, little is held at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avfast.data.media import SAMPLE_RATE
from avfast.data.windows import Window, cut


@dataclass(frozen=True)
class Tick:
    time: float


def ticks(seconds: float, every: float = 1.0) -> Iterator[Tick]:
    return (Tick(float(time)) for time in np.arange(0, seconds, every))


def ramp(seconds: float, block: int = 1000) -> Iterator[np.ndarray]:
    samples = np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32)
    return iter(np.split(samples, range(block, len(samples), block)))


def bounds(windows: list[Window[Tick]]) -> list[tuple[float, float]]:
    return [(window.start, window.end) for window in windows]


def test_what_is_hardly_longer_than_a_window_is_one_window() -> None:
    (only,) = cut(ticks(10), ramp(10.1), 10.0, 5.0)
    assert (only.start, only.end, only.core) == (0, 10.1, (0, 10.1))
    assert [frame.time for frame in only.frames] == list(range(10))
    assert len(only.sound) == round(10.1 * SAMPLE_RATE)
    (short,) = cut(ticks(3), iter(()), 10.0, 5.0)
    assert (short.end, len(short.frames), len(short.sound)) == (3, 3, 0)


def test_windows_overlap_by_the_hop_and_the_last_is_stretched() -> None:
    windows = list(cut(ticks(22), ramp(22), 10.0, 5.0))
    assert bounds(windows) == [(0, 10), (5, 15), (10, 22)]
    assert [window.core for window in windows] == [(0, 7.5), (7.5, 12.5), (12.5, 22)]
    assert windows[1].sound[0] == 5 * SAMPLE_RATE
    assert [frame.time for frame in windows[2].frames] == list(range(10, 22))
    assert bounds(list(cut(ticks(22), ramp(22), 10.0))) == [(0, 10), (10, 22)]
    assert bounds(list(cut(ticks(26), ramp(26), 10.0))) == [(0, 10), (10, 20), (20, 26)]


def test_a_stream_that_ends_early_leaves_the_other() -> None:
    windows = list(cut(ticks(12), ramp(4), 5.0))
    assert [len(window.sound) for window in windows] == [4 * SAMPLE_RATE, 0]
    assert [len(window.frames) for window in windows] == [5, 7]
    assert not list(cut(iter(()), iter(()), 5.0))


def test_time_stamps_that_jump_cost_no_empty_windows() -> None:
    windows = list(cut(iter([Tick(0.0), Tick(1e12)]), ramp(3), 10.0, 5.0))
    assert [len(window.frames) for window in windows] == [1, 1]
    assert windows[1].start <= 1e12 < windows[1].end


def test_no_more_is_read_than_a_window_needs() -> None:
    read: list[float] = []

    def watched() -> Iterator[Tick]:
        for tick in ticks(1e9, 1e7):
            read.append(tick.time)
            yield tick

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros(SAMPLE_RATE, np.float32)

    windows = cut(ticks(100_000), endless(), 10.0, 5.0)
    sizes = [len(next(windows).sound) for _ in range(50)]
    assert set(sizes) == {10 * SAMPLE_RATE}
    next(cut(watched(), ramp(1), 10.0))
    assert len(read) == 2


@given(
    st.lists(st.floats(0, 60), max_size=20).map(sorted),
    st.floats(0, 40),
    st.floats(1, 20),
    st.floats(0.2, 1),
)
@settings(deadline=None, max_examples=60)
def test_cores_hold_everything_once(
    times: list[float], sound_seconds: float, seconds: float, overlap: float
) -> None:
    sound = np.arange(round(sound_seconds * 100), dtype=np.float32)  # few samples: a second is 1/160 of one
    windows = list(cut(iter([Tick(time) for time in times]), iter([sound]), seconds, seconds * overlap))
    owned = [f.time for w in windows for f in w.frames if w.core[0] <= f.time < w.core[1]]
    assert owned == times
    for before, after in pairwise(windows):
        assert before.core[1] <= after.core[0]
        assert after.start <= after.core[0] < after.core[1] <= after.end


@pytest.mark.parametrize(
    ("seconds", "hop"), [(0, None), (5, 6), (5, 0), (float("inf"), 1), (float("nan"), 1)]
)
def test_senseless_windows_are_refused(seconds: float, hop: float | None) -> None:
    with pytest.raises(ValueError, match="hop: expected"):
        next(cut(iter(()), iter(()), seconds, hop))
