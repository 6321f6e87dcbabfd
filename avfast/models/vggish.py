"""VGGish, the audio network of Hershey et al. 2017, with the parameter names of its PyTorch port."""

from __future__ import annotations

from torch import Tensor, nn

from avfast.data.logmel import EXAMPLE_FRAMES, MEL_BANDS

EMBEDDING = 128
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
