"""Which clips there are, what they show, and where: lists of weak labels, and annotations for evaluation."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avfast.errors import InputError

SPLITS = ("train", "val", "test")
MODALITIES = ("visual", "audio")

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1
"""Of the clips whose split is not given; the rest is for the test."""

_ANNOTATION_COLUMNS = ("clip", "modality", "class", "start", "end", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class LabelledClip:
    """One row of a list."""

    clip: str
    """Path of the media file under the source folder, with forward slashes."""
    labels: tuple[str, ...]
    """What is seen or heard in it, sorted; may be empty."""
    split: str
    """One of ``SPLITS``."""
    audio: str | None = None
    """Path under the source folder of a sound file that replaces the clip's own sound track."""


@dataclass(frozen=True)
class Annotation:
    """Where one event is seen or heard; for evaluation only."""

    clip: str
    modality: str
    """One of ``MODALITIES``."""
    label: str
    start: float
    """Seconds. A visual annotation of one picture has ``end == start``."""
    end: float
    box: tuple[float, float, float, float] | None
    """xyxy in source pixels; None for sound, and for an object that is in sight but was not boxed."""


@dataclass(frozen=True)
class Annotations:
    """Ground truth of a set of clips."""

    rows: tuple[Annotation, ...]

    def of(self, clips: Iterable[str]) -> Annotations:
        """The rows that belong to ``clips``."""
        wanted = set(clips)
        return Annotations(tuple(row for row in self.rows if row.clip in wanted))

    @property
    def visual(self) -> tuple[Annotation, ...]:
        """Rows with a box."""
        return tuple(row for row in self.rows if row.modality == "visual" and row.box is not None)

    @property
    def seen(self) -> tuple[Annotation, ...]:
        """Rows with an interval of sight and no box."""
        return tuple(
            row for row in self.rows if row.modality == "visual" and row.box is None and row.end > row.start
        )

    @property
    def audio(self) -> tuple[Annotation, ...]:
        """Rows with an interval of sound."""
        return tuple(row for row in self.rows if row.modality == "audio")


@dataclass(frozen=True)
class Labels:
    """A data set as its lists describe it."""

    classes: tuple[str, ...]
    clips: tuple[LabelledClip, ...]
    """Sorted by name, without repetition."""
    annotations: Annotations | None
    """None where the lists come without ground truth."""


def read_csv(path: Path, source: Path) -> Labels:
    """Read ``labels.csv``, and ``annotations.csv`` where it lies beside it.

    The header is ``clip,labels`` with optional columns ``split`` and ``audio``; labels are separated by
    ``;`` and sorted to give the classes. A clip without a split gets one by ``hash_split``.
    """
    clips: dict[str, LabelledClip] = {}
    for line, row in csv_rows(path, required=("clip", "labels"), optional=("split", "audio")):
        clip = _labelled_clip(row, where=f"{path}, line {line}")
        if clip.clip in clips:
            raise InputError(f"{path}, line {line}: {clip.clip!r} is listed twice; give each clip one row")
        clips[clip.clip] = clip
    classes = tuple(sorted({label for clip in clips.values() for label in clip.labels}))
    if not classes:
        raise InputError(f"{path}: no clip has a label; fill the column 'labels'")
    annotations = path.with_name("annotations.csv")
    return Labels(
        classes=classes,
        clips=tuple(clips[name] for name in sorted(clips)),
        annotations=read_annotations(annotations) if annotations.is_file() else None,
    )


def hash_split(clip: str) -> str:
    """A split that depends on the clip's name alone: 80 % train, 10 % val, 10 % test."""
    position = int.from_bytes(hashlib.sha256(clip.encode()).digest()[:8], "big") / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "val" if position < TRAIN_SHARE + VAL_SHARE else "test"


def read_annotations(path: Path) -> Annotations:
    """Read ``annotations.csv``: ``clip,modality,class,start,end,x1,y1,x2,y2``.

    Visual rows give a box in source pixels at a time, audio rows an interval in seconds and no box. The
    columns ``peak`` and ``score``, which ``avfast.localize`` adds, may stay.

    Raises:
        InputError: Naming the line, when a row cannot be understood.
    """
    rows = csv_rows(path, required=_ANNOTATION_COLUMNS, optional=("peak", "score"))
    return Annotations(tuple(_annotation(row, where=f"{path}, line {line}") for line, row in rows))


def annotations_csv(annotations: Annotations) -> str:
    """The text that ``read_annotations`` reads."""
    rows = (
        (row.clip, row.modality, row.label, row.start, row.end, *(row.box or ("",) * 4))
        for row in annotations.rows
    )
    return csv_text([_ANNOTATION_COLUMNS, *rows])


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV that gives the same values back, whatever they hold."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # a carriage return ends a line for the reader, but the writer does not quote it
        (quoted if any("\r" in str(value) for value in row) else plain).writerow(row)
    return text.getvalue()


def csv_rows(
    path: Path, required: Iterable[str], optional: Iterable[str]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Rows of a CSV file with a header, each with the number of its last line; blank lines do not count."""
    required, known = tuple(required), {*required, *optional}
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in required if name not in header]
        if missing:
            raise InputError(
                f"{path}: the header lacks {', '.join(missing)}; the first line must be {','.join(required)}"
            )
        unknown = [name for name in header if name not in known]
        if unknown or len(set(header)) < len(header):
            raise InputError(f"{path}: unknown or repeated columns in the header: {','.join(header)}")
        reader.fieldnames = header
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {reader.line_num}: expected {len(header)} columns")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def read_text(path: Path) -> str:
    """A list as text.

    Raises:
        InputError: When it is missing or not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


def _labelled_clip(row: Mapping[str, str], where: str) -> LabelledClip:
    clip = row["clip"].strip()
    if not clip:
        raise InputError(f"{where}: the column 'clip' is empty")
    split = (row.get("split") or "").strip() or hash_split(clip)
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    labels = {label.strip() for label in row["labels"].split(";")} - {""}
    return LabelledClip(clip, tuple(sorted(labels)), split, (row.get("audio") or "").strip() or None)


def _annotation(row: Mapping[str, str], where: str) -> Annotation:
    modality = row["modality"].strip()
    if modality not in MODALITIES:
        raise InputError(f"{where}: unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}")
    start, end = (parse_number(row, name, where) for name in ("start", "end"))
    if end < start:
        raise InputError(f"{where}: the end {end:g} lies before the start {start:g}")
    corners = ("x1", "y1", "x2", "y2")
    boxed = modality == "visual" and any(row[name].strip() for name in corners)
    box = tuple(parse_number(row, name, where) for name in corners) if boxed else None
    if box is not None and (box[2] <= box[0] or box[3] <= box[1]):
        raise InputError(f"{where}: the box {box} is empty; expected x1 < x2 and y1 < y2")
    return Annotation(row["clip"].strip(), modality, row["class"].strip(), start, end, box)  # type: ignore[arg-type]


def parse_number(row: Mapping[str, str], column: str, where: str) -> float:
    """A column of a row as a finite number; ``where`` is what an error names."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {column} is {row[column]!r}; expected a number")
    return value
