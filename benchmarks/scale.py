"""Memory and throughput of a training run over very many tiny clips, a point for every thousand of them.

    python benchmarks/scale.py build/scale
    python benchmarks/scale.py build/scale --clips 20000 --workers 0 --cache-gib 0.05 --plot build/scale.png

Clips of one 16 x 16 picture, every fourth with a second of sound, are staged and packed by the functions
that avfast.prepare uses; avfast.train learns from them for one epoch in a process of its own, watched from
outside: memory is the proportional set size of the program and its readers (a page that they share counts
once), CPU time is theirs together. Linux only. 200,000 clips take 2.5 GB of disk; delete the folder later.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from avfast.cli import run
from avfast.data import shards
from avfast.data.clip_index import INDEX
from avfast.data.clips import Settings
from avfast.data.files import write_json
from avfast.data.labels import LabelledClip
from avfast.data.media import SAMPLE_RATE
from avfast.report.figure import save

CLASSES = tuple(f"class {number:02d}" for number in range(17))
SIDE, KINDS = 16, 256  # pixels of a picture; different contents
POINT = 1000  # clips
BATCH = 100  # clips
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Options:
    """What to run, and where."""

    folder: tyro.conf.Positional[Path]
    """For shards, run and figures; shards that are there are used again."""
    clips: int = 200_000
    """Training clips."""
    workers: int = 1
    """Processes that read clips."""
    cache_gib: float = 2.0
    """As avfast.train takes it; only with --workers 0 clips are kept."""
    plot: Path | None = None
    """PNG of the two curves. Default: in the folder."""


@dataclass(frozen=True)
class Point:
    """State of the run after some clips."""

    clips: int
    seconds: float
    """Since the first point."""
    cpu: float
    """Seconds of CPU time, of program and readers."""
    program_mb: float
    readers_mb: float


def main(options: Options) -> None:
    """Make the clips where they are not there yet, train, and write ``curve.json``, a table and the plot."""
    root = options.folder / f"shards-{options.clips}"
    if not (root / INDEX).is_file():
        make(root, options.clips)
    points = list(watch(options, root))
    write_json(options.folder / "curve.json", [asdict(point) for point in points])
    print("\n".join(table(points)))
    draw(points, options.plot or options.folder / "scale.png")


def make(root: Path, count: int) -> None:
    """Stage and pack ``count`` training clips, and a hundredth of them for each other split."""
    shutil.rmtree(root, ignore_errors=True)
    staging = root / "staging"
    staging.mkdir(parents=True)
    generator = np.random.default_rng(0)
    kinds = [contents(generator, heard=kind % 4 == 0) for kind in range(KINDS)]
    counts = {"train": count, "val": max(1, count // 100), "test": max(1, count // 100)}
    begun = time.process_time()
    clips = []
    for split, wanted in counts.items():
        for number in tqdm(range(wanted), desc=f"stage {split}", unit="clip", disable=None):
            labels = tuple(CLASSES[c] for c in sorted({number % 17, number * 7 % 17}))
            staged = staging / f"{split}{number}.tar"
            with staged.open("wb") as file:
                shards.write_members(file, "clip", kinds[number % KINDS])
                shards.end_tar(file)
            clips.append((LabelledClip(f"{split}/{number:09d}.mp4", labels, split), staged))
    staged_in, begun = time.process_time() - begun, time.process_time()
    shards.write_shards(root, CLASSES, clips, Settings().record())
    packed_in = time.process_time() - begun
    print(f"CPU: {1e3 * staged_in / count:.2f} ms a clip to stage, {1e3 * packed_in / count:.2f} ms to pack")
    shutil.rmtree(staging)


def contents(generator: np.random.Generator, heard: bool) -> dict[str, bytes]:
    """A picture with two regions, and a second of sound, all noise."""
    facts = {"frame_times": [0.0], "frame_size": [SIDE, SIDE], "sound_seconds": float(heard)}
    sound = generator.uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32)
    boxes = [(0, 1, 1, 9, 9, 0.9), (0, 4, 4, 15, 15, 0.5)]
    picture = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return {
        shards.frame_member(0): shards.encode_jpeg(picture),
        shards.PROPOSALS: shards.encode_array(np.array(boxes, np.float32)),
        **({shards.SOUND: shards.encode_sound(sound)} if heard else {}),
        shards.FACTS: shards.encode_facts(facts),
    }


def watch(options: Options, root: Path) -> Iterator[Point]:
    """Train for one epoch, and look at the processes after every thousand clips."""
    out = options.folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    train = [
        sys.executable,
        "-m",
        "avfast.train",
        "--data",
        root,
        "--out",
        out,
        "--epochs",
        "1",
        "--no-report",
    ]
    sizes = ["--image-size", SIDE, "--batch-size", BATCH, "--log-every", POINT // BATCH]
    reading = ["--workers", options.workers, "--cache-gib", options.cache_gib, "--device", "cpu"]
    # each checkpoint is a moment in which nothing is learned
    command = [str(part) for part in (*train, *sizes, *reading, "--save-every", 10**9)]
    with subprocess.Popen(command) as process:
        begun, seen = 0.0, 0
        for clips in tqdm(range(POINT, options.clips + 1, POINT), unit="points", disable=None):
            while (seen := lines(out / "metrics.jsonl")) * POINT < clips and process.poll() is None:
                time.sleep(0.05)
            now = time.monotonic()
            begun = begun or now
            with suppress(OSError):  # a process may end while it is looked at
                readers = children(process.pid)
                cpu = sum(cpu_seconds(pid) for pid in (process.pid, *readers))
                memory = memory_mb(process.pid), sum(map(memory_mb, readers))
                if seen * POINT == clips:  # else we came too late for this one
                    yield Point(clips, now - begun, cpu, *memory)
    if process.returncode:
        sys.exit(process.returncode)


def lines(path: Path) -> int:
    """How many lines a log has."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def children(pid: int) -> list[int]:
    """Processes that a process started and that are there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_mb(pid: int) -> float:
    """Proportional set size: a page that n processes share counts as an n-th for each of them."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def table(points: list[Point], rows: int = 12) -> Iterator[str]:
    """The first, the last and some points between as Markdown; rates are those of the thousand before."""
    yield "| clips | program MB | readers MB | clips per CPU second | clips per second |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for position in np.linspace(1, len(points) - 1, rows).astype(int).tolist():
        before, point = points[position - 1], points[position]
        clips = point.clips - before.clips
        rates = f"{clips / (point.cpu - before.cpu):.0f} | {clips / (point.seconds - before.seconds):.0f}"
        yield f"| {point.clips:,} | {point.program_mb:.0f} | {point.readers_mb:.0f} | {rates} |"


def draw(points: list[Point], path: Path) -> None:
    """Memory and throughput over the run."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    memory, speed = figure.subplots(2, 1, sharex=True)
    thousands = [point.clips / 1000 for point in points]
    memory.plot(thousands, [point.program_mb + point.readers_mb for point in points], label="together")
    memory.plot(thousands, [point.program_mb for point in points], label="program")
    memory.plot(thousands, [point.readers_mb for point in points], label="readers")
    memory.set(ylabel="memory, MB", ylim=(0, None))
    memory.legend(frameon=False, ncols=3)
    clips, cpu = np.diff([point.clips for point in points]), np.diff([point.cpu for point in points])
    speed.plot(thousands[1:], clips / cpu)
    speed.set(ylabel="clips per CPU second", ylim=(0, None), xlabel="thousand clips")
    save(figure, path)


if __name__ == "__main__":
    run(main, Options)
