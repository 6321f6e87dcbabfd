"""CVSSP's gated CRNN and its fusion: layers, heads, statistics."""

from __future__ import annotations

import pytest
import torch
from small_systems import CLASSES, clip_for, mixed_for, small

from avfast.data.batch import collate
from avfast.models import ModelConfig, build
from avfast.models.gated_crnn import GatedCRNN
from avfast.models.systems import log_losses


@pytest.mark.parametrize(("head", "times"), [("tagging", (240, 120, 60, 30, 30)), ("detection", (240,) * 5)])
def test_layers_of_the_published_gated_crnn(head: str, times: tuple[int, ...]) -> None:
    """64 bands are halved after each pair of blocks; 1,264,273 parameters, 1,268,642 with attention."""
    system = build(ModelConfig.from_preset("paper", system="gated-crnn", crnn_head=head), 17).eval()
    (network,) = system.members
    shapes: list[tuple[int, ...]] = []
    for layer in [*network.blocks, network.conv]:
        layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    frames = system.front_end(torch.randn(160_000))
    stream = network(frames, torch.tensor([0, len(frames)]))
    pairs = [(64, time, 64 >> pair) for pair, time in enumerate(times[:4])]
    assert shapes == [shape for pair in pairs for shape in (pair, pair)] + [(256, times[4], 4)]
    assert stream.scores.shape == (240, 17) and stream.phi.shape == (1, 17)
    blocks = (1 * 9 * 128 + 2 * 128) + 7 * (64 * 9 * 128 + 2 * 128)
    convolution, gru = 64 * 9 * 256 + 256, 2 * (3 * 128 * (256 + 128) + 2 * 3 * 128)
    dense = 256 * 17 + 17
    expected = blocks + convolution + 2 * gru + dense * (2 if head == "detection" else 1)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert expected == {"tagging": 1_264_273, "detection": 1_268_642}[head]


def test_heads_of_the_gated_crnn() -> None:
    """A clip is the mean of its frames' p, or sum p * a / sum a with attention a."""
    frames, offsets = torch.randn(19, 64), torch.tensor([0, 11, 11, 19])
    tagging = GatedCRNN(CLASSES, 4, "tagging", augment=False).eval()
    stream = tagging(frames, offsets)
    means = torch.stack([stream.scores[:11].mean(0), torch.zeros(CLASSES), stream.scores[11:].mean(0)])
    torch.testing.assert_close(stream.phi, means)
    assert torch.equal(stream.evidence, stream.scores)
    assert torch.equal(stream.scores[:8], stream.scores[:1].expand(8, -1))  # one step for eight frames
    detection = GatedCRNN(CLASSES, 4, "detection", augment=False).eval()
    stream = detection(frames, offsets)
    attention = detection.attend(detection.steps(frames, [11, 0, 8])).softmax(1)[:11]
    expected = (stream.scores[:11] * attention).sum(0) / attention.sum(0)
    torch.testing.assert_close(stream.phi[0], expected)


def test_bands_are_standardised_by_the_training_clips() -> None:
    system = small("gated-crnn")
    batches = [collate([clip_for(system, seed, segments=3 * seed)]) for seed in range(4)]
    system.fit_statistics(batches, lambda sums: sums)
    frames = torch.cat([batch.audio for batch in batches])
    torch.testing.assert_close(system.norm(frames).mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(system.norm(frames).std(0, unbiased=False), torch.ones(64))
    assert {"norm.mean", "norm.deviation"} <= system.state_dict().keys()
    before = system.norm.mean.clone()
    system.fit_statistics([batches[0]], lambda sums: sums)  # no sound at all
    assert torch.equal(system.norm.mean, before)


def test_fusion_is_the_mean_of_networks_that_learn_alone() -> None:
    system = small("cvssp-fusion", crnn_members=3)
    batch = mixed_for(system)
    output = system(batch)
    alone = torch.stack(
        [member(system.norm(batch.audio), batch.segment_offsets).phi for member in system.members]
    )
    torch.testing.assert_close(output.scores, alone.mean(0))
    losses = torch.stack([log_losses(one, batch.targets) for one in alone])
    torch.testing.assert_close(system.losses(output, batch.targets), losses.mean(0))
