"""Metrics against hand-written numbers, brute force and the packages that define them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avfast import metrics
from avfast.metrics import bootstrap

CLASSES = ["siren", "horn", "bell"]

# A coarse grid makes ties frequent, which is where rankings go wrong.
coarse = st.integers(-4, 4).map(lambda i: i / 4)
scores_and_labels = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float64, shape, elements=coarse), hnp.arrays(np.bool_, shape))
)


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


def test_bagged_thresholds_are_steadier_on_few_clips_and_exact_on_many() -> None:
    """A threshold from 12 clips, drawn again and again: bagging halves the variance of its F1 deficit."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.random((count, 2)) < 0.4
        return labels + generator.normal(size=labels.shape), labels

    many = draw(4000)
    f1 = {"best": [], "bagged": []}
    for _ in range(30):
        few = draw(12)
        thresholds = metrics.best_threshold(*few), metrics.bagged(metrics.best_threshold, *few)
        for name, threshold in zip(f1, thresholds, strict=True):
            f1[name].append(metrics.micro_f1(many[0] >= threshold, many[1])["f1"])
    assert np.mean(f1["bagged"]) > np.mean(f1["best"]) and np.var(f1["bagged"]) < np.var(f1["best"]) / 2
    huge = np.tile(few[0], (20_000, 1)), np.tile(few[1], (20_000, 1))
    assert metrics.bagged(metrics.best_threshold, *huge) == metrics.best_threshold(*huge)
    again = [metrics.bagged(metrics.class_thresholds, *few) for _ in range(2)]
    assert again[0].shape == (2,) and np.array_equal(*again)
    nothing = np.zeros((3, 2), bool)
    assert not (few[0][:3] >= metrics.bagged(metrics.best_threshold, few[0][:3], nothing)).any()


def test_best_threshold_without_positives_or_scores() -> None:
    scores = np.array([[0.25, 0.75]])
    assert not (scores >= metrics.best_threshold(scores, np.zeros_like(scores, dtype=bool))).any()
    assert metrics.best_threshold(np.zeros((0, 3)), np.zeros((0, 3), dtype=bool)) == 0.0


@given(hnp.arrays(np.float32, (4, 2), elements=st.floats(-1, 1, width=32)), hnp.arrays(np.bool_, (4, 2)))
def test_best_threshold_survives_neighbouring_floats(scores: np.ndarray, labels: np.ndarray) -> None:
    scores[1] = np.nextafter(scores[0], np.float32(2))
    chosen = metrics.micro_f1(scores >= metrics.best_threshold(scores, labels), labels)["f1"]
    assert chosen == max(metrics.micro_f1(scores >= t, labels)["f1"] for t in [*np.unique(scores), 2.0])


@settings(deadline=None)
@given(scores_and_labels)
def test_class_thresholds_are_exact_for_each_class(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    chosen = metrics.class_thresholds(scores, labels)
    for c in range(scores.shape[1]):
        if not labels[:, c].any():
            assert chosen[c] == metrics.best_threshold(scores, labels)
            continue
        own = metrics.micro_f1(scores[:, c] >= chosen[c], labels[:, c])["f1"]
        candidates = np.unique(scores[:, c])
        assert own == max(metrics.micro_f1(scores[:, c] >= t, labels[:, c])["f1"] for t in candidates)


def test_roc_area_and_d_prime_by_hand() -> None:
    # Of 2 x 2 pairs, two are right, one is a tie, one is wrong.
    assert metrics.roc_auc(np.array([0.9, 0.5, 0.5, 0.7]), np.array([1, 1, 0, 0])) == pytest.approx(2.5 / 4)
    assert metrics.roc_auc(np.array([1.0, 2.0]), np.array([1, 1])) == 0.0
    assert metrics.roc_auc(np.array([]), np.array([])) == 0.0
    assert metrics.d_prime(0.5) == 0.0
    assert metrics.d_prime(0.76024994) == pytest.approx(1.0)  # sqrt(2) * 0.70711; Phi(0.70711) = 0.76025
    assert metrics.d_prime(1 - 0.76024994) == pytest.approx(-1.0)
    for certain in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            metrics.d_prime(certain)


def test_macro_figures_are_those_of_the_dcase_2017_script() -> None:
    # Decisions: siren 1 hit, 1 miss; horn 1 hit, 1 false alarm; bell predicted once in error; gong never.
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    decisions = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]], dtype=bool)
    result = metrics.classification(decisions.astype(float), labels, 0.5, [*CLASSES, "gong"])
    precision, recall = (1 + 1 / 2 + 0) / 3, (1 / 2 + 1 + 0) / 3
    assert result["macro"] == pytest.approx(
        {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}
    )
    assert result["micro"] == pytest.approx({"f1": 4 / 7, "precision": 2 / 4, "recall": 2 / 3})
    assert result["per_class"]["bell"]["support"] == 0
    assert result["per_class"]["gong"]["f1"] == 0.0


def test_a_class_without_clips_takes_no_part_in_rankings() -> None:
    scores = np.array([[0.9, 0.1, 0.8], [0.2, 0.7, 0.1]])
    result = metrics.classification(scores, np.array([[1, 0, 0], [0, 1, 0]]), 0.5, CLASSES)
    assert (result["map"], result["auc"]) == (1.0, 1.0)
    # A faultless class of one pair counts as half a pair wrong, which is chance.
    assert result["d_prime"] == 0.0
    bell = result["per_class"]["bell"]
    assert (bell["ap"], bell["auc"], bell["d_prime"], bell["support"]) == (0.0, 0.0, 0.0, 0)


@settings(deadline=None)
@given(scores_and_labels, st.lists(coarse, min_size=3, max_size=3))
def test_classification_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray], bounds: list[float]) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = case
    names, thresholds = CLASSES[: scores.shape[1]], np.array(bounds[: scores.shape[1]])
    result = metrics.classification(scores, labels, thresholds, names)
    decisions = scores >= thresholds
    for c, name in enumerate(names):
        ours = result["per_class"][name]
        expected = sklearn_metrics.precision_recall_fscore_support(
            labels[:, c], decisions[:, c], average="binary", zero_division=0
        )
        assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx(expected[:3])
        assert ours["support"] == labels[:, c].sum()
        if 0 < ours["support"] < len(labels):
            assert ours["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels[:, c], scores[:, c]))
    micro = sklearn_metrics.f1_score(labels.ravel(), decisions.ravel(), zero_division=0)
    assert result["micro"]["f1"] == pytest.approx(micro)
    occurring = labels.any(axis=0) | decisions.any(axis=0)
    averages = [
        np.mean(
            [result["per_class"][n][key] for n, any_ in zip(names, occurring, strict=True) if any_] or [0]
        )
        for key in ("precision", "recall")
    ]
    assert [result["macro"]["precision"], result["macro"]["recall"]] == pytest.approx(averages)
    figures = [result[key] for key in ("map", "auc", "d_prime")]
    assert np.isfinite([*figures, *result["micro"].values(), *result["macro"].values()]).all()


def test_empty_predictions_give_zero_everywhere() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
    for case in (labels, np.zeros_like(labels), labels[:0]):
        result = metrics.classification(np.zeros(case.shape), case, 1.0, CLASSES)
        for group in (result["micro"], result["macro"]):
            assert group == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
        assert np.isfinite([result["map"], result["auc"], result["d_prime"]]).all()


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


# --- bootstrap --------------------------------------------------------------------------------------


def test_bootstrap_equals_resampling_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)
    generator = np.random.default_rng(3)
    labels = generator.random((15, 3)) < 0.4
    first = [labels ^ (generator.random(labels.shape) < noise) for noise in (0.05, 0.2)]
    second = [labels ^ (generator.random(labels.shape) < 0.3)]

    def f1(decisions: list[np.ndarray], clips: np.ndarray) -> float:
        return float(np.mean([metrics.micro_f1(seed[clips], labels[clips])["f1"] for seed in decisions]))

    draws = np.random.default_rng(7).multinomial(15, np.full(15, 1 / 15), 40)
    samples = [np.repeat(np.arange(15), counts) for counts in draws]
    resampled = np.array([f1(first, clips) - f1(second, clips) for clips in samples])
    result = metrics.paired_bootstrap(first, second, labels, seed=7)
    assert result == pytest.approx(
        {
            "difference": f1(first, np.arange(15)) - f1(second, np.arange(15)),
            "low": np.percentile(resampled, 2.5),
            "high": np.percentile(resampled, 97.5),
            "ahead": (resampled > 0).mean(),
            "behind": (resampled < 0).mean(),
        }
    )


def test_bootstrap_of_equals_and_of_nothing() -> None:
    labels = np.eye(6, 3, dtype=bool)
    same = metrics.paired_bootstrap([labels], [labels, labels], labels)
    assert set(same.values()) == {0.0}
    silent = np.zeros_like(labels)
    assert set(metrics.paired_bootstrap([silent], [silent], silent).values()) == {0.0}
    better = metrics.paired_bootstrap([labels], [silent], labels)
    assert (better["difference"], better["high"]) == (1.0, 1.0)
    assert better["ahead"] > 0.97  # not where only clips without a label are drawn, 1 resample in 64
    with pytest.raises(ValueError, match="second: expected decisions of at least one seed"):
        metrics.paired_bootstrap([labels], [], labels)
    with pytest.raises(ValueError, match=r"expected the shape of the labels \[6, 3\], got \[5, 3\]"):
        metrics.paired_bootstrap([labels[:5]], [labels], labels)
    with pytest.raises(ValueError, match="at least one clip"):
        metrics.paired_bootstrap([labels[:0]], [labels[:0]], labels[:0])
