"""Heads: features of instances in, clip scores and what each instance says of each class out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avfast.nn import MILAggregate
from avfast.ops import mil_logsumexp

WSDDN_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Stream:
    """What one modality says of B clips with N instances and C classes."""

    phi: Tensor
    """[B, C], un-normalised clip scores; 0 for an empty bag."""
    scores: Tensor
    """[N, C], what each instance says of each class (the classification stream)."""
    offsets: Tensor
    """int64 [B + 1], bounds of the bags in the rows of ``scores``."""
    logits: Tensor | None = None
    """[N, C], how much each instance counts in its bag, before the softmax (the localisation stream); None
    where ``scores`` are on the scale of ``phi`` themselves."""

    @property
    def instances(self) -> Tensor:
        """[N, C], what ranks a bag's instances: the share ``D = scores * softmax(logits)`` in its ``phi``.

        The rows of a bag then sum to its ``phi``; without ``logits`` they are the scores. Computed when asked
        for: training has no use of it.
        """
        return self.scores if self.logits is None else self.scores * bag_softmax(self.logits, self.offsets)

    @property
    def evidence(self) -> Tensor:
        """[N, C], instance scores on the scale of ``phi``: ``D`` times the bag's size, of mean ``phi``."""
        if self.logits is None:
            return self.scores
        return self.instances * self.per_instance(self.offsets.diff())[:, None]

    def per_instance(self, values: Tensor) -> Tensor:
        """One value a bag, [B, ...], repeated for its instances, [N, ...]."""
        return torch.repeat_interleave(values, self.offsets.diff(), dim=0, output_size=len(self.scores))


class TwoStreamHead(nn.Module):
    """Parekh et al. 2018, section 3: ``phi = sum_p cls_p * softmax_p(loc)`` over the instances p of a bag.

    Classification scores are not normalised over classes, as one region can belong to several.
    """

    def __init__(self, dim: int, classes: int, instance_softmax: bool = True) -> None:
        """Args:
        dim: Size of an instance's feature vector.
        classes: C.
        instance_softmax: False leaves the softmax out: ``phi = mean_p cls_p * loc_p``.
        """
        super().__init__()
        self.classify = nn.Linear(dim, classes)
        self.localise = nn.Linear(dim, classes)
        self.instance_softmax = instance_softmax
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
        if not self.instance_softmax:
            scores, logits = scores * logits, torch.zeros_like(logits)  # equal weights: the mean
        return Stream(self.aggregate(scores, logits, offsets), scores, offsets, logits)


class LogSumExpHead(nn.Module):
    """One stream: a smooth maximum of the instances' scores, ``avfast.ops.mil_logsumexp``."""

    def __init__(self, dim: int, classes: int) -> None:
        """Args:
        dim: Size of an instance's feature vector.
        classes: C.
        """
        super().__init__()
        self.classify = nn.Linear(dim, classes)

    def forward(self, features: Tensor, offsets: Tensor) -> Stream:
        """As ``TwoStreamHead``; an instance's score is on the scale of ``phi`` as it is."""
        scores = self.classify(features)
        return Stream(mil_logsumexp(scores, offsets), scores, offsets)


class WSDDNHead(TwoStreamHead):
    """Bilen and Vedaldi, CVPR 2016: classes compete for an instance, instances at temperature 2 for a class.

    ``phi``, a sum of products of two softmaxes, is a probability; those of a clip add up to 1 at most.
    """

    def forward(self, features: Tensor, offsets: Tensor) -> Stream:
        """As ``TwoStreamHead``."""
        scores = self.classify(features).softmax(dim=1)
        logits = self.localise(features) / WSDDN_TEMPERATURE
        return Stream(self.aggregate(scores, logits, offsets), scores, offsets, logits)


def idle(*modules: nn.Module) -> Tensor:
    """A zero that depends on the modules' parameters, in place of what they had nothing to do for.

    Ranks that train together must all use the same parameters, also one whose clips lack a modality.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return 0.0 * torch.stack([parameter.sum() for parameter in parameters]).sum()


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
