"""Figures of any system's result: on the axes given, names as they are, colours that everyone tells apart."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import media_maker
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from avfast.data.clips import Settings
from avfast.data.proposals import EdgeBoxesParameters
from avfast.evaluation import Thresholds
from avfast.inference import Localizer
from avfast.localization import Localization
from avfast.models import SYSTEMS, ModelConfig, build
from avfast.report import figure, figures
from avfast.report.colours import PALETTE, class_colour, luminance, rgb, text_on
from avfast.report.comparison import draw_per_class
from avfast.report.curves import draw_curves
from avfast.runs import Trained

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["$\\frac{1}$", "<b>", 'a "b"\nc', "Straße", "車", *(f"class number {n}" for n in range(12))]

DEUTERANOPIA = np.array(  # Machado et al. 2009, table 1, severity 1.0, as are the two below
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
TRITANOPIA = np.array(
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
)


def film(path: Path, seen: bool = True, heard: bool = True) -> Path:
    generator = np.random.default_rng(0)
    frames = [np.full((48, 80, 3), 90, np.uint8) for _ in range(24)]
    for index, frame in enumerate(frames):
        frame[10:34, index : index + 30] = generator.integers(0, 255, 3)
    sound = media_maker.tone(700, 6, 16_000) if heard else None
    return media_maker.write_media(path, frames if seen else None, sound=sound)


def untrained(system: str, names: list[str]) -> Localizer:
    """A run as training would leave it, but for its weights; every window holds every class."""
    config = ModelConfig.from_preset("toy", system=system)
    model = build(config, len(names)).eval()
    modalities = {"av": ["visual", "audio"], "video": ["visual"]}.get(system.split("-")[0], ["audio"])
    views: dict[str, float | np.ndarray] = dict.fromkeys(modalities, -9.0)
    settings = Settings(edge_boxes=EdgeBoxesParameters(min_box_area=100))
    facts = {"preparation": settings.record(), "clip_seconds": 4.0, "model": asdict(config), "seed": 0}
    return Localizer(Path("run"), Trained(model, names, Thresholds(-9.0, views), facts))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Localization:
    return untrained("av-two-stream", NAMES).predict(film(tmp_path_factory.mktemp("film") / "film.mp4"))


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_system_localises_and_is_drawn(system: str, tmp_path: Path) -> None:
    localizer = untrained(system, ["bell", "dog"])
    result = localizer.predict(film(tmp_path / "film.mp4"))
    assert Localization.from_json(result.to_json()) == result
    for entry in result.classes:
        assert bool(entry.regions) == ("visual" in entry.views)
        assert bool(entry.segments) == ("audio" in entry.views)
        assert {event.modality for event in entry.events} <= set(entry.views)
    panels = 2 + any(e.regions for e in result.classes) + any(e.segments for e in result.classes)
    assert len(figures.draw_overview(result).axes) == panels


def test_each_figure_draws_on_the_axes_given(result: Localization) -> None:
    for draw in (
        figures.draw_filmstrip,
        figures.draw_regions,
        figures.draw_spectrogram,
        figures.draw_segments,
    ):
        axes = Figure().subplots()
        assert draw(axes, result) is axes
        assert axes.get_xlim() == pytest.approx((0, result.video.seconds))


@pytest.mark.parametrize("width", [480, 1280])
def test_names_are_shown_as_they_are(result: Localization, tmp_path: Path, width: int) -> None:
    figure = figures.draw_overview(result, width)
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {figures.shorten(name, 15 if width < 800 else 32) for name in NAMES} <= texts
    figures.save_overview(result, tmp_path / "film.png", width)
    assert (tmp_path / "film.png").read_bytes()[16:20] == width.to_bytes(4, "big")


@pytest.mark.parametrize(("seen", "heard"), [(True, False), (False, True)])
def test_what_is_not_there_takes_no_room(tmp_path: Path, seen: bool, heard: bool) -> None:
    path = film(tmp_path / "film.mp4", seen, heard)
    assert len(figures.draw_overview(untrained("av-two-stream", NAMES).predict(path)).axes) == 2


def test_a_result_without_preview_cannot_show_frames(result: Localization) -> None:
    read = Localization.from_json(result.to_json())
    assert len(figures.draw_overview(read).axes) == 2  # the scores alone
    with pytest.raises(ValueError, match="expected one with a preview"):
        figures.draw_filmstrip(Figure().subplots(), read)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.96, "0:10"), (61.25, "1:01.2"), (3600, "1:00:00"), (7325, "2:02:05")],
)
def test_times_are_written_as_players_write_them(seconds: float, text: str) -> None:
    assert figures.format_time(seconds) == text


def test_colours_are_told_apart_with_any_vision() -> None:
    for count, least in ((8, 16), (20, 14)):  # CIE 1976 difference; 2 is just noticeable
        for sight in (np.eye(3), DEUTERANOPIA, PROTANOPIA, TRITANOPIA):
            seen = [_lab(colour, sight) for colour in PALETTE[:count]]
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > least
    assert class_colour(len(PALETTE)) == PALETTE[0]
    for colour in PALETTE:
        light, dark = sorted([luminance(colour), luminance(text_on(colour))], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


def _lab(colour: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour as a kind of colour vision sees it."""
    channels = np.array(rgb(colour)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    white = np.array([0.9505, 1, 1.089])
    xyz = to_xyz @ (sight @ linear).clip(0, 1) / white
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_letters_that_the_usual_font_lacks_come_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a figure was drawn before, outside of ``any_script``, as the curves of a run are."""
    letter = "\u1d81"  # of the fonts that come with matplotlib, STIX has it and DejaVu has not

    def drawn(text: str, *fonts: str) -> bytes:
        monkeypatch.setattr(figure, "FONTS", fonts)
        figure._installed.cache_clear()
        picture = Figure(figsize=(2, 2))
        axes = picture.subplots()
        axes.plot([0, 1], label=text)
        axes.legend()
        return figure.png(picture)

    missing, found = drawn(letter, "DejaVu Sans"), drawn(letter, "DejaVu Sans", "STIXGeneral")
    assert missing != found
    assert drawn("a", "DejaVu Sans") == drawn("a", "DejaVu Sans", "STIXGeneral")
    figure._installed.cache_clear()


def test_curves_and_tables_take_any_name(tmp_path: Path) -> None:
    per_class = {name: {"loss": 1.0, "f1": 0.5} for name in NAMES}
    val = {"loss": 1.0, "micro_f1": 0.5, "map": 0.5, "per_class": per_class}
    draw_curves([{"step": 1, "loss": 1.0}, {"step": 1, "val": val}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    picture = Figure()
    draw_per_class(picture.subplots(), np.ones((1, len(NAMES))), ["av-two-stream"], NAMES)
    assert "車" in figure.svg(picture).decode()
