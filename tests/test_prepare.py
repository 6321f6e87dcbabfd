"""The preparation job: every clip accounted for, the same bytes however it ran."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from preparing import COPIES, SETTINGS, contents, copies_csv, job, labels_csv

from avfast import sandbox
from avfast.cli import run
from avfast.data import shards
from avfast.data.clips import Outcome, Settings
from avfast.data.dataset import ShardDataset
from avfast.data.files import exclusive
from avfast.data.labels import Annotation, Annotations, LabelledClip, Labels, annotations_csv
from avfast.data.logmel import VGGishLogMel
from avfast.data.preparation import prepare, read_manifest
from avfast.engines import Engine
from avfast.errors import InputError
from avfast.prepare import Options, main


def test_every_clip_is_accounted_for(source: Path, tmp_path: Path) -> None:
    labels = labels_csv(
        tmp_path,
        "whole.mp4,cat,train,",
        "silent.mp4,cat;dog,train,",
        "blind.wav,dog,train,",
        "empty.mp4,cat,val,",
        "garbage.mp4,cat,val,",
        "escape.mp4,cat,val,",
        "../outside.mp4,cat,val,",
        "/etc/hostname,cat,val,",
        "none.mp4,,test,",
        "copy00.mp4,dog,test,blind.wav",
        "copy01.mp4,dog,test,none.wav",
    )
    outcomes = job(source, labels, tmp_path / "out")
    assert outcomes == read_manifest(tmp_path / "out" / "manifest.csv")
    found = {outcome.clip: (outcome.status, outcome.reason) for outcome in outcomes}
    assert list(found) == sorted(found)
    assert len(found) == 11
    assert found["whole.mp4"] == found["copy00.mp4"] == ("ok", "")
    assert found["silent.mp4"] == ("ok", "no sound")
    assert found["blind.wav"][0] == "ok"
    assert "no picture" in found["blind.wav"][1]
    assert found["empty.mp4"] == ("skipped", "the file is empty")
    assert found["garbage.mp4"][0] == "skipped"
    assert "cannot be read" in found["garbage.mp4"][1]
    for outside in ("escape.mp4", "../outside.mp4", "/etc/hostname"):
        assert found[outside][0] == "skipped"
        assert "outside the source folder" in found[outside][1]
    assert found["none.mp4"][0] == found["copy01.mp4"][0] == "skipped"
    assert "no such file" in found["none.mp4"][1]
    assert "none.wav" in found["copy01.mp4"][1]
    assert sorted(contents(tmp_path / "out")) == [
        "index.json",
        "index.npz",
        "manifest.csv",
        "test-00000.tar",
        "train-00000.tar",
    ]


def test_what_training_sees(source: Path, tmp_path: Path) -> None:
    labels = labels_csv(tmp_path, "whole.mp4,cat,train,", "copy00.mp4,cat,train,blind.wav")
    truth = Annotations((Annotation("whole.mp4", "visual", "cat", 0, 0, (10, 10, 40, 40)),))
    (tmp_path / "annotations.csv").write_text(annotations_csv(truth))
    job(source, labels, tmp_path / "out")
    clips = ShardDataset(tmp_path / "out", "train", 48, 5, VGGishLogMel())
    assert clips.annotations() == truth
    sidecar, whole = clips[0], clips[1]
    assert whole.frame_times.tolist() == [0, 1, 2]
    assert whole.frame_size == (64, 48)
    assert len(sidecar.audio) == 3  # two seconds of the wav file
    assert len(whole.audio) in (5, 6)  # three seconds, and what AAC adds
    assert whole.boxes[0].tolist() == pytest.approx([10 * 48 / 64, 10, 40 * 48 / 64, 40], abs=6)


def test_workers_do_not_change_a_byte(source: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    job(source, copies_csv(tmp_path), tmp_path / "out", engine=Engine(workers=2))
    assert contents(tmp_path / "out") == uninterrupted


class Killed(BaseException):
    """Stands for a process that is gone."""


def test_only_what_is_missing_is_done_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    labels, out = copies_csv(tmp_path), tmp_path / "out"
    real, calls = sandbox.run, []

    def run_some(call: bytes, limits: sandbox.Limits) -> sandbox.Result:
        if len(calls) == 5:
            raise Killed
        calls.append(pickle.loads(call)[1][0].clip.clip)
        return real(call, limits)

    monkeypatch.setattr(sandbox, "run", run_some)
    with pytest.raises(Killed):
        job(source, labels, out)
    first = list(calls)
    calls.clear()
    monkeypatch.setattr(
        sandbox, "run", lambda *call: calls.append(pickle.loads(call[0])[1][0].clip.clip) or real(*call)
    )
    job(source, labels, out)
    assert len(first) == 5
    assert not set(first) & set(calls)
    assert len(calls) == COPIES - 5
    assert contents(out) == uninterrupted


def test_killed_while_packing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    labels, out = copies_csv(tmp_path), tmp_path / "out"
    real = shards.write_shards

    def write_half(root: Path, *rest: object) -> None:
        (root / "train-00000.tar").write_bytes(b"half")
        (root / ".tmp-leftover").write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(shards, "write_shards", write_half)
    with pytest.raises(Killed):
        job(source, labels, out)
    monkeypatch.setattr(shards, "write_shards", real)
    monkeypatch.setattr(sandbox, "run", None)  # all clips are staged
    job(source, labels, out)
    assert contents(out) == uninterrupted


@settings(max_examples=200, deadline=None)
@given(
    names=st.sets(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300), max_size=5)
)
@example(names={"../a", "/etc/passwd", ".", "..", "a\0b", "~", "x" * 300, "copy00.mp4/../../a", "\n", "//"})
def test_any_name_is_accounted_for(
    source: Path, tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    """No name leaves the source folder, and none ends the job."""
    out = tmp_path_factory.mktemp("names") / "out"
    clips = tuple(LabelledClip(name, ("x",), "train") for name in sorted(names))
    with pytest.raises(InputError, match="no clip could be prepared"):
        prepare(source, Labels(("x",), clips, None), out, SETTINGS, Engine(workers=1))
    assert sorted(outcome.clip for outcome in read_manifest(out / "manifest.csv")) == sorted(names)


def test_finished_work_is_left_alone(source: Path, tmp_path: Path) -> None:
    labels, out = labels_csv(tmp_path, "whole.mp4,cat,train,", "none.mp4,,train,"), tmp_path / "out"
    first = job(source, labels, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert job(source, labels, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    columns = (out / "index.npz").read_bytes()
    (out / "index.npz").unlink()
    assert job(source, labels, out) == first
    assert (out / "index.npz").read_bytes() == columns
    with pytest.raises(InputError, match="other labels or options; choose another --out"):
        job(source, labels, out, Settings(fps=2))
    labels_csv(tmp_path, "whole.mp4,dog,train,")
    with pytest.raises(InputError, match="other labels or options"):
        job(source, labels, out)


def test_unfinished_work_with_other_options(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, out = labels_csv(tmp_path, "whole.mp4,cat,train,"), tmp_path / "out"

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(shards, "write_shards", killed)
    with pytest.raises(Killed):
        job(source, labels, out)
    with pytest.raises(InputError, match=r"\.staging: unfinished work with other options"):
        job(source, labels, out, Settings(fps=2))


def test_a_changed_file_is_prepared_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(source / "whole.mp4", own / "a.mp4")
    labels, out = labels_csv(tmp_path, "a.mp4,cat,train,"), tmp_path / "out"

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shards", killed)
        with pytest.raises(Killed):
            job(own, labels, out)
    shutil.copy(source / "silent.mp4", own / "a.mp4")
    assert job(own, labels, out) == [Outcome("a.mp4", "ok", "no sound")]
    assert len(ShardDataset(out, "train", 32, 5, VGGishLogMel())[0].audio) == 0


def test_one_run_at_a_time(source: Path, tmp_path: Path) -> None:
    labels, out = labels_csv(tmp_path, "whole.mp4,cat,train,"), tmp_path / "out"
    out.mkdir()
    with exclusive(out), pytest.raises(InputError, match="out: another run is at work here"):
        job(source, labels, out)
    assert list(out.iterdir()) == []
    job(source, labels, out)


def test_nothing_could_be_prepared(source: Path, tmp_path: Path) -> None:
    labels = labels_csv(tmp_path, "empty.mp4,cat,train,", "none.mp4,cat,train,")
    with pytest.raises(InputError, match=r"manifest\.csv: no clip could be prepared"):
        job(source, labels, tmp_path / "out")
    assert len(read_manifest(tmp_path / "out" / "manifest.csv")) == 2
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "--out", "out"], "--labels"),
        (["nowhere", "--labels", "LABELS", "--out", "out"], "nowhere: no such folder"),
        (["SOURCE", "--labels", "none.csv", "--out", "out"], "none.csv: no such file"),
        (["SOURCE", "--labels", "LABELS", "--out", "LABELS"], "labels.csv: File exists"),
    ],
)
def test_complaints(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"SOURCE": str(source), "LABELS": str(labels_csv(tmp_path, "whole.mp4,cat,train,"))}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *(places.get(part, part) for part in arguments)])
    with pytest.raises(SystemExit) as ended:
        run(main, Options)
    complaint = capsys.readouterr().err
    assert ended.value.code == 2
    assert complaint.startswith("avfast.prepare: error: ")
    assert complaint.count("\n") == 1
    assert message in complaint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers: expected more than 0"),
        ({"clip_seconds": 0}, "--clip-seconds: expected more than 0"),
        ({"shard_size": float("nan")}, "--shard-size: expected more than 0, got nan"),
        ({"engine_address": "here:1"}, "--engine-address: only --engine ray and --engine dask"),
        ({"nms_iou": 2.0}, "--nms-iou: expected at most 1"),
        ({"edge_model": Path("none.gz")}, r"none\.gz: no such file"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(Options(source=tmp_path, labels=tmp_path / "labels.csv", out=tmp_path / "out", **options))


@pytest.mark.slow
def test_odd_clips(odd_clips: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in odd_clips.iterdir())
    labels = labels_csv(tmp_path, *(f"{name},x,train," for name in names))
    outcomes = {
        o.clip: (o.status, o.reason)
        for o in job(odd_clips, labels, tmp_path / "out", Settings(long_side=160), Engine(workers=2))
    }
    assert outcomes == {
        "-video-with-dash-.mp4": ("ok", "no sound"),
        "empty.webm": ("skipped", "the file is empty"),
        "fire2.mp4": ("ok", ""),
        "no_audio.mp4": ("ok", "no sound"),
        "no_duration.webm": ("ok", ""),
    }
    clips = ShardDataset(tmp_path / "out", "train", 64, 10, VGGishLogMel())
    assert all(len(clips[index].frames) > 0 for index in range(len(clips)))


def test_a_worker_and_its_child_import_no_torch() -> None:
    program = (
        "import sys, avfast.prepare\n"  # the program itself, all that workers and their children import
        "heavy = {'torch', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)
