"""Heads and systems: the formula on numbers by hand, empty bags, gradients, determinism, configuration."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avfast.data.batch import Batch, Sample, collate
from avfast.errors import InputError
from avfast.models import SYSTEMS, ModelConfig, System, build
from avfast.models.augment import SpecAugment, flip, join_bags, kept, random_partners
from avfast.models.gated_crnn import GatedCRNN
from avfast.models.heads import LogSumExpHead, Stream, TwoStreamHead, WSDDNHead, bag_softmax
from avfast.models.systems import fuse, hinge_losses, log_losses

CLASSES = 4
SIDE = 32


def sample(
    seed: int, frames: int = 2, regions: int = 3, segments: int = 2, audio: tuple[int, ...] = (96, 64)
) -> Sample:
    """A clip of noise; ``regions`` per frame, segments of shape ``audio``."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(frames * regions, 2, 2, generator=generator).sort(dim=1).values * SIDE
    return Sample(
        clip=f"clip{seed}",
        frames=torch.randint(0, 256, (frames, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        frame_times=torch.arange(frames).float(),
        boxes=corners.flatten(1),
        box_frames=torch.arange(frames).repeat_interleave(regions),
        objectness=torch.rand(frames * regions, generator=generator),
        frame_size=(64, 48) if frames else (0, 0),
        audio=torch.randn(segments, *audio, generator=generator),
        segments=torch.zeros(segments, 2),
        target=torch.randint(0, 2, (CLASSES,), generator=generator).float(),
    )


@pytest.fixture
def system() -> System:
    """The small system, in evaluation mode."""
    torch.manual_seed(0)
    return build(ModelConfig.from_preset("toy", image_size=SIDE), CLASSES).eval()


def small(name: str, **changes: object) -> System:
    """Any system at its smallest, in evaluation mode."""
    torch.manual_seed(0)
    settings = {"image_size": SIDE, "crnn_channels": 4, **changes}
    return build(ModelConfig.from_preset("toy", system=name, **settings), CLASSES).eval()


def clip_for(system: System, seed: int, **sizes: int) -> Sample:
    """A clip of noise with the audio instances that the system takes."""
    audio = system.front_end(torch.zeros(16_000)).shape[1:]
    return sample(seed, **sizes, audio=tuple(audio))


def mixed_for(system: System) -> Batch:
    """Clips with both modalities, with one only, and with none."""
    kinds = [{"segments": 11}, {"frames": 0}, {"segments": 0}, {"frames": 0, "segments": 0}, {"regions": 0}]
    return collate([clip_for(system, seed, **kind) for seed, kind in enumerate(kinds)])


@pytest.fixture
def mixed(system: System) -> Batch:
    """As ``mixed_for``, for the small two-stream system."""
    return mixed_for(system)


# The head


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


# Augmentation


def test_masks_are_runs_of_limited_length() -> None:
    torch.manual_seed(0)
    masks = kept(2000, 12, 5, torch.device("cpu"))
    removed = (~masks).sum(1)
    assert removed.min() == 0 and removed.max() == 5
    assert ((~masks).int().diff(dim=1).abs().sum(1) <= 2).all()
    assert (~masks).any(0).all()


def test_augmentation_masks_in_training_only() -> None:
    torch.manual_seed(0)
    examples = torch.rand(50, 96, 64)
    augment = SpecAugment(bands=10, frames=20, gain=0.0)
    masked = augment(examples)
    changed = masked != examples
    torch.testing.assert_close(masked[changed], examples.mean((1, 2), True).expand_as(examples)[changed])
    assert (changed.all(1).sum(1) <= 10).all() and (changed.all(2).sum(1) <= 20).all()
    assert changed.any() and not changed.all((1, 2)).any()
    assert torch.equal(augment.eval()(examples), examples)
    levels = SpecAugment(bands=0, frames=0, gain=0.5)(examples)
    added = (levels - examples)[:, 0, 0]
    torch.testing.assert_close(levels, examples + added[:, None, None])
    assert 0.3 < added.std() < 0.7


def test_mirrored_regions_lie_in_mirrored_frames(system: System) -> None:
    batch = mixed_for(system)
    mirrored = flip(batch, torch.tensor([True, False, False, False, True]))
    first = batch.rois[:, 0] < 2  # the first clip's; the last clip has frames without regions
    expected = batch.rois[first].clone()
    expected[:, [1, 3]] = SIDE - batch.rois[first][:, [3, 1]]
    torch.testing.assert_close(mirrored.rois[first], expected)
    assert torch.equal(mirrored.frames[:2], batch.frames[:2].flip(-1))
    assert torch.equal(mirrored.rois[~first], batch.rois[~first])
    assert torch.equal(mirrored.frames[2:], batch.frames[2:])
    assert mirrored.clips == ["clip0 (mirrored)", "clip1", "clip2", "clip3", "clip4 (mirrored)"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_joined_bags_score_as_one_clip_with_both_contents(name: str) -> None:
    system = small(name)
    batch = mixed_for(system)
    pooled = system.pool_regions(batch.frames, batch.rois) if system.frozen_regions else None
    joined, joined_pooled = join_bags(batch, pooled, torch.tensor([0, 0, 1, 3, 2]))
    before, after = system(batch, pooled), system(joined, joined_pooled)
    torch.testing.assert_close(after.scores[[0, 3]], before.scores[[0, 3]])
    if "visual" in before.streams:  # clips 1, 2 and 4 have but one picture between them and their partners
        views = before.streams["visual"].phi, after.streams["visual"].phi
        torch.testing.assert_close(views[1][[1, 2, 4]], views[0][[0, 2, 2]])
    assert torch.equal(joined.targets[1], torch.maximum(batch.targets[0], batch.targets[1]))
    counts = batch.segment_offsets.diff()
    assert torch.equal(
        joined.segment_offsets.diff(), counts + counts[[0, 0, 1, 3, 2]] * torch.tensor([0, 1, 1, 0, 1])
    )


def test_partners_are_drawn_for_a_share_of_the_clips() -> None:
    torch.manual_seed(0)
    assert torch.equal(random_partners(9, 0.0), torch.arange(9))
    joined = (random_partners(2000, 0.3) != torch.arange(2000)).float().mean()
    assert 0.25 < joined < 0.35


# Fusion and loss


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


# Systems


@pytest.mark.parametrize("name", SYSTEMS)
def test_output(name: str) -> None:
    system = small(name)
    mixed = mixed_for(system)
    output = system(mixed)
    assert output.scores.shape == (mixed.size, CLASSES)
    assert torch.isfinite(output.scores).all()
    torch.testing.assert_close(sum(output.views.values()), output.scores)
    instances = {"visual": len(mixed.rois), "audio": len(mixed.audio)}
    for modality, stream in output.streams.items():
        assert stream.phi.shape == (mixed.size, CLASSES)
        assert stream.instances.shape == output.evidence(modality).shape == (instances[modality], CLASSES)
        assert (output.views[modality][3] == 0).all()  # the clip without anything
    losses = system.losses(output, mixed.targets)
    assert losses.shape == output.scores.shape and (losses >= 0).all()
    torch.testing.assert_close(system.loss(output, mixed.targets), losses.mean())
    weights = torch.rand_like(losses)
    torch.testing.assert_close(system.loss(output, mixed.targets, weights), (losses * weights).mean())


def test_a_missing_modality_adds_nothing(system: System, mixed: Batch) -> None:
    output = system(mixed)
    assert (output.views["visual"][[1, 3, 4]] == 0).all()
    assert (output.views["audio"][[2, 3]] == 0).all()
    assert (output.scores[3] == 0).all()
    norms = output.views["visual"][[0, 2]].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2))


@pytest.mark.parametrize("missing", [{"frames": 0}, {"segments": 0}, {"frames": 0, "segments": 0}])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_whole_batch_without_a_modality_trains(name: str, missing: dict[str, int]) -> None:
    system = small(name).train()
    batch = collate([clip_for(system, seed, **missing) for seed in range(2)])
    system.loss(system(batch), batch.targets).backward()
    gradients = [parameter.grad for parameter in system.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all(torch.isfinite(value).all() for value in system.state_dict().values())


def test_pooled_regions_stand_in_for_frames(system: System, mixed: Batch) -> None:
    pooled = system.pool_regions(mixed.frames, mixed.rois)
    blind = dataclasses.replace(mixed, frames=mixed.frames[:0])
    assert not pooled.requires_grad
    assert torch.equal(system(blind, pooled).scores, system(mixed).scores)
    assert not system.frozen_regions
    frozen = ModelConfig.from_preset("toy", backbone="efficientnet-lite0", image_size=SIDE)
    assert build(frozen, CLASSES).frozen_regions


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_reach_every_parameter(name: str) -> None:
    system = small(name).train()
    mixed = mixed_for(system)
    system.loss(system(mixed), mixed.targets).backward()
    silent = [n for n, p in system.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A constant over a bag's instances leaves their softmax as it is.
    assert silent == [] or all(name.endswith("localise.bias") for name in silent)


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in SYSTEMS), ("gated-crnn", {"crnn_head": "detection"})]
)
def test_scores_do_not_depend_on_the_other_clips(name: str, changes: dict[str, object]) -> None:
    system = small(name, **changes)
    samples = [clip_for(system, seed, frames=seed, segments=5 * seed + 1) for seed in range(4)]
    together = system(collate(samples)).scores
    alone = torch.cat([system(collate([one])).scores for one in samples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_same_seed_same_step(mixed: Batch) -> None:
    def step() -> Tensor:
        torch.manual_seed(3)
        system = build(ModelConfig.from_preset("toy", image_size=SIDE), CLASSES).train()
        system.loss(system(mixed), mixed.targets).backward()
        return torch.cat([p.grad.flatten() for p in system.parameters() if p.grad is not None])

    assert torch.equal(step(), step())


def test_a_few_steps_fit_a_few_clips() -> None:
    torch.manual_seed(0)
    system = build(ModelConfig.from_preset("toy", image_size=SIDE, dropout=0.0), CLASSES).train()
    batch = collate([sample(seed) for seed in range(4)])
    optimiser = torch.optim.Adam(system.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = system.loss(system(batch), batch.targets)
        loss.backward()
        optimiser.step()
    assert ((system(batch).scores > 0) == batch.targets.bool()).all()


def test_state_dict_round_trip(system: System, mixed: Batch) -> None:
    other = build(system.config, CLASSES).eval()
    other.load_state_dict(system.state_dict())
    assert torch.equal(other(mixed).scores, system(mixed).scores)


def test_sound_goes_from_waveform_to_scores(system: System) -> None:
    waveform = torch.sin(torch.arange(16_000 * 3) * 0.2)
    examples = system.front_end(waveform)
    silent = sample(0, frames=0)
    clip = dataclasses.replace(silent, audio=examples, segments=system.front_end.segments(len(examples)))
    torch.testing.assert_close(system(collate([clip])).scores.norm(), torch.tensor(1.0))


def test_objectness_makes_regions_of_wsddn_louder() -> None:
    system = small("video-wsddn")
    batch = mixed_for(system)
    alike = dataclasses.replace(batch, objectness=torch.zeros_like(batch.objectness))
    features = system.regions(alike, None)
    gain = 1 + 10 * batch.objectness[:, None]
    torch.testing.assert_close(system.regions(batch, None), features * gain)


def test_a_recurrent_segment_knows_its_neighbours_and_no_other_clip() -> None:
    system = small("av-two-stream-rnn")
    batch = collate([clip_for(system, seed, segments=count) for seed, count in enumerate((4, 0, 3))])
    before = system.segments(batch)
    batch.audio[0] += 5
    changed = (system.segments(batch) != before).any(dim=1)
    assert changed.tolist() == [True] * 4 + [False] * 3


# The gated CRNN


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
    system.fit_statistics(batches)
    frames = torch.cat([batch.audio for batch in batches])
    torch.testing.assert_close(system.norm(frames).mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(system.norm(frames).std(0, unbiased=False), torch.ones(64))
    assert {"norm.mean", "norm.deviation"} <= system.state_dict().keys()
    before = system.norm.mean.clone()
    system.fit_statistics([batches[0]])  # no sound at all
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


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("gated-crnn", {"audio_weights": Path("v.pth")}, "v.pth: gated-crnn takes no audio weights"),
        ("audio-two-stream", {"visual_weights": Path("v.pth")}, "takes no visual weights"),
    ],
)
def test_weights_without_a_use_are_refused(name: str, given: dict[str, Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(name).load_pretrained(**{"visual_weights": None, "audio_weights": None, **given})


# Configuration


def test_presets() -> None:
    paper = ModelConfig.from_preset("paper")
    assert (paper.backbone, paper.audio_backbone, paper.proposals) == ("alexnet", "vggish", 10)
    assert (paper.dropout, paper.l2_normalise, paper.train_conv) == (0.5, True, False)
    assert ModelConfig.from_preset("toy").backbone == "toy"


def test_paper_system_is_complete() -> None:
    """AlexNet to fc7, VGGish, its learned layer, and two heads of two linear layers."""
    with torch.device("meta"):
        system = build(ModelConfig.from_preset("paper"), 17)
    heads = 2 * 17 * (4096 + 1) + 2 * 17 * (128 + 1)
    expected = 61_100_840 - 4_097_000 + 72_141_184 + 128 * 129 + heads
    assert sum(parameter.numel() for parameter in system.parameters()) == expected
    learned = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    assert learned == 9216 * 4096 + 4096 + 4096 * 4097 + 128 * 129 + heads


def test_the_image_size_follows_the_backbone() -> None:
    config = ModelConfig.from_preset("toy", backbone="efficientnet-lite0", dropout=None)
    assert config.image_size % 32 == 0 and config.image_size > ModelConfig.from_preset("toy").image_size
    assert config.dropout == 0.5
    assert ModelConfig.from_preset("toy", backbone="alexnet", image_size=224).image_size == 224


def test_config_survives_a_dict() -> None:
    config = ModelConfig.from_preset("paper", proposals=3)
    assert ModelConfig(**dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    "change",
    [
        {"system": "best"},
        {"backbone": "resnet"},
        {"audio_backbone": "ear"},
        {"image_size": 97},
        {"image_size": 0},
        {"proposals": 0},
        {"audio_hop": 0.0},
        {"crnn_members": 0},
        {"dropout": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_values_are_named(change: dict[str, object]) -> None:
    (field,) = change
    with pytest.raises(ValueError, match=f"{field}: expected"):
        ModelConfig.from_preset("toy", **change)


def test_unknown_preset_and_no_classes() -> None:
    with pytest.raises(ValueError, match="preset: expected one of toy, paper"):
        ModelConfig.from_preset("large")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes: expected at least 1"):
        build(ModelConfig.from_preset("toy"), 0)


def test_normalisation_is_a_switch(mixed: Batch) -> None:
    torch.manual_seed(0)
    config = ModelConfig.from_preset("toy", image_size=SIDE, l2_normalise=False)
    output = build(config, CLASSES).eval()(mixed)
    torch.testing.assert_close(output.scores, output.streams["visual"].phi + output.streams["audio"].phi)
    assert not torch.allclose(F.normalize(output.scores, dim=1), output.scores)
