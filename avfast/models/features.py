"""Backbones for feature bags: one learned layer over vectors that someone else computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from avfast.models.backbones import AUDIO, VISUAL, AudioBackbone, VisualBackbone, learned_layer
from avfast.models.vggish import EMBEDDING

if TYPE_CHECKING:
    from typing_extensions import Self

    from avfast.models.system import ModelConfig

DIM = 256


class VisualFeatures(VisualBackbone):
    """Takes given feature maps [F, D, h, w] in place of frames; a region is a cell."""

    pretrainable = False
    image_size = 1
    stride = 1
    first_centre = 0.5
    grid = 1
    dim = DIM

    def __init__(self, train_conv: bool = False, dropout: float = 0.5, inputs: int = 3) -> None:
        """Args:
        train_conv: Without a meaning here.
        dropout: Share of features dropped in training.
        inputs: D, size of a given vector.
        """
        super().__init__(train_conv, dropout)
        self.given = nn.Identity()
        self.head = nn.Sequential(self.drop, learned_layer(inputs, self.dim, self.drop))
        self.freeze()

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """As the base class says."""
        if config.visual_dim < 1:
            raise ValueError("visual_dim: there are no visual features; choose a system of sound alone")
        return cls(config.train_conv, config.dropout, config.visual_dim)

    @property
    def conv(self) -> nn.Module:
        return self.given

    def normalise(self, frames: Tensor) -> Tensor:
        return frames.float()

    def describe(self, pooled: Tensor) -> Tensor:
        return self.head(pooled.flatten(1))


class AudioFeatures(AudioBackbone):
    """Takes given vectors in place of log-mel examples."""

    pretrainable = False
    dim = DIM

    def __init__(
        self, train_conv: bool = False, dropout: float = 0.5, augment: bool = False, inputs: int = EMBEDDING
    ) -> None:
        """Args:
        train_conv: Without a meaning here.
        dropout: Share of features dropped in training.
        augment: Without a meaning here.
        inputs: Size of a given vector.
        """
        super().__init__(train_conv, dropout)
        self.given = nn.Identity()
        self.head = nn.Sequential(self.drop, learned_layer(inputs, self.dim, self.drop))
        self.freeze()

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """As the base class says."""
        if config.audio_dim < 1:
            raise ValueError("audio_dim: there are no audio features; choose a system of pictures alone")
        return cls(dropout=config.dropout, inputs=config.audio_dim)

    @property
    def conv(self) -> nn.Module:
        return self.given

    def forward(self, vectors: Tensor) -> Tensor:
        """Given vectors [A, inputs] to [A, dim]."""
        return self.head(vectors)


VISUAL["features"] = VisualFeatures
AUDIO["features"] = AudioFeatures
