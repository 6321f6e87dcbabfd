"""Comparison of systems: the program through kill and failure, and its figures by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from avfast import cli, compare, comparison, metrics
from avfast.comparison import BOTH, PICTURE, SOUND, Result, Run
from avfast.data.label_lists import DCASE2017_CLASSES
from avfast.errors import InputError
from avfast.report import comparison as report

CLASSES = ["bell", "horn"]
SYSTEMS = [BOTH, SOUND, PICTURE]


# --- the program ------------------------------------------------------------------------------------


def settings(data: Path, out: Path, **changes: Any) -> compare.Options:
    options = compare.Options(data=data, out=out, systems=SYSTEMS, epochs=2, batch_size=8, device="cpu")
    return replace(options, **changes)


@pytest.fixture(scope="module")
def compared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was killed in its first run, and started again."""
    out = tmp_path_factory.mktemp("compared") / "out"
    arguments = ["--data", data, "--out", out, "--systems", *SYSTEMS, "--epochs", "2", "--batch-size", "8"]
    command = [sys.executable, "-m", "avfast.compare", *map(str, arguments), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        program = subprocess.Popen(command)
        log = out / "runs" / f"{BOTH}-0" / "metrics.jsonl"
        wait_for(lambda: log.is_file() and "val" in log.read_text())
        threads = Path(f"/proc/{program.pid}/task").iterdir()
        children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
        assert children
        program.send_signal(signal.SIGKILL)
        program.wait()
        # No orphan goes on training in a folder that another process resumes.
        wait_for(lambda: not any(alive(pid) for pid in children))
        assert not (log.parent / "metrics.json").exists(), "killed too late to test anything"
        compare.main(settings(data, out))
    return out


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def alive(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def table(compared: Path) -> dict[str, Any]:
    return json.loads((compared / "table.json").read_text())


def test_a_killed_comparison_goes_on(compared: Path, table: dict[str, Any]) -> None:
    assert list(table["systems"]) == SYSTEMS
    for name, entry in table["systems"].items():
        summary = json.loads((compared / "runs" / f"{name}-0" / "metrics.json").read_text())
        assert entry["mean"] == comparison.figures(summary)
        assert entry["spread"] is None
        assert entry["seconds"] > 0 < entry["cpu_seconds"]
    steps = [json.loads(line) for line in (compared / "runs" / f"{BOTH}-0" / "metrics.jsonl").open()]
    assert sum("val" in line for line in steps) == 2  # the epoch before the kill was not run again
    assert (compared / "runs" / f"{BOTH}-0.log").read_text().count("3 classes") == 2
    sizes = [entry["learned_parameters"] for entry in table["systems"].values()]
    assert sizes[0] == sizes[1] + sizes[2]


def test_the_report_is_all_there(compared: Path, table: dict[str, Any]) -> None:
    text = (compared / "table.md").read_text()
    for name in SYSTEMS:
        assert f"| {name} | {table['systems'][name]['mean']['micro_f1']:.3f} |" in text
    assert table["differences"]["against"] == BOTH
    assert set(table["differences"]["systems"]) == {SOUND, PICTURE}
    parts = json.loads((compared / "complementarity.json").read_text())
    assert list(parts) == [comparison.ALL_CLASSES, *table["classes"]]
    for name in ("per_class.png", "complementarity.png"):
        assert (compared / name).read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_kept_and_seeds_may_be_added(
    compared: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempted: list[tuple[str, int]] = []

    def refuse(_: compare.Options, planned: Run) -> Run:
        attempted.append((planned.system, planned.seed))
        return replace(planned, error="not today")

    monkeypatch.setattr(compare, "attempt", refuse)
    before = (compared / "table.md").read_text()
    compare.main(settings(data, compared))
    assert (compared / "table.md").read_text() == before
    compare.main(settings(data, compared, systems=[PICTURE], seeds=[0, 1], log_every=3))
    assert attempted == [(PICTURE, 1)]
    assert f"- {PICTURE}, seed 1: not today" in (compared / "table.md").read_text()
    with pytest.raises(InputError, match=r"other options \(epochs differ\)"):
        compare.main(settings(data, compared, epochs=4))


def test_runs_share_what_there_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(options: compare.Options, planned: Run) -> Run:
        together.wait()  # breaks unless two runs go on at once
        told = compare.training_options(options, planned, Path("run"))
        return replace(planned, error=f"{options.jobs} at once, {told.cache_gib} GiB each")

    monkeypatch.setattr(compare, "attempt", meet)
    with pytest.raises(InputError, match=r"every run failed; .*: 2 at once, 1\.5 GiB each"):
        compare.main(settings(data, tmp_path, seeds=[0, 1], jobs=2, cache_gib=3.0))


def test_jobs_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert [compare.default_jobs(device) for device in ("cpu", "cuda:1")] == [2, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert compare.default_jobs("cpu") == 1


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_: Any) -> None:
    raise RuntimeError("out of\nluck")


@pytest.mark.parametrize(
    ("end", "reason"), [(die, "its process was killed"), (fail, "RuntimeError: out of luck")]
)
def test_a_run_that_crashes_is_a_row_that_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Any, reason: str
) -> None:
    monkeypatch.setattr(compare, "child", end)
    with pytest.raises(InputError, match=f"every run failed; {BOTH}, seed 0: {reason}"):
        compare.main(settings(data, tmp_path, systems=[BOTH]))
    text = (tmp_path / "table.md").read_text()
    assert f"| {BOTH} | failed |" in text
    assert reason in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "av-two-stream", "av-three-stream"], "--systems: expected some of av-two-stream, "),
        (["--seeds", "0", "0"], "--seeds: expected one or more, each once"),
        (["--systems"], "--systems: expected one or more"),
        (["--data", "{tmp}/absent"], "absent"),
        (["--backbone", "resnet"], "--backbone: expected one of"),
        (["--out", "{tmp}"], "not empty, and no comparison"),
        (["--epochs", "0"], "--epochs: expected a number above 0"),
        (["--jobs", "0"], "--jobs: expected a number of at least 1"),
        (["--epoch", "3"], "--epoch"),
    ],
)
def test_bad_usage_ends_with_code_2_and_one_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "letter.txt").write_text("")
    before = ["compare", "--data", str(data), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*before, *(text.format(tmp=tmp_path) for text in arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(compare.main, compare.Options)
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("avfast.compare: error: ")
    assert message in complaint
    assert complaint.count("\n") == 1


def test_weights_go_to_the_systems_that_have_their_network() -> None:
    options = compare.Options(visual_weights="v.pth", audio_weights="a.pth", vggish_pca="p.pth", lr=0.5)

    def given(system: str) -> list[Any]:
        told = compare.training_options(options, Run(system, 3, None), Path("run"))
        assert (told.system, told.seed, told.resume, told.lr) == (system, 3, False, 0.5)
        return [told.visual_weights, told.audio_weights, told.vggish_pca]

    assert given(BOTH) == ["v.pth", "a.pth", "p.pth"]
    assert given(SOUND) == [None, "a.pth", "p.pth"]
    assert given(PICTURE) == ["v.pth", None, None]
    assert given("gated-crnn") == [None, None, None]


# --- figures ----------------------------------------------------------------------------------------


LABELS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=bool)


def result(decisions: list[list[int]], views: dict[str, list[list[int]]] | None = None) -> Result:
    def figures_of(says: list[list[int]]) -> dict[str, Any]:
        return metrics.classification(np.array(says, float), LABELS, 0.5, CLASSES)

    summary = {**figures_of(decisions), "split": "test"}
    summary["views"] = {name: figures_of(says) for name, says in (views or {}).items()}
    return Result(
        figures=comparison.figures(summary),
        summary=summary,
        clips=["a", "b", "c", "d"],
        decisions=np.array(decisions, bool),
        labels=LABELS,
        parameters=2_000_000,
        learned=1_500,
        seconds=10.0,
        cpu_seconds=20.0,
    )


RIGHT = LABELS.astype(int).tolist()
BELLS, HORNS, NOTHING = [[1, 0], [0, 0], [1, 0], [0, 0]], [[0, 0], [0, 1], [0, 1], [0, 0]], [[0, 0]] * 4


def test_shapley_by_hand() -> None:
    assert comparison.shapley(0.5, 0.25, 0.75) == {"audio": 0.5, "video": 0.25}
    split = comparison.shapley(0.9, 0.1, 0.8, neither=0.1)
    assert split == pytest.approx({"audio": 0.75, "video": -0.05})
    # Who adds nothing gets nothing; who are alike share alike.
    assert comparison.shapley(0.6, 0.0, 0.6) == {"audio": 0.6, "video": 0.0}
    assert comparison.shapley(0.4, 0.4, 0.6) == pytest.approx({"audio": 0.3, "video": 0.3})


def test_complementarity_by_hand() -> None:
    finished = {
        BOTH: {0: result(RIGHT, {"audio": RIGHT, "visual": NOTHING}), 5: result(NOTHING)},
        SOUND: {0: result(BELLS)},
        PICTURE: {0: result(HORNS), 5: result(HORNS)},
    }
    parts = comparison.complementarity(finished)
    assert parts is not None
    assert list(parts) == [comparison.ALL_CLASSES, *CLASSES]
    assert parts["bell"] == {
        "audio": 1.0,
        "video": 0.0,
        "both": 1.0,
        "silenced_video": 1.0,
        "silenced_audio": 0.0,
        "gain": 0.0,
        "shapley": {"audio": 1.0, "video": 0.0},
        "shapley_silenced": {"audio": 1.0, "video": 0.0},
    }
    whole = parts[comparison.ALL_CLASSES]
    assert whole["shapley"] == pytest.approx({"audio": 0.5, "video": 0.5})
    assert whole["gain"] == pytest.approx(1 - 2 / 3)
    assert parts["horn"]["shapley"] == {"audio": 0.0, "video": 1.0}
    assert parts["horn"]["shapley_silenced"] == {"audio": 1.0, "video": 0.0}
    for missing in SYSTEMS:
        assert comparison.complementarity({**finished, missing: {}}) is None


def test_means_and_spread_over_seeds() -> None:
    runs = [Run(SOUND, 0, result(RIGHT)), Run(SOUND, 1, result(NOTHING)), Run(SOUND, 2, None, "no luck")]
    table = comparison.compare([*runs, Run(PICTURE, 0, None, "no eyes"), Run(BOTH, 0, None)])
    entry = table["systems"][SOUND]
    assert entry["mean"]["micro_f1"] == 0.5
    assert entry["spread"]["micro_f1"] == pytest.approx(np.std([0, 1], ddof=1))
    assert entry["per_class"] == {"bell": 0.5, "horn": 0.5}
    assert table["systems"][PICTURE] == {"runs": {"0": {"error": "no eyes"}}, "mean": None, "spread": None}
    text = report.markdown(table)
    assert f"| {SOUND} | 0.500 ± 0.707 |" in text
    assert "| 2.0 M (2 k) | 10 s | 20 s |" in text
    assert f"| {PICTURE} | failed |" in text
    assert f"| {BOTH} | not run yet |" in text
    assert f"- {SOUND}, seed 2: no luck" in text


def test_figures_take_the_localisation_that_is_there() -> None:
    summary = result(RIGHT).summary
    assert not {"corloc", "segment_f1"} & set(comparison.figures(summary))
    summary = {**summary, "localization": {"visual": {"corloc": 0.1, "pointing": 0.2}}}
    flat = comparison.figures(summary)
    assert (flat["corloc"], flat["pointing"], "segment_f1" in flat) == (0.1, 0.2, False)
    segments = {"segment_f1": 0.3, "segment_er": 0.4}
    flat = comparison.figures({**summary, "localization": {"visual": segments, "audio": segments}})
    assert (flat["visual_segment_f1"], flat["segment_er"], "corloc" in flat) == (0.3, 0.4, False)


def test_differences_are_measured_against_the_first_system() -> None:
    table = comparison.compare(
        [Run(SOUND, 0, result(RIGHT)), Run(PICTURE, 0, result(BELLS)), Run(BOTH, 0, None)]
    )
    assert table["differences"]["against"] == SOUND
    assert list(table["differences"]["systems"]) == [PICTURE]
    assert table["differences"]["systems"][PICTURE]["difference"] == pytest.approx(1 / 3)
    failed_first = comparison.compare([Run(BOTH, 0, None, "no"), Run(SOUND, 0, result(RIGHT))])
    assert failed_first["differences"] is None
    assert "Differences" not in report.markdown(failed_first)


def test_runs_on_other_clips_are_refused() -> None:
    other = replace(result(RIGHT), clips=["a", "b", "c", "e"])
    with pytest.raises(InputError, match=f"{PICTURE} was tested on other clips or labels than {SOUND}"):
        comparison.compare([Run(SOUND, 0, result(RIGHT)), Run(PICTURE, 0, other)])


def test_published_figures_stand_beside_the_challenge_data_only() -> None:
    table = comparison.compare([Run(SOUND, 0, result(RIGHT))])
    assert "As published" not in report.markdown(table)
    text = report.markdown({**table, "classes": list(DCASE2017_CLASSES)})
    assert "as recalled" in text
    assert f"| {SOUND} | 57.3 | 53.2 | 62.0 |" in text
    # F1 is the harmonic mean of the other two, as far as one decimal tells.
    for f1, precision, recall in report.PUBLISHED.values():
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=0.1)


def test_scores_that_are_not_a_whole_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(InputError, match=r"scores\.csv: no such file"):
        comparison.read_scores(path, CLASSES)
    for text in ("clip,class\na,bell\n", "clip,class,score,label\na,bell,high,1\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="expected the columns clip, class, score, label"):
            comparison.read_scores(path, CLASSES)
    path.write_text("clip,class,score,label\na,bell,0.5,1\na,gong,0.5,1\n")
    with pytest.raises(InputError, match="expected a row for every clip and each of the 2 classes"):
        comparison.read_scores(path, CLASSES)


def test_pictures_draw_what_they_are_given() -> None:
    parts = comparison.complementarity(
        {
            BOTH: {0: result(BELLS, {"audio": BELLS, "visual": HORNS})},
            SOUND: {0: result(RIGHT)},
            PICTURE: {0: result(NOTHING)},
        }
    )
    assert parts is not None
    axes = report.draw_shares(Figure().subplots(), parts)
    widths = [bar.get_width() for bar in axes.patches]
    expected = [part["shapley"][modality] for modality in ("audio", "video") for part in parts.values()]
    assert widths == pytest.approx(expected)
    assert min(widths) < 0  # the picture does harm here, and its bar points the other way
    axes = report.draw_alone_and_silenced(Figure().subplots(), parts)
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx(
        [parts["all (micro)"][k] for k in ("audio", "silenced_video", "video", "silenced_audio", "both")]
    )
    axes = report.draw_per_class(Figure().subplots(), np.array([[0.25, 1.0]]), ["x"], CLASSES)
    assert [text.get_text() for text in axes.texts] == ["0.25", "1.00"]
