"""Random changes of log-mel examples that a small audio network must not mind."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
