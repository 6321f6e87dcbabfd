"""A localisation in the formats of other tools: spreadsheets, COCO annotators, Audacity."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from avfast.localization import Event, Localization

EVENT_COLUMNS = (
    "clip", "modality", "class", "start", "end", "x1", "y1", "x2", "y2", "peak", "score",
)  # fmt: skip
"""Those of annotations.csv, then what only a detection has."""


def events_csv(result: Localization) -> str:
    """A row an event, by time.

    The columns begin with those of ``annotations.csv``, so that a corrected file can serve as one. A visual
    event has the box of its ``peak``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EVENT_COLUMNS)
    for name, event in _events(result):
        times = event.start, event.end
        box = event.box if event.box is not None else ("",) * 4
        writer.writerow([result.video.name, event.modality, name, *times, *box, event.peak, event.score])
    return text.getvalue()


def coco_json(result: Localization, folder: str) -> str:
    """The regions of the visual events as COCO object detection annotations, which CVAT and others read.

    Args:
        result: What was found.
        folder: Goes before the images' names, which ``frame_name`` gives.

    Returns:
        JSON; an image a sampled frame, a category a class from 1 on, and ``score`` with each annotation.
    """
    video = result.video
    images = [
        {
            "id": index,
            "file_name": f"{folder}/{frame_name(index)}",
            "width": video.width,
            "height": video.height,
        }
        for index in range(1, len(video.frame_times) + 1)
    ]
    image_at = {time: index for index, time in enumerate(video.frame_times, start=1)}
    annotations: list[dict[str, object]] = []
    for category, entry in enumerate(result.classes, start=1):
        for region in entry.seen():
            x1, y1, x2, y2 = region.box
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_at[region.time],
                    "category_id": category,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": region.score,
                }
            )
    info = {"description": f"{video.name}, localised by {result.run.system}", "version": str(1)}
    categories = [{"id": c, "name": entry.name} for c, entry in enumerate(result.classes, start=1)]
    value = {
        "info": info,
        "licenses": [],
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    return json.dumps(value, ensure_ascii=False) + "\n"


def frame_name(index: int) -> str:
    """File name of a sampled frame, counted from 1, as annotation tools sort and number frames."""
    return f"frame_{index:06d}.jpg"


def audacity_labels(result: Localization) -> str:
    """The audio events as a label track: start, end and class, separated by tabs (File > Import > Labels)."""
    return "".join(
        f"{event.start:.6f}\t{event.end:.6f}\t{' '.join(name.split())}\n"
        for name, event in _events(result)
        if event.modality == "audio"
    )


def _events(result: Localization) -> Iterator[tuple[str, Event]]:
    """Class name and event, by time."""
    pairs = [(entry.name, event) for entry in result.classes for event in entry.events]
    return iter(sorted(pairs, key=lambda pair: (pair[1].start, pair[1].end)))
