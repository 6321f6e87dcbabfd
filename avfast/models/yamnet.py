"""YAMNet, Google's MobileNet v1 for the sounds of AudioSet, with the parameter names of its PyTorch port."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.logmel import LOG_OFFSET as EXAMPLE_LOG_OFFSET
from avfast.errors import InputError
from avfast.models.efficientnet import SameConv2d
from avfast.models.tensor_bundle import read_bundle

EMBEDDING = 1024
LOG_OFFSET = 0.001
"""What YAMNet's front end adds to mel magnitudes before the logarithm; otherwise it is VGGish's."""

PLAN = (
    # stride, channels
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    *((1, 512),) * 5,
    (2, 1024),
    (1, 1024),
)
STEM = 32
BATCH_NORM_EPS = 1e-4

_VARIABLE = re.compile(r"(?:.*/)?_yamnet/layer_with_weights-(\d+)/(\w+)/\.ATTRIBUTES/VARIABLE_VALUE")


class YAMNet(nn.Module):
    """Log-mel examples to 1024-d embeddings, as the classifier of AudioSet's classes takes them.

    Convolutions of MobileNet v1 (Howard et al. 2017), then the mean over the last map; 3,206,400 learned
    numbers and 22 thousand of batch norm statistics. Parameters are named as in torch_audioset's PyTorch port
    (``layer1.fused``, ``layer2.depthwise_conv``), less its ``classifier``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.ModuleDict({"fused": _Convolution(1, STEM, 3, 2)})
        channels = STEM
        for number, (stride, width) in enumerate(PLAN, start=2):
            depthwise = _Convolution(channels, channels, 3, stride, groups=channels)
            parts = {"depthwise_conv": depthwise, "pointwise_conv": _Convolution(channels, width, 1)}
            self.add_module(f"layer{number}", nn.ModuleDict(parts))
            channels = width

    def convolutions(self) -> dict[str, _Convolution]:
        """Every convolution with its batch norm, by name, in the order of computing."""
        return {name: part for name, part in self.named_modules() if isinstance(part, _Convolution)}

    def forward(self, examples: Tensor) -> Tensor:
        """Embed log-mel examples.

        Args:
            examples: float [A, 96, 64], ``ln(mel + 0.01)``, time before frequency, as VGGish takes them.

        Returns:
            [A, 1024], not negative.
        """
        mel = (examples.exp() - EXAMPLE_LOG_OFFSET).clamp(min=0)
        x = (mel + LOG_OFFSET).log()[:, None]
        for convolution in self.convolutions().values():
            x = convolution(x)
        return x.mean(dim=(2, 3))


class _Convolution(nn.Module):
    """Convolution, batch norm without scale, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[A, inputs, H, W] to [A, outputs, ceil(H / stride), ceil(W / stride)]."""
        return F.relu(self.bn(self.conv(x)))


def read_saved_model(folder: Path) -> dict[str, Tensor]:
    """The state dict of a ``YAMNet`` from TensorFlow's SavedModel of it.

    Args:
        folder: As TensorFlow Hub publishes google/yamnet/1, or a SavedModel that holds it as a layer.

    Raises:
        InputError: It is no SavedModel, or of another network.
    """
    found: dict[tuple[int, str], Tensor] = {}
    for name, value in read_bundle(folder / "variables" / "variables").items():
        if match := _VARIABLE.fullmatch(name):
            found[int(match[1]), match[2]] = torch.from_numpy(value.copy())
    state: dict[str, Tensor] = {}
    try:
        for number, (name, convolution) in enumerate(YAMNet().convolutions().items()):
            depthwise = convolution.conv.groups > 1
            kernel = found[2 * number, "depthwise_kernel" if depthwise else "kernel"]
            # TensorFlow's [h, w, inputs, outputs], where a depthwise kernel has one output for each input.
            order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
            state[f"{name}.conv.weight"] = kernel.permute(order).contiguous()
            beta = found[2 * number + 1, "beta"]
            state |= {f"{name}.bn.weight": torch.ones_like(beta), f"{name}.bn.bias": beta}
            state[f"{name}.bn.running_mean"] = found[2 * number + 1, "moving_mean"]
            state[f"{name}.bn.running_var"] = found[2 * number + 1, "moving_variance"]
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: not a SavedModel of YAMNet ({error} is missing or misshapen)") from error
    return state
