"""Edge maps and object proposals."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from media_maker import write_media

from avfast.data.proposals import (
    EdgeBoxesParameters,
    gradient_edges,
    propose,
    structured_forest,
    structured_forest_edges,
)
from avfast.errors import InputError

PARAMETERS = EdgeBoxesParameters()


def scene(box: tuple[int, int, int, int], size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A dark rectangle on a bright ground."""
    image = np.full((size[1], size[0], 3), 200, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = (40, 80, 20)
    return image


def iou(box: np.ndarray, other: tuple[float, ...]) -> float:
    left, top = np.maximum(box[:2], other[:2])
    right, bottom = np.minimum(box[2:], other[2:])
    shared = max(0, right - left) * max(0, bottom - top)
    area = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return shared / (area - shared)


def rectangles(width: int, height: int) -> Iterator[tuple[float, float, float, float]]:
    """Boxes in a picture of that size: a sliding window search meets one or another badly."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        (x1, y1), (x2, y2) = rng.uniform(0.1, 0.4, 2), rng.uniform(0.6, 0.9, 2)
        yield x1 * width, y1 * height, x2 * width, y2 * height


@pytest.mark.parametrize("size", [(160, 120), (640, 480), (333, 1000)])
def test_finds_the_object(size: tuple[int, int]) -> None:
    """In large pictures too, which are searched scaled down: boxes are in pixels of the picture given."""
    overlaps = []
    for truth in rectangles(*size):
        found = propose(scene(tuple(map(round, truth)), size), 10, PARAMETERS)
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert (np.diff(found.scores) <= 0).all()
        assert 1 <= len(found.boxes) == len(found.scores) <= 10
        overlaps.append(iou(found.boxes[0], truth))
    assert min(overlaps) > 0.65
    assert np.mean(overlaps) > 0.8


@pytest.mark.parametrize("size", [(640, 480), (333, 1000)])
def test_smallest_area_is_in_pixels_of_the_picture(size: tuple[int, int]) -> None:
    width, height = size
    image = scene((width // 4, height // 4, width * 5 // 8, height * 2 // 3), size)
    assert len(propose(image, 100, replace(PARAMETERS, min_box_area=0.5 * width * height)).boxes) < 5


def test_boxes_lie_in_the_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    boxes = propose(cv2.GaussianBlur(image, (0, 0), 3), 50, PARAMETERS).boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 130).all()
    assert (boxes[:, 3] <= 90).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_earlier_pictures_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    images = [
        cv2.GaussianBlur(rng.integers(0, 256, (90, 130, 3), np.uint8), (0, 0), sigma)
        for sigma in (2, 3, 5, 3)
    ]
    forward = [propose(image, 50, PARAMETERS) for image in images]
    backward = [propose(image, 50, PARAMETERS) for image in reversed(images)][::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_fewer_boxes_are_the_best_ones() -> None:
    image = scene((40, 30, 100, 80))
    image[90:110, 110:150] = 90
    many, few = propose(image, 40, PARAMETERS), propose(image, 5, PARAMETERS)
    np.testing.assert_array_equal(few.boxes, many.boxes[:5])
    np.testing.assert_array_equal(few.scores, many.scores[:5])


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 48)])
def test_without_proposals_the_whole_picture_stands_in(size: tuple[int, int]) -> None:
    width, height = size
    found = propose(np.full((height, width, 3), 77, np.uint8), 10, PARAMETERS)
    np.testing.assert_array_equal(found.boxes, [[0, 0, width, height]])
    np.testing.assert_array_equal(found.scores, [0])


def test_smallest_area() -> None:
    image = scene((40, 30, 60, 50))  # 400 pixels
    small = propose(image, 10, EdgeBoxesParameters(min_box_area=200)).boxes
    assert max(iou(box, (40, 30, 60, 50)) for box in small) > 0.6
    boxes = propose(image, 100, PARAMETERS).boxes
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (areas >= 300).all()  # the search starts at 1000, refinement shrinks some


def test_too_many_windows_are_refused() -> None:
    image = scene((40, 30, 60, 50))
    with pytest.raises(InputError, match="min_box_area"):
        propose(image, 10, EdgeBoxesParameters(alpha=0.99, max_aspect_ratio=100, min_box_area=1e-6))


@pytest.mark.parametrize(
    ("image", "direction"),
    [
        (np.repeat([[0] * 32 + [255] * 32], 48, axis=0), 0.0),  # dark left, bright right
        (np.repeat([[0]] * 24 + [[255]] * 24, 64, axis=1), np.pi / 2),  # dark above, bright below
    ],
)
def test_gradient_edges(image: np.ndarray, direction: float) -> None:
    """One straight border gives one thin line, at full strength, directed across the border."""
    edges, orientation = gradient_edges(np.repeat(image[..., None], 3, axis=2).astype(np.uint8))
    assert edges.dtype == orientation.dtype == np.float32
    line = edges > 0.5
    across = line.any(axis=0 if direction == 0 else 1)
    assert 1 <= across.sum() <= 2
    assert edges.max() == 1
    np.testing.assert_allclose(orientation[line], direction, atol=1e-3)
    assert (orientation >= 0).all()
    assert (orientation <= np.pi).all()


def test_faint_noise_makes_no_strong_edges() -> None:
    noise = np.random.default_rng(0).integers(126, 130, (60, 80, 3), np.uint8)
    assert gradient_edges(noise)[0].max() < 0.5


def test_edges_of_one_colour_channel_count() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    image[:, 40:, 2] = 220
    assert gradient_edges(image)[0].max() == 1


FOREST = {
    "options": {
        "stride": 2,
        "shrinkNumber": 2,
        "patchSize": 32,
        "patchInnerSize": 16,
        "numberOfGradientOrientations": 4,
        "gradientSmoothingRadius": 0,
        "regFeatureSmoothingRadius": 2,
        "ssFeatureSmoothingRadius": 8,
        "gradientNormalizationRadius": 4,
        "selfsimilarityGridSize": 5,
        "numberOfTrees": 1,
        "numberOfTreesToEvaluate": 1,
    },
    # One node and two leaves: where the gradient (channel 3) in the middle cell of a patch (row 8, column 8
    # of 16 x 16) is strong, an edge runs through the middle pixel, at full strength (all 13 channels).
    "childs": [[2, 0, 0]],
    "featureIds": [[3 * 16 * 16 + 8 * 16 + 8, 0, 0]],
    "thresholds": [[0.2, 0.0, 0.0]],
    "edgeBoundaries": [[0, 0, 0, 13]],
    "edgeBins": [[channel * 16 * 16 + 8 * 16 + 8 for channel in range(13)]],
}


def test_structured_forest(tmp_path: Path) -> None:
    """The least forest there is finds the object; OpenCV's own is not at hand."""
    model = tmp_path / "model.json"
    model.write_text(json.dumps(FOREST))
    image = scene((40, 30, 100, 80))
    edges, direction = structured_forest_edges(model, image)
    assert edges.shape == direction.shape == image.shape[:2]
    assert edges.dtype == direction.dtype == np.float32
    assert edges[40:70, 35:45].any(axis=1).all() and not edges[45:65, 55:85].any()
    across = direction[40:70, 35:45][edges[40:70, 35:45] > 0]
    assert np.minimum(across, np.pi - across).max() < 0.3
    assert iou(propose(image, 10, PARAMETERS, model).boxes[0], (40, 30, 100, 80)) > 0.6
    assert len(propose(image[:1, :1], 10, PARAMETERS, model).boxes) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a forest",
        b'{"x": 1}',
        b"%YAML:1.0\n---\nfoo: 1\n",
        json.dumps(FOREST | {"childs": []}).encode(),
        json.dumps(FOREST | {"options": FOREST["options"] | {"numberOfTrees": 0}}).encode(),
        json.dumps(FOREST).encode()[:-40],
    ],
)
def test_unreadable_edge_model(tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "model.yml"
    with pytest.raises(InputError, match=r"model\.yml: no such file"):
        structured_forest(model)
    model.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.yml: not a model of OpenCV's structured edge forest"):
        structured_forest(model)


def test_recall_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """benchmarks/proposal_recall.py, on one video whose one object is easily found."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    program = importlib.import_module("proposal_recall")
    truth = (40, 30, 100, 80)
    write_media(tmp_path / "a.mp4", [scene(truth)], fps=1)
    (tmp_path / "labels.csv").write_text("clip,labels,split\na.mp4,cat,train\n")
    rows = ["clip,modality,class,start,end,x1,y1,x2,y2", "a.mp4,visual,cat,0,0,40,30,100,80", ""]
    (tmp_path / "annotations.csv").write_text("\n".join(rows))
    program.main(program.Options(tmp_path))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "1 frames, 1 boxes, from train and val"
    cells = [row.strip("| ").split(" | ") for row in printed[4:]]
    assert {row[0] for row in cells} >= {"two scales", "one scale", "not thinned"}
    thinned = [row for row in cells if row[0] != "not thinned"]
    assert all(row[5:9] == ["1.000", "1.000", "1.000", "-"] for row in thinned)
    assert all(0.5 <= float(row[9]) <= 1 for row in thinned)


def test_opencv_that_does_not_load_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "avfast.data.opencv")
    with pytest.raises(ImportError, match=r"libGL\.so\.1.*opencv-contrib-python"):
        importlib.import_module("avfast.data.opencv")
