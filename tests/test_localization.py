"""The JSON of a localisation: what was written is read back, anything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avfast.errors import InputError
from avfast.localization import (
    ClassResult,
    Event,
    Localization,
    Region,
    Run,
    Sampling,
    ScoredWindow,
    Segment,
    Video,
)

NAME = 'Ж "quoted" </script>\n'


def example() -> Localization:
    seen = Region(1.0, (0.0, 0.0, 8.0, 6.0), 0.5)
    bell = ClassResult(
        name=NAME,
        colour="#0072b2",
        present=True,
        score=0.25,
        views={"visual": 0.2, "audio": 0.05},
        threshold=0.1,
        view_thresholds={"visual": 0.1, "audio": 0.1},
        regions=[seen],
        segments=[Segment(0.0, 0.96, -0.1)],
        events=[Event("visual", 0.0, 2.0, 1.0, 0.5, seen.box), Event("audio", 0.0, 0.96, 0.48, 0.3)],
    )
    return Localization(
        Video(NAME, f"/clips/{NAME}", 2.0, 8, 6, [0.0, 1.0], 2.0, []),
        Run("/runs/one", "av-two-stream", 0, {"avfast": "0"}, {"model": {"system": "av-two-stream"}}),
        Sampling(1.0, 10.0, 5.0, 3),
        [bell],
        [ScoredWindow(0.0, 2.0, [0.25], {"visual": [0.2], "audio": [0.05]}, [True])],
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    example().save(tmp_path / "one.json")
    assert Localization.load(tmp_path / "one.json") == example()


def test_keys_of_later_versions_are_passed_over() -> None:
    value = json.loads(example().to_json())
    value["new"] = value["classes"][0]["new"] = value["classes"][0]["regions"][0]["new"] = 1
    assert Localization.from_json(json.dumps(value)) == example()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a localisation"),
        ('{"format": "other"}', "not a localisation"),
        ('{"format": "avfast-localization", "version": 2}', "version 2 of the format"),
        ('{"format": "avfast-localization", "version": 1}', "damaged localisation"),
        (None, "no such file"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "one.json").write_text(text)
    with pytest.raises(InputError, match=rf"one\.json: {message}"):
        Localization.load(tmp_path / "one.json")


def test_numbers_that_json_has_not_are_refused() -> None:
    result = example()
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(result, sampling=replace(result.sampling, hop=float("nan"))).to_json()
