"""MIL aggregation: avfast against eager and compiled torch, and against writing the results once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import compiled, limit, on_devices, record
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from avfast.ops import mil_aggregate, mil_logsumexp

SHAPES = {"24x100x17": (24, 100, 17), "24x119x527": (24, 119, 527), "64x2000x17": (64, 2000, 17)}
LENGTHS = [0, 1, 10, 19, 100, 100, 250, 500, 1000, 2000, 5000, 0]  # of ragged bags
on_shapes = pytest.mark.parametrize("shape", [*SHAPES, "ragged"])


def eager_aggregate(scores: Tensor, logits: Tensor) -> Tensor:
    return (scores * logits.softmax(dim=1)).sum(dim=1)


def eager_logsumexp(scores: Tensor, _logits: Tensor) -> Tensor:
    return scores.logsumexp(dim=1) - torch.tensor(float(scores.shape[1])).log()


def bag_by_bag(function: Callable[[Tensor, Tensor], Tensor], scores: Tensor, logits: Tensor) -> Tensor:
    """A ragged batch in eager torch: few bags, so a loop costs less than padding or scattering."""
    bags = zip(scores[None].split(LENGTHS, 1), logits[None].split(LENGTHS, 1), strict=True)
    empty = scores.new_zeros((1, scores.shape[1]))
    return torch.cat([function(s, x) if s.shape[1] else empty for s, x in bags])


EAGER = {"mil_aggregate": eager_aggregate, "mil_logsumexp": eager_logsumexp}
NATIVE: dict[str, Callable[..., Tensor]] = {
    "mil_aggregate": mil_aggregate,
    "mil_logsumexp": lambda scores, _logits, offsets=None: mil_logsumexp(scores, offsets),
}


def function_of(
    benchmark: BenchmarkFixture, case: str, op: str, shape: str, device: str
) -> Callable[[Tensor, Tensor], Tensor]:
    if shape != "ragged":
        eager = compiled(benchmark, EAGER[op]) if case == "torch.compile" else EAGER[op]
        return NATIVE[op] if case == "avfast" else eager
    if case == "torch.compile":
        pytest.skip("unrolls into one graph a bag")
    offsets = torch.tensor([0, *LENGTHS], device=device).cumsum(0)
    if case == "avfast":
        return lambda scores, logits: NATIVE[op](scores, logits, offsets)
    return lambda scores, logits: bag_by_bag(EAGER[op], scores, logits)


def inputs(shape: str, device: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Scores, logits and the shape of the result."""
    size = SHAPES.get(shape, (sum(LENGTHS), 17))
    scores, logits = torch.randn((2, *size), device=device).unbind()
    return scores, logits, (size[0] if shape in SHAPES else len(LENGTHS), size[-1])


def group(device: str, op: str, what: str, shape: str) -> str:
    return f"{op} {what} {shape}" + (" cuda" if device == "cuda" else "")


@on_devices
@on_shapes
@pytest.mark.parametrize("op", EAGER)
@pytest.mark.parametrize("case", ["avfast", "torch", "torch.compile"])
def test_forward(benchmark: BenchmarkFixture, case: str, op: str, shape: str, device: str) -> None:
    benchmark.group = group(device, op, "forward", shape)
    function = function_of(benchmark, case, op, shape, device)
    eager = function_of(benchmark, "torch", op, shape, device)
    scores, logits, _ = inputs(shape, device)
    torch.testing.assert_close(function(scores, logits), eager(scores, logits), rtol=1e-4, atol=1e-5)
    record(benchmark, lambda: function(scores, logits), device)


@on_devices
@on_shapes
@pytest.mark.parametrize("op", EAGER)
@pytest.mark.parametrize("case", ["avfast", "torch", "torch.compile", "limit"])
def test_forward_backward(benchmark: BenchmarkFixture, case: str, op: str, shape: str, device: str) -> None:
    benchmark.group = group(device, op, "forward+backward", shape)
    scores, logits, size = inputs(shape, device)
    leaves = [scores.requires_grad_(), logits.requires_grad_()][: 2 if op == "mil_aggregate" else 1]
    if case == "limit":
        read = 2 * sum(x.nbytes for x in leaves)  # in either direction
        return record(benchmark, limit(device, leaves, read), device)
    function = function_of(benchmark, case, op, shape, device)
    eager = function_of(benchmark, "torch", op, shape, device)
    grad = torch.randn(size, device=device)

    def step(f: Callable[[Tensor, Tensor], Tensor] = function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(f(scores, logits), leaves, grad)

    torch.testing.assert_close(step(), step(eager), rtol=1e-3, atol=1e-5)
    return record(benchmark, step, device)
