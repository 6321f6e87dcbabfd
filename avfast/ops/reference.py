"""The operations of ``avfast.ops`` in plain torch: what the kernels are tested and timed against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mil_aggregate", "mil_logsumexp", "roi_pool"]


# --- RoI pooling ----------------------------------------------------------------------------------


def roi_pool(
    input: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0
) -> Tensor:
    """``avfast.ops.roi_pool`` for boxes [K, 5] in float32 or float64.

    Visits the bins' cells in row-major order, one cell of every bin at a time; bins that have run out of
    cells look at their last one again, which changes nothing.
    """
    count, (channels, height, width) = boxes.shape[0], input.shape[1:]
    cells = input.permute(0, 2, 3, 1).reshape(-1, channels)
    image = boxes[:, 0].long().view(count, 1, 1) * (height * width)
    top, bottom = _bins(boxes[:, 2], boxes[:, 4], spatial_scale, output_size[0], height)
    left, right = _bins(boxes[:, 1], boxes[:, 3], spatial_scale, output_size[1], width)
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]

    def cell(dy: int, dx: int) -> Tensor:
        row = torch.minimum(top + dy, bottom - 1).clamp(0, height - 1)[:, :, None]
        column = torch.minimum(left + dx, right - 1).clamp(0, width - 1)[:, None, :]
        return cells[image + row * width + column]

    if empty.all():
        return cells.new_zeros((count, channels, *output_size)) + 0 * cells.sum()
    best = cell(0, 0)
    for dy in range(int((bottom - top).max())):
        for dx in range(int((right - left).max())):
            value = cell(dy, dx)
            best = torch.where((value > best) | (best.isnan() & ~value.isnan()), value, best)
    return best.masked_fill(empty[..., None], 0).permute(0, 3, 1, 2)


def _bins(low: Tensor, high: Tensor, scale: float, pooled: int, size: int) -> tuple[Tensor, Tensor]:
    """First cell and the cell past the last of each bin along one axis, [K, pooled], clipped to the map."""
    start = _nearest_cell(low * scale)
    cells = (_nearest_cell(high * scale) - start + 1).clamp(min=1)
    bin_size = cells.to(low.dtype) / pooled
    i = torch.arange(pooled + 1, dtype=low.dtype, device=low.device)
    begin = start[:, None] + (i[:-1] * bin_size[:, None]).floor().long()
    end = start[:, None] + (i[1:] * bin_size[:, None]).ceil().long()
    return begin.clamp(0, size), end.clamp(0, size)


def _nearest_cell(x: Tensor) -> Tensor:
    """Rounds halves away from zero, as C does; cells beyond +-2^30 are outside any map."""
    whole = x.clamp(-(2.0**30), 2.0**30).trunc()
    return (whole + ((x.clamp(-(2.0**30), 2.0**30) - whole).abs() >= 0.5) * x.sign()).long()


# --- multiple-instance learning -------------------------------------------------------------------


def mil_aggregate(scores: Tensor, logits: Tensor, offsets: Tensor | None = None) -> Tensor:
    """``avfast.ops.mil_aggregate``."""
    return _bag_sum(scores * _bag_softmax(logits, offsets), offsets)


def mil_logsumexp(scores: Tensor, offsets: Tensor | None = None, r: float = 1.0) -> Tensor:
    """``avfast.ops.mil_logsumexp``."""
    x = r * scores
    peak = _bag_peak(x, offsets)
    length = _bag_sum(torch.ones_like(x), offsets)
    mean = _bag_sum((x - _to_instances(peak, x, offsets)).exp(), offsets) / length
    return ((peak + mean.log()) / r).masked_fill(length == 0, 0)


def mil_aggregate_gradients(
    grad: Tensor, scores: Tensor, logits: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of ``mil_aggregate`` with respect to scores and logits, themselves differentiable."""
    weight = _bag_softmax(logits, offsets)
    output = _bag_sum(scores * weight, offsets)
    grad_scores = _to_instances(grad, scores, offsets) * weight
    return grad_scores, grad_scores * (scores - _to_instances(output, scores, offsets))


def mil_logsumexp_gradient(grad: Tensor, scores: Tensor, offsets: Tensor | None, r: float) -> Tensor:
    """Gradient of ``mil_logsumexp``, itself differentiable."""
    return _to_instances(grad, scores, offsets) * _bag_softmax(r * scores, offsets)


def _bag_softmax(logits: Tensor, offsets: Tensor | None) -> Tensor:
    """Softmax over each bag's instances; all zero where every logit is -inf."""
    e = (logits - _to_instances(_bag_peak(logits, offsets), logits, offsets)).exp()
    total = _bag_sum(e, offsets)
    return e / _to_instances(total.masked_fill(total == 0, 1), logits, offsets)


def _bag_peak(x: Tensor, offsets: Tensor | None) -> Tensor:
    """Each bag's maximum as a constant (the softmax does not depend on it), finite where there is none."""
    x, lowest = x.detach(), torch.finfo(x.dtype).min
    if offsets is None:
        floor = x.new_full((x.shape[0], 1, x.shape[2]), lowest)
        return torch.cat([x, floor], dim=1).amax(dim=1)
    floor = x.new_full((offsets.shape[0] - 1, x.shape[1]), lowest)
    index = _bag_index(x, offsets)[:, None].expand_as(x)
    return floor.scatter_reduce(0, index, x, reduce="amax")


def _bag_sum(x: Tensor, offsets: Tensor | None) -> Tensor:
    if offsets is None:
        return x.sum(dim=1)
    return x.new_zeros((offsets.shape[0] - 1, x.shape[1])).index_add(0, _bag_index(x, offsets), x)


def _to_instances(x: Tensor, like: Tensor, offsets: Tensor | None) -> Tensor:
    return x[:, None, :] if offsets is None else x[_bag_index(like, offsets)]


def _bag_index(x: Tensor, offsets: Tensor) -> Tensor:
    """The bag of each instance, [N]."""
    bags = torch.arange(offsets.shape[0] - 1, device=x.device)
    return bags.repeat_interleave(offsets.diff(), output_size=x.shape[0])
