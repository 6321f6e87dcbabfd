"""RoI pooling: avfast against torchvision and plain torch, and against writing the output once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import record
from torch import Tensor

from avfast.ops import reference, roi_pool

try:
    from torchvision.ops import roi_pool as torchvision_roi_pool
except (ImportError, RuntimeError):  # absent, or built for another torch
    torchvision_roi_pool = None

SCALE, POOLED = 1 / 16, (6, 6)
# images, channels, map, boxes; the last is the paper's: 24 clips of 10 frames with 10 regions each
SHAPES = {"1x256x13 10": (1, 10), "10x256x13 100": (10, 100), "240x256x13 2400": (240, 2400)}
CASES: dict[str, Callable[..., Tensor] | None] = {
    "avfast": roi_pool,
    "torchvision": torchvision_roi_pool,
    "torch": reference.roi_pool,
}


def inputs(shape: str) -> tuple[Tensor, Tensor]:
    images, count = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((2, count, 2), generator=generator) * 13 / SCALE
    boxes = torch.cat([corners.amin(0), corners.amax(0)], dim=1)
    index = torch.arange(count)[:, None] * images // count
    return torch.randn((images, 256, 13, 13), generator=generator), torch.cat([index, boxes], dim=1)


def function_of(case: str) -> Callable[..., Tensor]:
    function = CASES[case]
    if function is None:
        pytest.skip("torchvision is not importable beside this torch")
    return function


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", [*CASES, "limit"])
def test_forward(benchmark: pytest.FixtureRequest, case: str, shape: str) -> None:
    benchmark.group = f"roi_pool forward {shape}"
    x, boxes = inputs(shape)
    if case == "limit":
        return record(benchmark, lambda: x.new_empty((len(boxes), 256, *POOLED)).fill_(1))
    function = function_of(case)
    assert torch.equal(function(x, boxes, POOLED, SCALE), roi_pool(x, boxes, POOLED, SCALE))
    return record(benchmark, lambda: function(x, boxes, POOLED, SCALE))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_forward_backward(benchmark: pytest.FixtureRequest, case: str, shape: str) -> None:
    if case == "torch" and shape == "240x256x13 2400":
        pytest.skip("keeps tens of copies of an 88 MB output")
    benchmark.group = f"roi_pool forward+backward {shape}"
    function = function_of(case)
    x, boxes = inputs(shape)
    x.requires_grad_()
    grad = torch.randn((len(boxes), 256, *POOLED))

    def step(f: Callable[..., Tensor] = function) -> Tensor:
        return torch.autograd.grad(f(x, boxes, POOLED, SCALE), x, grad)[0]

    torch.testing.assert_close(step(), step(roi_pool), rtol=1e-4, atol=1e-4)
    record(benchmark, step)
