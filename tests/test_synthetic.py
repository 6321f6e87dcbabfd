"""The toy data set: its truth is true, and its clips are learnable in principle."""

from __future__ import annotations

import collections
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from avfast.data import synthetic, toy_events
from avfast.data.dataset import ShardDataset
from avfast.data.label_lists import read_labels
from avfast.data.labels import SPLITS
from avfast.data.logmel import VGGishLogMel
from avfast.data.media import SAMPLE_RATE, read_frames, read_sound
from avfast.data.preparation import prepare
from avfast.data.proposals import propose
from avfast.data.synthetic import CLASSES, SETTINGS, Clip, Sizes, generate, make_clip
from avfast.engines import Engine


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [make_clip("train", index, seed=0) for index in range(60)]


def test_classes_are_both_seen_and_heard() -> None:
    assert len(CLASSES) >= 6
    assert set(toy_events.SIGHTS) == set(toy_events.SOUNDS) == set(CLASSES)


def test_clips_depend_on_seed_split_and_number_alone(clips: list[Clip]) -> None:
    again = make_clip("train", 7, seed=0)
    np.testing.assert_array_equal(again.frames, clips[7].frames)
    np.testing.assert_array_equal(again.waveform, clips[7].waveform)
    for other in (make_clip("train", 7, 1), make_clip("test", 7, 0), make_clip("train", 8, 0)):
        assert not np.array_equal(other.waveform, again.waveform)


def test_labels_are_what_is_seen_or_heard(clips: list[Clip]) -> None:
    fates: collections.Counter[frozenset[str]] = collections.Counter()
    for clip in clips:
        where = {
            label: {row.modality for row in clip.truth.annotations if row.label == label} for label in CLASSES
        }
        assert tuple(sorted(label for label, found in where.items() if found)) == clip.truth.labels
        fates.update(frozenset(found) for found in where.values() if found)
    total = sum(fates.values())
    assert fates[frozenset({"visual", "audio"})] / total == pytest.approx(0.5, abs=0.2)
    assert fates[frozenset({"visual"})] / total == pytest.approx(0.25, abs=0.15)
    assert fates[frozenset({"audio"})] / total == pytest.approx(0.25, abs=0.15)
    assert max(len(clip.truth.labels) for clip in clips) > 1


def test_picture_and_sound_are_not_synchronised(clips: list[Clip]) -> None:
    late = []
    for clip in clips:
        first = {}
        for row in clip.truth.annotations:
            first.setdefault((row.label, row.modality), row.start)
        late += [
            first[label, "audio"] - first[label, "visual"]
            for label, m in first
            if m == "audio" and (label, "visual") in first
        ]
    assert np.std(late) > 0.7
    assert min(late) < -0.5
    assert max(late) > 0.5


def test_objects_lie_in_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an object changes in the picture lies inside its box, and fills much of it."""
    monkeypatch.setattr(synthetic, "DISTRACTOR_SIGHT", 0.0)
    compared = 0
    for clip in (make_clip("train", index, 0) for index in range(20)):
        boxes: dict[float, list[tuple[float, ...]]] = collections.defaultdict(list)
        for row in clip.truth.annotations:
            if row.modality == "visual":
                boxes[row.start].append(row.box or ())
        empty = [frame for index, frame in enumerate(clip.frames) if index / synthetic.VIDEO_FPS not in boxes]
        if not empty:
            continue
        for time, found in boxes.items():
            changed = (clip.frames[int(time * synthetic.VIDEO_FPS)] != empty[0]).any(axis=2)
            inside = np.zeros_like(changed)
            for x1, y1, x2, y2 in np.array(found, int):
                assert changed[y1:y2, x1:x2].mean() > 0.4
                inside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = True
            assert not (changed & ~inside).any()
            compared += 1
    assert compared > 20


def test_intervals_hold_the_sound(clips: list[Clip]) -> None:
    """A lone event in a clip without a distractor is louder inside its interval than outside."""
    ratios = []
    for clip in clips:
        rows = [row for row in clip.truth.annotations if row.modality == "audio"]
        if len(rows) == 1:
            first, last = (round(time * SAMPLE_RATE) for time in (rows[0].start, rows[0].end))
            inside = clip.waveform[first:last].std()
            outside = np.delete(clip.waveform, slice(first, last)).std()
            ratios.append(inside / outside)
    assert len(ratios) > 10
    assert np.median(ratios) > 2


def test_proposals_hold_the_objects(clips: list[Clip]) -> None:
    """Recall at IoU 0.5 of the ten best proposals bounds what localisation can reach."""
    hits = []
    for clip in clips:
        for second in range(5):
            rows = [row for row in clip.truth.annotations if row.modality == "visual" and row.start == second]
            if rows:
                frame = clip.frames[second * synthetic.VIDEO_FPS]
                boxes = propose(frame, 10, SETTINGS.edge_boxes).boxes
                hits += [max(overlap(box, row.box) for box in boxes) >= 0.5 for row in rows if row.box]
    assert len(hits) > 100
    assert np.mean(hits) >= 0.9


def overlap(box: np.ndarray, other: tuple[float, ...]) -> float:
    size = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = np.prod(np.maximum(size, 0))
    areas = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return float(shared / (areas - shared))


def test_videos_go_the_way_of_real_videos(tmp_path: Path) -> None:
    sizes = Sizes(train=4, val=2, test=2)
    generate(tmp_path / "toy", sizes, seed=0, workers=1)
    labels = read_labels(tmp_path / "toy" / "labels.csv", tmp_path / "toy")
    assert collections.Counter(clip.split for clip in labels.clips) == asdict(sizes)
    clip = make_clip("train", 0, 0)
    path = tmp_path / "toy" / clip.truth.name
    frames = list(read_frames(path))
    assert [frame.time for frame in frames] == [0, 1, 2, 3, 4]
    for frame in frames:
        original = clip.frames[int(frame.time) * synthetic.VIDEO_FPS]
        assert np.abs(frame.image.astype(int) - original).mean() < 8
    sound = read_sound(path)[: len(clip.waveform)]
    assert np.corrcoef(sound, clip.waveform)[0, 1] > 0.9
    outcomes = prepare(tmp_path / "toy", labels, tmp_path / "shards", SETTINGS, Engine(workers=1))
    assert all(outcome.status == "ok" and not outcome.reason for outcome in outcomes)
    data = ShardDataset(tmp_path / "shards", "train", 96, 10, VGGishLogMel())
    assert data.classes == sorted({label for one in labels.clips for label in one.labels})
    assert data.annotations() is not None
    assert len(data[0].frames) == 5
    assert len(data[0].audio) >= 9


def test_data_set_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "Sizes", lambda *_: Sizes(8, 1, 1))
    root = synthetic.dataset(workers=1)
    assert root.is_relative_to(tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    assert synthetic.dataset(workers=1) == root
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == before
    assert [len(ShardDataset(root, split, 32, 5, VGGishLogMel())) for split in SPLITS] == [8, 1, 1]


def test_a_whole_split_has_every_class(clips: list[Clip]) -> None:
    counts = collections.Counter(label for clip in clips for label in clip.truth.labels)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= 3
