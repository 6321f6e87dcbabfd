"""Evaluation: the program repeats training's figures, and events follow from clip-level decisions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_shards
import torch

from avfast import checkpoint, cli, evaluate, evaluation, train
from avfast.data.labels import Annotation, Annotations
from avfast.errors import InputError
from avfast.evaluation import Predictions, Segments, Thresholds
from avfast.metrics import Event, Regions
from avfast.runs import load_batches, load_best
from avfast.sampling import in_batches
from avfast.sources import open_split

CLASSES = ["bell", "horn"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train.main(train.Options(data=data, out=out, epochs=2, batch_size=8, device="cpu", report=False))
    return out


# --- the program ------------------------------------------------------------------------------------


def test_evaluation_repeats_what_training_reported(finished: Path, tmp_path: Path) -> None:
    evaluate.main(evaluate.Options(finished, out=tmp_path, device="cpu"))
    for name in ("metrics.json", "scores.csv"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_another_split_and_other_data(finished: Path, data: Path, tmp_path: Path) -> None:
    evaluate.main(evaluate.Options(finished, split="val", out=tmp_path / "val", device="cpu"))
    summary = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert (summary["split"], summary["clips"]) == ("val", tiny_shards.COUNTS["val"])
    other = tiny_shards.make(tmp_path / "other", seed=5)
    (other / "annotations.csv").unlink()
    evaluate.main(evaluate.Options(finished, data=other, out=tmp_path / "out", device="cpu"))
    assert "localization" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_the_run_keeps_both_kinds_of_thresholds(finished: Path, tmp_path: Path) -> None:
    evaluate.main(evaluate.Options(finished, split="val", out=tmp_path, thresholds="per-class", device="cpu"))
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["threshold"] is None
    own = checkpoint.load(finished / "best.pt")["thresholds"]["per-class"]["scores"]
    assert [entry["threshold"] for entry in summary["per_class"].values()] == own
    assert len(set(own)) > 1


def test_other_classes_are_refused(finished: Path, tmp_path: Path) -> None:
    other = tiny_shards.make(tmp_path / "other", classes=("cat", "dog", "owl"))
    with pytest.raises(InputError, match="has the classes cat, dog, owl, but the run was trained on blue"):
        evaluate.main(evaluate.Options(finished, data=other, device="cpu"))


def test_weights_of_another_architecture_are_refused(finished: Path, tmp_path: Path) -> None:
    state = checkpoint.load(finished / "best.pt")
    state["model"].popitem()
    checkpoint.save(tmp_path / "best.pt", state)
    with pytest.raises(InputError, match=r"best\.pt: its weights do not fit"):
        evaluate.main(evaluate.Options(tmp_path, device="cpu"))


def test_the_program_prints_a_table_and_its_manual(finished: Path) -> None:
    program = [sys.executable, "-m", "avfast.evaluate"]
    shown = subprocess.run([*program, str(finished), "--device", "cpu"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "micro-F1" in shown.stdout
    shown = subprocess.run([*program, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "python -m avfast.evaluate runs/first" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent"], "absent: no such run"),
        (["{tmp}"], "best.pt: damaged"),
        (["{run}", "--data", "{tmp}"], "index.json: no such file"),
        ([], "run"),
        (["{run}", "--split", "half"], "split"),
    ],
)
def test_bad_usage_ends_with_code_2_and_one_line(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "best.pt").write_bytes(b"")
    places = {"run": finished, "tmp": tmp_path}
    monkeypatch.setattr(sys, "argv", ["evaluate", *(text.format(**places) for text in arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main, evaluate.Options)
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("avfast.evaluate: error: ")
    assert message in complaint.lower()
    assert complaint.count("\n") == 1


# --- predictions ------------------------------------------------------------------------------------


def test_predictions_do_not_depend_on_the_batches(finished: Path, data: Path) -> None:
    device = torch.device("cpu")
    trained = load_best(finished, device)
    dataset = open_split(data, "test", trained.model.config)
    one, all_ = (
        evaluation.predict(trained.model, load_batches(dataset, batches, 0), device)
        for batches in (in_batches(range(len(dataset)), 1), in_batches(range(len(dataset)), 100))
    )
    assert one.clips == all_.clips == list(dataset.clips)
    assert one.scores == pytest.approx(all_.scores, abs=1e-5)
    assert one.loss == pytest.approx(all_.loss, abs=1e-5)
    clip = dataset[0]
    assert one.regions[clip.clip].boxes == pytest.approx(all_.regions[clip.clip].boxes)
    assert one.regions[clip.clip].boxes[0] == pytest.approx(clip.boxes[0].numpy())  # source and frame agree
    # The mean evidence of a clip's segments is its score in the audio view.
    means = [one.segments[name].evidence.mean(axis=0) for name in one.clips if len(one.segments[name].bounds)]
    views = [v for n, v in zip(one.clips, one.views["audio"], strict=True) if len(one.segments[n].bounds)]
    assert np.array(means) == pytest.approx(np.array(views), abs=1e-5)
    assert sum(one.views.values()) == pytest.approx(one.scores, abs=1e-5)


def test_a_clip_without_a_modality_is_scored_by_the_other(finished: Path, data: Path) -> None:
    device = torch.device("cpu")
    trained = load_best(finished, device)
    dataset = open_split(data, "test", trained.model.config)
    found = evaluation.predict(trained.model, load_batches(dataset, [range(3)], 0), device)
    assert len(found.regions[found.clips[1]].times) == 0
    assert not found.views["visual"][1].any()
    assert len(found.segments[found.clips[2]].bounds) == 0
    assert not found.views["audio"][2].any()
    assert np.isfinite(found.scores).all()


# --- events -----------------------------------------------------------------------------------------


def predictions(evidence: np.ndarray, scores: tuple[float, float] = (1.0, 1.0)) -> Predictions:
    """One clip with windows of 0.96 s every 0.48 s."""
    start = 0.48 * np.arange(len(evidence))
    return Predictions(
        clips=["a"],
        loss=0.0,
        scores=np.array([scores]),
        labels=np.array([[True, False]]),
        views={"audio": evidence.mean(axis=0)[None]},
        regions={},
        segments={"a": Segments(np.stack([start, start + 0.96], axis=1), evidence)},
    )


def test_events_are_runs_of_segments_over_the_views_threshold() -> None:
    evidence = np.array([[0.9, 0.0], [0.1, 0.0], [0.5, 0.0], [0.7, 0.0], [0.1, 0.9]])
    events = evaluation.detect_events(predictions(evidence), Thresholds(0.5, {"audio": 0.5}))
    # Windows overlap by half: each is active for the part that is nearest to its own centre.
    expected = [Event(0, 0.0, 0.72), Event(0, 1.2, 2.16), Event(1, 2.16, 2.88)]
    assert [(e.label, pytest.approx(e.start), pytest.approx(e.end)) for e in events["a"]] == [
        (e.label, e.start, e.end) for e in expected
    ]


def test_events_need_a_positive_clip_and_positive_evidence() -> None:
    evidence = np.array([[0.9, 0.9], [-0.2, 0.9]])
    heard = evaluation.detect_events(predictions(evidence, (0.4, 0.6)), Thresholds(0.5, {"audio": -1.0}))
    assert [e.label for e in heard["a"]] == [1]
    heard = evaluation.detect_events(predictions(evidence), Thresholds(0.5, {"audio": -1.0}))
    assert [(e.label, e.end) for e in heard["a"]] == [(0, pytest.approx(0.72)), (1, pytest.approx(1.44))]


def test_a_clip_without_sound_has_no_events() -> None:
    silent = predictions(np.zeros((1, 2)))
    silent.segments["a"] = Segments(np.zeros((0, 2)), np.zeros((0, 2)))
    assert evaluation.detect_events(silent, Thresholds(0.5, {"audio": 0.5})) == {"a": []}


def test_thresholds_per_class_decide_each_class_alone() -> None:
    evidence = np.array([[0.9, 0.9], [0.1, 0.9]])
    thresholds = Thresholds(np.array([0.5, 1.5]), {"audio": np.array([0.95, 0.5])})
    assert evaluation.detect_events(predictions(evidence), thresholds) == {"a": []}
    thresholds = Thresholds(np.array([0.5, 0.5]), {"audio": np.array([0.95, 0.5])})
    assert [e.label for e in evaluation.detect_events(predictions(evidence), thresholds)["a"]] == [1]
    assert Thresholds.from_state(thresholds.state()).state() == thresholds.state()


# --- figures ----------------------------------------------------------------------------------------


def test_localization_only_where_there_is_ground_truth() -> None:
    found = predictions(np.array([[0.9, 0.0], [0.9, 0.0]]))
    found.regions["a"] = Regions(np.array([1.0]), np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0.5, 0.5]]))
    found.views["visual"] = np.array([[1.0, 1.0]])
    thresholds = Thresholds(0.5, {"audio": 0.5, "visual": 0.5})
    sound = Annotation("a", "audio", "bell", 0.0, 2.0, None)
    sight = Annotation("a", "visual", "horn", 1.0, 1.0, (0.0, 0.0, 10.0, 8.0))
    stranger = Annotation("a", "audio", "never heard of", 0.0, 1.0, None)

    def places(*rows: Annotation) -> Any:
        annotations = Annotations(rows) if rows else None
        return evaluation.summarise(found, thresholds, CLASSES, annotations).get("localization")

    assert places() is None
    assert places(sight) == {"visual": {"corloc": 1.0, "pointing": 1.0}}
    heard = places(sound, stranger)["audio"]
    assert (heard["segment_f1"], heard["segment_er"]) == (1.0, 0.0)
    assert set(places(sound, sight)) == {"audio", "visual"}


def test_a_clip_without_labels_counts_as_silent_and_an_undescribed_one_does_not() -> None:
    pair = Predictions(
        clips=["empty", "undescribed", "described"],
        loss=0.0,
        scores=np.ones((3, 2)),
        labels=np.array([[False, False], [True, False], [True, False]]),
        views={"audio": np.ones((3, 2))},
        regions={},
        segments={
            name: Segments(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]))
            for name in ("empty", "undescribed", "described")
        },
    )
    truth = Annotations((Annotation("described", "audio", "bell", 0.0, 1.0, None),))
    summary = evaluation.summarise(pair, Thresholds(0.5, {"audio": 0.5}), CLASSES, truth)
    # One hit, and one insertion in the empty clip.
    heard = summary["localization"]["audio"]
    assert (heard["segment_f1"], heard["segment_er"]) == pytest.approx((2 / 3, 1.0))
