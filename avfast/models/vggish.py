"""VGGish, the audio network of Hershey et al. 2017, with the parameter names of its PyTorch port."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from avfast.data.logmel import EXAMPLE_FRAMES, MEL_BANDS
from avfast.models.weights import fill, read_state_dict

EMBEDDING = 128
QUANTISED = 2.0
"""Whitened embeddings are clipped to -2 to 2 before they are written in 8 bits."""
PUBLISHED_PCA = {
    "torchvggish": "https://github.com/harritaylor/torchvggish/releases/download/v0.1/"
    "vggish_pca_params-970ea276.pth"
}
"""Names that stand for the URL of public PCA parameters."""
HIDDEN = 4096
CONV_PLAN: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None)
"""Output channels of the 3x3 convolutions; None is a 2x2 max pooling."""


class VGGish(nn.Module):
    """Log-mel examples to 128-d embeddings; 72,141,184 parameters.

    Parameters are named as in the PyTorch port (``features.{0,3,6,8,11,13}``, ``embeddings.{0,2,4}``), so its
    state dict loads as it is.
    """

    def __init__(self, final_relu: bool = True) -> None:
        """Args:
        final_relu: Apply a ReLU to the embedding. The PyTorch port does; the original network of today
            does not.
        """
        super().__init__()
        self.features = _convolutions()
        pools = CONV_PLAN.count(None)
        flat = (EXAMPLE_FRAMES >> pools) * (MEL_BANDS >> pools) * 512
        self.embeddings = nn.Sequential(
            nn.Linear(flat, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, EMBEDDING),
            nn.ReLU() if final_relu else nn.Identity(),
        )

    def forward(self, examples: Tensor) -> Tensor:
        """Embed log-mel examples.

        Args:
            examples: float [A, 96, 64], natural logarithm of mel magnitudes, time before frequency.

        Returns:
            [A, 128].
        """
        maps = self.features(examples[:, None])
        # The original is a channels-last network: its first dense layer reads height, width, channel.
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


class VGGishPCA(nn.Module):
    """The post-processing of the embeddings that AudioSet was released with: PCA whitening, then 8 bits.

    Parameters are named as in the PyTorch port's ``pproc`` and in the original's ``vggish_pca_params.npz``.
    """

    pca_eigen_vectors: Tensor
    """[128, 128], one component a row."""
    pca_means: Tensor
    """[128, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pca_eigen_vectors", torch.eye(EMBEDDING))
        self.register_buffer("pca_means", torch.zeros(EMBEDDING, 1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Post-process embeddings.

        Args:
            embeddings: float [A, 128].

        Returns:
            [A, 128], whole numbers from 0 to 255; without a gradient, as steps have none.
        """
        whitened = (embeddings - self.pca_means.T) @ self.pca_eigen_vectors.T
        return ((whitened.clamp(-QUANTISED, QUANTISED) + QUANTISED) * (255 / (2 * QUANTISED))).round()

    def dequantise(self, quantised: Tensor) -> Tensor:
        """0 to 255 back to -2 to 2."""
        return quantised * (2 * QUANTISED / 255) - QUANTISED


def load_pca(module: nn.Module, source: str | Path) -> str:
    """Fill the VGGish post-processing inside a model.

    Args:
        module: The model.
        source: The port's or the original's PCA parameters, or a state dict of the whole port: a path, a URL
            (see ``weights.read_state_dict``) or a key of ``PUBLISHED_PCA``.

    Returns:
        One line that says where they come from.

    Raises:
        InputError: If the file does not fit.
    """
    source = PUBLISHED_PCA.get(str(source), source)
    state = {key.removeprefix("pproc."): value for key, value in read_state_dict(source).items()}
    if state.get("pca_means", torch.empty(0, 0)).ndim == 1:
        state["pca_means"] = state["pca_means"][:, None]
    for part in module.modules():
        if isinstance(part, VGGishPCA):
            fill(part, state, source, ignore=("features.", "embeddings."))
    return f"VGGish: PCA from {source}"


def _convolutions() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for width in CONV_PLAN:
        if width is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
