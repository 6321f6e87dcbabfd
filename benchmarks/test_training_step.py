"""A training step of each preset, forward, loss and backward, with each native operation on and off."""

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


def torch_roi_pool(maps: Tensor, rois: Tensor, grid: int, scale: float) -> Tensor:
    """RoI pooling in plain torch."""
    return ops.reference.roi_pool(maps, rois, (grid, grid), scale)


def use(case: str, patch: pytest.MonkeyPatch) -> None:
    """The modules of ``avfast.nn`` look their operations up in ``avfast.ops`` at each call."""
    if case == "torchvision":  # what one would write without avfast
        patch.setattr(ops, "roi_pool", pytest.importorskip("torchvision.ops").roi_pool)
    if case in ("torch", "native MIL alone"):
        patch.setattr(ops, "roi_pool", torch_roi_pool)
    if case in ("torch", "native roi_pool alone", "torchvision"):
        patch.setattr(ops, "mil_aggregate", ops.reference.mil_aggregate)


CASES = ["avfast", "native roi_pool alone", "native MIL alone", "torch", "torchvision", "torch.compile"]


@on_devices
@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_training_step(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, case: str, preset: str, device: str
) -> None:
    size = UNTIMED if benchmark.disabled else SIZES[preset]
    benchmark.group = f"training step {preset}, {size.clips} clips" + (" cuda" if device == "cuda" else "")
    torch.manual_seed(0)
    # generated code draws other random numbers than eager code: there are none
    config = ModelConfig.from_preset(preset, dropout=0.0, spec_augment=False)
    system = build(config, CLASSES).to(device).train()
    batch: Batch = collate([noise(size, config.image_size, seed) for seed in range(size.clips)]).to(device)
    parameters = [p for p in system.parameters() if p.requires_grad]

    def step() -> tuple[Tensor, ...]:
        loss = system.losses(system(batch), batch.targets).mean()
        return loss, *torch.autograd.grad(loss, parameters, allow_unused=True)

    expected = step()
    use(case, monkeypatch)
    if case == "torch.compile":
        system.compile(dynamic=True, backend="eager" if benchmark.disabled else "inductor")
    torch.testing.assert_close(step(), expected, rtol=1e-4, atol=1e-6)
    record(benchmark, step, device)
