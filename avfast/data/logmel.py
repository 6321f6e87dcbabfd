"""Audio front ends: the log-mel instances that a network takes, from a waveform."""

from __future__ import annotations

import math
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

SAMPLE_RATE = 16_000  # Hz
WINDOW = round(0.025 * SAMPLE_RATE)  # samples under one Hann window
HOP = round(0.010 * SAMPLE_RATE)  # samples from one frame to the next
N_FFT = 1 << math.ceil(math.log2(WINDOW))
MEL_BANDS = 64
MEL_MIN_HZ, MEL_MAX_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01

EXAMPLE_FRAMES = round(0.96 * SAMPLE_RATE / HOP)
EXAMPLE_SECONDS = EXAMPLE_FRAMES * HOP / SAMPLE_RATE
EXAMPLE_HOP_SECONDS = EXAMPLE_SECONDS / 2

EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * HOP + WINDOW  # fewer samples do not fill one example
MIN_SAMPLES = EXAMPLE_FRAMES * HOP // 2  # half an example

CRNN_WINDOW = 1024  # samples under one Hamming window
CRNN_HOP = 664  # samples; ten seconds give 240 frames
CRNN_LOG_OFFSET = 1e-8


class FrontEnd(Protocol):
    """What turns a waveform into the instances of an audio bag."""

    def __call__(self, waveform: Tensor) -> Tensor:
        """float32 [T] at 16 kHz to [A, ...]."""

    def segments(self, count: int) -> Tensor:
        """float32 [count, 2]: start and end of the instances in seconds."""


class VGGishLogMel:
    """Front end of VGGish (Hershey et al., ICASSP 2017): log-mel examples of 0.96 s, every 0.48 s by default.

    Periodic Hann window of 25 ms every 10 ms, magnitude of a 512-point FFT without centring, 64 HTK mel
    bands from 125 to 7500 Hz, ``ln(mel + 0.01)``.
    """

    def __init__(self, hop_seconds: float = EXAMPLE_HOP_SECONDS) -> None:
        """Args:
        hop_seconds: From one example to the next, rounded to frames of 10 ms; at least one.
        """
        self.hop_frames = max(1, round(hop_seconds * SAMPLE_RATE / HOP))

    def __call__(self, waveform: Tensor) -> Tensor:
        """Cut a waveform into examples.

        Args:
            waveform: float [T] at 16 kHz, -1 to 1. Sound between half an example (0.48 s) and a whole one
                is filled up with silence; shorter sound gives no example.

        Returns:
            float32 [A, 96, 64]: time, then mel band from low to high.

        Raises:
            ValueError: When the waveform is not one-dimensional.
        """
        _check(waveform)
        if len(waveform) < MIN_SAMPLES:
            return torch.zeros(0, EXAMPLE_FRAMES, MEL_BANDS)
        if len(waveform) < EXAMPLE_SAMPLES:
            waveform = torch.nn.functional.pad(waveform, (0, EXAMPLE_SAMPLES - len(waveform)))
        examples = log_mel(waveform).unfold(0, EXAMPLE_FRAMES, self.hop_frames)
        return examples.transpose(1, 2).contiguous()

    def segments(self, count: int) -> Tensor:
        """float32 [count, 2]: start and end in seconds of the first ``count`` examples."""
        start = torch.arange(count) * (self.hop_frames * HOP / SAMPLE_RATE)
        return torch.stack([start, start + EXAMPLE_SECONDS], dim=1).float()


class CRNNLogMel:
    """Front end of CVSSP's gated CRNN (Xu et al., ICASSP 2018): one log-mel frame every 41.5 ms.

    Hamming window of 1024 samples every 664, magnitude without centring, 64 mel bands from 0 to 8000 Hz,
    ``ln(mel + 1e-8)``; the network standardises each band.
    """

    def __call__(self, waveform: Tensor) -> Tensor:
        """The frames of a waveform.

        Args:
            waveform: float [T] at 16 kHz, -1 to 1; sound shorter than a window gives no frame.

        Returns:
            float32 [A, 64] with A = 1 + (T - 1024) // 664, mel band from low to high.

        Raises:
            ValueError: When the waveform is not one-dimensional.
        """
        _check(waveform)
        if len(waveform) < CRNN_WINDOW:
            return torch.zeros(0, MEL_BANDS)
        window = torch.hamming_window(CRNN_WINDOW, periodic=False)
        weights = mel_matrix(CRNN_WINDOW, 0.0, SAMPLE_RATE / 2)
        return torch.log(_magnitude(waveform, window, CRNN_HOP, CRNN_WINDOW) @ weights + CRNN_LOG_OFFSET)

    def segments(self, count: int) -> Tensor:
        """float32 [count, 2]: start and end in seconds of the first ``count`` frames."""
        start = torch.arange(count) * (CRNN_HOP / SAMPLE_RATE)
        return torch.stack([start, start + CRNN_WINDOW / SAMPLE_RATE], dim=1).float()


def log_mel(waveform: Tensor) -> Tensor:
    """VGGish's ``ln(mel + 0.01)`` of the magnitude spectrum.

    Args:
        waveform: float [T] at 16 kHz with T >= 400.

    Returns:
        float32 [1 + (T - 400) // 160, 64].
    """
    return torch.log(_magnitude(waveform, torch.hann_window(WINDOW), HOP, N_FFT) @ mel_matrix() + LOG_OFFSET)


@cache
def mel_matrix(n_fft: int = N_FFT, min_hz: float = MEL_MIN_HZ, max_hz: float = MEL_MAX_HZ) -> Tensor:
    """Weights of the FFT's bins in each of 64 mel bands, float32 [n_fft // 2 + 1, 64].

    A band is a triangle over the mel scale (linear in mel, not in Hz) between its neighbours' centres, with
    peak 1; the DC bin has no weight.
    """
    bins = _hz_to_mel(torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1, dtype=torch.float64))
    lowest, highest = _hz_to_mel(torch.tensor([min_hz, max_hz], dtype=torch.float64))
    edges = torch.linspace(lowest, highest, MEL_BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    weights = torch.minimum(rising, falling).clamp(min=0)
    weights[0] = 0
    return weights.float()


def _check(waveform: Tensor) -> None:
    if waveform.ndim != 1:
        raise ValueError(f"waveform: expected one channel [T], got shape {list(waveform.shape)}")


def _magnitude(waveform: Tensor, window: Tensor, hop: int, n_fft: int) -> Tensor:
    """Spectra of all windows that lie wholly inside, [frames, n_fft // 2 + 1]."""
    return torch.fft.rfft(waveform.float().unfold(0, len(window), hop) * window, n=n_fft).abs()


def _hz_to_mel(hz: Tensor) -> Tensor:
    """The HTK mel scale."""
    return 1127.0 * torch.log1p(hz / 700.0)
