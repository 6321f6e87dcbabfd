"""A localisation as pictures: frames, regions, sound and segments over one time axis."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from avfast.data import logmel
from avfast.data.preview import Preview, Thumbnail
from avfast.evaluation import cells
from avfast.localization import ClassResult, Localization
from avfast.report.colours import text_on
from avfast.report.figure import any_script, save

WIDTH = 1280  # pixels
DPI = 100
MARGIN_RIGHT = 0.15  # inches
LETTER = 0.072  # inches, about, of a class's name
NARROW = 8.0  # inches; in narrower figures names are cut shorter
TILE_REGIONS = 3  # drawn in a frame of the strip, the best ones
ROW_HEIGHT, SPECTROGRAM_HEIGHT, GAP = 0.22, 1.1, 0.34  # inches
STRIP_HEIGHTS = 0.5, 1.8  # inches, least and greatest
TILE_WIDTH = 1.0  # inches, about
FILLED_BELOW = 10  # pixels; shorter events are bars
CONNECTOR = 0.1  # share of the strip's height

ROWS = 8
"""Classes shown, at least, where the run has as many; those that are present are all shown."""

STRIP_ROWS = 6
"""Classes at most in the strip below a video."""

BINS = 2000
"""Of a heat map over time; a bin shows the highest score in it."""

TICK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
PITCHES = (250, 500, 1000, 2000, 4000)  # Hz

Cells = tuple[NDArray[Any], NDArray[Any]]
"""Stretches of time [n, 2] (start, end) in seconds, and a value for each [n]."""


def save_overview(result: Localization, path: Path, width: int = WIDTH) -> None:
    """Write ``draw_overview`` as a PNG file of a width in pixels."""
    save(draw_overview(result, width), path, DPI)


@any_script()
def draw_overview(result: Localization, width: int = WIDTH) -> Figure:
    """Everything at a glance: what is seen above, what is heard below.

    Args:
        result: With a preview, as ``Localizer.predict`` gives it.
        width: In pixels.

    Returns:
        The figure; its height follows from what there is to show.
    """
    inches = width / DPI
    margin = _margin(shown_classes(result), inches)
    inner = inches - margin - MARGIN_RIGHT
    count = len(shown_classes(result))
    panels: list[tuple[float, Any]] = []
    if result.video.frame_times and result.preview is not None:
        panels.append((_strip_height(result, inner), draw_filmstrip))
    if any(entry.regions for entry in result.classes):
        panels.append((count * ROW_HEIGHT, draw_regions))
    if result.video.sound_seconds and result.preview is not None:
        panels.append((SPECTROGRAM_HEIGHT, draw_spectrogram))
    if any(entry.segments for entry in result.classes):
        panels.append((count * ROW_HEIGHT, draw_segments))
    captioned = not panels or panels[0][1] is not draw_filmstrip
    header, footer = 0.98 if captioned else 0.8, 0.32
    height = header + footer + sum(h for h, _ in panels) + GAP * max(0, len(panels) - 1)
    figure = Figure(figsize=(inches, height), dpi=DPI)
    top = height - header
    for h, draw in panels:
        place = (margin / inches, (top - h) / height, inner / inches, h / height)
        axes = figure.add_axes(place)
        draw(axes, result)
        axes.tick_params(labelbottom=draw is panels[-1][1])
        top -= h + GAP
    _write_header(figure, result, inches, height)
    return figure


@any_script()
def strip_figure(result: Localization, width: int) -> tuple[Figure, tuple[float, float]]:
    """Scores alone, of the classes that were found: what runs below a video.

    Args:
        result: What was found.
        width: In pixels.

    Returns:
        The figure, and where in it, in pixels from the left, the time axis begins and ends.
    """
    panels = [
        (draw, rows)
        for draw, rows in ((draw_regions, "regions"), (draw_segments, "segments"))
        if any(getattr(entry, rows) for entry in result.classes)
    ]
    classes = shown_classes(result, 1)[:STRIP_ROWS]
    inches, panel = width / DPI, len(classes) * ROW_HEIGHT
    height = len(panels) * (panel + GAP) + 0.2
    figure = Figure(figsize=(inches, height), dpi=DPI)
    margin = _margin(classes, inches)
    inner = inches - margin - MARGIN_RIGHT
    for index, (draw, _) in enumerate(panels):
        bottom = height - (index + 1) * (panel + GAP) + 0.12
        axes = figure.add_axes((margin / inches, bottom / height, inner / inches, panel / height))
        draw(axes, result, classes)
        axes.tick_params(labelbottom=index == len(panels) - 1)
    return figure, (margin * DPI, (inches - MARGIN_RIGHT) * DPI)


def draw_filmstrip(axes: Axes, result: Localization) -> Axes:
    """Sampled frames in the order of time, with the regions of events.

    Where there are more frames than room, each stretch of time shows the frame with the best region. A line
    leads from each frame to its time.

    Args:
        axes: Where to draw; its present size decides how many frames there are.
        result: With a preview.

    Returns:
        The axes.
    """
    seconds = _time_axis(axes, result)
    preview = _preview(result)
    width, height = axes.bbox.width, axes.bbox.height
    aspect = result.video.width / result.video.height
    count = max(1, min(len(preview.thumbnails), round(width / (TILE_WIDTH * _dpi(axes)))))
    axes.set(ylim=(0, 1), yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for index, tile in enumerate(_tiles(result, preview.thumbnails, count)):
        if tile is None:
            continue
        room = width / count - 2
        tile_width = min(room, height * (1 - CONNECTOR) * aspect) / width * seconds
        tile_height = min(1 - CONNECTOR, room / aspect / height)
        centre = (index + 0.5) * seconds / count
        extent = centre - tile_width / 2, centre + tile_width / 2, 1 - tile_height, 1.0
        _draw_tile(axes, result, tile, extent)
        axes.plot(
            [centre, tile.time], [1 - tile_height, 0], color="#444444", linewidth=0.8, clip_on=False, zorder=0
        )
    return axes


def draw_regions(axes: Axes, result: Localization, classes: Sequence[ClassResult] | None = None) -> Axes:
    """The score of each class's best region in each frame; events are outlined.

    Args:
        axes: Where to draw.
        result: What was found.
        classes: A row each; by default ``shown_classes``.

    Returns:
        The axes.
    """
    step = 1 / result.sampling.fps
    times = np.array(result.video.frame_times)
    spans = _nearest(times, step, result.video.seconds)
    rows = []
    classes = shown_classes(result) if classes is None else classes
    for entry in classes:
        best: dict[float, float] = {}
        for region in entry.regions:
            best.setdefault(region.time, region.score)
        rows.append((spans, np.array([best.get(time, np.nan) for time in result.video.frame_times])))
    return _heat_map(axes, result, classes, rows, "visual", "seen")


def draw_segments(axes: Axes, result: Localization, classes: Sequence[ClassResult] | None = None) -> Axes:
    """The score of each class in each audio segment; events are outlined.

    Args:
        axes: Where to draw.
        result: What was found.
        classes: A row each; by default ``shown_classes``.

    Returns:
        The axes.
    """
    rows = []
    classes = shown_classes(result) if classes is None else classes
    for entry in classes:
        bounds = np.array([(segment.start, segment.end) for segment in entry.segments]).reshape(-1, 2)
        centres = bounds.mean(axis=1)
        reach = (bounds[:, 1] - bounds[:, 0]).max(initial=0) / 2
        scores = np.array([segment.score for segment in entry.segments])
        rows.append((_nearest(centres, reach, result.video.seconds), scores))
    return _heat_map(axes, result, classes, rows, "audio", "heard")


def draw_spectrogram(axes: Axes, result: Localization) -> Axes:
    """The log-mel spectrogram of the sound.

    Args:
        axes: Where to draw.
        result: With a preview.

    Returns:
        The axes.
    """
    _time_axis(axes, result)
    preview = _preview(result)
    rows = preview.spectrogram
    end = len(rows) * preview.row_seconds
    if len(rows):
        low, high = np.percentile(rows, [5, 99.8])
        axes.imshow(
            rows.T,
            origin="lower",
            aspect="auto",
            extent=(0, end, 0, logmel.MEL_BANDS),
            cmap="Greys",
            vmin=low,
            vmax=max(high, low + 1e-3),
            interpolation="antialiased",
        )
    _time_axis(axes, result)
    bands = [_band(pitch) for pitch in PITCHES]
    labels = [f"{pitch / 1000:g} kHz" if pitch >= 1000 else f"{pitch} Hz" for pitch in PITCHES]
    _caption(axes, "sound")
    axes.set(ylim=(0, logmel.MEL_BANDS), yticks=bands, yticklabels=labels)
    axes.tick_params(axis="y", labelsize=7, length=2)
    return axes


def shown_classes(result: Localization, least: int = ROWS) -> list[ClassResult]:
    """The classes that are present, and the best others up to ``least``, in the run's order."""
    ranked = sorted(result.classes, key=lambda e: (e.present, e.score - e.threshold), reverse=True)
    count = max(least, sum(entry.present for entry in result.classes))
    chosen = {entry.name for entry in ranked[:count]}
    return [entry for entry in result.classes if entry.name in chosen]


def format_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss, with tenths where they matter."""
    seconds = round(seconds, 1)
    whole = int(seconds)
    text = f"{whole // 3600}:{whole // 60 % 60:02}" if whole >= 3600 else f"{whole // 60}"
    tenths = f"{seconds - whole:.1f}"[1:] if seconds != whole else ""
    return f"{text}:{whole % 60:02}{tenths}"


def _heat_map(
    axes: Axes,
    result: Localization,
    classes: Sequence[ClassResult],
    rows: Sequence[Cells],
    modality: str,
    word: str,
) -> Axes:
    seconds = _time_axis(axes, result)
    values = np.stack([_binned(spans, scores, seconds) for spans, scores in rows])
    positive = values[values > 0]
    top = float(np.percentile(positive, 99)) if positive.size else 1.0
    axes.set_facecolor("#e4e4e4")  # where nothing was scored
    axes.imshow(
        np.sqrt(values.clip(min=0) / top),
        aspect="auto",
        extent=(0, seconds, len(classes), 0),
        cmap="Greys",
        vmin=0,
        vmax=1.25,
        interpolation="none",
    )
    for row, entry in enumerate(classes):
        for event in entry.events:
            if event.modality == modality:
                _outline(axes, event.start, event.end, row, entry.colour, seconds)
    _time_axis(axes, result)
    axes.set(ylim=(len(classes), 0), yticks=[])
    for row in range(1, len(classes)):
        axes.axhline(row, color="white", linewidth=1.5)
    for row, entry in enumerate(classes):
        _chip(axes, entry, row)
    _caption(axes, f"{word}: the darker, the higher the score; events are outlined")
    return axes


def _binned(spans: NDArray[Any], scores: NDArray[Any], seconds: float) -> NDArray[np.float64]:
    """[BINS]: the highest score in each share of the time; NaN where there is none."""
    binned = np.full(BINS, -np.inf)
    first = np.floor(spans[:, 0] / seconds * BINS).astype(int).clip(0, BINS - 1)
    last = np.ceil(spans[:, 1] / seconds * BINS).astype(int).clip(first + 1, BINS)
    for start, stop, score in zip(first, last, scores, strict=True):
        np.fmax(binned[start:stop], score, out=binned[start:stop])
    return np.where(np.isinf(binned), np.nan, binned)


def _nearest(centres: NDArray[Any], reach: float, seconds: float) -> NDArray[Any]:
    """[n, 2]: the time nearest to each of n centres, and not further away than ``reach``."""
    bounds = np.stack([centres - reach, centres + reach], axis=1)
    return cells(bounds).clip(0, seconds)


def _outline(axes: Axes, start: float, end: float, row: int, colour: str, seconds: float) -> None:
    pixel = seconds / axes.bbox.width
    if end - start < FILLED_BELOW * pixel:  # an outline would hide how long it is, and its neighbours
        bar = (start, row + 0.08), max(end - start, 2 * pixel), 0.84
        axes.add_patch(Rectangle(*bar, facecolor=colour, linewidth=0, zorder=4))
        return
    box = (start, row + 0.08), end - start, 0.84
    axes.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=4, zorder=3))
    axes.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=2.2, zorder=4))


def _chip(axes: Axes, entry: ClassResult, row: int) -> None:
    """A class's name before its row, on its colour; pale where it is absent."""
    axes.text(
        -6 / axes.bbox.width,
        1 - (row + 0.5) / axes.get_ylim()[0],
        shorten(entry.name, _letters(axes.bbox.width / _dpi(axes))),
        transform=axes.transAxes,
        ha="right",
        va="center",
        fontsize=8,
        parse_math=False,
        color=text_on(entry.colour) if entry.present else "#666666",
        bbox={
            "facecolor": entry.colour if entry.present else "none",
            "edgecolor": entry.colour,
            "linewidth": 0.8,
            "boxstyle": "round,pad=0.25",
        },
    )


def _draw_tile(axes: Axes, result: Localization, tile: Thumbnail, extent: tuple[float, ...]) -> None:
    left, right, bottom, top = extent
    axes.imshow(tile.image, extent=(left, right, bottom, top), aspect="auto", interpolation="antialiased")
    x_scale, y_scale = (right - left) / result.video.width, (top - bottom) / result.video.height
    best = [next((r for r in entry.seen() if r.time == tile.time), None) for entry in result.classes]
    pairs = [(entry, region) for entry, region in zip(result.classes, best, strict=True) if region]
    for entry, region in sorted(pairs, key=lambda pair: -pair[1].score)[:TILE_REGIONS]:
        x1, y1, x2, y2 = region.box
        corner = left + x1 * x_scale, top - y2 * y_scale
        size = (x2 - x1) * x_scale, (y2 - y1) * y_scale
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=3))
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=entry.colour, linewidth=1.6))
        axes.text(
            corner[0],
            top - y1 * y_scale,
            shorten(entry.name, 10),
            fontsize=6.5,
            va="bottom" if y1 > 0.15 * result.video.height else "top",
            color=text_on(entry.colour),
            parse_math=False,
            clip_on=True,
            bbox={"facecolor": entry.colour, "edgecolor": "none", "pad": 1},
        )
    axes.text(
        left,
        bottom,
        format_time(tile.time),
        fontsize=7,
        color="white",
        va="bottom",
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )


def _tiles(result: Localization, thumbnails: Sequence[Thumbnail], count: int) -> list[Thumbnail | None]:
    """For each of ``count`` stretches of time the thumbnail that shows most, None where there is none."""
    shown: dict[float, float] = {}
    for entry in result.classes:
        for region in entry.seen():
            shown[region.time] = max(shown.get(region.time, 0.0), region.score)
    tiles: list[Thumbnail | None] = [None] * count
    for thumbnail in thumbnails:
        middle = thumbnail.time + 0.5 / result.sampling.fps
        index = min(int(middle / result.video.seconds * count), count - 1)
        best = tiles[index]
        if best is None or shown.get(thumbnail.time, 0.0) > shown.get(best.time, 0.0):
            tiles[index] = thumbnail
    return tiles


def _time_axis(axes: Axes, result: Localization) -> float:
    """Set the axis up; returns the length in seconds."""
    seconds = max(result.video.seconds, 1e-3)
    most = max(2.0, axes.bbox.width / _dpi(axes) / 0.75)
    step = next((step for step in TICK_STEPS if seconds / step <= most), TICK_STEPS[-1])
    ticks = np.arange(0, seconds, step)
    axes.set(xlim=(0, seconds), xticks=ticks, xticklabels=[format_time(float(tick)) for tick in ticks])
    axes.tick_params(axis="x", labelsize=8, length=3)
    return seconds


def _write_header(figure: Figure, result: Localization, width: float, height: float) -> None:
    video = result.video
    facts = [format_time(video.seconds), *video.notes, result.run.system]
    lines = (
        (0.2, shorten(" ".join(video.name.split()), int(width * 8)), 12, "#000000"),
        (0.42, ", ".join(facts), 8.5, "#444444"),
        (0.61, textwrap.shorten(_verdict(result), int(width * 14), placeholder=" …"), 8.5, "#444444"),
    )
    for below, text, size, colour in lines:
        figure.text(
            0.1 / width, 1 - below / height, text, fontsize=size, color=colour, va="center", parse_math=False
        )


def _verdict(result: Localization) -> str:
    found = sorted((e for e in result.classes if e.present), key=lambda e: e.threshold - e.score)
    return (
        ", ".join(f"{' '.join(entry.name.split())} {entry.score:.2f}" for entry in found)
        or "none of the classes"
    )


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8, loc="left", pad=3, color="#444444")


def _letters(width: float) -> int:
    """Letters of a class's name that are shown in a figure, or beside axes, of a width in inches."""
    return 15 if width < NARROW else 32


def _margin(classes: Sequence[ClassResult], width: float) -> float:
    """Inches that the names of classes, or the pitches, need left of the time axis."""
    longest = max((len(entry.name) for entry in classes), default=0)
    return max(0.7, 0.25 + LETTER * min(longest, _letters(width)))


def _strip_height(result: Localization, inner: float) -> float:
    """Inches that a row of frames needs."""
    preview = _preview(result)
    count = max(1, min(len(preview.thumbnails), round(inner / TILE_WIDTH)))
    tile = inner / count * result.video.height / result.video.width
    return float(np.clip(tile / (1 - CONNECTOR), *STRIP_HEIGHTS))


def _preview(result: Localization) -> Preview:
    if result.preview is None:
        raise ValueError("result: expected one with a preview; those that Localizer.predict returns have it")
    return result.preview


def _band(pitch: float) -> float:
    """The mel band whose centre is at a pitch in Hz."""
    low, high, at = (np.log1p(hz / 700) for hz in (logmel.MEL_MIN_HZ, logmel.MEL_MAX_HZ, pitch))
    return float((at - low) / (high - low) * (logmel.MEL_BANDS + 1) - 0.5)


def _dpi(axes: Axes) -> float:
    return float(axes.figure.dpi)


def shorten(text: str, most: int) -> str:
    """At most so many characters, an ellipsis in the place of the middle."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
