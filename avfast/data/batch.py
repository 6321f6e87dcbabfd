"""A clip as the model sees it, and a batch of clips as ragged bags of regions and audio segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One clip. F frames of side S, R regions, A audio segments, C classes; F, R and A may be 0."""

    clip: str
    """The clip's name."""
    frames: Tensor
    """uint8 [F, 3, S, S], RGB, stretched to the image size; or float [F, D, h, w], feature maps; or uint8
    [0, 3, S, S] where only regions of them are to be had, from cached conv maps."""
    frame_times: Tensor
    """float32 [F], seconds."""
    boxes: Tensor
    """float32 [R, 4], xyxy in pixels of the stretched frame, or in cells of the feature map."""
    box_frames: Tensor
    """int64 [R], the row of ``frames`` that a box lies in."""
    objectness: Tensor
    """float32 [R], the proposals' scores."""
    frame_size: tuple[int, int]
    """(width, height) of the source picture in pixels, (0, 0) without picture, (1, 1) for feature maps."""
    audio: Tensor
    """float32 [A, ...], the audio front end's instances (VGGish: [A, 96, 64])."""
    segments: Tensor
    """float32 [A, 2], start and end of each instance in seconds."""
    target: Tensor
    """float32 [C], 1 for a label that the clip has, else 0."""


@dataclass(frozen=True)
class Batch:
    """B clips; clip b owns the instances ``offsets[b]:offsets[b + 1]``, none where it lacks the modality."""

    clips: list[str]
    """B names."""
    frames: Tensor
    """uint8 [F, 3, S, S], the frames of all clips; or float [F, D, h, w], feature maps; or empty, as in
    ``Sample``."""
    rois: Tensor
    """float32 [R, 5]: row of ``frames``, then xyxy in pixels of the stretched frame."""
    region_offsets: Tensor
    """int64 [B + 1], bounds of the clips' bags in ``rois``."""
    objectness: Tensor
    """float32 [R]."""
    region_times: Tensor
    """float32 [R], seconds."""
    region_boxes: Tensor
    """float32 [R, 4], xyxy in pixels of the source picture, for feature maps as fractions of it."""
    audio: Tensor
    """float32 [A, ...]."""
    segment_offsets: Tensor
    """int64 [B + 1], bounds of the clips' bags in ``audio``."""
    segments: Tensor
    """float32 [A, 2], seconds."""
    targets: Tensor
    """float32 [B, C] in {0, 1}."""
    frame_offsets: Tensor
    """int64 [B + 1], bounds of the clips in the rows that ``rois`` names."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Clips that should be in the batch and cannot be read, with the reason."""

    @property
    def size(self) -> int:
        """B, the number of clips."""
        return len(self.clips)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def without_clips(self) -> Batch:
        """No clip, in the shapes of this batch's: what a rank has that gets no share of a small batch."""
        none = self._map(lambda tensor: tensor[:0])
        bounds = [name for name in vars(self) if name.endswith("_offsets")]
        return replace(none, clips=[], **{name: getattr(self, name)[:1] for name in bounds})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        def apply(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        return Batch(**{f.name: apply(getattr(self, f.name)) for f in fields(self)})


def collate(samples: Sequence[Sample]) -> Batch:
    """Join clips into one batch; no padding, bags keep their sizes.

    Args:
        samples: At least one clip; all with the same S, front end and C.

    Returns:
        The batch, on the samples' device.

    Raises:
        ValueError: Without samples.
    """
    if not samples:
        raise ValueError("collate: expected at least one sample, got none")
    frame_offsets = _offsets([len(sample.frame_times) for sample in samples])
    rows = [sample.box_frames + first for sample, first in zip(samples, frame_offsets[:-1], strict=True)]
    boxes = torch.cat([sample.boxes for sample in samples])
    return Batch(
        clips=[sample.clip for sample in samples],
        frames=torch.cat([sample.frames for sample in samples]),
        rois=torch.cat([torch.cat(rows)[:, None].to(boxes.dtype), boxes], dim=1),
        region_offsets=_offsets([len(sample.boxes) for sample in samples]),
        objectness=torch.cat([sample.objectness for sample in samples]),
        region_times=torch.cat([sample.frame_times[sample.box_frames] for sample in samples]),
        region_boxes=torch.cat([_source_boxes(sample) for sample in samples]),
        audio=torch.cat([sample.audio for sample in samples]),
        segment_offsets=_offsets([len(sample.audio) for sample in samples]),
        segments=torch.cat([sample.segments for sample in samples]),
        targets=torch.stack([sample.target for sample in samples]),
        frame_offsets=frame_offsets,
    )


def _offsets(counts: Sequence[int]) -> Tensor:
    """Exclusive prefix sums with the total last: int64 [len(counts) + 1]."""
    return torch.tensor([0, *counts]).cumsum(0)


def _source_boxes(sample: Sample) -> Tensor:
    """Boxes of the stretched frame in pixels of the source picture."""
    height, width = sample.frames.shape[-2:]
    source_width, source_height = sample.frame_size
    x_scale, y_scale = source_width / width, source_height / height
    return sample.boxes * sample.boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
