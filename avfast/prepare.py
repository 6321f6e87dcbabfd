"""Prepare videos and their labels for training: frames, proposals and sound, packed into shards.

    python -m avfast.prepare clips --labels clips/labels.csv --out data
    python -m avfast.prepare clips --labels clips/labels.csv --out data --workers 8 --proposals 200
    python -m avfast.prepare dcase --labels dcase/lists --format dcase2017 --out data

labels.csv has the header 'clip,labels' and optional columns 'split' (train, val, test) and 'audio' (a wav
or flac file in place of the clip's own sound). 'clip' is a path under SOURCE; labels are separated by ';'.
Clips without a split are divided 80/10/10 by a hash of their name. annotations.csv beside it
('clip,modality,class,start,end,x1,y1,x2,y2') is ground truth for evaluation and is kept with the shards.

Every clip ends up as a row of OUT/manifest.csv: 'ok' (with what it lacks, where it lacks sound or picture),
or 'skipped' with the reason. A run that was interrupted goes on where it stopped when the same command is
given again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import joblib
import tyro

from avfast.cli import run
from avfast.data.labels import read_labels
from avfast.data.preparation import MANIFEST, Settings, prepare
from avfast.data.proposals import EdgeBoxesParameters
from avfast.errors import InputError


@dataclass
class Options:
    """What to prepare, from where, and how."""

    source: tyro.conf.Positional[Path]
    """Folder of the videos."""
    labels: Path
    """labels.csv; with --format dcase2017 the folder of the challenge's lists."""
    out: Path
    """Folder to make."""
    format: Literal["csv", "dcase2017"] = "csv"
    """How the labels are written."""
    workers: int = field(default_factory=joblib.cpu_count)
    """Processes; the result does not depend on it."""
    fps: float = Settings.fps
    """Frames per second to keep."""
    long_side: int = Settings.long_side
    """Larger pictures are scaled down to this many pixels on their longer side."""
    proposals: int = Settings.proposals
    """Boxes to keep of each frame, at most; training uses the best of them."""
    min_box_area: float = EdgeBoxesParameters.min_box_area
    """Smallest box that EdgeBoxes proposes, in pixels; lower it for small pictures."""
    nms_iou: float = EdgeBoxesParameters.beta
    """IoU above which the lesser of two proposals is dropped; lower it for few, different boxes."""
    edge_model: Path | None = None
    """Model file of OpenCV's structured edge forest; without it, edges are image gradients."""


def main(options: Options) -> None:
    """Run the program."""
    settings = _settings(options)
    labels = read_labels(options.labels, options.source, options.format)
    edges = "a structured forest" if options.edge_model else "gradients"
    print(f"{len(labels.clips)} clips, {options.workers} workers, OpenCV's EdgeBoxes on edges from {edges}")
    outcomes = prepare(options.source, labels, options.out, settings, options.workers)
    count = Counter(outcome.status for outcome in outcomes)
    print(f"{options.out}: {count['ok']} clips prepared, {count['skipped']} skipped; see {MANIFEST}")


def _settings(options: Options) -> Settings:
    for name in ("workers", "fps", "long_side", "proposals", "min_box_area", "nms_iou"):
        if not getattr(options, name) > 0:
            raise InputError(
                f"--{name.replace('_', '-')}: expected more than 0, got {getattr(options, name)}"
            )
    if options.nms_iou > 1:
        raise InputError(f"--nms-iou: expected at most 1, got {options.nms_iou}")
    if options.edge_model is not None and not options.edge_model.is_file():
        raise InputError(f"{options.edge_model}: no such file; --edge-model takes OpenCV's structured forest")
    return Settings(
        fps=options.fps,
        long_side=options.long_side,
        proposals=options.proposals,
        edge_boxes=EdgeBoxesParameters(beta=options.nms_iou, min_box_area=options.min_box_area),
        edge_model=options.edge_model,
    )


if __name__ == "__main__":
    run(main, Options)
