"""The job that turns media files into shards: parallel over files, whole or resumable whenever it dies."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from avfast import sandbox
from avfast.data import shards
from avfast.data.clip_index import INDEX, open_index, write_columns
from avfast.data.clips import Outcome, Settings, Staged, Task, inventory, prepare_file
from avfast.data.files import TEMPORARY_PREFIX, exclusive, write_json, write_text
from avfast.data.labels import SPLITS, Annotation, Annotations, Labels, annotations_csv, csv_text
from avfast.engines import Engine, unordered
from avfast.errors import InputError

MANIFEST = "manifest.csv"
MISSING = "no such file"
"""Begins the reason of a clip whose file is not there."""

STAGING = ".staging"
"""Folder under the output that holds finished clips until all are packed."""


def prepare(
    source: Path,
    labels: Labels,
    out: Path,
    settings: Settings,
    engine: Engine,
    limits: sandbox.Limits | None = None,
    shard_bytes: int = shards.SHARD_BYTES,
) -> list[Outcome]:
    """Prepare every clip of a data set and pack them into shards.

    A finished clip is kept under ``out/.staging`` by an atomic rename, so that the same call after a crash
    does only what is missing. When all are done they are packed in the order of their names: the shards are
    the same bytes whatever the engine, the number of workers and of interruptions. ``index.json`` is written
    last.

    Args:
        source: Folder of the media files.
        labels: The clips, from ``label_lists.read_labels``.
        out: Folder to make; may hold the unfinished work of the same call.
        settings: How to prepare a clip.
        engine: Where the work runs.
        limits: Time and memory that one clip may take; None for the defaults.
        shard_bytes: A shard is closed before it grows beyond this.

    Returns:
        One outcome for each clip of ``labels``, or for each clip cut from it, sorted by name; also written to
        ``out/manifest.csv``.

    Raises:
        InputError: When ``source`` is missing, ``out`` holds something else, is in use or full, or no clip
            could be prepared.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the folder that the labels' paths start from")
    with _explained(out):
        out.mkdir(parents=True, exist_ok=True)
    with _explained(out), exclusive(out, wait=False):
        staging = out / STAGING
        identity = _identity(labels, settings, shard_bytes)
        if (out / INDEX).is_file():
            return _finished(out, staging, identity)
        _claim(out, staging, settings)

        outcomes, tasks = _plan(source, labels, staging)
        staged: list[Staged] = []
        for found in _work(tasks, settings, engine, limits or sandbox.Limits()):
            if isinstance(found, Staged):
                staged.append(found)
                found = Outcome(found.clip.clip, "ok", found.lacks)
            outcomes.append(found)
        outcomes.sort(key=lambda outcome: (outcome.clip, outcome.status))
        write_text(out / MANIFEST, _manifest(outcomes))
        if not staged:
            raise InputError(f"{out / MANIFEST}: no clip could be prepared; the column 'reason' says why")
        _pack(out, labels, staged, settings, identity, shard_bytes)
        shutil.rmtree(staging, ignore_errors=True)
        return outcomes


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """A full disk, and a folder in use, as errors that say what to do."""
    try:
        yield
    except BlockingIOError as error:
        raise InputError(
            f"{out}: another run is at work here; wait for it, or choose another --out"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{out}: the disk is full; free some space and run the same command again, it goes on where it "
            "stopped"
        ) from error


def read_manifest(path: Path) -> list[Outcome]:
    """The rows of a ``manifest.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Outcome(**row) for row in csv.DictReader(file)]


def _plan(source: Path, labels: Labels, staging: Path) -> tuple[list[Outcome], list[Task]]:
    """Which files can be tried, and the outcomes of those that cannot."""
    refused: list[Outcome] = []
    tasks: list[Task] = []
    root, staged = source.resolve(), inventory(staging)
    for clip in labels.clips:
        video, sound = source / clip.clip, source / (clip.audio or clip.clip)
        try:
            for path in (video, sound):
                _check(path, root)
            stem = staging.absolute() / _state(clip.clip, video, sound)
        except InputError as error:
            refused.append(Outcome(clip.clip, "skipped", str(error)))
        except (OSError, ValueError, RuntimeError) as error:  # names and links that the system does not take
            refused.append(Outcome(clip.clip, "skipped", f"cannot be reached: {error}"))
        else:
            tasks.append(Task(clip, video.absolute(), sound.absolute(), stem, staged[stem.name]))
    return refused, tasks


def _check(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise InputError(f"lies outside the source folder: {path}")
    if not path.exists():
        raise InputError(f"{MISSING}: {path}")
    if not path.is_file():
        raise InputError(f"not a regular file: {path}")


def _work(
    tasks: Sequence[Task], settings: Settings, engine: Engine, limits: sandbox.Limits
) -> Iterator[Staged | Outcome]:
    """What is staged already, then everything else as it comes."""
    todo = []
    for task in tasks:
        if task.finished.is_file():
            yield from (task.read_staged(seconds, settings) for seconds in task.staged)
        else:
            todo.append(task)
    calls = ((sandbox.pack(prepare_file, task, settings), limits) for task in todo)
    bar = tqdm(
        total=len(tasks),
        initial=len(tasks) - len(todo),
        desc="prepare",
        unit=" clips" if settings.clip_seconds is None else " files",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
        disable=not tasks,
    )
    skipped = 0
    with bar:
        for position, result in unordered(sandbox.run, calls, engine):
            found = result.read()
            yield from found
            if result.death:
                after = f" after {found[-1].clip.clip}" if found else ""
                yield Outcome(todo[position].clip.clip, "skipped", result.death + after)
            skipped += bool(result.death) or any(isinstance(item, Outcome) for item in found)
            bar.set_postfix(skipped=skipped, refresh=False)
            bar.update()


def _pack(
    out: Path,
    labels: Labels,
    staged: Sequence[Staged],
    settings: Settings,
    identity: str,
    shard_bytes: int,
) -> None:
    if labels.annotations is not None:
        rows = labels.annotations
        if settings.clip_seconds is not None:
            rows = _cut(rows, staged)
        write_text(out / shards.ANNOTATIONS, annotations_csv(rows))
    ordered = sorted(staged, key=lambda item: (SPLITS.index(item.clip.split), item.clip.clip))
    packed = [(item.clip, item.path) for item in ordered]
    options = settings.record() | {"identity": identity}
    shards.write_shards(out, labels.classes, packed, options, shard_bytes)


def _cut(annotations: Annotations, staged: Sequence[Staged]) -> Annotations:
    """The ground truth of files as that of the clips cut from them: times count from the clip's start."""
    clips: dict[str, list[Staged]] = defaultdict(list)
    for item in staged:
        clips[item.file].append(item)
    rows: list[Annotation] = []
    for row in annotations.rows:
        for item in clips[row.clip]:
            start, end = item.seconds
            if start <= row.start < end or row.start < start < row.end:
                shown = (max(row.start, start) - start, min(row.end, end) - start)
                rows.append(replace(row, clip=item.clip.clip, start=shown[0], end=shown[1]))
    return Annotations(tuple(rows))


def _state(clip: str, *paths: Path) -> str:
    """A name that changes when the clip's files do."""
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([clip, stats]).encode()).hexdigest()[:32]


def _manifest(outcomes: Sequence[Outcome]) -> str:
    rows = ((outcome.clip, outcome.status, outcome.reason) for outcome in outcomes)
    return csv_text([("clip", "status", "reason"), *rows])


def _identity(labels: Labels, settings: Settings, shard_bytes: int) -> str:
    """A digest of everything asked for."""
    clips = [asdict(clip) for clip in labels.clips]
    asked = json.dumps([labels.classes, clips, settings.record(), shard_bytes], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _finished(out: Path, staging: Path, identity: str) -> list[Outcome]:
    """The outcomes of a folder that is complete already."""
    index = open_index(out)
    if index.head["options"].get("identity") != identity:
        raise InputError(f"{out}: holds data prepared from other labels or options; choose another --out")
    if index.root is None:  # prepared by an earlier version, or killed between the two files
        write_columns(out, index)
    shutil.rmtree(staging, ignore_errors=True)
    return read_manifest(out / MANIFEST)


def _claim(out: Path, staging: Path, settings: Settings) -> None:
    """Make the staging folder, or make sure that what it holds was prepared with the same settings."""
    staging.mkdir(exist_ok=True)
    for folder in (out, staging):
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
            leftover.unlink(missing_ok=True)
    path, record = staging / "settings.json", settings.record()
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(record)):
        raise InputError(
            f"{staging}: unfinished work with other options; finish it with the same ones, or delete this"
        )
    write_json(path, record)
