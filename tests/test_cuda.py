"""What only a GPU can show of the CUDA kernels: streams, graphs, devices, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avfast.ops import mil_aggregate, mil_logsumexp, roi_pool

pytestmark = pytest.mark.cuda

Case = tuple[Callable[..., Tensor], list[Tensor]]  # an operation and the tensors it is differentiated by


def roi_case(layout: torch.memory_format, dtype: torch.dtype, device: str) -> Case:
    x = torch.randn(3, 64, 13, 13).to(dtype).contiguous(memory_format=layout)
    corners = torch.rand(40, 2, 2).sort(dim=1).values * 208
    boxes = torch.cat([torch.randint(0, 3, (40, 1)), corners.flatten(1)], dim=1).to(device)
    return lambda x: roi_pool(x, boxes, 6, 1 / 16), [x.to(device)]


def mil_case(shape: tuple[int, ...], offsets: list[int] | None, device: str) -> Case:
    bounds = None if offsets is None else torch.tensor(offsets, device=device)
    return lambda s, z: mil_aggregate(s, z, bounds), [torch.randn(shape).to(device) for _ in range(2)]


def logsumexp_case(device: str) -> Case:
    return lambda s: mil_logsumexp(s, r=2.0), [torch.randn(4, 100, 17).to(device)]


CASES: dict[str, Callable[[str], Case]] = {
    "roi_pool": lambda device: roi_case(torch.contiguous_format, torch.float32, device),
    "roi_pool channels_last": lambda device: roi_case(torch.channels_last, torch.float32, device),
    "roi_pool half": lambda device: roi_case(torch.channels_last, torch.float16, device),
    "mil_aggregate": lambda device: mil_case((4, 100, 17), None, device),
    "mil_aggregate ragged": lambda device: mil_case((300, 16), [0, 0, 7, 299, 300], device),
    "mil_logsumexp": logsumexp_case,
}


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest) -> Callable[[str], Case]:
    def seeded(device: str) -> Case:
        torch.manual_seed(0)
        return CASES[request.param](device)

    return seeded


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, want in zip(results, expected, strict=True):
        assert torch.equal(result, want)


def test_side_stream(make: Callable[[str], Case]) -> None:
    """The inputs are written late on the side stream: a kernel queued on another one would read too early."""
    function, inputs = make("cuda")
    expected = forward_and_backward(function, inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(x) for x in inputs]
        torch.cuda._sleep(100_000_000)
        for x, value in zip(late, inputs, strict=True):
            x.copy_(value)
        results = forward_and_backward(function, late)
    stream.synchronize()
    assert_same(results, expected)


def test_graph_of_forward_and_backward(make: Callable[[str], Case]) -> None:
    function, inputs = make("cuda")
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            forward_and_backward(function, inputs)
    torch.cuda.current_stream().wait_stream(warm_up)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = forward_and_backward(function, inputs)
    for x in inputs:
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert_same(results, forward_and_backward(function, inputs))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device(make: Callable[[str], Case]) -> None:
    """Tensors on a device that is not the current one, which stays current."""
    torch.cuda.set_device(0)
    expected = forward_and_backward(*make("cuda:0"))
    results = forward_and_backward(*make("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(x.device == torch.device("cuda:1") for x in results)
    assert_same([x.cpu() for x in results], [x.cpu() for x in expected])


def test_same_bits_in_every_run(make: Callable[[str], Case]) -> None:
    function, inputs = make("cuda")
    expected = forward_and_backward(function, inputs)
    for _ in range(20):
        assert_same(forward_and_backward(function, inputs), expected)


def test_roi_pool_gives_the_bits_of_the_cpu() -> None:
    """Both devices sum a cell's gradients in the order of boxes and bins."""
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        on_cpu = forward_and_backward(*roi_case(layout, torch.float32, "cpu"))
        torch.manual_seed(1)
        on_cuda = forward_and_backward(*roi_case(layout, torch.float32, "cuda"))
        assert_same([x.cpu() for x in on_cuda], on_cpu)
