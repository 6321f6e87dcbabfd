"""What training would otherwise read or compute again in every epoch, kept in memory while it fits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import Dataset

from avfast.data import Batch, Sample
from avfast.models import System


@dataclass
class Budget:
    """Bytes that caches may still take, shared by all of them."""

    left: int

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; False, and nothing is reserved, where they do not fit."""
        if size > self.left:
            return False
        self.left -= size
        return True


class CachedDataset(Dataset[Sample]):
    """A dataset whose clips are read once, as far as the budget goes."""

    def __init__(self, dataset: Dataset[Sample], budget: Budget) -> None:
        self.dataset = dataset
        self.budget = budget
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        if index in self.kept:
            return self.kept[index]
        sample = self.dataset[index]
        if self.budget.take(_size(sample)):
            self.kept[index] = sample
        return sample


class CachedRegions:
    """Pooled regions of frozen conv layers: constants of a clip, computed once as far as the budget goes.

    They are computed clip by clip, so a clip's values depend neither on its batch nor on what was cached
    before.
    """

    def __init__(self, model: System, budget: Budget) -> None:
        self.model = model
        self.budget = budget
        self.kept: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> Tensor | None:
        """What ``System.forward`` takes as ``pooled``.

        Args:
            batch: Clips with R regions, on the model's device.

        Returns:
            [R, channels, height, width] on that device; None where the conv layers learn.
        """
        if not self.model.frozen_regions:
            return None
        bounds = batch.region_offsets.tolist()
        bags = zip(batch.clips, pairwise(bounds), strict=True)
        return torch.cat([self._pooled(clip, batch, *bag) for clip, bag in bags])

    def _pooled(self, clip: str, batch: Batch, start: int, stop: int) -> Tensor:
        if clip not in self.kept:
            pooled = self._compute(batch, batch.rois[start:stop])
            if not self.budget.take(_bytes(pooled)):
                return pooled
            self.kept[clip] = pooled.cpu()
        return self.kept[clip].to(batch.rois.device)

    def _compute(self, batch: Batch, rois: Tensor) -> Tensor:
        if not len(rois):
            return self.model.pool_regions(batch.frames[:0], rois)
        rows = rois[:, 0].long()
        first, last = int(rows.min()), int(rows.max())
        shifted = torch.cat([rois[:, :1] - first, rois[:, 1:]], dim=1)
        return self.model.pool_regions(batch.frames[first : last + 1], shifted)


def _size(sample: Sample) -> int:
    return sum(_bytes(value) for f in fields(sample) if isinstance(value := getattr(sample, f.name), Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
