"""A data set of a few seconds' training: coloured squares that are seen and tones that are heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avfast.data import shards
from avfast.data.clips import Settings
from avfast.data.files import write_text
from avfast.data.labels import Annotation, Annotations, LabelledClip, annotations_csv
from avfast.data.media import SAMPLE_RATE

CLASSES = ("blue", "green", "red")
COUNTS = {"train": 24, "val": 9, "test": 9}
SIDE, SECONDS, SQUARE = 96, 3, 32


def make(root: Path, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """Write shards and annotations under ``root``; in each split one is silent, one has no picture."""
    generator = np.random.default_rng(seed)
    root.mkdir(parents=True)
    staging = root / "staging"
    staging.mkdir()
    clips, rows = [], []
    for split in sorted(COUNTS):
        for number in range(COUNTS[split]):
            labels = tuple(name for name in classes if generator.random() < 0.4)
            clip = LabelledClip(f"{split}/{number:03d}.mp4", labels, split)
            members, truth = _members(clip, classes, generator, seen=number != 1, heard=number != 2)
            staged = staging / f"{split}-{number:03d}.tar"
            with staged.open("wb") as file:
                shards.write_members(file, "clip", members)
                shards.end_tar(file)
            clips.append((clip, staged))
            rows += truth
    shards.write_shards(root, classes, clips, options=Settings().record())
    write_text(root / shards.ANNOTATIONS, annotations_csv(Annotations(tuple(rows))))
    return root


def _members(
    clip: LabelledClip, classes: tuple[str, ...], generator: np.random.Generator, seen: bool, heard: bool
) -> tuple[dict[str, bytes], list[Annotation]]:
    members: dict[str, bytes] = {}
    facts: dict[str, Any] = {"frame_times": [], "frame_size": [0, 0]}
    rows: list[Annotation] = []
    if seen:
        facts |= {"frame_times": [0.0, 1.0], "frame_size": [SIDE, SIDE]}
        places = {name: generator.integers(0, SIDE - SQUARE, 2) for name in clip.labels}
        for index, time in enumerate(facts["frame_times"]):
            members[shards.frame_member(index)] = shards.encode_jpeg(_picture(places, classes, generator))
            rows += [Annotation(clip.clip, "visual", n, time, time, _box(p)) for n, p in places.items()]
        boxes = [_box(p) for p in places.values()] + [_box(generator.integers(0, SIDE - SQUARE, 2))]
        table = [(index, *box, 0.5) for index in range(2) for box in boxes]
        members[shards.PROPOSALS] = shards.encode_array(np.array(table, np.float32))
    if heard:
        wave = 0.01 * generator.standard_normal(SECONDS * SAMPLE_RATE)
        for name in clip.labels:
            wave[SAMPLE_RATE : 2 * SAMPLE_RATE] += _tone(500 * 2 ** classes.index(name))
            rows.append(Annotation(clip.clip, "audio", name, 1.0, 2.0, None))
        members[shards.SOUND] = shards.encode_sound(wave.astype(np.float32))
    facts["sound_seconds"] = SECONDS if heard else 0
    members[shards.FACTS] = shards.encode_facts(facts)
    return members, rows


def _picture(
    places: dict[str, NDArray[np.int64]], classes: tuple[str, ...], generator: np.random.Generator
) -> NDArray[np.uint8]:
    picture = generator.integers(90, 110, (SIDE, SIDE, 3)).astype(np.uint8)
    for name, (x, y) in places.items():
        picture[y : y + SQUARE, x : x + SQUARE] = np.eye(3, dtype=np.uint8)[classes.index(name)] * 255
    return picture


def _box(corner: NDArray[np.int64]) -> tuple[float, float, float, float]:
    x, y = float(corner[0]), float(corner[1])
    return x, y, x + SQUARE, y + SQUARE


def _tone(hertz: float) -> NDArray[np.float64]:
    return 0.2 * np.sin(2 * np.pi * hertz * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
