"""Heads, fusion and loss: the formulas on numbers by hand, empty bags, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avfast.models.heads import LogSumExpHead, Stream, TwoStreamHead, WSDDNHead, bag_softmax
from avfast.models.systems import fuse, hinge_losses


def test_head_by_hand() -> None:
    """One feature x, cls = x, loc = 0 or x: a bag of (1, 3) averages to 2, or to its softmax mean."""
    head = TwoStreamHead(1, 2)
    with torch.no_grad():
        head.classify.weight.fill_(1)
        head.classify.bias.zero_()
        head.localise.weight.copy_(torch.tensor([[0.0], [1.0]]))
        head.localise.bias.fill_(5)  # constant over instances: no effect
    stream = head(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 2, 2, 3]))
    share = 1 / (1 + torch.e**2)
    expected = torch.tensor([[2.0, share + 3 * (1 - share)], [0.0, 0.0], [7.0, 7.0]])
    torch.testing.assert_close(stream.phi, expected)
    torch.testing.assert_close(stream.instances[0], torch.tensor([0.5, share]))


def by_hand(head: nn.Module, values: list[list[float]]) -> Stream:
    """The stream of a head with one feature x and two classes, cls = (x, -x) and loc = (0, x)."""
    with torch.no_grad():
        for name, weight in (("classify", [[1.0], [-1.0]]), ("localise", [[0.0], [1.0]])):
            if hasattr(head, name):
                getattr(head, name).weight.copy_(torch.tensor(weight))
                getattr(head, name).bias.zero_()
    offsets = torch.tensor([0, *[len(bag) for bag in values]]).cumsum(0)
    return head(torch.tensor([x for bag in values for x in bag])[:, None], offsets)


def test_other_heads_by_hand() -> None:
    bags, log, e = [[0.0, 2.0], [], [1.0]], math.log, math.e
    smooth = by_hand(LogSumExpHead(1, 2), bags)
    expected = [log((1 + e**2) / 2), log((1 + e**-2) / 2)], [0, 0], [1, -1]
    torch.testing.assert_close(smooth.phi, torch.tensor(expected))
    assert smooth.evidence.tolist() == smooth.instances.tolist() == [[0, 0], [2, -2], [1, -1]]
    plain = by_hand(TwoStreamHead(1, 2, instance_softmax=False), bags)
    torch.testing.assert_close(plain.phi, torch.tensor([[0.0, (0 - 4) / 2], [0, 0], [0, -1]]))
    torch.testing.assert_close(plain.instances, torch.tensor([[0.0, 0], [0, -2], [0, -1]]))
    detector = by_hand(WSDDNHead(1, 2), bags)
    sure = 1 / (1 + e**-4)  # softmax of (2, -2) over classes
    share = 1 / (1 + e**-1)  # of (0, 2) over regions at temperature 2
    expected = [(0.5 + sure) / 2, 0.5 * (1 - share) + (1 - sure) * share]
    torch.testing.assert_close(detector.phi[0], torch.tensor(expected))


sizes = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@settings(deadline=None)
@given(sizes, st.floats(0, 1e4), st.integers(0, 2**31))
def test_instances_sum_to_phi(counts: list[int], spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(counts), 3, generator=generator) * spread
    offsets = torch.tensor([0, *counts]).cumsum(0)
    stream = TwoStreamHead(3, 2)(features, offsets)
    bags = [part.sum(0) for part in stream.instances.split(counts)]
    torch.testing.assert_close(torch.stack(bags), stream.phi, rtol=1e-4, atol=1e-5 * (1 + spread))
    means = [part.mean(0) if len(part) else torch.zeros(2) for part in stream.evidence.split(counts)]
    torch.testing.assert_close(torch.stack(means), stream.phi, rtol=1e-4, atol=1e-5 * (1 + spread))


def test_bag_softmax_is_softmax_per_bag() -> None:
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weights = bag_softmax(logits, torch.tensor([0, 3, 3, 7]))
    expected = torch.cat([logits[:3].softmax(0), logits[3:].softmax(0)])
    torch.testing.assert_close(weights, expected)
    assert torch.autograd.gradcheck(lambda x: bag_softmax(x, torch.tensor([0, 3, 3, 7])), logits)


@pytest.mark.parametrize("bad", [[0, 2], [1, 3], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        TwoStreamHead(2, 2)(torch.zeros(3, 2), torch.tensor(bad))


def test_head_compiles_whole_with_any_sizes() -> None:
    head = TwoStreamHead(5, 3)
    compiled = torch.compile(
        lambda features, offsets: head(features, offsets).phi,
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for counts in ([2, 0, 3], [1, 4], [6]):
        features = torch.randn(sum(counts), 5, requires_grad=True)
        offsets = torch.tensor([0, *counts]).cumsum(0)
        phi = compiled(features, offsets)
        torch.testing.assert_close(phi, head(features, offsets).phi)
        (gradient,) = torch.autograd.grad(phi.square().sum(), features)
        (expected,) = torch.autograd.grad(head(features, offsets).phi.square().sum(), features)
        torch.testing.assert_close(gradient, expected)


def stream_of(phi: list[list[float]]) -> Stream:
    values = torch.tensor(phi)
    return Stream(values, values, torch.arange(len(values) + 1), values)


def test_fusion_adds_normalised_scores_and_nothing_for_an_empty_bag() -> None:
    streams = {"visual": stream_of([[3.0, 4.0], [0.0, 0.0]]), "audio": stream_of([[0.0, -2.0], [0.0, 0.0]])}
    normalised = fuse(streams, l2_normalise=True)
    torch.testing.assert_close(normalised.scores, torch.tensor([[0.6, -0.2], [0.0, 0.0]]))
    torch.testing.assert_close(normalised.views["visual"][0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(normalised.evidence("visual")[0], torch.tensor([0.6, 0.8]))
    assert fuse(streams, l2_normalise=False).scores[0].tolist() == [3, 2]


def test_hinge_loss_by_hand() -> None:
    """Terms 1 - 0.5, 1 + 2, 1 - 1 and max(0, 1 - 3)."""
    scores, targets = torch.tensor([[0.5, 2.0], [-1.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert hinge_losses(scores, targets).tolist() == [[0.5, 3], [0, 0]]
    assert hinge_losses(scores, torch.full((2, 2), 0.25)).tolist() == [[0.125 + 1.125, 2.25], [0.5, 3]]
