"""Localising files: the scores that evaluation gives, every output, nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import media_maker
import numpy as np
import pytest
import tiny_shards
import torch

import avfast
from avfast import evaluation, train
from avfast.data.labels import SPLITS, read_labels
from avfast.data.preparation import Settings, prepare
from avfast.data.proposals import EdgeBoxesParameters
from avfast.engines import Engine
from avfast.inference import Localizer
from avfast.runs import load_batches, load_best
from avfast.sources import open_split

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = tiny_shards.CLASSES
SECONDS = 3


def film(
    path: Path, seed: int, seconds: int = SECONDS, width: int = 96, height: int = 64
) -> tuple[Path, str]:
    """A video of a coloured square and a tone of the same class, and the class."""
    generator = np.random.default_rng(seed)
    label = int(generator.integers(len(CLASSES)))
    x, y = generator.integers(0, [width - 32, height - 32])
    frames = []
    for _ in range(seconds * 4):
        frame = np.full((height, width, 3), 100, np.uint8)
        frame[y : y + 32, x : x + 32] = np.eye(3, dtype=np.uint8)[label] * 255
        frames.append(frame)
    sound = media_maker.tone(500 * 2**label, seconds, 16_000) * 0.4
    return media_maker.write_media(path, frames, sound=sound), CLASSES[label]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on videos that this fixture prepared; ``clips`` beside it holds them."""
    root = tmp_path_factory.mktemp("localize")
    source = root / "clips"
    source.mkdir()
    rows, boxes = ["clip,labels,split"], ["clip,modality,class,start,end,x1,y1,x2,y2"]
    for number in range(18):
        split = SPLITS[0 if number < 10 else 1 if number < 14 else 2]
        path, label = film(source / f"{number:02}.mp4", number)
        rows.append(f"{path.name},{label},{split}")
        boxes += [f"{path.name},visual,{label},{t},{t},0,0,60,60" for t in range(SECONDS)]
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    (source / "annotations.csv").write_text("\n".join(boxes) + "\n")
    settings = Settings(edge_boxes=EdgeBoxesParameters(beta=0.5, min_box_area=200), proposals=10)
    prepare(source, read_labels(source / "labels.csv", source), root / "shards", settings, Engine(workers=1))
    train.main(train.Options(data=root / "shards", out=root / "run", epochs=2, device="cpu"))
    return root / "run"


@pytest.fixture(scope="module")
def localizer(run: Path) -> Localizer:
    return avfast.load(run, "cpu")


def test_a_clip_gets_the_scores_and_events_of_evaluation(run: Path, localizer: Localizer) -> None:
    device = torch.device("cpu")
    trained = load_best(run, device)
    dataset = open_split(run.parent / "shards", "test", trained.model.config)
    expected = evaluation.predict(trained.model, load_batches(dataset, range(len(dataset)), 1, 0), device)
    events = evaluation.detect_events(expected, trained.thresholds)
    for index, clip in enumerate(expected.clips):
        result = localizer.predict(run.parent / "clips" / clip)
        assert len(result.windows) == 1
        assert result.windows[0].scores == pytest.approx(expected.scores[index].tolist(), rel=1e-5, abs=1e-6)
        for c, entry in enumerate(result.classes):
            best = int(np.argmax(expected.regions[clip].scores[:, c]))
            top = max(entry.regions, key=lambda region: region.score)
            assert top.time == expected.regions[clip].times[best]
            assert top.box == pytest.approx(expected.regions[clip].boxes[best].tolist(), abs=0.01)
            heard = [time for e in entry.events if e.modality == "audio" for time in (e.start, e.end)]
            assert heard == pytest.approx([t for e in events[clip] if e.label == c for t in (e.start, e.end)])
            assert [s.score for s in entry.segments] == pytest.approx(
                expected.segments[clip].evidence[:, c].tolist(), rel=1e-5, abs=1e-6
            )
