"""Shards: their bytes, their index, and what the data set reads from them."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avfast.data import files, shards
from avfast.data.batch import collate
from avfast.data.dataset import ShardDataset
from avfast.data.labels import Annotation, Annotations, LabelledClip, annotations_csv
from avfast.data.logmel import VGGishLogMel
from avfast.errors import InputError

CLASSES = ["cat", "dog"]


def gradient_image(shift: int = 0) -> np.ndarray:
    """A smooth picture, 40 wide and 30 high: red grows to the right, green downwards."""
    image = np.zeros((30, 40, 3), np.uint8)
    image[..., 0] = np.arange(40) * 5
    image[..., 1] = np.arange(30)[:, None] * 7
    image[..., 2] = shift
    return image


def members(frames: int = 2, seconds: float = 2.0, boxes: int = 3) -> dict[str, bytes]:
    times = [float(index) for index in range(frames)]
    facts = {"frame_times": times, "frame_size": [80, 60], "sound_seconds": seconds}
    made = {shards.FACTS: shards.encode_facts(facts)}
    for index in range(frames):
        made[shards.frame_member(index)] = shards.encode_jpeg(gradient_image(index * 50))
    if frames:
        table = [[f, 2 * b, b, 2 * b + 10, b + 10, 1 - 0.1 * b] for f in range(frames) for b in range(boxes)]
        made[shards.PROPOSALS] = shards.encode_array(np.array(table, np.float32))
    if seconds:
        wave = 0.5 * np.sin(np.arange(int(seconds * 16_000)) * 0.3).astype(np.float32)
        made[shards.SOUND] = shards.encode_sound(wave)
    return made


def stage(folder: Path, name: str, made: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    with files.atomic_write(folder / f"{name}.tar") as file:
        shards.write_members(file, "clip", made)
        shards.end_tar(file)
    return folder / f"{name}.tar"


def write(root: Path, shard_bytes: int = shards.SHARD_BYTES) -> Path:
    """Three training clips: complete, without sound, without picture; one for the test."""
    root.mkdir()
    staging = root.parent / "staging"
    clips = [
        (LabelledClip("a.mp4", ("cat",), "train"), stage(staging, "a", members())),
        (LabelledClip("b.mp4", ("cat", "dog"), "train"), stage(staging, "b", members(seconds=0))),
        (LabelledClip("c.mp4", (), "train"), stage(staging, "c", members(frames=0))),
        (LabelledClip("d.mp4", ("dog",), "test"), stage(staging, "d", members(frames=1))),
    ]
    shards.write_shards(root, CLASSES, clips, {"fps": 1.0}, shard_bytes)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "shards")


def dataset(root: Path, split: str = "train", size: int = 20, proposals: int = 2) -> ShardDataset:
    return ShardDataset(root, split, size, proposals, VGGishLogMel())


def test_same_bytes_twice(tmp_path: Path, root: Path) -> None:
    other = write(tmp_path / "again")
    names = sorted(path.name for path in root.iterdir())
    assert names == ["index.json", "index.npz", "test-00000.tar", "train-00000.tar"]
    for name in names:
        assert (root / name).read_bytes() == (other / name).read_bytes()


def test_index_reaches_every_member(root: Path) -> None:
    index = json.loads((root / "index.json").read_text())
    for entry in index["clips"]:
        with tarfile.open(root / index["shards"][entry["shard"]]["name"]) as tar:
            for name, (offset, size, _) in entry["members"].items():
                info = tar.getmember(f"{entry['key']}.{name}")
                assert (info.offset_data, info.size) == (offset, size)
                assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")


def test_shards_are_bounded(tmp_path: Path) -> None:
    one_each = write(tmp_path / "small", shard_bytes=1)
    names = sorted(path.name for path in one_each.glob("*.tar"))
    assert names == ["test-00000.tar", "train-00000.tar", "train-00001.tar", "train-00002.tar"]
    clips = dataset(one_each)
    assert [clips[index].clip for index in range(3)] == ["a.mp4", "b.mp4", "c.mp4"]


def test_sample(root: Path) -> None:
    clips = dataset(root)
    assert clips.classes == CLASSES
    assert len(clips) == 3
    assert list(clips.clips) == ["a.mp4", "b.mp4", "c.mp4"]
    found = clips[0]
    assert found.frames.shape == (2, 3, 20, 20)
    assert found.frames.dtype == torch.uint8
    assert found.frame_times.tolist() == [0, 1]
    assert found.frame_size == (80, 60)
    assert found.box_frames.tolist() == [0, 0, 1, 1]
    # The JPEG is 40 x 30: x is halved, y is stretched by 2/3.
    torch.testing.assert_close(found.boxes[1], torch.tensor([1.0, 2 / 3, 6.0, 22 / 3]))
    torch.testing.assert_close(found.objectness, torch.tensor([1.0, 0.9, 1.0, 0.9]))
    assert found.audio.shape == (3, 96, 64)
    assert found.segments.shape == (3, 2)
    assert found.target.tolist() == [1, 0]


def test_frames_are_rgb_and_stretched(root: Path) -> None:
    red, green, blue = dataset(root)[0].frames[1].float()
    assert red[:, -1].mean() > red[:, 0].mean() + 150
    assert green[-1].mean() > green[0].mean() + 150
    assert blue.mean() == pytest.approx(50, abs=4)


class WaveformFrontEnd:
    """One instance: the waveform itself."""

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        return waveform[None]

    def segments(self, count: int) -> torch.Tensor:
        return torch.zeros(count, 2)


def test_sound_survives_to_sixteen_bits(root: Path) -> None:
    found = ShardDataset(root, "train", 20, 2, WaveformFrontEnd())[0].audio
    wave = torch.from_numpy(0.5 * np.sin(np.arange(32_000) * 0.3).astype(np.float32))
    torch.testing.assert_close(found, wave[None], atol=2**-15, rtol=0)


def test_loud_sound_is_clipped() -> None:
    wave = shards.encode_sound(np.array([2, -2, 0.25], np.float32))
    read, rate = soundfile.read(io.BytesIO(wave))
    assert rate == 16_000
    assert read == pytest.approx([1, -1, 0.25], abs=1e-4)


def test_missing_modalities(root: Path) -> None:
    silent, blind = dataset(root)[1], dataset(root)[2]
    assert silent.audio.shape == (0, 96, 64)
    assert silent.segments.shape == (0, 2)
    assert len(silent.frames) == 2
    assert blind.frames.shape == (0, 3, 20, 20)
    assert blind.boxes.shape == (0, 4)
    assert len(blind.audio) == 3
    assert blind.target.tolist() == [0, 0]
    batch = collate([silent, blind])
    assert batch.region_offsets.tolist() == [0, 4, 4]
    assert batch.segment_offsets.tolist() == [0, 0, 3]


def test_workers_read_the_same(root: Path) -> None:
    clips = pickle.loads(pickle.dumps(dataset(root)))
    loader = torch.utils.data.DataLoader(clips, batch_size=2, collate_fn=collate, num_workers=2)
    batches = list(loader)
    assert [name for batch in batches for name in batch.clips] == ["a.mp4", "b.mp4", "c.mp4"]
    torch.testing.assert_close(batches[0].rois, collate([clips[0], clips[1]]).rois)


def test_webdataset_reads_them(root: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(str(root / "train-00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["0000000", "0000001", "0000002"]
    assert [json.loads(sample["json"])["clip"] for sample in found] == ["a.mp4", "b.mp4", "c.mp4"]
    assert json.loads(found[1]["json"])["labels"] == ["cat", "dog"]
    assert np.load(io.BytesIO(found[0]["proposals.npy"])).shape == (6, 6)
    assert found[0]["00000.jpg"][:2] == b"\xff\xd8"
    assert found[0]["flac"][:4] == b"fLaC"


def test_annotations_of_the_split(root: Path) -> None:
    assert dataset(root).annotations() is None
    rows = tuple(Annotation(name, "audio", "cat", 0, 1, None) for name in ("a.mp4", "d.mp4"))
    (root / "annotations.csv").write_text(annotations_csv(Annotations(rows)))
    assert dataset(root).annotations() == Annotations(rows[:1])


def test_unknown_split(root: Path) -> None:
    with pytest.raises(InputError, match="no clip in the split 'val'"):
        dataset(root, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "damaged"), ("[]", "damaged"), ('{"format": 99}', "format 99")],
)
def test_unreadable_index(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        dataset(tmp_path)
    assert "index.json" in str(raised.value)


@pytest.mark.parametrize("member", ["json", "00001.jpg", "proposals.npy", "flac"])
def test_damaged_member(root: Path, member: str) -> None:
    entry = json.loads((root / "index.json").read_text())["clips"][0]
    offset, size, _ = entry["members"][member]
    path = root / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"checksum of the member {member} differs") as raised:
        dataset(root)[0]
    assert str(path) in str(raised.value)


def test_truncated_and_missing_shards(root: Path) -> None:
    path = root / "train-00000.tar"
    os.truncate(path, 3000)
    with pytest.raises(InputError, match="damaged"):
        dataset(root)[2]
    path.unlink()
    with pytest.raises(InputError, match="No such file") as raised:
        dataset(root)[0]
    assert str(path) in str(raised.value)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def fail() -> None:
        with files.atomic_write(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    files.write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"[1]", b"\xff\xfe\x00"])
def test_json_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "facts.json"
    files.write_json(path, {"é": [1]})
    assert files.read_json(path, "") == {"é": [1]}
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"facts\.json: .*damaged.*; write it again"):
        files.read_json(path, "write it again")
