"""The job that turns media files into shards: parallel over clips, whole or resumable whenever it dies."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.typing import NDArray
from tqdm import tqdm

from avfast.data import shards
from avfast.data.files import TEMPORARY_PREFIX, atomic_write, write_json, write_text
from avfast.data.labels import SPLITS, LabelledClip, Labels, annotations_csv
from avfast.data.media import SAMPLE_RATE, Frame, read_frames, read_sound
from avfast.data.opencv import cv2
from avfast.data.proposals import EdgeBoxesParameters, propose
from avfast.errors import InputError

MANIFEST = "manifest.csv"
STAGING = ".staging"
"""Folder under the output that holds finished clips until all are packed."""


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a prepared clip, beside the clip."""

    fps: float = 1.0
    """Frames per second of video."""
    long_side: int = 640
    """Pixels; larger pictures are scaled down to this."""
    proposals: int = 100
    """Boxes kept of a frame, at most."""
    edge_boxes: EdgeBoxesParameters = field(default_factory=EdgeBoxesParameters)
    """Parameters of EdgeBoxes."""
    edge_model: Path | None = None
    """OpenCV's structured edge forest; None for gradients."""

    def record(self) -> dict[str, Any]:
        """The same as plain values; an edge model counts by its content, not by its place."""
        record = asdict(self)
        if self.edge_model is not None:
            record["edge_model"] = hashlib.sha256(self.edge_model.read_bytes()).hexdigest()
        return record

    @classmethod
    def of_record(cls, record: Mapping[str, Any], edge_model: Path | None = None) -> Settings:
        """The settings that ``record`` described.

        Args:
            record: May hold more.
            edge_model: The file whose digest the record holds; None where it holds none.

        Raises:
            InputError: It is another edge model.
        """
        values = {name: record[name] for name in cls.__dataclass_fields__}
        edge_boxes = EdgeBoxesParameters(**values["edge_boxes"])
        settings = cls(**{**values, "edge_boxes": edge_boxes, "edge_model": edge_model})
        if settings.record()["edge_model"] != values["edge_model"]:
            wanted = values["edge_model"] and f"the edge model with SHA-256 {values['edge_model']}"
            raise InputError(
                f"the run's clips were prepared with {wanted or 'edges from gradients'}; "
                f"{'give its file as --edge-model' if wanted else 'leave out --edge-model'}"
            )
        return settings


@dataclass(frozen=True)
class PreparedFrame:
    """A sampled frame as shards hold it."""

    time: float
    """Seconds from the start of the file."""
    source_size: tuple[int, int]
    """(width, height) in pixels of the source picture."""
    jpeg: bytes
    proposals: NDArray[np.float32]
    """[R, 5], best first: xyxy in pixels of the JPEG, then the score."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input clip: a row of the manifest."""

    clip: str
    status: str
    """ok or skipped."""
    reason: str = ""
    """Why it was skipped, or what it lacks."""


@dataclass(frozen=True)
class Task:
    """A clip to prepare."""

    clip: LabelledClip
    video: Path
    """Where its picture is."""
    sound: Path
    """Where its sound is: the same file, or a sidecar."""
    staged: Path
    """Where the finished clip goes; the name tells the state of the input files."""


def prepare(source: Path, labels: Labels, out: Path, settings: Settings, workers: int) -> list[Outcome]:
    """Prepare every clip of a data set and pack them into shards.

    A finished clip is kept under ``out/.staging`` by an atomic rename, so that the same call after a crash
    does only what is missing. When all are done they are packed in the order of their names: the shards are
    the same bytes whatever the number of workers and of interruptions. ``index.json`` is written last.

    Args:
        source: Folder of the media files.
        labels: The clips, from ``read_labels``.
        out: Folder to make; may hold the unfinished work of the same call.
        settings: How to prepare a clip.
        workers: Processes.

    Returns:
        One outcome for each clip of ``labels``, sorted by name; also written to ``out/manifest.csv``.

    Raises:
        InputError: When ``source`` is missing, ``out`` holds something else, or no clip could be prepared.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the folder that the labels' paths start from")
    out.mkdir(parents=True, exist_ok=True)
    staging = out / STAGING
    identity = _identity(labels, settings)
    if (out / shards.INDEX).is_file():
        return _finished(out, staging, identity)
    _claim(staging, settings)
    for leftover in out.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink()

    outcomes, tasks = _plan(source, labels, staging)
    outcomes += _work(tasks, settings, workers)
    outcomes.sort(key=lambda outcome: outcome.clip)
    write_text(out / MANIFEST, _manifest(outcomes))
    ready = {outcome.clip for outcome in outcomes if outcome.status == "ok"}
    if not ready:
        raise InputError(f"{out / MANIFEST}: no clip could be prepared; the column 'reason' says why")

    if labels.annotations is not None:
        write_text(out / shards.ANNOTATIONS, annotations_csv(labels.annotations))
    packed = sorted(
        ((task.clip, task.staged) for task in tasks if task.clip.clip in ready),
        key=lambda item: (SPLITS.index(item[0].split), item[0].clip),
    )
    shards.write_shards(out, labels.classes, packed, settings.record() | {"identity": identity})
    shutil.rmtree(staging)
    return outcomes


def read_manifest(path: Path) -> list[Outcome]:
    """The rows of a ``manifest.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Outcome(**row) for row in csv.DictReader(file)]


def prepare_clip(task: Task, settings: Settings) -> Outcome:
    """Read, encode and stage one clip; runs in a worker."""
    cv2.setNumThreads(1)  # clips are the unit of parallel work
    try:
        members, lacks = _encode(task, settings)
    except InputError as error:
        return Outcome(task.clip.clip, "skipped", str(error))
    except Exception as error:  # whatever a file provokes in a decoder, the other clips go on
        return Outcome(task.clip.clip, "skipped", f"{type(error).__name__}: {error}")
    with atomic_write(task.staged) as file:
        shards.write_members(file, "clip", members)
        shards.end_tar(file)
    return Outcome(task.clip.clip, "ok", lacks)


def prepare_frame(frame: Frame, settings: Settings) -> PreparedFrame:
    """Find a frame's proposals and compress it."""
    found = propose(frame.image, settings.proposals, settings.edge_boxes, settings.edge_model)
    proposals = np.hstack([found.boxes, found.scores[:, None]])
    return PreparedFrame(frame.time, frame.source_size, shards.encode_jpeg(frame.image), proposals)


def pack(
    frames: Sequence[PreparedFrame], sound: NDArray[np.float32], note: str = "", start: float = 0.0
) -> dict[str, bytes]:
    """The members of a clip.

    Args:
        frames: In the order of time; may be empty.
        sound: [T] at 16 kHz; may be empty.
        note: What the clip lacks.
        start: Seconds into the file at which the clip begins; its own times count from there.
    """
    facts = {
        "frame_times": [round(frame.time - start, 6) for frame in frames],
        "frame_size": frames[0].source_size if frames else (0, 0),
        "sound_seconds": round(len(sound) / SAMPLE_RATE, 6),
        "lacks": note,
    }
    members = {shards.FACTS: shards.encode_facts(facts)}
    members |= {shards.frame_member(index): frame.jpeg for index, frame in enumerate(frames)}
    if frames:
        rows = [np.insert(frame.proposals, 0, index, axis=1) for index, frame in enumerate(frames)]
        members[shards.PROPOSALS] = shards.encode_array(np.concatenate(rows))
    if len(sound):
        members[shards.SOUND] = shards.encode_sound(sound)
    return members


def unpack(members: Mapping[str, bytes]) -> tuple[list[PreparedFrame], NDArray[np.float32]]:
    """What ``pack`` put together: the frames, with times from the clip's start, and the sound."""
    facts = json.loads(members[shards.FACTS])
    times, size = facts["frame_times"], tuple(facts["frame_size"])
    table = np.zeros((0, len(shards.PROPOSAL_COLUMNS)), np.float32)
    if times:
        table = np.load(io.BytesIO(members[shards.PROPOSALS]), allow_pickle=False)
    frames = [
        PreparedFrame(time, size, members[shards.frame_member(index)], table[table[:, 0] == index, 1:])
        for index, time in enumerate(times)
    ]
    silence = np.zeros(0, np.float32)
    return frames, shards.decode_sound(members[shards.SOUND]) if shards.SOUND in members else silence


def _encode(task: Task, settings: Settings) -> tuple[dict[str, bytes], str]:
    """A clip's members, and what it lacks."""
    frames: list[PreparedFrame] = []
    lacks: list[str] = []
    try:
        for frame in read_frames(task.video, settings.fps, settings.long_side):
            frames.append(prepare_frame(frame, settings))
    except InputError as error:
        lacks.append(_without_path(error, task.video))
    try:
        sound = read_sound(task.sound)
    except InputError as error:
        sound = np.zeros(0, np.float32)
        lacks.append(_without_path(error, task.sound))
    if not frames and not len(sound):
        raise InputError("; ".join(dict.fromkeys(lacks)) or "neither picture nor sound could be read")
    lacks += ["no picture"] * (not frames) + ["no sound"] * (not len(sound))
    note = "; ".join(dict.fromkeys(lacks))
    return pack(frames, sound, note), note


def _without_path(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _plan(source: Path, labels: Labels, staging: Path) -> tuple[list[Outcome], list[Task]]:
    """Which clips can be tried, and the outcomes of those that cannot."""
    refused: list[Outcome] = []
    tasks: list[Task] = []
    root = source.resolve()
    for clip in labels.clips:
        video, sound = source / clip.clip, source / (clip.audio or clip.clip)
        outside = [path for path in (video, sound) if not path.resolve().is_relative_to(root)]
        missing = [path for path in (video, sound) if not path.is_file()]
        if outside:
            refused.append(Outcome(clip.clip, "skipped", f"lies outside the source folder: {outside[0]}"))
        elif missing:
            refused.append(Outcome(clip.clip, "skipped", f"no such file: {missing[0]}"))
        else:
            tasks.append(Task(clip, video, sound, staging / f"{_state(clip.clip, video, sound)}.tar"))
    return refused, tasks


def _state(clip: str, *paths: Path) -> str:
    """A name that changes when the clip's files do."""
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([clip, stats]).encode()).hexdigest()[:32]


def _work(tasks: Sequence[Task], settings: Settings, workers: int) -> list[Outcome]:
    """Prepare what is not staged yet."""
    done = [task for task in tasks if task.staged.is_file()]
    todo = [task for task in tasks if not task.staged.is_file()]
    outcomes = [Outcome(task.clip.clip, "ok", _staged_note(task.staged)) for task in done]
    progress = tqdm(total=len(tasks), initial=len(done), desc="prepare", unit="clip", disable=not tasks)
    with progress:
        for outcome in _run(todo, settings, workers):
            outcomes.append(outcome)
            progress.update()
    return outcomes


def _run(tasks: Sequence[Task], settings: Settings, workers: int) -> Iterator[Outcome]:
    """Outcomes as they come; a bounded number of clips is in flight."""
    jobs = (joblib.delayed(prepare_clip)(task, settings) for task in tasks)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
        try:
            yield from pool(jobs)
        except TerminatedWorkerError as error:
            raise InputError(
                "a worker process died, perhaps for want of memory; run the same command again with fewer "
                "workers, it goes on where it stopped"
            ) from error


def _staged_note(path: Path) -> str:
    return json.loads(shards.read_members(path)[shards.FACTS])["lacks"]


def _manifest(outcomes: Sequence[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "status", "reason"])
    writer.writerows((outcome.clip, outcome.status, outcome.reason) for outcome in outcomes)
    return text.getvalue()


def _identity(labels: Labels, settings: Settings) -> str:
    """A digest of everything asked for."""
    clips = [asdict(clip) for clip in labels.clips]
    asked = json.dumps([labels.classes, clips, settings.record()], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _finished(out: Path, staging: Path, identity: str) -> list[Outcome]:
    """The outcomes of a folder that is complete already."""
    if shards.read_index(out)["options"].get("identity") != identity:
        raise InputError(f"{out}: holds data prepared from other labels or options; choose another --out")
    shutil.rmtree(staging, ignore_errors=True)
    return read_manifest(out / MANIFEST)


def _claim(staging: Path, settings: Settings) -> None:
    """Make the staging folder, or make sure that what it holds was prepared with the same settings."""
    staging.mkdir(exist_ok=True)
    path, record = staging / "settings.json", settings.record()
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(record)):
        raise InputError(
            f"{staging}: unfinished work with other options; finish it with the same ones, or delete this"
        )
    write_json(path, record)
