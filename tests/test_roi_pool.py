"""RoI pooling: native kernels against the reference, gradients, and the rest of PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from avfast.nn import RoIPool
from avfast.ops import reference, roi_pool

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
on_devices = pytest.mark.parametrize("device", DEVICES)


def features(
    *size: int, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: str = "contiguous"
) -> Tensor:
    """Distinct values, so that every bin has one winner (half types: nearly)."""
    n, c, h, w = size
    extra = 1 if layout == "sliced" else 0
    x = torch.randn((n, c + extra, h + extra, w), generator=torch.Generator().manual_seed(sum(size)))
    x = x.to(device=device, dtype=dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, extra:, extra:] if layout == "sliced" else x


def random_boxes(count: int, batch: int, size: int, device: str = "cpu") -> Tensor:
    """Boxes inside, across and beyond the border, some malformed."""
    generator = torch.Generator().manual_seed(count)
    boxes = torch.rand((count, 5), generator=generator) * 1.6 * size - 0.3 * size
    boxes[:, 0] = torch.randint(0, max(batch, 1), (count,), generator=generator)
    return boxes.to(device)


# --- the reference, on numbers worked out by hand -------------------------------------------------


def test_reference_on_a_hand_worked_map() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    boxes = torch.tensor([[0, 0, 0, 3, 3], [0, 1, 1, 2, 3], [0, 2, 2, 0, 0], [0, 3, 3, 9, 9]])
    expected = [[[5, 7], [13, 15]], [[9, 10], [13, 14]], [[10, 10], [10, 10]], [[15, 0], [0, 0]]]
    assert reference.roi_pool(x, boxes, (2, 2)).squeeze(1).tolist() == expected


def test_reference_rounds_halves_away_from_zero() -> None:
    x = torch.arange(5.0).view(1, 1, 1, 5)
    boxes = torch.tensor([[0, 0.5, 0, 0.5, 0], [0, 1.5, 0, 1.5, 0], [0, 2.5, 0, 2.5, 0], [0, -0.5, 0, 0, 0]])
    assert reference.roi_pool(x, boxes, (1, 1)).flatten().tolist() == [1, 2, 3, 0]


def test_reference_is_torch_max_pooling_on_whole_bins() -> None:
    x = features(2, 3, 8, 8)
    boxes = torch.tensor([[1.0, 0, 0, 7, 7], [0, 0, 0, 7, 7]])
    expected = torch.nn.functional.max_pool2d(x, 2)[[1, 0]]
    assert torch.equal(reference.roi_pool(x, boxes, (4, 4)), expected)


# --- equality with the reference ------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 31, 32, 33, 129])
def test_matches_reference(channels: int, dtype: torch.dtype, layout: str, device: str) -> None:
    for height, width, pooled in [(1, 1, (1, 1)), (13, 13, (6, 6)), (9, 33, (7, 9)), (31, 20, (8, 9))]:
        x = features(3, channels, height, width, dtype=dtype, device=device, layout=layout).requires_grad_()
        boxes = random_boxes(11, 3, max(height, width), device)
        output = roi_pool(x, boxes, pooled, 0.9)
        expected = reference.roi_pool(x, boxes, pooled, 0.9)
        assert torch.equal(output, expected)
        assert torch.equal(roi_pool(x.detach(), boxes, pooled, 0.9), expected)  # without winners
        assert output.dtype == dtype

        wide = x.detach().double().requires_grad_()
        grad = torch.randn_like(output)
        (actual,) = torch.autograd.grad(output, x, grad)
        (wanted,) = torch.autograd.grad(reference.roi_pool(wide, boxes, pooled, 0.9), wide, grad.double())
        torch.testing.assert_close(actual.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@on_devices
@pytest.mark.parametrize("size", [(1, 255), (129, 31), (255, 257), (256, 256)])
def test_winners_of_every_width(size: tuple[int, int], device: str) -> None:
    """Maps of up to 255, up to 65,535 and more cells store winners in 1, 2 and 4 bytes."""
    x = features(1, 5, *size, device=device).requires_grad_()
    boxes = random_boxes(4, 1, max(size), device)
    grad = torch.randn((4, 5, 30, 40), device=device)
    (actual,) = torch.autograd.grad(roi_pool(x, boxes, (30, 40)), x, grad)
    (expected,) = torch.autograd.grad(reference.roi_pool(x, boxes, (30, 40)), x, grad)
    torch.testing.assert_close(actual, expected)


@on_devices
def test_many_boxes_on_one_image(device: str) -> None:
    x = features(2, 40, 13, 13, device=device).requires_grad_()
    boxes = random_boxes(1000, 2, 13, device)
    boxes[:, 0] = 1
    output = roi_pool(x, boxes, 6)
    assert torch.equal(output, reference.roi_pool(x, boxes, (6, 6)))
    (actual,) = torch.autograd.grad(output.sum(), x)
    (expected,) = torch.autograd.grad(reference.roi_pool(x, boxes, (6, 6)).sum(), x)
    torch.testing.assert_close(actual, expected)
    assert not actual[0].any()


def test_output_follows_memory_format() -> None:
    boxes = random_boxes(3, 2, 8)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = features(2, 6, 8, 8).contiguous(memory_format=memory_format).requires_grad_()
        output = roi_pool(x, boxes, 3)
        assert output.is_contiguous(memory_format=memory_format)
        (grad,) = torch.autograd.grad(output.sum(), x)  # an expanded gradient
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_boxes_of_any_float_dtype(dtype: torch.dtype) -> None:
    x = features(2, 3, 9, 9)
    boxes = torch.tensor([[1.0, 0, 1, 5, 6], [0, 2, 2, 8, 8]])
    assert torch.equal(roi_pool(x, boxes.to(dtype), 3), roi_pool(x, boxes, 3))
    listed = [boxes[1:, 1:].to(dtype), boxes[:1, 1:].to(dtype)]
    assert torch.equal(roi_pool(x, listed, 3), roi_pool(x, boxes[[1, 0]], 3))


def test_module_and_one_number_size() -> None:
    x, boxes = features(2, 3, 9, 9), random_boxes(4, 2, 9)
    module = RoIPool(3, 0.5)
    assert torch.equal(module(x, boxes), roi_pool(x, boxes, (3, 3), 0.5))
    assert "spatial_scale=0.5" in repr(module)


# --- values that need a rule ----------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinite_values(layout: str, device: str) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[nan, nan, 1.0, nan], [-inf, nan, inf, 2.0]], device=device).view(2, 1, 1, 4)
    x = x.expand(2, 40, 1, 4).contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    boxes = torch.tensor([[0.0, 0, 0, 3, 0], [1, 0, 0, 3, 0]], device=device)
    expected = torch.tensor([[nan, 1.0], [-inf, inf]], device=device)[:, None, None, :].expand(2, 40, 1, 2)
    torch.testing.assert_close(roi_pool(x, boxes, (1, 2)), expected, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(reference.roi_pool(x, boxes, (1, 2)), expected, equal_nan=True, rtol=0, atol=0)


@on_devices
def test_first_of_equal_maxima_gets_the_gradient(device: str) -> None:
    x = torch.zeros((1, 2, 3, 3), device=device, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 2, 2]], device=device)
    (grad,) = torch.autograd.grad(roi_pool(x, boxes, 1).sum(), x)
    assert grad.flatten(1).sum() == 2 and grad[0, :, 0, 0].tolist() == [1, 1]


@on_devices
def test_infinite_boxes_cover_all_beyond_their_start(device: str) -> None:
    x = features(1, 2, 5, 5, device=device)
    inf = float("inf")
    boxes = torch.tensor(
        [[0, -inf, -inf, inf, inf], [0, 2, 3, inf, inf], [0, inf, inf, inf, inf]], device=device
    )
    output = roi_pool(x, boxes, 1).flatten(1)
    assert torch.equal(output[0], x.amax((2, 3))[0])
    assert torch.equal(output[1], x[0, :, 3:, 2:].amax((1, 2)))
    assert output[2].tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(
    corners=st.lists(
        st.lists(st.floats(width=32, allow_nan=False), min_size=4, max_size=4), min_size=1, max_size=5
    ),
    scale=st.sampled_from([1.0, 1 / 16, 3.7]),
    pooled=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 40),
)
def test_hostile_boxes(
    corners: list[list[float]], scale: float, pooled: tuple[int, int], channels: int
) -> None:
    x = features(1, channels, 6, 7).requires_grad_()
    boxes = torch.tensor([[0.0, *corner] for corner in corners], dtype=torch.float32)
    output = roi_pool(x, boxes, pooled, scale)
    assert torch.equal(output, reference.roi_pool(x, boxes, pooled, scale))
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert torch.isfinite(grad).all()


# --- empty in each dimension ----------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("size", [(0, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0)])
def test_empty_input(size: tuple[int, int, int, int], device: str) -> None:
    x = torch.randn(size, device=device, requires_grad=True)
    boxes = random_boxes(3 if size[0] else 0, size[0], 5, device)
    output = roi_pool(x, boxes, 2)
    assert output.shape == (boxes.shape[0], size[1], 2, 2) and not output.any()
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.shape == x.shape


@on_devices
def test_no_boxes(device: str) -> None:
    x = torch.randn((2, 3, 5, 5), device=device, requires_grad=True)
    for boxes in (torch.empty((0, 5), device=device), [torch.empty((0, 4), device=device)] * 2):
        output = roi_pool(x, boxes, 2)
        assert output.shape == (0, 3, 2, 2)
        (grad,) = torch.autograd.grad(output.sum(), x)
        assert not grad.any()
    assert roi_pool(torch.empty((0, 3, 5, 5), device=device), [], 2).shape == (0, 3, 2, 2)


# --- errors ---------------------------------------------------------------------------------------

X = torch.zeros((2, 3, 5, 5))
BOX = torch.tensor([[0.0, 0, 0, 2, 2]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.numpy(), BOX, 2), TypeError, "input: expected a torch.Tensor, got ndarray"),
        ((X[0], BOX, 2), ValueError, r"input: expected shape \[N, C, H, W\], got \[3, 5, 5\]"),
        (
            (X.long(), BOX, 2),
            TypeError,
            "input: expected dtype float64, float32, float16 or bfloat16, got int64",
        ),
        ((X, BOX[:, 1:], 2), ValueError, r"boxes: expected shape \[K, 5\] .* got \[1, 4\]"),
        ((X, BOX.long(), 2), TypeError, "boxes: expected a floating dtype"),
        ((X, [BOX], 2), ValueError, r"boxes\[0\]: expected shape \[L, 4\]"),
        ((X, [BOX.numpy()], 2), TypeError, r"boxes\[0\]: expected a torch.Tensor"),
        ((X, [BOX[:, 1:]], 2), ValueError, "boxes: expected one tensor per image of input, 2, got 1"),
        ((X, BOX, (2, 2, 2)), TypeError, "output_size: expected an int or a pair"),
        ((X, BOX, 2.5), TypeError, "output_size"),
        ((X, BOX, (0, 2)), ValueError, "output_size: expected at least 1 x 1 bins, got 0 x 2"),
        (
            (X, torch.tensor([[2.0, 0, 0, 2, 2]]), 2),
            ValueError,
            r"boxes\[0\]: expected a batch index in \[0, 2\)",
        ),
        ((X, torch.tensor([[-1.0, 0, 0, 2, 2]]), 2), ValueError, r"boxes\[0\]: expected a batch index"),
        ((X, torch.tensor([[0, 0, float("nan"), 2, 2]]), 2), ValueError, r"boxes\[0\]: .* no NaN"),
        ((X, torch.tensor([[float("nan"), 0, 0, 2, 2]]), 2), ValueError, r"boxes\[0\]: .* no NaN"),
    ],
)
def test_errors(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        roi_pool(*arguments)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_invalid_boxes_pool_to_zero_on_cuda() -> None:
    x = torch.ones((2, 3, 5, 5), device="cuda", requires_grad=True)
    rows = [[2.0, 0, 0, 2, 2], [-1, 0, 0, 2, 2], [0, float("nan"), 0, 2, 2]]
    output = roi_pool(x, torch.tensor(rows, device="cuda"), 2)
    assert not output.any()
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert not grad.any()


# --- gradients ------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck_and_gradgradcheck(layout: str, device: str) -> None:
    x = features(2, 2, 5, 4, dtype=torch.float64, device=device, layout=layout).requires_grad_()
    boxes = random_boxes(3, 2, 5, device).double()
    assert gradcheck(lambda t: roi_pool(t, boxes, (3, 2), 0.8), x)
    assert gradgradcheck(lambda t: roi_pool(t, boxes, (3, 2), 0.8), x)


@on_devices
def test_deterministic_to_the_bit(device: str) -> None:
    x = features(4, 33, 13, 13, device=device).requires_grad_()
    boxes = random_boxes(200, 4, 13, device)
    grad = torch.randn((200, 33, 6, 6), device=device)
    first, *others = (torch.autograd.grad(roi_pool(x, boxes, 6), x, grad)[0] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


def test_same_bits_for_any_number_of_threads() -> None:
    x, boxes = features(4, 65, 13, 13).requires_grad_(), random_boxes(300, 4, 13)
    grad, threads, results = torch.randn((300, 65, 6, 6)), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output = roi_pool(x, boxes, 6)
            results.append((output, *torch.autograd.grad(output, x, grad)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


@on_devices
def test_under_deterministic_algorithms(device: str) -> None:
    x, boxes = features(2, 3, 8, 8, device=device).requires_grad_(), random_boxes(4, 2, 8, device)
    torch.use_deterministic_algorithms(True)
    try:
        roi_pool(x, boxes, 3).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert x.grad is not None


# --- the rest of PyTorch --------------------------------------------------------------------------


@on_devices
def test_opcheck(device: str) -> None:
    for layout in ("contiguous", "channels_last", "sliced"):
        x, boxes = features(2, 3, 8, 8, device=device, layout=layout), random_boxes(4, 2, 8, device)
        for with_winner in (False, True):
            arguments = (x, boxes, 2, 3, 0.5, with_winner)
            torch.library.opcheck(torch.ops.avfast.roi_pool_forward.default, arguments)
        output, winner = torch.ops.avfast.roi_pool_forward(x, boxes, 2, 3, 0.5, True)
        arguments = (output, winner, boxes, [2, 3, 8, 8], layout == "channels_last", 0.5)
        torch.library.opcheck(torch.ops.avfast.roi_pool_backward.default, arguments)


@on_devices
def test_compile_fullgraph_dynamic(device: str) -> None:
    def step(x: Tensor, boxes: Tensor) -> Tensor:
        return roi_pool(2 * x, boxes, (3, 2), 0.5).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, size in [(3, 8), (5, 9)]:
        boxes = random_boxes(count, 2, size, device)
        grads = []
        for function in (step, compiled):
            x = features(2, 4, size, size, device=device).requires_grad_()
            output = function(x, boxes)
            output.sum().backward()
            grads.append((output, x.grad))
        torch.testing.assert_close(grads[0], grads[1])


def test_export() -> None:
    x, boxes = features(2, 4, 8, 8), random_boxes(3, 2, 8)
    program = torch.export.export(RoIPool(3, 0.5), (x, boxes))
    assert "avfast.roi_pool_forward" in program.graph_module.code
    assert torch.equal(program.module()(x, boxes), roi_pool(x, boxes, 3, 0.5))


@on_devices
def test_autocast_keeps_the_inputs_dtype(device: str) -> None:
    conv = torch.nn.Conv2d(3, 4, 3, padding=1, device=device)
    boxes = random_boxes(3, 2, 8, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = roi_pool(conv(features(2, 3, 8, 8, device=device)), boxes, 2)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert conv.weight.grad is not None


def test_meta_and_fake_tensors() -> None:
    output = roi_pool(torch.empty((2, 3, 8, 8), device="meta"), torch.empty((5, 5), device="meta"), 2)
    assert output.shape == (5, 3, 2, 2) and output.is_meta
    with torch._subclasses.FakeTensorMode():
        x = torch.empty((2, 3, 8, 8), requires_grad=True)
        (grad,) = torch.autograd.grad(roi_pool(x, torch.empty((5, 5)), 2).sum(), x)
        assert grad.shape == x.shape


def test_gradient_checkpointing() -> None:
    boxes, grads = random_boxes(4, 2, 8), []
    for function in (roi_pool, lambda *a: checkpoint(roi_pool, *a, use_reentrant=False)):
        x = features(2, 3, 8, 8).requires_grad_()
        function(x, boxes, 3, 0.5).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_side_stream_and_graph() -> None:
    x, boxes = features(2, 33, 13, 13, device="cuda"), random_boxes(20, 2, 13, "cuda")
    expected = reference.roi_pool(x, boxes, (6, 6))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = roi_pool(x, boxes, 6)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(output, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = roi_pool(x, boxes, 6)
    graph.replay()
    assert torch.equal(captured, expected)
