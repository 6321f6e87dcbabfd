"""Where a program's clips come from: a folder of shards, feature bags, or the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avfast.data import synthetic
from avfast.data.dataset import ShardDataset
from avfast.data.features import CLIP_SECONDS, FeatureBags, FeatureSource
from avfast.errors import InputError
from avfast.models import SYSTEMS, ModelConfig
from avfast.models.systems import AVTwoStream

DataSource = Path | FeatureSource | None
"""A folder that ``avfast.prepare`` wrote, feature bags, or None for the embedded default."""

ClipDataset = ShardDataset | FeatureBags


def choose(
    data: Path | None,
    features: Path | None = None,
    labels: Path | None = None,
    clip_seconds: float = CLIP_SECONDS,
) -> DataSource:
    """What a program's options ask for.

    Args:
        data: ``--data``.
        features: ``--features``.
        labels: ``--labels``.
        clip_seconds: ``--clip-seconds``.

    Raises:
        InputError: The options contradict each other.
    """
    if features is None:
        if labels is not None or clip_seconds != CLIP_SECONDS:
            raise InputError("--labels and --clip-seconds go with --features; shards hold their own")
        return None if data is None else data.resolve()
    if data is not None:
        raise InputError("--features takes the place of --data; leave one of them out")
    return FeatureSource(features.resolve(), None if labels is None else labels.resolve(), clip_seconds)


def record(source: DataSource) -> dict[str, Any]:
    """The source as plain values for a run's configuration; ``recall`` reads them."""
    if not isinstance(source, FeatureSource):
        return {"data": None if source is None else str(source), "features": None}
    labels = None if source.labels is None else str(source.labels)
    return {"data": str(source.root), "features": {"labels": labels, "clip_seconds": source.seconds}}


def recall(config: Mapping[str, Any]) -> DataSource:
    """The source of a run, from its configuration."""
    if config["data"] is None:
        return None
    root, features = Path(config["data"]), config["features"]
    if features is None:
        return root
    labels = None if features["labels"] is None else Path(features["labels"])
    return FeatureSource(root, labels, features["clip_seconds"])


def feature_backbones(source: DataSource, system: str) -> dict[str, Any]:
    """What feature bags decide in a ``ModelConfig``; nothing for other sources.

    Raises:
        InputError: The system needs more than vectors, or the bags cannot be read.
    """
    if not isinstance(source, FeatureSource):
        return {}
    if not issubclass(SYSTEMS.get(system, AVTwoStream), AVTwoStream):
        raise InputError(f"--system {system}: needs the sound itself, so it cannot learn from --features")
    bags = source.open("train")
    dims = {"visual_dim": bags.visual_dim, "audio_dim": bags.audio_dim}
    return {"backbone": "features", "audio_backbone": "features", **dims}


def open_split(source: DataSource, split: str, config: ModelConfig, pictures: bool = True) -> ClipDataset:
    """The clips of one split as a system takes them.

    Args:
        source: Where they are; the embedded default is made on first use.
        split: ``train``, ``val`` or ``test``.
        config: Decides image size, regions per frame and audio front end.
        pictures: Whether frames are decoded; not needed with cached conv maps.

    Raises:
        InputError: The folder holds no shards or features, or the split no clip.
    """
    if isinstance(source, FeatureSource):
        return source.open(split, config.visual_dim, config.audio_dim)
    if "features" in (config.backbone, config.audio_backbone):
        raise InputError("the backbone features learns from --features, not from pictures and sound")
    root = source if source is not None else synthetic.dataset()
    front_end = SYSTEMS[config.system].new_front_end(config)
    return ShardDataset(root, split, config.image_size, config.proposals, front_end, pictures)
