"""Systems: missing modalities, gradients, determinism, configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_systems import CLASSES, SIDE, clip_for, mixed_for, sample, small
from torch import Tensor

from avfast.data.batch import Batch, collate
from avfast.errors import InputError
from avfast.models import SYSTEMS, ModelConfig, System, build


@pytest.fixture
def system() -> System:
    """The two-stream system at its smallest."""
    return small("av-two-stream")


@pytest.fixture
def mixed(system: System) -> Batch:
    """As ``mixed_for``, for the small two-stream system."""
    return mixed_for(system)


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
