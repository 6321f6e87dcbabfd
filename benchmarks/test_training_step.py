"""A training step of each preset, forward, loss and backward, with native against pure-PyTorch operations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from conftest import on_devices, record
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from avfast import ops
from avfast.data.batch import Batch, Sample, collate
from avfast.models import ModelConfig, build

CLASSES = 17


@dataclass(frozen=True)
class Size:
    """Clips of a step, and what each holds."""

    clips: int
    frames: int
    regions: int  # of a frame
    segments: int


# toy: the default recipe's batch of 5 s clips; paper: 10 s clips, as many as two cores serve in seconds
SIZES = {"toy": Size(16, 5, 10, 9), "paper": Size(2, 10, 10, 19)}
UNTIMED = Size(1, 1, 3, 2)


def noise(size: Size, side: int, seed: int) -> Sample:
    """A clip of noise."""
    generator = torch.Generator().manual_seed(seed)
    count = size.frames * size.regions
    corners = torch.rand((count, 2, 2), generator=generator).sort(dim=1).values * side
    return Sample(
        clip=f"clip{seed}",
        frames=torch.randint(0, 256, (size.frames, 3, side, side), dtype=torch.uint8, generator=generator),
        frame_times=torch.arange(size.frames).float(),
        boxes=corners.flatten(1),
        box_frames=torch.arange(size.frames).repeat_interleave(size.regions),
        objectness=torch.rand(count, generator=generator),
        frame_size=(side, side),
        audio=torch.randn((size.segments, 96, 64), generator=generator),
        segments=torch.zeros((size.segments, 2)),
        target=torch.randint(0, 2, (CLASSES,), generator=generator).float(),
    )


def use(case: str, patch: pytest.MonkeyPatch) -> None:
    """The modules of ``avfast.nn`` look their operations up in ``avfast.ops`` at each call."""
    if case == "torch":
        patch.setattr(
            ops, "roi_pool", lambda x, rois, grid, scale: ops.reference.roi_pool(x, rois, (grid, grid), scale)
        )
        patch.setattr(ops, "mil_aggregate", ops.reference.mil_aggregate)


@on_devices
@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("case", ["avfast", "torch"])
def test_training_step(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, case: str, preset: str, device: str
) -> None:
    size = UNTIMED if benchmark.disabled else SIZES[preset]
    benchmark.group = f"training step {preset}, {size.clips} clips" + (" cuda" if device == "cuda" else "")
    torch.manual_seed(0)
    config = ModelConfig.from_preset(preset)
    system = build(config, CLASSES).to(device).train()
    batch: Batch = collate([noise(size, config.image_size, seed) for seed in range(size.clips)]).to(device)
    parameters = [p for p in system.parameters() if p.requires_grad]

    def step() -> tuple[Tensor, ...]:
        torch.manual_seed(1)  # of dropout
        loss = system.losses(system(batch), batch.targets).mean()
        return loss, *torch.autograd.grad(loss, parameters, allow_unused=True)

    expected = step()
    use(case, monkeypatch)
    torch.testing.assert_close(step(), expected, rtol=1e-4, atol=1e-6)
    record(benchmark, step, device)
