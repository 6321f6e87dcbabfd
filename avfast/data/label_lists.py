"""Label lists as they are published: AudioSet, DCASE 2017 task 4, and this package's own CSV."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from avfast.data.labels import (
    Annotation,
    Annotations,
    LabelledClip,
    Labels,
    csv_rows,
    hash_split,
    parse_number,
    read_csv,
    read_text,
)
from avfast.data.media import SOUND_SUFFIXES, VIDEO_SUFFIXES
from avfast.errors import InputError

DCASE2017_CLASSES = (
    "Train horn",
    "Air horn, truck horn",
    "Car alarm",
    "Reversing beeps",
    "Bicycle",
    "Skateboard",
    "Ambulance (siren)",
    "Fire engine, fire truck (siren)",
    "Civil defense siren",
    "Police car (siren)",
    "Screaming",
    "Car",
    "Car passing by",
    "Bus",
    "Truck",
    "Motorcycle",
    "Train",
)
"""The 17 classes of DCASE 2017 task 4, in the order of its lists."""

DCASE2017_SPLITS = {"training": "train", "testing": "val", "evaluation": "test"}

AUDIOSET_CLASSES = "class_labels_indices.csv"
AUDIOSET_SPLITS = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}


def read_labels(path: Path, source: Path, format: str = "csv") -> Labels:
    """Read the list of clips and what is known about them.

    Args:
        path: What the format asks for: ``labels.csv``, or a folder of lists.
        source: Folder of the media files.
        format: A key of ``FORMATS``.

    Returns:
        The clips that the lists name, whether or not their files exist.

    Raises:
        InputError: When the lists cannot be read or contradict themselves.
    """
    return FORMATS[format](path, source)


def read_dcase2017(folder: Path, source: Path) -> Labels:
    """Read the lists of DCASE 2017 task 4 from their folder.

    ``groundtruth_weak_label_{training,testing,evaluation}_set.csv`` become the splits train, val and test;
    the intervals of ``groundtruth_strong_label_*`` become annotations. The file of a clip, anywhere under
    ``source``, is found by its stem: for 30 s to 40 s of the video ID that is one of ``ID_30.000_40.000``,
    ``ID_30000_40000``, ``ID_30_40``, ``ID_000030`` or ``ID``, each also with the letter Y in front, as
    download tools give them; a video rather than a sound file where there are both.
    """
    media = _media_by_stem(source)
    labels: dict[str, set[str]] = {}
    splits: dict[str, str] = {}
    for name, split in DCASE2017_SPLITS.items():
        path = folder / f"groundtruth_weak_label_{name}_set.csv"
        for line, (file, _, _, label) in _dcase_rows(path):
            if splits.setdefault(file, split) != split:
                raise InputError(f"{path}, line {line}: {file!r} is also in the list for {splits[file]}")
            labels.setdefault(file, set()).add(label)
    if not labels:
        raise InputError(f"{folder}: found no groundtruth_weak_label_*_set.csv of DCASE 2017 task 4")
    clips = [
        LabelledClip(_dcase_clip(file, media), tuple(sorted(labels[file])), splits[file]) for file in labels
    ]
    return Labels(
        classes=DCASE2017_CLASSES,
        clips=tuple(sorted(clips, key=lambda clip: clip.clip)),
        annotations=_dcase_annotations(folder, media),
    )


def read_audioset(folder: Path, source: Path) -> Labels:
    """Read the segment lists of AudioSet from their folder.

    ``class_labels_indices.csv`` gives the classes in their official order, under their display names. Of
    ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv`` and ``eval_segments.csv`` those that
    are there are read; AudioSet has no validation split, so the training segments that ``hash_split`` puts
    there make one. Files are found by their names, see ``read_dcase2017``.

    Raises:
        InputError: When the lists are missing, damaged or contradict themselves.
    """
    path = folder / AUDIOSET_CLASSES
    columns = ("index", "mid", "display_name")
    table = {row["mid"].strip(): row["display_name"].strip() for _, row in csv_rows(path, columns, ())}
    media = _media_by_stem(source)
    labels: dict[str, set[str]] = defaultdict(set)
    splits: dict[str, str] = {}
    for name, listed in AUDIOSET_SPLITS.items():
        path = folder / f"{name}_segments.csv"
        for where, (video, start, end, mids) in _audioset_rows(path):
            unknown = [mid for mid in mids if mid not in table]
            if unknown:
                raise InputError(f"{where}: {unknown[0]!r} is not in {AUDIOSET_CLASSES}")
            segment = f"{video}_{start:.3f}_{end:.3f}"
            split = "val" if listed == "train" and hash_split(segment) == "val" else listed
            clip = _segment_file(segment, media) or segment
            if splits.setdefault(clip, split) != split:
                raise InputError(f"{where}: {clip!r} is also in the list for {splits[clip]}")
            labels[clip].update(table[mid] for mid in mids)
    if not labels:
        lists = ", ".join(f"{name}_segments.csv" for name in AUDIOSET_SPLITS)
        raise InputError(f"{folder}: found no segments of AudioSet; expected one of {lists}")
    clips = (LabelledClip(clip, tuple(sorted(labels[clip])), splits[clip]) for clip in sorted(labels))
    return Labels(classes=tuple(table.values()), clips=tuple(clips), annotations=None)


FORMATS: dict[str, Callable[[Path, Path], Labels]] = {
    "csv": read_csv,
    "dcase2017": read_dcase2017,
    "audioset": read_audioset,
}


def _audioset_rows(path: Path) -> Iterator[tuple[str, tuple[str, float, float, list[str]]]]:
    """Place, then video, start, end and MIDs of each segment of a list; nothing where the list is absent."""
    if not path.is_file():
        return
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if not row or row[0].startswith("#"):  # the three lines of the header
                continue
            where = f"{path}, line {reader.line_num}"
            if len(row) != 4 or not row[0].strip() or not row[3].strip():
                raise InputError(f"{where}: expected video, start, end and labels, got {','.join(row)!r}")
            times = dict(zip(("start", "end"), row[1:3], strict=True))
            start, end = (parse_number(times, name, where) for name in times)
            yield where, (row[0].strip(), start, end, [mid.strip() for mid in row[3].split(",")])
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _segment_file(stem: str, media: Mapping[str, str]) -> str | None:
    """The file of a segment ``ID_START_END`` (seconds), under any of the names that download tools give."""
    try:
        video, *times = stem.rsplit("_", 2)
        start, end = (float(time) for time in times)
    except ValueError:
        stems = [stem]
    else:
        exact, milliseconds = f"{start:.3f}_{end:.3f}", f"{1000 * start:.0f}_{1000 * end:.0f}"
        spans = (exact, milliseconds, f"{start:g}_{end:g}", f"{start:06.0f}")
        stems = [stem, *(f"{video}_{span}" for span in spans), video]
    return next((media[name] for stem in stems for name in (stem, f"Y{stem}") if name in media), None)


def _media_by_stem(source: Path) -> dict[str, str]:
    """Path under ``source`` of each media file by its stem; a video hides a sound file of the same stem."""
    files = (path for path in source.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES | SOUND_SUFFIXES)
    ranked = sorted(files, key=lambda path: (path.suffix.lower() in VIDEO_SUFFIXES, path.as_posix()))
    return {path.stem: path.relative_to(source).as_posix() for path in ranked}


def _dcase_clip(file: str, media: Mapping[str, str]) -> str:
    return _segment_file(file.removesuffix(".wav"), media) or file


def _dcase_annotations(folder: Path, media: Mapping[str, str]) -> Annotations | None:
    rows: list[Annotation] = []
    for name in DCASE2017_SPLITS:
        for _, (file, start, end, label) in _dcase_rows(folder / f"groundtruth_strong_label_{name}_set.csv"):
            if end > start:
                rows.append(Annotation(_dcase_clip(file, media), "audio", label, start, end, None))
    return Annotations(tuple(rows)) if rows else None


def _dcase_rows(path: Path) -> Iterator[tuple[int, tuple[str, float, float, str]]]:
    """(file, start, end, label) of each line of a list; nothing where the list is absent."""
    if not path.is_file():
        return
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        fields = [field.strip() for field in text.split("\t")]
        if len(fields) == 1:  # a blank line, or a file without events
            continue
        where = f"{path}, line {line}"
        if len(fields) != 4 or fields[3] not in DCASE2017_CLASSES:
            raise InputError(f"{where}: expected file, start, end and class, separated by tabs, got {text!r}")
        times = dict(zip(("start", "end"), fields[1:3], strict=True))
        yield (
            line,
            (fields[0], parse_number(times, "start", where), parse_number(times, "end", where), fields[3]),
        )
