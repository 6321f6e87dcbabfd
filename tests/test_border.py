"""The border to the native module: each danger of reading tensors through DLPack's C exchange API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from avfast.native import native
from avfast.ops import mil_aggregate, roi_pool

BOXES = torch.tensor([[0.0, 0, 0, 3, 3]])


def forward(output: object, winner: object, x: object, boxes: object = BOXES) -> None:
    native().roi_pool_forward(output, winner, x, boxes, 1.0)


def arguments() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty((1, 2, 2, 2)), torch.empty(0, dtype=torch.uint8), torch.randn((1, 2, 4, 4))


def test_fake_tensor_is_not_a_null_pointer() -> None:
    output, winner, x = arguments()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.empty((1, 2, 4, 4))
    with pytest.raises(TypeError, match=r"input: .*(fake or meta|torch.Tensor)"):
        forward(output, winner, fake)
    with pytest.raises((TypeError, RuntimeError, BufferError)):
        forward(output, winner, x.to("meta"))


@pytest.mark.parametrize("argument", ["output", "winner", "input", "boxes"])
def test_other_objects_are_refused_by_name(argument: str) -> None:
    tensors = dict(zip(("output", "winner", "input", "boxes"), (*arguments(), BOXES), strict=True))
    for other in (None, 3, [0.0]):
        with pytest.raises(TypeError, match=f"{argument}: expected a torch.Tensor .* or a NumPy array, got"):
            forward(*{**tensors, argument: other}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_numpy_arrays_are_read_in_place(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = torch.randn((2, 3, 5, 4)).to(dtype).to(memory_format=layout)
    boxes = torch.tensor([[1.0, 0, 0, 3, 3], [0, 1, 1, 2, 4]])
    output = torch.empty((2, 3, 2, 2), dtype=dtype, memory_format=layout).numpy()
    winner = torch.empty((2, 3, 2, 2), dtype=torch.uint8, memory_format=layout).numpy()
    forward(output, winner, x.numpy(), boxes.to(torch.promote_types(dtype, torch.float32)).numpy())
    assert np.array_equal(output, roi_pool(x, boxes.to(dtype), 2).numpy())


def test_numpy_arrays_that_cannot_be_read_in_place_are_refused() -> None:
    output, winner, x = (tensor.numpy() for tensor in arguments())
    boxes = BOXES.numpy()
    fixed = x.copy()
    fixed.flags.writeable = False
    shifted = np.frombuffer(bytearray(x.nbytes + 1), np.float32, offset=1).reshape(x.shape)
    bytes_of = memoryview(bytearray(x.nbytes + 1))[1:]
    for wrong, error, message in (
        (fixed, ValueError, "input: expected a writable, aligned array"),
        (bytes_of.cast("f", x.shape), ValueError, "input: expected a writable, aligned array"),
        (shifted, TypeError, "input: dtype not supported"),
        (x.astype(">f4"), TypeError, "input: dtype not supported"),
        (np.zeros((1,) * 9, np.float32), ValueError, "input: expected at most 8 dimensions, got 9"),
        (x[..., ::-1], ValueError, "input: expected a contiguous or channels_last tensor"),
        (b"bytes", ValueError, "input: expected a writable, aligned array"),
    ):
        with pytest.raises(error, match=message):
            forward(output, winner, wrong, boxes)


def test_negative_view_reaches_the_kernel_resolved() -> None:
    x = torch.randn((1, 2, 4, 4))
    negative = torch._neg_view(x)
    assert negative.is_neg()
    assert torch.equal(roi_pool(negative, BOXES, 2), roi_pool(-x, BOXES, 2))


def test_conjugate_view_reaches_the_kernel_resolved() -> None:
    z = torch.randn((1, 2, 4, 4), dtype=torch.complex64)
    imaginary = z.conj().imag
    assert imaginary.is_neg()
    assert torch.equal(roi_pool(imaginary, BOXES, 2), roi_pool(-z.imag.contiguous(), BOXES, 2))
    scores = torch.view_as_real(z).flatten(0, 1).select(-1, 0)
    assert torch.equal(
        mil_aggregate(scores, z.conj().imag[0]), mil_aggregate(scores, -z.imag[0].contiguous())
    )


def test_wrong_dtypes() -> None:
    output, winner, x = arguments()
    with pytest.raises(TypeError, match="output: expected dtype float32 as input, got float64"):
        forward(output.double(), winner, x)
    with pytest.raises(TypeError, match="boxes: expected dtype float32, float64, got float16"):
        forward(output, winner, x, BOXES.half())
    with pytest.raises(TypeError, match="input: dtype not supported"):
        forward(output, winner, x.to(torch.complex64))
    with pytest.raises(TypeError, match="winner: expected dtype uint8, got int32"):
        forward(output, torch.empty((1, 2, 2, 2), dtype=torch.int32), x)


def test_wrong_shapes_and_strides() -> None:
    output, winner, x = arguments()
    with pytest.raises(ValueError, match=r"output: expected shape \[K, C, PH, PW\] = .* got \[1, 3, 2, 2\]"):
        forward(torch.empty((1, 3, 2, 2)), winner, x)
    with pytest.raises(ValueError, match="input: expected a contiguous or channels_last tensor"):
        forward(output, winner, x.transpose(2, 3))
    with pytest.raises(ValueError, match="boxes: expected a contiguous tensor"):
        forward(output, winner, x, BOXES.repeat(1, 2)[:, ::2])
    with pytest.raises(ValueError, match="input: expected at most 8 dimensions, got 9"):
        forward(output, winner, torch.zeros((1,) * 9))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_wrong_device() -> None:
    x = torch.randn((1, 2, 4, 4), device="cuda")
    with pytest.raises(TypeError, match="boxes: expected device cuda:0 as input, got cpu"):
        roi_pool(x, BOXES, 2)
    with pytest.raises(TypeError, match="expected device"):
        roi_pool(x.cpu(), BOXES.cuda(), 2)


def test_missing_native_module_says_how_to_build_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['avfast._C'] = None\n"
        "import torch, avfast.ops\n"  # importing works; the first call tells
        "avfast.ops.mil_logsumexp(torch.zeros(1, 2, 3))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 1
    assert "ImportError" in result.stderr and "pip install -e ." in result.stderr


def test_ops_need_torch_alone() -> None:
    program = (
        "import sys, avfast.ops\n"
        "heavy = {'cv2', 'av', 'soundfile', 'matplotlib', 'joblib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


def _train_one_step(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    model = torch.nn.parallel.DistributedDataParallel(conv)
    x = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(rank))
    pooled = roi_pool(model(x), torch.tensor([[0.0, 0, 0, 7, 7], [1, 2, 2, 5, 5]]), 2).flatten(2).mT
    mil_aggregate(pooled, pooled).sum().backward()
    torch.save(conv.weight.grad, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    mp.spawn(_train_one_step, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second) and first.any()
