"""Which clips an epoch shows in which order, and how much each of their labels weighs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from avfast.metrics import BoolArray


def epoch_order(labels: BoolArray, balanced: bool, seed: int, epoch: int) -> list[int]:
    """Positions of an epoch's clips; a function of the arguments alone, so that any process can repeat it.

    Args:
        labels: [N, C].
        balanced: See ``balanced_order``; else every clip comes once.
        seed: Of the run.
        epoch: Counted from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    return balanced_order(labels, generator) if balanced else generator.permutation(len(labels)).tolist()


def balanced_order(labels: BoolArray, generator: np.random.Generator) -> list[int]:
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
    return np.concatenate(turns)[: len(labels)].tolist()


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
