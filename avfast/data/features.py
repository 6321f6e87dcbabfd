"""Feature bags: clips given as arrays that someone else computed, in place of pictures and sound."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avfast.data.batch import Sample
from avfast.data.feature_lists import FeatureLists, open_h5, read_lists
from avfast.data.labels import MODALITIES, Annotations, LabelledClip
from avfast.errors import InputError

CLIP_SECONDS = 10.0
"""Length of a clip of AVE and LLP."""

H5_NAMES = ("{}.h5", "{}_feature.h5")
"""Of the files that hold a modality of a whole data set; the second is AVE's."""


@dataclass(frozen=True)
class FeatureSource:
    """Where a set of feature bags is."""

    root: Path
    """Folder of the arrays."""
    labels: Path | None = None
    """What ``read_lists`` reads; None for ``root``."""
    seconds: float = CLIP_SECONDS
    """Length of every clip; its instances divide it evenly."""

    def open(self, split: str, visual_dim: int = 0, audio_dim: int = 0) -> FeatureBags:
        """The clips of one split, see ``FeatureBags``."""
        return FeatureBags(self, split, visual_dim, audio_dim)


class Store(ABC):
    """Arrays of one modality by clip."""

    @abstractmethod
    def find(self, keys: tuple[str, ...], row: int | None) -> str | None:
        """What ``read`` takes for a clip: the first of its names that there is, None without any."""

    @abstractmethod
    def read(self, key: str) -> NDArray[Any]:
        """The array."""

    @abstractmethod
    def place(self, key: str) -> str:
        """What an error calls it."""


class Folder(Store):
    """``visual/<clip>.npy``, or ``<clip>.npz`` with an array ``visual``; the same for ``audio``."""

    def __init__(self, folder: Path, suffix: str, modality: str) -> None:
        self.folder, self.suffix, self.modality = folder, suffix, modality
        self.keys = {
            path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.rglob(f"*{suffix}")
        }

    def find(self, keys: tuple[str, ...], row: int | None) -> str | None:
        key = next((key for key in keys if key in self.keys), None)
        if key is None or self.suffix == ".npy":
            return key
        with _opened(self._path(key)) as arrays:
            return key if self.modality in arrays else None

    def read(self, key: str) -> NDArray[Any]:
        content = _opened(self._path(key))
        if isinstance(content, np.ndarray):
            return content
        with content, _readable(self._path(key)):
            return content[self.modality]

    def place(self, key: str) -> str:
        path = str(self._path(key))
        return path if self.suffix == ".npy" else f"{path} ({self.modality})"

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"


class H5(Store):
    """An HDF5 file with an array per clip, or one array with a row per clip, as AVE's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as file:
            self.keys = set(file)
            self.array = next(iter(file), "")
            shape: tuple[int, ...] = getattr(file[self.array], "shape", ()) if len(file) == 1 else ()
            self.rows = shape[0] if len(shape) > 2 else None

    def find(self, keys: tuple[str, ...], row: int | None) -> str | None:
        key = next((key for key in keys if key in self.keys), None)
        if key is not None or row is None or self.rows is None:
            return key
        if row >= self.rows:
            raise InputError(f"{self.path}: {self.rows} rows, but the lists have a clip in row {row}")
        return str(row)

    def read(self, key: str) -> NDArray[Any]:
        with open_h5(self.path) as file, _readable(self.path):
            return file[key][...] if key in self.keys else file[self.array][int(key)]

    def place(self, key: str) -> str:
        return f"{self.path} ({'' if key in self.keys else 'row '}{key})"


class FeatureBags(Dataset[Sample]):
    """The clips of one split, by position; frames are float feature maps, and every cell is a region.

    ``visual`` is [P, D] (P instances, evenly over the clip) or [T, h, w, D] (T times, a grid of cells);
    ``audio`` is [A, D]. A clip without an array in a modality is an empty bag there; a clip without any is
    left out, see ``absent``.
    """

    def __init__(self, source: FeatureSource, split: str, visual_dim: int = 0, audio_dim: int = 0) -> None:
        """Open a folder of arrays.

        Args:
            source: Where they are.
            split: train, val or test.
            visual_dim: Size of a visual vector; 0 for that of the first clip that has one.
            audio_dim: The same for sound.

        Raises:
            InputError: The folder holds no arrays, no labels, or no clip in ``split``.
        """
        self.root, self.seconds = source.root, source.seconds
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder; --features takes a folder of arrays")
        self.stores = {m: store for m in MODALITIES if (store := _store(self.root, m)) is not None}
        if not self.stores:
            raise InputError(
                f"{self.root}: no features; expected visual/CLIP.npy and audio/CLIP.npy, CLIP.npz with the "
                "arrays visual and audio, or visual.h5 and audio.h5"
            )
        lists = read_lists(source.labels or self.root)
        self.classes = list(lists.classes)
        self._annotations = lists.annotations
        wanted = [clip for clip in lists.clips if clip.split == split]
        if not wanted:
            raise InputError(f"{source.labels or self.root}: no clip in the split {split!r}; add some")
        found = [(clip, self._find(clip, lists)) for clip in wanted]
        self._entries = [(clip, keys) for clip, keys in found if keys]
        self.absent = [clip.clip for clip, keys in found if not keys]
        """Clips of the lists that have no array."""
        if not self._entries:
            raise InputError(
                f"{self.root}: no array of any {split} clip, such as {wanted[0].clip!r}; arrays are named as "
                "the clips are in the labels"
            )
        self.clips = [clip.clip for clip, _ in self._entries]
        self.visual_shape = (*self._first("visual")[:2], visual_dim or self._first("visual")[-1])
        self.audio_dim = audio_dim or self._first("audio")[-1]

    @property
    def visual_dim(self) -> int:
        """Size of a visual feature vector; 0 where no clip has one."""
        return self.visual_shape[-1]

    def __len__(self) -> int:
        """How many clips the split has."""
        return len(self._entries)

    @property
    def preparation(self) -> None:
        """How other videos can be made into such clips: unknown."""
        return None

    def clip_seconds(self) -> float:
        """Length of a clip."""
        return self.seconds

    def __getitem__(self, position: int) -> Sample:
        """Read one clip.

        Raises:
            InputError: Naming the file, when it is damaged, not finite, or of another shape than the others.
        """
        clip, keys = self._entries[position]
        maps = self._maps(keys)
        audio = self._audio(keys)
        count, _, height, width = maps.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corner = torch.stack([columns.flatten(), rows.flatten()], dim=1).float()
        boxes = torch.cat([corner, corner + 1], dim=1).repeat(count, 1)
        return Sample(
            clip=clip.clip,
            frames=maps,
            frame_times=_tiles(count, self.seconds).mean(dim=1),
            boxes=boxes,
            box_frames=torch.arange(count).repeat_interleave(height * width),
            objectness=torch.zeros(len(boxes)),
            frame_size=(1, 1) if count else (0, 0),
            audio=audio,
            segments=_tiles(len(audio), self.seconds),
            target=torch.tensor([float(name in clip.labels) for name in self.classes]),
        )

    def labels(self) -> NDArray[np.bool_]:
        """[N, C], which classes each clip has, without reading the arrays."""
        return np.array([[name in clip.labels for name in self.classes] for clip, _ in self._entries])

    def annotations(self) -> Annotations | None:
        """Ground truth of this split's clips, boxes as fractions of the picture; None where there is none."""
        return None if self._annotations is None else self._annotations.of(self.clips)

    def _find(self, clip: LabelledClip, lists: FeatureLists) -> dict[str, str]:
        """Key of the clip's array in each store that has one."""
        keys, row = lists.keys[clip.clip], lists.rows.get(clip.clip)
        found = {modality: store.find(keys, row) for modality, store in self.stores.items()}
        return {modality: key for modality, key in found.items() if key is not None}

    def _first(self, modality: str) -> tuple[int, ...]:
        """Shape of one instant of the first array: [h, w, D] or [D]; [0] without any."""
        for _, keys in self._entries:
            if modality in keys:
                array = self._read(modality, keys[modality])
                return (1, 1, array.shape[1]) if modality == "visual" and array.ndim == 2 else array.shape[1:]
        return (1, 1, 0) if modality == "visual" else (0,)

    def _maps(self, keys: dict[str, str]) -> Tensor:
        height, width, dim = self.visual_shape
        if "visual" not in keys:
            return torch.zeros(0, dim, height, width)
        array = self._read("visual", keys["visual"])
        if array.ndim == 2:
            array = array[:, None, None]
        self._check("visual", keys, array.shape[1:], self.visual_shape)
        return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()

    def _audio(self, keys: dict[str, str]) -> Tensor:
        if "audio" not in keys:
            return torch.zeros(0, self.audio_dim)
        array = self._read("audio", keys["audio"])
        self._check("audio", keys, array.shape[1:], (self.audio_dim,))
        return torch.from_numpy(array)

    def _read(self, modality: str, key: str) -> NDArray[np.float32]:
        """An array of plausible shape and finite values."""
        store = self.stores[modality]
        array = np.asarray(store.read(key))
        allowed = (2, 4) if modality == "visual" else (2,)
        if array.ndim not in allowed or 0 in array.shape[1:] or array.dtype.kind not in "fiu":
            shapes = "[P, D] or [T, h, w, D]" if modality == "visual" else "[A, D]"
            raise InputError(
                f"{store.place(key)}: expected numbers of shape {shapes}, got {array.dtype} "
                f"{list(array.shape)}"
            )
        values = array.astype(np.float32)
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise InputError(f"{store.place(key)}: {bad} values are not finite; compute these features again")
        return values

    def _check(
        self, modality: str, keys: dict[str, str], shape: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        if shape != expected:
            raise InputError(
                f"{self.stores[modality].place(keys[modality])}: features of shape {list(shape)} per step, "
                f"where {list(expected)} was expected; one set has one kind of features"
            )


def _store(root: Path, modality: str) -> Store | None:
    """The arrays of a modality, in the first layout that there is."""
    if (root / modality).is_dir():
        return Folder(root / modality, ".npy", modality)
    for name in H5_NAMES:
        if (root / name.format(modality)).is_file():
            return H5(root / name.format(modality))
    store = Folder(root, ".npz", modality)
    return store if store.keys else None


def _opened(path: Path) -> Any:
    with _readable(path):
        return np.load(path, allow_pickle=False)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file that a reader refuses; readers fail in as many ways as there are bytes."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"{path}: not an array that can be read ({error}); pickled objects are refused, as they may run "
            "code: save plain arrays by numpy.save"
        ) from error


def _tiles(count: int, seconds: float) -> Tensor:
    """float32 [count, 2]: start and end of the equal parts of a clip."""
    edges = torch.linspace(0, seconds, count + 1).round(decimals=3) if count else torch.zeros(1)
    return torch.stack([edges[:-1], edges[1:]], dim=1)
