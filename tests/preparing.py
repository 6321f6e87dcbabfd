"""A folder of small videos, good and bad, and what runs the preparation job on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile
from media_maker import grey_frames, tone, write_media

from avfast.data.clips import Outcome, Settings
from avfast.data.label_lists import read_labels
from avfast.data.preparation import prepare
from avfast.data.proposals import EdgeBoxesParameters
from avfast.engines import Engine

SETTINGS = Settings(proposals=5, edge_boxes=EdgeBoxesParameters(min_box_area=200.0))
COPIES = 20


def make_source(folder: Path) -> Path:
    """Good clips under several names, and clips that lack something or everything."""
    frames = grey_frames(12)
    for index, frame in enumerate(frames):
        frame[10:40, 10 + index : 40 + index] = (200, 30, 90)
    whole = write_media(folder / "whole.mp4", frames, sound=tone(440, 3, 16_000))
    for index in range(COPIES):
        shutil.copy(whole, folder / f"copy{index:02d}.mp4")
    write_media(folder / "silent.mp4", frames)
    soundfile.write(folder / "blind.wav", tone(300, 2, 22_050)[0], 22_050)
    (folder / "empty.mp4").touch()
    (folder / "garbage.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "escape.mp4").symlink_to(write_media(folder.parent / "outside.mp4", frames))
    return folder


def labels_csv(folder: Path, *rows: str) -> Path:
    """A list of these rows."""
    path = folder / "labels.csv"
    path.write_text("clip,labels,split,audio\n" + "".join(f"{row}\n" for row in rows))
    return path


def copies_csv(folder: Path) -> Path:
    """A list of all copies of the good clip."""
    rows = (
        f"copy{index:02d}.mp4,{'cat' if index % 3 else 'dog'},{'test' if index % 4 else 'train'},"
        for index in range(COPIES)
    )
    return labels_csv(folder, *rows)


def job(
    source: Path, labels: Path, out: Path, settings: Settings = SETTINGS, engine: Engine | None = None
) -> list[Outcome]:
    """Run the job, in one worker unless told otherwise."""
    return prepare(source, read_labels(labels, source), out, settings, engine or Engine(workers=1))


def contents(folder: Path) -> dict[str, bytes]:
    """Name and bytes of everything in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def program(
    source: Path, labels: Path, out: Path, *options: object, **popen: object
) -> Iterator[subprocess.Popen[str]]:
    """``python -m avfast.prepare`` with the settings of these tests, in a process group of its own."""
    command = [sys.executable, "-m", "avfast.prepare", source, "--labels", labels, "--out", out]
    same = ["--workers", 2, "--proposals", 5, "--min-box-area", 200]
    arguments = [str(part) for part in [*command, *same, *options]]
    process = subprocess.Popen(arguments, start_new_session=True, text=True, **popen)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
