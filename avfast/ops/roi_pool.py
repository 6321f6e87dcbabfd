"""RoI max pooling: a fixed-size window of features for every box, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avfast.native import native
from avfast.ops._library import register

__all__ = ["roi_pool"]

Boxes = Tensor | Sequence[Tensor]


def roi_pool(
    input: Tensor, boxes: Boxes, output_size: int | tuple[int, int], spatial_scale: float = 1.0
) -> Tensor:
    """Pools the features under each box to ``output_size`` by the maximum of each bin.

    Signature and values are those of ``torchvision.ops.roi_pool`` (Girshick, Fast R-CNN, ICCV 2015):
    corners are scaled and rounded to cells, both end cells belong to the box, a malformed box is one
    cell, bins overlap where their bounds are fractional, are clipped to the map, and pool to 0 where
    nothing is left. Differences, all where torchvision leaves the case open: NaNs lose against numbers,
    and a bin of nothing but NaN gives NaN (there: the lowest float); a bin of -inf gives -inf; float16
    and bfloat16 work on every device; boxes may have another float dtype than ``input``. The gradient
    goes to the first of equal maxima, and is deterministic on every device.

    Args:
        input: Features [N, C, H, W], float64, float32, float16 or bfloat16; contiguous and channels_last are
            read without a copy, and the output has the same memory format.
        boxes: [K, 5] rows (index into N, x1, y1, x2, y2) or a list of N tensors [L, 4] (x1, y1, x2, y2),
            in the pixels that ``spatial_scale`` relates to cells. No gradient flows to them.
        output_size: Bins (height, width), or one number for both.
        spatial_scale: Cells per pixel, e.g. 1/16 for a map of stride 16.

    Returns:
        [K, C, *output_size], dtype and device of ``input``.

    Raises:
        TypeError: If an argument has the wrong type, dtype or device.
        ValueError: If a shape is wrong; on the CPU also if a box is NaN or its index is outside [0, N)
            (on CUDA, where looking would stop the queue, such a box pools to 0).
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a torch.Tensor, got {type(input).__name__}")
    if input.dim() != 4:
        raise ValueError(f"input: expected shape [N, C, H, W], got {list(input.shape)}")
    rows = _box_rows(boxes, input)
    height, width = _pair(output_size)
    if torch.is_grad_enabled() and input.requires_grad:
        return _RoIPool.apply(input, rows, height, width, float(spatial_scale))
    return _forward(input, rows, height, width, float(spatial_scale), False)[0]


def _pair(output_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if len(pair) != 2 or not all(isinstance(size, int | torch.SymInt) for size in pair):
        raise TypeError(f"output_size: expected an int or a pair of ints, got {output_size!r}")
    if min(pair) < 1:
        raise ValueError(f"output_size: expected at least 1 x 1 bins, got {pair[0]} x {pair[1]}")
    return pair[0], pair[1]


def _box_rows(boxes: Boxes, input: Tensor) -> Tensor:
    """``boxes`` as contiguous [K, 5] rows in float32 or float64, the dtype in which the bins are computed."""
    if isinstance(boxes, Tensor):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(
                "boxes: expected shape [K, 5] (batch index, x1, y1, x2, y2) or a list of [L, 4] tensors, "
                f"got {list(boxes.shape)}"
            )
        rows = boxes
    else:
        rows = _join(boxes, input)
    if not rows.is_floating_point():
        raise TypeError(
            f"boxes: expected a floating dtype, got {rows.dtype}; convert them with boxes.float()"
        )
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    return rows.detach().contiguous()


def _join(boxes: Sequence[Tensor], input: Tensor) -> Tensor:
    for i, image in enumerate(boxes):
        if not isinstance(image, Tensor):
            raise TypeError(f"boxes[{i}]: expected a torch.Tensor, got {type(image).__name__}")
        if image.dim() != 2 or image.shape[1] != 4:
            raise ValueError(f"boxes[{i}]: expected shape [L, 4] (x1, y1, x2, y2), got {list(image.shape)}")
    if len(boxes) != input.shape[0]:
        raise ValueError(f"boxes: expected one tensor per image of input, {input.shape[0]}, got {len(boxes)}")
    if not boxes:
        return input.new_zeros((0, 5), dtype=torch.float32)
    # An index counts to 2,048 in float16, so join after upcasting.
    wide = [image if image.dtype == torch.float64 else image.float() for image in boxes]
    index = [image.new_full((image.shape[0], 1), i) for i, image in enumerate(wide)]
    return torch.cat([torch.cat(index), torch.cat(wide)], dim=1)


class _RoIPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, boxes: Tensor, height: int, width: int, scale: float) -> Tensor:
        output, winner = _forward(input, boxes, height, width, scale, True)
        ctx.save_for_backward(winner, boxes)
        ctx.input_size = input.shape
        ctx.channels_last = _is_channels_last(input)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        winner, boxes = ctx.saved_tensors
        grad = _RoIPoolGradient.apply(
            grad_output, winner, boxes, ctx.input_size, ctx.channels_last, ctx.scale
        )
        return grad, None, None, None, None


class _RoIPoolGradient(torch.autograd.Function):
    """The gradient, linear in ``grad_output``: its own derivative gathers at the winners."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        winner: Tensor,
        boxes: Tensor,
        size: Sequence[int],
        channels_last: bool,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(winner, boxes)
        return _backward(grad_output, winner, boxes, list(size), channels_last, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        winner, boxes = ctx.saved_tensors
        empty = winner == torch.iinfo(winner.dtype).max
        cell = winner.to(torch.int64).masked_fill(empty, 0).flatten(2)
        at_winner = grad.flatten(2)[boxes[:, 0].long()].gather(2, cell).view(winner.shape)
        return at_winner.masked_fill(empty, 0), None, None, None, None, None


# --- the ops torch sees ---------------------------------------------------------------------------


def _is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is to be read as N, H, W, C; a view dense in neither order goes by its channels."""
    if x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) or (x.stride(1) == 1 and x.shape[1] > 1)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _winner_dtype(height: int, width: int) -> torch.dtype:
    """The smallest type that holds every cell's number, and one more for an empty bin."""
    cells = height * width
    return torch.uint8 if cells <= 0xFF else torch.uint16 if cells <= 0xFFFF else torch.int32


def _new_forward(
    input: Tensor,
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    with_winner: bool,
) -> tuple[Tensor, Tensor]:
    memory_format = _format(_is_channels_last(input))
    size = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format)
    if not with_winner:
        return output, torch.empty(0, dtype=torch.uint8, device=input.device)
    dtype = _winner_dtype(input.shape[2], input.shape[3])
    return output, torch.empty(size, dtype=dtype, device=input.device, memory_format=memory_format)


def _forward_kernel(
    input: Tensor,
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    with_winner: bool,
) -> tuple[Tensor, Tensor]:
    output, winner = _new_forward(input, boxes, pooled_height, pooled_width, spatial_scale, with_winner)
    dense = input.contiguous(memory_format=_format(_is_channels_last(input)))
    native().roi_pool_forward(output, winner, dense, boxes, spatial_scale)
    return output, winner


def _new_backward(
    grad_output: Tensor,
    winner: Tensor,
    boxes: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    spatial_scale: float,
) -> Tensor:
    return torch.empty(
        tuple(input_size),
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=_format(channels_last),
    )


def _backward_kernel(
    grad_output: Tensor,
    winner: Tensor,
    boxes: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    spatial_scale: float,
) -> Tensor:
    grad_input = _new_backward(grad_output, winner, boxes, input_size, channels_last, spatial_scale)
    dense = grad_output.contiguous(memory_format=_format(channels_last))
    native().roi_pool_backward(grad_input, dense, winner, boxes, spatial_scale)
    return grad_input


_forward = register(
    "roi_pool_forward(Tensor input, Tensor boxes, SymInt pooled_height, SymInt pooled_width, "
    "float spatial_scale, bool with_winner) -> (Tensor output, Tensor winner)",
    _forward_kernel,
    _new_forward,
)
_backward = register(
    "roi_pool_backward(Tensor grad_output, Tensor winner, Tensor boxes, SymInt[] input_size, "
    "bool channels_last, float spatial_scale) -> Tensor grad_input",
    _backward_kernel,
    _new_backward,
)
