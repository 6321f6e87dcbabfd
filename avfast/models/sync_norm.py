"""Batch norm over the clips of all ranks, so that a batch gives the same statistics however it is shared."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Let every batch norm of a model, in place, see the values of all ranks; parameters stay what they are.

    Args:
        model: Not a batch norm itself.
        device: Where it is; on CUDA torch's own ``nn.SyncBatchNorm`` does it.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = CPUSyncBatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """What ``nn.SyncBatchNorm`` is on CUDA, which torch has not for the CPU.

    In training, mean and variance are those of all ranks' values together, and gradients flow through them to
    all ranks. A rank may have no values. Sums are taken in double precision, so that results differ from one
    process's by rounding alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.BatchNorm1d`` and ``nn.BatchNorm2d``: [N, C, ...] to the same shape."""
        if not self.training:
            return super().forward(input)
        count, mean, variance = _statistics(input.detach())
        if count:
            self._note(mean, variance * (count / max(count - 1, 1)))
        return _Normalise.apply(input, self.weight, self.bias, mean, variance, count, self.eps)

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the statistics that evaluation uses towards those of a batch."""
        assert self.momentum and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.mul_(1 - self.momentum).add_(mean.to(self.running_mean), alpha=self.momentum)
        self.running_var.mul_(1 - self.momentum).add_(variance.to(self.running_var), alpha=self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""


class _Normalise(torch.autograd.Function):
    """``(input - mean) / sqrt(variance + eps) * weight + bias``, where both are functions of the input.

    The gradient is that of Ioffe and Szegedy 2015, section 3, its two means being over all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *rest: Any
    ) -> Tensor:
        ctx.count, eps = rest
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt())
        return torch.batch_norm(
            input, weight, bias, mean.to(weight), variance.to(weight), False, 0.0, eps, cudnn_enabled=False
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse = ctx.saved_tensors
        others, shape = _others(input), [1, -1] + [1] * (input.dim() - 2)
        centred = input - mean.to(weight).view(shape)
        bias_gradient = gradient.sum(others, dtype=torch.float64)
        weight_gradient = (gradient * centred).sum(others, dtype=torch.float64) * inverse
        means = torch.stack([bias_gradient, weight_gradient * inverse]) / max(ctx.count, 1)
        dist.all_reduce(means)
        shift, slope = means.to(weight).view(2, *shape)
        scale = (weight * inverse).to(weight).view(shape)
        own = ((gradient - shift - centred * slope) * scale).to(input.dtype)
        return own, weight_gradient.to(weight), bias_gradient.to(weight), *[None] * 4


def _statistics(values: Tensor) -> tuple[int, Tensor, Tensor]:
    """Of all ranks' values [N, C, ...]: how many a channel has, their mean and variance, float64 [C]."""
    others = _others(values)
    sums = values.sum(others, dtype=torch.float64)
    size = sums.new_tensor([values.numel() // values.shape[1]])
    total = torch.cat([sums, size])
    dist.all_reduce(total)
    count = int(total[-1])
    mean = total[:-1] / max(count, 1)
    shape = [1, -1] + [1] * (values.dim() - 2)
    squares = (values.double() - mean.view(shape)).square().sum(others)
    dist.all_reduce(squares)
    return count, mean, squares / max(count, 1)


def _others(values: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [dim for dim in range(values.dim()) if dim != 1]
