from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from face_gender.evaluate.metrics import (
    Evaluation,
    cross_entropy,
    fit_temperature,
    wilson_interval,
)


def evaluation(labels: Sequence[int], female: Sequence[float]) -> Evaluation:
    """Answers with the given probabilities of the second class."""
    second = np.array(female, dtype=np.float32)
    return Evaluation(
        classes=("male", "female"),
        paths=np.array([f"{i}.jpg" for i in range(len(labels))]),
        labels=np.array(labels, dtype=np.int64),
        probabilities=np.stack([1 - second, second], axis=1),
        loss=0.25,
    )


MIXED = evaluation([0, 0, 0, 1, 1, 1, 1, 1], [0.1, 0.6, 0.2, 0.9, 0.8, 0.05, 0.7, 0.4])


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # published values of the Wilson score interval without correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_has_the_known_values(
    right: int, total: int, low: float, high: float
) -> None:
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    right, total = counts
    low, high = wilson_interval(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total - 1e-12 <= high <= 1
    mirrored = wilson_interval(total - right, total)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def test_accuracy_and_interval_count_right_answers() -> None:
    assert MIXED.accuracy == 5 / 8
    assert MIXED.interval == wilson_interval(5, 8)


def test_confusion_has_labels_in_rows_and_answers_in_columns() -> None:
    assert MIXED.confusion.tolist() == [[2, 1], [2, 3]]


def test_recall_is_the_share_of_each_class() -> None:
    assert MIXED.recall == pytest.approx({"male": 2 / 3, "female": 3 / 5})


def test_mistakes_come_with_the_most_confident_first() -> None:
    # Wrong are 1 (0.6 for female), 5 (0.95 for male) and 7 (0.6 for male).
    assert MIXED.mistakes().tolist() == [5, 1, 7]
    assert evaluation([0, 1], [0.1, 0.9]).mistakes().tolist() == []


def test_summary_says_it_all_in_one_line() -> None:
    summary = MIXED.summary()
    assert "\n" not in summary
    for words in ("accuracy 0.6250", "n = 8", "male 0.6667", "female 0.6000", "loss 0.2500"):
        assert words in summary


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1, width=32)), min_size=1, max_size=50))
def test_the_figures_agree_with_each_other(rows: list[tuple[int, float]]) -> None:
    labels, female = zip(*rows, strict=True)
    result = evaluation(labels, female)
    confusion = result.confusion
    assert confusion.sum() == len(rows)
    assert confusion.sum(axis=1).tolist() == [labels.count(0), labels.count(1)]
    assert np.trace(confusion) / len(rows) == pytest.approx(result.accuracy)
    assert len(result.mistakes()) == len(rows) - np.trace(confusion)
    low, high = result.interval
    assert low - 1e-12 <= result.accuracy <= high + 1e-12


def test_recall_follows_the_order_of_the_classes() -> None:
    found = replace(MIXED, classes=("female", "male"))
    assert found.recall == pytest.approx({"female": 2 / 3, "male": 3 / 5})
    assert math.isnan(evaluation([1], [0.9]).recall["male"])


def loss_at(temperature: float, outputs: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-likelihood, calculated the plain way."""
    scaled = outputs / temperature
    return float(-np.mean(scaled[np.arange(len(labels)), labels] - np.logaddexp.reduce(scaled, 1)))


def drawn(
    seed: int, count: int, classes: int, spread: float, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Random outputs, and labels drawn from softmax(outputs / temperature)."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, spread, (count, classes))
    # The largest of outputs plus Gumbel noise has just these probabilities.
    labels = (outputs / temperature + rng.gumbel(size=outputs.shape)).argmax(1)
    return outputs, labels


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(50, 300), st.integers(2, 4), st.floats(0.1, 40),
    st.floats(0.02, 40),
)  # fmt: skip
def test_the_fitted_temperature_is_the_best(
    seed: int, count: int, classes: int, spread: float, temperature: float
) -> None:
    outputs, labels = drawn(seed, count, classes, spread, temperature)
    assume((outputs.argmax(1) != labels).sum() >= 10)
    fitted = fit_temperature(outputs, labels)
    assert 0.05 <= fitted <= 20
    least = loss_at(fitted, outputs, labels) - 1e-9
    for other in (fitted * 1.1, fitted / 1.1, fitted * 1.001, fitted / 1.001, 1.0):
        if 0.05 <= other <= 20:
            assert least <= loss_at(other, outputs, labels)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.6, 6.0])
def test_a_known_temperature_is_found(temperature: float, classes: int) -> None:
    outputs, labels = drawn(7, 20_000, classes, 4.0, temperature)
    assert fit_temperature(outputs, labels) == pytest.approx(temperature, rel=0.1)
    assert fit_temperature(outputs.astype(np.float32), labels) == pytest.approx(
        fit_temperature(outputs, labels), rel=1e-5
    )


def test_log_probabilities_have_the_temperature_of_their_outputs() -> None:
    outputs, labels = drawn(1, 500, 2, 5.0, 2.5)
    likely = np.exp(outputs - np.logaddexp.reduce(outputs, 1, keepdims=True))
    result = Evaluation(("a", "b"), np.array(["x"] * 500), labels, likely.astype(np.float32), 0.0)
    fitted = fit_temperature(result.log_probabilities, labels)
    assert fitted == pytest.approx(fit_temperature(outputs, labels), rel=1e-4)
    assert fitted > 1.5


def test_where_too_little_is_known_the_temperature_stays_one() -> None:
    """All right or nearly: the best T would be the smallest, or hang on one or two pictures."""
    outputs = np.array([[3.0, 0.0]] * 60)
    for wrong, pictures in ((0, 60), (1, 60), (9, 60), (20, 49)):
        labels = np.array([1] * wrong + [0] * (pictures - wrong))
        assert fit_temperature(outputs[:pictures], labels) == 1.0
    labels = np.array([1] * 10 + [0] * 50)
    # Five sixths are right: odds of 5 to 1.
    assert fit_temperature(outputs, labels) == pytest.approx(3 / math.log(5))
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=np.int64)) == 1.0


@pytest.mark.parametrize(("spread", "right", "bound"), [(500.0, 40, 20.0), (1e-3, 50, 0.05)])
def test_the_temperature_has_bounds(spread: float, right: int, bound: float) -> None:
    outputs = np.array([[spread, 0.0]] * 60)
    labels = np.array([0] * right + [1] * (60 - right))
    assert fit_temperature(outputs, labels) == pytest.approx(bound)


def test_a_probability_of_nothing_has_a_logarithm() -> None:
    found = evaluation([0, 1], [0.0, 1.0]).log_probabilities
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert found.max() == 0
    assert found.min() < -80


rows_of_answers = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 1, width=32)), min_size=1, max_size=60
)
thresholds_of_any_kind = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def of_rows(rows: Sequence[tuple[int, float]]) -> Evaluation:
    labels, female = zip(*rows, strict=True)
    return evaluation(labels, female)


def test_recall_intervals_are_those_of_each_class() -> None:
    assert MIXED.recall_intervals == {
        "male": wilson_interval(2, 3),
        "female": wilson_interval(3, 5),
    }
    assert evaluation([1], [0.9]).recall_intervals["male"] == (0, 1)


def test_confidence_is_that_of_the_answer() -> None:
    assert MIXED.confidence.tolist() == pytest.approx([0.9, 0.6, 0.8, 0.9, 0.8, 0.95, 0.7, 0.6])
    assert MIXED.correct.tolist() == [True, False, True, True, True, False, True, False]


def test_cross_entropy_is_known_and_bears_a_probability_of_nothing() -> None:
    half = np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32)
    assert cross_entropy(half, np.array([0, 0])) == pytest.approx((math.log(2) + math.log(4)) / 2)
    sure = np.array([[1.0, 0.0]], dtype=np.float32)
    assert cross_entropy(sure, np.array([0])) == 0
    assert cross_entropy(sure, np.array([1])) == pytest.approx(-math.log(1e-12))


def test_calibration_error_has_the_known_value() -> None:
    """Four answers of 0.75, of which two are right, and one of 1.0 that is right."""
    result = evaluation([0, 0, 1, 1, 1], [0.25, 0.25, 0.25, 0.25, 1.0])
    assert result.calibration_error == pytest.approx(4 / 5 * 0.25)
    filled = [each for each in result.reliability() if each.pictures]
    assert [(b.confidence, b.accuracy, b.pictures) for b in filled] == [(0.75, 0.5, 4), (1, 1, 1)]
    assert filled[0].low < 0.75 <= filled[0].high


@given(st.lists(st.integers(8, 16), min_size=1, max_size=6))
def test_answers_as_often_right_as_they_say_have_no_calibration_error(
    sixteenths: list[int],
) -> None:
    """Of each confidence k / 16, 16 answers of which k are right: exact in float32."""
    rows = [(int(i >= k), 1 - k / 16) for k in sixteenths for i in range(16)]
    assert of_rows(rows).calibration_error == pytest.approx(0, abs=1e-9)


@given(rows_of_answers, st.integers(1, 40))
def test_bins_hold_every_answer_once(rows: list[tuple[int, float]], count: int) -> None:
    result = of_rows(rows)
    assert 0 <= result.calibration_error <= 1
    bins = result.reliability(count)
    assert [each.low for each in bins] == [i / count for i in range(count)]
    assert sum(each.pictures for each in bins) == len(rows)
    filled = [each for each in bins if each.pictures]
    assert sum(each.pictures * each.accuracy for each in filled) == pytest.approx(
        len(rows) * result.accuracy
    )
    for each in filled:
        assert each.low - 1e-9 <= each.confidence <= each.high + 1e-9
        assert 0 <= each.accuracy <= 1
    assert all(math.isnan(each.accuracy) for each in bins if not each.pictures)


@given(rows_of_answers, thresholds_of_any_kind)
def test_coverage_falls_with_the_threshold(
    rows: list[tuple[int, float]], thresholds: list[float]
) -> None:
    result = of_rows(rows)
    covered = result.coverage(sorted(thresholds))
    assert [each.threshold for each in covered] == sorted(thresholds)
    for earlier, later in pairwise(covered):
        assert later.pictures <= earlier.pictures and later.correct <= earlier.correct
    for each in covered:
        given_at_all = result.confidence.astype(np.float64) >= each.threshold
        assert each.pictures == given_at_all.sum() and each.fraction == each.pictures / len(rows)
        assert each.correct == result.correct[given_at_all].sum()
        assert math.isnan(each.accuracy) if not each.pictures else 0 <= each.accuracy <= 1


@given(rows_of_answers, st.randoms(use_true_random=False))
def test_parts_add_up_to_the_whole(rows: list[tuple[int, float]], random: Random) -> None:
    result = of_rows(rows)
    mask = np.array([random.random() < 0.5 for _ in rows])
    parts = [result.subset(side) for side in (mask, ~mask) if side.any()]
    sizes = [len(part.labels) for part in parts]
    assert sum(sizes) == len(rows)
    assert (sum(part.confusion for part in parts) == result.confusion).all()
    whole = cross_entropy(result.probabilities, result.labels)
    losses = [part.loss * size for part, size in zip(parts, sizes, strict=True)]
    assert sum(losses) / len(rows) == pytest.approx(whole, abs=1e-9)
    assert sorted(path for part in parts for path in part.paths) == sorted(result.paths)


def test_a_part_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a picture"):
        MIXED.subset(np.zeros(8, dtype=bool))


@given(st.integers(0, 10**6), st.floats(0.2, 5))
def test_untempered_answers_are_those_of_temperature_1(seed: int, temperature: float) -> None:
    outputs = np.random.default_rng(seed).normal(0, 2, (20, 2))
    plain, tempered = (
        np.exp(each - np.logaddexp.reduce(each, 1)[:, None]).astype(np.float32)
        for each in (outputs, outputs / temperature)
    )
    labels = np.zeros(20, dtype=np.int64)
    given_ = Evaluation(("a", "b"), np.array(["x"] * 20), labels, tempered, 0.0)
    found = given_.untempered(temperature)
    np.testing.assert_allclose(found.probabilities, plain, atol=2e-4)
    assert found.loss == pytest.approx(cross_entropy(plain, labels), abs=2e-3)
