"""Checkpoints survive kills, and refuse damaged, foreign and malicious files."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from avfast import checkpoint
from avfast.errors import InputError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": {"w": torch.arange(1000.0)}, "classes": ["a"], "threshold": 0.5})
    return path


def test_what_is_saved_comes_back(saved: Path) -> None:
    state = checkpoint.load(saved)
    assert torch.equal(state["model"]["w"], torch.arange(1000.0))
    assert (state["classes"], state["threshold"]) == (["a"], 0.5)


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return (random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item())  # noqa: NPY002

    draw()  # leaves half of a Gaussian pair in NumPy's state
    checkpoint.save(tmp_path / "c.pt", {"random": checkpoint.random_states()})
    expected = draw(), draw()
    checkpoint.restore_random_states(checkpoint.load(tmp_path / "c.pt")["random"])
    assert (draw(), draw()) == expected


def test_an_error_while_writing_leaves_the_previous_checkpoint(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(saved, {"model": {"w": torch.zeros(1000)}, "bad": lambda: None})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_flipped_byte_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    position = data.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    data[position] ^= 1
    saved.write_bytes(data)
    with pytest.raises(InputError, match=r"last\.pt: damaged, the checksum of .* is wrong"):
        checkpoint.load(saved)


@pytest.mark.parametrize("keep", [0, 1, 100, 3000])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"last\.pt: damaged, or not a checkpoint"):
        checkpoint.load(saved)


class Malicious:
    """Creates a file when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    if zipped:
        torch.save({"format": checkpoint.FORMAT, "model": Malicious(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(InputError, match=r"evil\.pt"):
        checkpoint.load(path)
    assert not trace.exists()


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    def refused(name: str, message: str, keys: tuple[str, ...] = ()) -> None:
        with pytest.raises(InputError, match=rf"{name}\.pt: {message}") as caught:
            checkpoint.load(tmp_path / f"{name}.pt", keys=keys)
        assert not isinstance(caught.value, checkpoint.Damaged)

    weights = {"w": torch.zeros(3)}
    torch.save(weights, tmp_path / "foreign.pt")
    refused("foreign", "not a checkpoint of avfast but a bare state dict .*--visual-weights")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    refused("tensor", "not a checkpoint of avfast")
    torch.save(weights, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    refused("legacy", "a bare pickle, which could run code")
    safetensors.torch.save_file(weights, tmp_path / "safe.pt")
    refused("safe", "a safetensors file")
    torch.save({"format": "avfast-checkpoint-99", **weights}, tmp_path / "newer.pt")
    refused("newer", "format avfast-checkpoint-99, .* by a newer avfast; update")
    torch.save({"format": "avfast-checkpoint-1", **weights}, tmp_path / "older.pt")
    refused("older", "format avfast-checkpoint-1, .* by an older avfast")
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    refused("picture", "not a checkpoint")
    np.savez(tmp_path / "arrays", a=np.zeros(3))
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays.pt")
    refused("arrays", "refused")
    checkpoint.save(tmp_path / "best.pt", {"model": weights})
    refused("best", "lacks optimizer", keys=("model", "optimizer"))
    refused("absent", "no such checkpoint")


# --- rotation ---------------------------------------------------------------------------------------


@pytest.fixture
def rotated(tmp_path: Path) -> tuple[Path, Path]:
    """The last checkpoint and the one before."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in range(3):
        checkpoint.save(last, {"step": step, "w": torch.full((1000,), float(step))}, previous)
    return last, previous


def latest(rotated: tuple[Path, Path]) -> tuple[int, str | None]:
    state, note = checkpoint.load_latest(*rotated, "cpu", ("step", "w"))
    assert (state["w"] == state["step"]).all()
    return state["step"], note


def test_the_one_before_is_kept(rotated: tuple[Path, Path]) -> None:
    assert latest(rotated) == (2, None)
    assert checkpoint.load(rotated[1])["step"] == 1
    assert sorted(rotated[0].parent.iterdir()) == sorted(rotated)


DAMAGE = {
    "flipped": lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_gives_way_to_the_one_before(rotated: tuple[Path, Path], damage: str) -> None:
    last, previous = rotated
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    step, note = latest(rotated)
    assert step == 1
    assert note is not None and re.search(r"last\.pt: damaged.*; going on from previous\.pt", note)
    assert latest(rotated) == (1, None)  # it has become the last one, so that the next save keeps it
    checkpoint.save(last, {"step": 5, "w": torch.full((1000,), 5.0)}, previous)
    assert (checkpoint.load(last)["step"], checkpoint.load(previous)["step"]) == (5, 1)


def test_without_hard_links_the_file_is_renamed(
    rotated: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save(rotated[0], {"step": 3, "w": torch.full((1000,), 3.0)}, rotated[1])
    assert (latest(rotated), checkpoint.load(rotated[1])["step"]) == ((3, None), 2)
    rotated[0].unlink()  # killed between the two renames
    step, note = latest(rotated)
    assert (step, note) == (
        2,
        f"{rotated[0]}: not there; going on from previous.pt, the checkpoint before it",
    )


def test_a_foreign_file_is_not_replaced_but_the_one_before_is_offered(rotated: tuple[Path, Path]) -> None:
    last, _ = rotated
    torch.save({"w": torch.zeros(3)}, last)
    foreign = last.read_bytes()
    with pytest.raises(
        InputError, match=r"bare state dict .*previous\.pt beside it is good: .*remove last\.pt"
    ):
        latest(rotated)
    assert last.read_bytes() == foreign
    last.unlink()
    assert latest(rotated)[0] == 1


def test_two_damaged_ones_are_both_named(rotated: tuple[Path, Path]) -> None:
    for path in rotated:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"last\.pt: damaged.* nor can .*previous\.pt: damaged"):
        latest(rotated)


WRITER = """
import sys
from pathlib import Path
import torch
from avfast import checkpoint
last, previous = Path(sys.argv[1]), Path(sys.argv[2])
for step in range(1000):
    checkpoint.save(last, {"step": step, "w": torch.full((5_000_000,), float(step))}, previous)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """The temporary file is there when the writer dies, and two whole checkpoints beside it."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    with subprocess.Popen([sys.executable, "-c", WRITER, last, previous]) as process:
        deadline = time.monotonic() + 120
        while not previous.is_file() or written(tmp_path) < 1 << 20:
            assert process.poll() is None and time.monotonic() < deadline
        process.kill()
    assert written(tmp_path)
    step, note = latest((last, previous))
    assert note is None
    assert checkpoint.load(previous)["step"] in (step - 1, step)


def written(folder: Path) -> int:
    """Bytes of an unfinished file."""
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.glob(".tmp-*"))
    return 0
