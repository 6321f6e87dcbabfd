"""Edge Boxes: class-agnostic object proposals from an edge map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avfast.native import native
from avfast.ops._library import register

__all__ = ["edge_boxes"]


def edge_boxes(
    edges: Tensor,
    orientation: Tensor,
    max_boxes: int = 10,
    *,
    alpha: float = 0.65,
    beta: float = 0.75,
    eta: float = 1.0,
    min_score: float = 0.01,
    edge_min_mag: float = 0.1,
    edge_merge_thr: float = 0.5,
    cluster_min_mag: float = 0.5,
    max_aspect_ratio: float = 3.0,
    min_box_area: float = 1000.0,
    gamma: float = 2.0,
    kappa: float = 1.5,
) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Finds the boxes that wholly enclose the most contours.

    Zitnick and Dollár, Edge Boxes: Locating Object Proposals from Edges (ECCV 2014). Boxes and scores are
    those of ``cv2.ximgproc.createEdgeBoxes``, to the bit but for the order of equal scores. The search is
    exact and looks closely only at windows that can be among the best: fewer boxes take less time. Frames of
    a stack run in parallel, a single frame on all threads; the result does not depend on their number.

    Args:
        edges: Edge strength [H, W], or a stack [F, H, W]; float32, finite, usually 0 to 1, on the CPU. Thin
            edges give better boxes, and sooner.
        orientation: Direction of the edges, shape of ``edges``; float32, finite, radians modulo pi.
        max_boxes: How many boxes to return at most.
        alpha: IoU of neighbouring windows in position, scale and aspect ratio, between 0 and 1.
        beta: IoU above which the lower-scoring of two boxes is dropped; above 0.99 none is.
        eta: ``beta`` is multiplied by this after each box kept, while above 0.5.
        min_score: Windows that score less are neither refined nor returned.
        edge_min_mag: Edges at or below this strength are ignored.
        edge_merge_thr: An edge group grows until its direction has changed by this many half turns.
        cluster_min_mag: Edge groups of this total strength or less are merged into their neighbours.
        max_aspect_ratio: Largest ratio of the sides of a window before refinement, at least 1.
        min_box_area: Area of the smallest window before refinement, in square pixels.
        gamma: Exponent of the affinity between neighbouring edge groups.
        kappa: Exponent of the perimeter by which a box's mass of contours is divided.

    Returns:
        boxes [n, 4] float32 (x1, y1, x2, y2 in pixels) and scores [n] float32, best first, n <= max_boxes;
        for a stack, two lists of F such tensors. Scores are positive and have no upper limit.

    Raises:
        TypeError: If a map is no tensor, not float32 or not on the CPU.
        ValueError: If shapes disagree, a map holds NaN or infinity, or a parameter is out of its range.
    """
    for name, x in (("edges", edges), ("orientation", orientation)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
        if x.device.type != "cpu":
            raise TypeError(f"{name}: expected a CPU tensor, got {x.device}; edge_boxes runs on the CPU")
    if edges.dim() not in (2, 3):
        raise ValueError(f"edges: expected shape [H, W] or [F, H, W], got {list(edges.shape)}")
    if orientation.shape != edges.shape:
        raise ValueError(
            f"orientation: expected shape {list(edges.shape)} as edges, got {list(orientation.shape)}"
        )
    if max_boxes < 1:
        raise ValueError(f"max_boxes: expected at least 1, got {max_boxes}")
    stack = edges.dim() == 3
    boxes, scores, counts = _edge_boxes(
        edges.detach() if stack else edges.detach()[None],
        orientation.detach() if stack else orientation.detach()[None],
        max_boxes,
        alpha,
        beta,
        eta,
        min_score,
        edge_min_mag,
        edge_merge_thr,
        cluster_min_mag,
        max_aspect_ratio,
        min_box_area,
        gamma,
        kappa,
    )
    found = counts.tolist()
    boxes_of = [frame[:n].clone() for frame, n in zip(boxes, found, strict=True)]
    scores_of = [frame[:n].clone() for frame, n in zip(scores, found, strict=True)]
    return (boxes_of, scores_of) if stack else (boxes_of[0], scores_of[0])


def _new_outputs(edges: Tensor, max_boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places for ``max_boxes`` boxes and scores of each frame, and for how many there are."""
    frames = edges.shape[0]
    return (
        edges.new_zeros((frames, max_boxes, 4)),
        edges.new_zeros((frames, max_boxes)),
        edges.new_zeros((frames,), dtype=torch.int64),
    )


def _edge_boxes_kernel(
    edges: Tensor, orientation: Tensor, max_boxes: int, *parameters: float
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _new_outputs(edges, max_boxes)
    native().edge_boxes(*outputs, edges.contiguous(), orientation.contiguous(), max_boxes, *parameters)
    return outputs


def _edge_boxes_fake(
    edges: Tensor, orientation: Tensor, max_boxes: int, *parameters: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_outputs(edges, max_boxes)


_edge_boxes = register(
    "edge_boxes(Tensor edges, Tensor orientation, int max_boxes, float alpha, float beta, float eta, "
    "float min_score, float edge_min_mag, float edge_merge_thr, float cluster_min_mag, "
    "float max_aspect_ratio, float min_box_area, float gamma, float kappa) "
    "-> (Tensor boxes, Tensor scores, Tensor counts)",
    _edge_boxes_kernel,
    _edge_boxes_fake,
)
