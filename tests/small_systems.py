"""Systems at their smallest, and clips of noise for them."""

from __future__ import annotations

import torch

from avfast.data.batch import Batch, Sample, collate
from avfast.models import ModelConfig, System, build

CLASSES = 4
SIDE = 32


def sample(
    seed: int, frames: int = 2, regions: int = 3, segments: int = 2, audio: tuple[int, ...] = (96, 64)
) -> Sample:
    """A clip of noise; ``regions`` per frame, segments of shape ``audio``."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(frames * regions, 2, 2, generator=generator).sort(dim=1).values * SIDE
    return Sample(
        clip=f"clip{seed}",
        frames=torch.randint(0, 256, (frames, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        frame_times=torch.arange(frames).float(),
        boxes=corners.flatten(1),
        box_frames=torch.arange(frames).repeat_interleave(regions),
        objectness=torch.rand(frames * regions, generator=generator),
        frame_size=(64, 48) if frames else (0, 0),
        audio=torch.randn(segments, *audio, generator=generator),
        segments=torch.zeros(segments, 2),
        target=torch.randint(0, 2, (CLASSES,), generator=generator).float(),
    )


def small(name: str, **changes: object) -> System:
    """Any system at its smallest, in evaluation mode."""
    torch.manual_seed(0)
    settings = {"image_size": SIDE, "crnn_channels": 4, **changes}
    return build(ModelConfig.from_preset("toy", system=name, **settings), CLASSES).eval()


def clip_for(system: System, seed: int, **sizes: int) -> Sample:
    """A clip of noise with the audio instances that the system takes."""
    audio = system.front_end(torch.zeros(16_000)).shape[1:]
    return sample(seed, **sizes, audio=tuple(audio))


def mixed_for(system: System) -> Batch:
    """Clips with both modalities, with one only, and with none."""
    kinds = [{"segments": 11}, {"frames": 0}, {"segments": 0}, {"frames": 0, "segments": 0}, {"regions": 0}]
    return collate([clip_for(system, seed, **kind) for seed, kind in enumerate(kinds)])
