"""Edge Boxes against OpenCV's implementation, against numbers worked out by hand, and under hostile input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avfast.data.proposals import EdgeBoxesParameters, gradient_edges
from avfast.ops import edge_boxes

Maps = tuple[Tensor, Tensor]

ORACLE_NAMES = {
    "max_boxes": "maxBoxes",
    "min_score": "minScore",
    "edge_min_mag": "edgeMinMag",
    "edge_merge_thr": "edgeMergeThr",
    "cluster_min_mag": "clusterMinMag",
    "max_aspect_ratio": "maxAspectRatio",
    "min_box_area": "minBoxArea",
}


def oracle(maps: Maps, **parameters: Any) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's boxes as xyxy, and scores.

    Its detector must be new for each picture: the masses of the last picture's edge groups are left in it.
    Where it finds no box it gives one meaningless score.
    """
    named = {ORACLE_NAMES.get(name, name): value for name, value in parameters.items()}
    detector = cv2.ximgproc.createEdgeBoxes(**named)
    boxes, scores = detector.getBoundingBoxes(maps[0].numpy(), maps[1].numpy())
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.asarray(scores, np.float32).reshape(-1)[: len(boxes)]


def assert_equals_oracle(maps: Maps, counts: tuple[int, ...], **parameters: Any) -> None:
    """The best boxes and scores are OpenCV's, for each number of them.

    Boxes may differ in ties only. The score sees w // 2 + h // 2, so boxes that differ by one pixel can score
    the same; which of them OpenCV's unstable sort puts first, to suppress the others, is arbitrary. Ours must
    then be among its boxes before suppression, with that score.
    """
    expected_boxes, expected_scores = oracle(maps, max_boxes=max(counts), **parameters)
    for count in counts:
        boxes, scores = (x.numpy() for x in edge_boxes(*maps, max_boxes=count, **parameters))
        assert len(boxes) == len(scores) == min(count, len(expected_boxes))
        np.testing.assert_allclose(scores, expected_scores[:count], rtol=0, atol=1e-6)
        differing = np.flatnonzero((boxes != expected_boxes[:count]).any(axis=1))
        if len(differing):
            all_boxes, all_scores = oracle(maps, **{**parameters, "beta": 1.0})
            candidates = {
                (*box, score) for box, score in zip(all_boxes.tolist(), all_scores.tolist(), strict=True)
            }
            assert all((*boxes[i].tolist(), scores[i].item()) in candidates for i in differing)
            assert len(differing) <= max(2, count // 20)


def assert_greedy_choice(maps: Maps, count: int, beta: float, **parameters: Any) -> None:
    """Ours is what greedy suppression makes of OpenCV's boxes before suppression, whichever way ties go.

    On tiny maps ties abound, and the way they go decides which other boxes are suppressed.
    """
    boxes, scores = edge_boxes(*maps, max_boxes=count, beta=beta, **parameters)
    candidates, candidate_scores = (torch.from_numpy(x) for x in oracle(maps, beta=1.0, **parameters))
    shown = {(*box, score) for box, score in zip(candidates.tolist(), candidate_scores.tolist(), strict=True)}
    assert all((*box, score) in shown for box, score in zip(boxes.tolist(), scores.tolist(), strict=True))

    def overlap(a: Tensor, b: Tensor) -> Tensor:
        low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        areas_a, areas_b = (x[:, 2:].sub(x[:, :2]).prod(-1) for x in (a, b))
        return shared / (areas_a[:, None] + areas_b - shared)

    assert not (overlap(boxes, boxes).triu(1) > beta).any()
    suppressed = (overlap(candidates, boxes) > beta) & (scores >= candidate_scores[:, None])
    rest = candidate_scores[~suppressed.any(1)]
    if len(boxes) == count:
        assert not (rest > scores[-1]).any()
    else:
        assert len(rest) == 0


def gradient_maps(image: np.ndarray, sigma: float = 1.0) -> Maps:
    """Gradient strength up to 1, and direction of the edge, of a picture's grey values."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), sigma)
    dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    edges = np.hypot(dx, dy)
    edges /= max(float(edges.max()), 1e-6)
    return torch.from_numpy(edges), torch.from_numpy(np.mod(np.arctan2(dy, dx) + np.pi / 2, np.pi))


def drawn_maps(width: int, height: int, seed: int, shapes: int = 30) -> Maps:
    """Maps of overlapping ellipses and rectangles of random brightness under faint noise."""
    random = np.random.default_rng(seed)
    image = np.full((height, width), 128, np.uint8)
    for _ in range(shapes):
        x, y = int(random.integers(width)), int(random.integers(height))
        a, b = (int(r) for r in random.integers(8, height // 4, 2))
        grey = int(random.integers(256))
        if random.random() < 0.5:
            cv2.ellipse(image, (x, y), (a, b), float(random.uniform(0, 180)), 0, 360, grey, -1)
        else:
            cv2.rectangle(image, (x - a, y - b), (x + a, y + b), grey, -1)
    noise = random.normal(0, 4, image.shape)
    return gradient_maps(np.clip(image + noise, 0, 255).astype(np.uint8), sigma=1.5)


def noise_maps(width: int, height: int, seed: int, density: float = 0.3) -> Maps:
    random = np.random.default_rng(seed)
    edges = random.random((height, width), np.float32)
    edges[random.random((height, width)) > density] = 0
    orientation = random.random((height, width), np.float32) * np.float32(np.pi)
    return torch.from_numpy(edges), torch.from_numpy(orientation)


def frame_of(path: Path, number: int) -> np.ndarray:
    video = cv2.VideoCapture(str(path))
    video.set(cv2.CAP_PROP_POS_FRAMES, number)
    read, image = video.read()
    assert read, path
    return cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA)


# --- the oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0, 15, 30, 45])
def test_equals_oracle_on_real_frames(real_clips: Path, clip: int) -> None:
    videos = sorted((real_clips / "videos").glob("*.mp4"))
    maps = gradient_maps(frame_of(videos[clip % len(videos)], 10), sigma=1.5)
    assert_equals_oracle(maps, (10, 100))


@pytest.mark.parametrize(
    ("clip", "width", "height"),
    [(7, 320, 240), (60, 320, 240), (120, 320, 240), (90, 640, 480), (0, 1280, 720)],
)
def test_equals_oracle_on_thinned_real_frames(real_clips: Path, clip: int, width: int, height: int) -> None:
    """The maps of which `prepare` makes proposals."""
    videos = sorted((real_clips / "videos").glob("*.mp4"))
    frame = frame_of(videos[clip % len(videos)], 20)
    frame = cv2.cvtColor(cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC), cv2.COLOR_BGR2RGB)
    edges, orientation = gradient_edges(frame)
    assert_equals_oracle((torch.from_numpy(edges), torch.from_numpy(orientation)), (10, 100))


@pytest.mark.parametrize(("width", "height"), [(320, 240), (640, 480), (1280, 720), (97, 331)])
def test_equals_oracle_on_drawn_maps(width: int, height: int) -> None:
    maps = drawn_maps(width, height, seed=width)
    assert_equals_oracle(maps, (1, 10, 100))


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_equals_oracle_on_noise(density: float) -> None:
    maps = noise_maps(120, 90, seed=3, density=density)
    assert_equals_oracle(maps, (1000,))


@pytest.mark.parametrize(
    "parameters",
    [
        {"alpha": 0.5},
        {"alpha": 0.8, "min_box_area": 3000.0},
        {"beta": 0.3},
        {"beta": 0.9, "eta": 0.99},
        {"min_score": 0.2},
        {"edge_min_mag": 0.02},
        {"edge_merge_thr": 1.5},
        {"cluster_min_mag": 3.0},
        {"max_aspect_ratio": 1.0},
        {"min_box_area": 150.0},
        {"gamma": 1.0},
        {"kappa": 1.2},
    ],
    ids=lambda parameters: ",".join(parameters),
)
def test_equals_oracle_for_each_parameter(parameters: dict[str, float]) -> None:
    maps = drawn_maps(200, 150, seed=7)
    assert_equals_oracle(maps, (50,), **parameters)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(16, 60),
    st.integers(16, 60),
    st.integers(0, 10_000),
    st.floats(0.05, 1),
    st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([0.5, 0.65, 0.75]),
            "beta": st.sampled_from([0.4, 0.75, 0.9]),
            "gamma": st.sampled_from([0.5, 2.0]),
            "kappa": st.sampled_from([1.0, 1.5, 2.5]),
            "min_box_area": st.sampled_from([100.0, 400.0]),
        }
    ),
)
def test_chooses_from_oracle_on_small_maps(
    width: int, height: int, seed: int, density: float, parameters: dict[str, float]
) -> None:
    maps = noise_maps(width, height, seed, density)
    assert_greedy_choice(maps, 10, **parameters)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_chooses_from_oracle_on_what_prepare_searches(seed: int, count: int) -> None:
    """Thinned edges make few groups, whose losses are found once for all boxes."""
    parameters = EdgeBoxesParameters()
    random = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(random.integers(0, 256, (120, 160, 3), np.uint8), (0, 0), 3 + seed)
    maps = tuple(map(torch.from_numpy, gradient_edges(cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX))))
    assert_greedy_choice(
        maps,
        count,
        parameters.beta,
        alpha=parameters.alpha,
        max_aspect_ratio=parameters.max_aspect_ratio,
        min_box_area=250.0,
    )


def test_longer_than_packed_coordinates() -> None:
    """More than 32,767 columns, and few groups."""
    maps = noise_maps(33_000, 16, seed=0, density=0.002)
    assert_greedy_choice(maps, 50, 0.75, min_box_area=150.0)


def test_beta_above_099_suppresses_nothing() -> None:
    """OpenCV then ignores maxBoxes too; here it holds."""
    maps = drawn_maps(120, 90, seed=5, shapes=8)
    boxes, scores = edge_boxes(*maps, max_boxes=20, beta=1.0)
    _, expected = oracle(maps, max_boxes=20, beta=1.0)
    assert len(boxes) == 20 < len(expected)
    np.testing.assert_allclose(scores, expected[:20], rtol=0, atol=1e-6)


# --- numbers by hand ------------------------------------------------------------------------------


def test_one_straight_edge() -> None:
    """A window of 32 x 32 at the corner; refinement moves each side inwards by int(0.212 * 32) // 2 = 3.

    The group then lies inside and outside the middle quarter, so the score is its mass over
    (w // 2 + h // 2) ** 1.5.
    """
    edges, orientation = torch.zeros(40, 40), torch.zeros(40, 40)
    edges[4, 5:10] = 1
    boxes, scores = edge_boxes(edges, orientation, 1, min_box_area=1024, max_aspect_ratio=1)
    assert boxes.tolist() == [[4, 4, 30, 30]]
    torch.testing.assert_close(scores, torch.tensor([5 / 26**1.5]))


def test_an_edge_across_the_boundary_does_not_count() -> None:
    """The windows are 40 x 40 at columns 0 and 8, and the latter ends at column 43."""
    edges, orientation = torch.zeros(44, 44), torch.zeros(44, 44)
    edges[20, 1:43] = 1
    parameters = {"min_box_area": 1600, "max_aspect_ratio": 1}
    assert edge_boxes(edges, orientation, **parameters)[0].shape == (0, 4)
    edges[20, 38:43] = 0
    assert edge_boxes(edges, orientation, **parameters)[0].shape == (2, 4)  # windows at rows 0 and 8


# --- what goes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 50), (50, 1), (2, 2), (3, 3), (40, 40)]
)
def test_maps_without_edges_have_no_boxes(shape: tuple[int, int]) -> None:
    boxes, scores = edge_boxes(torch.zeros(shape), torch.zeros(shape))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 80), (80, 2), (80, 80)])
def test_constant_maps(shape: tuple[int, int]) -> None:
    """One group that fills the map and crosses every box."""
    boxes, _ = edge_boxes(torch.ones(shape), torch.full(shape, 0.5), min_box_area=20)
    assert boxes.shape == (0, 4)


def test_boxes_lie_in_the_map_and_scores_descend() -> None:
    boxes, scores = edge_boxes(*drawn_maps(150, 100, seed=1), max_boxes=1000)
    assert len(boxes) > 100
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 150).all()
    assert (boxes[:, 3] <= 100).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (scores[:-1] >= scores[1:]).all()
    assert (scores >= 0.01).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["edges", "orientation"])
def test_values_that_are_not_finite(which: str, bad: float) -> None:
    maps = dict(zip(("edges", "orientation"), noise_maps(40, 30, seed=0), strict=True))
    maps[which][29, 39] = bad
    with pytest.raises(
        ValueError, match=rf"{which}: expected finite values, found NaN or infinity in frame 0"
    ):
        edge_boxes(**maps)


def test_huge_and_negative_values_do_no_harm() -> None:
    edges, orientation = drawn_maps(60, 50, seed=2)
    for factor in (1e30, -1.0):
        boxes, scores = edge_boxes(edges * factor, orientation * 1e6, min_box_area=100)
        assert torch.isfinite(boxes).all()
        assert not torch.isnan(scores).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((4, 4)), torch.zeros(4, 4)), TypeError, "edges: expected a torch.Tensor, got ndarray"),
        ((torch.zeros(4, 4), None), TypeError, "orientation: expected a torch.Tensor, got NoneType"),
        ((torch.zeros(4, 4).double(), torch.zeros(4, 4)), TypeError, "edges: expected dtype float32"),
        ((torch.zeros(4, 4), torch.zeros(4, 4).half()), TypeError, "orientation: expected dtype float32"),
        ((torch.zeros(4), torch.zeros(4)), ValueError, r"edges: expected shape \[H, W\] or"),
        (
            (torch.zeros(4, 4), torch.zeros(4, 5)),
            ValueError,
            r"orientation: expected shape \[4, 4\] as edges",
        ),
        ((torch.zeros(4, 4), torch.zeros(1, 4, 4)), ValueError, "orientation: expected shape"),
        ((torch.zeros(4, 4, device="meta"), torch.zeros(4, 4)), TypeError, "edges: expected a CPU tensor"),
    ],
)
def test_wrong_maps(arguments: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        edge_boxes(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_boxes", 0),
        ("alpha", 0.0),
        ("alpha", 1.0),
        ("beta", 0.0),
        ("beta", 1.5),
        ("eta", float("nan")),
        ("min_score", -1.0),
        ("edge_min_mag", float("inf")),
        ("edge_merge_thr", -0.1),
        ("cluster_min_mag", -0.1),
        ("max_aspect_ratio", 0.5),
        ("min_box_area", 0.0),
        ("gamma", -1.0),
        ("kappa", float("nan")),
    ],
)
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        edge_boxes(torch.zeros(8, 8), torch.zeros(8, 8), **{name: value})


def test_too_many_windows() -> None:
    with pytest.raises(ValueError, match="more windows than can be searched"):
        edge_boxes(torch.zeros(600, 800), torch.zeros(600, 800), alpha=0.9999)


# --- forms of the call ----------------------------------------------------------------------------


def test_stack_equals_its_frames() -> None:
    frames = [drawn_maps(90, 70, seed=seed) for seed in range(5)]
    edges, orientation = (torch.stack(maps) for maps in zip(*frames, strict=True))
    edges[2] = 0
    boxes, scores = edge_boxes(edges, orientation, max_boxes=25)
    assert len(boxes) == len(scores) == 5
    assert len(boxes[2]) == 0
    for f in range(5):
        expected = edge_boxes(edges[f], orientation[f], max_boxes=25)
        assert torch.equal(boxes[f], expected[0])
        assert torch.equal(scores[f], expected[1])
    assert edge_boxes(edges[:0], orientation[:0]) == ([], [])


def test_layout_does_not_matter() -> None:
    edges, orientation = drawn_maps(90, 70, seed=4)
    expected = edge_boxes(edges, orientation)
    wide = torch.zeros(70, 180)
    wide[:, ::2] = edges
    column_major = orientation.T.contiguous().T.requires_grad_()
    boxes, scores = edge_boxes(wide[:, ::2], column_major)
    assert torch.equal(boxes, expected[0])
    assert torch.equal(scores, expected[1])
    assert not scores.requires_grad


def test_fewer_boxes_are_the_first_of_more() -> None:
    maps = drawn_maps(160, 120, seed=6)
    boxes, scores = edge_boxes(*maps, max_boxes=300)
    for count in (1, 2, 33, 150):
        first = edge_boxes(*maps, max_boxes=count)
        assert torch.equal(first[0], boxes[:count])
        assert torch.equal(first[1], scores[:count])


def test_threads_do_not_change_the_result(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from avfast.ops import edge_boxes; "
        "maps = torch.load(sys.argv[1], weights_only=True); "
        "torch.save((edge_boxes(*maps, max_boxes=40), edge_boxes(maps[0][None], maps[1][None])), sys.argv[2])"
    )
    torch.save(drawn_maps(160, 120, seed=8), tmp_path / "maps.pt")
    results = []
    for threads in (1, 3):
        out = tmp_path / f"{threads}.pt"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", program, str(tmp_path / "maps.pt"), str(out)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)
        results.append(torch.load(out, weights_only=True))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_operator_is_registered_soundly() -> None:
    edges, orientation = drawn_maps(60, 50, seed=9)
    parameters = (0.65, 0.75, 1.0, 0.01, 0.1, 0.5, 0.5, 3.0, 400.0, 2.0, 1.5)
    torch.library.opcheck(
        torch.ops.avfast.edge_boxes.default, (edges[None], orientation[None], 10, *parameters)
    )
