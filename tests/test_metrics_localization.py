"""Localisation figures against hand-written numbers and sed_eval."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avfast import metrics
from avfast.metrics import AnnotatedBox, Event, Regions

CLASSES = ["siren", "horn", "bell"]

event_lists = st.lists(
    st.builds(
        lambda label, start, length: Event(label, start, start + length),
        st.integers(0, len(CLASSES) - 1),
        st.one_of(st.integers(0, 11).map(float), st.floats(0, 11)),
        st.one_of(st.sampled_from([0.0, 0.48, 0.96, 1.0, 3.0]), st.floats(0, 9)),
    ),
    max_size=6,
)


# --- regions --------------------------------------------------------------------------------------


def regions(*rows: tuple[float, tuple[float, ...], tuple[float, ...]]) -> Regions:
    times, boxes, scores = zip(*rows, strict=True)
    return Regions(np.array(times), np.array(boxes), np.array(scores))


def test_iou_by_hand() -> None:
    assert metrics.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert metrics.iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0.0
    assert metrics.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert metrics.iou((2, 2, 0, 0), (0, 0, 2, 2)) == 0.0


def test_corloc_and_pointing_take_the_best_region_of_the_clip() -> None:
    truth = {"a": [AnnotatedBox(0, 1.0, 1.0, (0, 0, 10, 10)), AnnotatedBox(1, 1.0, 1.0, (20, 20, 40, 40))]}
    found = {
        "a": regions(
            (1.0, (0, 0, 10, 9), (0.9, 0.1)),  # right for class 0
            (1.0, (24, 24, 34, 34), (0.2, 0.8)),  # inside class 1's box but IoU 1/4: the centre counts alone
            (1.0, (20, 20, 40, 40), (0.1, 0.7)),  # perfect for class 1, but second
        )
    }
    assert metrics.region_localization(found, truth) == {"corloc": 0.5, "pointing": 1.0}


def test_corloc_counts_a_box_in_its_own_frame_only() -> None:
    truth = {"a": [AnnotatedBox(0, 2.0, 2.0, (0, 0, 10, 10)), AnnotatedBox(0, 5.0, 7.0, (0, 0, 10, 10))]}

    def corloc(time: float) -> float:
        return metrics.region_localization({"a": regions((time, (0, 0, 10, 10), (1.0,)))}, truth)["corloc"]

    assert [corloc(t) for t in (1.7, 1.75, 2.25, 3.0, 6.0, 7.3)] == [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]


def test_a_clip_without_regions_fails_and_no_pair_gives_zero() -> None:
    truth = {"a": [AnnotatedBox(0, 0, 9, (0, 0, 1, 1))], "b": [AnnotatedBox(0, 0, 9, (0, 0, 1, 1))]}
    found = {
        "a": regions((0.0, (0, 0, 1, 1), (1.0,))),
        "b": Regions(np.zeros(0), np.zeros((0, 4)), np.zeros((0, 1))),
    }
    assert metrics.region_localization(found, truth) == {"corloc": 0.5, "pointing": 0.5}
    assert metrics.region_localization({"a": found["a"]}, truth)["corloc"] == 0.5
    assert metrics.region_localization(found, {}) == {"corloc": 0.0, "pointing": 0.0}


# --- segments -------------------------------------------------------------------------------------


def test_segment_scores_by_hand() -> None:
    reference = {"a": [Event(0, 0.5, 2.5)], "b": []}  # segments 0, 1, 2
    estimated = {"a": [Event(0, 1.0, 2.0), Event(1, 2.0, 3.0)], "b": [Event(2, 0.0, 1.0)]}
    # One hit of 3 estimated, 3 reference; errors: deletion in 0, substitution in 2, insertion in b.
    result = metrics.audio_localization(estimated, reference, CLASSES)
    per_class = result.pop("per_class")
    third = pytest.approx(1 / 3)
    assert result == {
        "segment_f1": third,
        "segment_precision": third,
        "segment_recall": third,
        "segment_er": pytest.approx(1.0),
        "substitutions": third,
        "deletions": third,
        "insertions": third,
    }
    assert per_class["siren"] == {
        "f1": pytest.approx(0.5),
        "precision": 1.0,
        "recall": third,
        "er": pytest.approx(2 / 3),
        "support": 3,
    }
    assert per_class["bell"] == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "er": 1.0, "support": 0}


def overall(estimated: dict[str, list[Event]], reference: dict[str, list[Event]]) -> tuple[float, float]:
    result = metrics.audio_localization(estimated, reference, CLASSES)
    return result["segment_f1"], result["segment_er"]


def test_segment_scores_without_events() -> None:
    assert overall({}, {}) == (0.0, 0.0)
    assert overall({"a": []}, {"a": []}) == (0.0, 0.0)
    assert overall({"a": [Event(0, 0, 2)]}, {"a": []}) == (0.0, 2.0)
    assert overall({"elsewhere": [Event(0, 0, 2)]}, {"a": []}) == (0.0, 0.0)
    assert overall({}, {"a": [Event(0, 0, 2)]}) == (0.0, 1.0)


def test_an_event_of_no_length_is_heard_in_the_segment_it_lies_in_unless_on_a_border() -> None:
    assert overall({"a": [Event(0, 1.2, 1.8)]}, {"a": [Event(0, 1.5, 1.5)]}) == (1.0, 0.0)
    assert overall({"a": [Event(0, 1.0, 2.0)]}, {"a": [Event(0, 1.0, 1.0)]}) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event(0, 0.0, float("inf")), "finite times"),
        (Event(0, float("nan"), 1.0), "finite times"),
        (Event(-1, 0.0, 1.0), "label from 0 to 2, got -1"),
        (Event(3, 0.0, 1.0), "label from 0 to 2, got 3"),
    ],
)
def test_events_that_make_no_sense_are_refused(event: Event, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.audio_localization({"a": [event]}, {"a": []}, CLASSES)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(event_lists, event_lists), min_size=1, max_size=4))
@example([([], [])])
@example(
    [([], [Event(0, 0.0, 2.0)]), ([Event(0, 0.0, 1.0)], [])]
)  # a clip without reference, one without output
@example([([Event(0, 2.0, 2.0)], [Event(0, 2.0, 3.0)])])  # a reference of no length, on a border
@example([([Event(0, 2.5, 2.5), Event(1, 0.0, 9.0)], [Event(1, 8.999999999999998, 9.000000000000002)])])
@example([([Event(0, 1.0, 4.0), Event(0, 2.0, 3.0)], [Event(0, 3.0, 9.0), Event(0, 3.0, 9.0)])])  # overlaps
def test_segment_scores_equal_sed_eval(clips: list[tuple[list[Event], list[Event]]]) -> None:
    sed_eval = pytest.importorskip("sed_eval")
    oracle = sed_eval.sound_event.SegmentBasedMetrics(CLASSES, time_resolution=1.0)
    for i, (reference, estimated) in enumerate(clips):
        oracle.evaluate(_sed_eval_list(reference, i), _sed_eval_list(estimated, i))
    ours = metrics.audio_localization(
        {str(i): estimated for i, (_, estimated) in enumerate(clips)},
        {str(i): reference for i, (reference, _) in enumerate(clips)},
        CLASSES,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _assert_like_sed_eval(
            [ours[f"segment_{name}"] for name in ("f1", "precision", "recall", "er")],
            oracle.results_overall_metrics(),
            oracle.overall["Nref"],
            oracle.overall["I"],
        )
        parts = [ours[name] for name in ("substitutions", "deletions", "insertions")]
        theirs = oracle.results_overall_metrics()["error_rate"]
        if oracle.overall["Nref"]:
            expected = [theirs[f"{name}_rate"] for name in ("substitution", "deletion", "insertion")]
            assert parts == pytest.approx(expected)
        by_class = oracle.results_class_wise_metrics()
        for name in CLASSES:
            count, entry = oracle.class_wise[name], ours["per_class"][name]
            assert entry["support"] == count["Nref"]
            values = [entry[key] for key in ("f1", "precision", "recall", "er")]
            _assert_like_sed_eval(values, by_class[name], count["Nref"], count["Nfp"])


def _assert_like_sed_eval(
    ours: list[float], theirs: dict[str, dict[str, float]], references: float, insertions: float
) -> None:
    measured = theirs["f_measure"]
    expected = [measured["f_measure"], measured["precision"], measured["recall"]]
    assert ours[:3] == pytest.approx([0.0 if np.isnan(value) else value for value in expected])
    # Without a reference sed_eval divides insertions by a number next to zero.
    assert ours[3] == pytest.approx(theirs["error_rate"]["error_rate"] if references else insertions)


def _sed_eval_list(events: list[Event], clip: int) -> list[dict[str, object]]:
    return [
        {"filename": f"{clip}.wav", "event_label": CLASSES[e.label], "onset": e.start, "offset": e.end}
        for e in events
    ]
