"""Conv maps of frozen backbones, computed once for every prepared clip and kept beside the shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from avfast.data.clip_index import index_digest, open_index
from avfast.data.dataset import ShardDataset
from avfast.data.files import TEMPORARY_PREFIX, atomic_write, write_json
from avfast.errors import InputError
from avfast.models import ModelConfig
from avfast.models.backbones import VISUAL, VisualBackbone

FOLDER = "conv-maps"
"""Under a folder of shards; it holds a folder per backbone and image size."""
IDENTITY = "identity.json"
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """What decides the maps of a clip."""

    backbone: str
    image_size: int
    weights: str
    """Digest of the conv layers."""
    data: str
    """Digest of the shards' index."""
    format: int = FORMAT

    @classmethod
    def of(cls, root: Path, backbone: str, network: VisualBackbone, image_size: int) -> Identity:
        """The identity of what a network gives for the shards under ``root``."""
        return cls(backbone, image_size, weights_digest(network), index_digest(root))


class ConvMaps:
    """The conv maps of a folder of shards, float16 [F, channels, h, w] per clip, one file each."""

    def __init__(self, folder: Path) -> None:
        """Open maps that ``store`` wrote.

        Raises:
            InputError: They are damaged, or of another version.
        """
        self.folder = folder
        try:
            values = json.loads((folder / IDENTITY).read_bytes())
            self.identity = Identity(**values)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: no conv maps of this version; {_remedy(folder)}") from error

    def check(self, root: Path, network: VisualBackbone) -> None:
        """Make sure that the maps are those of a network on shards.

        Raises:
            InputError: Other weights or other shards gave them.
        """
        now = Identity.of(root, self.identity.backbone, network, self.identity.image_size)
        if now != self.identity:
            what = "other shards" if now.data != self.identity.data else "other weights than this model's"
            raise InputError(f"{self.folder}: stale, these conv maps are of {what}; {_remedy(self.folder)}")

    def read(self, clip: str) -> Tensor:
        """The maps of a clip's frames.

        Raises:
            InputError: They are missing or damaged.
        """
        path = self.folder / _file_name(clip)
        try:
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: missing or damaged conv maps; {_remedy(self.folder)}") from error


def find(root: Path, config: ModelConfig) -> ConvMaps | None:
    """The maps that a model could read in place of frames; None without any, or if its conv layers learn."""
    folder = _folder(root, config.backbone, config.image_size)
    if config.train_conv or not VISUAL[config.backbone].pretrainable or not folder.is_dir():
        return None
    return ConvMaps(folder)


@torch.no_grad()
def store(root: Path, backbone: str, network: VisualBackbone, image_size: int | None = None) -> ConvMaps:
    """Compute what is missing of the conv maps of all clips.

    Every clip is written whole or not at all, so the same call after a crash goes on where it stopped.

    Args:
        root: A folder of shards.
        backbone: A key of ``VISUAL``.
        network: Of that name, from ``frozen_network``.
        image_size: Side that frames are stretched to; None for what suits the backbone.

    Raises:
        InputError: There are maps of other weights already.
    """
    image_size = image_size or VISUAL[backbone].image_size
    folder = _folder(root, backbone, image_size)
    identity = Identity.of(root, backbone, network, image_size)
    if (folder / IDENTITY).is_file():
        ConvMaps(folder).check(root, network)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink()
    write_json(folder / IDENTITY, asdict(identity))
    index = open_index(root)
    with tqdm(total=len(index), desc=f"conv maps of {backbone}", unit="clip", disable=None) as bar:
        for split in index.names["splits"]:
            dataset = ShardDataset(root, split, image_size, 1, _Silence())
            for position, clip in enumerate(dataset.clips):
                path = folder / _file_name(clip)
                if not path.is_file():
                    with atomic_write(path) as file:
                        np.save(file, network.maps(dataset[position].frames).half().numpy())
                bar.update()
    return ConvMaps(folder)


def weights_digest(network: VisualBackbone) -> str:
    """SHA-256 of the conv layers' parameters and statistics."""
    digest = hashlib.sha256()
    for name, value in sorted(network.conv.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Silence:
    """A front end for those who look only."""

    def __call__(self, waveform: Tensor) -> Tensor:
        return torch.zeros(0, 1)

    def segments(self, count: int) -> Tensor:
        return torch.zeros(count, 2)


def frozen_network(backbone: str, weights: str | None = None) -> VisualBackbone:
    """A network whose conv layers can stay as they are.

    Args:
        backbone: A key of ``VISUAL``.
        weights: As ``VisualBackbone.load_pretrained`` takes them.

    Raises:
        InputError: There is no such network, or it has no weights that could stay.
    """
    if backbone not in VISUAL or not VISUAL[backbone].pretrainable:
        known = ", ".join(name for name, network in VISUAL.items() if network.pretrainable)
        raise InputError(f"--cache-features {backbone}: expected a pretrained backbone: {known}")
    network = VISUAL[backbone]()
    note = network.load_pretrained(weights)
    if note.startswith("WARNING"):
        raise InputError(f"--cache-features {backbone}: its conv layers need weights; give --visual-weights")
    print(note)
    return network.eval()


def _folder(root: Path, backbone: str, image_size: int) -> Path:
    return root / FOLDER / f"{backbone}-{image_size}"


def _file_name(clip: str) -> str:
    return f"{hashlib.sha256(clip.encode()).hexdigest()[:32]}.npy"


def _remedy(folder: Path) -> str:
    return f"delete {folder}, and run avfast.prepare with --cache-features again if you want them"
