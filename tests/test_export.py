"""Runs as safetensors files: the same scores, and a clear line about files that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import avfast
from avfast import evaluate, export, portable, train
from avfast.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.main(train.Options(data=data, out=out, epochs=1, batch_size=12, device="cpu", report=False))
    export.main(export.Options(out))
    return out


def test_an_export_scores_as_its_run(run: Path, tmp_path: Path) -> None:
    exported = run / "model.safetensors"
    evaluate.main(evaluate.Options(exported, out=tmp_path / "figures", device="cpu"))
    for name in ("metrics.json", "scores.csv"):
        assert (tmp_path / "figures" / name).read_bytes() == (run / name).read_bytes()
    ours, theirs = avfast.load(exported, "cpu"), avfast.load(run, "cpu")
    assert ours.settings == theirs.settings and ours.classes == theirs.classes
    assert ours.trained.config == theirs.trained.config
    np.testing.assert_equal(ours.trained.thresholds.state(), theirs.trained.thresholds.state())
    with pytest.raises(InputError, match="--out: say where"):
        evaluate.main(evaluate.Options(exported, device="cpu"))


def test_what_cannot_be_used_is_refused(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = (run / "model.safetensors").read_bytes()
    with safetensors.safe_open(run / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    weights = safetensors.torch.load(whole)

    def refused(content: bytes, message: str) -> None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"model\.safetensors: .*{message}"):
            avfast.load(path, "cpu")

    def other(**changes: str) -> bytes:
        return safetensors.torch.save(weights, {**metadata, **changes})

    def config(**changes: object) -> str:
        stated = json.loads(metadata["config"])
        return json.dumps(stated | {"model": stated["model"] | changes})

    for content in (
        b"",
        whole[:100],
        whole[:-1],
        b"\xff" * 1000,
        (1 << 60).to_bytes(8, "little") + whole[8:],
    ):
        refused(content, "damaged, or not a safetensors file")
    refused(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], "checksum")
    refused(safetensors.torch.save(weights), "not a model of this version")
    refused(other(format="avfast-model-99"), "format avfast-model-99")
    refused(other(config="{"), "describes no model")
    refused(other(config=config(system="nonsense")), "describes no model .*expected one of")
    refused(other(config=config(surprise=1)), "describes no model")
    refused(other(classes='["a"]'), "are not those of the model")
    refused(other(config=config(image_size=96, backbone="vgg16")), "are not those of the model")
    path.unlink()
    with pytest.raises(InputError, match="no such file; write it with"):
        avfast.load(path, "cpu")
    with pytest.raises(InputError, match="name that ends in"):
        export.main(export.Options(run, tmp_path / "model.bin"))
    assert portable.load(run / "model.safetensors")["model"].keys() == weights.keys()
    assert all(torch.isfinite(value).all() for value in weights.values())
