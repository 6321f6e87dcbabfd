"""The index in columns says what index.json says, and only as long as it is of that file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avfast.data import clip_index
from avfast.data.clip_index import ClipIndex, ClipNames, Entry, IndexBuilder, open_index, write_index
from avfast.errors import InputError

CLASSES = ["cat", "dög", "'bird'"]
SHARDS = [{"name": "train-00000.tar", "bytes": 10}]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
places = st.tuples(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 2**32 - 1))
entries = st.builds(
    Entry,
    clip=texts,
    split=st.sampled_from(["train", "val", "test"]),
    labels=st.lists(st.sampled_from(CLASSES), unique=True).map(tuple),
    shard=st.just(0),
    members=st.dictionaries(st.sampled_from(["json", "flac", "00000.jpg"]), places),
)


def built(clips: list[Entry]) -> ClipIndex:
    builder = IndexBuilder()
    for clip in clips:
        builder.add(clip.clip, clip.split, clip.labels, clip.shard, clip.members)
    return builder.finish(CLASSES, {"fps": 1.0}, SHARDS)


def contents(index: ClipIndex) -> tuple[Any, ...]:
    return index.head, [index[position] for position in range(len(index))]


@settings(max_examples=60, deadline=None)
@given(clips=st.lists(entries, max_size=6))
def test_json_columns_and_memory_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, clips: list[Entry]
) -> None:
    root = tmp_path_factory.mktemp("index")
    index = built(clips)
    assert contents(index)[1] == clips
    write_index(root, index)
    mapped = open_index(root)
    assert mapped.root == root
    assert contents(mapped) == contents(index) == contents(pickle.loads(pickle.dumps(mapped)))
    (root / clip_index.COLUMNS).unlink()
    parsed = open_index(root)
    assert parsed.root is None
    assert contents(parsed) == contents(index)
    for split in ("train", "val", "test"):
        positions = index.positions(split)
        of_split = [clip for clip in clips if clip.split == split]
        assert list(ClipNames(mapped, positions)) == [clip.clip for clip in of_split]
        expected = [[name in clip.labels for name in CLASSES] for clip in of_split]
        assert mapped.targets(positions).tolist() == expected


def entry(name: str, *labels: str) -> Entry:
    return Entry(name, "train", labels, 0, {"json": (512, 10, 7), "flac": (1536, 20, 8)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_index(tmp_path, built([entry("a", "cat"), entry("b"), entry("c", "dög", "cat")]))
    return tmp_path


def test_the_text_is_plain_json(root: Path) -> None:
    index = json.loads((root / "index.json").read_text())
    assert list(index) == ["format", "classes", "options", "shards", "clips"]
    assert index["clips"][2] == {
        "clip": "c",
        "split": "train",
        "labels": ["dög", "cat"],
        "shard": 0,
        "key": "0000002",
        "members": {"json": [512, 10, 7], "flac": [1536, 20, 8]},
    }


def test_columns_of_another_index_are_not_used(root: Path) -> None:
    index = json.loads((root / "index.json").read_text())
    index["clips"] = index["clips"][1:]
    index["clips"][0]["labels"] = ["no class"]
    (root / "index.json").write_text(json.dumps(index))
    found = open_index(root)
    assert [found.name(position) for position in range(len(found))] == ["b", "c"]
    assert found.targets(np.array([0, 1])).tolist() == [[False] * 3, [True, True, False]]
    assert found.targets(np.array([1])).tolist() == [[True, True, False]]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_damaged_columns_are_not_used(root: Path, share: float) -> None:
    path = root / clip_index.COLUMNS
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x10
    path.write_bytes(data)
    assert [open_index(root).name(position) for position in range(3)] == ["a", "b", "c"]
    path.write_bytes(data[: len(data) // 2])
    assert len(open_index(root)) == 3


def test_a_mapped_index_is_handed_over_by_name(root: Path) -> None:
    assert len(pickle.dumps(open_index(root))) < 200


@pytest.mark.parametrize(
    "clip",
    ['{"clip": "a"}', '{"clip": 1, "split": "train", "labels": [], "shard": 0, "members": {}}', '"a"'],
)
def test_an_entry_that_is_none(tmp_path: Path, clip: str) -> None:
    text = '{"format": 1, "classes": [], "options": {}, "shards": [], "clips": [%s]}' % clip  # noqa: UP031
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match="damaged; prepare the data again"):
        open_index(tmp_path)
