"""Media of any length cut along time into windows, one in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from avfast.data.media import SAMPLE_RATE


class Timed(Protocol):
    """Anything that stands for one sampled frame."""

    @property
    def time(self) -> float:
        """Seconds from the start of the file."""


F = TypeVar("F", bound=Timed)


@dataclass(frozen=True)
class Window(Generic[F]):
    """One stretch of a file."""

    start: float
    """Seconds from the start of the file."""
    end: float
    """Seconds; where the file ends earlier, that is the end."""
    core: tuple[float, float]
    """Start and end, in seconds, of the time to which no window lies more centrally. The cores of a file's
    windows do not overlap, and hold every frame and sample of it."""
    frames: list[F]
    """In the order of time; ``start <= time < end``."""
    sound: NDArray[np.float32]
    """[T] at 16 kHz from ``start`` on."""


def cut(
    frames: Iterator[F],
    sound: Iterator[NDArray[np.float32]],
    seconds: float,
    hop: float | None = None,
    frame_seconds: float = 1.0,
) -> Iterator[Window[F]]:
    """Cut a file into windows that start at multiples of ``hop``.

    Rather than leaving a rest of less than half a hop, the last window is that much longer than the others;
    so what is hardly longer than one window is one window. Windows that hold nothing are left out.

    Args:
        frames: In the order of time, as ``media.read_frames`` gives them.
        sound: Blocks at 16 kHz, as ``media.sound_blocks`` gives them.
        seconds: Length of a window.
        hop: From the start of one window to the next, at most ``seconds``; by default windows do not overlap.
        frame_seconds: How long the last frame is shown.

    Yields:
        The windows in the order of time. Both inputs are read no further than a window needs.

    Raises:
        ValueError: When ``seconds`` or ``hop`` makes no sense.
    """
    hop = seconds if hop is None else hop
    if not 0 < hop <= seconds < np.inf:
        raise ValueError(f"hop: expected 0 < hop <= seconds, got hop {hop} and seconds {seconds}")
    pictures, track = _Pictures(frames, frame_seconds), _Track(sound)
    start, core_start, last = 0.0, 0.0, False
    while not last:
        end = start + seconds
        pictures.read_to(end + hop / 2)
        track.read_to(end + hop / 2)
        last = max(pictures.end, track.end) <= end + hop / 2
        end = max(pictures.end, track.end) if last else end
        core_end = end if last else end - (seconds - hop) / 2
        shown, heard = pictures.between(start, end), track.between(start, end)
        if shown or len(heard):
            yield Window(start, end, (core_start, core_end), shown, heard)
        start = _next_start(start, min(pictures.after(start + hop), track.after(start + hop)), seconds, hop)
        core_start = max(core_end, start)
        pictures.forget(start)
        track.forget(start)


def _next_start(start: float, content: float, seconds: float, hop: float) -> float:
    """Start of the first later window that reaches to ``content``, the time of what comes next."""
    index = round(start / hop) + 1
    if index * hop + seconds <= content < np.inf:  # time stamps jump
        index = int((content - seconds) // hop) + 1
    return index * hop


class _Pictures(Generic[F]):
    """The frames that a window may still need."""

    def __init__(self, frames: Iterator[F], frame_seconds: float) -> None:
        self.frames, self.frame_seconds = frames, frame_seconds
        self.held: deque[F] = deque()
        self.last = -np.inf
        self.end = 0.0  # how far the picture is known to go

    def read_to(self, time: float) -> None:
        """Read on until a frame later than ``time`` is held, or nothing is left."""
        while self.last <= time and (frame := next(self.frames, None)) is not None:
            self.held.append(frame)
            self.last, self.end = frame.time, frame.time + self.frame_seconds

    def between(self, start: float, end: float) -> list[F]:
        return [frame for frame in self.held if start <= frame.time < end]

    def after(self, start: float) -> float:
        """Time of the first frame from ``start`` on; infinity without any in sight."""
        return next((frame.time for frame in self.held if frame.time >= start), np.inf)

    def forget(self, start: float) -> None:
        while self.held and self.held[0].time < start:
            self.held.popleft()


class _Track:
    """The samples that a window may still need."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self.blocks = blocks
        self.held: deque[NDArray[np.float32]] = deque()
        self.first = 0  # position in the file of the first sample that is held
        self.position = 0

    @property
    def end(self) -> float:
        """Seconds, how far the sound is known to go."""
        return self.position / SAMPLE_RATE

    def read_to(self, time: float) -> None:
        """Read on until ``end`` exceeds ``time``, or nothing is left."""
        while self.end <= time and (block := next(self.blocks, None)) is not None:
            self.held.append(block)
            self.position += len(block)

    def between(self, start: float, end: float) -> NDArray[np.float32]:
        held = np.concatenate([np.zeros(0, np.float32), *self.held])
        bounds = (max(0, round(time * SAMPLE_RATE) - self.first) for time in (start, end))
        return held[slice(*bounds)]

    def after(self, start: float) -> float:
        return start if self.end > start else np.inf

    def forget(self, start: float) -> None:
        while self.held and self.first + len(self.held[0]) <= start * SAMPLE_RATE:
            self.first += len(self.held.popleft())
