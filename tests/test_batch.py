"""Joining clips into ragged batches."""

from __future__ import annotations

import pytest
import torch

from avfast.data.batch import Batch, Sample, collate


def sample(frames: int = 0, boxes_per_frame: int = 0, segments: int = 0, name: str = "clip") -> Sample:
    """A clip of 8 x 8 frames from a source of 32 x 16 pixels; box i of the clip starts at (i, i)."""
    count = frames * boxes_per_frame
    corner = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2)
    return Sample(
        clip=name,
        frames=torch.full((frames, 3, 8, 8), frames, dtype=torch.uint8),
        frame_times=torch.arange(frames) * 0.5,
        boxes=torch.cat([corner, corner + 2], dim=1),
        box_frames=torch.arange(frames).repeat_interleave(boxes_per_frame),
        objectness=torch.linspace(1, 0, count),
        frame_size=(32, 16) if frames else (0, 0),
        audio=torch.full((segments, 96, 64), float(segments)),
        segments=torch.arange(segments)[:, None] + torch.tensor([0.0, 1.0]),
        target=torch.tensor([1.0, 0.0]),
    )


def test_bags_keep_their_sizes() -> None:
    batch = collate([sample(2, 3, 4, "a"), sample(0, 0, 1, "b"), sample(1, 2, 0, "c")])
    assert batch.clips == ["a", "b", "c"]
    assert batch.size == 3
    assert batch.region_offsets.tolist() == [0, 6, 6, 8]
    assert batch.segment_offsets.tolist() == [0, 4, 5, 5]
    assert batch.frames.shape == (3, 3, 8, 8)
    assert batch.rois.shape == (8, 5)
    assert batch.rois[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert batch.region_times.tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 0, 0]
    assert batch.audio.shape == (5, 96, 64)
    assert batch.targets.shape == (3, 2)


def test_region_boxes_are_in_source_pixels() -> None:
    batch = collate([sample(1, 2)])
    assert batch.rois[1].tolist() == [0, 1, 1, 3, 3]
    assert batch.region_boxes[1].tolist() == [4, 2, 12, 6]  # 32 / 8 wide, 16 / 8 high


def test_clips_without_picture_and_without_sound() -> None:
    batch = collate([sample(name="a"), sample(name="b")])
    assert batch.rois.shape == (0, 5)
    assert batch.region_offsets.tolist() == batch.segment_offsets.tolist() == [0, 0, 0]
    assert batch.frames.shape == (0, 3, 8, 8)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="expected at least one sample"):
        collate([])


def test_to_moves_every_tensor() -> None:
    batch = collate([sample(1, 2, 3)]).to("meta")
    assert isinstance(batch, Batch)
    assert batch.clips == ["clip"]
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 11
    assert all(tensor.is_meta for tensor in tensors)
