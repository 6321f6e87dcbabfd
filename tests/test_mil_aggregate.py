"""MIL aggregation: native kernels against the reference, gradients, and the rest of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from avfast.nn import MILAggregate
from avfast.ops import mil_aggregate, mil_logsumexp, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]
on_devices = pytest.mark.parametrize("device", DEVICES)
INF = math.inf


def bags(*size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Scores and logits."""
    generator = torch.Generator().manual_seed(sum(size))
    scores, logits = torch.randn((2, *size), generator=generator).to(device=device, dtype=dtype)
    return scores, 4 * logits


def logsumexp(r: float) -> Callable[..., Tensor]:
    return lambda scores, _logits, offsets=None: mil_logsumexp(scores, offsets, r)


def reference_logsumexp(r: float) -> Callable[..., Tensor]:
    return lambda scores, _logits, offsets=None: reference.mil_logsumexp(scores, offsets, r)


OPS = {
    "mil_aggregate": (mil_aggregate, reference.mil_aggregate),
    "mil_logsumexp": (logsumexp(3.0), reference_logsumexp(3.0)),
    "mil_logsumexp_negative": (logsumexp(-0.5), reference_logsumexp(-0.5)),
}
on_ops = pytest.mark.parametrize("op", OPS)


def assert_matches(op: str, scores: Tensor, logits: Tensor, offsets: Tensor | None = None) -> None:
    """Output and gradients equal those of the reference in float64."""
    native, plain = OPS[op]
    narrow = [x.detach().requires_grad_() for x in (scores, logits)]
    wide = [x.detach().double().requires_grad_() for x in (scores, logits)]
    output, expected = native(*narrow, offsets), plain(*wide, offsets)
    tolerance = {"rtol": TOLERANCE[scores.dtype], "atol": TOLERANCE[scores.dtype], "equal_nan": True}
    assert output.dtype == scores.dtype
    torch.testing.assert_close(output.double(), expected, **tolerance)
    inputs = 2 if op == "mil_aggregate" else 1
    grad = torch.randn_like(output)
    actual = torch.autograd.grad(output, narrow[:inputs], grad)
    wanted = torch.autograd.grad(expected, wide[:inputs], grad.double())
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a.double(), w, **tolerance)


# --- the reference, on numbers worked out by hand -------------------------------------------------


def test_reference_aggregate_by_hand() -> None:
    scores, logits = torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[0.0], [math.log(3)]]])
    assert reference.mil_aggregate(scores, logits).item() == pytest.approx(4)  # 1/4 * 1 + 3/4 * 5
    offsets = torch.tensor([0, 1, 1, 2])
    assert reference.mil_aggregate(scores[0], logits[0], offsets).flatten().tolist() == [1, 0, 5]


def test_reference_logsumexp_by_hand() -> None:
    scores = torch.tensor([[[0.0], [math.log(3)]]])
    assert reference.mil_logsumexp(scores).item() == pytest.approx(math.log(2))  # log of the mean of 1 and 3
    assert reference.mil_logsumexp(2 * scores, r=0.5).item() == pytest.approx(2 * math.log(2))


def test_reference_is_softmax_and_logsumexp() -> None:
    scores, logits = bags(3, 7, 5, dtype=torch.float64)
    expected = (scores * logits.softmax(1)).sum(1)
    torch.testing.assert_close(reference.mil_aggregate(scores, logits), expected)
    expected = (2 * scores).logsumexp(1).sub(math.log(7)) / 2
    torch.testing.assert_close(reference.mil_logsumexp(scores, r=2.0), expected)


# --- equality with the reference ------------------------------------------------------------------


@on_devices
@on_ops
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 8, 9, 17, 31, 32, 33, 129, 527])
def test_dense(classes: int, dtype: torch.dtype, op: str, device: str) -> None:
    for length in (1, 2, 31, 33, 129):
        assert_matches(op, *bags(3, length, classes, dtype=dtype, device=device))


@on_devices
@on_ops
@pytest.mark.parametrize("classes", [1, 17, 40])
def test_ragged(classes: int, op: str, device: str) -> None:
    lengths = torch.tensor([0, 1, 5000, 0, 33, 1000, 7, 0])
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).long().to(device)
    assert_matches(op, *bags(int(lengths.sum()), classes, device=device), offsets)


@on_devices
@on_ops
def test_long_bag_shared_among_threads(op: str, device: str) -> None:
    assert_matches(op, *bags(1, 5000, 33, device=device))


@on_devices
@on_ops
def test_layouts(op: str, device: str) -> None:
    scores, logits = bags(4, 18, 12, device=device)
    assert_matches(op, scores[:, ::2], logits[:, ::2])
    assert_matches(op, scores.transpose(0, 2), logits.transpose(0, 2))
    assert_matches(op, scores[:, :1].expand(4, 18, 12), logits[:, :, :1].expand(4, 18, 12))


def test_expanded_gradient() -> None:
    scores, logits = (x.requires_grad_() for x in bags(2, 9, 17))
    mil_aggregate(scores, logits).sum().backward()
    torch.testing.assert_close(scores.grad, logits.detach().softmax(1))


def test_mixed_dtypes_are_promoted() -> None:
    scores, logits = bags(2, 9, 17)
    output = mil_aggregate(scores.half().requires_grad_(), logits)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, mil_aggregate(scores.half().float(), logits))


def test_module() -> None:
    scores, logits = bags(2, 9, 17)
    assert torch.equal(MILAggregate()(scores, logits), mil_aggregate(scores, logits))


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 4), (torch.float64, 4)], ids=str)
def test_exponential_to_a_few_ulp(dtype: torch.dtype, ulps: int) -> None:
    """The softmax weight of one of two instances is a sigmoid: an exponential, a sum and a division."""
    x = torch.linspace(-80, 0, 20_001, dtype=dtype).view(-1, 1, 1)
    logits, scores = torch.cat([x, torch.zeros_like(x)], 1), torch.zeros((x.shape[0], 2, 1), dtype=dtype)
    scores[:, 0] = 1
    exact = torch.special.expit(x.double()) if dtype == torch.float32 else x.exp() / (1 + x.exp())
    error = (mil_aggregate(scores, logits).flatten().double() - exact.flatten()).abs()
    assert (error <= ulps * torch.finfo(dtype).eps * exact.flatten()).all()


# --- values that need a rule ----------------------------------------------------------------------


@on_devices
@on_ops
def test_large_logits(op: str, device: str) -> None:
    scores, logits = bags(2, 40, 17, device=device)
    logits[:, ::3] = 1e4
    logits[:, 1::3] = -1e4
    scores[:, ::5] *= 1e4
    assert_matches(op, scores, logits)


@on_devices
@pytest.mark.parametrize("length", [1, 5, 100])
def test_instances_left_out(length: int, device: str) -> None:
    scores, logits = bags(3, length, 17, device=device)
    logits[0] = -INF
    logits[1, : length // 2] = -INF
    assert_matches("mil_aggregate", scores, logits)
    assert not mil_aggregate(scores, logits)[0].any()


@on_devices
@pytest.mark.parametrize("bad", [INF, math.nan])
@pytest.mark.parametrize("length", [1, 200])
def test_infinite_and_nan_logits_give_nan(bad: float, length: int, device: str) -> None:
    scores, logits = bags(2, length, 3, device=device)
    logits[0, length // 2, 1] = bad
    nan = mil_aggregate(scores, logits).isnan()
    assert nan.tolist() == [[False, True, False], [False] * 3]


@on_devices
def test_empty_bags_and_bags_of_one(device: str) -> None:
    scores, logits = bags(1, 3, device=device)
    for offsets in ([0, 0, 1], [0, 1, 1], [0, 0, 1, 1]):
        bounds = torch.tensor(offsets, device=device)
        expected = torch.zeros((len(offsets) - 1, 3), device=device)
        expected[offsets.index(1) - 1] = scores[0]
        torch.testing.assert_close(mil_aggregate(scores, logits, bounds), expected)
        torch.testing.assert_close(mil_logsumexp(scores, bounds, 2.0), expected)


@on_devices
@on_ops
@pytest.mark.parametrize("size", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty_in_each_dimension(size: tuple[int, int, int], op: str, device: str) -> None:
    scores, logits = (torch.randn(size, device=device, requires_grad=True) for _ in range(2))
    output = OPS[op][0](scores, logits)
    assert output.shape == (size[0], size[2]) and not output.any()
    (grad,) = torch.autograd.grad(output.sum(), scores)
    assert grad.shape == size
    no_bags = OPS[op][0](
        scores.reshape(0, 3), logits.reshape(0, 3), torch.zeros(1, dtype=torch.int64, device=device)
    )
    assert no_bags.shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    classes=st.integers(1, 40),
    magnitude=st.sampled_from([1e-30, 1.0, 1e2, 1e4]),
    masked=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_hostile_bags(lengths: list[int], classes: int, magnitude: float, masked: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores, logits = torch.randn((2, sum(lengths), classes))
    logits = (magnitude * logits).masked_fill(torch.rand_like(logits) < masked, -INF)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    assert_matches("mil_aggregate", scores, logits, offsets)


# --- errors ---------------------------------------------------------------------------------------

S = torch.zeros((2, 4, 3))
R = torch.zeros((8, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((S.numpy(), S), TypeError, "scores: expected a torch.Tensor, got ndarray"),
        ((S, S.numpy()), TypeError, "logits: expected a torch.Tensor, got ndarray"),
        ((R, R), ValueError, r"scores: expected shape \[B, P, C\]"),
        ((S, S, torch.tensor([0, 8])), ValueError, r"scores: expected shape \[N, C\] with offsets"),
        ((S, S[:, :2]), ValueError, r"logits: expected shape \[2, 4, 3\] as scores, got \[2, 2, 3\]"),
        (
            (S.long(), S.long()),
            TypeError,
            "scores: expected dtype float64, float32, float16 or bfloat16, got int64",
        ),
        ((R, R, [0, 8]), TypeError, "offsets: expected a torch.Tensor or None, got list"),
        ((R, R, torch.tensor([0, 8], dtype=torch.int32)), TypeError, "offsets: expected dtype torch.int64"),
        ((R, R, torch.zeros((0,), dtype=torch.int64)), ValueError, r"offsets: expected shape \[B \+ 1\]"),
        ((R, R, torch.tensor([0, 9])), ValueError, "offsets: expected bounds that start at 0.* end at 8"),
        ((R, R, torch.tensor([1, 8])), ValueError, "offsets: expected bounds that start at 0"),
        ((R, R, torch.tensor([0, 5, 3, 8])), ValueError, "offsets: expected bounds .* never decrease"),
    ],
)
def test_errors(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mil_aggregate(*arguments)


@pytest.mark.parametrize("r", [0.0, INF, math.nan])
def test_bad_sharpness(r: float) -> None:
    with pytest.raises(ValueError, match="r: expected a finite number other than 0"):
        mil_logsumexp(S, r=r)


# --- gradients ------------------------------------------------------------------------------------


@on_devices
@on_ops
@pytest.mark.parametrize("offsets", [None, [0, 2, 2, 6]])
def test_gradcheck_and_gradgradcheck(offsets: list[int] | None, op: str, device: str) -> None:
    size = (2, 3, 2) if offsets is None else (6, 2)
    scores, logits = (x.requires_grad_() for x in bags(*size, dtype=torch.float64, device=device))
    bounds = None if offsets is None else torch.tensor(offsets, device=device)
    inputs = (scores, logits) if op == "mil_aggregate" else (scores,)

    def function(*x: Tensor) -> Tensor:
        return OPS[op][0](x[0], x[-1], bounds)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@on_devices
@on_ops
def test_deterministic_to_the_bit(op: str, device: str) -> None:
    scores, logits = (x.requires_grad_() for x in bags(3, 3000, 17, device=device))
    results = []
    for _ in range(5):
        output = OPS[op][0](scores, logits)
        results.append((output, *torch.autograd.grad(output.sum(), scores)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_same_bits_for_any_number_of_threads() -> None:
    (scores, logits), threads, results = bags(2, 5000, 17), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(mil_aggregate(scores, logits))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# --- the rest of PyTorch --------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("offsets", [None, [0, 2, 2, 6]])
def test_opcheck(offsets: list[int] | None, device: str) -> None:
    scores, logits = bags(*((2, 3, 2) if offsets is None else (6, 2)), device=device)
    bounds = None if offsets is None else torch.tensor(offsets, device=device)
    ops, check = torch.ops.avfast, torch.library.opcheck
    check(ops.mil_aggregate_forward.default, (scores, logits, bounds))
    statistics = ops.mil_aggregate_forward(scores, logits, bounds)
    grad = torch.randn_like(statistics[0])
    check(ops.mil_aggregate_backward.default, (grad, scores, logits, *statistics, bounds))
    check(ops.mil_logsumexp_forward.default, (scores, bounds, 2.0))
    statistics = ops.mil_logsumexp_forward(scores, bounds, 2.0)
    check(ops.mil_logsumexp_backward.default, (grad, scores, *statistics[1:], bounds, 2.0))


@on_devices
@on_ops
@pytest.mark.parametrize("ragged", [False, True])
def test_compile_fullgraph_dynamic(ragged: bool, op: str, device: str) -> None:
    def step(scores: Tensor, logits: Tensor, offsets: Tensor | None) -> Tensor:
        return OPS[op][0](2 * scores, logits, offsets).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (6, 9):
        offsets = torch.tensor([0, 2, length], device=device) if ragged else None
        grads = []
        for function in (step, compiled):
            scores, logits = bags(*((length, 5) if ragged else (2, length, 5)), device=device)
            scores.requires_grad_()
            output = function(scores, logits, offsets)
            output.sum().backward()
            grads.append((output, scores.grad))
        torch.testing.assert_close(grads[0], grads[1])


def test_export() -> None:
    scores, logits = bags(2, 6, 5)
    program = torch.export.export(MILAggregate(), (scores, logits))
    assert "avfast.mil_aggregate_forward" in program.graph_module.code
    assert torch.equal(program.module()(scores, logits), mil_aggregate(scores, logits))


@on_devices
def test_autocast_mixes_dtypes(device: str) -> None:
    linear = torch.nn.Linear(4, 5, device=device)
    features = torch.randn((2, 6, 4), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = linear(features)
        assert mil_aggregate(half, half).dtype == torch.bfloat16
        output = mil_aggregate(half, features.new_zeros((2, 6, 5)))  # a float32 partner
    torch.testing.assert_close(output, half.float().mean(1))
    output.sum().backward()
    assert linear.weight.grad is not None


@on_devices
def test_under_deterministic_algorithms(device: str) -> None:
    scores, logits = (x.requires_grad_() for x in bags(2, 6, 5, device=device))
    torch.use_deterministic_algorithms(True)
    try:
        (mil_aggregate(scores, logits) + mil_logsumexp(scores)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert scores.grad is not None and logits.grad is not None


def test_meta_and_fake_tensors() -> None:
    x = torch.empty((2, 6, 5), device="meta")
    assert mil_aggregate(x, x).shape == mil_logsumexp(x).shape == (2, 5)
    with torch._subclasses.FakeTensorMode():
        x = torch.empty((6, 5), requires_grad=True)
        offsets = torch.empty(4, dtype=torch.int64)
        (grad,) = torch.autograd.grad(mil_aggregate(x, x, offsets).sum(), x)
        assert grad.shape == x.shape


def test_gradient_checkpointing() -> None:
    grads = []
    for function in (mil_aggregate, lambda *x: checkpoint(mil_aggregate, *x, use_reentrant=False)):
        scores, logits = (x.requires_grad_() for x in bags(2, 6, 5))
        function(scores, logits).square().sum().backward()
        grads.append((scores.grad, logits.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
