from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from face_gender.metrics import Evaluation, fit_temperature, recall_per_class, wilson_interval


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
    ],
)
def test_wilson_interval_has_the_known_values(
    right: int, total: int, low: float, high: float
) -> None:
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    right, total = counts
    low, high = wilson_interval(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total - 1e-12 <= high <= 1
    mirrored = wilson_interval(total - right, total)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(0, 100))
def test_wilson_interval_narrows_with_more_pictures(right: int) -> None:
    narrow, wide = wilson_interval(right * 10, 1000), wilson_interval(right, 100)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_accuracy_and_interval_count_right_answers() -> None:
    assert MIXED.accuracy == 5 / 8
    assert MIXED.interval == wilson_interval(5, 8)


def test_confusion_has_labels_in_rows_and_answers_in_columns() -> None:
    assert MIXED.confusion.tolist() == [[2, 1], [2, 3]]


def test_recall_is_the_share_of_each_class() -> None:
    assert MIXED.recall == pytest.approx({"male": 2 / 3, "female": 3 / 5})


def test_recall_of_a_class_without_pictures_is_not_a_number() -> None:
    recall = evaluation([1, 1], [0.9, 0.1]).recall
    assert math.isnan(recall["male"])
    assert recall["female"] == 0.5


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
    confusion = np.array([[3, 1], [0, 6]])
    assert recall_per_class(confusion, ("female", "male")) == {"female": 0.75, "male": 1.0}


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


def test_equal_outputs_are_no_wrong_answer() -> None:
    assert fit_temperature(np.zeros((60, 2)), np.ones(60, dtype=np.int64)) == 1.0


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
