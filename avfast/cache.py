"""What training would otherwise read or compute again in every epoch, kept in memory while it fits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import Dataset

from avfast.conv_maps import ConvMaps
from avfast.data.batch import Batch, Sample
from avfast.errors import InputError
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

    def __init__(self, model: System, budget: Budget, maps: ConvMaps | None = None) -> None:
        """Args:
        model: With frozen conv layers, or nothing is kept.
        budget: What ``kept`` may take.
        maps: Conv maps on disk that take the place of the frames.
        """
        self.model = model
        self.budget = budget
        self.maps = maps
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
        if not batch.size:
            return self.model.pool_regions(batch.frames, batch.rois)
        bags, frames = pairwise(batch.region_offsets.tolist()), pairwise(batch.frame_offsets.tolist())
        clips = zip(batch.clips, bags, frames, strict=True)
        return torch.cat([self._pooled(batch, clip, slice(*bag), slice(*rows)) for clip, bag, rows in clips])

    def _pooled(self, batch: Batch, clip: str, bag: slice, rows: slice) -> Tensor:
        if clip not in self.kept:
            pooled = self._compute(batch, clip, bag, rows)
            if not self.budget.take(_bytes(pooled)):
                return pooled
            self.kept[clip] = pooled.cpu()
        return self.kept[clip].to(batch.rois.device)

    def _compute(self, batch: Batch, clip: str, bag: slice, rows: slice) -> Tensor:
        rois = batch.rois[bag]
        own = torch.cat([rois[:, :1] - rows.start, rois[:, 1:]], dim=1)
        if self.maps is None:
            return self.model.pool_regions(batch.frames[rows], own)
        maps = self.maps.read(clip).to(rois.device)
        if len(maps) != rows.stop - rows.start:
            raise InputError(f"{self.maps.folder}: the conv maps of {clip!r} are not those of its frames")
        return self.model.pool_regions(maps, own).float()


class CachedSegments:
    """Embeddings of sound by a frozen network: constants of a clip, computed once as the budget allows."""

    def __init__(self, model: System, budget: Budget) -> None:
        """Args:
        model: With a frozen network for sound, or nothing is kept.
        budget: What ``kept`` may take.
        """
        self.model = model
        self.budget = budget
        self.kept: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> Batch:
        """The batch with embeddings in place of log-mel examples; as it is where the network learns."""
        if not self.model.frozen_segments or not batch.size:
            return batch
        bags = zip(batch.clips, pairwise(batch.segment_offsets.tolist()), strict=True)
        return replace(
            batch, audio=torch.cat([self._embedded(clip, batch.audio[slice(*bag)]) for clip, bag in bags])
        )

    def _embedded(self, clip: str, examples: Tensor) -> Tensor:
        if clip not in self.kept:
            device = next(self.model.parameters()).device
            embeddings = self.model.embed_segments(examples.to(device))
            if not self.budget.take(_bytes(embeddings)):
                return embeddings.to(examples.device)
            self.kept[clip] = embeddings.cpu()
        return self.kept[clip].to(examples.device)


def _size(sample: Sample) -> int:
    return sum(_bytes(value) for f in fields(sample) if isinstance(value := getattr(sample, f.name), Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
