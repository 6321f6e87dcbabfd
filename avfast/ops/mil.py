"""MIL aggregation: from the scores of a bag's instances to the scores of the bag."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avfast.native import native
from avfast.ops import reference
from avfast.ops._library import register

__all__ = ["mil_aggregate", "mil_logsumexp"]


def mil_aggregate(scores: Tensor, logits: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Sums a bag's scores weighted by the softmax of ``logits`` over its instances, class by class.

    ``sum_p scores[p] * softmax_p(logits)``: the two-stream head of Parekh et al., Weakly Supervised
    Representation Learning for Unsynchronized Audio-Visual Events (CVPR Workshops 2018), after Bilen and
    Vedaldi, Weakly Supervised Deep Detection Networks (CVPR 2016). One pass over memory each way; the
    softmax is never stored.

    Args:
        scores: [B, P, C], or with ``offsets`` ragged [N, C]; float64, float32, float16 or bfloat16.
        logits: Shape and device of ``scores``; a different float dtype is promoted with that of
            ``scores``. -inf leaves an instance out; +inf and NaN give NaN, as softmax does.
        offsets: int64 [B + 1], bag b being rows offsets[b] to offsets[b + 1]; starts at 0, ends at N.

    Returns:
        [B, C]. A bag without instances, or with every logit -inf, gives 0.

    Raises:
        TypeError: If an argument has the wrong type, dtype or device.
        ValueError: If shapes disagree; on the CPU also if ``offsets`` are not bounds of [0, N].
    """
    _check("scores", scores, offsets)
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a torch.Tensor, got {type(logits).__name__}")
    if logits.shape != scores.shape:
        raise ValueError(f"logits: expected shape {list(scores.shape)} as scores, got {list(logits.shape)}")
    if logits.dtype != scores.dtype:
        dtype = torch.promote_types(scores.dtype, logits.dtype)
        scores, logits = scores.to(dtype), logits.to(dtype)
    if torch.is_grad_enabled() and (scores.requires_grad or logits.requires_grad):
        return _MILAggregate.apply(scores, logits, offsets)
    return _aggregate_forward(scores, logits, offsets)[0]


def mil_logsumexp(scores: Tensor, offsets: Tensor | None = None, r: float = 1.0) -> Tensor:
    """A smooth maximum over a bag's instances, ``(1/r) log mean_p exp(r * scores[p])``, class by class.

    From Pinheiro and Collobert, From Image-level to Pixel-level Labeling with Convolutional Networks
    (CVPR 2015).

    Args:
        scores: [B, P, C], or with ``offsets`` ragged [N, C]; float64, float32, float16 or bfloat16.
        offsets: int64 [B + 1], bag b being rows offsets[b] to offsets[b + 1]; starts at 0, ends at N.
        r: Sharpness, finite and not 0: towards the mean as it nears 0, towards the maximum as it grows (the
            minimum where negative).

    Returns:
        [B, C]. A bag without instances gives 0.

    Raises:
        TypeError: If an argument has the wrong type, dtype or device.
        ValueError: If a shape or ``r`` is wrong; on the CPU also if ``offsets`` are not bounds of [0, N].
    """
    _check("scores", scores, offsets)
    r = float(r)
    if r == 0 or r - r != 0:
        raise ValueError(f"r: expected a finite number other than 0, got {r}")
    if torch.is_grad_enabled() and scores.requires_grad:
        return _MILLogSumExp.apply(scores, offsets, r)
    return _logsumexp_forward(scores, offsets, r)[0]


def _check(name: str, x: Tensor, offsets: Tensor | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if offsets is None:
        if x.dim() != 3:
            raise ValueError(
                f"{name}: expected shape [B, P, C] (or [N, C] with offsets), got {list(x.shape)}"
            )
        return
    if not isinstance(offsets, Tensor):
        raise TypeError(f"offsets: expected a torch.Tensor or None, got {type(offsets).__name__}")
    if x.dim() != 2:
        raise ValueError(f"{name}: expected shape [N, C] with offsets, got {list(x.shape)}")
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets: expected shape [B + 1], got {list(offsets.shape)}")
    if offsets.dtype != torch.int64:
        raise TypeError(f"offsets: expected dtype torch.int64, got {offsets.dtype}")


def _differentiating_backward() -> bool:
    """Whether backward itself is being recorded (create_graph=True), which compiled graphs never ask for."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _MILAggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, logits: Tensor, offsets: Tensor | None) -> Tensor:
        output, peak, total = _aggregate_forward(scores, logits, offsets)
        ctx.save_for_backward(scores, logits, offsets, output, peak, total)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        scores, logits, offsets, output, peak, total = ctx.saved_tensors
        if _differentiating_backward():
            return *reference.mil_aggregate_gradients(grad, scores, logits, offsets), None
        return *_aggregate_backward(grad, scores, logits, output, peak, total, offsets), None


class _MILLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, offsets: Tensor | None, r: float) -> Tensor:
        output, peak, total = _logsumexp_forward(scores, offsets, r)
        ctx.save_for_backward(scores, offsets, peak, total)
        ctx.r = r
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, offsets, peak, total = ctx.saved_tensors
        if _differentiating_backward():
            return reference.mil_logsumexp_gradient(grad, scores, offsets, ctx.r), None, None
        return _logsumexp_backward(grad, scores, peak, total, offsets, ctx.r), None, None


# --- the ops torch sees ---------------------------------------------------------------------------


def _new_bags(scores: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, peak and total, [B, C]; the statistics in the type that sums are taken in."""
    size = (scores.shape[0] if offsets is None else offsets.shape[0] - 1, scores.shape[-1])
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return (
        scores.new_empty(size),
        scores.new_empty(size, dtype=wide),
        scores.new_empty(size, dtype=wide),
    )


def _new_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _aggregate_forward_kernel(
    scores: Tensor, logits: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    output, peak, total = _new_bags(scores, offsets)
    native().mil_aggregate_forward(
        output, peak, total, scores.contiguous(), logits.contiguous(), _dense(offsets)
    )
    return output, peak, total


def _aggregate_backward_kernel(
    grad_output: Tensor,
    scores: Tensor,
    logits: Tensor,
    output: Tensor,
    peak: Tensor,
    total: Tensor,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    grad_scores, grad_logits = _new_like(scores), _new_like(logits)
    native().mil_aggregate_backward(
        grad_scores,
        grad_logits,
        grad_output.contiguous(),
        scores.contiguous(),
        logits.contiguous(),
        output,
        peak,
        total,
        _dense(offsets),
    )
    return grad_scores, grad_logits


def _logsumexp_forward_kernel(
    scores: Tensor, offsets: Tensor | None, r: float
) -> tuple[Tensor, Tensor, Tensor]:
    output, peak, total = _new_bags(scores, offsets)
    native().mil_logsumexp_forward(output, peak, total, scores.contiguous(), _dense(offsets), r)
    return output, peak, total


def _logsumexp_backward_kernel(
    grad_output: Tensor, scores: Tensor, peak: Tensor, total: Tensor, offsets: Tensor | None, r: float
) -> Tensor:
    grad_scores = _new_like(scores)
    native().mil_logsumexp_backward(
        grad_scores, grad_output.contiguous(), scores.contiguous(), peak, total, _dense(offsets), r
    )
    return grad_scores


def _dense(offsets: Tensor | None) -> Tensor | None:
    return None if offsets is None else offsets.contiguous()


_aggregate_forward = register(
    "mil_aggregate_forward(Tensor scores, Tensor logits, Tensor? offsets) "
    "-> (Tensor output, Tensor peak, Tensor total)",
    _aggregate_forward_kernel,
    lambda scores, logits, offsets: _new_bags(scores, offsets),
)
_aggregate_backward = register(
    "mil_aggregate_backward(Tensor grad_output, Tensor scores, Tensor logits, Tensor output, Tensor peak, "
    "Tensor total, Tensor? offsets) -> (Tensor grad_scores, Tensor grad_logits)",
    _aggregate_backward_kernel,
    lambda grad_output, scores, logits, *_: (_new_like(scores), _new_like(logits)),
)
_logsumexp_forward = register(
    "mil_logsumexp_forward(Tensor scores, Tensor? offsets, float r) "
    "-> (Tensor output, Tensor peak, Tensor total)",
    _logsumexp_forward_kernel,
    lambda scores, offsets, r: _new_bags(scores, offsets),
)
_logsumexp_backward = register(
    "mil_logsumexp_backward(Tensor grad_output, Tensor scores, Tensor peak, Tensor total, "
    "Tensor? offsets, float r) -> Tensor grad_scores",
    _logsumexp_backward_kernel,
    lambda grad_output, scores, *_: _new_like(scores),
)
