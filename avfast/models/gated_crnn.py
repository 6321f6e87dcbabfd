"""CVSSP's gated convolutional recurrent network of DCASE 2017 (Xu et al., ICASSP 2018) on log-mel frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.logmel import MEL_BANDS
from avfast.models.augment import SpecAugment
from avfast.models.heads import Stream, idle
from avfast.nn import MILAggregate

POOLS: dict[str, tuple[tuple[int, int], ...]] = {
    "tagging": ((2, 2), (2, 2), (2, 2), (1, 2)),
    "detection": ((1, 2),) * 4,
}
"""Max pooling (time, frequency) after each pair of blocks, by head."""

LAST_POOL = (1, MEL_BANDS >> 4)
SMALLEST_DEVIATION = 1e-3


class BandNorm(nn.Module):
    """Standardises each mel band by statistics that are measured once, on the training clips."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(MEL_BANDS))
        self.register_buffer("deviation", torch.ones(MEL_BANDS))

    def fit(self, parts: Iterable[Tensor], total: Callable[[Tensor], Tensor]) -> None:
        """Measure mean and deviation over all rows of the parts, each [N, 64]; no rows change nothing.

        Args:
            parts: This rank's.
            total: Adds a tensor up over all ranks.
        """
        sums = torch.zeros(3, MEL_BANDS).double()
        for part in parts:
            rows = part.double().cpu()
            sums += torch.stack([torch.ones_like(rows).sum(0), rows.sum(0), rows.square().sum(0)])
        count, first, second = total(sums)
        if count[0]:
            mean = first / count
            self.mean.copy_(mean)
            self.deviation.copy_((second / count - mean.square()).clamp(min=SMALLEST_DEVIATION**2).sqrt())

    def forward(self, frames: Tensor) -> Tensor:
        """[..., 64] to the same shape, mean 0 and deviation 1 on the training clips."""
        return (frames - self.mean) / self.deviation


class GLUBlock(nn.Module):
    """A gated linear unit: convolution, batch norm, half of the channels times the sigmoid of the rest."""

    def __init__(self, inputs: int, channels: int) -> None:
        """Args:
        inputs: Channels that come in.
        channels: Channels that go out, half of the convolution's.
        """
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, T, bands] to [B, channels, T, bands]."""
        return F.glu(self.norm(self.conv(maps)), dim=1)


class GatedCRNN(nn.Module):
    """Four pairs of GLU blocks, a convolution, a gated bidirectional GRU, and one of two heads.

    ``tagging``: a clip's probability is the mean of a sigmoid over time steps, of which there is one for
    eight frames. ``detection``: time is never pooled, and ``sum_t p * a / sum_t a`` weighs the sigmoid p of
    a frame by its attention a, a softmax over classes. As published in all but two things: the GRUs are
    torch's, so linear and sigmoid apply to their outputs, and every block is connected (in the published
    code the last pooling reads from the wrong one).
    """

    def __init__(
        self, classes: int, channels: int, head: Literal["tagging", "detection"], augment: bool
    ) -> None:
        """Args:
        classes: C.
        channels: Of a GLU block, 64 as published; the other widths follow.
        head: Which head, and with it how time is pooled.
        augment: Whether frames pass ``SpecAugment`` in training.
        """
        super().__init__()
        self.head, self.pools = head, POOLS[head]
        self.augment = SpecAugment() if augment else nn.Identity()
        inputs = [1] + [channels] * (2 * len(self.pools) - 1)
        self.blocks = nn.ModuleList([GLUBlock(width, channels) for width in inputs])
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.linear = nn.GRU(4 * channels, 2 * channels, batch_first=True, bidirectional=True)
        self.gate = nn.GRU(4 * channels, 2 * channels, batch_first=True, bidirectional=True)
        self.classify = nn.Linear(4 * channels, classes)
        self.attend = nn.Linear(4 * channels, classes) if head == "detection" else None
        self.aggregate = MILAggregate()

    @property
    def stride(self) -> int:
        """Frames to a time step."""
        return 8 if self.head == "tagging" else 1

    def forward(self, frames: Tensor, offsets: Tensor) -> Stream:
        """Probabilities of clips and frames.

        Args:
            frames: float [N, 64], log-mel frames of all clips, standardised by band.
            offsets: int64 [B + 1], bounds of the clips in ``frames``.

        Returns:
            The stream of B clips with N instances, in [0, 1]; a clip without sound gets 0.
        """
        steps = self.steps(frames, offsets.diff().tolist())
        scores = self.classify(steps).sigmoid()
        weights = torch.zeros_like(scores) if self.attend is None else self.attend(steps).log_softmax(dim=1)
        return Stream(self.aggregate(scores, weights, offsets), scores, offsets)

    def steps(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """The gated recurrent layers at every frame, [N, 4 * channels]; frames of one step have the same."""
        heard = [length for length in lengths if length]
        if not heard:
            maps = self.convolve(frames.new_zeros(0, self.stride, MEL_BANDS), [])
            return maps.flatten(0, 1) + idle(self.linear, self.gate)
        longest = -(-max(heard) // self.stride) * self.stride
        padded = torch.stack([F.pad(clip, (0, 0, 0, longest - len(clip))) for clip in frames.split(heard)])
        maps = self.convolve(self.augment(padded), heard)
        counts = [-(-length // self.stride) for length in heard]
        packed = nn.utils.rnn.pack_padded_sequence(maps, counts, batch_first=True, enforce_sorted=False)
        gated = packed._replace(data=self.linear(packed)[0].data * self.gate(packed)[0].data.sigmoid())
        bags = nn.utils.rnn.unpack_sequence(gated)
        return torch.cat(
            [bag.repeat_interleave(self.stride, 0)[:length] for bag, length in zip(bags, heard, strict=True)]
        )

    def convolve(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """The convolutional half.

        Args:
            frames: float [B, T, 64], padded at the end; T a multiple of ``stride``.
            lengths: B, frames of each clip. What lies beyond is kept at 0, so that a clip's features do not
                depend on the batch that it is in.

        Returns:
            [B, T // stride, 4 * channels].
        """
        maps = cut(frames[:, None], lengths)
        for number, block in enumerate(self.blocks):
            maps = cut(block(maps), lengths)
            if number % 2:
                time, bands = self.pools[number // 2]
                maps = F.max_pool2d(maps, (time, bands))
                lengths = [-(-length // time) for length in lengths]
        maps = F.max_pool2d(self.conv(maps).relu(), LAST_POOL)
        return maps.squeeze(3).transpose(1, 2)


def cut(maps: Tensor, lengths: Sequence[int]) -> Tensor:
    """Maps [B, channels, T, bands] with zeros from the given time step of each clip on."""
    longest = maps.shape[2]
    if all(length == longest for length in lengths):
        return maps
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return maps * inside[:, None, :, None].to(maps)
