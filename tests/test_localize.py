"""Localising files: the scores that evaluation gives, every output, nothing overwritten."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import media_maker
import numpy as np
import pytest
import soundfile
import tiny_shards
import torch

import avfast
from avfast import cli, evaluation, localize, metrics, train
from avfast.data import clips
from avfast.data.label_lists import read_labels
from avfast.data.labels import SPLITS, Annotations, read_annotations
from avfast.data.media import read_frames, read_sound
from avfast.data.opencv import cv2
from avfast.data.preparation import prepare
from avfast.data.proposals import EdgeBoxesParameters
from avfast.engines import Engine
from avfast.errors import InputError
from avfast.inference import Localizer
from avfast.localization import Localization
from avfast.runs import load_batches, load_best
from avfast.sources import open_split

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = tiny_shards.CLASSES
SECONDS, SIDE = 3, 32


def pictures(
    seed: int, seconds: int, width: int, height: int
) -> tuple[list[np.ndarray], int, tuple[int, ...]]:
    """Frames with a coloured square, its class, and its box."""
    generator = np.random.default_rng(seed)
    label = int(generator.integers(len(CLASSES)))
    x, y = generator.integers(0, [width - SIDE, height - SIDE]).tolist()
    frame = np.full((height, width, 3), 100, np.uint8)
    frame[y : y + SIDE, x : x + SIDE] = np.eye(3, dtype=np.uint8)[label] * 255
    return [frame] * (seconds * 4), label, (x, y, x + SIDE, y + SIDE)


def film(path: Path, seed: int, seconds: int = SECONDS, width: int = 96, height: int = 64) -> Path:
    """A video of a coloured square and the tone of its class."""
    frames, label, _ = pictures(seed, seconds, width, height)
    sound = media_maker.tone(500 * 2**label, seconds, 16_000) * 0.4
    return media_maker.write_media(path, frames, sound=sound)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on videos that this fixture prepared; ``clips`` beside it holds them."""
    root = tmp_path_factory.mktemp("localize")
    source = root / "clips"
    source.mkdir()
    rows, boxes = ["clip,labels,split"], ["clip,modality,class,start,end,x1,y1,x2,y2"]
    for number in range(18):
        split = SPLITS[0 if number < 10 else 1 if number < 14 else 2]
        path = film(source / f"{number:02}.mp4", number)
        _, label, box = pictures(number, SECONDS, 96, 64)
        rows.append(f"{path.name},{CLASSES[label]},{split}")
        boxes += [
            f"{path.name},visual,{CLASSES[label]},{t},{t},{','.join(map(str, box))}" for t in range(SECONDS)
        ]
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    (source / "annotations.csv").write_text("\n".join(boxes) + "\n")
    settings = clips.Settings(edge_boxes=EdgeBoxesParameters(beta=0.5, min_box_area=200), proposals=10)
    prepare(source, read_labels(source / "labels.csv", source), root / "shards", settings, Engine(workers=1))
