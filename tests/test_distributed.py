"""Training over ranks: as one process does, exactly resumed after a kill, ended by the failure of one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from avfast import checkpoint
from avfast.data.batch import Batch
from avfast.distributed import World
from avfast.models.sync_norm import CPUSyncBatchNorm

PROGRAM = Path(__file__).with_name("double_precision_train.py")
EPOCHS, BATCH = 2, 23  # of 24 clips: the last batch holds one, of which rank 1 has no share


def run(
    data: Path, out: Path, ranks: int, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Train without dropout and in double precision, so that rounding has nothing to amplify it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    launcher += [option for option in more if option.startswith("--max-restarts")]
    arguments = ["--data", str(data), "--out", str(out), "--device", "cpu", "--no-report"]
    arguments += [
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        str(BATCH),
        "--log-every",
        "1",
        "--save-every",
        "1",
    ]
    arguments += [option for option in more if not option.startswith("--max-restarts")]
    start = launcher if ranks > 1 else [sys.executable]
    return subprocess.run(
        [*start, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    result = run(data, out, 1)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def together(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, by two ranks."""
    out = tmp_path_factory.mktemp("together") / "run"
    result = run(data, out, 2)
    assert result.returncode == 0, result.stderr
    assert "2 ranks" in result.stdout and result.stdout.count("test split") == 1
    return out


def state(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return checkpoint.load(run / name)["model"]


def log(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- as one process ---------------------------------------------------------------------------------


def test_two_ranks_learn_what_one_process_learns(alone: Path, together: Path) -> None:
    for name in ("last.pt", "best.pt"):
        expected, found = state(alone, name), state(together, name)
        assert expected.keys() == found.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-8, msg=key)
    losses = [[line["loss"] for line in log(run) if "loss" in line] for run in (alone, together)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-7)
    assert len(losses[0]) == 4


def test_two_ranks_measure_what_one_process_measures(alone: Path, together: Path) -> None:
    """Every clip counts once, in the order of the split: 9 clips in validation and test."""
    expected, found = ([line["val"] for line in log(run) if "val" in line] for run in (alone, together))
    for one, other in zip(expected, found, strict=True):
        assert (one["micro_f1"], one["map"]) == (other["micro_f1"], other["map"])
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-7)
    thresholds = [
        checkpoint.load(run / "best.pt")["thresholds"]["global"]["scores"] for run in (alone, together)
    ]
    assert thresholds[0] == pytest.approx(thresholds[1], abs=1e-7)
    rows = [
        [line.split(",") for line in (run / "scores.csv").read_text().splitlines()[1:]]
        for run in (alone, together)
    ]
    assert [row[:2] + row[3:] for row in rows[0]] == [row[:2] + row[3:] for row in rows[1]]
    np.testing.assert_allclose(*([float(row[2]) for row in part] for part in rows), rtol=0, atol=1e-7)
    one, other = (json.loads((run / "metrics.json").read_text()) for run in (alone, together))
    assert one["clips"] == other["clips"] == 9 and one["micro"] == other["micro"]
    assert one["localization"] == other["localization"]


# --- faults -----------------------------------------------------------------------------------------


def test_a_killed_rank_starts_again_from_the_last_checkpoint(
    data: Path, together: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = run(data, out, 2, "--max-restarts=1", AVFAST_TEST_FAULT="kill")
    assert result.returncode == 0, result.stderr
    assert "exitcode: -9" in result.stderr
    for name in ("last.pt", "best.pt"):
        expected, found = state(together, name), state(out, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    assert log(out) == log(together)
    assert (out / "metrics.json").read_bytes() == (together / "metrics.json").read_bytes()


def test_the_error_of_one_rank_ends_all_in_one_line(data: Path, alone: Path, tmp_path: Path) -> None:
    out, begin = tmp_path / "run", time.monotonic()
    result = run(data, out, 2, AVFAST_TEST_FAULT="error")
    assert time.monotonic() - begin < 120  # far from the time that a rank waits for others
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "error:" in line and line.startswith("avfast")]
    assert lines == ["avfast.train: error: clip.mp4: unreadable on rank 1"]
    assert "[rank" not in result.stderr  # how torch marks a rank's traceback
    assert re.findall(r"exitcode *: (-?\d+)", result.stderr)[0] == "2"
    # Another number of ranks may go on; as nothing is drawn at random here, with the same result.
    assert checkpoint.load(out / "last.pt")["progress"]["step"] == 1
    result = run(data, out, 1, "--resume")
    assert result.returncode == 0, result.stderr
    expected, found = state(alone), state(out)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-8, msg=key)


# --- parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_shares_are_disjoint_and_complete(size: int, count: int) -> None:
    shares = [World(rank, size).share(range(count)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_world_of_one_needs_nobody() -> None:
    world = World()
    assert world.main and world.quiet is None
    assert world.any(True) and not world.any(False)
    assert world.collect([3, 1, 2]) == [3, 1, 2]
    assert world.once(lambda: 7) == 7
    with world.local_turns():
        assert not dist.is_initialized()


def test_ranks_draw_different_numbers() -> None:
    def draw(rank: int, seed: int) -> float:
        World(rank, 2).seed(seed)
        return torch.rand(()).item()

    before = checkpoint.random_states()
    try:
        draws = [draw(rank, seed) for rank in (0, 1) for seed in (0, 1)]
        assert len(set(draws)) == 4 and draws[3] == draw(1, 1)
    finally:
        checkpoint.restore_random_states(before)


@pytest.fixture
def group() -> object:
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(5, 4, 7), (5, 4, 6, 7), (1, 4, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shared_batch_norm_is_batch_norm(group: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = (nn.BatchNorm1d if len(shape) == 3 else nn.BatchNorm2d)(4).to(dtype)
    shared = CPUSyncBatchNorm(4).to(dtype)
    nn.init.normal_(plain.weight)
    shared.load_state_dict(plain.state_dict())
    values, gradient = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    gradients = []
    for norm in (plain, shared):
        leaf = values.clone().requires_grad_()
        for _ in range(2):
            norm(leaf).backward(gradient)
        gradients.append(leaf.grad)
    assert shared.state_dict().keys() == plain.state_dict().keys()
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for found, expected in [
        (gradients[1], gradients[0]),
        (shared.weight.grad, plain.weight.grad),
        (shared.bias.grad, plain.bias.grad),
        *zip(shared.buffers(), plain.buffers(), strict=True),
    ]:
        torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(shared.eval()(values), plain.eval()(values), **tolerance)


def test_shared_batch_norm_of_nothing(group: object) -> None:
    norm = CPUSyncBatchNorm(4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    empty = torch.zeros(0, 4, 3, requires_grad=True)
    norm(empty).sum().backward()
    assert norm.weight.grad is not None and not norm.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_batch_without_clips_keeps_its_shapes(data: Path) -> None:
    from avfast.data.batch import collate
    from avfast.models import ModelConfig
    from avfast.sources import open_split

    dataset = open_split(data, "train", ModelConfig.from_preset("toy"))
    batch = collate([dataset[0], dataset[3]])
    none = batch.without_clips()
    assert isinstance(none, Batch) and none.size == 0 and none.clips == []
    assert none.region_offsets.tolist() == none.segment_offsets.tolist() == none.frame_offsets.tolist() == [0]
    assert none.frames.shape == (0, *batch.frames.shape[1:]) and none.targets.shape == (0, 3)
