"""Augmentation: masked sound, mirrored pictures, joined bags."""

from __future__ import annotations

import pytest
import torch
from small_systems import SIDE, mixed_for, small

from avfast.models import SYSTEMS
from avfast.models.augment import SpecAugment, flip, join_bags, kept, random_partners


def test_masks_are_runs_of_limited_length() -> None:
    torch.manual_seed(0)
    masks = kept(2000, 12, 5, torch.device("cpu"))
    removed = (~masks).sum(1)
    assert removed.min() == 0 and removed.max() == 5
    assert ((~masks).int().diff(dim=1).abs().sum(1) <= 2).all()
    assert (~masks).any(0).all()


def test_augmentation_masks_in_training_only() -> None:
    torch.manual_seed(0)
    examples = torch.rand(50, 96, 64)
    augment = SpecAugment(bands=10, frames=20, gain=0.0)
    masked = augment(examples)
    changed = masked != examples
    torch.testing.assert_close(masked[changed], examples.mean((1, 2), True).expand_as(examples)[changed])
    assert (changed.all(1).sum(1) <= 10).all() and (changed.all(2).sum(1) <= 20).all()
    assert changed.any() and not changed.all((1, 2)).any()
    assert torch.equal(augment.eval()(examples), examples)
    levels = SpecAugment(bands=0, frames=0, gain=0.5)(examples)
    added = (levels - examples)[:, 0, 0]
    torch.testing.assert_close(levels, examples + added[:, None, None])
    assert 0.3 < added.std() < 0.7


def test_mirrored_regions_lie_in_mirrored_frames() -> None:
    batch = mixed_for(small("av-two-stream"))
    mirrored = flip(batch, torch.tensor([True, False, False, False, True]))
    first = batch.rois[:, 0] < 2  # the first clip's; the last clip has frames without regions
    expected = batch.rois[first].clone()
    expected[:, [1, 3]] = SIDE - batch.rois[first][:, [3, 1]]
    torch.testing.assert_close(mirrored.rois[first], expected)
    assert torch.equal(mirrored.frames[:2], batch.frames[:2].flip(-1))
    assert torch.equal(mirrored.rois[~first], batch.rois[~first])
    assert torch.equal(mirrored.frames[2:], batch.frames[2:])
    assert mirrored.clips == ["clip0 (mirrored)", "clip1", "clip2", "clip3", "clip4 (mirrored)"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_joined_bags_score_as_one_clip_with_both_contents(name: str) -> None:
    system = small(name)
    batch = mixed_for(system)
    pooled = system.pool_regions(batch.frames, batch.rois) if system.frozen_regions else None
    joined, joined_pooled = join_bags(batch, pooled, torch.tensor([0, 0, 1, 3, 2]))
    before, after = system(batch, pooled), system(joined, joined_pooled)
    torch.testing.assert_close(after.scores[[0, 3]], before.scores[[0, 3]])
    if "visual" in before.streams:  # clips 1, 2 and 4 have but one picture between them and their partners
        views = before.streams["visual"].phi, after.streams["visual"].phi
        torch.testing.assert_close(views[1][[1, 2, 4]], views[0][[0, 2, 2]])
    assert torch.equal(joined.targets[1], torch.maximum(batch.targets[0], batch.targets[1]))
    counts = batch.segment_offsets.diff()
    assert torch.equal(
        joined.segment_offsets.diff(), counts + counts[[0, 0, 1, 3, 2]] * torch.tensor([0, 1, 1, 0, 1])
    )


def test_partners_are_drawn_for_a_share_of_the_clips() -> None:
    torch.manual_seed(0)
    assert torch.equal(random_partners(9, 0.0), torch.arange(9))
    joined = (random_partners(2000, 0.3) != torch.arange(2000)).float().mean()
    assert 0.25 < joined < 0.35
