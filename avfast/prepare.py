"""Prepare videos and their labels for training: frames, proposals and sound, packed into shards.

    python -m avfast.prepare clips --labels clips/labels.csv --out data
    python -m avfast.prepare films --labels films/labels.csv --out data --workers 8 --clip-seconds 10
    python -m avfast.prepare dcase --labels dcase/lists --format dcase2017 --out data
    python -m avfast.prepare audioset --labels audioset/lists --format audioset --out data
    python -m avfast.prepare clips --labels clips/labels.csv --out data --cache-features efficientnet-lite0

labels.csv has the header 'clip,labels' and optional columns 'split' (train, val, test) and 'audio' (a wav
or flac file in place of the clip's own sound). 'clip' is a path under SOURCE; labels are separated by ';'.
Clips without a split are divided 80/10/10 by a hash of their name. annotations.csv beside it
('clip,modality,class,start,end,x1,y1,x2,y2') is ground truth for evaluation and is kept with the shards.

With --format dcase2017 and --format audioset the lists are read as they are published. A clip's file lies
anywhere under SOURCE and is found by its name: for 30 s to 40 s of the video ID that is ID_30.000_40.000,
ID_30000_40000, ID_30_40, ID_000030 or ID, each also with a Y in front. Clips that no longer exist are skipped
and counted. AudioSet has no validation split: a tenth of its training segments makes one.

Every clip ends up as a row of OUT/manifest.csv: 'ok' (with what it lacks, where it lacks sound or picture),
or 'skipped' with the reason. A run that was interrupted goes on where it stopped when the same command is
given again. A file that crashes its decoder, hangs or wants too much memory costs its own clip alone.

With --clip-seconds N each file is cut into clips named FILE#START-END, and each clip has all labels of its
file. A rest shorter than N/2 lengthens the last clip. Where a file crashes its decoder, the clips before that
are kept. Without the option a file is one clip, and one longer than an hour is skipped.

The program exits with 0 when it has prepared what can be prepared, with 1 when clips were skipped by errors
that it did not foresee, and with 2 when nothing could be done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from avfast.cli import run
from avfast.data.clips import UNEXPECTED, Outcome, Settings
from avfast.data.label_lists import read_labels
from avfast.data.preparation import MANIFEST, MISSING, prepare
from avfast.data.proposals import EdgeBoxesParameters, structured_forest
from avfast.data.shards import SHARD_BYTES
from avfast.engines import Engine, EngineName
from avfast.errors import InputError
from avfast.sandbox import Limits

if TYPE_CHECKING:
    from avfast.conv_maps import ConvMaps


@dataclass
class Options:
    """What to prepare, from where, and how."""

    source: tyro.conf.Positional[Path]
    """Folder of the videos."""
    labels: Path
    """labels.csv; with --format dcase2017 or audioset the folder of the published lists."""
    out: Path
    """Folder to make."""
    format: Literal["csv", "dcase2017", "audioset"] = "csv"
    """How the labels are written."""
    workers: int | None = None
    """Clips at once; by default one a core. The result does not depend on it."""
    engine: EngineName = "loky"
    """Where the work runs: loky is processes of this machine; ray and dask hand it to a cluster whose
    machines see SOURCE and OUT under the same paths."""
    engine_address: str | None = None
    """Of a running Ray or Dask cluster; by default what RAY_ADDRESS or DASK_SCHEDULER_ADDRESS says, else a
    cluster on this machine."""
    clip_seconds: int | None = None
    """Cut files into clips of this many seconds."""
    clip_timeout: float = Limits.seconds
    """Seconds after which a clip is given up."""
    clip_memory: float = Limits.memory / 2**30
    """GiB that a clip may take while it is prepared."""
    shard_size: float = SHARD_BYTES / 2**20
    """MiB of a shard, at most, unless one clip alone is larger."""
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
    search_side: int = EdgeBoxesParameters.search_side
    """Proposals are searched for on the picture scaled down to this many pixels on its longer side; raise it
    where objects are small."""
    edge_model: Path | None = None
    """Model of OpenCV's structured edge forest (model.yml.gz of its repository opencv_extra); without it,
    edges are image gradients."""
    cache_features: str | None = None
    """Also store the conv maps of this backbone (efficientnet-lite0, alexnet or vgg16) in float16, to train
    with frozen conv layers. Can be given for a folder that is prepared already."""
    visual_weights: str | None = None
    """Weights of --cache-features, as avfast.train takes them."""
    image_size: int | None = None
    """Side that --cache-features stretches frames to, in pixels. Default: what suits the backbone."""


def main(options: Options) -> None:
    """Run the program."""
    settings = _settings(options)
    store_maps = _conv_map_store(options)
    engine = Engine(options.engine, options.workers, options.engine_address)
    limits = Limits(options.clip_timeout, int(options.clip_memory * 2**30))
    labels = read_labels(options.labels, options.source, options.format)
    edges = "a structured forest" if options.edge_model else "gradients"
    pool = f"{options.engine} on {options.workers or 'all'} cores"
    print(f"{len(labels.clips)} clips, {pool}, EdgeBoxes on edges from {edges}")
    shard_bytes = int(options.shard_size * 2**20)
    outcomes = prepare(options.source, labels, options.out, settings, engine, limits, shard_bytes)
    print(f"{options.out}: {_summary(outcomes)}; see {MANIFEST}")
    if store_maps is not None:
        print(f"{store_maps().folder}: conv maps stored")
    unexpected = [outcome for outcome in outcomes if outcome.reason.startswith(UNEXPECTED)]
    if unexpected:
        first = f"{unexpected[0].clip!r}: {unexpected[0].reason}"
        count = len(unexpected)
        print(
            f"ERROR: {count} of the clips failed unexpectedly, please report this: {first}", file=sys.stderr
        )
        sys.exit(1)


def _summary(outcomes: Sequence[Outcome]) -> str:
    skipped = [outcome.reason for outcome in outcomes if outcome.status == "skipped"]
    missing = sum(reason.startswith(MISSING) for reason in skipped)
    return (
        f"{len(outcomes) - len(skipped)} clips prepared, {len(skipped)} skipped "
        f"({missing} not there, {len(skipped) - missing} not usable)"
    )


def _conv_map_store(options: Options) -> Callable[[], ConvMaps] | None:
    """What will store the conv maps, if they are wanted; an error now where the network cannot be had."""
    backbone = options.cache_features
    if backbone is None:
        return None
    from avfast import conv_maps  # needs torch, whose import takes longer than the rest of a small job

    network = conv_maps.frozen_network(backbone, options.visual_weights)
    return lambda: conv_maps.store(options.out, backbone, network, options.image_size)


def _settings(options: Options) -> Settings:
    if options.cache_features is None and (options.visual_weights or options.image_size):
        raise InputError("--visual-weights and --image-size go with --cache-features")
    numbers = ("fps", "long_side", "proposals", "min_box_area", "nms_iou", "search_side")
    limits = ("workers", "clip_seconds", "clip_timeout", "clip_memory", "shard_size", "image_size")
    for name in numbers + limits:
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0, got {value}")
    if options.nms_iou > 1:
        raise InputError(f"--nms-iou: expected at most 1, got {options.nms_iou}")
    if options.edge_model is not None:
        structured_forest(options.edge_model)  # an unusable model is told before the work
    return Settings(
        fps=options.fps,
        long_side=options.long_side,
        proposals=options.proposals,
        edge_boxes=EdgeBoxesParameters(
            search_side=options.search_side, beta=options.nms_iou, min_box_area=options.min_box_area
        ),
        edge_model=options.edge_model,
        clip_seconds=options.clip_seconds,
    )


if __name__ == "__main__":
    run(main, Options)
