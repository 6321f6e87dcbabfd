"""The page on which one looks at localised videos: boxes over the playing picture, timelines, events."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfast.data.media import read_frames, sound_blocks
from avfast.data.mp4 import write_mp4
from avfast.localization import Localization
from avfast.report.colours import text_on
from avfast.report.page import render

LONG_SIDE = 480  # pixels, of the embedded picture
FPS = 15.0
LONG_VIDEO_SECONDS = 600.0
LONG_VIDEO_FPS = 1.0
"""Of videos longer than that, so that the page stays small enough to open."""


@dataclass(frozen=True)
class ShownVideo:
    """A localised video with what a browser can play of it."""

    localization: Localization
    media: bytes
    """An MP4 file; empty where the source can no longer be read."""


def localization_page(videos: Sequence[ShownVideo], metrics: Mapping[str, Any] | None = None) -> str:
    """The page for one or several videos of one run.

    Args:
        videos: At least one.
        metrics: The run's ``metrics.json``, to say how good it is.

    Returns:
        A self-contained HTML document.

    Raises:
        ValueError: There is no video.
    """
    if not videos:
        raise ValueError("expected at least one video")
    return render(
        "localization.html.j2",
        videos=videos,
        data=[_plain(video.localization) for video in videos],
        run=videos[0].localization.run,
        metrics=metrics,
    )


def browser_media(path: Path, seconds: float) -> bytes:
    """A small copy of a video that every browser plays, upright and with time 0 at its start.

    Args:
        path: The video.
        seconds: Its length.

    Returns:
        An MP4 file.

    Raises:
        InputError: The file cannot be opened as media.
        ValueError: It holds neither picture nor sound.
    """
    fps = FPS if seconds <= LONG_VIDEO_SECONDS else LONG_VIDEO_FPS
    pictures = ((frame.time, frame.image) for frame in read_frames(path, fps, LONG_SIDE))
    file = io.BytesIO()
    write_mp4(file, pictures, sound_blocks(path), 1 / fps)
    return file.getvalue()


def _plain(localization: Localization) -> dict[str, Any]:
    """The JSON's content, with the colour of text on each class's colour."""
    value = json.loads(localization.to_json())
    for entry in value["classes"]:
        entry["text_colour"] = text_on(entry["colour"])
    return value
