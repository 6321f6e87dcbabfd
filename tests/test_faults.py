"""Damaged shards: bytes flipped, files cut short and taken away; training goes on as far as it should."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import tiny_shards
import torch

from avfast import checkpoint, runs, train, training
from avfast.errors import DamagedClip, InputError, Interrupted
from avfast.faults import Faults
from avfast.models import ModelConfig
from avfast.sources import open_split

EPOCHS, BATCH = 2, 5

pytestmark = pytest.mark.usefixtures("one_thread")


def options(data: Path, out: Path, **changes: object) -> train.Options:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "log_every": 1, "report": False}
    return train.Options(data=data, out=out, **{**settings, **changes})


def damaged(data: Path, folder: Path, clips: Iterable[str], kind: str = ".jpg") -> Path:
    """A copy in which a byte of one picture (or of the sound) of each clip is flipped."""
    shutil.copytree(data, folder)
    index = json.loads((folder / "index.json").read_bytes())
    entries = {entry["clip"]: entry for entry in index["clips"]}
    for clip in clips:
        entry = entries[clip]
        name = next(name for name in entry["members"] if name.endswith(kind))
        place, size, _ = entry["members"][name]
        with (folder / index["shards"][entry["shard"]]["name"]).open("r+b") as file:
            file.seek(place + size // 2)
            byte = file.read(1)
            file.seek(place + size // 2)
            file.write(bytes([byte[0] ^ 16]))
    return folder


def named(run: Path) -> list[tuple[str, str]]:
    """Split and clip of what the log calls unreadable."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["unreadable"] for line in every if "unreadable" in line]
    return [(entry["split"], entry["clip"]) for entry in found]


def test_damaged_clips_are_left_out_named_once_and_counted(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = ["train/003.mp4", "train/009.mp4", "val/004.mp4", "test/005.mp4"]
    folder = damaged(data, tmp_path / "data", bad)
    train.main(options(folder, tmp_path / "run", report=True))
    assert sorted(named(tmp_path / "run")) == [("train", bad[0]), ("train", bad[1]), ("val", bad[2])]
    printed = capfd.readouterr().out
    assert printed.count("cannot be read") == printed.count("left out: 2 of 24 train clips") + 1 == 2
    for clip in bad:
        assert printed.count(f"damaged: cannot read the clip '{clip}' (checksum of the member") == 1
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (summary["clips"], summary["unreadable"]) == (8, [bad[3]])
    assert bad[3] not in (tmp_path / "run" / "scores.csv").read_text()
    assert (tmp_path / "run" / "report.html").is_file()


def test_resume_and_workers_leave_out_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = damaged(data, tmp_path / "data", ["train/003.mp4", "val/004.mp4"], kind="flac")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"mixup": 0.5, "flip": True, "batch_size": 1}  # a batch may lose all its clips
    train.main(options(folder, whole, **changes))
    after_step = training.Trainer.after_step

    def stop(trainer: training.Trainer, *arguments: object) -> None:
        after_step(trainer, *arguments)
        if trainer.progress.step == 30:
            trainer.guard.signalled = 15

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training.Trainer, "after_step", stop)
        train.main(options(folder, stopped, workers=1, **changes))
    train.main(options(folder, stopped, resume=True, **changes))
    for name in ("metrics.jsonl", "metrics.json", "scores.csv"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    ours, theirs = (checkpoint.load(run / "last.pt") for run in (whole, stopped))
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())
    assert ours["unreadable"] == theirs["unreadable"]
    assert list(ours["unreadable"]["train"]) == ["train/003.mp4"]
    assert named(whole) == [("train", "train/003.mp4"), ("val", "val/004.mp4")]
    assert ours["progress"]["step"] == EPOCHS * tiny_shards.COUNTS["train"]


def test_too_many_end_the_run(data: Path, tmp_path: Path) -> None:
    folder = damaged(data, tmp_path / "data", [f"train/{number:03d}.mp4" for number in (3, 4, 5, 6)])
    message = r"^/.*/train-00000\.tar: damaged: .*: 4 of the 24 train clips cannot be read, more than"
    with pytest.raises(InputError, match=message):
        train.main(options(folder, tmp_path / "run"))


def test_a_truncated_shard_loses_the_clips_behind_the_cut(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    index = json.loads((tmp_path / "data" / "index.json").read_bytes())
    last = max((e for e in index["clips"] if e["split"] == "train"), key=lambda entry: entry["key"])
    with (tmp_path / "data" / "train-00000.tar").open("r+b") as file:
        file.truncate(min(place for place, _, _ in last["members"].values()) + 10)
    train.main(options(tmp_path / "data", tmp_path / "run", epochs=1))
    assert named(tmp_path / "run") == [("train", last["clip"])]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_shard_is_an_error_before_anything_is_written(
    data: Path, tmp_path: Path, split: str
) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / f"{split}-00000.tar").unlink()
    with pytest.raises(InputError, match=rf"{split}-00000\.tar: No such file.*; put this shard back"):
        train.main(options(tmp_path / "data", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_share_of_one_in_a_hundred_is_allowed_but_not_all() -> None:
    def most(clips: int) -> int:
        faults = Faults("train", clips)
        with pytest.raises(InputError, match="cannot be read"):
            for number in range(clips):
                faults.note({f"{number}": "damaged"})
        return len(faults.reasons) - 1

    assert [most(clips) for clips in (1, 2, 4, 100, 399, 400, 1000)] == [0, 1, 3, 3, 3, 4, 10]


def test_without_tolerance_the_first_damaged_clip_ends_the_reading(data: Path, tmp_path: Path) -> None:
    folder = damaged(data, tmp_path / "data", ["val/004.mp4"])
    dataset = open_split(folder, "val", ModelConfig())
    with pytest.raises(DamagedClip) as fault:
        dataset[list(dataset.clips).index("val/004.mp4")]
    assert fault.value.clip == "val/004.mp4"
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"^/.*/val-00000\.tar: damaged: cannot read the clip 'val/004"):
            list(runs.load_batches(dataset, [range(4), range(4, 9)], workers))


# --- odd data ---------------------------------------------------------------------------------------


def test_odd_data_gives_finite_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class without positives in training, a split of one clip, batches of one, clips without sound."""
    monkeypatch.setattr(tiny_shards, "COUNTS", {"train": 6, "val": 1, "test": 1})
    folder = tiny_shards.make(tmp_path / "data")
    index = json.loads((folder / "index.json").read_bytes())
    for entry in index["clips"]:
        entry["labels"] = [name for name in entry["labels"] if name != "blue"]
    (folder / "index.json").write_text(json.dumps(index))
    for name in ("av-two-stream", "gated-crnn"):
        changes = {
            "system": name,
            "batch_size": 1,
            "class_weights": True,
            "balanced": True,
        }
        train.main(options(folder, tmp_path / name, crnn_channels=4, **changes))
        for value in checkpoint.load(tmp_path / name / "best.pt")["model"].values():
            assert torch.isfinite(value).all()
        assert "NaN" not in (tmp_path / name / "metrics.jsonl").read_text()
        summary = json.loads((tmp_path / name / "metrics.json").read_text())
        assert summary["clips"] == 1 and math.isfinite(summary["micro"]["f1"])
