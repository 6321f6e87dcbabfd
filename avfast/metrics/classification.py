"""How good the scores and decisions of clips are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``, or 0 where the denominator is 0."""
    return float(numerator / denominator) if denominator else 0.0


def f1_precision_recall(hits: float, predicted: float, actual: float) -> dict[str, float]:
    """F1, precision and recall from counts of true positives, predictions and references."""
    return {
        "f1": ratio(2 * hits, predicted + actual),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, actual),
    }


def micro_f1(decisions: BoolArray, labels: BoolArray) -> dict[str, float]:
    """F1, precision and recall over all (clip, class) pairs at once.

    Args:
        decisions: [N, C], what the system says.
        labels: [N, C], what is true.

    Returns:
        ``{"f1", "precision", "recall"}``, each in [0, 1].
    """
    decisions, labels = _pairs(decisions, labels)
    return f1_precision_recall((decisions & labels).sum(), decisions.sum(), labels.sum())


def average_precision(scores: FloatArray, labels: BoolArray) -> float:
    """Area under the precision-recall staircase of one class, without interpolation.

    Clips with equal scores enter together, so their order does not matter.

    Args:
        scores: [N], finite.
        labels: [N].

    Returns:
        A number in [0, 1]; 0 without a positive clip.
    """
    scores, labels = _ranking(scores, labels)
    hits, ranked = _counts_at_each_score(scores, labels)[1:]
    if not len(hits) or not hits[-1]:
        return 0.0
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / ranked).sum() / hits[-1])


def precision_recall(scores: FloatArray, labels: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The precision-recall curve of one class, whose area ``average_precision`` is.

    Args:
        scores: [N], finite.
        labels: [N].

    Returns:
        Precision and recall [K + 1] over falling thresholds, one point for each of K different scores after
        the point of no positive decision; recall is 0 throughout without a positive clip.
    """
    scores, labels = _ranking(scores, labels)
    hits, ranked = _counts_at_each_score(scores, labels)[1:]
    if not len(hits):
        return np.ones(1), np.zeros(1)
    precision, recall = hits / ranked, hits / max(hits[-1], 1)
    return np.concatenate([precision[:1], precision]), np.concatenate([[0.0], recall])


def roc_auc(scores: FloatArray, labels: BoolArray) -> float:
    """Area under the ROC curve of one class: how often a positive clip scores above a negative one.

    A pair of equal scores counts half.

    Args:
        scores: [N], finite.
        labels: [N].

    Returns:
        A number in [0, 1]; 0 where there is no pair, as all clips are positive or all are negative.
    """
    scores, labels = _ranking(scores, labels)
    hits, ranked = _counts_at_each_score(scores, labels)[1:]
    if not len(hits):
        return 0.0
    false = ranked - hits
    rectangles = np.diff(false, prepend=0) * (hits + np.concatenate([[0], hits[:-1]])) / 2
    return ratio(rectangles.sum(), hits[-1] * false[-1])


def d_prime(auc: float) -> float:
    """The separation of two unit normal distributions, of positives and negatives, that have this ROC area.

    ``sqrt(2) * Phi^-1(auc)`` (Macmillan and Creelman, "Detection Theory", 2005), as AudioSet's papers report.

    Args:
        auc: In (0, 1).

    Returns:
        0 at chance; finite.

    Raises:
        ValueError: Outside of (0, 1), where the separation is infinite.
    """
    if not 0 < auc < 1:
        raise ValueError(f"auc: expected a number between 0 and 1, both excluded, got {auc}")
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def best_threshold(scores: FloatArray, labels: BoolArray) -> float:
    """The global threshold that maximises micro-F1, searched over every decision the scores allow.

    A pair is positive where ``score >= threshold``. Two thresholds between the same neighbouring scores
    decide alike, so the search is exact; the one returned lies midway between the neighbours. Among equally
    good places the widest gap between neighbours wins (the largest margin), then the higher threshold.

    Args:
        scores: [N, C], finite.
        labels: [N, C].

    Returns:
        The threshold. Without a positive label nothing is worth predicting: it lies just above all scores.
        Without any score it is 0.
    """
    scores, labels = _ranking(scores, labels)
    if not scores.size:
        return 0.0
    values, hits, ranked = _counts_at_each_score(scores.ravel(), labels.ravel())
    if not hits[-1]:
        return float(np.nextafter(values[0], np.inf))
    quality = 2 * hits / (ranked + hits[-1])
    gaps = np.append(values[:-1] - values[1:], 0.0)
    best = int(np.lexsort((-np.arange(len(values)), gaps, quality))[-1])
    # As a float32, so that float32 scores decide as these do; neighbours without one between give the upper.
    middle = float(np.float32(values[best] - gaps[best] / 2))
    lower = values[best + 1] if best + 1 < len(values) else -np.inf
    return middle if lower < middle <= values[best] else float(values[best])


def class_thresholds(scores: FloatArray, labels: BoolArray) -> FloatArray:
    """A threshold for each class that maximises its own F1; see ``best_threshold``.

    A class without a positive clip teaches nothing and takes the global threshold.

    Args:
        scores: [N, C], finite.
        labels: [N, C].

    Returns:
        [C].
    """
    scores, labels = _ranking(scores, labels)
    own = [best_threshold(scores[:, c], labels[:, c]) for c in range(scores.shape[1])]
    return np.where(labels.any(axis=0), own, best_threshold(scores, labels))


def classification(
    scores: FloatArray, labels: BoolArray, threshold: float | FloatArray, classes: Sequence[str]
) -> dict[str, Any]:
    """Everything that is said about clip-level decisions: DCASE 2017 task 4, subtask A, and rankings.

    The micro figures count (clip, class) pairs. The macro figures are those of the challenge's evaluation
    script: precision and recall are averaged over the classes that occur among the labels or the decisions,
    and F1 is the harmonic mean of the two averages, not the average of the classes' F1. A class that is
    predicted without ever being right thus has precision 0 and recall 0 there.

    mAP, ROC area and d' average over the classes for which they are defined: mAP over those with a positive
    clip, the others over those that have a negative one as well. For d' a class that is ranked without a
    fault, or with nothing but faults, counts as if half a pair of clips were wrong, or right (Macmillan and
    Kaplan, "Detection theory analysis of group data", 1985), since it would be infinite.

    Args:
        scores: [N, C], finite.
        labels: [N, C].
        threshold: One for all classes, or [C]. A pair is positive where its score is at least this.
        classes: C names.

    Returns:
        ``{"micro", "macro", "map", "auc", "d_prime", "per_class"}``; the first two hold F1, precision and
        recall, ``per_class`` maps each name to the same with ``ap``, ``auc``, ``d_prime``, ``threshold`` and
        ``support`` (number of positive clips). Whatever is not defined is 0.
    """
    scores, labels = _ranking(scores, labels)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"scores: expected [N, {len(classes)}], one column a class, got {list(scores.shape)}"
        )
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=np.float64), len(classes))
    decisions = scores >= thresholds
    positive = labels.sum(axis=0)
    pairs = positive * (len(labels) - positive)
    auc = np.array([roc_auc(scores[:, c], labels[:, c]) for c in range(len(classes))])
    least = 0.5 / np.maximum(pairs, 1)
    bounded = np.where(pairs > 0, np.clip(auc, least, 1 - least), 0.5)
    ap = np.array([average_precision(scores[:, c], labels[:, c]) for c in range(len(classes))])
    per_class: dict[str, dict[str, float]] = {
        name: {
            **micro_f1(decisions[:, c], labels[:, c]),
            "ap": float(ap[c]),
            "auc": float(auc[c]),
            "d_prime": d_prime(float(bounded[c])),
            "threshold": float(thresholds[c]),
            "support": int(positive[c]),
        }
        for c, name in enumerate(classes)
    }
    occurring = (positive > 0) | decisions.any(axis=0)
    return {
        "micro": micro_f1(decisions, labels),
        "macro": _macro(
            [entry for entry, counts in zip(per_class.values(), occurring, strict=True) if counts]
        ),
        "map": _mean(ap[positive > 0]),
        "auc": _mean(auc[pairs > 0]),
        "d_prime": d_prime(_mean(bounded[pairs > 0]) or 0.5),
        "per_class": per_class,
    }


def _macro(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    """F1 from the mean precision and the mean recall of classes."""
    precision, recall = (_mean([entry[key] for entry in entries]) for key in ("precision", "recall"))
    return {
        "f1": ratio(2 * precision * recall, precision + recall),
        "precision": precision,
        "recall": recall,
    }


def _mean(values: Sequence[float] | FloatArray) -> float:
    """The mean, or 0 of nothing."""
    return ratio(sum(values), len(values))


def _pairs(decisions: BoolArray, labels: BoolArray) -> tuple[BoolArray, BoolArray]:
    decisions, labels = np.asarray(decisions, dtype=bool), np.asarray(labels, dtype=bool)
    if decisions.shape != labels.shape:
        raise ValueError(
            f"labels: expected the shape of the scores {list(decisions.shape)}, got {list(labels.shape)}"
        )
    return decisions, labels


def _ranking(scores: FloatArray, labels: BoolArray) -> tuple[FloatArray, BoolArray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.shape != labels.shape:
        raise ValueError(
            f"labels: expected the shape of the scores {list(scores.shape)}, got {list(labels.shape)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"scores: expected finite numbers, got {int((~np.isfinite(scores)).sum())} that are not"
        )
    return scores, labels


def _counts_at_each_score(
    scores: FloatArray, labels: BoolArray
) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct scores from high to low, and for each how many positives and pairs score at least that."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = (
        np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1) if len(ordered) else np.array([], int)
    )
    return ordered[last], np.cumsum(labels[order], dtype=np.int64)[last], last.astype(np.int64) + 1
