"""The pages in a real browser: what is drawn where and when, and that nothing leaves the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import avfast
from avfast import train
from avfast.localization import Localization, Video
from avfast.metrics import classification
from avfast.report.comparison_page import comparison_page
from avfast.report.localization_page import ShownVideo, browser_media, localization_page
from avfast.report.page import as_json
from avfast.report.training_page import ScoredSplit, training_page

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='broken'</script> \"'&amp;\u2028 Zürich 鳥 </script>"
BOXES = """() => { const stage = document.querySelector('.stage').getBoundingClientRect();
  return [...document.querySelectorAll('.box')].map((box) => { const at = box.getBoundingClientRect();
    return [at.left - stage.left, at.top - stage.top, at.right - stage.left, at.bottom - stage.top]
      .map((side, i) => side / (i % 2 ? stage.height : stage.width)); }); }"""


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train.main(train.Options(data=data, out=out, epochs=1, device="cpu", report=False))
    return out


@pytest.fixture(scope="module")
def shown(run: Path, real_clips: Path) -> ShownVideo:
    localization = avfast.load(run).predict(real_clips / "videos" / "test_0000.mp4")
    return ShownVideo(localization, browser_media(Path(localization.video.path), localization.video.seconds))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page's HTML; fails at the end for any message on the console and any request to a host."""
    complaints: list[str] = []
    contexts = []

    def open_html(html: str, width: int = 1280, scheme: str = "light") -> Any:
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "blob:", "data:")) or complaints.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_html
    for context in contexts:
        context.close()
    assert complaints == []


def ready(page: Any) -> Any:
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    return page


def test_boxes_are_those_of_the_frame_in_their_places(shown: ShownVideo, open_page: Any) -> None:
    page = ready(open_page(localization_page([shown])))
    page.get_by_test_id("absent").check()
    page.get_by_test_id("strictness").fill("-2")
    for box in page.locator(".classes input").all():
        box.check()
    video = shown.localization.video
    for time in video.frame_times[2:5]:
        page.evaluate("t => { document.querySelector('video').currentTime = t + 0.2; }", time)
        page.wait_for_function(
            "t => Math.abs(document.querySelector('video').currentTime - t - 0.2) < 0.1", arg=time
        )
        expected = sorted(
            [x1 / video.width, y1 / video.height, x2 / video.width, y2 / video.height]
            for entry in shown.localization.classes
            for (x1, y1, x2, y2) in [r.box for r in entry.regions if r.time == time and r.score > 0]
        )
        page.wait_for_timeout(100)
        drawn = sorted(page.evaluate(BOXES))
        assert len(drawn) == len(expected)
        assert all(a == pytest.approx(b, abs=0.01) for a, b in zip(drawn, expected, strict=True))


def test_events_follow_the_thresholds(shown: ShownVideo, open_page: Any) -> None:
    page = ready(open_page(localization_page([shown])))
    rows = page.get_by_test_id("events").locator("tbody tr")
    present = sum(len(entry.events) for entry in shown.localization.classes if entry.present)
    assert rows.count() == present
    page.get_by_test_id("absent").check()
    for box in page.locator(".classes input").all():
        box.check()
    page.get_by_test_id("strictness").fill("-1")
    many = rows.count()
    page.get_by_test_id("strictness").fill("2")
    assert rows.count() == 0 < many


def test_the_page_finds_the_events_that_python_finds(shown: ShownVideo, open_page: Any) -> None:
    """Where thresholds are moved the page decides itself, by the rule of ``findings``."""
    moved = [
        replace(
            entry,
            threshold=entry.threshold - 5,
            view_thresholds={modality: value - 5 for modality, value in entry.view_thresholds.items()},
        )
        for entry in shown.localization.classes
    ]
    localization = replace(shown.localization, classes=moved)
    page = ready(open_page(localization_page([replace(shown, localization=localization)])))
    ours = page.evaluate(
        "video => video.classes.map((_, c) => events(video, c, 5))", json.loads(localization.to_json())
    )
    for entry, found in zip(shown.localization.classes, ours, strict=True):
        for event, other in zip(
            entry.events, sorted(found, key=lambda e: (e["start"], e["modality"])), strict=True
        ):
            assert (event.modality, event.start, event.end, event.score) == (
                other["modality"],
                pytest.approx(other["start"], abs=1e-4),
                pytest.approx(other["end"], abs=1e-4),
                other["score"],
            )


def test_plays_seeks_and_answers_keys(shown: ShownVideo, open_page: Any) -> None:
    page = ready(open_page(localization_page([shown])))
    now = "document.querySelector('video').currentTime"
    page.get_by_test_id("play").click()
    page.wait_for_function(f"{now} > 0.3")
    page.get_by_test_id("play").click()
    page.wait_for_function("document.querySelector('video').paused")
    page.get_by_test_id("absent").check()
    page.locator(".classes input").first.check()
    canvas = page.locator(".timeline canvas").first
    canvas.click(position={"x": canvas.bounding_box()["width"] / 2, "y": 5})
    assert page.evaluate(now) == pytest.approx(shown.localization.video.seconds / 2, abs=0.05)
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(now) == pytest.approx(shown.localization.video.seconds / 2 + 1, abs=0.05)
    page.keyboard.press("Home")
    assert page.evaluate(now) == 0
    page.keyboard.press("m")
    page.wait_for_function("document.querySelector('video').muted")


def test_timelines_are_painted_where_the_events_are(shown: ShownVideo, open_page: Any) -> None:
    page = ready(open_page(localization_page([shown])))
    page.get_by_test_id("absent").check()
    for box in page.locator(".classes input").all():
        box.check()
    page.get_by_test_id("strictness").fill("-2")
    page.wait_for_timeout(200)
    painted = page.evaluate("""() => [...document.querySelectorAll('.timeline canvas')].map((canvas) => {
        const pixels = canvas.getContext('2d').getImageData(0, canvas.height - 2, canvas.width, 1).data;
        const solid = [...Array(canvas.width).keys()].filter((x) => pixels[4 * x + 3] > 200).length;
        return [Number(canvas.dataset.index), canvas.dataset.modality, solid / canvas.width]; })""")
    found = page.evaluate(
        """video => video.classes.map((_, c) => events(video, c, -2))""",
        json.loads(shown.localization.to_json()),
    )
    for c, modality, share in painted:
        seconds = sum(e["end"] - e["start"] for e in found[c] if e["modality"] == modality)
        assert share == pytest.approx(seconds / shown.localization.video.seconds, abs=0.02)
    assert any(share > 0 for _, _, share in painted)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_sideways_scrolling(shown: ShownVideo, open_page: Any, scheme: str) -> None:
    page = ready(open_page(localization_page([shown, shown]), width=360, scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_hostile_names_are_shown_as_text(shown: ShownVideo, open_page: Any) -> None:
    entry = replace(shown.localization.classes[0], name=HOSTILE, present=True)
    video = replace(shown.localization.video, name=HOSTILE, notes=[HOSTILE])
    localization = replace(shown.localization, video=video, classes=[entry, *shown.localization.classes[1:]])
    page = open_page(localization_page([ShownVideo(localization, shown.media)] * 2))
    assert page.locator("h1").text_content() == HOSTILE
    page.get_by_test_id("absent").check()
    assert HOSTILE in page.locator(".classes .name").all_text_contents()
    assert page.title() != "broken"
    assert page.locator("script").count() == 5


def test_sound_alone_and_a_missing_file_are_said(open_page: Any, shown: ShownVideo) -> None:
    blind = Video("a.wav", "/a.wav", 10.0, 0, 0, [], 10.0, ["no picture"])
    classes = [replace(entry, regions=[], events=[]) for entry in shown.localization.classes]
    localization = Localization(
        blind, shown.localization.run, shown.localization.sampling, classes, shown.localization.windows
    )
    page = open_page(localization_page([ShownVideo(localization, b"")]))
    assert page.locator(".stage .nothing").is_visible()
    assert page.locator(".box").count() == 0


def test_json_in_a_page_cannot_end_its_element() -> None:
    text = str(as_json({"a": HOSTILE}))
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": HOSTILE}


def test_a_page_needs_a_video() -> None:
    with pytest.raises(ValueError, match="at least one video"):
        localization_page([])


@pytest.mark.parametrize("width", [1280, 360])
def test_the_training_page_sorts_its_classes(open_page: Any, width: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((40, 3)) < 0.4
    scores = np.where(labels, 1.0, -1.0) + generator.normal(0, 0.7, labels.shape)
    names = [HOSTILE, "b", "a"]
    split = ScoredSplit([f"{HOSTILE} {i}" for i in range(40)], scores, labels, 0.0)
    summary = {"split": "test", "clips": 40, **classification(scores, labels, 0.0, names)}
    config = {"data": None, "seed": 0, "model": {"system": "av-two-stream"}, "recipe": {"lr": 1e-3}}
    pixel = browser_pixel()
    page = open_page(training_page(HOSTILE, config, summary, pixel, split, lambda position: pixel), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cells = page.get_by_test_id("classes").locator("tbody tr td:nth-of-type(1)")
    assert cells.all_text_contents() == names
    page.get_by_role("button", name="F1").click()
    by_f1 = sorted(names, key=lambda name: -summary["per_class"][name]["f1"])
    assert cells.all_text_contents() == by_f1
    page.get_by_role("button", name="class").click()
    assert cells.all_text_contents()[-2:] == ["a", "b"] or cells.all_text_contents()[:2] == ["a", "b"]
    assert page.locator("article").count() == len(split.best()) + len(split.worst()) > 3
    assert page.locator("article strong").first.text_content() == split.clips[split.best()[0]]


def test_best_and_worst_clips() -> None:
    scores = np.array([[2.0, -1.0], [0.5, 0.6], [-3.0, 1.0], [-9.0, -9.0], [1.0, 0.2]])
    labels = np.array([[True, False], [True, True], [True, True], [False, False], [True, False]])
    split = ScoredSplit(list("abcde"), scores, labels, 0.0)
    assert split.best() == [0, 1, 4]
    assert split.worst() == [2, 4]


def browser_pixel() -> bytes:
    return cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize("width", [1280, 360])
def test_the_comparison_page_shows_its_tables(open_page: Any, tmp_path: Path, width: int) -> None:
    text = f"# Comparison\n\n| system | F1 |\n| --- | --- |\n| {HOSTILE} | 0.5 |\n"
    (tmp_path / "per_class.png").write_bytes(browser_pixel())
    page = open_page(comparison_page(text, tmp_path), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("td").first.text_content() == HOSTILE.replace("&amp;", "&")  # Markdown knows entities
    assert page.locator("figure").count() == 1
