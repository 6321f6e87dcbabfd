"""Cached conv maps: the scores of training without them, resumable, and refused when stale."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avfast import conv_maps, prepare, train
from avfast.cache import Budget, CachedRegions
from avfast.data.batch import collate
from avfast.errors import InputError
from avfast.models import ModelConfig, build
from avfast.models.backbones import VISUAL
from avfast.sources import open_split

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
LITE0 = "efficientnet-lite0"


@pytest.fixture(scope="module")
def cached(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with the conv maps of EfficientNet-Lite0."""
    root = tmp_path_factory.mktemp("cached") / "shards"
    shutil.copytree(data, root)
    conv_maps.store(root, LITE0, conv_maps.frozen_network(LITE0), SIDE)
    return root


def config(**changes: object) -> ModelConfig:
    return ModelConfig.from_preset("toy", backbone=LITE0, image_size=SIDE, **changes)


def test_regions_from_the_cache_are_those_of_the_frames(cached: Path) -> None:
    maps = conv_maps.find(cached, config())
    with_pictures, without = (open_split(cached, "test", config(), p) for p in (True, False))
    torch.manual_seed(0)
    model = build(config(), len(without.classes)).eval()
    model.visual.load_pretrained(None)
    maps.check(cached, model.visual)
    first, second = ([d[i] for i in (2, 1, 0)] for d in (with_pictures, without))  # clip 1 has no picture
    assert [len(sample.frames) for sample in second] == [0, 0, 0]
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(first, second, strict=True))
    seen, unseen = collate(first), collate(second)
    assert torch.equal(seen.rois, unseen.rois)
    assert torch.equal(seen.region_boxes, unseen.region_boxes)
    expected = CachedRegions(model, Budget(0))(seen)
    regions_of = CachedRegions(model, Budget(1 << 30), maps)
    found = regions_of(unseen)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-5)  # rounded to float16, no more
    with torch.no_grad():
        torch.testing.assert_close(
            model(unseen, found).scores, model(seen, expected).scores, atol=1e-2, rtol=0
        )
    shutil.move(maps.folder, cached / "away")
    try:
        assert torch.equal(regions_of(unseen), found)  # from memory
    finally:
        shutil.move(cached / "away", maps.folder)


def run(data: Path, out: Path, **changes: object) -> None:
    settings = {
        "epochs": 1,
        "batch_size": 8,
        "backbone": LITE0,
        "image_size": SIDE,
        "device": "cpu",
        "report": False,
    }
    train.main(train.Options(data=data, out=out, **{**settings, **changes}))


def scores(out: Path) -> np.ndarray:
    with (out / "scores.csv").open() as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


def test_training_with_the_cache_gives_the_same_model(
    cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cached, tmp_path / "frames", cached_features=False)
    assert "regions are read from" not in capsys.readouterr().out
    run(cached, tmp_path / "maps")
    folder = cached / "conv-maps" / "efficientnet-lite0-64"
    assert f"regions are read from {folder}" in capsys.readouterr().out
    np.testing.assert_allclose(scores(tmp_path / "maps"), scores(tmp_path / "frames"), atol=0.02)


def test_storing_goes_on_where_it_stopped(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shards"
    shutil.copytree(cached, root)
    folder = root / "conv-maps" / "efficientnet-lite0-64"
    files = sorted(folder.glob("*.npy"))
    lost = files[::4]
    content = {path: path.read_bytes() for path in lost}
    for path in lost:
        path.unlink()
    (folder / ".tmp-killed").write_bytes(b"half")
    asked: list[int] = []
    network = VISUAL[LITE0]
    maps = network.maps
    monkeypatch.setattr(network, "maps", lambda self, frames: asked.append(1) or maps(self, frames))
    conv_maps.store(root, LITE0, conv_maps.frozen_network(LITE0), SIDE)
    assert len(asked) == len(lost)
    assert {path: path.read_bytes() for path in lost} == content
    assert not (folder / ".tmp-killed").exists()


def other_weights(root: Path, folder: Path) -> None:
    identity = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps(identity | {"weights": "0" * 64}))


def other_shards(root: Path, folder: Path) -> None:
    (root / "index.json").write_text((root / "index.json").read_text() + " ")


def unfinished(root: Path, folder: Path) -> None:
    for path in folder.glob("*.npy"):
        path.unlink()


def cut_short(root: Path, folder: Path) -> None:
    for path in folder.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-100] if path.stat().st_size > 200 else b"")


def of_other_frames(root: Path, folder: Path) -> None:
    for path in folder.glob("*.npy"):
        np.save(path, np.zeros((7, 1280, 4, 4), np.float16))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_weights, "stale, these conv maps are of other weights than this model's; delete"),
        (other_shards, "stale, these conv maps are of other shards; delete"),
        (unfinished, r"\.npy: missing or damaged conv maps"),
        (cut_short, r"\.npy: missing or damaged conv maps"),
        (of_other_frames, "are not those of its frames"),
        (lambda _, folder: (folder / "identity.json").write_text("{}"), "no conv maps of this version"),
    ],
    ids=["weights", "shards", "unfinished", "damaged", "frames", "version"],
)
def test_what_is_stale_or_damaged_is_refused(
    cached: Path, tmp_path: Path, damage: Callable[[Path, Path], None], message: str
) -> None:
    root = tmp_path / "shards"
    shutil.copytree(cached, root)
    damage(root, root / "conv-maps" / "efficientnet-lite0-64")
    with pytest.raises(InputError, match=message):
        run(root, tmp_path / "out")


def test_maps_are_refused_where_pictures_change_and_ignored_where_they_are_learned_from(
    cached: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"--flip: mirrors pictures, but .*efficientnet-lite0-64"):
        run(cached, tmp_path / "out", flip=True)
    assert conv_maps.find(cached, config(train_conv=True)) is None
    assert conv_maps.find(cached, ModelConfig.from_preset("toy")) is None
    assert conv_maps.find(cached, ModelConfig.from_preset("toy", backbone=LITE0)) is None


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("toy", "--cache-features toy: expected a pretrained backbone: alexnet, vgg16, efficientnet-lite0"),
        ("resnet", "--cache-features resnet: expected a pretrained backbone"),
        ("alexnet", "--cache-features alexnet: its conv layers need weights; give --visual-weights"),
    ],
)
def test_backbones_whose_maps_would_not_stay_are_refused_before_the_work(
    tmp_path: Path, backbone: str, message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        prepare.main(prepare.Options(tmp_path, tmp_path / "labels.csv", out, cache_features=backbone))


def test_prepare_refuses_options_without_a_backbone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--visual-weights and --image-size go with --cache-features"):
        prepare.main(prepare.Options(tmp_path, tmp_path / "labels.csv", tmp_path / "out", image_size=64))
