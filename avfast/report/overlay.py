"""A video with what was found drawn in: boxes on the picture, scores and the present moment below it."""

from __future__ import annotations

import tempfile
from bisect import bisect
from collections.abc import Iterator
from heapq import merge
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from avfast.data.media import read_frames, sound_blocks
from avfast.data.mp4 import write_mp4
from avfast.data.opencv import cv2
from avfast.localization import ClassResult, Localization, Region
from avfast.report.colours import rgb, text_on
from avfast.report.figure import any_script
from avfast.report.figures import DPI, strip_figure

Image = NDArray[np.uint8]

MAX_FPS, FALLBACK_FPS = 120.0, 25.0
LONG_SIDE, LEAST_WIDTH = 1280, 640  # pixels
CRF = 20
LABEL_POINTS = 9.0
KEPT_CODECS = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})  # what players expect in MP4


def draw_video(video: Path, result: Localization, path: Path) -> None:
    """Write an MP4 file of the picture with boxes and scores, and with the video's own sound.

    Args:
        video: The file that was localised; must have picture.
        result: What was found in it.
        path: The file to create or replace.

    Raises:
        InputError: The video cannot be read.
    """
    painter = _Painter(result)
    frames = read_frames(video, MAX_FPS, LONG_SIDE)
    total = round(result.video.seconds)
    with (
        tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as folder,
        tqdm(total=total, desc=f"draw {path.name}", unit="s", disable=None) as bar,
    ):

        def pictures() -> Iterator[tuple[float, Image]]:
            for frame in frames:
                yield frame.time, painter.paint(frame.time, frame.image)
                bar.update(min(int(frame.time), total) - bar.n)

        period, kept = _facts(video)
        drawn = Path(folder) / "drawn.mp4"
        with drawn.open("w+b") as file:
            write_mp4(file, pictures(), iter(()) if kept else sound_blocks(video), period, CRF)
        if kept:
            whole = Path(folder) / "whole.mp4"
            _join(whole, drawn, video)
            drawn = whole
        drawn.replace(path)


class _Painter:
    """Draws on one frame after the other."""

    def __init__(self, result: Localization) -> None:
        self.result = result
        width = result.video.width * min(1.0, LONG_SIDE / max(result.video.width, result.video.height))
        self.width = round(max(width, LEAST_WIDTH) / 2) * 2
        self.height = round(self.width * result.video.height / result.video.width / 2) * 2
        self.scale = self.width / result.video.width
        self.between = [(a + b) / 2 for a, b in pairwise(result.video.frame_times)]
        self.regions: list[dict[float, list[Region]]] = []
        for entry in result.classes:
            by_time: dict[float, list[Region]] = {}
            for region in entry.seen():
                by_time.setdefault(region.time, []).append(region)
            self.regions.append(by_time)
        self.seen = [_label(entry.name, entry.colour) for entry in result.classes]
        self.heard = [_label(f"♪ {entry.name}", entry.colour) for entry in result.classes]
        figure, self.bounds = strip_figure(result, self.width)
        strip = _rendered(figure)
        self.strip = np.asarray(cv2.resize(strip, (self.width, len(strip) // 2 * 2)), np.uint8)

    def paint(self, time: float, image: Image) -> Image:
        """The picture of one moment.

        Args:
            time: Seconds.
            image: [h, w, 3], RGB.

        Returns:
            [H, W, 3], always of one size.
        """
        size = self.width, self.height
        canvas = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        for c, entry in enumerate(self.result.classes):
            for region in self.regions[c].get(self._sampled(time), []):
                self._box(canvas, region, entry, self.seen[c])
        x = 6
        for c, entry in enumerate(self.result.classes):
            if any(e.modality == "audio" and e.start <= time < e.end for e in entry.events):
                x += _paste(canvas, self.heard[c], x, 6) + 6
        strip = self.strip.copy()
        left, right = self.bounds
        here = round(left + (right - left) * min(time / self.result.video.seconds, 1.0))
        for thickness, colour in ((4, (255, 255, 255)), (2, (0, 0, 0))):
            cv2.line(strip, (here, 0), (here, len(strip)), colour, thickness)
        return np.vstack([canvas, strip])

    def _sampled(self, time: float) -> float:
        """The time of the sampled frame that stands for a moment."""
        return self.result.video.frame_times[bisect(self.between, time)]

    def _box(self, canvas: Image, region: Region, entry: ClassResult, label: Image) -> None:
        x1, y1, x2, y2 = (round(value * self.scale) for value in region.box)
        for thickness, colour in ((5, (0, 0, 0)), (3, rgb(entry.colour))):
            cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, thickness)
        above = y1 - len(label)
        _paste(canvas, label, x1, above if above >= 0 else y1)


def _paste(canvas: Image, label: Image, x: int, y: int) -> int:
    """Lay a label on the canvas, inside of it; returns the label's width."""
    height, width = min(label.shape[0], canvas.shape[0]), min(label.shape[1], canvas.shape[1])
    x, y = min(max(x, 0), canvas.shape[1] - width), min(max(y, 0), canvas.shape[0] - height)
    canvas[y : y + height, x : x + width] = label[:height, :width]
    return width


@any_script()
def _label(text: str, colour: str) -> Image:
    """Text in any script that the fonts have, on a class's colour."""
    figure = Figure(dpi=DPI, facecolor=colour)
    words = figure.text(
        0, 0, " ".join(text.split()), fontsize=LABEL_POINTS, color=text_on(colour), parse_math=False
    )
    extent = words.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    width, height = extent.width + 8, extent.height + 6
    figure.set_size_inches(width / DPI, height / DPI)
    words.set_position((4 / width, (3 - extent.y0) / height))
    return _rendered(figure)


def _rendered(figure: Figure) -> Image:
    canvas = FigureCanvasAgg(figure)
    with any_script():
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _facts(video: Path) -> tuple[float, bool]:
    """Seconds from a picture to the next, on average, and whether the sound can go into an MP4 as it is."""
    with av.open(str(video.absolute())) as container:
        rate = float(container.streams.video[0].average_rate or FALLBACK_FPS)
        codecs = [track.codec_context.name for track in container.streams.audio[:1] if track.codec_context]
    return 1 / min(rate, MAX_FPS), bool(codecs) and codecs[0] in KEPT_CODECS


def _join(path: Path, drawn: Path, video: Path) -> None:
    """Put the drawn picture and the video's sound track into one file, both as they are."""
    with (
        av.open(str(drawn)) as pictures,
        av.open(str(video.absolute())) as source,
        av.open(str(path), "w", format="mp4") as out,
    ):
        origin = (source.start_time or 0) / av.time_base
        tracks = [(pictures, pictures.streams.video[0], 0.0), (source, source.streams.audio[0], origin)]
        packets = [
            _packets(container, stream, out.add_stream_from_template(stream), start)
            for container, stream, start in tracks
        ]
        for packet in merge(*packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)


def _packets(container: Any, stream: Any, target: Any, start: float) -> Iterator[Any]:
    """A track's packets, their times counted from ``start`` in seconds."""
    for packet in container.demux(stream):
        if packet.dts is None or packet.is_corrupt:
            continue
        shift = round(start / packet.time_base)
        packet.dts -= shift
        packet.pts = packet.dts if packet.pts is None else packet.pts - shift
        packet.stream = target
        yield packet
