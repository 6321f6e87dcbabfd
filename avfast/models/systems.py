"""The systems that ``--system`` names: a batch of bags in, clip scores and their make-up by instance out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.batch import Batch
from avfast.data.logmel import VGGishLogMel
from avfast.models.backbones import AUDIO, VISUAL
from avfast.models.heads import Stream, TwoStreamHead

NORM_EPS = 1e-12

Preset = Literal["toy", "paper"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's structure; plain values, so a checkpoint can hold it as a dict."""

    system: str = "av-two-stream"
    """A key of ``SYSTEMS``."""
    backbone: str = "toy"
    """A key of ``backbones.VISUAL``."""
    audio_backbone: str = "toy"
    """A key of ``backbones.AUDIO``."""
    image_size: int = 96
    """Side that frames are stretched to, in pixels."""
    proposals: int = 10
    """Regions per frame, M; the best by objectness."""
    dropout: float = 0.5
    """Share of features dropped in training, in [0, 1)."""
    l2_normalise: bool = True
    """Whether a modality's clip scores are divided by their Euclidean norm before modalities are added."""
    train_conv: bool = False
    """Whether conv layers of pretrained networks learn."""
    vggish_relu: bool = True
    """Whether VGGish ends in a ReLU, as its PyTorch port does and today's original does not."""
    vggish_pca: bool = False
    """Whether VGGish embeddings are whitened and written in 8 bits, as AudioSet's released ones are."""

    def __post_init__(self) -> None:
        for field, known in (("system", SYSTEMS), ("backbone", VISUAL), ("audio_backbone", AUDIO)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}: expected one of {', '.join(known)}, got {getattr(self, field)!r}")
        if self.image_size <= 0 or self.image_size % VISUAL[self.backbone].stride:
            raise ValueError(
                f"image_size: expected a positive multiple of {VISUAL[self.backbone].stride}, the stride of "
                f"{self.backbone}, got {self.image_size}"
            )
        if self.proposals < 1:
            raise ValueError(f"proposals: expected at least 1, got {self.proposals}")
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
        return replace(PRESETS[preset], **changes)


@dataclass(frozen=True)
class Output:
    """What a system says of B clips and C classes."""

    scores: Tensor
    """[B, C], the higher the surer; two l2-normalised modalities give values in [-2, 2]."""
    streams: dict[str, Stream]
    """By modality, ``visual`` and ``audio``."""
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

    front_end = VGGishLogMel()
    """Turns a waveform into the audio instances that the system takes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def image_size(self) -> int:
        """Side that frames are stretched to, in pixels."""
        return self.config.image_size

    @property
    def proposals(self) -> int:
        """Regions per frame."""
        return self.config.proposals

    @property
    @abstractmethod
    def frozen_regions(self) -> bool:
        """Whether ``pool_regions`` is a constant of the clip, as the conv layers do not learn."""

    @abstractmethod
    def pool_regions(self, frames: Tensor, rois: Tensor) -> Tensor:
        """Conv features of regions, without gradient.

        Args:
            frames: uint8 [F, 3, S, S]; F may be 0.
            rois: float32 [R, 5], row of ``frames``, then xyxy in pixels; R may be 0.

        Returns:
            [R, channels, height, width].
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
    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """The training loss.

        Args:
            output: What ``forward`` returned.
            targets: float [B, C] in {0, 1}.

        Returns:
            A scalar.
        """

    @abstractmethod
    def load_pretrained(
        self, visual_weights: str | Path | None, audio_weights: str | Path | None
    ) -> list[str]:
        """Fill the pretrained parts before training.

        Args:
            visual_weights: State dict for the visual backbone, see ``Backbone.load_pretrained``; None for its
                packaged weights, if any.
            audio_weights: State dict for the audio backbone.

        Returns:
            Lines for the user on where the weights come from; those that begin with ``WARNING`` must be seen.

        Raises:
            InputError: If a file does not fit.
        """


class AVTwoStream(System):
    """Parekh et al. 2018 (arXiv 1804.07345): a two-stream head per modality, l2-normalised scores added."""

    def __init__(self, config: ModelConfig, classes: int) -> None:
        """Args:
        config: The structure.
        classes: C.
        """
        super().__init__(config)
        self.visual = VISUAL[config.backbone].from_config(config)
        self.audio = AUDIO[config.audio_backbone].from_config(config)
        self.heads = nn.ModuleDict(
            {
                "visual": TwoStreamHead(self.visual.dim, classes),
                "audio": TwoStreamHead(self.audio.dim, classes),
            }
        )

    @property
    def frozen_regions(self) -> bool:
        """As the base class says."""
        return not self.visual.train_conv

    @torch.no_grad()
    def pool_regions(self, frames: Tensor, rois: Tensor) -> Tensor:
        """As the base class says."""
        return self.visual.pooled(frames, rois)

    def forward(self, batch: Batch, pooled: Tensor | None = None) -> Output:
        """As the base class says; a clip without a modality gets nothing from it."""
        if pooled is None:
            pooled = self.visual.pooled(batch.frames, batch.rois)
        regions = self.visual.describe(pooled)
        segments = self.audio(batch.audio)
        return fuse(
            {
                "visual": self.heads["visual"](regions, batch.region_offsets),
                "audio": self.heads["audio"](segments, batch.segment_offsets),
            },
            self.config.l2_normalise,
        )

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """Multi-label hinge, see ``hinge_loss``."""
        return hinge_loss(output.scores, targets)

    def load_pretrained(
        self, visual_weights: str | Path | None, audio_weights: str | Path | None
    ) -> list[str]:
        """As the base class says."""
        return [self.visual.load_pretrained(visual_weights), self.audio.load_pretrained(audio_weights)]


def fuse(streams: dict[str, Stream], l2_normalise: bool) -> Output:
    """Add the modalities' clip scores, each l2-normalised over classes; an empty bag's zeros stay zeros.

    Args:
        streams: By modality, with ``phi`` of equal shape [B, C].
        l2_normalise: False adds the scores as they are.

    Returns:
        The output, with scores [B, C].
    """
    norms = {name: clip_norms(stream.phi, l2_normalise) for name, stream in streams.items()}
    scores = torch.stack([stream.phi / norms[name] for name, stream in streams.items()]).sum(0)
    return Output(scores, streams, norms)


def clip_norms(phi: Tensor, l2_normalise: bool) -> Tensor:
    """[B, 1]: Euclidean norms of the rows of [B, C], never below a small number; or ones."""
    if not l2_normalise:
        return phi.new_ones(len(phi), 1)
    return phi.norm(dim=1, keepdim=True).clamp(min=NORM_EPS)


def hinge_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Multi-label hinge loss: mean over clips and classes of ``max(0, 1 - y * score)`` with y = +1 or -1.

    Args:
        scores: float [B, C].
        targets: float [B, C] in {0, 1}.

    Returns:
        A scalar, at least 0.
    """
    return F.relu(1 - (2 * targets - 1) * scores).mean()


SYSTEMS: dict[str, type[AVTwoStream]] = {"av-two-stream": AVTwoStream}

PRESETS: dict[str, ModelConfig] = {
    "toy": ModelConfig(image_size=VISUAL["toy"].image_size),
    "paper": ModelConfig(
        backbone="alexnet", audio_backbone="vggish", image_size=VISUAL["alexnet"].image_size
    ),
}


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
