"""Random changes of training clips: masked sound, mirrored pictures, joined bags."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from avfast.data.batch import Batch


class SpecAugment(nn.Module):
    """A mask over bands and one over time (Park et al. 2019), and a random gain; training mode only.

    A masked cell gets its example's mean.
    """

    def __init__(self, bands: int = 15, frames: int = 23, gain: float = 0.3) -> None:
        """Args:
        bands: The mask over frequency is at most this high.
        frames: The mask over time is at most this long.
        gain: Standard deviation of what is added to a whole example: loudness, as values are logarithms.
        """
        super().__init__()
        self.bands, self.frames, self.gain = bands, frames, gain

    def forward(self, examples: Tensor) -> Tensor:
        """[A, frames, bands] to the same shape; unchanged in evaluation mode."""
        if not self.training:
            return examples
        count, frames, bands = examples.shape
        louder = examples + self.gain * torch.randn(count, 1, 1, device=examples.device)
        over_time = kept(count, frames, self.frames, examples.device)[:, :, None]
        over_bands = kept(count, bands, self.bands, examples.device)[:, None, :]
        mean = louder.mean(dim=(1, 2), keepdim=True)
        return torch.where(over_time & over_bands, louder, mean)


def kept(count: int, size: int, longest: int, device: torch.device) -> Tensor:
    """bool [count, size]: False on one random run per row, of 0 to ``longest`` cells; the end cuts it off."""
    start = torch.randint(size, (count, 1), device=device)
    length = torch.randint(longest + 1, (count, 1), device=device)
    index = torch.arange(size, device=device)
    return (index < start) | (index >= start + length)


def flip(batch: Batch, chosen: Tensor) -> Batch:
    """Mirror the pictures of some clips, and their regions with them.

    Args:
        batch: B clips.
        chosen: bool [B], on the CPU.

    Returns:
        The batch with frames and ``rois`` mirrored; ``region_boxes`` stay, as training has no use of them. A
        mirrored clip gets a name of its own, since what is kept in memory of a clip no longer fits it.
    """
    regions = torch.repeat_interleave(chosen.to(batch.rois.device), batch.region_offsets.diff())
    rows = batch.rois[regions, 0].long().unique()
    frames, rois = batch.frames.clone(), batch.rois.clone()
    frames[rows] = frames[rows].flip(-1)
    left, right = batch.rois[regions, 1], batch.rois[regions, 3]
    rois[regions, 1], rois[regions, 3] = frames.shape[-1] - right, frames.shape[-1] - left
    names = [
        f"{clip} (mirrored)" if c else clip for clip, c in zip(batch.clips, chosen.tolist(), strict=True)
    ]
    return replace(batch, clips=names, frames=frames, rois=rois)


def random_partners(size: int, share: float) -> Tensor:
    """int64 [size], a clip to join each clip with: a random one for about ``share`` of them, else itself."""
    partners = torch.randint(size, (size,))
    return torch.where(torch.rand(size) < share, partners, torch.arange(size))


def join_bags(batch: Batch, pooled: Tensor | None, partners: Tensor) -> tuple[Batch, Tensor | None]:
    """Mixup for bags: give a clip the instances and the labels of another one beside its own.

    A bag is positive if any of its instances is, so the union of two bags has the union of their labels, and
    nothing needs to be interpolated.

    Args:
        batch: B clips.
        pooled: What ``System.pool_regions`` gives for the batch, or None.
        partners: int64 [B], positions in the batch, on the CPU; a clip's own leaves it alone.

    Returns:
        Batch and pooled regions of B clips.
    """
    regions, region_offsets = _joined_rows(batch.region_offsets, partners)
    segments, segment_offsets = _joined_rows(batch.segment_offsets, partners)
    joined = replace(
        batch,
        rois=batch.rois[regions],
        region_offsets=region_offsets,
        objectness=batch.objectness[regions],
        region_times=batch.region_times[regions],
        region_boxes=batch.region_boxes[regions],
        audio=batch.audio[segments],
        segment_offsets=segment_offsets,
        segments=batch.segments[segments],
        targets=torch.maximum(batch.targets, batch.targets[partners.to(batch.targets.device)]),
    )
    return joined, None if pooled is None else pooled[regions]


def _joined_rows(offsets: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of every clip followed by those of its partner, and the new bounds."""
    bounds = offsets.tolist()
    bags = [torch.arange(start, stop) for start, stop in pairwise(bounds)]
    joined = [
        bag if partner == own else torch.cat([bag, bags[partner]])
        for own, (bag, partner) in enumerate(zip(bags, partners.tolist(), strict=True))
    ]
    sizes = torch.tensor([0, *[len(bag) for bag in joined]])
    return torch.cat(joined).to(offsets.device), sizes.cumsum(0).to(offsets.device)
