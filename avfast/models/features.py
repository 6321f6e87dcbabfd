"""Backbones for feature bags: one learned layer over vectors that someone else computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from avfast.models.audio_backbones import AUDIO, AudioBackbone
from avfast.models.backbones import VISUAL, Backbone, VisualBackbone, learned_layer
from avfast.models.vggish import EMBEDDING

if TYPE_CHECKING:
    from typing_extensions import Self

    from avfast.models.system import ModelConfig

DIM = 256


class _GivenVectors(Backbone):
    """What is learned of vectors of any size: no conv layers, and one layer."""

    pretrainable = False
    dim = DIM
    usual_inputs: ClassVar[int]

    def __init__(self, train_conv: bool = False, dropout: float = 0.5, inputs: int | None = None) -> None:
        """Args:
        train_conv: Without a meaning here.
        dropout: Share of features dropped in training.
        inputs: Size of a given vector; None for ``usual_inputs``.
        """
        super().__init__(train_conv, dropout)
        self.given = nn.Identity()
        size = self.usual_inputs if inputs is None else inputs
        self.head = nn.Sequential(self.drop, learned_layer(size, self.dim, self.drop))
        self.freeze()

    @property
    def conv(self) -> nn.Module:
        return self.given


class VisualFeatures(_GivenVectors, VisualBackbone):
    """Takes given feature maps [F, D, h, w] in place of frames; a region is a cell."""

    image_size = 1
    stride = 1
    first_centre = 0.5
    grid = 1
    usual_inputs = 3  # a picture's colours

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """As the base class says."""
        if config.visual_dim < 1:
            raise ValueError("visual_dim: there are no visual features; choose a system of sound alone")
        return cls(config.train_conv, config.dropout, config.visual_dim)

    def normalise(self, frames: Tensor) -> Tensor:
        return frames.float()

    def describe(self, pooled: Tensor) -> Tensor:
        return self.head(pooled.flatten(1))


class AudioFeatures(_GivenVectors, AudioBackbone):
    """Takes given vectors in place of log-mel examples."""

    usual_inputs = EMBEDDING

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """As the base class says."""
        if config.audio_dim < 1:
            raise ValueError("audio_dim: there are no audio features; choose a system of pictures alone")
        return cls(config.train_conv, config.dropout, config.audio_dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """Given vectors [A, inputs] to [A, dim]."""
        return self.head(vectors)


VISUAL["features"] = VisualFeatures
AUDIO["features"] = AudioFeatures
