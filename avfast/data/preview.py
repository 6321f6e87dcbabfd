"""A file of any length at a glance, in bounded memory: small pictures and a coarse spectrogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from avfast.data import logmel
from avfast.data.clips import PreparedFrame
from avfast.data.media import SAMPLE_RATE
from avfast.data.opencv import cv2
from avfast.data.shards import decode_jpeg, encode_jpeg
from avfast.data.windows import Window

MAX_THUMBNAILS = 256
THUMBNAIL_SIDE = 320  # pixels, the longer side
MAX_ROWS = 4096  # of the spectrogram


@dataclass(frozen=True)
class Thumbnail:
    """A sampled frame, small."""

    time: float
    """Seconds."""
    jpeg: bytes

    @property
    def image(self) -> NDArray[np.uint8]:
        """[H, W, 3], RGB."""
        return decode_jpeg(self.jpeg)


class Preview:
    """Gathered window by window; detail is halved whenever there is too much of it."""

    def __init__(self) -> None:
        self.thumbnails: list[Thumbnail] = []
        """By time; every ``frame_stride``-th sampled frame."""
        self.frame_stride = 1
        self.spectrogram = np.zeros((0, logmel.MEL_BANDS), np.float32)
        """[T, mel bands], log-mel from the start of the file; a row is the mean over ``row_seconds``."""
        self.row_stride = 1
        self._frames = 0
        self._rows = 0
        self._rest = self.spectrogram

    @property
    def row_seconds(self) -> float:
        """Time from a row of ``spectrogram`` to the next."""
        return self.row_stride * logmel.HOP / SAMPLE_RATE

    def add(self, window: Window[PreparedFrame]) -> None:
        """Take in the core of the next window."""
        for frame in window.frames:
            if window.core[0] <= frame.time < window.core[1]:
                self._add_frame(frame)
        if len(window.sound) >= logmel.WINDOW:
            rows = logmel.log_mel(torch.from_numpy(window.sound)).numpy()
            first, end = (round(time * SAMPLE_RATE / logmel.HOP) for time in (window.start, window.core[1]))
            self._add_rows(rows[self._rows - first : end - first])

    def _add_frame(self, frame: PreparedFrame) -> None:
        if self._frames % self.frame_stride == 0:
            self.thumbnails.append(Thumbnail(round(frame.time, 6), _shrink(frame.jpeg)))
        self._frames += 1
        if len(self.thumbnails) > MAX_THUMBNAILS:
            self.thumbnails = self.thumbnails[::2]
            self.frame_stride *= 2

    def _add_rows(self, rows: NDArray[np.float32]) -> None:
        self._rows += len(rows)
        self._rest = np.concatenate([self._rest, rows])
        whole = len(self._rest) // self.row_stride * self.row_stride
        self.spectrogram = np.concatenate([self.spectrogram, _means(self._rest[:whole], self.row_stride)])
        self._rest = self._rest[whole:]
        while len(self.spectrogram) > MAX_ROWS:
            even = len(self.spectrogram) // 2 * 2
            self._rest = np.concatenate([self.spectrogram[even:].repeat(self.row_stride, axis=0), self._rest])
            self.spectrogram = _means(self.spectrogram[:even], 2)
            self.row_stride *= 2


def _means(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Means of ``count`` rows at a time."""
    return rows.reshape(-1, count, rows.shape[1]).mean(axis=1)


def _shrink(jpeg: bytes) -> bytes:
    image = decode_jpeg(jpeg)
    height, width = image.shape[:2]
    scale = THUMBNAIL_SIDE / max(width, height)
    if scale >= 1:
        return jpeg
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return encode_jpeg(np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8))
