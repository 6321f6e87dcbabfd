"""``--deterministic``: the same bits twice, and a clear error where that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avfast import checkpoint, train
from avfast.errors import InputError
from avfast.models.systems import AVTwoStream


def options(data: Path, out: Path, **changes: object) -> train.Options:
    settings: dict[str, object] = {"epochs": 1, "batch_size": 5, "device": "cpu", "report": False}
    return train.Options(data=data, out=out, **{"deterministic": True, **settings, **changes})


def trained(data: Path, out: Path, **changes: object) -> dict[str, torch.Tensor]:
    train.main(options(data, out, **changes))
    return checkpoint.load(out / "last.pt")["model"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_same_command_gives_the_same_weights(data: Path, tmp_path: Path, device: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = (trained(data, tmp_path / name, device=device) for name in ("a", "b"))
    finally:
        torch.set_num_threads(before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = AVTwoStream.losses

    def scattered(self: AVTwoStream, output: object, targets: torch.Tensor) -> torch.Tensor:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # which of them wins?
        return losses(self, output, targets)

    monkeypatch.setattr(AVTwoStream, "losses", scattered)
    with pytest.raises(InputError, match=r"--deterministic: put_ does not have .*; leave the option out"):
        train.main(options(data, tmp_path / "run"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_run_says_so_and_is_resumed_so(data: Path, tmp_path: Path) -> None:
    train.main(options(data, tmp_path / "run"))
    assert checkpoint.load(tmp_path / "run" / "last.pt")["config"]["deterministic"] is True
    with pytest.raises(InputError, match=r"\(deterministic differ\)"):
        train.main(options(data, tmp_path / "run", deterministic=False, resume=True))
