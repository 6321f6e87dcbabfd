"""MIL aggregation: avfast against eager and compiled torch, and against writing the gradients once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import record
from torch import Tensor

from avfast.ops import mil_aggregate, mil_logsumexp

SHAPES = {"24x100x17": (24, 100, 17), "24x119x527": (24, 119, 527), "64x2000x17": (64, 2000, 17)}


def eager_aggregate(scores: Tensor, logits: Tensor) -> Tensor:
    return (scores * logits.softmax(dim=1)).sum(dim=1)


def eager_logsumexp(scores: Tensor, _logits: Tensor) -> Tensor:
    return scores.logsumexp(dim=1) - torch.tensor(float(scores.shape[1])).log()


EAGER = {"mil_aggregate": eager_aggregate, "mil_logsumexp": eager_logsumexp}
NATIVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mil_aggregate": mil_aggregate,
    "mil_logsumexp": lambda scores, _logits: mil_logsumexp(scores),
}


def function_of(case: str, op: str) -> Callable[[Tensor, Tensor], Tensor]:
    if case == "torch.compile":
        return torch.compile(EAGER[op])
    return NATIVE[op] if case == "avfast" else EAGER[op]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", EAGER)
@pytest.mark.parametrize("case", ["avfast", "torch", "torch.compile"])
def test_forward(benchmark: pytest.FixtureRequest, case: str, op: str, shape: str) -> None:
    benchmark.group = f"{op} forward {shape}"
    function = function_of(case, op)
    scores, logits = torch.randn((2, *SHAPES[shape]))
    torch.testing.assert_close(function(scores, logits), EAGER[op](scores, logits), rtol=1e-4, atol=1e-5)
    record(benchmark, lambda: function(scores, logits))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", EAGER)
@pytest.mark.parametrize("case", ["avfast", "torch", "torch.compile", "limit"])
def test_forward_backward(benchmark: pytest.FixtureRequest, case: str, op: str, shape: str) -> None:
    benchmark.group = f"{op} forward+backward {shape}"
    scores, logits = torch.randn((2, *SHAPES[shape])).unbind()
    inputs = [scores.requires_grad_(), logits.requires_grad_()][: 2 if op == "mil_aggregate" else 1]
    if case == "limit":
        return record(benchmark, lambda: [torch.empty_like(x).fill_(1) for x in inputs])
    function = function_of(case, op)
    grad = torch.randn((SHAPES[shape][0], SHAPES[shape][2]))

    def step(f: Callable[[Tensor, Tensor], Tensor] = function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(f(scores, logits), inputs, grad)

    torch.testing.assert_close(step(), step(EAGER[op]), rtol=1e-3, atol=1e-5)
    return record(benchmark, step)
