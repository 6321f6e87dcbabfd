"""Which clips an epoch shows in which order, and how much each of their labels weighs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avfast.metrics import BoolArray


def epoch_order(clips: int, seed: int, epoch: int, balance: BoolArray | None = None) -> NDArray[np.int64]:
    """Positions of an epoch's clips; a function of the arguments alone, so that any process can repeat it.

    Args:
        clips: N; every clip comes once.
        seed: Of the run.
        epoch: Counted from 0.
        balance: [N, C], labels to balance the epoch by instead, see ``balanced_order``.
    """
    generator = np.random.default_rng([seed, epoch])
    return generator.permutation(clips) if balance is None else balanced_order(balance, generator)


def balanced_order(labels: BoolArray, generator: np.random.Generator) -> NDArray[np.int64]:
    """An epoch in which every class comes as often: clips drawn class by class in turn.

    Args:
        labels: [N, C]; clips without any label count as one more class.
        generator: Decides the order.

    Returns:
        N positions; a clip of a rare class comes several times, some of a common class not at all.
    """
    groups = [np.flatnonzero(column) for column in [*labels.T, ~labels.any(axis=1)] if column.any()]
    rounds = math.ceil(len(labels) / len(groups))
    decks = [
        np.concatenate([generator.permutation(g) for _ in range(math.ceil(rounds / len(g)))]) for g in groups
    ]
    turns = [generator.permutation([deck[turn] for deck in decks]) for turn in range(rounds)]
    return np.concatenate(turns)[: len(labels)]


def in_batches(
    order: Sequence[int] | NDArray[np.int64], size: int, first: int = 0, every: int = 1
) -> Iterator[list[int]]:
    """Consecutive batches of an order; the last may be smaller.

    Args:
        order: Positions in a dataset.
        size: Positions in a batch.
        first: How many batches to leave out at the beginning.
        every: From there on, take every second, third, ... batch.
    """
    for start in range(first * size, len(order), every * size):
        yield [int(position) for position in order[start : start + size]]


def balanced_weights(labels: BoolArray) -> Tensor:
    """Weights with which a class's negatives and positives each make up half of its N clips.

    Args:
        labels: [N, C].

    Returns:
        float32 [2, C], of a negative and of a positive; 1 for a class of which only one kind exists.
    """
    positives = labels.sum(axis=0)
    counts = np.stack([len(labels) - positives, positives])
    weights = np.where((counts > 0).all(axis=0), len(labels) / (2 * np.maximum(counts, 1)), 1.0)
    return torch.from_numpy(weights).float()
