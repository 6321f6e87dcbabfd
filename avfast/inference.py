"""A trained run at work on videos of any length: windows of the training length, one in memory at a time."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import avfast
from avfast.data.batch import Batch, collate
from avfast.data.clips import PreparedFrame, Settings, pack, prepare_frame, unpack
from avfast.data.dataset import decode
from avfast.data.media import SAMPLE_RATE, declared_seconds, read_frames, sound_blocks
from avfast.data.preview import Preview
from avfast.data.shards import encode_jpeg
from avfast.data.windows import Window, cut
from avfast.errors import InputError
from avfast.findings import Findings
from avfast.localization import Localization, Run, Sampling, Video
from avfast.models import Output
from avfast.runs import Trained

REGIONS_PER_FRAME = 3


class Localizer:
    """Says of a video which classes it holds, where in the picture and when in the sound."""

    def __init__(self, folder: Path, trained: Trained, edge_model: Path | None = None) -> None:
        """Args:
        folder: Of the run.
        trained: What ``load_best`` read there.
        edge_model: OpenCV's structured edge forest, if the run's data was prepared with one.

        """
        self.folder, self.trained, self.edge_model = folder, trained, edge_model
        self.clip_seconds: float = trained.config["clip_seconds"]

    @cached_property
    def settings(self) -> Settings:
        """How its clips were prepared, as other videos must be.

        Raises:
            InputError: The run does not say so, or used another edge model.
        """
        return Settings.of_record(self._preparation, self.edge_model)

    @property
    def fps(self) -> float:
        """Sampled frames per second."""
        return self._preparation["fps"]

    @property
    def _preparation(self) -> dict[str, Any]:
        preparation = self.trained.config.get("preparation")
        if preparation is None:
            raise InputError(
                f"{self.folder}: does not say how its clips were made from videos, as it learned from "
                "features or by an earlier version; train on videos with this one"
            )
        return preparation

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of every result."""
        return self.trained.classes

    def predict(
        self,
        video: str | os.PathLike[str],
        hop: float | None = None,
        regions_per_frame: int = REGIONS_PER_FRAME,
        progress: bool = False,
    ) -> Localization:
        """Localise the events of one file.

        The file is scored in overlapping windows of the training clips' length, each prepared just as those
        were, so that a video of that length gets the scores that ``avfast.evaluate`` gives it. Memory
        does not grow with the video but for the result.

        Args:
            video: A video, or a file of sound alone.
            hop: Seconds from one window to the next; by default half a window.
            regions_per_frame: How many regions of a frame to keep for a class, at most: the best, and
                others where they reach the threshold.
            progress: Show a bar with the time left.

        Returns:
            The result, with a preview to draw it on.

        Raises:
            InputError: Neither picture nor sound can be read.
            ValueError: A number makes no sense.
        """
        path, hop = Path(video), self.clip_seconds / 2 if hop is None else hop
        if regions_per_frame < 1:
            raise ValueError(f"regions_per_frame: expected at least 1, got {regions_per_frame}")
        length = declared_seconds(path)
        source = _Source(path, self.settings, proposals="visual" in self.trained.thresholds.views)
        findings, preview = self._findings(regions_per_frame), Preview()
        total = math.ceil(length) if length is not None else None
        with tqdm(
            total=total, desc=readable(Path(path.name)), unit="s", disable=None if progress else True
        ) as bar:
            for window in cut(source.frames(), source.sound(), self.clip_seconds, hop, 1 / self.fps):
                findings.add(window, *self._score(window))
                preview.add(window)
                bar.update(math.ceil(min(window.core[1], length or math.inf)) - bar.n)
        return self._localization(source.facts(), findings, preview, hop)

    def predict_clip(self, name: str, members: Mapping[str, bytes]) -> Localization:
        """Localise the events of a prepared clip, which is scored as one bag.

        Args:
            name: Of the clip.
            members: As ``ShardDataset.members`` gives them.

        Returns:
            The result, with a preview to draw it on.
        """
        frames, sound = unpack(members)
        times = [frame.time for frame in frames]
        facts = _facts(Path(name), frames[0].source_size if frames else (0, 0), times, len(sound), self.fps)
        window = Window(0.0, facts.seconds, (0.0, facts.seconds + 1), frames, sound)
        findings, preview = self._findings(REGIONS_PER_FRAME), Preview()
        findings.add(window, *self._score(window))
        preview.add(window)
        return self._localization(facts, findings, preview, self.clip_seconds)

    def _findings(self, regions_per_frame: int) -> Findings:
        return Findings(self.classes, self.trained.thresholds, self.fps, regions_per_frame)

    def _localization(self, video: Video, findings: Findings, preview: Preview, hop: float) -> Localization:
        classes, windows = findings.result(video.seconds)
        sampling = Sampling(self.fps, self.clip_seconds, hop, findings.regions_per_frame)
        return Localization(video, self._run(), sampling, classes, windows, preview)

    @torch.no_grad()
    def _score(self, window: Window[PreparedFrame]) -> tuple[Batch, Output]:
        """The window as a batch of one clip, whose times count from the window's start, and its scores."""
        model = self.trained.model
        members = pack(window.frames, window.sound, start=window.start)
        target = [0.0] * len(self.classes)
        sample = decode(members, "", target, model.image_size, model.proposals, model.front_end)
        batch = collate([sample])
        return batch, model(batch.to(next(model.parameters()).device))

    def _run(self) -> Run:
        config = self.trained.config
        versions = {
            "avfast": avfast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return Run(str(self.folder.resolve()), config["model"]["system"], config["seed"], versions, config)


def readable(path: Path) -> str:
    """A path as text that can be written anywhere, whatever bytes the file system holds."""
    return os.fsencode(path).decode(errors="replace")


class _Source:
    """One file as two streams, and what reading them to their ends tells of it."""

    def __init__(self, path: Path, settings: Settings, proposals: bool) -> None:
        self.path, self.settings, self.proposals = path, settings, proposals
        self.size = (0, 0)
        self.frame_times: list[float] = []
        self.samples = 0

    def frames(self) -> Iterator[PreparedFrame]:
        for frame in read_frames(self.path, self.settings.fps, self.settings.long_side):
            self.size = self.size if self.frame_times else frame.source_size
            self.frame_times.append(round(frame.time, 6))
            if self.proposals:
                yield prepare_frame(frame, self.settings)
            else:
                nothing = np.zeros((0, 5), np.float32)
                yield PreparedFrame(frame.time, frame.source_size, encode_jpeg(frame.image), nothing)

    def sound(self) -> Iterator[NDArray[np.float32]]:
        for block in sound_blocks(self.path):
            self.samples += len(block)
            yield block

    def facts(self) -> Video:
        """What there was.

        Raises:
            InputError: There was nothing.
        """
        if not self.frame_times and not self.samples:
            raise InputError(
                f"{self.path}: neither picture nor sound can be read; give a video or a sound file"
            )
        return _facts(self.path, self.size, self.frame_times, self.samples, self.settings.fps)


def _facts(path: Path, size: tuple[int, int], frame_times: list[float], samples: int, fps: float) -> Video:
    sound_seconds = samples / SAMPLE_RATE
    shown = frame_times[-1] + 1 / fps if frame_times else 0.0
    return Video(
        name=readable(Path(path.name)),
        path=readable(path.resolve()),
        seconds=round(max(shown, sound_seconds), 6),
        width=size[0],
        height=size[1],
        frame_times=frame_times,
        sound_seconds=round(sound_seconds, 6),
        notes=["no picture"] * (not frame_times) + ["no sound"] * (not samples),
    )
