"""Label lists as the communities that exchange feature bags write them: labels.csv, LLP (AVVP) and AVE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from avfast.data.labels import Annotation, Annotations, LabelledClip, hash_split, read_csv
from avfast.errors import InputError

CSV = "labels.csv"
LLP_LISTS = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
LLP_EVENTS = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
AVE_ANNOTATIONS = "Annotations.txt"
AVE_LISTS = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
AVE_ORDERS = {"train": "train_order.h5", "val": "val_order.h5", "test": "test_order.h5"}
AVE_HEADER = "Category"

YOUTUBE_ID = 11
"""Characters of a YouTube video's name, with which LLP's names of ten-second clips begin."""


@dataclass(frozen=True)
class FeatureLists:
    """Which clips there are, what they show, and where their features are found."""

    classes: tuple[str, ...]
    clips: tuple[LabelledClip, ...]
    """Sorted by name, without repetition."""
    annotations: Annotations | None
    """Ground truth in time, None without any; boxes are fractions of the picture."""
    keys: Mapping[str, tuple[str, ...]]
    """By clip: names that its arrays may have, the likeliest first."""
    rows: Mapping[str, int]
    """By clip: its row in arrays that hold a whole data set; empty for lists that do not say."""


def read_lists(path: Path) -> FeatureLists:
    """Read the labels of a set of feature bags.

    Args:
        path: A ``labels.csv``, or a folder that holds one, the lists of LLP (``AVVP_train.csv``, ...) or
            those of AVE (``Annotations.txt``, or ``trainSet.txt``, ...).

    Raises:
        InputError: There is none of them, or a list cannot be read or contradicts itself.
    """
    if path.is_file():
        return _read_csv(path)
    if (path / CSV).is_file():
        return _read_csv(path / CSV)
    if any((path / name).is_file() for name in LLP_LISTS.values()):
        return _read_llp(path)
    if any((path / name).is_file() for name in (AVE_ANNOTATIONS, *AVE_LISTS.values())):
        return _read_ave(path)
    raise InputError(
        f"{path}: no labels; expected {CSV}, LLP's {LLP_LISTS['train']} or AVE's {AVE_ANNOTATIONS} there, or "
        "name their place by --labels"
    )


def read_array(path: Path, name: str, rows: Any = ...) -> np.ndarray:
    """A data set of an HDF5 file, or some of its rows.

    Raises:
        InputError: The package h5py is not installed, or there is no such data set.
    """
    with open_h5(path) as file:
        if name not in file:
            raise InputError(f"{path}: expected a data set named {name!r}, found {', '.join(file) or 'none'}")
        return file[name][rows]


def open_h5(path: Path) -> Any:
    """An HDF5 file for reading, as ``h5py.File``.

    Raises:
        InputError: The package h5py is not installed, or this is no such file.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading HDF5 needs h5py: pip install 'avfast[features]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: missing, or not an HDF5 file ({error})") from error


def _read_csv(path: Path) -> FeatureLists:
    labels = read_csv(path, path.parent)
    keys = {}
    for clip in labels.clips:
        name = PurePosixPath(clip.clip)
        keys[clip.clip] = tuple(dict.fromkeys([clip.clip, str(name.with_suffix("")), name.stem]))
    return FeatureLists(labels.classes, labels.clips, labels.annotations, keys, {})


def _read_llp(folder: Path) -> FeatureLists:
    """LLP (Tian, Li and Xu, ECCV 2020): clips of ten seconds, weak labels, events of val and test."""
    clips: dict[str, LabelledClip] = {}
    for split, name in LLP_LISTS.items():
        for where, (clip, labels) in _table(folder / name, ("filename", "event_labels")):
            if clip in clips:
                raise InputError(f"{where}: {clip!r} is also in the list for {clips[clip].split}")
            clips[clip] = LabelledClip(clip, tuple(sorted(set(labels.split(",")))), split)
    events = []
    for modality, name in LLP_EVENTS.items():
        for where, (clip, onset, offset, label) in _table(
            folder / name, ("filename", "onset", "offset", "event_labels")
        ):
            start, end = _seconds(onset, where), _seconds(offset, where)
            if end > start and clip in clips:  # the lists also name a few clips that no split has
                events.append(Annotation(clip, modality, label, start, end, None))
    keys = {clip: (clip, clip[:YOUTUBE_ID]) for clip in clips}
    return _lists(clips.values(), events, keys, {})


@dataclass(frozen=True)
class _Record:
    """A line of AVE's lists: an event that is both seen and heard."""

    label: str
    video: str
    start: float
    end: float


def _read_ave(folder: Path) -> FeatureLists:
    """AVE (Tian et al., ECCV 2018): an event in each clip of ten seconds, with its place in time.

    A video may have several lines, with different events; each is a clip of its own, the second one named
    ``VIDEO#2``, as the arrays that go with the lists have a row per line.
    """
    annotated = (folder / AVE_ANNOTATIONS).is_file()
    sources = [AVE_ANNOTATIONS] if annotated else list(AVE_LISTS.values())
    records = [record for name in sources for record in _ave_records(folder / name)]
    names, seen = [], dict.fromkeys((record.video for record in records), 0)
    for record in records:
        seen[record.video] += 1
        names.append(record.video if seen[record.video] == 1 else f"{record.video}#{seen[record.video]}")
    splits = _ave_splits(folder, records)
    clips, events, keys, rows = [], [], {}, {}
    for row, (name, record) in enumerate(zip(names, records, strict=True)):
        if row not in splits:
            continue
        clips.append(LabelledClip(name, (record.label,), splits[row]))
        keys[name] = (name, record.video)
        if annotated:
            rows[name] = row
        if record.end > record.start:
            times = (record.label, record.start, record.end, None)
            events += [Annotation(name, modality, *times) for modality in ("visual", "audio")]
    return _lists(clips, events, keys, rows)


def _ave_splits(folder: Path, records: Sequence[_Record]) -> dict[int, str]:
    """Split of each record that has one: from the order files, else the lists, else by name."""
    if any((folder / name).is_file() for name in AVE_ORDERS.values()):
        splits = {}
        for split, name in AVE_ORDERS.items():
            for row in read_array(folder / name, "order").tolist():
                if not 0 <= row < len(records):
                    raise InputError(
                        f"{folder / name}: row {row} of {len(records)} lines in {AVE_ANNOTATIONS}; give the "
                        "files of one release"
                    )
                splits[row] = split
        return splits
    listed = {
        record: split
        for split, name in AVE_LISTS.items()
        if (folder / name).is_file()
        for record in _ave_records(folder / name)
    }
    if not listed:
        return {row: hash_split(record.video) for row, record in enumerate(records)}
    return {row: listed[record] for row, record in enumerate(records) if record in listed}


def _ave_records(path: Path) -> list[_Record]:
    records = []
    for number, line in enumerate(_lines(path), start=1):
        fields = [field.strip() for field in line.split("&")]
        if not line.strip() or (number == 1 and fields[0] == AVE_HEADER):
            continue
        where = f"{path}, line {number}"
        if len(fields) != 5:
            raise InputError(f"{where}: expected Category&VideoID&Quality&StartTime&EndTime, got {line!r}")
        records.append(_Record(fields[0], fields[1], _seconds(fields[3], where), _seconds(fields[4], where)))
    return records


def _lists(
    clips: Any, events: list[Annotation], keys: Mapping[str, tuple[str, ...]], rows: Mapping[str, int]
) -> FeatureLists:
    ordered = tuple(sorted(clips, key=lambda clip: clip.clip))
    classes = tuple(sorted({label for clip in ordered for label in clip.labels}))
    return FeatureLists(classes, ordered, Annotations(tuple(events)) if events else None, keys, rows)


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Place and fields of each row of a tab-separated file; nothing where the file is absent."""
    if not path.is_file():
        return
    lines = _lines(path)
    if not lines or tuple(lines[0].split("\t")) != columns:
        raise InputError(f"{path}: expected a first line of {', '.join(columns)}, separated by tabs")
    for number, line in enumerate(lines[1:], start=2):
        fields = [field.strip() for field in line.split("\t")]
        if fields == [""]:
            continue
        if len(fields) != len(columns) or not all(fields):
            raise InputError(f"{path}, line {number}: expected {len(columns)} fields, got {line!r}")
        yield f"{path}, line {number}", fields


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{where}: expected a time in seconds, got {text!r}")
    return value
