"""Weights from URLs, with and without checksums and networks, and VGGish's post-processing by hand."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avfast.errors import InputError
from avfast.models import ModelConfig
from avfast.models.audio_backbones import AUDIO, VGGishAudio
from avfast.models.backbones import VISUAL
from avfast.models.vggish import VGGishPCA, load_pca
from avfast.models.weights import load_into, read_state_dict


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


DONOR = nn.Linear(3, 2)
for parameter in DONOR.parameters():  # known numbers, since the checksum names tests
    nn.init.constant_(parameter, 0.5)
GOOD = saved(DONOR.state_dict())
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path on 127.0.0.1 and counts what it is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.announced: dict[str, int] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.announced.get(self.path, len(body))))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that torch.hub keeps downloads in."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        ("/linear.pth", ""),
        ("/linear.pth", f"#sha256={SHA256}"),
        ("/linear.pth", f"#sha256={SHA256[:12].upper()}"),
        ("/download?id=3", f"#sha256={SHA256}"),
        (f"/linear-{SHA256[:8]}.pth", ""),
        ("/a-cafe.pth", ""),  # too short to be meant as a checksum
    ],
)
def test_a_url_is_downloaded_once(server: Server, hub: Path, path: str, fragment: str) -> None:
    server.files[path] = GOOD
    for _ in range(2):
        network = nn.Linear(3, 2)
        load_into(network, server.url + path + fragment)
        assert torch.equal(network.weight, DONOR.weight)
    assert server.asked == [path]
    assert len(list(hub.iterdir())) == 1


def test_a_name_with_a_checksum_is_shared_with_torch_hub(server: Server, hub: Path) -> None:
    name = f"linear-{SHA256[:8]}.pth"
    hub.mkdir(parents=True)
    (hub / name).write_bytes(GOOD)
    assert read_state_dict(f"{server.url}/{name}").keys() == DONOR.state_dict().keys()
    assert server.asked == []


def test_files_of_one_name_are_not_mistaken_for_each_other(server: Server) -> None:
    server.files = {"/a/w.pth": GOOD, "/b/w.pth": saved({"other": torch.zeros(1)})}
    assert set(read_state_dict(f"{server.url}/a/w.pth")) == {"weight", "bias"}
    assert set(read_state_dict(f"{server.url}/b/w.pth")) == {"other"}


@pytest.mark.parametrize("path", ["/w.pth#sha256=" + "0" * 64, "/w-00000000.pth"])
def test_a_wrong_checksum_is_refused_and_nothing_kept(server: Server, hub: Path, path: str) -> None:
    server.files[path.partition("#")[0]] = GOOD
    with pytest.raises(InputError, match=rf"not the expected file .*{SHA256}.*; try again, or give the path"):
        read_state_dict(server.url + path)
    assert list(hub.iterdir()) == []


def test_a_download_that_is_cut_short_is_refused_and_nothing_kept(server: Server, hub: Path) -> None:
    server.files["/w.pth"] = GOOD[: len(GOOD) // 2]
    server.announced["/w.pth"] = len(GOOD)
    with pytest.raises(InputError, match=r"/w\.pth: the download is no state dict, or was cut short"):
        read_state_dict(f"{server.url}/w.pth")
    assert list(hub.iterdir()) == []


def test_a_page_in_place_of_weights_is_refused(server: Server) -> None:
    server.files["/w.pth"] = b"<html>log in first</html>"
    with pytest.raises(InputError, match="no state dict"):
        read_state_dict(f"{server.url}/w.pth")


def test_code_in_a_download_is_not_run(server: Server, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    server.files["/w.pth"] = saved({"a": Attack()})
    with pytest.raises(InputError, match="no state dict"):
        read_state_dict(f"{server.url}/w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_no_network_say_where_to_put_it(server: Server, hub: Path) -> None:
    with pytest.raises(InputError, match=r"/w\.pth: cannot be downloaded \(HTTP Error 404"):
        read_state_dict(f"{server.url}/w.pth")
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/w-12345678.pth"
        with pytest.raises(
            InputError, match=r"cannot be downloaded .*put the file at (.*), or give a path"
        ) as e:
            read_state_dict(url)
    assert str(hub / "w-12345678.pth") in str(e.value)
    (hub / "w-12345678.pth").write_bytes(GOOD)
    assert set(read_state_dict(url)) == {"weight", "bias"}


def test_a_damaged_file_that_was_kept_is_named(server: Server, hub: Path) -> None:
    hub.mkdir(parents=True)
    (hub / "w-12345678.pth").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"w-12345678\.pth: damaged, .*delete it to download it again"):
        read_state_dict(f"{server.url}/w-12345678.pth")


@pytest.mark.parametrize("fragment", ["#sha256=xyz", "#md5=12345678", "#sha256=1234567"])
def test_an_unreadable_checksum_is_refused(fragment: str) -> None:
    with pytest.raises(InputError, match="expected #sha256= and 8 to 64 hexadecimal digits"):
        read_state_dict(f"http://127.0.0.1/w.pth{fragment}")


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (VISUAL["alexnet"], "alexnet-owt-7be5be79.pth"),
        (VISUAL["vgg16"], "vgg16-397923af.pth"),
        (AUDIO["vggish"], "vggish-10086976.pth"),
    ],
)
def test_published_names_stand_for_urls(network: type, name: str, hub: Path) -> None:
    """Without a download: the file is already where torch.hub keeps it, and not the right one."""
    hub.mkdir(parents=True)
    (hub / name).write_bytes(GOOD)
    with torch.device("meta"):
        module = network()
    (published,) = network.published
    with pytest.raises(
        InputError, match=rf"https://.*{name}: not the weights of .*unexpected keys: bias, weight"
    ):
        module.load_pretrained(published)


# --- VGGish's post-processing -----------------------------------------------------------------------


def test_pca_and_quantisation_by_hand() -> None:
    pca = VGGishPCA()
    pca.pca_means[:3, 0] = torch.tensor([1.0, 0.0, -1.0])
    pca.pca_eigen_vectors[0, :3] = torch.tensor([0.5, 2.0, 0.0])  # first component: (x0 - 1) / 2 + 2 x1
    embedding = torch.zeros(1, 128)
    embedding[0, :3] = torch.tensor([2.0, 0.25, 4.0])
    quantised = pca(embedding)
    # 0.5 + 0.5 = 1 -> 3 * 63.75 = 191.25; 0.25 -> 143.4; 5 is clipped to 2 -> 255; 0 -> 127.5, to even.
    assert quantised[0, :4].tolist() == [191, 143, 255, 128]
    assert pca.dequantise(quantised)[0, 2] == 2
    assert (pca.dequantise(quantised)[0, 0] - 1).abs() <= 2 / 255


@pytest.mark.parametrize("kind", ["tensors", "arrays", "whole port", "npz"])
def test_pca_parameters_load_in_every_layout(tmp_path: Path, kind: str) -> None:
    vectors, means = np.random.default_rng(0).random((128, 128), np.float32), np.ones(128, np.float32)
    state: dict[str, object] = {"pca_eigen_vectors": vectors, "pca_means": means}
    path = tmp_path / "pca.pth"
    if kind == "npz":
        path = tmp_path / "pca.npz"
        np.savez(path, **state)
    else:
        if kind != "arrays":
            state = {key: torch.from_numpy(value) for key, value in state.items()}
        if kind == "whole port":
            state = {f"pproc.{key}": value for key, value in state.items()} | {"features.0.bias": means}
            state["pproc.pca_means"] = torch.ones(128, 1)
        torch.save(state, path)
    pca = VGGishPCA()
    assert str(path) in load_pca(nn.Sequential(pca), path)
    assert torch.equal(pca.pca_eigen_vectors, torch.from_numpy(vectors))
    assert pca.pca_means.shape == (128, 1)


def test_wrong_pca_parameters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pca.pth"
    torch.save({"pca_eigen_vectors": torch.eye(3)}, path)
    message = (
        r"not the weights of VGGishPCA: missing keys: pca_means; .*wrong shapes: pca_eigen_vectors \[3, 3\]"
    )
    with pytest.raises(InputError, match=message):
        load_pca(nn.Sequential(VGGishPCA()), path)
    np.savez(tmp_path / "code.npz", pca_means=np.array([print], dtype=object))
    with pytest.raises(InputError, match=r"code\.npz"):
        load_pca(nn.Sequential(VGGishPCA()), tmp_path / "code.npz")


def test_options_of_vggish_reach_the_network() -> None:
    def network(**changes: bool) -> VGGishAudio:
        with torch.device("meta"):
            return VGGishAudio.from_config(ModelConfig(audio_backbone="vggish", **changes))

    assert isinstance(network().vggish.embeddings[-1], nn.ReLU)
    assert isinstance(network(vggish_relu=False).vggish.embeddings[-1], nn.Identity)
    assert network().pproc is None
    with_pca = network(vggish_pca=True).eval()
    assert isinstance(with_pca.pproc, VGGishPCA)
    with_pca.vggish, with_pca.pproc, with_pca.head = nn.Identity(), VGGishPCA(), nn.Identity()
    assert with_pca(torch.full((1, 128), 5.0)).unique().tolist() == [2.0]
    with pytest.raises(ValueError, match="vggish_pca: only for the audio backbone vggish"):
        ModelConfig(vggish_pca=True)
    with pytest.raises(ValueError, match="vggish_pca: its 8 bits have no gradient"):
        ModelConfig(audio_backbone="vggish", vggish_pca=True, train_conv=True)
