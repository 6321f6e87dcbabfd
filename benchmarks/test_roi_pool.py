"""RoI pooling: avfast against torchvision and plain torch, and against writing the output once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import limit, on_devices, record
from pytest_benchmark.fixture import BenchmarkFixture
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


def inputs(benchmark: BenchmarkFixture, shape: str, device: str) -> tuple[Tensor, Tensor]:
    """Features and boxes; where nothing is timed, a twentieth of the boxes are check enough."""
    images, count = SHAPES[shape]
    if benchmark.disabled and count > 1000:
        images, count = images // 20, count // 20
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((2, count, 2), generator=generator) * 13 / SCALE
    boxes = torch.cat([corners.amin(0), corners.amax(0)], dim=1)
    index = torch.arange(count)[:, None] * images // count
    features = torch.randn((images, 256, 13, 13), generator=generator)
    return features.to(device), torch.cat([index, boxes], dim=1).to(device)


def function_of(case: str) -> Callable[..., Tensor]:
    function = CASES[case]
    if function is None:
        pytest.skip("torchvision is not importable beside this torch")
    return function


def group(device: str, what: str, shape: str) -> str:
    return f"roi_pool {what} {shape}" + (" cuda" if device == "cuda" else "")


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", [*CASES, "limit"])
def test_forward(benchmark: BenchmarkFixture, case: str, shape: str, device: str) -> None:
    benchmark.group = group(device, "forward", shape)
    x, boxes = inputs(benchmark, shape, device)
    if case == "limit":
        output = x.new_empty((len(boxes), x.shape[1], *POOLED))
        return record(benchmark, limit(device, [output], x.nbytes), device)
    function = function_of(case)
    assert torch.equal(function(x, boxes, POOLED, SCALE), roi_pool(x, boxes, POOLED, SCALE))
    return record(benchmark, lambda: function(x, boxes, POOLED, SCALE), device)


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_forward_backward(benchmark: BenchmarkFixture, case: str, shape: str, device: str) -> None:
    if case == "torch" and SHAPES[shape][1] > 1000:
        pytest.skip("keeps tens of copies of an 88 MB output")
    benchmark.group = group(device, "forward+backward", shape)
    function = function_of(case)
    x, boxes = inputs(benchmark, shape, device)
    x.requires_grad_()
    grad = torch.randn((len(boxes), x.shape[1], *POOLED), device=device)

    def step(f: Callable[..., Tensor] = function) -> Tensor:
        return torch.autograd.grad(f(x, boxes, POOLED, SCALE), x, grad)[0]

    torch.testing.assert_close(step(), step(roi_pool), rtol=1e-4, atol=1e-4)
    record(benchmark, step, device)
