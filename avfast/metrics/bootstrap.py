"""How much hangs on the choice of clips: thresholds and comparisons over resampled clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from avfast.metrics.classification import BoolArray, FloatArray, micro_f1

RESAMPLES = 10_000
CHUNK = 500  # resamples at once, which bounds memory
INTERVAL = (2.5, 97.5)  # percentiles

BAGS = 100
FEWEST_BAGS = 10
BAGGED_SCORES = 2_000_000  # in all resamples together, which bounds time

Threshold = float | FloatArray


def bagged(
    choose: Callable[[FloatArray, BoolArray], Threshold], scores: FloatArray, labels: BoolArray
) -> Threshold:
    """The mean of the thresholds chosen on bootstrap resamples of the clips.

    On few clips the best threshold hangs on one or two of them, and the F1 curve is ragged; the mean over
    resamples (bagging, Breiman 1996) is far steadier. Many clips need no such help and are used as they are.

    Args:
        choose: ``best_threshold`` or ``class_thresholds``.
        scores: [N, C], finite.
        labels: [N, C].

    Returns:
        As ``choose`` does; the same for the same clips, whatever else was drawn before.
    """
    rounds = min(BAGS, BAGGED_SCORES // max(1, scores.size))
    if rounds < FEWEST_BAGS or not labels.any():
        return choose(scores, labels)
    draws = np.random.default_rng(0).integers(len(scores), size=(rounds, len(scores)))
    chosen = [np.asarray(choose(scores[draw], labels[draw])) for draw in draws if labels[draw].any()]
    return np.mean(chosen, axis=0) if chosen else choose(scores, labels)


def paired_bootstrap(
    first: Sequence[BoolArray], second: Sequence[BoolArray], labels: BoolArray, seed: int = 0
) -> dict[str, float]:
    """The difference in micro-F1 of two systems, and how it varies over resampled test clips.

    The paired bootstrap of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: clips are drawn
    with replacement, the same ones for both systems, so that clips that are hard for both do not count as
    noise. A system's micro-F1 is the mean over its seeds. The interval is that of percentiles.

    Args:
        first: Decisions [N, C] of the first system, an array a seed.
        second: The same of the second system; the number of seeds may differ.
        labels: [N, C], what is true; N at least 1.
        seed: Decides which clips are drawn.

    Returns:
        ``difference`` (of the first minus the second, on the clips as they are), ``low`` and ``high`` (95 per
        cent of the resampled differences lie between), ``ahead`` and ``behind`` (the shares of resamples in
        which the first system is strictly ahead and strictly behind).

    Raises:
        ValueError: A system has no seed, shapes differ, or there is no clip.
    """
    for name, decisions in (("first", first), ("second", second)):
        if not decisions:
            raise ValueError(f"{name}: expected decisions of at least one seed, got none")
    if not len(labels):
        raise ValueError("labels: expected at least one clip, got none")
    counts = _counts(first, labels), _counts(second, labels)
    generator = np.random.default_rng(seed)
    chunks = []
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        draws = generator.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size)
        chunks.append(_mean_f1(draws, counts[0]) - _mean_f1(draws, counts[1]))
    resampled = np.concatenate(chunks)
    low, high = np.percentile(resampled, INTERVAL)
    means = [np.mean([micro_f1(seed, labels)["f1"] for seed in system]) for system in (first, second)]
    return {
        "difference": float(means[0] - means[1]),
        "low": float(low),
        "high": float(high),
        "ahead": float((resampled > 0).mean()),
        "behind": float((resampled < 0).mean()),
    }


def _counts(decisions: Sequence[BoolArray], labels: BoolArray) -> FloatArray:
    """Hits, and predictions plus references, of every clip and seed: [2, N, seeds]."""
    if any(seed.shape != labels.shape for seed in decisions):
        shapes = ", ".join(str(list(seed.shape)) for seed in decisions)
        raise ValueError(f"decisions: expected the shape of the labels {list(labels.shape)}, got {shapes}")
    hits = [(seed & labels).sum(axis=1) for seed in decisions]
    totals = [seed.sum(axis=1) + labels.sum(axis=1) for seed in decisions]
    return np.stack([np.stack(hits, axis=1), np.stack(totals, axis=1)]).astype(np.float64)


def _mean_f1(draws: np.ndarray, counts: FloatArray) -> FloatArray:
    """Micro-F1, mean over seeds, of resamples: draws [R, N] say how often each clip was drawn; [R]."""
    hits, totals = draws @ counts[0], draws @ counts[1]
    return np.mean(2 * hits / np.maximum(totals, 1), axis=1)
