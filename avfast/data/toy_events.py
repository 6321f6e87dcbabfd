"""What the events of the toy data set look like and sound like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from avfast.data.media import SAMPLE_RATE
from avfast.data.opencv import cv2

Canvas = NDArray[np.uint8]
Waveform = NDArray[np.float32]
Colour = tuple[int, int, int, int]

SPRITE = 96
"""Side of the square canvas, in pixels, that an object is drawn on before it is turned and scaled."""

_BLACK: Colour = (20, 20, 20, 255)
_WHITE: Colour = (245, 245, 245, 255)
_OUTLINE = 9  # pixels across; a dark rim sets the object off from any background
_ROTATION = 20.0  # degrees, either way
_COLOUR_JITTER = 35


def draw(sight: Callable[[Canvas, Colour], None], colour: Colour, side: int, rng: Generator) -> Canvas:
    """Draw one object, with its own shade of colour and turn.

    Args:
        sight: Draws on a transparent canvas [SPRITE, SPRITE, 4] (RGBA).
        colour: Its main colour, before jitter.
        side: Size of the picture to return.
        rng: Source of the jitter.

    Returns:
        uint8 [side, side, 4], RGBA.
    """
    canvas = np.zeros((SPRITE, SPRITE, 4), np.uint8)
    jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
    red, green, blue = np.clip(np.array(colour[:3]) + jitter, 0, 255).tolist()
    sight(canvas, (red, green, blue, 255))
    outline = cv2.dilate(canvas[..., 3], np.ones((_OUTLINE, _OUTLINE), np.uint8))
    canvas[(outline > 0) & (canvas[..., 3] == 0)] = _BLACK
    middle = (SPRITE / 2, SPRITE / 2)
    turn = cv2.getRotationMatrix2D(middle, rng.uniform(-_ROTATION, _ROTATION), 0.9)
    turned = cv2.warpAffine(canvas, turn, (SPRITE, SPRITE), flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(turned, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _polygon(canvas: Canvas, points: list[tuple[int, int]], colour: Colour) -> None:
    cv2.fillPoly(canvas, [np.array(points, np.int32)], colour)


def _siren_light(canvas: Canvas, colour: Colour) -> None:
    cv2.ellipse(canvas, (48, 60), (34, 48), 0, 180, 360, colour, -1)
    cv2.ellipse(canvas, (48, 58), (14, 30), 0, 180, 360, _WHITE, -1)
    cv2.rectangle(canvas, (8, 60), (88, 84), _BLACK, -1)


def _loudspeaker(canvas: Canvas, colour: Colour) -> None:
    _polygon(canvas, [(6, 36), (32, 36), (88, 6), (88, 90), (32, 60), (6, 60)], colour)
    cv2.line(canvas, (32, 36), (32, 60), _BLACK, 5)


def _striped_box(canvas: Canvas, colour: Colour) -> None:
    cv2.rectangle(canvas, (10, 10), (86, 86), colour, -1)
    for x in (22, 46, 70):
        cv2.rectangle(canvas, (x, 10), (x + 10, 86), _BLACK, -1)


def _car(canvas: Canvas, colour: Colour) -> None:
    cv2.rectangle(canvas, (4, 40), (92, 70), colour, -1)
    _polygon(canvas, [(20, 40), (32, 18), (66, 18), (78, 40)], colour)
    _polygon(canvas, [(29, 38), (36, 24), (62, 24), (69, 38)], _WHITE)
    for x in (24, 72):
        cv2.circle(canvas, (x, 70), 14, _BLACK, -1)


def _bell(canvas: Canvas, colour: Colour) -> None:
    cv2.circle(canvas, (48, 82), 9, _BLACK, -1)
    _polygon(canvas, [(34, 20), (62, 20), (72, 58), (90, 78), (6, 78), (24, 58)], colour)
    cv2.circle(canvas, (48, 18), 10, colour, -1)


def _ring(canvas: Canvas, colour: Colour) -> None:
    cv2.circle(canvas, (48, 48), 42, colour, -1)
    cv2.circle(canvas, (48, 48), 29, _WHITE, -1)
    cv2.circle(canvas, (48, 48), 16, _BLACK, -1)


def _drum(canvas: Canvas, colour: Colour) -> None:
    cv2.rectangle(canvas, (10, 28), (86, 72), colour, -1)
    cv2.ellipse(canvas, (48, 72), (38, 14), 0, 0, 360, colour, -1)
    cv2.ellipse(canvas, (48, 28), (38, 14), 0, 0, 360, _WHITE, -1)
    zigzag = np.array([(10, 44), (29, 80), (48, 50), (67, 80), (86, 44)], np.int32)
    cv2.polylines(canvas, [zigzag], False, _WHITE, 5)


def _bird(canvas: Canvas, colour: Colour) -> None:
    cv2.ellipse(canvas, (44, 56), (34, 22), 0, 0, 360, colour, -1)
    cv2.circle(canvas, (72, 32), 17, colour, -1)
    _polygon(canvas, [(86, 26), (95, 34), (86, 38)], _BLACK)
    _polygon(canvas, [(18, 50), (2, 26), (34, 42)], colour)
    _polygon(canvas, [(30, 52), (58, 52), (40, 74)], _WHITE)
    cv2.circle(canvas, (75, 29), 4, _BLACK, -1)


def _star(canvas: Canvas, colour: Colour) -> None:
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 18, 44)
    points = np.stack([48 + radii * np.sin(angles), 48 - radii * np.cos(angles)], axis=1)
    cv2.fillPoly(canvas, [points.astype(np.int32)], colour)


def _cross(canvas: Canvas, colour: Colour) -> None:
    cv2.rectangle(canvas, (36, 6), (60, 90), colour, -1)
    cv2.rectangle(canvas, (6, 36), (90, 60), colour, -1)


def _diamond(canvas: Canvas, colour: Colour) -> None:
    _polygon(canvas, [(48, 4), (86, 48), (48, 92), (10, 48)], colour)


SIGHTS: dict[str, tuple[Callable[[Canvas, Colour], None], Colour]] = {
    "beeper": (_striped_box, (250, 150, 30, 255)),
    "bell": (_bell, (215, 180, 40, 255)),
    "bird": (_bird, (60, 190, 170, 255)),
    "drum": (_drum, (190, 60, 170, 255)),
    "engine": (_car, (50, 140, 60, 255)),
    "horn": (_loudspeaker, (240, 230, 80, 255)),
    "siren": (_siren_light, (60, 90, 235, 255)),
    "whistle": (_ring, (225, 50, 50, 255)),
}
"""How each class looks."""

DISTRACTOR_SIGHTS = (_star, _cross, _diamond)
"""Objects of no class; they borrow the colours of the classes."""


def _time(seconds: float) -> Waveform:
    return (np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


def _sweep(frequency: Waveform) -> Waveform:
    """A sine whose frequency in Hz is given sample by sample."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE).astype(np.float32)


def _band_noise(seconds: float, low: float, high: float, rng: Generator) -> Waveform:
    """White noise between two frequencies in Hz."""
    samples = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def _siren(seconds: float, rng: Generator) -> Waveform:
    rate, phase = rng.uniform(0.8, 1.6), rng.uniform(0, 2 * np.pi)
    wobble = np.sin(2 * np.pi * rate * _time(seconds) + phase)
    base = 1000 + 400 * wobble
    return _sweep(base) + 0.4 * _sweep(2 * base)


def _horn(seconds: float, rng: Generator) -> Waveform:
    time, root = _time(seconds), rng.uniform(280, 340)
    partials = (np.sin(2 * np.pi * root * chord * n * time) / n for chord in (1, 1.26) for n in range(1, 9))
    return np.sum(list(partials), axis=0)


def _beeper(seconds: float, rng: Generator) -> Waveform:
    time, tone, rate = _time(seconds), rng.uniform(1100, 1500), rng.uniform(3, 5)
    gate = (time * rate) % 1 < 0.5
    return np.sin(2 * np.pi * tone * time) * gate


def _engine(seconds: float, rng: Generator) -> Waveform:
    time, rate = _time(seconds), rng.uniform(22, 38)
    firing = np.exp(-6 * ((time * rate) % 1))
    return firing * (_band_noise(seconds, 40, 700, rng) + 0.3 * np.sin(2 * np.pi * 3 * rate * time))


def _bell_strokes(seconds: float, rng: Generator) -> Waveform:
    time, root = _time(seconds), rng.uniform(480, 640)
    since_stroke = (time * rng.uniform(1.4, 2.2)) % 1
    partials = (np.sin(2 * np.pi * root * n * time) / k for k, n in enumerate((1, 2.76, 5.4, 8.93), start=1))
    return np.sum(list(partials), axis=0) * np.exp(-4 * since_stroke)


def _whistle(seconds: float, rng: Generator) -> Waveform:
    trill = np.sin(2 * np.pi * rng.uniform(16, 26) * _time(seconds))
    return _sweep(rng.uniform(2500, 3000) + 160 * trill) * (1 + 0.5 * trill)


def _drum_beats(seconds: float, rng: Generator) -> Waveform:
    time, rate = _time(seconds), rng.uniform(2.5, 4)
    since_beat = (time * rate) % 1 / rate
    thump = np.sin(2 * np.pi * 90 * since_beat) * np.exp(-18 * since_beat)
    return 2 * thump + _band_noise(seconds, 200, 6000, rng) * np.exp(-40 * since_beat)


def _birdsong(seconds: float, rng: Generator) -> Waveform:
    within = (_time(seconds) * rng.uniform(5, 8)) % 1
    return _sweep(3800 + 2400 * within) * np.sin(np.pi * np.minimum(within * 1.6, 1))


def _hiss(seconds: float, rng: Generator) -> Waveform:
    return _band_noise(seconds, 1500, 7000, rng)


def _knocks(seconds: float, rng: Generator) -> Waveform:
    since = (_time(seconds) * rng.uniform(6, 9)) % 1
    return _band_noise(seconds, 900, 1800, rng) * np.exp(-25 * since)


SOUNDS: dict[str, Callable[[float, Generator], Waveform]] = {
    "beeper": _beeper,
    "bell": _bell_strokes,
    "bird": _birdsong,
    "drum": _drum_beats,
    "engine": _engine,
    "horn": _horn,
    "siren": _siren,
    "whistle": _whistle,
}
"""How each class sounds, for a number of seconds."""

DISTRACTOR_SOUNDS = (_hiss, _knocks)
"""Sounds of no class."""


def background(width: int, height: int, rng: Generator) -> Canvas:
    """A textured picture [height, width, 3]: soft patches of two colours with finer grain on top."""
    patches = cv2.resize(rng.random((3, 4), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(rng.random((height // 6, width // 6), np.float32), (width, height))
    low, high = rng.uniform(60, 190, (2, 3))
    mixed = low + (high - low) * patches[..., None] + 15 * (grain[..., None] - 0.5)
    return mixed.clip(0, 255).astype(np.uint8)


def ambience(seconds: float, rng: Generator) -> Waveform:
    """Noise of RMS 1 that falls off towards high frequencies, by a random slope."""
    samples = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency, 50.0) ** -rng.uniform(0.3, 1.0)
    noise = np.fft.irfft(spectrum, samples)
    return (noise / noise.std()).astype(np.float32)
