"""What every system is: its configuration, what it says of a batch, and how programs train and call it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avfast.data.batch import Batch
from avfast.data.logmel import EXAMPLE_HOP_SECONDS, EXAMPLE_SECONDS, FrontEnd, VGGishLogMel
from avfast.models.audio_backbones import AUDIO
from avfast.models.backbones import VISUAL
from avfast.models.heads import Stream

Preset = Literal["toy", "paper"]
Source = str | Path | None
CRNNHead = Literal["tagging", "detection"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's structure; plain values, so a checkpoint can hold it as a dict."""

    system: str = "av-two-stream"
    """A key of ``SYSTEMS``."""
    backbone: str = "toy"
    """A key of ``backbones.VISUAL``."""
    audio_backbone: str = "toy"
    """A key of ``audio_backbones.AUDIO``."""
    image_size: int = 96
    """Side that frames are stretched to, in pixels."""
    proposals: int = 10
    """Regions per frame, M; the best by objectness."""
    audio_hop: float = EXAMPLE_HOP_SECONDS
    """Seconds from the start of one audio window of 0.96 s to the next."""
    dropout: float = 0.5
    """Share of features dropped in training, in [0, 1)."""
    l2_normalise: bool = True
    """Whether a modality's clip scores are divided by their Euclidean norm before modalities are added."""
    instance_softmax: bool = True
    """Whether the localisation stream is a softmax over a bag's instances; else it multiplies as it is."""
    train_conv: bool = False
    """Whether conv layers of pretrained networks learn."""
    vggish_relu: bool = True
    """Whether VGGish ends in a ReLU, as its PyTorch port does and today's original does not."""
    vggish_pca: bool = False
    """Whether VGGish embeddings are whitened and written in 8 bits, as AudioSet's released ones are."""
    visual_dim: int = 0
    """Size of a given visual feature vector, for the backbone ``features``."""
    audio_dim: int = 0
    """Size of a given audio feature vector, for the audio backbone ``features``."""
    spec_augment: bool = True
    """Whether bands and times of log-mel examples are masked in training."""
    crnn_channels: int = 64
    """Channels of a block of the gated CRNN; its last convolution has four times, a GRU twice as many."""
    crnn_head: CRNNHead = "tagging"
    """The gated CRNN's head, and with it whether its poolings shorten time."""
    crnn_members: int = 4
    """Networks in the fusion of gated CRNNs."""

    def __post_init__(self) -> None:
        for field, known in (("system", SYSTEMS), ("backbone", VISUAL), ("audio_backbone", AUDIO)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}: expected one of {', '.join(known)}, got {getattr(self, field)!r}")
        if self.image_size <= 0 or self.image_size % VISUAL[self.backbone].stride:
            raise ValueError(
                f"image_size: expected a positive multiple of {VISUAL[self.backbone].stride}, the stride of "
                f"{self.backbone}, got {self.image_size}"
            )
        for field in ("proposals", "crnn_channels", "crnn_members"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: expected at least 1, got {getattr(self, field)}")
        if not 0.01 <= self.audio_hop <= EXAMPLE_SECONDS:
            raise ValueError(f"audio_hop: expected 0.01 to {EXAMPLE_SECONDS} seconds, got {self.audio_hop}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        for field, default in (("vggish_relu", True), ("vggish_pca", False)):
            if getattr(self, field) is not default and self.audio_backbone != "vggish":
                raise ValueError(f"{field}: only for the audio backbone vggish, got {self.audio_backbone}")
        if self.vggish_pca and self.train_conv:
            raise ValueError("vggish_pca: its 8 bits have no gradient for train_conv; choose one of them")

    @classmethod
    def from_preset(cls, preset: Preset = "toy", **changes: Any) -> ModelConfig:
        """A preset with some fields changed.

        Args:
            preset: ``toy`` trains from scratch on a laptop, ``paper`` is the published system.
            **changes: Values of fields; None keeps the preset's. The image size follows the backbone.

        Returns:
            The resolved configuration.

        Raises:
            ValueError: For an unknown preset or a value out of range.
            TypeError: For a field that does not exist.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        changes = {name: value for name, value in changes.items() if value is not None}
        backbone = VISUAL.get(changes.get("backbone", ""))
        if backbone is not None:
            changes.setdefault("image_size", backbone.image_size)
        return replace(cls(**PRESETS[preset]), **changes)


PRESETS: dict[str, dict[str, Any]] = {
    "toy": {"image_size": VISUAL["toy"].image_size, "crnn_channels": 16, "crnn_members": 2},
    "paper": {
        "backbone": "alexnet",
        "audio_backbone": "vggish",
        "image_size": VISUAL["alexnet"].image_size,
        "spec_augment": False,
    },
}
"""What differs from the defaults of ``ModelConfig``."""


@dataclass(frozen=True)
class Output:
    """What a system says of B clips and C classes."""

    scores: Tensor
    """[B, C], the higher the surer: hinge scores (two l2-normalised modalities give values in [-2, 2]) or
    probabilities."""
    streams: dict[str, Stream]
    """By modality that the system uses: ``visual``, ``audio`` or both."""
    norms: dict[str, Tensor]
    """[B, 1] by modality: what ``phi`` was divided by; 1 without normalisation."""

    @property
    def views(self) -> dict[str, Tensor]:
        """[B, C] by modality: what it adds to ``scores``, which is their sum."""
        return {name: stream.phi / self.norms[name] for name, stream in self.streams.items()}

    def evidence(self, modality: str) -> Tensor:
        """Scores of a modality's N instances on the scale of its view.

        Args:
            modality: A key of ``streams``.

        Returns:
            [N, C]; for a two-stream head a bag's mean is its row of the view.
        """
        stream = self.streams[modality]
        return stream.evidence / stream.per_instance(self.norms[modality])


class System(nn.Module, ABC):
    """A trainable system; ``forward`` maps a ``Batch`` to an ``Output``."""

    def __init__(self, config: ModelConfig, classes: int) -> None:
        """Args:
        config: The structure.
        classes: C.
        """
        super().__init__()
        self.config = config
        self.classes = classes
        self.front_end = self.new_front_end(config)

    @classmethod
    def new_front_end(cls, config: ModelConfig) -> FrontEnd:
        """What turns a waveform into the audio instances that the system takes."""
        return VGGishLogMel(config.audio_hop)

    @property
    def image_size(self) -> int:
        """Side that frames are stretched to, in pixels."""
        return self.config.image_size

    @property
    def proposals(self) -> int:
        """Regions per frame."""
        return self.config.proposals

    @property
    def frozen_regions(self) -> bool:
        """Whether ``pool_regions`` is a constant of the clip, as the conv layers do not learn."""
        return False

    def pool_regions(self, frames: Tensor, rois: Tensor) -> Tensor:
        """Conv features of regions, without gradient.

        Args:
            frames: uint8 [F, 3, S, S]; F may be 0.
            rois: float32 [R, 5], row of ``frames``, then xyxy in pixels; R may be 0.

        Returns:
            [R, channels, height, width].

        Raises:
            TypeError: The system does not look at pictures.
        """
        raise TypeError(f"{self.config.system}: has no regions")

    @property
    def frozen_segments(self) -> bool:
        """Whether ``embed_segments`` gives the same for a clip in every epoch."""
        return False

    def embed_segments(self, examples: Tensor) -> Tensor:
        """Embeddings of audio segments, without gradient; ``forward`` takes them in place of the examples.

        Args:
            examples: float [A, 96, 64].

        Returns:
            [A, E].

        Raises:
            TypeError: The system has no pretrained network for sound.
        """
        raise TypeError(f"{self.config.system}: has no embeddings of sound")

    def fit_statistics(self, batches: Iterable[Batch], total: Callable[[Tensor], Tensor]) -> None:
        """Take from the training clips, before the first step, what is measured rather than learned.

        Args:
            batches: This rank's share of the training clips, all of them once between the ranks; reading them
                is work, so leave them alone if there is nothing to measure, as this default does.
            total: Adds a tensor up over all ranks.
        """

    @abstractmethod
    def forward(self, batch: Batch, pooled: Tensor | None = None) -> Output:
        """Score a batch of clips.

        Args:
            batch: B clips with R regions.
            pooled: What ``pool_regions`` gives for the batch, computed before; the frames are not used then.

        Returns:
            The output for B clips.
        """

    @abstractmethod
    def losses(self, output: Output, targets: Tensor) -> Tensor:
        """The training loss of every clip and class.

        Args:
            output: What ``forward`` returned.
            targets: float [B, C] in [0, 1].

        Returns:
            [B, C].
        """

    def loss(self, output: Output, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The training loss.

        Args:
            output: What ``forward`` returned.
            targets: float [B, C] in [0, 1].
            weights: float [B, C], how much each clip and class counts; None counts all alike.

        Returns:
            A scalar, the mean over clips and classes; 0 without clips.
        """
        losses = self.losses(output, targets)
        if weights is not None:
            losses = losses * weights
        return losses.sum() / max(losses.numel(), 1)

    @abstractmethod
    def load_pretrained(self, visual_weights: Source, audio_weights: Source) -> list[str]:
        """Fill the pretrained parts before training.

        Args:
            visual_weights: State dict for the visual backbone, see ``Backbone.load_pretrained``; None for its
                packaged weights, if any.
            audio_weights: State dict for the audio backbone.

        Returns:
            Lines for the user on where the weights come from; those that begin with ``WARNING`` must be seen.

        Raises:
            InputError: If a file does not fit, or the system has no use for it.
        """


SYSTEMS: dict[str, type[System]] = {}
"""By the name that ``--system`` takes; ``register`` fills it."""


def register(name: str) -> Callable[[type[System]], type[System]]:
    """A class decorator: ``--system NAME`` builds the class from now on."""

    def add(system: type[System]) -> type[System]:
        SYSTEMS[name] = system
        return system

    return add


def build(config: ModelConfig, classes: int) -> System:
    """A system with random weights.

    Args:
        config: The structure.
        classes: C, at least 1.

    Returns:
        The module, in training mode; ``load_pretrained`` fills it before training, a state dict afterwards.

    Raises:
        ValueError: If there is no class.
    """
    if classes < 1:
        raise ValueError(f"classes: expected at least 1, got {classes}")
    return SYSTEMS[config.system](config, classes)


def probabilities(stream: Stream, modality: str) -> Output:
    """The output of a system of one modality whose ``phi`` are probabilities already."""
    return Output(stream.phi, {modality: stream}, {modality: torch.ones_like(stream.phi[:, :1])})
