"""Report how well a trained run does on a split: metrics.json, scores.csv and a table.

The model is the one that did best on validation, with the threshold chosen there. Commands to start from:

    python -m avfast.evaluate runs/first
    python -m avfast.evaluate runs/real --split val --out runs/real/val --thresholds per-class
    python -m avfast.evaluate runs/real --data other-shards --out runs/real/other
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from avfast import sources
from avfast.cli import run
from avfast.data.features import FeatureSource
from avfast.errors import InputError
from avfast.evaluation import ThresholdRule, table
from avfast.runs import Trained, evaluate, load_best, pick_device
from avfast.sources import DataSource, open_split


@dataclass
class Options:
    run: tyro.conf.Positional[Path]
    """Folder of a run (the --out of avfast.train), or the file that avfast.export made of it."""
    data: Path | None = None
    """Folder that avfast.prepare wrote, or of features as the run's own. Default: what it was trained on."""
    labels: Path | None = None
    """Labels of the features in --data, as avfast.train takes them. Default: those in --data."""
    split: Literal["train", "val", "test"] = "test"
    """Which clips."""
    out: Path | None = None
    """Folder for metrics.json and scores.csv. Default: the run's, whose files are replaced."""
    thresholds: ThresholdRule | None = None
    """One for all classes, or one per class; both were chosen on validation. Default: as it was trained."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 0
    """Processes that read clips; 0 reads in this process."""


def main(options: Options) -> None:
    """Evaluate one run."""
    device, ops = pick_device(options.device)
    trained = load_best(options.run, device, options.thresholds)
    dataset = open_split(data_source(trained, options), options.split, trained.model.config)
    print(f"{ops}; {len(dataset)} clips")
    if options.out is None and not options.run.is_dir():
        raise InputError(f"--out: say where the figures of {options.run} go")
    out = options.out or options.run
    out.mkdir(parents=True, exist_ok=True)
    print(table(evaluate(trained, dataset, options.split, out, options.workers)))


def data_source(trained: Trained, options: Options) -> DataSource:
    """What the options ask for: clips of the kind that the run was trained on."""
    own = trained.data
    if isinstance(own, FeatureSource) and options.data is not None:
        return sources.choose(None, options.data, options.labels, own.seconds)
    if options.labels is not None:
        raise InputError("--labels: goes with --data, for a run that was trained on features")
    return options.data or own


if __name__ == "__main__":
    run(main, Options)
