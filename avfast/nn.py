"""The native operations as modules."""

from __future__ import annotations

from torch import Tensor, nn

from avfast import ops
from avfast.ops.roi_pool import Boxes

__all__ = ["MILAggregate", "RoIPool"]


class RoIPool(nn.Module):
    """``avfast.ops.roi_pool`` with a fixed output size, as ``torchvision.ops.RoIPool``.

    Args:
        output_size: Bins (height, width), or one number for both.
        spatial_scale: Cells of the feature map per pixel of the boxes.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        """Features [N, C, H, W] and boxes [K, 5] or N times [L, 4] -> [K, C, *output_size]."""
        return ops.roi_pool(input, boxes, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class MILAggregate(nn.Module):
    """``avfast.ops.mil_aggregate``: scores weighted by the softmax of logits over a bag's instances."""

    def forward(self, scores: Tensor, logits: Tensor, offsets: Tensor | None = None) -> Tensor:
        """[B, P, C], or [N, C] with offsets [B + 1] -> [B, C]."""
        return ops.mil_aggregate(scores, logits, offsets)
