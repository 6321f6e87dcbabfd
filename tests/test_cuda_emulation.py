"""The CUDA kernels, compiled as C++ and run on the CPU thread by thread, against the references."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avfast.ops import reference

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "tests" / "cuda_emulation"
SOURCES = sorted([*(ROOT / "csrc" / "cuda").glob("*.cu"), *EMULATION.glob("*.cu"), *EMULATION.glob("*.cpp")])
HEADERS = sorted(
    [*(ROOT / "csrc").glob("**/*.h"), *(ROOT / "csrc").glob("**/*.cuh"), *EMULATION.glob("include/*.h")]
)
SANITIZERS = os.environ.get("AVFAST_EMULATION_SANITIZERS", "")  # e.g. address,undefined; preload libasan then
FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += ["-fno-sanitize-recover=all", f"-fsanitize={SANITIZERS}"] if SANITIZERS else []
INCLUDES = [f"-I{EMULATION / 'include'}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]

COMPILER = os.environ.get("CXX", "g++")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# Launch shapes follow the device: multiprocessors, shared bytes of a block, seed of the schedule.
SMALL, LARGE, LARGE_OTHER_ORDER = (1, 48 * 1024, 0), (132, 227 * 1024, 1), (132, 227 * 1024, 2)

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs a C++ compiler ({COMPILER})")


# --- the emulator ------------------------------------------------------------------------------------


class Device(ctypes.Structure):
    """``avfast::Device``."""

    _fields_ = (("type", ctypes.c_uint8), ("index", ctypes.c_int32))


class View(ctypes.Structure):
    """``avfast::TensorView``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_uint8),
        ("device", Device),
        ("ndim", ctypes.c_int),
        ("shape", ctypes.c_int64 * 8),
        ("strides", ctypes.c_int64 * 8),
        ("name", ctypes.c_char_p),
    )


VIEW_DTYPES = [*DTYPES, torch.int64, torch.int32, torch.uint16, torch.uint8]  # in the order of avfast::Dtype


def view(x: Tensor, name: str = "x") -> View:
    eights = ctypes.c_int64 * 8
    dtype, cuda = VIEW_DTYPES.index(x.dtype), Device(1, 0)
    return View(x.data_ptr(), dtype, cuda, x.ndim, eights(*x.shape), eights(*x.stride()), name.encode())


class Emulator:
    """The launchers, called with CPU tensors in place of CUDA ones."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def configure(self, device: tuple[int, int, int]) -> None:
        multiprocessors, shared_bytes, schedule = device
        self._library.configure(multiprocessors, shared_bytes, ctypes.c_uint64(schedule))

    def call(self, function: str, *arguments: Tensor | float) -> None:
        native = getattr(self._library, function)
        native.restype = ctypes.c_char_p
        views = [view(a) if isinstance(a, Tensor) else ctypes.c_double(a) for a in arguments]
        error = native(*[ctypes.byref(v) if isinstance(v, View) else v for v in views])
        if error is not None:
            raise RuntimeError(error.decode())

    def self_test(self, which: str, result: Tensor, values: Tensor) -> None:
        native = self._library.self_test
        native.restype = ctypes.c_char_p
        error = native(which.encode(), ctypes.c_void_p(result.data_ptr()), ctypes.c_void_p(values.data_ptr()))
        if error is not None:
            raise RuntimeError(error.decode())


def build() -> Path:
    """Compiles the kernels with the emulation in place of the CUDA headers, once per state of the sources."""
    digest = hashlib.sha256(" ".join([COMPILER, *FLAGS]).encode())
    for path in [*SOURCES, *HEADERS]:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"cuda-emulation-{digest.hexdigest()[:16]}"
    library = folder / "emulation.so"
    if library.exists():
        return library
    for old in folder.parent.glob("cuda-emulation-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:  # of this process: others may build too
        work = Path(name)
        jobs = []
        for number, source in enumerate(SOURCES):
            command = [COMPILER, *FLAGS, *INCLUDES, "-x", "c++", "-c", source, "-o", work / f"{number}.o"]
            jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        errors = [job.communicate()[1] for job in jobs]
        assert not any(errors), "\n".join(errors)
        subprocess.run(
            [COMPILER, *FLAGS, "-shared", *work.glob("*.o"), "-o", work / library.name], check=True
        )
        folder.mkdir(exist_ok=True)
        (work / library.name).replace(library)
    return library


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    yield Emulator(ctypes.CDLL(str(build())))


def unwritten(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """An output whose every element must be written: NaN, or a cell that no map has."""
    x = (
        torch.empty(shape, dtype=dtype, memory_format=layout)
        if len(shape) == 4
        else torch.empty(shape, dtype=dtype)
    )
    return x.fill_(float("nan")) if dtype.is_floating_point else x.fill_(77)


# --- the emulation itself --------------------------------------------------------------------------------


def test_shuffles_and_atomics(emulator: Emulator) -> None:
    result, values = torch.zeros(1, dtype=torch.int32), torch.arange(64, dtype=torch.int32)
    emulator.self_test("sum", result, values)
    assert result.item() == 64 * 63 // 2


def test_barrier_orders_shared_memory(emulator: Emulator) -> None:
    for schedule in range(4):
        emulator.configure((4, 99 * 1024, schedule))
        values = torch.arange(64, dtype=torch.int32)
        emulator.self_test("reverse", torch.zeros(1), values)
        assert torch.equal(values, torch.arange(63, -1, -1, dtype=torch.int32))


def test_a_missing_barrier_shows(emulator: Emulator) -> None:
    results = set()
    for schedule in range(4):
        emulator.configure((4, 99 * 1024, schedule))
        values = torch.arange(64, dtype=torch.int32)
        emulator.self_test("race", torch.zeros(1), values)
        results.add(tuple(values.tolist()))
    assert len(results) > 1


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("divergent barrier", "barrier divergence"),
        ("divergent warp", "warp divergence"),
        pytest.param(
            "shared overrun",
            "past the end of shared memory",
            marks=pytest.mark.skipif(bool(SANITIZERS), reason="the sanitizer ends the process"),
        ),
    ],
)
def test_faults_are_reported(emulator: Emulator, which: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{which}: CUDA error: .*{message}"):
        emulator.self_test(which, torch.zeros(1), torch.zeros(64))


# --- RoI pooling ------------------------------------------------------------------------------------------


def make_map(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Multiples of 1/4, exact in every dtype, with many ties."""
    return (torch.randint(-64, 64, shape) / 4).to(dtype).contiguous(memory_format=layout)


def make_boxes(
    count: int, images: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Boxes in any order of images, some of them partly or wholly outside the map or turned inside out."""
    image = torch.randint(0, images, (count, 1))
    size = torch.tensor([width, height, width, height])
    return torch.cat([image, torch.rand(count, 4) * 1.5 * size - 0.25 * size], dim=1).to(dtype)


def winner_dtype(height: int, width: int) -> torch.dtype:
    cells = height * width
    return torch.uint8 if cells <= 255 else torch.uint16 if cells <= 65535 else torch.int32


def pool(
    emulator: Emulator, x: Tensor, boxes: Tensor, size: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shape = (len(boxes), x.shape[1], *size)
    output = unwritten(shape, x.dtype, layout)
    winner = unwritten(shape, winner_dtype(*x.shape[2:]), layout)
    emulator.call("roi_pool_forward", output, winner, x, boxes, scale)
    return output, winner


def pool_gradient(
    emulator: Emulator, grad: Tensor, winner: Tensor, boxes: Tensor, x: Tensor, scale: float
) -> Tensor:
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    grad_input = unwritten(x.shape, x.dtype, layout)
    emulator.call("roi_pool_backward", grad_input, grad, winner, boxes, scale)
    return grad_input


def check_roi_pool(
    emulator: Emulator,
    x: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    scale: float,
    valid: Tensor | None = None,
) -> None:
    """Forward and backward on two devices, in two schedules: the reference's numbers, and the same bits."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    valid = torch.ones(len(boxes), dtype=torch.bool) if valid is None else valid
    leaf = x.double().requires_grad_()
    expected = reference.roi_pool(leaf, boxes[valid], size, scale)
    grad = torch.randn(len(boxes), x.shape[1], *size).to(x.dtype).contiguous(memory_format=layout)
    (expected_gradient,) = torch.autograd.grad(expected, leaf, grad[valid].double())

    first: tuple[Tensor, Tensor] | None = None
    for device in (SMALL, LARGE, LARGE_OTHER_ORDER):
        emulator.configure(device)
        output, winner = pool(emulator, x, boxes, size, scale)
        assert torch.equal(output[valid].double().nan_to_num(77), expected.nan_to_num(77))
        assert (output[~valid] == 0).all()
        gradient = pool_gradient(emulator, grad, winner, boxes, x, scale)
        torch.testing.assert_close(
            gradient.double(), expected_gradient, rtol=TOLERANCE[x.dtype], atol=10 * TOLERANCE[x.dtype]
        )
        if first is None:
            first = winner, gradient
        assert torch.equal(winner.long(), first[0].long())
        assert torch.equal(gradient, first[1])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_roi_pool(emulator: Emulator, dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = make_map((3, 40, 13, 13), dtype, layout)
    check_roi_pool(emulator, x, make_boxes(20, 3, 208, 208), (6, 6), 1 / 16)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 129])
def test_roi_pool_channels(emulator: Emulator, channels: int, layout: torch.memory_format) -> None:
    torch.manual_seed(channels)
    x = make_map((2, channels, 5, 7), torch.float32, layout)
    check_roi_pool(emulator, x, make_boxes(5, 2, 5, 7), (2, 3), 1.0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 1000), (1000, 1), (33, 32), (31, 129), (15, 17), (16, 16), (257, 256)]
)
def test_roi_pool_maps(emulator: Emulator, height: int, width: int, layout: torch.memory_format) -> None:
    """Every winner type, maps that fit a tile and maps that need many."""
    torch.manual_seed(height)
    x = make_map((2, 3, height, width), torch.float32, layout)
    check_roi_pool(emulator, x, make_boxes(6, 2, height, width), (3, 2), 1.0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 33), (31, 1), (7, 7), (9, 9), (17, 16)])
def test_roi_pool_sizes(emulator: Emulator, size: tuple[int, int], layout: torch.memory_format) -> None:
    torch.manual_seed(size[1])
    x = make_map((2, 9, 13, 11), torch.float32, layout)
    check_roi_pool(emulator, x, make_boxes(7, 2, 13, 11), size, 1.0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 31, 33, 257, 1000])
def test_roi_pool_box_counts(emulator: Emulator, count: int, layout: torch.memory_format) -> None:
    """Up to more boxes than one round of a block's search for its image's boxes, by several warps."""
    torch.manual_seed(count)
    x = make_map((4, 70, 3, 3), torch.float32, layout)
    check_roi_pool(emulator, x, make_boxes(count, 4, 3, 3), (1, 1), 1.0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64])
def test_roi_pool_hostile_boxes(
    emulator: Emulator, box_dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """A box with a NaN or a batch index out of range pools to zero and sends no gradient."""
    torch.manual_seed(1)
    x = make_map((2, 8, 9, 9), torch.float32, layout)
    boxes = make_boxes(12, 2, 9, 9, box_dtype)
    nan, inf = float("nan"), float("inf")
    boxes[0, 0], boxes[1, 0], boxes[2, 0], boxes[3, 0] = -1, 2, nan, 1e30
    boxes[4, 1], boxes[5, 2], boxes[6, 3], boxes[7, 4] = nan, nan, nan, nan
    boxes[8, 1], boxes[8, 3], boxes[9, 4], boxes[10, 2], boxes[11, 3] = -inf, inf, 1e30, -1e30, -inf
    check_roi_pool(emulator, x, boxes, (3, 3), 1.0, valid=torch.arange(12) >= 8)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_roi_pool_special_values(emulator: Emulator, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """NaN cells are ignored unless they fill the bin; the first of equal cells wins."""
    x = torch.zeros(1, 8, 2, 4)
    nan, inf = float("nan"), float("inf")
    x[0, :, 0] = torch.tensor([nan, 1.0, nan, nan])
    x[0, :, 1] = torch.tensor([1.0, nan, nan, nan])
    x[0, 1::2, 0, :2], x[0, 1::2, 1, :2] = torch.tensor([nan, -inf]), torch.tensor([-inf, nan])
    x = x.to(dtype).contiguous(memory_format=layout)
    output, winner = pool(emulator, x, torch.tensor([[0.0, 0, 0, 3, 1]]), (1, 2), 1.0)
    assert output[0, 0::2, 0, 0].tolist() == [1.0] * 4
    assert output[0, 1::2, 0, 0].tolist() == [-inf] * 4
    assert output[0, :, 0, 1].isnan().all()
    assert winner[0, :, 0, 0].tolist() == [1] * 8
    assert winner[0, :, 0, 1].tolist() == [2] * 8


def test_roi_pool_marks_empty_bins(emulator: Emulator) -> None:
    for height, width, mark in [(3, 5, 255), (16, 16, 65535), (256, 256, 2**31 - 1)]:
        x = torch.ones(1, 4, height, width)
        output, winner = pool(emulator, x, torch.tensor([[0.0, -9, -9, -5, -5]]), (2, 2), 1.0)
        assert (output == 0).all()
        assert (winner.long() == mark).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_roi_pool_unaligned(emulator: Emulator, layout: torch.memory_format) -> None:
    """Memory that starts between 16-byte boundaries."""
    torch.manual_seed(2)
    x = make_map((2, 16, 7, 8), torch.float32, layout)
    storage = torch.empty(x.numel() + 1)[1:]
    shifted = storage.as_strided(x.shape, x.stride(), 1).copy_(x)
    assert shifted.data_ptr() % 16 != 0
    check_roi_pool(emulator, shifted, make_boxes(6, 2, 7, 8), (2, 2), 1.0)


def test_roi_pool_without_winner(emulator: Emulator) -> None:
    x = make_map((1, 8, 6, 6), torch.float32, torch.contiguous_format)
    boxes = make_boxes(4, 1, 6, 6)
    output = unwritten((4, 8, 2, 2), x.dtype, torch.contiguous_format)
    emulator.call("roi_pool_forward", output, torch.empty(0, dtype=torch.uint8), x, boxes, 1.0)
    assert torch.equal(output, reference.roi_pool(x, boxes, (2, 2), 1.0))


def test_roi_pool_rejects(emulator: Emulator) -> None:
    x, boxes, output = torch.zeros(1, 2, 4, 4), torch.zeros(3, 5), torch.zeros(3, 2, 2, 2)
    empty = torch.empty(0, dtype=torch.uint8)
    for arguments, message in [
        ((output, empty, x[0], boxes), r"expected shape \[N, C, H, W\]"),
        ((output, empty, x, boxes[:, :4]), r"expected shape \[K, 5\]"),
        ((output.double(), empty, x, boxes), "expected dtype float32"),
        ((output[:2], empty, x, boxes), r"expected shape \[K, C, PH, PW\]"),
        ((output, empty, x[..., ::2], boxes), "contiguous or channels_last"),
        ((output, output.int(), x, boxes), "expected dtype uint8"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            emulator.call("roi_pool_forward", *arguments, 1.0)


# --- multiple-instance learning ---------------------------------------------------------------------------


def check_mil(
    emulator: Emulator, scores: Tensor, logits: Tensor, offsets: Tensor | None, r: float = 1.5
) -> None:
    """Both aggregations, forward and backward, in two schedules."""
    bags = scores.shape[0] if offsets is None else len(offsets) - 1
    shape = (bags, scores.shape[-1])
    statistic = torch.float64 if scores.dtype == torch.float64 else torch.float32
    no_offsets = torch.empty(0, dtype=torch.int64)
    native_offsets = no_offsets if offsets is None else offsets
    grad = torch.randn(shape[1]).to(scores.dtype).expand(shape)  # stride 0, as a sum's gradient has

    def new(size: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
        return unwritten(size, dtype, torch.contiguous_format)

    leaves = scores.double().requires_grad_(), logits.double().requires_grad_()
    expected = [reference.mil_aggregate(*leaves, offsets), reference.mil_logsumexp(leaves[0], offsets, r)]
    expected += torch.autograd.grad(expected[0], leaves, grad.double(), retain_graph=True)
    expected += torch.autograd.grad(expected[1], leaves[0], grad.double())

    first: list[Tensor] | None = None
    for device in (LARGE, LARGE_OTHER_ORDER):
        emulator.configure(device)
        output, mean = new(shape, scores.dtype), new(shape, scores.dtype)
        peak, total = new(shape, statistic), new(shape, statistic)
        grad_scores, grad_logits, grad_mean = (new(scores.shape, scores.dtype) for _ in range(3))
        emulator.call("mil_aggregate_forward", output, peak, total, scores, logits, native_offsets)
        statistics = (output, peak, total, native_offsets)
        emulator.call("mil_aggregate_backward", grad_scores, grad_logits, grad, scores, logits, *statistics)
        emulator.call("mil_logsumexp_forward", mean, peak, total, scores, native_offsets, r)
        emulator.call("mil_logsumexp_backward", grad_mean, grad, scores, peak, total, native_offsets, r)
        results = [output, mean, grad_scores, grad_logits, grad_mean]
        for result, want in zip(results, expected, strict=True):
            tolerance = TOLERANCE[scores.dtype]
            torch.testing.assert_close(
                result.double(), want, rtol=tolerance, atol=4 * tolerance, equal_nan=True
            )
        first = first or results
        for result, again in zip(results, first, strict=True):
            assert torch.equal(result.nan_to_num(77), again.nan_to_num(77))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 19, 17), (2, 33, 64), (1, 1000, 1), (2, 5, 129)], ids=str)
def test_mil_dense(emulator: Emulator, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check_mil(emulator, torch.randn(shape).to(dtype), (3 * torch.randn(shape)).to(dtype), None)


@pytest.mark.parametrize("classes", [1, 31, 32, 33, 65, 1000])
def test_mil_classes(emulator: Emulator, classes: int) -> None:
    torch.manual_seed(classes)
    check_mil(emulator, torch.randn(2, 3, classes), torch.randn(2, 3, classes), None)


@pytest.mark.parametrize("instances", [1, 31, 32, 33, 129, 1000])
def test_mil_instances(emulator: Emulator, instances: int) -> None:
    torch.manual_seed(instances)
    check_mil(emulator, torch.randn(2, instances, 4), torch.randn(2, instances, 4), None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [5, 16])
def test_mil_ragged(emulator: Emulator, classes: int, dtype: torch.dtype) -> None:
    """Bags of every length from none to many, also first and last."""
    torch.manual_seed(classes)
    offsets = torch.tensor([0, 0, 1, 1, 1, 4, 37, 37, 166, 500, 500])
    scores, logits = (torch.randn(500, classes).to(dtype) for _ in range(2))
    check_mil(emulator, scores, logits, offsets)


def test_mil_shapes_without_elements(emulator: Emulator) -> None:
    for shape in [(0, 3, 4), (2, 0, 4), (2, 3, 0)]:
        check_mil(emulator, torch.randn(shape), torch.randn(shape), None)
    check_mil(emulator, torch.randn(0, 4), torch.randn(0, 4), torch.tensor([0, 0, 0]))


def test_mil_strided(emulator: Emulator) -> None:
    """Scores and logits as halves of one linear layer's output, and turned around: no copy is needed."""
    torch.manual_seed(3)
    for classes in (6, 8):
        both = torch.randn(2, 11, 2 * classes)
        check_mil(emulator, *both.chunk(2, dim=-1), None)
        check_mil(emulator, *both.transpose(0, 1).chunk(2, dim=-1), None)
        check_mil(emulator, *both[0].chunk(2, dim=-1), torch.tensor([0, 4, 11]))
        check_mil(emulator, *both[0].T.chunk(2, dim=0), torch.tensor([0, 2, classes]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mil_large_and_infinite_logits(emulator: Emulator, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    scores = torch.randn(5, 40, 3).to(dtype)
    logits = torch.randn(5, 40, 3).to(dtype)
    logits[0] *= 1e4
    logits[1, ::2] = -float("inf")
    logits[2] = -float("inf")
    logits[3, 7, 1] = float("inf")
    logits[4, 7, 1] = float("nan")
    check_mil(emulator, scores, logits, None)


def test_mil_wrong_offsets_stay_inside(emulator: Emulator) -> None:
    """Offsets cannot be checked on the device; wrong ones must not lead outside the tensors."""
    scores = torch.ones(9, 4)
    output, peak, total = (unwritten((3, 4), torch.float32, torch.contiguous_format) for _ in range(3))
    for offsets in ([0, 99, 3, 2**62], [-5, 2, -(2**62), 9], [4, 4, 5, 6]):
        bounds = torch.tensor(offsets)
        emulator.call("mil_aggregate_forward", output, peak, total, scores, scores, bounds)
        assert ((output == 0) | (output == 1)).all()
        grads = [unwritten((9, 4), torch.float32, torch.contiguous_format) for _ in range(2)]
        emulator.call("mil_aggregate_backward", *grads, output, scores, scores, output, peak, total, bounds)
        assert all(grad.isfinite().all() for grad in grads)
