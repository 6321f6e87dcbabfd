"""Training through faults caused for real: signals, steps that are not finite, no memory, full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_shards
import torch

from avfast import checkpoint, guards, runs, sources, train, training
from avfast.errors import InputError, Interrupted
from avfast.models import ModelConfig

EPOCHS, BATCH = 2, 5
STEPS = EPOCHS * math.ceil(tiny_shards.COUNTS["train"] / BATCH)
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
"""Every option that is random, or has a state."""

pytestmark = pytest.mark.usefixtures("one_thread")


def options(data: Path, out: Path, **changes: object) -> train.Options:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "log_every": 1, "report": False}
    return train.Options(data=data, out=out, **{**settings, **EVERYTHING, **changes})


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train.main(options(data, out))
    return out


def assert_same(run: Path, expected: Path) -> None:
    """All that a run learns and reports, bit for bit."""
    for name in ("last.pt", "best.pt"):
        ours, theirs = (checkpoint.load(folder / name) for folder in (run, expected))
        assert leaves(ours) == leaves(theirs)
    for name in ("metrics.jsonl", "metrics.json", "scores.csv", "config.json"):
        assert (run / name).read_text() == (expected / name).read_text()


def leaves(state: object, name: str = "") -> dict[str, object]:
    """Every value of a checkpoint by its place, tensors as their bytes."""
    if isinstance(state, torch.Tensor):
        return {name: (state.dtype, state.shape, state.numpy().tobytes())}
    if not isinstance(state, dict | list | tuple):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, value in items for k, v in leaves(value, f"{name}/{key}").items()}


def lines(run: Path, key: str) -> list[dict[str, object]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if key in line]


# --- signals ----------------------------------------------------------------------------------------


def signal_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Let this process receive a signal at the end of a step."""
    after_step = training.Trainer.after_step

    def signalled(trainer: training.Trainer, *arguments: object) -> None:
        after_step(trainer, *arguments)
        if trainer.progress.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(training.Trainer, "after_step", signalled)


def test_stopped_and_resumed_with_other_workers_is_as_if_never_stopped(
    data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    end_of_epoch = STEPS // EPOCHS
    for workers, step in ((0, 2), (2, end_of_epoch), (1, STEPS - 2)):
        with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
            signal_after(patch, step)
            train.main(options(data, out, workers=workers, resume=step > 2))
        assert (stop.value.number, stop.value.more) == (signal.SIGTERM, "--resume")
        assert checkpoint.load(out / "last.pt")["progress"]["step"] == step
    train.main(options(data, out, resume=True))
    assert_same(out, undisturbed)


@pytest.mark.parametrize(
    "place", [(training, "predict_parts"), (train, "evaluate")], ids=["validation", "test"]
)
def test_stopped_while_it_is_measured(
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[object, str],
) -> None:
    out = tmp_path / "run"
    measure = getattr(*place)

    def signalled(*arguments: object, **settings: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(*place, signalled)
        train.main(options(data, out))
    assert (stop.value.number, stop.value.more) == (signal.SIGINT, "--resume")
    assert not (out / "metrics.json").exists()
    train.main(options(data, out, resume=True))
    assert_same(out, undisturbed)


def test_sigterm_to_the_program_and_its_workers(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """As a scheduler sends it; the last line is the command that goes on."""
    out = tmp_path / "run"
    numbers = {"epochs": EPOCHS, "batch-size": BATCH, "log-every": 1, "average": 2, "clip-grad": 1.0}
    numbers |= {"keep": "last", "mixup": 0.5, "patience": 9, "warmup": 3, "workers": 1}
    flags = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    flags += ["--balanced", "True", "--class-weights", "True", "--flip", "True", "--no-report"]
    command = ["-m", "avfast.train", "--data", str(data), "--out", str(out), "--device", "cpu", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not ((out / "metrics.jsonl").is_file() and lines(out, "loss")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    complaint = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, complaint
    assert "Traceback" not in complaint
    last = complaint.strip().splitlines()[-1]
    assert last.startswith(
        f"avfast.train: stopped by SIGTERM; {out} is saved; go on with: python -m avfast.train"
    )
    assert last.endswith("--no-report --resume")
    assert 0 < checkpoint.load(out / "last.pt")["progress"]["step"] < STEPS
    train.main(options(data, out, resume=True))
    assert_same(out, undisturbed)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stop, guards.guarded(tmp_path) as guard, guard.deferred():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # as a launcher passes them on
            os.kill(os.getpid(), number)
        assert guard.signalled == signal.SIGINT
        monkeypatch.setattr(guards, "PATIENCE_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not stopped")
    assert (stop.value.number, stop.value.more) == (signal.SIGINT, "")  # nothing to resume
    assert signal.getsignal(signal.SIGINT) is before


# --- steps that are not finite ----------------------------------------------------------------------


def bags(folder: Path, spoilt: set[int]) -> Path:
    """Feature bags; of some, the values are finite, and what a network makes of them is not."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(24 + 16):
        split = "train" if number < 24 else ("val", "test")[number % 2]
        label = number % 2
        scale = np.float32(3e38 if number in spoilt else 1)
        (folder / f"{number:02d}.npz").parent.mkdir(exist_ok=True)
        values = (generator.random((6, 8), np.float32) * 0.5 + 0.5 * label) * scale
        np.savez(folder / f"{number:02d}.npz", visual=values, audio=values)
        rows.append(f"{number:02d},{'ab'[label]},{split}")
    (folder / "labels.csv").write_text("\n".join(["clip,labels,split", *rows]) + "\n")
    return folder


def bag_options(folder: Path, out: Path, **changes: object) -> train.Options:
    return options(None, out, features=folder, average=0, mixup=0.0, flip=False, balanced=False, **changes)


def test_a_step_that_is_not_finite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It stops, resuming repeats it, and skipping it is the same whether from the start or from there on."""
    folder, out = bags(tmp_path / "bags", {7}), tmp_path / "run"
    for resume in (False, True):
        with pytest.raises(InputError, match=r"the loss is nan at step .*nan-batch\.json names the 5 clips"):
            train.main(bag_options(folder, out, resume=resume))
        record = json.loads((out / "nan-batch.json").read_text())
        assert "07" in record["clips"] and len(record["clips"]) == BATCH
        assert (record["loss"], record["gradient_norm"]) == ("nan", "nan")
        assert record["parameters"]
        assert checkpoint.load(out / "last.pt")["progress"]["step"] == record["step"] - 1
    config = json.loads((out / "config.json").read_text())
    dataset = sources.open_split(sources.recall(config), "train", ModelConfig(**config["model"]))
    samples = [dataset[list(dataset.clips).index(name)] for name in record["clips"]]
    assert [sample.clip for sample in samples if sample.audio.max() > 1e37] == ["07"]
    (out / "nan-batch.json").unlink()
    for place, resume in ((out, True), (tmp_path / "skipping", False)):
        train.main(bag_options(folder, place, on_nan="skip", resume=resume))
        assert "skipped: the clips of 2 steps that were not finite" in capfd.readouterr().out
        skipped = [line["skipped"] for line in lines(place, "skipped")]
        assert len(skipped) == EPOCHS and all("07" in step["clips"] for step in skipped)
        assert len(lines(place, "loss")) == STEPS - EPOCHS
        assert np.isfinite([line["loss"] for line in lines(place, "loss")]).all()
    assert_same(out, tmp_path / "skipping")


def test_too_many_such_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    folder = bags(tmp_path / "bags", set(range(24)))
    settings = {"on_nan": "skip", "epochs": 4}
    with pytest.raises(InputError, match=r"the loss is nan at step 11, "):
        train.main(bag_options(folder, tmp_path / "run", **settings))
    assert len(lines(tmp_path / "run", "skipped")) == guards.MOST_SKIPPED_IN_A_ROW


def test_a_skipped_step_leaves_no_trace_in_statistics() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before, numbers = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    rewind = guards.Rewind(model, torch.device("cpu"))
    model(torch.full((4, 2), math.inf) * torch.rand(4, 2)).sum().backward()
    assert guards.spoilt(model)
    assert not model[1].running_mean.isfinite().all()
    rewind.all_back()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), numbers)


# --- memory and disk --------------------------------------------------------------------------------

GREEDY = """
    import resource, sys
    from avfast import cli, train
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20),) * 2)
    cli.run(train.main, train.Options)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by what /proc says")
def test_out_of_memory_says_which_option_to_lower(data: Path, tmp_path: Path) -> None:
    command = ["--data", data, "--out", tmp_path / "run", "--batch-size", "24", "--image-size", "1024"]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GREEDY), *map(str, command), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert "out of memory" in line and "--batch-size (now 24)" in line and "--image-size (now 1024)" in line


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "lower --batch-size"),
        (
            MemoryError("Caught MemoryError in DataLoader worker process 0.\nMemoryError: 9 GiB"),
            "9 GiB.*lower",
        ),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "--workers 0"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower --workers"),
    ],
)
def test_other_ways_to_run_out_of_memory(tmp_path: Path, error: Exception, advice: str) -> None:
    with pytest.raises(InputError, match=advice), guards.guarded(tmp_path) as guard:
        guard.costly = {"--batch-size": 24}
        raise error


def test_what_is_no_matter_of_memory_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="our fault"), guards.guarded(tmp_path):
        raise RuntimeError("our fault")


def test_a_full_disk_keeps_the_last_checkpoint(
    data: Path, undisturbed: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    size = (undisturbed / "last.pt").stat().st_size
    out = small_disk(int(2.7 * size)) / "run"  # for two, but not for a third before the first is gone
    with pytest.raises(InputError, match=r"(last|best)\.pt: the disk is full; .* go on with --resume"):
        train.main(options(data, out, save_every=2))
    assert not list(out.glob(".tmp-*"))
    last, previous = (
        checkpoint.load(out / f"{name}.pt")["progress"]["step"] for name in ("last", "previous")
    )
    assert 0 <= previous < last < STEPS
    small_disk(8 * size)
    train.main(options(data, out, resume=True))
    assert_same(out, undisturbed)


def test_a_log_on_a_full_disk_is_whole_up_to_its_last_line(small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(64 << 10)
    log = runs.RunLog(folder, 0)
    log.write({"step": 1})
    with pytest.raises(OSError, match="No space") as full:
        log.write({"step": 2, "long": "x" * (100 << 10)})
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(folder / "metrics.jsonl"))
    assert log.lines() == [{"step": 1}]
