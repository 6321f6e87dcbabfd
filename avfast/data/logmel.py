"""The log-mel examples that VGGish takes, from a waveform."""

from __future__ import annotations

import math
from functools import cache

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
EXAMPLE_HOP_FRAMES = EXAMPLE_FRAMES // 2
EXAMPLE_SECONDS = EXAMPLE_FRAMES * HOP / SAMPLE_RATE
EXAMPLE_HOP_SECONDS = EXAMPLE_HOP_FRAMES * HOP / SAMPLE_RATE

EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * HOP + WINDOW  # fewer samples do not fill one example
MIN_SAMPLES = EXAMPLE_HOP_FRAMES * HOP  # half an example


class VGGishLogMel:
    """Audio front end of VGGish (Hershey et al., ICASSP 2017): log-mel examples of 0.96 s every 0.48 s.

    Periodic Hann window of 25 ms every 10 ms, magnitude of a 512-point FFT without centring, 64 HTK mel
    bands from 125 to 7500 Hz, ``ln(mel + 0.01)``.
    """

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
        if waveform.ndim != 1:
            raise ValueError(f"waveform: expected one channel [T], got shape {list(waveform.shape)}")
        if len(waveform) < MIN_SAMPLES:
            return torch.zeros(0, EXAMPLE_FRAMES, MEL_BANDS)
        if len(waveform) < EXAMPLE_SAMPLES:
            waveform = torch.nn.functional.pad(waveform, (0, EXAMPLE_SAMPLES - len(waveform)))
        examples = log_mel(waveform).unfold(0, EXAMPLE_FRAMES, EXAMPLE_HOP_FRAMES)
        return examples.transpose(1, 2).contiguous()

    def segments(self, count: int) -> Tensor:
        """float32 [count, 2]: start and end in seconds of the first ``count`` examples."""
        start = torch.arange(count) * EXAMPLE_HOP_SECONDS
        return torch.stack([start, start + EXAMPLE_SECONDS], dim=1).float()


def log_mel(waveform: Tensor) -> Tensor:
    """``ln(mel + 0.01)`` of the magnitude spectrum.

    Args:
        waveform: float [T] at 16 kHz with T >= 400.

    Returns:
        float32 [1 + (T - 400) // 160, 64].
    """
    frames = waveform.float().unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    magnitude = torch.fft.rfft(frames, n=N_FFT).abs()
    return torch.log(magnitude @ mel_matrix() + LOG_OFFSET)


@cache
def mel_matrix() -> Tensor:
    """Weights of the FFT's bins in each mel band, float32 [257, 64].

    A band is a triangle over the mel scale (linear in mel, not in Hz) between its neighbours' centres, with
    peak 1; the DC bin has no weight.
    """
    bins = _hz_to_mel(torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64))
    lowest, highest = _hz_to_mel(torch.tensor([MEL_MIN_HZ, MEL_MAX_HZ], dtype=torch.float64))
    edges = torch.linspace(lowest, highest, MEL_BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    weights = torch.minimum(rising, falling).clamp(min=0)
    weights[0] = 0
    return weights.float()


def _hz_to_mel(hz: Tensor) -> Tensor:
    """The HTK mel scale."""
    return 1127.0 * torch.log1p(hz / 700.0)
