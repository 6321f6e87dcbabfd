"""Writes pictures and sound as an MP4 file that every browser and player opens."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from avfast.data.media import SAMPLE_RATE

TimedPicture = tuple[float, NDArray[np.uint8]]
"""Seconds, and [H, W, 3], RGB."""

_CLOCK = Fraction(1, 1000)  # seconds; of the pictures' time stamps
_KEY_FRAME_EVERY = 24  # pictures; a player can seek to a key frame at once


def write_mp4(
    file: BinaryIO,
    pictures: Iterator[TimedPicture],
    sound: Iterator[NDArray[np.float32]],
    seconds_per_picture: float,
    crf: int = 26,
) -> None:
    """Encode H.264 and AAC, interleaved; memory does not grow with the length.

    Args:
        file: Open for writing and seekable.
        pictures: In the order of time, of one size; may be none. An odd side is scaled by a pixel, which the
            codec demands.
        sound: Blocks of float32 at 16 kHz, one after the other from time 0 on; may be none.
        seconds_per_picture: How long the last picture stays, and about how long each one does.
        crf: Quality of the picture, 0 to 51; the lower the better.

    Raises:
        ValueError: There is neither a picture nor sound.
    """
    first_picture, first_block = next(pictures, None), next(sound, None)
    if first_picture is None and first_block is None:
        raise ValueError("expected pictures or sound, got neither")
    with av.open(file, "w", format="mp4") as container:
        tracks: list[Iterator[float]] = []
        if first_picture is not None:
            stream = _video_stream(container, first_picture[1], seconds_per_picture, crf)
            tracks.append(_write_pictures(container, stream, first_picture, pictures, seconds_per_picture))
        if first_block is not None:
            stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=48_000)
            tracks.append(_write_sound(container, stream, first_block, sound))
        reached = [next(track) for track in tracks]
        while tracks:  # always the track that is behind
            behind = reached.index(min(reached))
            try:
                reached[behind] = next(tracks[behind])
            except StopIteration:
                del tracks[behind], reached[behind]


def _video_stream(container: Any, picture: NDArray[np.uint8], seconds_per_picture: float, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=Fraction(1 / seconds_per_picture).limit_denominator(1000))
    height, width = picture.shape[:2]
    stream.width, stream.height = (max(2, side // 2 * 2) for side in (width, height))
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = _CLOCK
    stream.options = {"crf": str(crf), "preset": "veryfast", "g": str(_KEY_FRAME_EVERY), "bf": "0"}
    return stream


def _write_pictures(
    container: Any,
    stream: Any,
    first: TimedPicture,
    rest: Iterator[TimedPicture],
    seconds_per_picture: float,
) -> Iterator[float]:
    """Yields the time that the track has reached."""
    tick, time, picture = -1, *first
    for time, picture in chain([first], rest):
        tick = max(tick + 1, round(time / _CLOCK))
        _encode_picture(container, stream, picture, tick)
        yield time
    # MP4 gives the last picture no length of its own: repeated, it stays.
    end = round((time + seconds_per_picture) / _CLOCK)
    _encode_picture(container, stream, picture, max(tick + 1, end))
    container.mux(stream.encode(None))


def _encode_picture(container: Any, stream: Any, picture: NDArray[np.uint8], tick: int) -> None:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
    frame.pts, frame.time_base = tick, _CLOCK
    container.mux(stream.encode(frame))


def _write_sound(
    container: Any, stream: Any, first: NDArray[np.float32], rest: Iterator[NDArray[np.float32]]
) -> Iterator[float]:
    """Yields the time that the track has reached."""
    samples = 0
    for block in chain([first], rest):
        if len(block):
            waveform = np.ascontiguousarray(block[None])
            frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, samples, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
            samples += len(block)
        yield samples / SAMPLE_RATE
    container.mux(stream.encode(None))
