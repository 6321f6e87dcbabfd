"""Long files cut into clips: names, labels, ground truth, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_maker import grey_frames, tone, write_media
from preparing import SETTINGS, contents, job, labels_csv

from avfast import sandbox
from avfast.data.clips import Outcome, Settings, Staged, Task, prepare_file
from avfast.data.dataset import ShardDataset
from avfast.data.labels import Annotation, Annotations, LabelledClip, annotations_csv, read_annotations
from avfast.data.logmel import VGGishLogMel
from avfast.errors import InputError

TWO_SECONDS = replace(SETTINGS, clip_seconds=2)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven seconds of picture with five of sound; two seconds of sound."""
    folder = tmp_path_factory.mktemp("films")
    write_media(folder / "film.mkv", grey_frames(14), fps=2, sound=tone(440, 5, 16_000))
    soundfile.write(folder / "short.wav", tone(300, 2, 16_000)[0], 16_000)
    return folder


def test_names_times_and_labels(films: Path, tmp_path: Path) -> None:
    labels = labels_csv(tmp_path, "film.mkv,cat;dog,train,", "short.wav,dog,train,")
    outcomes = job(films, labels, tmp_path / "out", TWO_SECONDS)
    assert outcomes == [
        Outcome("film.mkv#00000-00002", "ok"),
        Outcome("film.mkv#00002-00004", "ok"),
        Outcome("film.mkv#00004-00007", "ok"),  # the rest is too short for a clip of its own
        Outcome("short.wav#00000-00002", "ok", "no picture"),
    ]
    clips = ShardDataset(tmp_path / "out", "train", 32, 5, VGGishLogMel())
    assert [clips[index].frame_times.tolist() for index in range(4)] == [[0, 1], [0, 1], [0, 1, 2], []]
    assert [clips[index].target.tolist() for index in range(4)] == [[1, 1]] * 3 + [[0, 1]]
    assert [len(clips[index].audio) for index in range(3)] == [3, 3, 1]  # of 0.96 s every 0.48 s
    assert [round((clips[index].frames[0].float().mean().item() - 10) / 10) for index in range(3)] == [
        0,
        4,
        8,
    ]


def test_ground_truth_is_cut_too(films: Path, tmp_path: Path) -> None:
    truth = Annotations(
        (
            Annotation("film.mkv", "visual", "cat", 3.0, 3.0, (1, 2, 3, 4)),
            Annotation("film.mkv", "audio", "cat", 1.5, 4.5, None),
            Annotation("film.mkv", "audio", "cat", 8.0, 9.0, None),  # after the end
        )
    )
    labels = labels_csv(tmp_path, "film.mkv,cat,train,")
    (tmp_path / "annotations.csv").write_text(annotations_csv(truth))
    job(films, labels, tmp_path / "out", TWO_SECONDS)
    assert read_annotations(tmp_path / "out" / "annotations.csv").rows == (
        Annotation("film.mkv#00002-00004", "visual", "cat", 1.0, 1.0, (1, 2, 3, 4)),
        Annotation("film.mkv#00000-00002", "audio", "cat", 1.5, 2.0, None),
        Annotation("film.mkv#00002-00004", "audio", "cat", 0.0, 2.0, None),
        Annotation("film.mkv#00004-00007", "audio", "cat", 0.0, 0.5, None),
    )


def test_a_file_is_finished_where_it_was_left(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels_csv(tmp_path, "film.mkv,cat,train,")
    job(films, labels, tmp_path / "whole", TWO_SECONDS)
    out, real = tmp_path / "out", sandbox.run

    def killed(call: bytes, limits: sandbox.Limits) -> sandbox.Result:
        real(call, limits)
        (staged,) = (out / ".staging").glob("*.00002-00004.tar")
        staged.unlink()
        staged.with_name(staged.name.replace(".00002-00004.tar", ".done")).unlink()
        raise InputError("killed")

    monkeypatch.setattr(sandbox, "run", killed)
    with pytest.raises(InputError, match="killed"):
        job(films, labels, out, TWO_SECONDS)
    kept = {path: path.stat().st_mtime_ns for path in (out / ".staging").glob("*.tar")}
    assert len(kept) == 2

    def check(call: bytes, limits: sandbox.Limits) -> sandbox.Result:
        result = real(call, limits)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        return result

    monkeypatch.setattr(sandbox, "run", check)
    job(films, labels, out, TWO_SECONDS)
    assert contents(out) == contents(tmp_path / "whole")


HOUR = 3600


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of somewhat more than an hour: a frame every 20 s, sound throughout."""
    folder = tmp_path_factory.mktemp("long")
    times = [float(time) for time in range(0, HOUR + 100, 20)]
    write_media(folder / "long.mkv", grey_frames(1) * len(times), times=times)
    stretch = (3000 * np.sin(np.arange(8_000 * 100) / 9)).astype(np.int16)
    with soundfile.SoundFile(folder / "long.flac", "w", 8_000, 1, "PCM_16") as file:
        for _ in range(0, HOUR + 100, 100):
            file.write(stretch)
    return folder


def peak_growth(task: Task, settings: Settings) -> Iterator[object]:
    """What ``prepare_file`` yields, then by how many bytes it made the process grow at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    yield from prepare_file(task, settings)
    yield memory("VmHWM") - before


def memory(kind: str) -> int:
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(kind))
    return int(line.split()[1]) * 1024


def prepare_one(folder: Path, stem: Path, settings: Settings) -> list[object]:
    clip = LabelledClip("long.mkv", (), "train", "long.flac")
    task = Task(clip, folder / "long.mkv", folder / "long.flac", stem)
    return sandbox.run(sandbox.pack(peak_growth, task, settings), sandbox.Limits()).read()


def test_memory_does_not_grow_with_the_length(long_film: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory cannot be reset here")
    *clips, growth = prepare_one(long_film, tmp_path / "long", replace(SETTINGS, clip_seconds=60))
    assert len(clips) == 62
    assert all(isinstance(staged, Staged) for staged in clips)
    assert isinstance(growth, int)
    assert growth < 128 << 20  # the sound alone is 236 MB


def test_too_long_for_one_clip(long_film: Path, tmp_path: Path) -> None:
    found = prepare_one(long_film, tmp_path / "long", SETTINGS)
    reason = "longer than 3600 s; cut it into clips with --clip-seconds"
    assert found[0] == Outcome("long.mkv", "skipped", reason)
