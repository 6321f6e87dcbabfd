"""A toy data set of unsynchronised audio-visual events, made on the spot.

    python -m avfast.data.synthetic --out toy
    python -m avfast.data.synthetic --out toy --train 2000 --seed 1
    python -m avfast.prepare toy --labels toy/labels.csv --out toy-shards

Objects drift over textured backgrounds while sounds play over noise. An event's picture and sound come at
independent times; half of the events are only seen or only heard. Objects and sounds of no class distract.
The clips are ordinary videos with labels.csv, and annotations.csv for evaluation.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import joblib
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from avfast.cli import run
from avfast.data import toy_events
from avfast.data.clip_index import INDEX
from avfast.data.clips import Settings
from avfast.data.files import atomic_write, exclusive, write_text
from avfast.data.label_lists import read_labels
from avfast.data.labels import SPLITS, Annotation, Annotations, annotations_csv
from avfast.data.media import SAMPLE_RATE
from avfast.data.opencv import cv2
from avfast.data.preparation import prepare
from avfast.engines import Engine

CLASSES = tuple(sorted(toy_events.SIGHTS))

VERSION = 4
"""Counts changes of the generator, so that a cache made by another one is not used."""

WIDTH, HEIGHT = 128, 96
COLUMNS, ROWS = 2, 2  # an object keeps to its own cell of the picture
SECONDS = 5.0
VIDEO_FPS = 4
VIDEO_OPTIONS = {"preset": "ultrafast", "crf": "18", "threads": "1"}
SOUND_OPTIONS = {"aac_coder": "fast"}
SIZES = (36, 48)  # pixels, of the square an object is drawn in
DRIFT = 8.0  # pixels, at most, over the time an object is in sight
SIGHT_SECONDS, SOUND_SECONDS = (2.0, 4.0), (1.2, 2.5)

EVENT_COUNTS = (0.08, 0.42, 0.35, 0.15)
"""Probability of 0, 1, 2, 3 classes in a clip."""

SEEN_ONLY, HEARD_ONLY = 0.25, 0.25
DISTRACTOR_SIGHT, DISTRACTOR_SOUND = 0.6, 0.5
SOUND_LEVEL, NOISE_LEVEL = (0.06, 0.15), (0.01, 0.03)  # RMS

SETTINGS = Settings(proposals=30)
"""How the clips are prepared."""


@dataclass(frozen=True)
class Sizes:
    """How many clips each split has."""

    train: int = 400
    val: int = 80
    test: int = 120


@dataclass
class Options:
    """How much to make, and where."""

    out: Path
    """Folder to make."""
    train: int = Sizes.train
    """Training clips."""
    val: int = Sizes.val
    """Validation clips."""
    test: int = Sizes.test
    """Test clips."""
    seed: int = 0
    """Another seed gives other clips."""
    workers: int = field(default_factory=joblib.cpu_count)
    """Processes; the result does not depend on it."""


@dataclass(frozen=True)
class Truth:
    """What there is to know about a generated clip."""

    name: str
    split: str
    labels: tuple[str, ...]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class Clip:
    """One generated clip."""

    frames: NDArray[np.uint8]
    """[T, HEIGHT, WIDTH, 3], RGB, VIDEO_FPS a second."""
    waveform: NDArray[np.float32]
    """[SECONDS * SAMPLE_RATE], -1 to 1."""
    truth: Truth


def dataset(workers: int | None = None) -> Path:
    """The prepared toy data set, made at the first call and kept in the user's cache.

    The cache is ``$AVFAST_CACHE``, else ``$XDG_CACHE_HOME/avfast``, else ``~/.cache/avfast``. A call that was
    interrupted goes on where it stopped; two calls at once wait for each other.

    Args:
        workers: Processes; None for one a core.

    Returns:
        A folder that ``ShardDataset`` reads. The videos lie beside it in ``clips``.
    """
    made_of = json.dumps([VERSION, asdict(Sizes()), SETTINGS.record()])
    root = cache_folder() / f"toy-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    shards = root / "shards"
    if not (shards / INDEX).is_file():
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root):
            processes = workers or joblib.cpu_count()
            generate(root / "clips", Sizes(), seed=0, workers=processes)
            labels = read_labels(root / "clips" / "labels.csv", root / "clips")
            prepare(root / "clips", labels, shards, SETTINGS, Engine(workers=processes))
    return shards


def generate(out: Path, sizes: Sizes, seed: int, workers: int) -> None:
    """Write the clips, ``labels.csv`` and ``annotations.csv``; what is there already is kept.

    Args:
        out: Folder to make.
        sizes: How many clips.
        seed: Clip i of a split depends on the seed, the split and i alone.
        workers: Processes.
    """
    (out / "videos").mkdir(parents=True, exist_ok=True)
    wanted = [(split, index) for split, count in asdict(sizes).items() for index in range(count)]
    jobs = (joblib.delayed(_write_clip)(out, split, index, seed) for split, index in wanted)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        made = joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)
        truths = list(tqdm(made, total=len(wanted), desc="generate", unit="clip"))
    write_text(out / "labels.csv", _labels_csv(truths))
    rows = tuple(row for clip in truths for row in clip.annotations)
    write_text(out / "annotations.csv", annotations_csv(Annotations(rows)))


def _labels_csv(truths: Iterable[Truth]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["clip", "labels", "split"])
    writer.writerows([clip.name, ";".join(clip.labels), clip.split] for clip in truths)
    return table.getvalue()


def make_clip(split: str, index: int, seed: int) -> Clip:
    """Make up one clip."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    name = f"videos/{split}_{index:04d}.mp4"
    count = rng.choice(len(EVENT_COUNTS), p=EVENT_COUNTS)
    labels = tuple(sorted(rng.choice(CLASSES, count, replace=False).tolist()))
    fate = rng.random(count)
    seen = [label for label, draw in zip(labels, fate, strict=True) if draw >= HEARD_ONLY]
    heard = [label for label, draw in zip(labels, fate, strict=True) if draw < 1 - SEEN_ONLY]
    frames, sights = _picture(name, seen, rng)
    waveform, sounds = _sound(name, heard, rng)
    return Clip(frames, waveform, Truth(name, split, labels, (*sights, *sounds)))


def _picture(name: str, seen: list[str], rng: Generator) -> tuple[NDArray[np.uint8], list[Annotation]]:
    """All frames, and a box for each object in each frame."""
    frames = np.repeat(toy_events.background(WIDTH, HEIGHT, rng)[None], round(SECONDS * VIDEO_FPS), axis=0)
    cells = rng.permutation(COLUMNS * ROWS)
    things: list[str | None] = [*seen, *([None] if rng.random() < DISTRACTOR_SIGHT else [])]
    rows = []
    for label, cell in zip(things, cells, strict=False):
        for time, box in _show(frames, _sprite(label, rng), cell, rng):
            if label is not None:
                rows.append(Annotation(name, "visual", label, time, time, box))
    return frames, rows


def _sprite(label: str | None, rng: Generator) -> NDArray[np.uint8]:
    side = int(rng.integers(*SIZES, endpoint=True))
    if label is not None:
        return toy_events.draw(*toy_events.SIGHTS[label], side, rng)
    shape = toy_events.DISTRACTOR_SIGHTS[rng.integers(len(toy_events.DISTRACTOR_SIGHTS))]
    _, colour = toy_events.SIGHTS[str(rng.choice(CLASSES))]
    return toy_events.draw(shape, colour, side, rng)


def _show(
    frames: NDArray[np.uint8], sprite: NDArray[np.uint8], cell: int, rng: Generator
) -> Iterator[tuple[float, tuple[float, float, float, float]]]:
    """Paint an object into the frames in which it is in sight; yield its time and box in each."""
    side = len(sprite)
    alpha = sprite[..., 3:].astype(np.float32) / 255
    inside_y, inside_x = np.nonzero(alpha[..., 0] > 0.5)
    cell_size = np.array([WIDTH / COLUMNS, HEIGHT / ROWS])
    corner = np.array([cell % COLUMNS, cell // COLUMNS]) * cell_size
    begin = corner + rng.random(2) * (cell_size - side)
    end = begin + rng.uniform(-DRIFT, DRIFT, 2)
    start, stop = _interval(SIGHT_SECONDS, rng)
    for index in range(round(start * VIDEO_FPS), round(stop * VIDEO_FPS)):
        time = index / VIDEO_FPS
        place = begin + (end - begin) * (time - start) / (stop - start)
        x, y = np.clip(place, 0, [WIDTH - side, HEIGHT - side]).round().astype(int).tolist()
        patch = frames[index, y : y + side, x : x + side]
        patch[...] = (patch * (1 - alpha) + sprite[..., :3] * alpha).round()
        left, top = float(x + inside_x.min()), float(y + inside_y.min())
        yield time, (left, top, float(x + inside_x.max() + 1), float(y + inside_y.max() + 1))


def _sound(name: str, heard: list[str], rng: Generator) -> tuple[NDArray[np.float32], list[Annotation]]:
    """The sound track, and an interval for each event in it."""
    waveform = toy_events.ambience(SECONDS, rng) * rng.uniform(*NOISE_LEVEL)
    rows = []
    for label in heard:
        start, stop = _play(waveform, toy_events.SOUNDS[label], rng)
        rows.append(Annotation(name, "audio", label, start, stop, None))
    if rng.random() < DISTRACTOR_SOUND:
        sounds = toy_events.DISTRACTOR_SOUNDS
        _play(waveform, sounds[rng.integers(len(sounds))], rng)
    return waveform.clip(-1, 1).astype(np.float32), rows


def _play(waveform: NDArray[np.float32], sound: Any, rng: Generator) -> tuple[float, float]:
    """Add a sound somewhere; return when it starts and stops."""
    start, stop = _interval(SOUND_SECONDS, rng)
    samples = sound(stop - start, rng)
    fade = np.minimum(1, np.minimum(np.arange(len(samples)), np.arange(len(samples))[::-1]) / 320)
    samples = samples / samples.std() * fade * rng.uniform(*SOUND_LEVEL)
    first = round(start * SAMPLE_RATE)
    waveform[first : first + len(samples)] += samples[: len(waveform) - first]
    return start, stop


def _interval(lengths: tuple[float, float], rng: Generator) -> tuple[float, float]:
    """Start and stop of something that lasts so long, on the video's clock."""
    length = rng.uniform(*lengths)
    start = rng.uniform(0, SECONDS - length)
    return round(start * VIDEO_FPS) / VIDEO_FPS, round((start + length) * VIDEO_FPS) / VIDEO_FPS


def _write_clip(out: Path, split: str, index: int, seed: int) -> Truth:
    cv2.setNumThreads(1)
    clip = make_clip(split, index, seed)
    path = out / clip.truth.name
    if not path.is_file():
        with atomic_write(path) as file:
            _encode(file, clip)
    return clip.truth


def _encode(file: Any, clip: Clip) -> None:
    """H.264 and AAC in MP4."""
    with av.open(file, "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", VIDEO_FPS, options=VIDEO_OPTIONS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio: Any = container.add_stream("aac", SAMPLE_RATE, layout="mono", options=SOUND_OPTIONS)
        for image in clip.frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        sound = av.AudioFrame.from_ndarray(clip.waveform[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts = SAMPLE_RATE, 0  # a time, so that the encoder can count back its delay
        for stream, frame in ((audio, sound), (audio, None), (video, None)):
            container.mux(stream.encode(frame))


def cache_folder() -> Path:
    """Where data sets made on first use are kept."""
    if "AVFAST_CACHE" in os.environ:
        return Path(os.environ["AVFAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avfast"


def main(options: Options) -> None:
    """Run the program."""
    generate(options.out, Sizes(options.train, options.val, options.test), options.seed, options.workers)
    print(f"{options.out}: {options.train + options.val + options.test} clips of {', '.join(CLASSES)}")


if __name__ == "__main__":
    run(main, Options)
