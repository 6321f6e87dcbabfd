"""Caches give what would have been computed, and never more than their budget."""

from __future__ import annotations

import pytest
import tiny_shards
import torch

from avfast.cache import Budget, CachedDataset, CachedRegions
from avfast.data.batch import collate
from avfast.data.dataset import ShardDataset
from avfast.models import ModelConfig, System, build
from avfast.sources import open_split

LOTS = 1 << 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    root = tiny_shards.make(tmp_path_factory.mktemp("tiny") / "shards")
    return open_split(
        root, "test", ModelConfig.from_preset("toy", backbone="efficientnet-lite0", image_size=64)
    )


@pytest.fixture(scope="module")
def model(data: ShardDataset) -> System:
    torch.manual_seed(0)
    config = ModelConfig.from_preset("toy", backbone="efficientnet-lite0", image_size=64)
    return build(config, len(data.classes)).eval()


def test_a_dataset_is_read_once(data: ShardDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = CachedDataset(data, Budget(LOTS))
    first = [cached[i] for i in range(len(cached))]
    monkeypatch.setattr(ShardDataset, "__getitem__", lambda *_: pytest.fail("read again"))
    assert all(cached[i] is first[i] for i in range(len(data)))


def test_what_exceeds_the_budget_is_not_kept(data: ShardDataset) -> None:
    budget = Budget(400_000)
    cached = CachedDataset(data, budget)
    for index in range(len(cached)):
        assert torch.equal(cached[index].audio, data[index].audio)
    assert 0 < len(cached.kept) < len(data)
    assert budget.left >= 0
    kept = sum(
        t.numel() * t.element_size()
        for s in cached.kept.values()
        for t in vars(s).values()
        if torch.is_tensor(t)
    )
    assert kept == 400_000 - budget.left


@pytest.mark.parametrize("budget", [0, LOTS])
def test_cached_regions_are_what_the_model_pools(data: ShardDataset, model: System, budget: int) -> None:
    regions_of = CachedRegions(model, Budget(budget))
    batch = collate([data[i] for i in range(len(data))])  # clip 1 has no picture
    with torch.no_grad():
        expected = model(batch).scores
        first = regions_of(batch)
        assert torch.allclose(model(batch, first).scores, expected, atol=1e-4)
    other = regions_of(collate([data[2], data[1], data[0]]))
    assert len(other) == len(data[0].boxes) + len(data[2].boxes)
    assert torch.equal(other[: len(data[2].boxes)], _of_clip(first, batch, 2))  # whatever the batch
    assert (sum(kept.numel() for kept in regions_of.kept.values()) > 0) == (budget > 0)


def test_regions_that_learn_are_not_cached(data: ShardDataset) -> None:
    model = build(ModelConfig.from_preset("toy"), len(data.classes))
    assert CachedRegions(model, Budget(LOTS))(collate([data[0]])) is None


def _of_clip(pooled: torch.Tensor, batch: object, clip: int) -> torch.Tensor:
    start, stop = batch.region_offsets[clip : clip + 2].tolist()
    return pooled[start:stop]
