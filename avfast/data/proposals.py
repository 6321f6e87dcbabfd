"""Class-agnostic object proposals: EdgeBoxes over an edge map of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avfast.data.opencv import cv2
from avfast.errors import InputError
from avfast.native import native

EdgeMaps = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Strength [H, W], 0 to 1, thinned to single pixels; direction across the edge [H, W], radians in 0 to pi."""

EdgeSource = Callable[[NDArray[np.uint8]], EdgeMaps]
"""From a picture [H, W, 3] (RGB) to its edges."""

GRADIENT_SIGMAS = (2.0, 4.0)
"""Pixels of the searched picture; texture finer than this makes no edge, and costs EdgeBoxes much time."""

STRONG_EDGE_PERCENTILE = 95.0
"""The thinned edge of this rank in a picture has strength 1, so that dim pictures have edges too."""

MIN_STRONG_EDGE = 0.02
"""Gradient, as a share of the brightness range per pixel, below which no edge has strength 1."""

_FOREST_OPTIONS = (
    "stride",
    "shrinkNumber",
    "patchSize",
    "patchInnerSize",
    "numberOfGradientOrientations",
    "selfsimilarityGridSize",
    "numberOfTrees",
    "numberOfTreesToEvaluate",
)
_FOREST_PARTS = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")


@dataclass(frozen=True)
class EdgeBoxesParameters:
    """Parameters of EdgeBoxes (Zitnick and Dollár, ECCV 2014); the authors' defaults but where that is said.

    Those that are not theirs were chosen by benchmarks/proposal_recall.py.
    """

    search_side: int = 160
    """Pixels; larger pictures are searched scaled down to this on their longer side."""

    alpha: float = 0.55
    """Step size of the sliding window search, as the IoU of neighbouring windows (the authors: 0.65)."""
    beta: float = 0.5
    """IoU above which the lesser of two boxes is dropped (the authors: 0.75)."""
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
    max_aspect_ratio: float = 4.0
    """Of a window (the authors: 3). With this alpha it makes five shapes, as theirs do, but up to 1:3.9."""
    min_box_area: float = 1000.0
    """Pixels of the picture as given, not as searched."""
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
        InputError: When the edge model cannot be read, or the parameters give too many windows to search.
    """
    edges = gradient_edges if edge_model is None else partial(structured_forest_edges, edge_model)
    return propose_from(edges, image, max_boxes, parameters)


def propose_from(
    source: EdgeSource, image: NDArray[np.uint8], max_boxes: int, parameters: EdgeBoxesParameters
) -> Proposals:
    """``propose`` over the edges of any source."""
    height, width = image.shape[:2]
    searched = _scaled_down(image, parameters.search_side)
    scale = np.array([width / searched.shape[1], height / searched.shape[0]], np.float32)
    area = parameters.min_box_area / float(scale.prod())
    edges, orientation = source(searched)
    boxes, scores = _edge_boxes(edges, orientation, max_boxes, replace(parameters, min_box_area=area))
    if len(boxes):
        return Proposals(boxes * np.tile(scale, 2), scores)
    return Proposals(np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.float32))


def gradient_edges(image: NDArray[np.uint8]) -> EdgeMaps:
    """Edges where the colour gradient across them has its peak."""
    magnitude, direction = gradients(image, GRADIENT_SIGMAS)
    return normalised(thinned(magnitude, direction)), direction


def structured_forest_edges(edge_model: Path, image: NDArray[np.uint8]) -> EdgeMaps:
    """Edges that a structured random forest finds (Dollár and Zitnick, ICCV 2013)."""
    forest = structured_forest(edge_model)
    edges = forest.detectEdges(image.astype(np.float32) / 255)
    orientation = forest.computeOrientation(edges)
    return forest.edgesNms(edges, orientation), orientation


def gradients(image: NDArray[np.uint8], sigmas: Sequence[float]) -> EdgeMaps:
    """The gradient of a colour picture, from Di Zenzo's tensor (1986) averaged over channels and scales.

    Args:
        image: [H, W, 3].
        sigmas: Pixels; of the Gaussian of each scale.

    Returns:
        Magnitude, 1 for a change by the whole range in one pixel; direction.
    """
    picture, tensor = image.astype(np.float32), np.zeros((3, *image.shape[:2]), np.float32)
    for sigma in sigmas:
        smooth = cv2.GaussianBlur(picture, (0, 0), sigma)
        dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=1 / 8 / 255) for order in ((1, 0), (0, 1)))
        for total, product in zip(tensor, (dx * dx, dy * dy, dx * dy), strict=True):
            total += cv2.transform(product, np.full((1, 3), 1 / 3 / len(sigmas)))
    xx, yy, xy = tensor
    spread, double_angle = cv2.cartToPolar((xx - yy) / 2, xy)
    return cv2.sqrt((xx + yy) / 2 + spread), double_angle / 2


def thinned(magnitude: NDArray[np.float32], direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep a pixel only where its magnitude is not less than one pixel further either way across the edge."""
    columns, rows = _pixel_grid(*magnitude.shape)
    x, y = cv2.polarToCart(np.ones_like(direction), direction)
    ahead, behind = (
        cv2.remap(magnitude, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for places in ((columns + x, rows + y), (columns - x, rows - y))
    )
    return np.where(magnitude >= np.maximum(ahead, behind), magnitude, np.float32(0))


def normalised(edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale edges so that the strong ones of this picture have strength 1."""
    peaks = edges[edges > 0]
    strong = max(np.percentile(peaks, STRONG_EDGE_PERCENTILE) if len(peaks) else 0.0, MIN_STRONG_EDGE)
    return np.minimum(edges / np.float32(strong), 1)


def _scaled_down(image: NDArray[np.uint8], long_side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


@lru_cache(maxsize=4)
def _pixel_grid(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of every pixel."""
    rows, columns = np.indices((height, width), dtype=np.float32)
    return columns, rows


def _edge_boxes(
    edges: NDArray[np.float32],
    orientation: NDArray[np.float32],
    max_boxes: int,
    parameters: EdgeBoxesParameters,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """EdgeBoxes' boxes [n, 4] (xyxy) and scores [n], best first; n may be 0."""
    if not edges.any():
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    boxes = np.zeros((1, max_boxes, 4), np.float32)
    scores, counts = np.zeros((1, max_boxes), np.float32), np.zeros(1, np.int64)
    maps = (np.ascontiguousarray(values, np.float32)[None] for values in (edges, orientation))
    search = {name: value for name, value in vars(parameters).items() if name != "search_side"}
    try:  # not by avfast.ops, which needs torch, whose import takes longer than small jobs
        native().edge_boxes(boxes, scores, counts, *maps, max_boxes, **search)
    except ValueError as error:  # more windows than can be searched
        raise InputError(f"EdgeBoxes: {error}") from error
    height, width = edges.shape
    np.clip(boxes, 0, np.array([width, height] * 2, np.float32), out=boxes)
    return boxes[0, : counts[0]], scores[0, : counts[0]]


@cache
def structured_forest(edge_model: Path) -> Any:
    """OpenCV's edge detector with the forest of a file.

    Args:
        edge_model: As OpenCV's repository opencv_extra has it, ``testdata/cv/ximgproc/model.yml.gz``.

    Raises:
        InputError: There is no such file, or it holds no forest.
    """
    if not edge_model.is_file():
        raise InputError(f"{edge_model}: no such file; give the model of OpenCV's structured edge forest")
    try:
        if _holds_forest(edge_model):
            return cv2.ximgproc.createStructuredEdgeDetection(str(edge_model))
    except (cv2.error, SystemError):  # a parsing error comes as the one or the other
        pass
    raise InputError(
        f"{edge_model}: not a model of OpenCV's structured edge forest; OpenCV has one in its repository "
        "opencv_extra, testdata/cv/ximgproc/model.yml.gz"
    )


def _holds_forest(edge_model: Path) -> bool:
    """Whether a file has the parts of a forest: OpenCV takes any other file, too, and then crashes."""
    storage = cv2.FileStorage(str(edge_model), cv2.FILE_STORAGE_READ)
    options = storage.getNode("options")
    numbers = [options.getNode(name) for name in _FOREST_OPTIONS] if options.isMap() else []
    parts = [storage.getNode(name) for name in _FOREST_PARTS]
    return bool(
        numbers
        and all(number.isInt() and number.real() > 0 for number in numbers)
        and all(part.isSeq() and part.size() for part in parts)
    )
