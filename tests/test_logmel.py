"""The VGGish front end against numbers worked out by hand, and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avfast.data import logmel
from avfast.data.logmel import VGGishLogMel, log_mel, mel_matrix

RATE = 16_000
front_end = VGGishLogMel()


def slow_log_mel(waveform: np.ndarray) -> np.ndarray:
    """Frame by frame, bin by bin, in float64."""
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)]
    mel = lambda hz: 1127 * math.log(1 + hz / 700)  # noqa: E731
    edges = [mel(125) + (mel(7500) - mel(125)) * i / 65 for i in range(66)]
    rows = []
    for start in range(0, len(waveform) - 400 + 1, 160):
        spectrum = np.abs(np.fft.rfft(waveform[start : start + 400] * hann, 512))
        row = [0.0] * 64
        for k in range(1, 257):
            position = mel(k * RATE / 512)
            for band in range(64):
                low, centre, high = edges[band : band + 3]
                weight = min((position - low) / (centre - low), (high - position) / (high - centre))
                row[band] += max(0.0, weight) * spectrum[k]
        rows.append([math.log(value + 0.01) for value in row])
    return np.array(rows)


def test_equals_the_plain_loop() -> None:
    waveform = np.random.default_rng(0).uniform(-1, 1, 2000)
    ours = log_mel(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(ours, slow_log_mel(waveform), atol=2e-5)


def test_constants() -> None:
    assert (logmel.WINDOW, logmel.HOP, logmel.N_FFT) == (400, 160, 512)
    assert (logmel.EXAMPLE_FRAMES, front_end.hop_frames, logmel.EXAMPLE_SAMPLES) == (96, 48, 15600)


def test_silence_is_the_logarithm_of_the_offset() -> None:
    examples = front_end(torch.zeros(RATE))
    torch.testing.assert_close(examples, torch.full((1, 96, 64), math.log(0.01)))


def test_sine_by_hand() -> None:
    """A sine at the centre of FFT bin 32 (1000 Hz).

    The periodic Hann window sums to 200, so bin 32 has magnitude A * 100 and no other bin exceeds it. 1000 Hz
    lies at 999.99 mel; the bands' centres are 39.82 mel apart, number 0 at 225 mel, so number 19 at 981.6 mel
    is the nearest.
    """
    amplitude = 0.5
    time = torch.arange(400) / RATE
    row = log_mel(amplitude * torch.sin(2 * math.pi * 1000 * time))[0]
    mel = lambda hz: 1127 * math.log1p(hz / 700)  # noqa: E731
    spacing = (mel(7500) - mel(125)) / 65
    nearest = round((mel(1000) - mel(125)) / spacing) - 1
    assert row.argmax() == nearest == 19
    weight = 1 - abs(mel(1000) - (mel(125) + (nearest + 1) * spacing)) / spacing
    assert mel_matrix()[32, nearest] == pytest.approx(weight, abs=1e-5)
    assert row[nearest] > math.log(amplitude * 100 * weight)


def test_mel_matrix() -> None:
    weights = mel_matrix()
    assert weights.shape == (257, 64)
    assert weights.min() == 0
    assert weights.max() <= 1
    assert weights[0].sum() == 0  # DC
    assert weights[:4].sum() == 0  # up to 93.75 Hz, below the lowest band
    assert weights[241:].sum() == 0  # from 7531 Hz, above the highest
    # Between the first and last centres, the two triangles over a bin add up to one.
    torch.testing.assert_close(weights[8:230].sum(dim=1), torch.ones(222), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("samples", "count"),
    [(0, 0), (1, 0), (7679, 0), (7680, 1), (15_599, 1), (15_600, 1), (23_279, 1), (23_280, 2), (160_000, 19)],
)
def test_how_many_examples(samples: int, count: int) -> None:
    examples = front_end(torch.ones(samples))
    assert examples.shape == (count, 96, 64)
    assert examples.dtype == torch.float32
    assert front_end.segments(count).shape == (count, 2)


def test_examples_overlap_by_half_and_keep_time() -> None:
    waveform = torch.rand(RATE * 3, generator=torch.Generator().manual_seed(0)) - 0.5
    frames, examples = log_mel(waveform), front_end(waveform)
    for index in range(len(examples)):
        torch.testing.assert_close(examples[index], frames[48 * index : 48 * index + 96])


def test_segments_in_seconds() -> None:
    expected = torch.tensor([[0, 0.96], [0.48, 1.44], [0.96, 1.92]])
    torch.testing.assert_close(front_end.segments(3), expected)


def test_short_sound_is_filled_up_with_silence() -> None:
    waveform = torch.rand(8000)
    padded = torch.cat([waveform, torch.zeros(7600)])
    torch.testing.assert_close(front_end(waveform), front_end(padded))


@pytest.mark.parametrize("shape", [(1, 16_000), ()])
def test_waveform_must_have_one_channel(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="waveform: expected one channel"):
        front_end(torch.zeros(shape))


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(0, 40_000), scale=st.floats(0, 1e6))
def test_every_waveform_gives_finite_examples(samples: int, scale: float) -> None:
    waveform = scale * torch.sin(torch.arange(samples) * 0.1)
    examples = front_end(waveform)
    assert torch.isfinite(examples).all()
    assert front_end.segments(len(examples)).shape == (len(examples), 2)


# --- the gated CRNN's frames ------------------------------------------------------------------------


def test_ten_seconds_are_240_crnn_frames() -> None:
    crnn = logmel.CRNNLogMel()
    assert crnn(torch.zeros(10 * RATE)).shape == (240, 64)
    assert [len(crnn(torch.zeros(samples))) for samples in (0, 1023, 1024, 1687, 1688)] == [0, 0, 1, 1, 2]
    torch.testing.assert_close(crnn.segments(2), torch.tensor([[0.0, 0.064], [0.0415, 0.1055]]))
    with pytest.raises(ValueError, match="waveform: expected one channel"):
        crnn(torch.zeros(2, RATE))


def test_crnn_values_of_an_impulse_and_of_silence() -> None:
    """An impulse's magnitude is its window's value at every frequency, so a band's is the band's weight."""
    waveform = torch.zeros(1024)
    waveform[300] = 0.5
    level = 0.5 * (0.54 - 0.46 * math.cos(2 * math.pi * 300 / 1023))
    expected = torch.log(level * logmel.mel_matrix(1024, 0.0, 8000.0).sum(0) + 1e-8)
    torch.testing.assert_close(logmel.CRNNLogMel()(waveform)[0], expected, rtol=1e-4, atol=1e-4)
    silence = logmel.CRNNLogMel()(torch.zeros(1024))
    torch.testing.assert_close(silence, torch.full((1, 64), math.log(1e-8)))


def test_a_shorter_hop_gives_more_examples() -> None:
    dense = logmel.VGGishLogMel(hop_seconds=0.24)
    waveform = torch.randn(2 * RATE)
    assert torch.equal(dense(waveform)[::2], front_end(waveform))
    torch.testing.assert_close(dense.segments(2)[1], torch.tensor([0.24, 1.20]))
