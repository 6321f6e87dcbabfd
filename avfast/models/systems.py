"""The systems that ``--system`` names, each a few lines over backbones and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from avfast.data.batch import Batch
from avfast.data.logmel import CRNNLogMel, FrontEnd
from avfast.errors import InputError
from avfast.models.audio_backbones import AUDIO, AudioBackbone, PretrainedAudio
from avfast.models.backbones import VISUAL, VisualBackbone
from avfast.models.gated_crnn import BandNorm, GatedCRNN
from avfast.models.heads import LogSumExpHead, Stream, TwoStreamHead, WSDDNHead, idle
from avfast.models.system import ModelConfig, Output, Source, System, probabilities, register

NORM_EPS = 1e-12
PROBABILITY_EPS = 1e-6
OBJECTNESS_GAIN = 10.0


@register("av-two-stream")
class AVTwoStream(System):
    """Parekh et al. 2018 (arXiv 1804.07345): a two-stream head per modality, l2-normalised scores added.

    The other systems on regions and audio windows differ from it by what they override.
    """

    modalities: tuple[str, ...] = ("visual", "audio")

    def __init__(self, config: ModelConfig, classes: int) -> None:
        """As the base class says."""
        super().__init__(config, classes)
        self.visual: VisualBackbone | None = None
        self.audio: AudioBackbone | None = None
        if "visual" in self.modalities:
            self.visual = VISUAL[config.backbone].from_config(config)
        if "audio" in self.modalities:
            self.audio = AUDIO[config.audio_backbone].from_config(config)
        backbones = {"visual": self.visual, "audio": self.audio}
        self.heads = nn.ModuleDict(
            {name: self.new_head(backbone.dim) for name, backbone in backbones.items() if backbone}
        )

    def new_head(self, dim: int) -> nn.Module:
        """A head for feature vectors of ``dim`` numbers: features and offsets in, a ``Stream`` out."""
        return TwoStreamHead(dim, self.classes, self.config.instance_softmax)

    @property
    def frozen_regions(self) -> bool:
        """As the base class says."""
        return self.visual is not None and not self.visual.train_conv

    @torch.no_grad()
    def pool_regions(self, frames: Tensor, rois: Tensor) -> Tensor:
        """As the base class says."""
        if self.visual is None:
            return super().pool_regions(frames, rois)
        return self.visual.pooled(frames, rois)

    @property
    def frozen_segments(self) -> bool:
        """As the base class says."""
        return isinstance(self.audio, PretrainedAudio) and self.audio.constant

    @torch.no_grad()
    def embed_segments(self, examples: Tensor) -> Tensor:
        """As the base class says."""
        if not isinstance(self.audio, PretrainedAudio):
            return super().embed_segments(examples)
        return self.audio.embed(examples)

    def forward(self, batch: Batch, pooled: Tensor | None = None) -> Output:
        """As the base class says; a clip without a modality gets nothing from it."""
        streams = {}
        if self.visual is not None:
            streams["visual"] = self.heads["visual"](self.regions(batch, pooled), batch.region_offsets)
        if self.audio is not None:
            streams["audio"] = self.heads["audio"](self.segments(batch), batch.segment_offsets)
        return fuse(streams, self.config.l2_normalise)

    def regions(self, batch: Batch, pooled: Tensor | None) -> Tensor:
        """Features of image regions, [R, dim]."""
        assert self.visual is not None
        if pooled is None:
            pooled = self.visual.pooled(batch.frames, batch.rois)
        return self.visual.describe(pooled)

    def segments(self, batch: Batch) -> Tensor:
        """Features of audio segments, [A, dim]."""
        assert self.audio is not None
        return self.audio(batch.audio)

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        """Multi-label hinge, see ``hinge_losses``."""
        return hinge_losses(output.scores, targets)

    def load_pretrained(self, visual_weights: Source, audio_weights: Source) -> list[str]:
        """As the base class says."""
        refuse_unused(self, visual=visual_weights, audio=audio_weights)
        notes = []
        if self.visual is not None:
            notes.append(self.visual.load_pretrained(visual_weights))
        if self.audio is not None:
            notes.append(self.audio.load_pretrained(audio_weights))
        return notes


@register("av-one-stream")
class AVOneStream(AVTwoStream):
    """A smooth maximum over instances in place of the localisation stream."""

    def new_head(self, dim: int) -> nn.Module:
        """As the base class says."""
        return LogSumExpHead(dim, self.classes)


@register("audio-two-stream")
class AudioTwoStream(AVTwoStream):
    """The audio half alone."""

    modalities = ("audio",)


@register("video-two-stream")
class VideoTwoStream(AVTwoStream):
    """The visual half alone."""

    modalities = ("visual",)


@register("video-wsddn")
class VideoWSDDN(VideoTwoStream):
    """Weakly supervised deep detection (Bilen and Vedaldi, CVPR 2016), with its objectness and log loss."""

    def new_head(self, dim: int) -> nn.Module:
        """As the base class says."""
        return WSDDNHead(dim, self.classes)

    def regions(self, batch: Batch, pooled: Tensor | None) -> Tensor:
        """As the base class says; regions that look like objects speak louder."""
        return super().regions(batch, pooled) * (1 + OBJECTNESS_GAIN * batch.objectness[:, None])

    def forward(self, batch: Batch, pooled: Tensor | None = None) -> Output:
        """As the base class says; scores are probabilities, so nothing is normalised."""
        stream = self.heads["visual"](self.regions(batch, pooled), batch.region_offsets)
        return probabilities(stream, "visual")

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        """Binary log loss, see ``log_losses``."""
        return log_losses(output.scores, targets)


@register("av-two-stream-rnn")
class AVTwoStreamRNN(AVTwoStream):
    """A recurrent layer lets an audio segment know its neighbours: the paper's own next step."""

    def __init__(self, config: ModelConfig, classes: int) -> None:
        """As the base class says."""
        super().__init__(config, classes)
        assert self.audio is not None
        self.recurrent = nn.GRU(self.audio.dim, self.audio.dim // 2, bidirectional=True)

    def segments(self, batch: Batch) -> Tensor:
        """As the base class says; each clip is a sequence of its own."""
        features = super().segments(batch)
        clips = [clip for clip in features.split(batch.segment_offsets.diff().tolist()) if len(clip)]
        if not clips:
            return features + idle(self.recurrent)
        return torch.cat(unpack_sequence(self.recurrent(pack_sequence(clips, enforce_sorted=False))[0]))


@dataclass(frozen=True)
class FusedOutput(Output):
    """The mean of several networks' probabilities."""

    members: Tensor
    """[networks, B, C], what each says."""


@register("cvssp-fusion")
class CVSSPFusion(System):
    """The mean of several of CVSSP's gated CRNNs, which learn from the same batches but each for itself."""

    def __init__(self, config: ModelConfig, classes: int) -> None:
        """As the base class says."""
        super().__init__(config, classes)
        self.norm = BandNorm()
        settings = (classes, config.crnn_channels, config.crnn_head, config.spec_augment)
        self.members = nn.ModuleList([GatedCRNN(*settings) for _ in range(self.member_count)])

    @property
    def member_count(self) -> int:
        """How many networks there are."""
        return self.config.crnn_members

    @classmethod
    def new_front_end(cls, config: ModelConfig) -> FrontEnd:
        """As the base class says."""
        return CRNNLogMel()

    def fit_statistics(self, batches: Iterable[Batch], total: Callable[[Tensor], Tensor]) -> None:
        """Mean and deviation of each mel band over the training clips."""
        self.norm.fit((batch.audio for batch in batches), total)

    def forward(self, batch: Batch, pooled: Tensor | None = None) -> FusedOutput:
        """As the base class says; the sound alone is looked at."""
        frames, offsets = self.norm(batch.audio), batch.segment_offsets
        streams = [member(frames, offsets) for member in self.members]
        members = torch.stack([stream.phi for stream in streams])
        scores = torch.stack([stream.scores for stream in streams]).mean(0)
        mean = probabilities(Stream(members.mean(0), scores, offsets), "audio")
        return FusedOutput(mean.scores, mean.streams, mean.norms, members)

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        """Binary log loss, the mean over the networks."""
        assert isinstance(output, FusedOutput)
        return log_losses(output.members, targets.expand_as(output.members)).mean(0)

    def load_pretrained(self, visual_weights: Source, audio_weights: Source) -> list[str]:
        """As the base class says; there are no weights to load."""
        refuse_unused(self, visual=visual_weights, audio=audio_weights)
        return [f"{self.config.system}: trained from scratch"]


@register("gated-crnn")
class GatedCRNNSystem(CVSSPFusion):
    """One of CVSSP's gated CRNNs alone."""

    member_count = 1


def fuse(streams: dict[str, Stream], l2_normalise: bool) -> Output:
    """Add the modalities' clip scores, each l2-normalised over classes; an empty bag's zeros stay zeros.

    Args:
        streams: By modality, with ``phi`` of equal shape [B, C].
        l2_normalise: False adds the scores as they are.

    Returns:
        The output, with scores [B, C].
    """
    norms = {name: clip_norms(stream.phi, l2_normalise) for name, stream in streams.items()}
    scores = torch.stack([stream.phi.float() / norms[name] for name, stream in streams.items()]).sum(0)
    return Output(scores, streams, norms)


def clip_norms(phi: Tensor, l2_normalise: bool) -> Tensor:
    """[B, 1]: Euclidean norms of the rows of [B, C], never below a small number; or ones."""
    if not l2_normalise:
        return phi.new_ones(len(phi), 1)
    return phi.norm(dim=1, keepdim=True).clamp(min=NORM_EPS)


def hinge_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Multi-label hinge loss: ``max(0, 1 - y * score)`` with y = +1 or -1 for targets 1 and 0.

    Args:
        scores: float, any shape.
        targets: float in [0, 1], same shape; between 0 and 1 the two losses are mixed.

    Returns:
        Same shape, at least 0.
    """
    return targets * F.relu(1 - scores) + (1 - targets) * F.relu(1 + scores)


def log_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Binary log loss of probabilities, which are kept away from 0 and 1 so that it is finite.

    Args:
        scores: float in [0, 1], any shape.
        targets: float in [0, 1], same shape.

    Returns:
        Same shape, at least 0.
    """
    likely = scores.float().clamp(PROBABILITY_EPS, 1 - PROBABILITY_EPS)
    return F.binary_cross_entropy(likely, targets, reduction="none")


def refuse_unused(system: System, visual: Source, audio: Source) -> None:
    """Raise an InputError for a weights file of a network that the system does not have."""
    for modality, path in (("visual", visual), ("audio", audio)):
        if path is not None and getattr(system, modality, None) is None:
            raise InputError(
                f"{path}: {system.config.system} takes no {modality} weights; "
                f"leave out --{modality}-weights, or choose another --system"
            )
