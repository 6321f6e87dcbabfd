"""Edge Boxes against OpenCV, one thread each, on equal maps: python -m pytest benchmarks/test_edge_boxes.py

Real pictures come from AVFAST_REAL_CLIPS, a folder of videos/*.mp4 (enlarged for the larger sizes); drawn
ones are overlapping shapes under noise. Set OMP_NUM_THREADS=1 for a fair ratio.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from avfast.data.proposals import EdgeSource, gradient_edges
from avfast.ops import edge_boxes

Maps = tuple[Tensor, Tensor]

SIZES = [(320, 240), (640, 480), (1280, 720)]
CLIPS = Path(os.environ.get("AVFAST_REAL_CLIPS", "../shared/real_clips"))


def _real_picture(width: int, height: int) -> np.ndarray:
    videos = sorted((CLIPS / "videos").glob("*.mp4"))
    if not videos:
        pytest.skip(f"no videos under {CLIPS}; set AVFAST_REAL_CLIPS")
    _, picture = cv2.VideoCapture(str(videos[len(videos) // 2])).read()
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)


def _drawn_picture(width: int, height: int) -> np.ndarray:
    random = np.random.default_rng(0)
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(40):
        centre = int(random.integers(width)), int(random.integers(height))
        axes = [int(r) for r in random.integers(8, height // 4, 2)]
        cv2.ellipse(
            picture,
            centre,
            axes,
            float(random.uniform(0, 180)),
            0,
            360,
            random.integers(256, size=3).tolist(),
            -1,
        )
    return np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


PICTURES: dict[str, Callable[[int, int], np.ndarray]] = {"real": _real_picture, "drawn": _drawn_picture}


def _plain(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient strength up to 1, and direction of the edge."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    edges = np.hypot(dx, dy)
    return edges / edges.max(), np.mod(np.arctan2(dy, dx) + np.pi / 2, np.pi)


EDGES: dict[str, EdgeSource] = {"plain": _plain, "thinned": gradient_edges}


@cache
def _maps(picture: str, edges: str, size: tuple[int, int]) -> Maps:
    strength, direction = EDGES[edges](np.ascontiguousarray(PICTURES[picture](*size)[..., ::-1]))
    return torch.from_numpy(strength), torch.from_numpy(direction)


def _opencv(maps: Maps, count: int) -> tuple[np.ndarray, np.ndarray]:
    detector = cv2.ximgproc.createEdgeBoxes(maxBoxes=count)
    boxes, scores = detector.getBoundingBoxes(maps[0].numpy(), maps[1].numpy())
    return np.asarray(boxes), np.asarray(scores).reshape(-1)


@pytest.mark.parametrize("implementation", ["avfast", "opencv"])
@pytest.mark.parametrize("count", [10, 100, 1000])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("picture", PICTURES)
def test_edge_boxes(
    benchmark: Any, picture: str, edges: str, size: tuple[int, int], count: int, implementation: str
) -> None:
    if benchmark.disabled and (size, count) != (SIZES[0], 10):
        pytest.skip("one size is enough to see that the benchmark works")
    cv2.setNumThreads(1)
    maps = _maps(picture, edges, size)
    run = {"avfast": lambda: edge_boxes(*maps, max_boxes=count), "opencv": lambda: _opencv(maps, count)}
    if implementation == "avfast":
        expected = _opencv(maps, count)[1][:count]
        np.testing.assert_allclose(edge_boxes(*maps, max_boxes=count)[1], expected, rtol=0, atol=1e-6)
    benchmark.group = f"edge_boxes {edges} {picture} {size[0]}x{size[1]} M={count}"
    benchmark.pedantic(run[implementation], rounds=3 if size == SIZES[0] else 2)
