"""The two-stream head: features of instances in, clip scores and the share of each instance in them out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avfast.nn import MILAggregate


@dataclass(frozen=True)
class Stream:
    """What one modality says of B clips with N instances and C classes."""

    phi: Tensor
    """[B, C], un-normalised clip scores; 0 for an empty bag."""
    scores: Tensor
    """[N, C], what each instance says of each class (the classification stream)."""
    logits: Tensor
    """[N, C], how much each instance counts in its bag, before the softmax (the localisation stream)."""
    offsets: Tensor
    """int64 [B + 1], bounds of the bags in the rows of ``scores``."""

    @property
    def instances(self) -> Tensor:
        """[N, C], the share ``D = scores * softmax(logits)`` of every instance in its bag's ``phi``.

        The rows of a bag sum to its ``phi``. Computed when asked for: training has no use of it.
        """
        return self.scores * bag_softmax(self.logits, self.offsets)

    @property
    def evidence(self) -> Tensor:
        """[N, C], instance scores on the scale of ``phi``, their mean: ``D`` times the bag's size."""
        return self.instances * self.per_instance(self.offsets.diff())[:, None]

    def per_instance(self, values: Tensor) -> Tensor:
        """One value a bag, [B, ...], repeated for its instances, [N, ...]."""
        return torch.repeat_interleave(values, self.offsets.diff(), dim=0, output_size=len(self.scores))


class TwoStreamHead(nn.Module):
    """Parekh et al. 2018, section 3: ``phi = sum_p cls_p * softmax_p(loc)`` over the instances p of a bag.

    Classification scores are not normalised over classes, as one region can belong to several.
    """

    def __init__(self, dim: int, classes: int) -> None:
        """Args:
        dim: Size of an instance's feature vector.
        classes: C.
        """
        super().__init__()
        self.classify = nn.Linear(dim, classes)
        self.localise = nn.Linear(dim, classes)
        self.aggregate = MILAggregate()

    def forward(self, features: Tensor, offsets: Tensor) -> Stream:
        """Score the bags.

        Args:
            features: float [N, dim], instances of all bags.
            offsets: int64 [B + 1], bounds of the bags in ``features``.

        Returns:
            The stream of B bags.
        """
        scores, logits = self.classify(features), self.localise(features)
        return Stream(self.aggregate(scores, logits, offsets), scores, logits, offsets)


def bag_softmax(logits: Tensor, offsets: Tensor) -> Tensor:
    """Softmax over the instances of each bag, for every class on its own.

    Args:
        logits: float [N, C].
        offsets: int64 [B + 1], bounds of the bags.

    Returns:
        [N, C] in [0, 1]; each non-empty bag's rows sum to 1.
    """
    sizes = offsets.diff()
    bag = torch.repeat_interleave(
        torch.arange(len(sizes), device=logits.device), sizes, output_size=len(logits)
    )
    rows = bag[:, None].expand_as(logits)
    peak = logits.new_full((len(sizes), logits.shape[1]), -torch.inf)
    peak = peak.scatter_reduce(0, rows, logits.detach(), "amax")
    weights = (logits - peak[bag]).exp()
    total = torch.zeros_like(peak).index_add(0, bag, weights)
    return weights / total[bag]
