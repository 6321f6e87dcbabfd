"""EfficientNet-Lite0 (Tan and Le 2019; no squeeze-and-excitation, ReLU6) as a dense feature extractor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32
STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
FEATURES = 1280
BATCH_NORM_EPS = 1e-3
OUTPUT_STRIDE = 16


class EfficientNetLite0(nn.Module):
    """The convolutional part, ``[F, 3, S, S]`` to ``[F, 1280, S / 16, S / 16]``; 3,371,008 parameters.

    Parameters are named as in the published ImageNet weights (``_conv_stem``, ``_bn0``, ``_blocks.N``,
    ``_conv_head``, ``_bn1``). The classifier of those weights works on the mean over the map. The last stage
    with a stride is dilated instead (Chen et al. 2017), which gives the same filters at stride 16 in place of
    32: regions need the finer map.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self._bn0 = _batch_norm(STEM)
        self._blocks = nn.Sequential(*_blocks())
        self._conv_head = SameConv2d(STAGES[-1][-1], FEATURES, 1)
        self._bn1 = _batch_norm(FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the last conv map.

        Args:
            images: float [F, 3, S, S], (RGB - 127) / 128.

        Returns:
            [F, 1280, ceil(S / 16), ceil(S / 16)] in [0, 6].
        """
        x = F.relu6(self._bn0(self._conv_stem(images)))
        return F.relu6(self._bn1(self._conv_head(self._blocks(x))))


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow's SAME: an odd pixel of padding goes right and below."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[F, inputs, H, W] to [F, outputs, ceil(H / stride), ceil(W / stride)]."""
        top, bottom = self._margins(x.shape[-2])
        left, right = self._margins(x.shape[-1])
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)

    def _margins(self, size: int) -> tuple[int, int]:
        stride = self.stride[0]
        reach = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1 (Sandler et al. 2018), with a shortcut where the shape stays."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        dilation: int,
        shortcut: bool,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        if expansion != 1:
            self._expand_conv = SameConv2d(inputs, hidden, 1)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, dilation, groups=hidden)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1)
        self._bn2 = _batch_norm(outputs)
        self.expands, self.shortcut = expansion != 1, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[F, inputs, H, W] to [F, outputs, H / stride, W / stride]."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


def _blocks() -> list[InvertedResidual]:
    blocks = []
    channels, reached, dilation = STEM, 2, 1
    for repeats, kernel, stride, expansion, width in STAGES:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            kept = 1 if reached * step > OUTPUT_STRIDE else step
            shortcut = step == 1 and channels == width
            blocks.append(InvertedResidual(channels, width, kernel, kept, expansion, dilation, shortcut))
            dilation *= step // kept  # a stride that was taken out spreads the filters after it
            channels, reached = width, reached * kept
    return blocks


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
