"""Checkpoints survive kills, and refuse damaged, foreign and malicious files."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
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
    torch.save({"w": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match=r"foreign\.pt: not a checkpoint of this version of avfast"):
        checkpoint.load(tmp_path / "foreign.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match=r"tensor\.pt: not a checkpoint"):
        checkpoint.load(tmp_path / "tensor.pt")
    with pytest.raises(InputError, match=r"absent\.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pt")
