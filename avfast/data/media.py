"""Frames and sound of one media file, whatever state the file is in."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from avfast.errors import InputError

SAMPLE_RATE = 16_000
"""Hz; of every waveform in the package."""

SAMPLE_RATES = range(1_000, 1_000_001)
"""Hz; sound that declares another rate is damaged, and would swell when resampled."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ogv", ".3gp"}
)
SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg"})
"""Files without picture, which soundfile reads."""

_CONTAINERS = "mov,mp4,matroska,webm,avi,flv,mpeg,mpegts,ogg,asf,wav,flac,mp3,aac,aiff,h264,hevc"
# Playlists are left out: they open other files.
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}

MAX_PIXELS = 100_000_000
"""A stream that declares larger frames is not decoded: such sizes come from damaged files."""

MAX_LEAD_SECONDS = 60.0
"""A sound track that starts later than this has damaged time stamps and is taken to start at 0."""

_BLOCK_VALUES = 1 << 20  # samples of all channels that are read of a sound file at once

_TIME_TOLERANCE = 1e-3  # seconds; time stamps are rounded to the container's clock
_REORDERING = 16  # frames; no common codec shows a frame further from where it is decoded
_SOUND_BLOCK = 1 << 14  # samples


@dataclass(frozen=True)
class Frame:
    """One picture of a video."""

    time: float
    """Seconds from the start of the file."""
    image: NDArray[np.uint8]
    """[h, w, 3], RGB, upright."""
    source_size: tuple[int, int]
    """(width, height) in pixels of the upright picture before it was made smaller."""


def read_frames(path: Path, fps: float = 1.0, long_side: int = 640) -> Iterator[Frame]:
    """Sample a video at a fixed rate.

    For each multiple of ``1 / fps`` this yields the first frame shown at that time or later; a frame is
    never yielded twice, so a video with fewer frames than that gives all of them. Damaged packets are
    passed over. Frames are decoded as the iterator advances, so memory does not grow with the video.

    Args:
        path: The video.
        fps: Frames per second of video.
        long_side: Larger pictures are scaled down to this many pixels on their longer side.

    Yields:
        Frames in the order of time. None where the file has no picture, or none that can be decoded.

    Raises:
        InputError: When the file cannot be opened as media.
    """
    with _open(path) as container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            return
        origin = _start_seconds(container)
        sample = 0
        for frame in _decode_sparsely(container, streams[0], fps, origin):
            time = _seconds(frame, origin)
            time = sample / fps if time is None else time
            if _period(time, fps) >= sample:
                yield _upright(frame, time, long_side)
                sample = _period(time, fps) + 1


def declared_seconds(path: Path) -> float | None:
    """How long a file says that it is, before anything is decoded; None where it does not say.

    Raises:
        InputError: When the file cannot be opened as media.
    """
    with _open(path) as container:
        return container.duration / av.time_base if container.duration else None


def read_sound(path: Path) -> NDArray[np.float32]:
    """Read a file's sound as one channel.

    Args:
        path: A wav, flac or ogg file, or a video, whose first sound track is taken.

    Returns:
        float32 [T] at 16 kHz, about -1 to 1; time 0 is the start of the file. Empty where the file has no
        sound, or none that can be decoded.

    Raises:
        InputError: When the file cannot be opened as media.
    """
    return np.concatenate([np.zeros(0, np.float32), *sound_blocks(path)])


def sound_blocks(path: Path) -> Iterator[NDArray[np.float32]]:
    """Read a file's sound block by block, so that memory does not grow with its length.

    Args:
        path: As for ``read_sound``.

    Yields:
        float32 [n]: pieces of what ``read_sound`` returns, one after the other; n varies.

    Raises:
        InputError: When the file cannot be opened as media, declares an impossible sample rate, or
            is a sound file that breaks off.
    """
    blocks = _sound_file_blocks if path.suffix.lower() in SOUND_SUFFIXES else _track_blocks
    return map(_finite, blocks(path))


def _sound_file_blocks(path: Path) -> Iterator[NDArray[np.float32]]:
    _require_content(path)
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate not in SAMPLE_RATES:
                raise InputError(f"{path}: declares a sample rate of {file.samplerate} Hz")
            resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
            length = max(1, _BLOCK_VALUES // file.channels)
            for block in file.blocks(length, dtype="float32", always_2d=True):
                yield resampler.resample_chunk(_finite(block).mean(axis=1))
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: cannot be read as sound: {error.error_string}") from error


def _track_blocks(path: Path) -> Iterator[NDArray[np.float32]]:
    with _open(path) as container:
        if not container.streams.audio:
            return
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        waiting = av.AudioFifo()  # a call of the resampler costs more than the few samples of one frame
        origin, begun = _start_seconds(container), False
        for frame in _decode(container, container.streams.audio[0]):
            if frame.sample_rate not in SAMPLE_RATES:
                continue
            if not begun:
                yield _silence(_seconds(frame, origin) or 0.0)
            begun = True
            frame.pts = None
            with suppress(ValueError):  # a track whose layout changes midway
                waiting.write(frame)
            if waiting.samples >= _SOUND_BLOCK:
                yield from _resample(resampler, waiting.read())
        if begun:
            yield from _resample(resampler, waiting.read())
            yield from _resample(resampler, None)


def _resample(resampler: Any, frame: Any) -> Iterator[NDArray[np.float32]]:
    with suppress(av.error.FFmpegError, ValueError):
        yield from [block.to_ndarray()[0] for block in resampler.resample(frame)]


def _silence(seconds: float) -> NDArray[np.float32]:
    """What fills the time before a late sound track."""
    late = _TIME_TOLERANCE < seconds <= MAX_LEAD_SECONDS
    return np.zeros(round(seconds * SAMPLE_RATE) if late else 0, np.float32)


def _finite(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float tracks may hold NaN or infinity, which no later step survives."""
    return np.nan_to_num(waveform.astype(np.float32, copy=False), nan=0.0, posinf=0.0, neginf=0.0)


def _require_content(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    _require_content(path)
    try:
        # An absolute path is never taken for a URL.
        container = av.open(str(path.absolute()), options=_OPEN_OPTIONS, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as video or sound: {_reason(error)}") from error
    with container:
        yield container


def _packets(container: Any, stream: Any, **codec_options: int) -> Iterator[Any]:
    """The packets of one stream, up to where the file is damaged beyond reading."""
    if stream.codec_context is None:  # FFmpeg knows no decoder of that name
        return
    with suppress(av.error.FFmpegError):
        stream.codec_context.thread_count = 1  # clips are the unit of parallel work
        stream.codec_context.options = {name: str(value) for name, value in codec_options.items()}
        yield from container.demux(stream)


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of one stream; what is damaged is passed over, what lies after the damage is kept."""
    for packet in _packets(container, stream):
        with suppress(av.error.FFmpegError):
            yield from packet.decode()


def _decode_sparsely(container: Any, stream: Any, fps: float, origin: float) -> Iterator[Any]:
    """Frames of a video, among them the first of each period of ``1 / fps``.

    The others are decoded only where a frame may be predicted from them: half of an H.264 video, nothing
    of a codec that predicts nothing.
    """
    after_damage = False  # the next frame that can be decoded may have to stand in for the first one
    for packet, opens in _period_openers(_packets(container, stream, max_pixels=MAX_PIXELS), fps, origin):
        codec = stream.codec_context
        after_damage = after_damage and not opens
        if opens or after_damage:
            codec.skip_frame = "DEFAULT"
        elif codec.codec.intra_only:
            continue
        else:
            codec.skip_frame = "NONREF"
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            after_damage = True


def _period_openers(packets: Iterator[Any], fps: float, origin: float) -> Iterator[tuple[Any, bool]]:
    """Each packet, and whether its frame may be the first that is shown in its period.

    Packets come in the order of decoding; the one shown just before another is among its neighbours. Where it
    is not, or a time is unknown, the answer is yes.
    """
    window: deque[tuple[Any, float | None]] = deque()
    times: list[float] = []  # of the window, sorted
    for packet in chain(packets, repeat(None, _REORDERING)):
        time = None if packet is None else _seconds(packet, origin)
        window.append((packet, time))
        if time is not None:
            insort(times, time)
        if len(window) > 2 * _REORDERING:
            _, oldest = window.popleft()
            if oldest is not None:
                del times[bisect_left(times, oldest)]
        if len(window) > _REORDERING:
            current, shown = window[-1 - _REORDERING]
            place = 0 if shown is None else bisect_left(times, shown)
            yield current, shown is None or not place or _period(times[place - 1], fps) < _period(shown, fps)


def _seconds(item: Any, origin: float) -> float | None:
    """When a frame, or the frame in a packet, is shown; None where the file does not say."""
    if item.pts is None or not item.time_base:
        return None
    return max(0.0, item.pts * item.time_base.numerator / item.time_base.denominator - origin)


def _period(time: float, fps: float) -> int:
    """Number of the period of ``1 / fps`` seconds that a time lies in."""
    return int((time + _TIME_TOLERANCE) * fps)


def _upright(frame: Any, time: float, long_side: int) -> Frame:
    """Scale, convert to RGB, and turn as the rotation metadata asks."""
    scale = min(1.0, long_side / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    rgb = frame.reformat(width, height, format="rgb24", interpolation="AREA", threads=1)
    image = rgb.to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    size = (frame.height, frame.width) if quarter_turns % 2 else (frame.width, frame.height)
    return Frame(time, np.ascontiguousarray(np.rot90(image, quarter_turns)), size)


def _is_cover(stream: Any) -> bool:
    """Cover art of a music file is stored as a video stream of one picture."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _start_seconds(container: Any) -> float:
    return container.start_time / av.time_base if container.start_time is not None else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
