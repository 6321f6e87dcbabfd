"""Class-agnostic object proposals: EdgeBoxes over an edge map of a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avfast.data.opencv import cv2
from avfast.errors import InputError

EdgeMaps = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Strength [H, W], 0 to 1, thinned to single pixels; direction across the edge [H, W], radians in 0 to pi."""

GRADIENT_SIGMA = 2.0
"""Pixels; texture finer than this makes no edge, and costs EdgeBoxes much time."""

STRONG_EDGE_PERCENTILE = 95.0
"""The thinned edge of this rank in a picture has strength 1, so that dim pictures have edges too."""

MIN_STRONG_EDGE = 0.02
"""Gradient, as a share of the brightness range per pixel, below which no edge has strength 1."""


@dataclass(frozen=True)
class EdgeBoxesParameters:
    """Parameters of EdgeBoxes (Zitnick and Dollár, ECCV 2014), with the authors' defaults."""

    alpha: float = 0.65
    """Step size of the sliding window search, as the IoU of neighbouring windows."""
    beta: float = 0.75
    """IoU above which the lesser of two boxes is dropped."""
    eta: float = 1.0
    """Factor on beta after each box kept."""
    min_score: float = 0.01
    """Boxes with a lower score are not returned."""
    edge_min_mag: float = 0.1
    """Weaker edges are ignored."""
    edge_merge_thr: float = 0.5
    """Change of direction, in units of pi, over which an edge group ends."""
    cluster_min_mag: float = 0.5
    """Edge groups of less strength join their neighbours."""
    max_aspect_ratio: float = 3.0
    """Of a box."""
    min_box_area: float = 1000.0
    """Pixels of the picture as stored."""
    gamma: float = 2.0
    """Exponent of the affinity between edge groups."""
    kappa: float = 1.5
    """Exponent of the perimeter that a score is divided by."""


@dataclass(frozen=True)
class Proposals:
    """R boxes of one picture, best first."""

    boxes: NDArray[np.float32]
    """[R, 4], xyxy in pixels."""
    scores: NDArray[np.float32]
    """[R], objectness; 0 for a box that is only a stand-in."""


def propose(
    image: NDArray[np.uint8],
    max_boxes: int,
    parameters: EdgeBoxesParameters,
    edge_model: Path | None = None,
) -> Proposals:
    """Find the boxes most likely to hold a whole object.

    Args:
        image: [H, W, 3], RGB.
        max_boxes: How many to return at most.
        parameters: Of EdgeBoxes.
        edge_model: A model of OpenCV's structured edge forest; without one, edges are gradients.

    Returns:
        At least one box: where EdgeBoxes finds none, the whole picture with score 0, so that what the picture
        shows is not lost.

    Raises:
        InputError: When the edge model cannot be read.
    """
    source = "gradient" if edge_model is None else "structured-forest"
    edges, orientation = EDGE_SOURCES[source](image, edge_model)
    boxes, scores = _edge_boxes(edges, orientation, max_boxes, parameters)
    if len(boxes):
        return Proposals(boxes, scores)
    height, width = image.shape[:2]
    return Proposals(np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.float32))


def gradient_edges(image: NDArray[np.uint8], edge_model: Path | None = None) -> EdgeMaps:
    """Edges where the strongest of the three colour gradients has its peak."""
    smooth = cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), GRADIENT_SIGMA)
    dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    strongest = (dx * dx + dy * dy).argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(d, strongest, axis=2)[..., 0] for d in (dx, dy))
    magnitude, direction = np.hypot(dx, dy), np.mod(np.arctan2(dy, dx), np.pi)
    edges = _thin(magnitude, direction)
    peaks = edges[edges > 0]
    strong = max(np.percentile(peaks, STRONG_EDGE_PERCENTILE) if len(peaks) else 0.0, MIN_STRONG_EDGE)
    return np.minimum(edges / np.float32(strong), 1), direction


def structured_forest_edges(image: NDArray[np.uint8], edge_model: Path | None = None) -> EdgeMaps:
    """Edges that a structured random forest finds (Dollár and Zitnick, ICCV 2013)."""
    forest = _structured_forest(edge_model)
    edges = forest.detectEdges(image.astype(np.float32) / 255)
    orientation = forest.computeOrientation(edges)
    return forest.edgesNms(edges, orientation), orientation


EDGE_SOURCES: dict[str, Callable[[NDArray[np.uint8], Path | None], EdgeMaps]] = {
    "gradient": gradient_edges,
    "structured-forest": structured_forest_edges,
}


def _thin(magnitude: NDArray[np.float32], direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep a pixel only where its magnitude is not less than one pixel further either way across the edge."""
    rows, columns = np.indices(magnitude.shape, dtype=np.float32)
    across_x, across_y = np.cos(direction), np.sin(direction)
    ahead, behind = (
        cv2.remap(
            magnitude,
            columns + sign * across_x,
            rows + sign * across_y,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for sign in (1, -1)
    )
    return np.where((magnitude >= ahead) & (magnitude >= behind), magnitude, np.float32(0))


def _edge_boxes(
    edges: NDArray[np.float32],
    orientation: NDArray[np.float32],
    max_boxes: int,
    parameters: EdgeBoxesParameters,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """EdgeBoxes' boxes [n, 4] (xyxy) and scores [n], best first; n may be 0."""
    if not edges.any():
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    found, scores = _detector(max_boxes, parameters).getBoundingBoxes(edges, orientation)
    boxes = np.asarray(found, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # width and height to the far corner
    height, width = edges.shape
    np.clip(boxes, 0, np.array([width, height] * 2, np.float32), out=boxes)
    return boxes, np.asarray(scores, np.float32).reshape(-1)


def _detector(max_boxes: int, parameters: EdgeBoxesParameters) -> Any:
    """A detector for one picture: OpenCV's carries sums over to the next, which changes its scores."""
    return cv2.ximgproc.createEdgeBoxes(
        alpha=parameters.alpha,
        beta=parameters.beta,
        eta=parameters.eta,
        minScore=parameters.min_score,
        maxBoxes=max_boxes,
        edgeMinMag=parameters.edge_min_mag,
        edgeMergeThr=parameters.edge_merge_thr,
        clusterMinMag=parameters.cluster_min_mag,
        maxAspectRatio=parameters.max_aspect_ratio,
        minBoxArea=parameters.min_box_area,
        gamma=parameters.gamma,
        kappa=parameters.kappa,
    )


@cache
def _structured_forest(edge_model: Path | None) -> Any:
    if edge_model is None or not edge_model.is_file():
        raise InputError(f"{edge_model}: no such edge model; give the file of OpenCV's structured forest")
    try:
        return cv2.ximgproc.createStructuredEdgeDetection(str(edge_model))
    except cv2.error as error:
        raise InputError(f"{edge_model}: not a model of OpenCV's structured edge detection") from error
