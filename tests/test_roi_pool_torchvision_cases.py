"""RoI pooling as a drop-in for torchvision's: what its users rely on, against a scalar transcription.

Where torchvision is importable, its own results are compared too.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avfast.nn import RoIPool
from avfast.ops import roi_pool

try:
    import torchvision
except (ImportError, RuntimeError):  # absent, or built for another torch
    torchvision = None

DTYPES = [torch.float64, torch.float32]


def scalar_roi_pool(x: Tensor, boxes: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Girshick's definition, one bin at a time, in Python numbers."""

    def nearest(value: float) -> int:
        return math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1)

    output = torch.zeros((len(boxes), x.shape[1], *size), dtype=x.dtype)
    for k, (image, *corners) in enumerate(boxes.tolist()):
        left, top, right, bottom = (nearest(corner * scale) for corner in corners)
        bin_h, bin_w = max(bottom - top + 1, 1) / size[0], max(right - left + 1, 1) / size[1]
        for i in range(size[0]):
            rows = slice(max(top + math.floor(i * bin_h), 0), max(top + math.ceil((i + 1) * bin_h), 0))
            for j in range(size[1]):
                columns = slice(
                    max(left + math.floor(j * bin_w), 0), max(left + math.ceil((j + 1) * bin_w), 0)
                )
                window = x[int(image), :, rows, columns].flatten(1)
                if window.numel():
                    output[k, :, i, j] = window.amax(1)
    return output


def check(x: Tensor, boxes: Tensor, size: tuple[int, int], scale: float = 1.0) -> None:
    output = roi_pool(x, boxes, size, scale)
    assert torch.equal(output, scalar_roi_pool(x, boxes, size, scale))
    if torchvision is not None:
        assert torch.equal(output, torchvision.ops.roi_pool(x, boxes.to(x.dtype), size, scale))


def image_batch(dtype: torch.dtype, contiguous: bool = True) -> Tensor:
    x = torch.rand((2, 10, 10, 12), generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x if contiguous else x.permute(0, 1, 3, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
def test_values(dtype: torch.dtype, contiguous: bool) -> None:
    boxes = torch.tensor([[0, 0, 0, 9, 9], [0, 0, 5, 4, 9], [0, 5, 5, 9, 9], [1, 0, 0, 9, 9]], dtype=dtype)
    check(image_batch(dtype, contiguous), boxes, (5, 5))


@pytest.mark.parametrize("scale", [1.0, 0.5, 1 / 16])
def test_scaled_boxes(scale: float) -> None:
    boxes = torch.tensor([[0, 0, 0, 9, 9], [1, 2.2, 3.4, 7.7, 8.1]]) / torch.tensor([1, *[scale] * 4])
    check(image_batch(torch.float32), boxes, (4, 3), scale)


def test_malformed_boxes_are_one_cell() -> None:
    boxes = torch.tensor([[0, 5, 5, 2, 2], [1, 8, 1, 3, 6], [0, 1, 8, 6, 3]], dtype=torch.float32)
    check(image_batch(torch.float32), boxes, (3, 3))


def test_boxes_outside_and_across_the_border() -> None:
    boxes = torch.tensor([[0, -9, -9, -5, -5], [0, 20, 20, 30, 30], [1, -4, -4, 3, 3], [1, 7, 8, 25, 14]])
    check(image_batch(torch.float32), boxes.float(), (2, 4))


def test_zero_boxes_and_zero_area() -> None:
    x = image_batch(torch.float32)
    check(x, torch.zeros((0, 5)), (2, 2))
    check(x, torch.zeros((3, 5)), (2, 2))


def test_box_larger_than_the_output_and_smaller() -> None:
    check(image_batch(torch.float64), torch.tensor([[0.0, 0, 0, 11, 9]]).double(), (1, 1))
    check(image_batch(torch.float64), torch.tensor([[0.0, 3, 3, 4, 4]]).double(), (7, 9))


def test_list_of_boxes_equals_rows() -> None:
    x, corners = image_batch(torch.float32), torch.tensor([[0.0, 0, 4, 4], [2, 1, 7, 9], [3, 3, 3, 3]])
    rows = torch.cat([torch.tensor([[0.0], [0], [1]]), corners], dim=1)
    assert torch.equal(roi_pool(x, [corners[:2], corners[2:]], (3, 3)), roi_pool(x, rows, (3, 3)))
    assert torch.equal(RoIPool((3, 3), 1.0)(x, rows), roi_pool(x, rows, (3, 3)))


def test_wrong_box_shapes_raise() -> None:
    x = image_batch(torch.float32)
    for boxes in (torch.rand((3, 4)), torch.rand((1, 3, 5)), [torch.rand((2, 5))] * 2):
        with pytest.raises(ValueError, match="boxes"):
            roi_pool(x, boxes, 2)


@pytest.mark.parametrize("contiguous", [True, False])
def test_backward(contiguous: bool) -> None:
    x = image_batch(torch.float64, contiguous).requires_grad_()
    boxes = torch.tensor([[0, 0, 0, 9, 9], [0, 0, 5, 4, 9], [1, 5, 5, 2, 2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: roi_pool(t, boxes, (2, 3)), x)
    grad = torch.randn((3, 10, 2, 3), dtype=torch.float64)
    (actual,) = torch.autograd.grad(roi_pool(x, boxes, (2, 3)), x, grad)
    (expected,) = torch.autograd.grad(scalar_roi_pool(x, boxes, (2, 3), 1.0), x, grad)
    torch.testing.assert_close(actual, expected)
