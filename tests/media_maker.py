"""Small media files for tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def tone(frequency: float, seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A sine of amplitude 0.5, float32 [channels, T]."""
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None], channels, axis=0).astype(np.float32)


def grey_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames whose brightness tells their number: 10 apart."""
    return [np.full((height, width, 3), 10 + 10 * index, np.uint8) for index in range(count)]


def write_media(
    path: Path,
    frames: list[np.ndarray] | None = None,
    times: list[float] | None = None,
    fps: int = 4,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    sound_start: float = 0.0,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    sound_codec: str = "aac",
) -> Path:
    """Encode frames (at ``times`` in seconds or at ``fps``) and sound [channels, T]."""
    with av.open(str(path), "w", options=options or {}) as container:
        video: Any = (
            container.add_stream(codec, fps, options=codec_options or {"crf": "10"}) if frames else None
        )
        audio: Any = None
        if sound is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = container.add_stream(sound_codec, rate, layout=layout)
        if frames:
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = pix_fmt
            if times:
                video.codec_context.time_base = Fraction(1, 1000)
            for index, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = round(times[index] * 1000) if times else index
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            frame.sample_rate = rate
            frame.pts = round(sound_start * rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def turned(path: Path, out: Path, degrees: int) -> Path:
    """Copy an MP4 with one video track, with metadata that asks a player to turn it clockwise."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 1]) * np.array([1 << 16] * 8 + [1 << 30])
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the transformation matrix of a version 0 track header
    data[at : at + 36] = matrix.astype(">i4").tobytes()
    out.write_bytes(data)
    return out
