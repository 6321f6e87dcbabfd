"""Localise events in videos: where in the picture, when in the sound, of any length, straight from the files.

    python -m avfast.localize runs/first video.mp4 --out found
    python -m avfast.localize runs/first videos/*.mp4 --out found --video
    python -m avfast.localize runs/first lecture.mkv --out found --hop 10 --frames

For each video, OUT gets

    STEM.json          all scores, regions, segments and events (docs/localization.md)
    STEM.csv           the events, in the columns of annotations.csv, as which it can serve once corrected
    STEM.png           frames, scores of regions, spectrogram and scores of sound on one time axis
    STEM.coco.json     the regions of the events, for annotation tools
    STEM.audacity.txt  the events in the sound, as a label track
    STEM.mp4           with --video: the video with boxes and scores drawn in, and its sound

and report.html shows all of them in a browser, without a network: boxes over the playing picture, a timeline
of picture and sound for each class, thresholds to move.

Files of another video are never replaced: a second video of the same stem becomes STEM-2. A video that cannot
be used is named, the others are still done, and the exit code is 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import tyro

from avfast.cli import run
from avfast.data.files import read_json, write_bytes, write_text
from avfast.data.media import read_frames
from avfast.data.shards import encode_jpeg
from avfast.errors import InputError
from avfast.inference import REGIONS_PER_FRAME, Localizer, readable
from avfast.localization import Localization
from avfast.report.exports import audacity_labels, coco_json, events_csv, frame_name
from avfast.report.figures import WIDTH, save_overview
from avfast.report.localization_page import ShownVideo, browser_media, localization_page
from avfast.report.overlay import draw_video
from avfast.runs import load_best, pick_device

SUFFIXES = (".json", ".csv", ".png", ".coco.json", ".audacity.txt", ".mp4", ".frames")
REPORT = "report.html"
SHOWN_VIDEOS = 20  # in one page, which holds a copy of each
MAX_STEM_BYTES = 200  # file systems allow 255 for a name


@dataclass
class Options:
    """What to localise, and what to write."""

    run: tyro.conf.Positional[Path]
    """Folder of a run (the --out of avfast.train), or the file that avfast.export made of it."""
    videos: tyro.conf.Positional[tuple[Path, ...]]
    """Videos, or files of sound alone."""
    out: Path
    """Folder for the results."""
    video: bool = False
    """Also write the video with boxes and scores drawn in, where there is picture."""
    frames: bool = False
    """Also write the sampled frames at full size, as STEM.coco.json names them."""
    hop: float | None = None
    """Seconds from one window to the next. Default: half a window, which is as long as a training clip."""
    regions: int = REGIONS_PER_FRAME
    """Regions of a frame to keep for a class, at most."""
    width: int = WIDTH
    """Of the picture, in pixels."""
    edge_model: Path | None = None
    """OpenCV's structured edge forest, if the run's clips were prepared with one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(options: Options) -> None:
    """Localise every video."""
    check(options)
    device, ops = pick_device(options.device)
    trained = load_best(options.run, device)
    localizer = Localizer(options.run, trained, options.edge_model)
    if options.hop is not None and options.hop > localizer.clip_seconds:
        raise InputError(f"--hop: expected at most a window, {localizer.clip_seconds} s, got {options.hop}")
    sampling = f"a frame every {1 / localizer.settings.fps:g} s"
    print(f"{ops}; {trained.config['model']['system']}, {len(trained.classes)} classes, {sampling}")
    options.out.mkdir(parents=True, exist_ok=True)
    videos = list(dict.fromkeys(options.videos))
    failures: list[str] = []
    shown: list[ShownVideo] = []
    for video in videos:
        try:
            result = localize(localizer, video, options)
            if len(shown) < SHOWN_VIDEOS:
                shown.append(ShownVideo(result, browser_media(video, result.video.seconds)))
        except InputError as error:
            failures.append(str(error))
            if len(videos) > 1:
                print(f"avfast.localize: {' '.join(str(error).split())}", file=sys.stderr)
    if shown:
        write_text(options.out / REPORT, localization_page(shown, read_metrics(options.run)))
        more = f", of the first {SHOWN_VIDEOS} videos" if len(videos) > SHOWN_VIDEOS else ""
        print(f"{options.out / REPORT}: to look at{more}")
    if len(failures) > 1 or (failures and len(videos) > 1):
        raise InputError(f"{len(failures)} of {len(videos)} videos could not be localised; see above")
    if failures:
        raise InputError(failures[0])


def check(options: Options) -> None:
    """Refuse options that make no sense."""
    if not options.videos:
        raise InputError("no video given; name one or more after the run")
    if options.hop is not None and not options.hop > 0:
        raise InputError(f"--hop: expected more than 0, got {options.hop}")
    if options.regions < 1:
        raise InputError(f"--regions: expected at least 1, got {options.regions}")
    if not 320 <= options.width <= 10_000:
        raise InputError(f"--width: expected 320 to 10000 pixels, got {options.width}")


def localize(localizer: Localizer, video: Path, options: Options) -> Localization:
    """Localise one video, write its files and say what was found.

    Raises:
        InputError: The video cannot be read.
    """
    result = localizer.predict(video, options.hop, options.regions, progress=True)
    stem = free_stem(video, options.out)
    place = options.out / stem
    result.save(place.with_name(f"{stem}.json"))
    write_text(place.with_name(f"{stem}.csv"), events_csv(result))
    write_text(place.with_name(f"{stem}.coco.json"), coco_json(result, f"{stem}.frames"))
    write_text(place.with_name(f"{stem}.audacity.txt"), audacity_labels(result))
    save_overview(result, place.with_name(f"{stem}.png"), options.width)
    if options.frames:
        write_frames(video, result, place.with_name(f"{stem}.frames"))
    if options.video and result.video.frame_times:
        draw_video(video, result, place.with_name(f"{stem}.mp4"))
    print(summary_line(result, stem))
    return result


def free_stem(video: Path, out: Path) -> str:
    """The name under which a video's results are kept: its stem, unless other files have it.

    Files whose JSON is of the same video are that video's own, to be replaced.
    """
    stem = video.stem.encode(errors="surrogateescape")[:MAX_STEM_BYTES].decode(errors="ignore") or "video"
    own = readable(video.resolve())
    for candidate in chain([stem], (f"{stem}-{number}" for number in count(2))):
        taken = any((out / f"{candidate}{suffix}").exists() for suffix in SUFFIXES)
        if not taken or _source_of(out / f"{candidate}.json") == own:
            return candidate
    raise AssertionError("numbers do not end")


def _source_of(path: Path) -> str | None:
    """The video that a file of results is of; None where it is something else."""
    try:
        return Localization.load(path).video.path
    except (InputError, OSError, json.JSONDecodeError):
        return None


def write_frames(video: Path, result: Localization, folder: Path) -> None:
    """Write the sampled frames at full size."""
    folder.mkdir(exist_ok=True)
    every_pixel = max(result.video.width, result.video.height, 1)
    for index, frame in enumerate(read_frames(video, result.sampling.fps, every_pixel), start=1):
        write_bytes(folder / frame_name(index), encode_jpeg(frame.image))


def read_metrics(run: Path) -> dict[str, Any] | None:
    """The run's figures, None where it was never evaluated."""
    path = run / "metrics.json"
    return read_json(path, f"run python -m avfast.evaluate {run}") if path.is_file() else None


def summary_line(result: Localization, stem: str) -> str:
    """Which classes there are, and how many events of each."""
    found = [
        f"{entry.name} ({', '.join(_counts(entry.events))})" if entry.events else entry.name
        for entry in result.classes
        if entry.present
    ]
    return " ".join(f"{stem}: {'; '.join(found) or 'no event'}".split())


def _counts(events: Sequence[object]) -> Iterator[str]:
    for modality, word in (("visual", "seen"), ("audio", "heard")):
        number = sum(event.modality == modality for event in events)  # type: ignore[attr-defined]
        if number:
            yield f"{word} {number} time{'s' if number > 1 else ''}"


if __name__ == "__main__":
    run(main, Options)
