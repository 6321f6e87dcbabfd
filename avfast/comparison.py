"""From finished runs of several systems and seeds to what is said when they are compared."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avfast import metrics
from avfast.data.files import read_json
from avfast.errors import InputError
from avfast.metrics import BoolArray, FloatArray
from avfast.models import ModelConfig, build

PAPER_ORDER = (
    "av-two-stream",
    "audio-two-stream",
    "video-two-stream",
    "video-wsddn",
    "av-one-stream",
    "cvssp-fusion",
    "gated-crnn",
)
"""As the paper's table has them; other systems follow."""

LOCALIZATION = {
    "corloc": ("visual", "corloc"),
    "pointing": ("visual", "pointing"),
    "visual_segment_f1": ("visual", "segment_f1"),
    "visual_segment_er": ("visual", "segment_er"),
    "segment_f1": ("audio", "segment_f1"),
    "segment_er": ("audio", "segment_er"),
}
"""Where ``metrics.json`` has figures of localisation, by the names that a comparison gives them."""

BOTH, SOUND, PICTURE = "av-two-stream", "audio-two-stream", "video-two-stream"
"""The systems whose F1 complementarity is read from."""

ALL_CLASSES = "all (micro)"
"""The row of complementarity that counts (clip, class) pairs of every class."""


@dataclass(frozen=True)
class Result:
    """What one run of one system said of the N test clips and C classes."""

    figures: dict[str, float]
    """By name, see ``figures``."""
    summary: dict[str, Any]
    """``metrics.json``."""
    clips: list[str]
    """N names."""
    decisions: BoolArray
    """[N, C]."""
    labels: BoolArray
    """[N, C]."""
    parameters: int
    """Numbers that make up the model."""
    learned: int
    """How many of them training changes."""
    seconds: float
    """Time on the clock for training and evaluation."""
    cpu_seconds: float
    """Time on all cores."""


@dataclass(frozen=True)
class Run:
    """One system with one seed."""

    system: str
    seed: int
    result: Result | None
    """None where the run failed, or has not run yet."""
    error: str | None = None
    """Why it failed."""


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a ``metrics.json`` that a table shows, by short names.

    Localisation is there where the summary has it: of regions, and of segments, of sound or (for features
    without regions) of the picture.
    """
    flat = {f"micro_{name}": summary["micro"][name] for name in ("f1", "precision", "recall")}
    flat |= {f"macro_{name}": summary["macro"][name] for name in ("f1", "precision", "recall")}
    flat |= {name: summary[name] for name in ("map", "auc", "d_prime")}
    places = summary.get("localization", {})
    for name, (modality, key) in LOCALIZATION.items():
        if key in places.get(modality, {}):
            flat[name] = places[modality][key]
    return flat


def read_result(folder: Path, cost: Mapping[str, float]) -> Result:
    """Read what a finished run left.

    Args:
        folder: The run, with ``config.json``, ``metrics.json`` and ``scores.csv`` of the test split.
        cost: ``seconds`` and ``cpu_seconds`` that it took.

    Raises:
        InputError: A file is missing or does not belong to the others.
    """
    remedy = "delete the run's folder to train it again"
    config, summary = (read_json(folder / name, remedy) for name in ("config.json", "metrics.json"))
    classes = list(config["classes"])
    clips, scores, labels = read_scores(folder / "scores.csv", classes)
    decisions = scores >= np.array([summary["per_class"][name]["threshold"] for name in classes])
    if summary["split"] != "test" or metrics.micro_f1(decisions, labels) != summary["micro"]:
        raise InputError(
            f"{folder}: metrics.json and scores.csv are not of one evaluation of the test split; "
            f"run python -m avfast.evaluate {folder}"
        )
    parameters, learned = count_parameters(ModelConfig(**config["model"]), len(classes))
    return Result(
        figures(summary),
        summary,
        clips,
        decisions,
        labels,
        parameters,
        learned,
        cost["seconds"],
        cost["cpu_seconds"],
    )


def read_scores(path: Path, classes: Sequence[str]) -> tuple[list[str], FloatArray, BoolArray]:
    """Read ``scores.csv``.

    Args:
        path: A file with the columns clip, class, score and label, a row per clip and class.
        classes: C names, in the order of each clip's rows.

    Returns:
        N clip names, scores [N, C] and labels [N, C].

    Raises:
        InputError: The file is missing or is not such a table.
    """
    try:
        with path.open(newline="") as file:
            rows = [
                (r["clip"], r["class"], float(r["score"]), r["label"] == "1") for r in csv.DictReader(file)
            ]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run python -m avfast.evaluate {path.parent}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected the columns clip, class, score, label") from error
    clips = [row[0] for row in rows[:: len(classes)]]
    if [row[:2] for row in rows] != [(clip, name) for clip in clips for name in classes]:
        raise InputError(f"{path}: expected a row for every clip and each of the {len(classes)} classes")
    shape = (len(clips), len(classes))
    scores, labels = (np.array([row[i] for row in rows]).reshape(shape) for i in (2, 3))
    return clips, scores, labels.astype(bool)


def count_parameters(config: ModelConfig, classes: int) -> tuple[int, int]:
    """How many numbers a model is made of, and how many of them training changes."""
    with torch.device("meta"):  # shapes suffice: nothing is allocated
        model = build(config, classes)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def compare(runs: Iterable[Run]) -> dict[str, Any]:
    """Everything about a set of runs.

    Args:
        runs: In the order of the table; the first system is the one that the others are measured against.

    Returns:
        What ``table.json`` holds: ``classes``, ``clips``, ``systems`` (for each its ``runs`` by seed,
        ``mean`` and ``spread`` of its figures, the latter None with fewer than two seeds, ``per_class`` F1,
        and its size and cost), and what ``differences`` and ``complementarity`` return.

    Raises:
        InputError: The runs were not tested on the same clips.
    """
    systems: dict[str, list[Run]] = {}
    for run in runs:
        systems.setdefault(run.system, []).append(run)
    finished = {name: _results(of) for name, of in systems.items()}
    first = _check_same_clips(finished)
    return {
        "classes": list(first.summary["per_class"]) if first else [],
        "clips": len(first.clips) if first else 0,
        "systems": {name: _system(of, list(finished[name].values())) for name, of in systems.items()},
        "differences": differences(finished),
        "complementarity": complementarity(finished),
    }


def differences(finished: Mapping[str, Mapping[int, Result]]) -> dict[str, Any] | None:
    """How far the first system is ahead of each other one in micro-F1.

    Args:
        finished: By system and seed, tested on the same clips.

    Returns:
        ``against``, the name of the first system, and ``systems``, with what ``metrics.paired_bootstrap``
        says of it and each other one; None where the first system has no result.
    """
    (name, results), *others = finished.items()
    if not results:
        return None
    labels = next(iter(results.values())).labels
    decisions = {system: [r.decisions for r in of.values()] for system, of in finished.items() if of}
    return {
        "against": name,
        "systems": {
            other: metrics.paired_bootstrap(decisions[name], decisions[other], labels)
            for other, of in others
            if of
        },
    }


def complementarity(finished: Mapping[str, Mapping[int, Result]]) -> dict[str, Any] | None:
    """What sound, picture and both achieve, and how F1 divides between sound and picture.

    The two modalities are players of a cooperative game whose worth is the F1 of the system that has them;
    their shares are Shapley values ("A value for n-person games", 1953), the mean over both orders of what a
    modality adds when it comes: ``phi_audio = ((F(a) - F(0)) + (F(av) - F(v))) / 2``. A system that neither
    hears nor sees has nothing to decide by: it predicts nothing, so ``F(0) = 0``, and the two shares sum to
    the F1 of both, ``F(av)``. A share can be negative: the modality then does harm.

    ``F(a)`` and ``F(v)`` are taken twice: of the systems that were trained with one modality, and of the
    audio-visual one with the other modality silenced, which leaves the scores of one modality, decided by the
    threshold that validation chose for them.

    Args:
        finished: By system and seed.

    Returns:
        By class name and ``ALL_CLASSES``: F1 as ``audio``, ``video``, ``both``, ``silenced_video`` (the
        audio-visual system that only hears) and ``silenced_audio``; ``gain`` of both over the better of the
        two trained alone; ``shapley`` and ``shapley_silenced``, each with ``audio`` and ``video``. Means over
        the seeds that all three systems share; None where there is none.
    """
    of = {name: finished.get(name, {}) for name in (SOUND, PICTURE, BOTH)}
    seeds = [seed for seed in of[BOTH] if seed in of[SOUND] and seed in of[PICTURE]]
    if not seeds:
        return None
    names = [ALL_CLASSES, *of[BOTH][seeds[0]].summary["per_class"]]
    return {name: _mean_entries([_complement(of, seed, name) for seed in seeds]) for name in names}


def shapley(audio: float, video: float, both: float, neither: float = 0.0) -> dict[str, float]:
    """Shapley values of a game of two, from the worth of each coalition.

    Args:
        audio: Worth of sound alone.
        video: Worth of the picture alone.
        both: Worth of both.
        neither: Worth of nothing.

    Returns:
        ``audio`` and ``video``, which sum to ``both - neither``.
    """
    return {
        "audio": ((audio - neither) + (both - video)) / 2,
        "video": ((video - neither) + (both - audio)) / 2,
    }


def _complement(of: Mapping[str, Mapping[int, Result]], seed: int, name: str) -> dict[str, Any]:
    both = of[BOTH][seed].summary
    sound, picture = (_f1(of[system][seed].summary, name) for system in (SOUND, PICTURE))
    hears, sees = (_f1(both["views"][modality], name) for modality in ("audio", "visual"))
    together = _f1(both, name)
    return {
        "audio": sound,
        "video": picture,
        "both": together,
        "silenced_video": hears,
        "silenced_audio": sees,
        "gain": together - max(sound, picture),
        "shapley": shapley(sound, picture, together),
        "shapley_silenced": shapley(hears, sees, together),
    }


def _f1(summary: Mapping[str, Any], name: str) -> float:
    return summary["micro"]["f1"] if name == ALL_CLASSES else summary["per_class"][name]["f1"]


def _mean_entries(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of equal nested dictionaries of numbers."""
    return {
        key: _mean_entries([entry[key] for entry in entries])
        if isinstance(value, Mapping)
        else statistics.fmean(entry[key] for entry in entries)
        for key, value in entries[0].items()
    }


def _system(runs: Sequence[Run], results: Sequence[Result]) -> dict[str, Any]:
    described = {str(run.seed): _described(run) for run in runs}
    if not results:
        return {"runs": described, "mean": None, "spread": None}
    several = len(results) > 1
    return {
        "runs": described,
        "mean": _mean_entries([result.figures for result in results]),
        "spread": {k: statistics.stdev(r.figures[k] for r in results) for k in results[0].figures}
        if several
        else None,
        "per_class": {
            name: statistics.fmean(result.summary["per_class"][name]["f1"] for result in results)
            for name in results[0].summary["per_class"]
        },
        "parameters": results[0].parameters,
        "learned_parameters": results[0].learned,
        "seconds": statistics.fmean(result.seconds for result in results),
        "cpu_seconds": statistics.fmean(result.cpu_seconds for result in results),
    }


def _described(run: Run) -> dict[str, Any]:
    if run.result is None:
        return {"error": run.error}
    return {**run.result.figures, "seconds": run.result.seconds, "cpu_seconds": run.result.cpu_seconds}


def _results(runs: Iterable[Run]) -> dict[int, Result]:
    return {run.seed: run.result for run in runs if run.result is not None}


def _check_same_clips(finished: Mapping[str, Mapping[int, Result]]) -> Result | None:
    """The first result, of the same clips and labels as all others."""
    named = [(system, result) for system, of in finished.items() for result in of.values()]
    if not named:
        return None
    first = named[0][1]
    for system, result in named:
        if result.clips != first.clips or not np.array_equal(result.labels, first.labels):
            raise InputError(
                f"{system} was tested on other clips or labels than {named[0][0]}; the data changed between "
                "runs: choose another --out"
            )
    return first
