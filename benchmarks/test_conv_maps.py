"""A training step with frozen EfficientNet-Lite0: from frames, from cached conv maps, from memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from avfast import conv_maps
from avfast.cache import Budget, CachedDataset, CachedRegions
from avfast.data import shards
from avfast.data.batch import collate
from avfast.data.labels import LabelledClip
from avfast.data.media import SAMPLE_RATE
from avfast.models import ModelConfig, build
from avfast.sources import open_split

BACKBONE = "efficientnet-lite0"
CLIPS, FRAMES, PROPOSALS = 4, 10, 100
WIDTH, HEIGHT, SECONDS = 640, 360, 10
LOTS = 1 << 40


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Shards with conv maps: those in AVFAST_SHARDS, which get maps where they have none, or noise."""
    root = Path(os.environ.get("AVFAST_SHARDS") or tmp_path_factory.mktemp("noise") / "shards")
    if not root.is_dir():
        make_noise(root, frames=1 if request.config.option.benchmark_disable else FRAMES)
    torch.set_num_threads(2)
    conv_maps.store(root, BACKBONE, conv_maps.frozen_network(BACKBONE))
    return root


def make_noise(root: Path, frames: int) -> None:
    """Clips as large as real ones."""
    generator = np.random.default_rng(0)
    root.mkdir(parents=True)
    clips = []
    for number in range(CLIPS):
        facts = {"frame_times": list(range(frames)), "frame_size": [WIDTH, HEIGHT], "sound_seconds": SECONDS}
        members = {shards.FACTS: shards.encode_facts(facts)}
        for index in range(frames):
            picture = generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            members[shards.frame_member(index)] = shards.encode_jpeg(picture)
        corners = generator.random((frames * PROPOSALS, 2, 2)) * (WIDTH, HEIGHT)
        rows = np.repeat(np.arange(frames), PROPOSALS)[:, None]
        boxes = np.sort(corners, axis=1).reshape(-1, 4)
        table = np.hstack([rows, boxes, np.ones((len(rows), 1))]).astype(np.float32)
        members[shards.PROPOSALS] = shards.encode_array(table)
        noise = generator.uniform(-0.5, 0.5, SECONDS * SAMPLE_RATE).astype(np.float32)
        members[shards.SOUND] = shards.encode_sound(noise)
        staged = root / f"{number}.staged"
        with staged.open("wb") as file:
            shards.write_members(file, "clip", members)
            shards.end_tar(file)
        clips.append((LabelledClip(f"{number}.mp4", ("noise",), "train"), staged))
    shards.write_shards(root, ("noise",), clips, options={"fps": 1.0})


@pytest.mark.parametrize("case", ["frames", "maps on disk", "regions in memory"])
def test_training_step(benchmark: BenchmarkFixture, prepared: Path, case: str) -> None:
    benchmark.group = f"training step, {BACKBONE} frozen, {CLIPS} clips read and learned from"
    config = ModelConfig.from_preset("toy", backbone=BACKBONE)
    torch.manual_seed(0)
    dataset = open_split(prepared, "train", config, pictures=case == "frames")
    model = build(config, len(dataset.classes)).train()
    model.load_pretrained(None, None)
    maps = None if case == "frames" else conv_maps.find(prepared, config)
    budget = Budget(LOTS if case == "regions in memory" else 0)
    clips, regions_of = CachedDataset(dataset, budget), CachedRegions(model, budget, maps)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> tuple[Tensor, ...]:
        torch.manual_seed(1)  # of dropout
        batch = collate([clips[position] for position in range(CLIPS)])
        loss = model.losses(model(batch, regions_of(batch)), batch.targets).mean()
        return loss, *torch.autograd.grad(loss, parameters, allow_unused=True)

    seen = open_split(prepared, "train", config)
    batch = collate([seen[position] for position in range(CLIPS)])
    expected = CachedRegions(model, Budget(0))(batch)
    torch.testing.assert_close(
        regions_of(collate([clips[i] for i in range(CLIPS)])), expected, rtol=2**-10, atol=1e-4
    )
    benchmark.pedantic(step, rounds=1 if benchmark.disabled else 5, warmup_rounds=1)
