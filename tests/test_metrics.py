"""Metrics against hand-written numbers, brute force and the packages that define them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avfast import metrics
from avfast.metrics import AnnotatedBox, Event, Regions

CLASSES = ["siren", "horn", "bell"]

# A coarse grid makes ties frequent, which is where rankings go wrong.
coarse = st.integers(-4, 4).map(lambda i: i / 4)
scores_and_labels = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float64, shape, elements=coarse), hnp.arrays(np.bool_, shape))
)
event_lists = st.lists(
    st.builds(
        lambda label, start, length: Event(label, start, start + length),
        st.integers(0, len(CLASSES) - 1),
        st.one_of(st.integers(0, 11).map(float), st.floats(0, 11)),
        st.one_of(st.sampled_from([0.0, 0.48, 0.96, 1.0, 3.0]), st.floats(0, 9)),
    ),
    max_size=6,
)


# --- classification -------------------------------------------------------------------------------


def test_micro_f1_by_hand() -> None:
    decisions = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    labels = np.array([[1, 0], [0, 1], [0, 1]], dtype=bool)
    assert metrics.micro_f1(decisions, labels) == pytest.approx(
        {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3}
    )


@pytest.mark.parametrize(("decision", "label"), [(False, False), (True, False), (False, True)])
def test_no_hits_give_zero_not_nan(decision: bool, label: bool) -> None:
    result = metrics.micro_f1(np.full((3, 2), decision), np.full((3, 2), label))
    assert result == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_average_precision_by_hand() -> None:
    # Ranked: hit, miss, hit -> (1/1 + 2/3) / 2.
    assert metrics.average_precision(np.array([0.9, 0.5, 0.7]), np.array([1, 1, 0])) == pytest.approx(5 / 6)
    # A tie of one hit and one miss enters as one step of precision 1/2.
    assert metrics.average_precision(np.array([0.5, 0.5]), np.array([1, 0])) == pytest.approx(0.5)
    assert metrics.average_precision(np.array([0.5, 0.1]), np.array([0, 0])) == 0.0
    assert metrics.average_precision(np.array([]), np.array([])) == 0.0


@settings(deadline=None)
@given(scores_and_labels)
def test_average_precision_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = case[0][:, 0], case[1][:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no positives
        expected = sklearn_metrics.average_precision_score(labels, scores) if labels.any() else 0.0
    assert metrics.average_precision(scores, labels) == pytest.approx(expected)


@settings(deadline=None)
@given(scores_and_labels)
def test_best_threshold_is_exact(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    chosen = metrics.micro_f1(scores >= metrics.best_threshold(scores, labels), labels)["f1"]
    candidates = [*np.unique(scores), 2.0]
    assert chosen == max(metrics.micro_f1(scores >= t, labels)["f1"] for t in candidates)


def test_best_threshold_prefers_the_widest_gap_then_the_higher() -> None:
    # Perfect anywhere in (0.2, 0.8].
    assert metrics.best_threshold(np.array([[0.9, 0.8, 0.2]]), np.array([[1, 1, 0]])) == pytest.approx(0.5)
    # F1 after 1, 2, 3 and 4 scores: 2/3, 1/2, 4/5, 2/3.
    scores, labels = np.array([[9.0, 8.0, 7.0, 0.0]]), np.array([[1, 0, 1, 0]])
    assert metrics.best_threshold(scores, labels) == pytest.approx(3.5)
    # F1 is 2/3 after 1 score and after 4, and all gaps are equal: the higher one.
    scores, labels = np.array([[4.0, 3.0, 2.0, 1.0, 0.0]]), np.array([[1, 0, 0, 1, 0]])
    assert metrics.best_threshold(scores, labels) == pytest.approx(3.5)


def test_best_threshold_without_positives_or_scores() -> None:
    scores = np.array([[0.25, 0.75]])
    assert not (scores >= metrics.best_threshold(scores, np.zeros_like(scores, dtype=bool))).any()
    assert metrics.best_threshold(np.zeros((0, 3)), np.zeros((0, 3), dtype=bool)) == 0.0


@given(hnp.arrays(np.float32, (4, 2), elements=st.floats(-1, 1, width=32)), hnp.arrays(np.bool_, (4, 2)))
def test_best_threshold_survives_neighbouring_floats(scores: np.ndarray, labels: np.ndarray) -> None:
    scores[1] = np.nextafter(scores[0], np.float32(2))
    chosen = metrics.micro_f1(scores >= metrics.best_threshold(scores, labels), labels)["f1"]
    assert chosen == max(metrics.micro_f1(scores >= t, labels)["f1"] for t in [*np.unique(scores), 2.0])


def test_classification_leaves_unsupported_classes_out_of_averages() -> None:
    scores = np.array([[0.9, 0.1, 0.8], [0.2, 0.7, 0.1]])
    labels = np.array([[1, 0, 0], [0, 1, 0]])
    result = metrics.classification(scores, labels, 0.5, CLASSES)
    assert result["per_class"]["bell"] == {
        "f1": 0.0,
        "precision": 0.0,
        "recall": 0.0,
        "ap": 0.0,
        "support": 0,
    }
    assert result["macro"] == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert result["map"] == 1.0
    assert result["micro"]["precision"] == pytest.approx(2 / 3)


@settings(deadline=None)
@given(scores_and_labels, coarse)
def test_classification_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = case
    names = CLASSES[: scores.shape[1]]
    result = metrics.classification(scores, labels, threshold, names)
    decisions = scores >= threshold
    for c, name in enumerate(names):
        ours = result["per_class"][name]
        expected = sklearn_metrics.precision_recall_fscore_support(
            labels[:, c], decisions[:, c], average="binary", zero_division=0
        )
        assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx(expected[:3])
        assert ours["support"] == labels[:, c].sum()
    micro = sklearn_metrics.f1_score(labels.ravel(), decisions.ravel(), zero_division=0)
    assert result["micro"]["f1"] == pytest.approx(micro)
    supported = [name for name, any_ in zip(names, labels.any(axis=0), strict=True) if any_]
    f1 = [result["per_class"][name]["f1"] for name in supported]
    assert result["macro"]["f1"] == pytest.approx(np.mean(f1) if f1 else 0.0)
    assert np.isfinite([result["map"], *result["micro"].values(), *result["macro"].values()]).all()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2), bool), r"labels: expected the shape of the scores \[2, 3\]"),
        (np.full((2, 3), np.nan), np.zeros((2, 3), bool), "scores: expected finite numbers, got 6"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), r"scores: expected \[N, 3\]"),
    ],
)
def test_classification_refuses_bad_input(scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.classification(scores, labels, 0.0, CLASSES)


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
    result = metrics.audio_localization(estimated, reference, 3)
    assert result == pytest.approx({"segment_f1": 1 / 3, "segment_er": 1.0})


def test_segment_scores_without_events() -> None:
    silent = {"segment_f1": 0.0, "segment_er": 0.0}
    assert metrics.audio_localization({}, {}, 3) == silent
    assert metrics.audio_localization({"a": []}, {"a": []}, 3) == silent
    assert metrics.audio_localization({"a": [Event(0, 0, 2)]}, {"a": []}, 3)["segment_er"] == 2.0
    assert metrics.audio_localization({"elsewhere": [Event(0, 0, 2)]}, {"a": []}, 3) == silent


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(event_lists, event_lists), min_size=1, max_size=3))
def test_segment_scores_equal_sed_eval(clips: list[tuple[list[Event], list[Event]]]) -> None:
    sed_eval = pytest.importorskip("sed_eval")
    oracle = sed_eval.sound_event.SegmentBasedMetrics(CLASSES, time_resolution=1.0)
    oracle.empty_system_output_handling = "zero_score"
    for i, (reference, estimated) in enumerate(clips):
        oracle.evaluate(_sed_eval_list(reference, i), _sed_eval_list(estimated, i))
    ours = metrics.audio_localization(
        {str(i): estimated for i, (_, estimated) in enumerate(clips)},
        {str(i): reference for i, (reference, _) in enumerate(clips)},
        len(CLASSES),
    )
    if not oracle.overall["Nref"]:  # sed_eval divides by zero here; ours is defined
        assert ours["segment_f1"] == 0.0
        assert ours["segment_er"] == oracle.overall["I"]
        return
    expected = oracle.results_overall_metrics()
    assert ours["segment_f1"] == pytest.approx(expected["f_measure"]["f_measure"])
    assert ours["segment_er"] == pytest.approx(expected["error_rate"]["error_rate"])


def _sed_eval_list(events: list[Event], clip: int) -> list[dict[str, object]]:
    return [
        {"filename": f"{clip}.wav", "event_label": CLASSES[e.label], "onset": e.start, "offset": e.end}
        for e in events
    ]
