"""Recall and cost of object proposals, over edge sources, picture sizes and suppression thresholds.

    python benchmarks/proposal_recall.py ../shared/real_clips
    python benchmarks/proposal_recall.py ../shared/real_clips --frames 50 --edge-model model.yml.gz

A frame is a picture at a whole second with at least one annotated box. recall@N is the share of annotated
boxes that one of the first N proposals overlaps by IoU 0.5 or more; small@100 is that of boxes under a tenth
of the picture, IoU@100 the mean IoU of a box with the best of the first 100. Prints a Markdown table; times
are CPU time of one thread, for 100 proposals.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from avfast.cli import run
from avfast.data.label_lists import read_labels
from avfast.data.labels import Labels
from avfast.data.media import read_frames
from avfast.data.opencv import cv2
from avfast.data.proposals import (
    GRADIENT_SIGMAS,
    EdgeBoxesParameters,
    EdgeMaps,
    EdgeSource,
    gradients,
    normalised,
    propose_from,
    structured_forest_edges,
    thinned,
)
from avfast.errors import InputError

COUNTS = (10, 100, 1000)
MIN_IOU = 0.5
SMALL = 0.1  # of the picture's area
TIMED_BOXES, TIMED_FRAMES = 100, 50  # what prepare asks for by default; enough frames to average over


@dataclass
class Options:
    """What to measure on."""

    source: tyro.conf.Positional[Path]
    """Folder with labels.csv, annotations.csv and the clips they name."""
    splits: tuple[str, ...] = ("train", "val")
    """Splits that frames are drawn from; a default must not be chosen on test."""
    frames: int = 400
    """Frames to draw, at most."""
    seed: int = 0
    """Of the draw."""
    edge_model: Path | None = None
    """Model file of OpenCV's structured edge forest, to measure that too."""


@dataclass(frozen=True)
class Truth:
    """A picture and the boxes to be found in it."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    """[G, 4], xyxy in pixels of ``image``."""


@dataclass(frozen=True)
class Variant:
    """A way to make proposals."""

    name: str
    source: EdgeSource
    parameters: EdgeBoxesParameters


def main(options: Options) -> None:
    """Run the program."""
    cv2.setNumThreads(1)
    variants = list(_variants(options))
    truths = list(_truths(options))
    boxes = sum(len(truth.boxes) for truth in truths)
    print(f"{len(truths)} frames, {boxes} boxes, from {' and '.join(options.splits)}\n")
    recalls = " | ".join(f"recall@{count}" for count in COUNTS)
    print(f"| edges | side | alpha | aspects | beta | {recalls} | small@100 | IoU@100 | edges ms | all ms |")
    print("| --- |" + " ---: |" * (len(COUNTS) + 8))
    for variant in variants:
        print(_row(variant, truths), flush=True)


def _variants(options: Options) -> Iterator[Variant]:
    """The default, what differs from it in one thing, and what differs in all."""
    default = EdgeBoxesParameters()
    finest = GRADIENT_SIGMAS[:1]
    yield Variant("two scales", partial(_thin_edges, GRADIENT_SIGMAS), default)
    yield Variant("one scale", partial(_thin_edges, finest), default)
    yield Variant("not thinned", partial(_plain_edges, GRADIENT_SIGMAS), default)
    for sigma in (1.0, 1.5, 3.0):
        yield Variant(f"one scale, {sigma:g} px", partial(_thin_edges, (sigma,)), default)
    for side in (128, 144, 240, 320):
        yield Variant("two scales", partial(_thin_edges, GRADIENT_SIGMAS), replace(default, search_side=side))
    for beta in (0.4, 0.65, 0.75):
        yield Variant("two scales", partial(_thin_edges, GRADIENT_SIGMAS), replace(default, beta=beta))
    for alpha, aspects in ((0.65, 3), (0.62, 3), (0.6, 3.2), (0.5, 5.2), (0.6, 3), (0.55, 3)):
        search = replace(default, alpha=alpha, max_aspect_ratio=aspects)
        yield Variant("two scales", partial(_thin_edges, GRADIENT_SIGMAS), search)
    authors = replace(default, search_side=320, alpha=0.65, max_aspect_ratio=3, beta=0.75)
    yield Variant("one scale", partial(_thin_edges, finest), authors)
    if options.edge_model is not None:
        for side in (default.search_side, 320):
            yield Variant(
                "structured forest",
                partial(structured_forest_edges, options.edge_model),
                replace(default, search_side=side),
            )


def _thin_edges(sigmas: tuple[float, ...], image: NDArray[np.uint8]) -> EdgeMaps:
    magnitude, direction = gradients(image, sigmas)
    return normalised(thinned(magnitude, direction)), direction


def _plain_edges(sigmas: tuple[float, ...], image: NDArray[np.uint8]) -> EdgeMaps:
    magnitude, direction = gradients(image, sigmas)
    return normalised(magnitude), direction


def _truths(options: Options) -> Iterator[Truth]:
    """The frames drawn, with their boxes."""
    labels = read_labels(options.source / "labels.csv", options.source, "csv")
    wanted = _boxes(labels, options.splits)
    drawn = sorted(random.Random(options.seed).sample(sorted(wanted), min(options.frames, len(wanted))))
    if not drawn:
        raise InputError(f"{options.source}: annotations.csv has no box at a whole second in these splits")
    by_clip: dict[str, list[int]] = {}
    for clip, second in drawn:
        by_clip.setdefault(clip, []).append(second)
    for clip, seconds in tqdm(by_clip.items(), desc="read", unit="clip"):
        for frame in read_frames(options.source / clip):
            if frame.time in seconds:
                scale = frame.image.shape[1] / frame.source_size[0]
                yield Truth(frame.image, np.array(wanted[clip, int(frame.time)], np.float32) * scale)


def _boxes(labels: Labels, splits: tuple[str, ...]) -> dict[tuple[str, int], list[tuple[float, ...]]]:
    """Annotated boxes at whole seconds, by clip and second."""
    kept = {clip.clip for clip in labels.clips if clip.split in splits}
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for row in labels.annotations.of(kept).visual if labels.annotations else ():
        if row.box is not None and float(row.start).is_integer():
            found.setdefault((row.clip, int(row.start)), []).append(row.box)
    return found


def _row(variant: Variant, truths: list[Truth]) -> str:
    """One line of the table."""
    best: list[NDArray[np.float32]] = []
    small: list[bool] = []
    for truth in tqdm(truths, desc=variant.name, unit="frame", leave=False):
        found = propose_from(variant.source, truth.image, max(COUNTS), variant.parameters)
        best += list(best_overlaps(found.boxes, truth.boxes))
        height, width = truth.image.shape[:2]
        small += list(_areas(truth.boxes) < SMALL * height * width)
    overlaps = np.stack(best, axis=1)
    of_hundred = overlaps[COUNTS.index(100)]
    recalls = [f"{share:.3f}" for share in (overlaps >= MIN_IOU).mean(axis=1)]
    recalls.append(f"{(of_hundred[small] >= MIN_IOU).mean():.3f}" if any(small) else "-")
    recalls.append(f"{of_hundred.mean():.3f}")
    parameters = variant.parameters
    searched = parameters.search_side, parameters.alpha, parameters.max_aspect_ratio, parameters.beta
    settings = [
        variant.name,
        *(f"{value:g}" for value in searched),
    ]
    costs = [f"{milliseconds:.1f}" for milliseconds in _cost(variant, truths)]
    return "| " + " | ".join([*settings, *recalls, *costs]) + " |"


def _cost(variant: Variant, truths: list[Truth]) -> tuple[float, float]:
    """Milliseconds per frame: of the edges, of the whole."""
    edge_seconds: list[float] = []

    def source(image: NDArray[np.uint8]) -> EdgeMaps:
        begun = time.process_time()
        maps = variant.source(image)
        edge_seconds.append(time.process_time() - begun)
        return maps

    frames = truths[:: -(-len(truths) // TIMED_FRAMES)]
    begun = time.process_time()
    for truth in frames:
        propose_from(source, truth.image, TIMED_BOXES, variant.parameters)
    whole = time.process_time() - begun
    return 1000 * sum(edge_seconds) / len(frames), 1000 * whole / len(frames)


def best_overlaps(found: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU [G, len(COUNTS)] of each box of ``truth`` [G, 4] with the best of so many of ``found`` [R, 4]."""
    shared = np.minimum(found[:, None, 2:], truth[None, :, 2:]) - np.maximum(
        found[:, None, :2], truth[None, :, :2]
    )
    area = shared.clip(0).prod(axis=2)
    iou = area / (_areas(found)[:, None] + _areas(truth)[None] - area)
    return np.stack([iou[:count].max(axis=0) for count in COUNTS], axis=1)


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


if __name__ == "__main__":
    run(main, Options)
