"""Localising files: the scores that evaluation gives, every output, nothing overwritten."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import media_maker
import nbformat
import numpy as np
import pytest
import soundfile
import tiny_shards
import torch
from nbclient import NotebookClient

import avfast
from avfast import cli, evaluation, localize, metrics, train
from avfast.data import clips
from avfast.data.label_lists import read_labels
from avfast.data.labels import SPLITS, Annotations, read_annotations
from avfast.data.media import read_frames, read_sound
from avfast.data.opencv import cv2
from avfast.data.preparation import prepare
from avfast.data.proposals import EdgeBoxesParameters
from avfast.engines import Engine
from avfast.errors import InputError
from avfast.inference import Localizer
from avfast.localization import Localization
from avfast.runs import load_batches, load_best
from avfast.sampling import in_batches
from avfast.sources import open_split

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = tiny_shards.CLASSES
SECONDS, SIDE = 3, 32


def pictures(
    seed: int, seconds: int, width: int, height: int
) -> tuple[list[np.ndarray], int, tuple[int, ...]]:
    """Frames with a coloured square, its class, and its box."""
    generator = np.random.default_rng(seed)
    label = int(generator.integers(len(CLASSES)))
    x, y = generator.integers(0, [width - SIDE, height - SIDE]).tolist()
    frame = np.full((height, width, 3), 100, np.uint8)
    frame[y : y + SIDE, x : x + SIDE] = np.eye(3, dtype=np.uint8)[label] * 255
    return [frame] * (seconds * 4), label, (x, y, x + SIDE, y + SIDE)


def film(path: Path, seed: int, seconds: int = SECONDS, width: int = 96, height: int = 64) -> Path:
    """A video of a coloured square and the tone of its class."""
    frames, label, _ = pictures(seed, seconds, width, height)
    sound = media_maker.tone(500 * 2**label, seconds, 16_000) * 0.4
    return media_maker.write_media(path, frames, sound=sound)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on videos that this fixture prepared; ``clips`` beside it holds them."""
    root = tmp_path_factory.mktemp("localize")
    source = root / "clips"
    source.mkdir()
    rows, boxes = ["clip,labels,split"], ["clip,modality,class,start,end,x1,y1,x2,y2"]
    for number in range(18):
        split = SPLITS[0 if number < 10 else 1 if number < 14 else 2]
        path = film(source / f"{number:02}.mp4", number)
        _, label, box = pictures(number, SECONDS, 96, 64)
        rows.append(f"{path.name},{CLASSES[label]},{split}")
        boxes += [
            f"{path.name},visual,{CLASSES[label]},{t},{t},{','.join(map(str, box))}" for t in range(SECONDS)
        ]
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    (source / "annotations.csv").write_text("\n".join(boxes) + "\n")
    settings = clips.Settings(edge_boxes=EdgeBoxesParameters(beta=0.5, min_box_area=200), proposals=10)
    prepare(source, read_labels(source / "labels.csv", source), root / "shards", settings, Engine(workers=1))
    train.main(train.Options(data=root / "shards", out=root / "run", epochs=6, device="cpu", report=False))
    return root / "run"


@pytest.fixture(scope="module")
def localizer(run: Path) -> Localizer:
    return avfast.load(run, "cpu")


def test_a_clip_gets_the_scores_and_events_of_evaluation(run: Path, localizer: Localizer) -> None:
    device = torch.device("cpu")
    trained = load_best(run, device)
    dataset = open_split(run.parent / "shards", "test", trained.model.config)
    batches = in_batches(range(len(dataset)), 1)
    expected = evaluation.predict(trained.model, load_batches(dataset, batches, 0), device)
    events = evaluation.detect_events(expected, trained.thresholds)
    regions = {}
    for index, clip in enumerate(expected.clips):
        result = localizer.predict(run.parent / "clips" / clip)
        assert len(result.windows) == 1
        regions[clip] = as_regions(result)
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
    summary = json.loads((run / "metrics.json").read_text())
    truth = read_annotations(run.parent / "clips" / "annotations.csv").of(expected.clips)
    assert metrics.region_localization(regions, boxes_by_clip(truth)) == summary["localization"]["visual"]


def as_regions(result: Localization) -> metrics.Regions:
    """The regions of a result as the metrics take them."""
    rows = [(region, c) for c, entry in enumerate(result.classes) for region in entry.regions]
    scores = np.full((len(rows), len(result.classes)), -np.inf)
    for row, (region, c) in enumerate(rows):
        scores[row, c] = region.score
    times, boxes = ([getattr(region, name) for region, _ in rows] for name in ("time", "box"))
    return metrics.Regions(np.array(times), np.array(boxes), scores)


def boxes_by_clip(truth: Annotations) -> dict[str, list[metrics.AnnotatedBox]]:
    boxes: dict[str, list[metrics.AnnotatedBox]] = {}
    for row in truth.visual:
        assert row.box is not None
        found = metrics.AnnotatedBox(CLASSES.index(row.label), row.start, row.end, row.box)
        boxes.setdefault(row.clip, []).append(found)
    return boxes


def test_a_long_video_is_scored_in_windows_and_each_instant_counts_once(
    localizer: Localizer, tmp_path: Path
) -> None:
    result = localizer.predict(film(tmp_path / "long.mp4", 3, seconds=11), regions_per_frame=1)
    length = localizer.clip_seconds
    starts = [window.start for window in result.windows]
    assert starts == pytest.approx([index * length / 2 for index in range(len(starts))])
    assert result.windows[-1].end == pytest.approx(result.video.seconds)
    assert result.video.frame_times == list(range(11))
    for entry in result.classes:
        assert [region.time for region in entry.regions] == result.video.frame_times
        centres = np.array([(segment.start + segment.end) / 2 for segment in entry.segments])
        assert np.diff(centres).min() > 0.2 and np.diff(centres).max() < 0.75
        assert entry.score == max(window.scores[result.classes.index(entry)] for window in result.windows)
        assert entry.present == any(w.present[result.classes.index(entry)] for w in result.windows)
        for event in entry.events:
            assert 0 <= event.start <= event.peak <= event.end <= result.video.seconds


def test_memory_does_not_grow_with_the_video(run: Path, tmp_path: Path) -> None:
    frames = [np.full((360, 640, 3), 90, np.uint8)] * 90
    media_maker.write_media(tmp_path / "long.mp4", frames, fps=1, sound=media_maker.tone(440, 90, 16_000))
    media_maker.write_media(tmp_path / "short.mp4", frames[:9], fps=1)
    program = """if True:
        import resource, sys, avfast
        model = avfast.load(sys.argv[1], "cpu")
        for video in sys.argv[2:]:
            model.predict(video)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    """
    command = [sys.executable, "-c", program, str(run), tmp_path / "short.mp4", tmp_path / "long.mp4"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    short, long = map(float, shown.stdout.split())
    assert long - short < 40  # MiB; the frames and the sound are 65
    assert long < 1500


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_boxes_lie_in_the_upright_picture(localizer: Localizer, tmp_path: Path, degrees: int) -> None:
    frames, label, (x1, y1, x2, y2) = pictures(5, SECONDS, 96, 64)
    lying = [np.ascontiguousarray(np.rot90(frame, degrees // 90)) for frame in frames]
    media_maker.write_media(tmp_path / "lying.mp4", lying)
    found = localizer.predict(media_maker.turned(tmp_path / "lying.mp4", tmp_path / "turned.mp4", degrees))
    assert (found.video.width, found.video.height) == (96, 64)
    left, top, right, bottom = max(found.classes[label].seen(), key=lambda region: region.score).box
    assert x1 < (left + right) / 2 < x2 and y1 < (top + bottom) / 2 < y2


def test_a_missing_modality_leaves_the_other_to_decide(localizer: Localizer, tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", 4, width=64, height=96)
    silent = media_maker.write_media(tmp_path / "silent.mp4", pictures(4, SECONDS, 64, 96)[0])
    soundfile.write(tmp_path / "blind.wav", read_sound(whole), 16_000)
    seen, heard = localizer.predict(silent), localizer.predict(tmp_path / "blind.wav")
    assert (seen.video.notes, heard.video.notes) == (["no sound"], ["no picture"])
    assert (seen.video.width, seen.video.height) == (64, 96)
    for result, modality in ((seen, "visual"), (heard, "audio")):
        for entry in result.classes:
            assert entry.present == (entry.views[modality] >= entry.view_thresholds[modality])
            assert {event.modality for event in entry.events} <= {modality}
    assert not any(entry.segments for entry in seen.classes)
    assert not any(entry.regions for entry in heard.classes)


# --- the program ------------------------------------------------------------------------------------


def test_every_file_is_written_and_says_the_same(run: Path, localizer: Localizer, tmp_path: Path) -> None:
    video = film(tmp_path / "-Straße $x <b>.mp4", 6, seconds=5)
    out = tmp_path / "out"
    localize.main(localize.Options(run, (video,), out, video=True, frames=True, device="cpu", width=480))
    place = out / video.stem
    result = Localization.load(place.with_name(f"{video.stem}.json"))
    assert result == localizer.predict(video)
    events = [event for entry in result.classes for event in entry.events]

    rows = list(csv.DictReader(io.StringIO(place.with_name(f"{video.stem}.csv").read_text())))
    assert len(rows) == len(events) > 0
    assert list(rows[0])[:9] == ["clip", "modality", "class", "start", "end", "x1", "y1", "x2", "y2"]
    truth = read_annotations(place.with_name(f"{video.stem}.csv"))
    assert [(row.label, row.start, row.end) for row in truth.rows] == [
        (row["class"], float(row["start"]), float(row["end"])) for row in rows
    ]

    coco = json.loads(place.with_name(f"{video.stem}.coco.json").read_text())
    shown = [(c, r) for c, entry in enumerate(result.classes, 1) for r in entry.seen()]
    assert len(coco["annotations"]) == len(shown) > 0
    for annotation, (category, region) in zip(coco["annotations"], shown, strict=True):
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == pytest.approx(region.box, abs=0.02)
        assert coco["categories"][category - 1]["id"] == annotation["category_id"] == category
        image = coco["images"][annotation["image_id"] - 1]
        assert cv2.imread(str(out / image["file_name"])).shape[:2] == (image["height"], image["width"])

    labels = place.with_name(f"{video.stem}.audacity.txt").read_text().splitlines()
    assert len(labels) == sum(event.modality == "audio" for event in events)
    assert all(float(line.split("\t")[0]) < float(line.split("\t")[1]) for line in labels)
    assert cv2.imread(str(place.with_name(f"{video.stem}.png"))).shape[1] == 480


def test_the_drawn_video_keeps_its_sound_and_shows_the_boxes(
    run: Path, localizer: Localizer, tmp_path: Path
) -> None:
    video = film(tmp_path / "film.mp4", 6, seconds=5)
    localize.main(localize.Options(run, (video,), tmp_path / "out", video=True, device="cpu"))
    drawn = tmp_path / "out" / "film.mp4"
    assert read_sound(drawn) == pytest.approx(read_sound(video), abs=1e-6)
    before, after = list(read_frames(video, 100)), list(read_frames(drawn, 100, 10_000))
    assert [frame.time for frame in before] == pytest.approx(
        [frame.time for frame in after][: len(before)], abs=2e-3
    )
    result = localizer.predict(video)
    entry, region = next((entry, entry.seen()[0]) for entry in result.classes if entry.seen())
    picture = next(frame.image for frame in after if frame.time >= region.time)
    scale = picture.shape[1] / result.video.width
    x, y = round((region.box[0] + region.box[2]) / 2 * scale), round(region.box[3] * scale) - 1
    colour = [int(entry.colour[i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(picture[y, x].astype(int) - colour).max() < 60  # the lower edge of the box, as H.264 has it


def test_results_of_another_video_are_never_replaced(run: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, two = film(tmp_path / "a" / "x.mp4", 1), film(tmp_path / "b" / "x.mp4", 2)
    before = one.read_bytes()
    for _ in range(2):
        localize.main(localize.Options(run, (one, two, one), tmp_path / "a", video=True, device="cpu"))
        found = {p.name: Localization.load(p).video.path for p in (tmp_path / "a").glob("x*[0-9x].json")}
        assert found == {"x-2.json": str(one), "x-3.json": str(two)}  # x.mp4 itself is in the way of "x"
    assert one.read_bytes() == before


def test_a_bad_video_is_named_and_the_others_are_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = film(tmp_path / "good.mp4", 1), tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    call = ["localize", str(run), str(bad), str(good), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as stop:
        cli.run(localize.main, localize.Options)
    complaint = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert sum("bad.mp4" in line for line in complaint) == 1
    assert "1 of 2 videos" in complaint[-1]
    assert (tmp_path / "out" / "good.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": ()}, "no video given"),
        ({"videos": (Path("absent.mp4"),)}, "absent.mp4: no such file"),
        ({"hop": 0.0}, "--hop: expected more than 0"),
        ({"hop": 1e9}, "--hop: expected at most a window"),
        ({"regions": 0}, "--regions: expected at least 1"),
        ({"width": 10}, "--width: expected 320"),
        ({"edge_model": Path(__file__)}, "leave out --edge-model"),
    ],
)
def test_bad_options_are_refused(run: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    options = localize.Options(run, (Path("x.mp4"),), tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match=message):
        localize.main(replace(options, **changes))  # type: ignore[arg-type]


def test_importing_avfast_stays_light() -> None:
    program = (
        "import sys, avfast; assert callable(avfast.load)\n"
        "assert not {'torch', 'cv2', 'av', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def test_the_example_notebook_runs(run: Path) -> None:
    notebook = nbformat.read(Path(__file__).parent.parent / "examples" / "localize.ipynb", as_version=4)
    (given,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    video = run.parent / "clips" / "17.mp4"
    given.source = f"from pathlib import Path\nrun, video = Path({str(run)!r}), Path({str(video)!r})"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 3
    assert any("visual" in output.get("text", "") for output in outputs)  # the table of events
