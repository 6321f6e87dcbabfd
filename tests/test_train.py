"""Training: the files of a run, exact resume after a kill, determinism, and what the command line refuses."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_shards
import torch

from avfast import checkpoint, cli, metrics, recipes, sampling, train, training
from avfast.errors import InputError
from avfast.models import SYSTEMS

EPOCHS, BATCH = 2, 5
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS = EPOCHS * math.ceil(tiny_shards.COUNTS["train"] / BATCH)

pytestmark = pytest.mark.usefixtures("one_thread")


def options(data: Path, out: Path, **changes: object) -> train.Options:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "log_every": 1}
    settings |= {"save_every": 2, "report": False}
    return train.Options(data=data, out=out, **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train.main(options(data, out, report=True))
    return out


def command(data: Path, out: Path, *more: str) -> list[str]:
    """The command line of the same run."""
    numbers = ["--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--log-every", "1", "--save-every", "2"]
    numbers += ["--no-report"]
    program = [sys.executable, "-m", "avfast.train", "--data", str(data), "--out", str(out)]
    return [*program, "--device", "cpu", *numbers, *more]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return checkpoint.load(run / name)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def log(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- a run ------------------------------------------------------------------------------------------


def test_a_run_leaves_the_files_of_the_contract(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {
        "config.json",
        "metrics.jsonl",
        "metrics.json",
        "last.pt",
        "previous.pt",
        "best.pt",
        "scores.csv",
        "curves.png",
        "report.html",
    }
    assert names == expected
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text()
    assert page.count("<article>") == page.count("data:image/png") - 1 >= 1  # clips, and the curves
    config = json.loads((finished / "config.json").read_text())
    assert (config["seed"], config["recipe"]["epochs"], config["model"]["system"]) == (
        0,
        EPOCHS,
        "av-two-stream",
    )


def test_the_log_has_a_line_per_step_and_per_epoch(finished: Path) -> None:
    lines = log(finished)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in lines if "val" in line] == list(range(EPOCHS))
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    for val in (line["val"] for line in lines if "val" in line):
        assert list(val["per_class"]) == list(tiny_shards.CLASSES)
        mean = np.mean([figures["loss"] for figures in val["per_class"].values()])
        assert val["loss"] == pytest.approx(mean)


def test_metrics_and_scores_agree(finished: Path) -> None:
    summary = json.loads((finished / "metrics.json").read_text())
    assert (summary["split"], summary["clips"], summary["seed"]) == ("test", tiny_shards.COUNTS["test"], 0)
    assert summary["system"] == "av-two-stream"
    with (finished / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    shape = (tiny_shards.COUNTS["test"], len(tiny_shards.CLASSES))
    scores = np.array([float(row["score"]) for row in rows]).reshape(shape)
    labels = np.array([row["label"] == "1" for row in rows]).reshape(shape)
    figures = metrics.classification(scores, labels, summary["threshold"], tiny_shards.CLASSES)
    assert {key: summary[key] for key in figures} == figures
    assert set(summary["views"]) == {"audio", "visual"}
    assert set(summary["localization"]["visual"]) == {"corloc", "pointing"}
    assert set(summary["localization"]["audio"]) >= {"segment_f1", "segment_er"}


def test_the_best_checkpoint_is_the_best_epoch_on_validation(finished: Path) -> None:
    best = checkpoint.load(finished / "best.pt")
    epochs = [line["val"] for line in log(finished) if "val" in line]
    assert (best["val"]["micro_f1"], best["val"]["map"]) == max((e["micro_f1"], e["map"]) for e in epochs)
    chosen = best["thresholds"]["global"]["scores"]
    assert json.loads((finished / "metrics.json").read_text())["threshold"] == chosen
    assert best["classes"] == list(tiny_shards.CLASSES)


# --- determinism and resume -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_seed_decides_the_weights(data: Path, finished: Path, tmp_path: Path, workers: int) -> None:
    train.main(options(data, tmp_path / "again", workers=workers))
    assert same(weights(finished), weights(tmp_path / "again"))
    train.main(options(data, tmp_path / "other", seed=1, epochs=1))
    assert not same(weights(finished), weights(tmp_path / "other"))


def test_killed_and_resumed_is_as_if_never_killed(data: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    kill_after(command(data, out), out, step=STEPS // 3)  # inside an epoch
    kill_after(command(data, out, "--resume"), out, step=STEPS // 2)
    assert checkpoint.load(out / "last.pt")["progress"]["step"] < STEPS
    result = run(command(data, out, "--resume"))
    assert result.returncode == 0, result.stderr
    assert same(weights(finished), weights(out))
    assert same(weights(finished, "best.pt"), weights(out, "best.pt"))
    assert log(finished) == log(out)
    assert (finished / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()


def kill_after(arguments: list[str], out: Path, step: int) -> None:
    """Start a run and kill it, as the system would, once it has logged a step."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 120
    while not any(line.get("step", 0) >= step for line in readable_log(out)):
        assert process.poll() is None, f"ended before it could be killed: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def readable_log(out: Path) -> list[dict[str, object]]:
    try:
        return log(out)
    except (OSError, ValueError):  # not there yet, or being written
        return []


def test_resuming_a_finished_run_changes_nothing(data: Path, finished: Path) -> None:
    before = (
        weights(finished),
        (finished / "metrics.jsonl").read_bytes(),
        (finished / "scores.csv").read_bytes(),
    )
    train.main(options(data, finished, resume=True))
    assert same(before[0], weights(finished))
    assert before[1:] == ((finished / "metrics.jsonl").read_bytes(), (finished / "scores.csv").read_bytes())


EVERYTHING = {
    "average": 2,
    "balanced": True,
    "class_weights": True,
    "clip_grad": 1.0,
    "flip": True,
    "keep": "last",
    "mixup": 0.5,
    "patience": 9,
    "warmup": 3,
}


class Killed(Exception):
    """As if the process had gone."""


def test_every_option_resumes_exactly(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[dict[str, torch.Tensor]] = []
    finish = training.Trainer.finish_epoch

    def noted(trainer: training.Trainer) -> None:
        epochs.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        finish(trainer)

    monkeypatch.setattr(training.Trainer, "finish_epoch", noted)
    train.main(options(data, tmp_path / "whole", **EVERYTHING))
    for name, value in weights(tmp_path / "whole", "best.pt").items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (epochs[0][name] + epochs[1][name]) / 2)
    after_step = training.Trainer.after_step

    def kill(trainer: training.Trainer, *arguments: object) -> None:
        after_step(trainer, *arguments)
        if trainer.progress.step == STEPS // 2 + 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Trainer, "after_step", kill)
        train.main(options(data, tmp_path / "killed", **EVERYTHING))
    train.main(options(data, tmp_path / "killed", resume=True, **EVERYTHING))
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "killed", name))
    assert log(tmp_path / "whole") == log(tmp_path / "killed")
    rates = [line["lr"] for line in log(tmp_path / "whole") if "lr" in line]
    assert rates[0] < rates[1] < rates[2]


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "av-two-stream"])
def test_every_system_trains_and_is_tested(data: Path, tmp_path: Path, name: str) -> None:
    train.main(options(data, tmp_path / "out", system=name, epochs=1, crnn_channels=4))
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["system"] == name
    assert set(summary["localization"]) == set(summary["views"]) <= {"visual", "audio"}
    if name == "gated-crnn":  # statistics of the training clips are in the checkpoint
        deviation = weights(tmp_path / "out", "best.pt")["norm.deviation"]
        assert (deviation > 0).all() and (deviation != 1).all()


def test_training_stops_when_validation_does_not_improve(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train.main(options(data, out, lr=1e-12, epochs=9, patience=2))
    before = log(out)
    scores = [(line["val"]["micro_f1"], line["val"]["map"]) for line in before if "val" in line]
    assert len(scores) == scores.index(max(scores)) + 1 + 2 < 9
    train.main(options(data, out, lr=1e-12, epochs=9, patience=2, resume=True))
    assert log(out) == before


def test_mixed_precision_learns(data: Path, tmp_path: Path) -> None:
    train.main(options(data, tmp_path / "out", precision="bfloat16"))
    losses = [line["loss"] for line in log(tmp_path / "out") if "loss" in line]
    assert losses[-1] < losses[0]
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "out").values())


def test_balanced_epochs_show_rare_classes_as_often() -> None:
    labels = np.zeros((40, 3), bool)
    labels[:36, 0] = True
    labels[:2, 1] = True  # never without the first class
    orders = [sampling.epoch_order(40, seed, 0, labels).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == 40 and set(orders[0]) <= set(range(40))
    shown = labels[orders[0]]
    assert shown[:, 1].sum() >= 13 and (~shown.any(axis=1)).sum() >= 13


def test_balanced_weights_by_hand() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], bool)
    expected = torch.tensor([[4 / 6, 1, 1], [4 / 2, 1, 1]])
    torch.testing.assert_close(sampling.balanced_weights(labels), expected)


# --- refusals ---------------------------------------------------------------------------------------


def refused(data: Path, out: Path, message: str, **changes: object) -> None:
    with pytest.raises(InputError, match=message):
        train.main(options(data, out, **changes))


def test_resume_needs_a_checkpoint(data: Path, tmp_path: Path) -> None:
    refused(data, tmp_path, "nothing to resume", resume=True)
    (tmp_path / "last.pt").write_bytes(b"damaged")
    refused(data, tmp_path, r"last\.pt: not a checkpoint", resume=True)


def test_resume_refuses_other_options_and_names_them(data: Path, finished: Path, tmp_path: Path) -> None:
    refused(data, finished, r"\(lr, seed differ\)", resume=True, lr=0.5, seed=3)
    refused(data, finished, "image_size", resume=True, image_size=64)
    other = tiny_shards.make(tmp_path / "other", classes=("cat", "dog", "owl"))
    refused(other, finished, "classes", resume=True)


def test_a_run_is_never_overwritten(data: Path, finished: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    refused(data, finished, "not empty; go on with --resume")
    assert before == {path.name: path.read_bytes() for path in finished.iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    refused(data, tmp_path, "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs: expected a number above 0"),
        ({"lr": float("nan")}, "--lr: expected a number above 0"),
        ({"batch_size": -1}, "--batch-size: expected a number above 0"),
        ({"save_every": 0}, "--save-every: expected a number above 0"),
        ({"mixup": 1.5}, "--mixup: expected a share"),
        ({"dropout": 1.0}, r"--dropout: expected a number in \[0, 1\)"),
        ({"patience": -1}, "--patience: expected 0 or a number above"),
        ({"seed": -1}, "--seed: expected 0 or a number above"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "tpu"}, "--device tpu"),
        ({"system": "nonsense"}, "--system: expected one of av-two-stream"),
        ({"image_size": 97}, "--image-size: expected a positive multiple"),
        ({"visual_weights": Path("absent.pth")}, "absent.pth"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    refused(data, tmp_path / "out", message, **changes)
    assert not (tmp_path / "out").exists()


def test_a_diverging_run_says_what_to_do(data: Path, tmp_path: Path) -> None:
    refused(data, tmp_path / "out", r"the loss is \w+ at step \d+, .*lower --lr", lr=1e20)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_named(tmp_path: Path, workers: int) -> None:
    damaged = tiny_shards.make(tmp_path / "damaged")
    shard = damaged / "train-00000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    refused(damaged, tmp_path / "out", r"^/.*/train-00000\.tar: damaged", workers=workers)


def test_tensorboard_events_are_written(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train.main(options(data, tmp_path / "out", epochs=1, tensorboard=True))
    assert any((tmp_path / "out" / "tensorboard").iterdir())


# --- the program ------------------------------------------------------------------------------------


def test_help_is_the_manual() -> None:
    shown = run([sys.executable, "-m", "avfast.train", "--help"])
    assert shown.returncode == 0
    assert "python -m avfast.train --out runs/first" in shown.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "absent"], "absent"),
        (["--resume"], "nothing to resume"),
        (["--no-such-option"], "no-such-option"),
        (["--epochs", "many"], "epochs"),
    ],
)
def test_bad_usage_ends_with_code_2_and_one_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [*command(data, tmp_path / "out")[2:], *more])
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, train.Options)
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("avfast.train: error: ")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_start_line_says_what_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(options(data, tmp_path / "out", epochs=1))
    shown = capsys.readouterr().out
    assert "native CPU kernels" in shown
    assert "24 train, 9 val, 9 test clips, 3 classes" in shown
    assert shown.index("test split") < shown.rindex("micro-F1 ") < shown.index("region CorLoc")


# --- parts ------------------------------------------------------------------------------------------


def test_the_cosine_schedule_falls_from_the_rate_to_zero() -> None:
    rates = [recipes.cosine(1.0, step, 10) for step in range(11)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)
