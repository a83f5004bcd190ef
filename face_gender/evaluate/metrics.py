"""Figures of merit, from labels and probabilities; numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# With fewer pictures or wrong predictions, the temperature that fits best is mostly chance.
_FEWEST_PICTURES = 50
_FEWEST_WRONG = 10
_TEMPERATURES = (0.05, 20.0)


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % confidence interval of the fraction ``correct / total`` (Wilson, 1927).

    Unlike the normal approximation it stays within 0..1, and says something at 0 and at 1.
    """
    if total == 0:
        return 0.0, 1.0
    fraction = correct / total
    centre = fraction + z * z / (2 * total)
    spread = z * math.sqrt(fraction * (1 - fraction) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def cross_entropy(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Return the mean of minus the logarithm of the true class's probability, in nats.

    ``probabilities`` (n, classes); ``labels`` (n,). A probability of 0 counts as 1e-12.
    """
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return abs(float(np.log(true.clip(1e-12)).mean()))  # minus would make -0.0 of 0


class Bin(NamedTuple):
    """The predictions whose confidence lies above ``low`` and up to ``high``.

    ``confidence``: its mean, and ``accuracy``: the fraction that is correct, 0..1, NaN where there
    are none; ``pictures``: how many there are.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    pictures: int


class Predicted(NamedTuple):
    """The predictions that are left without those of a confidence below ``threshold``.

    ``pictures``: how many; ``correct``: how many of these are; ``fraction``: of all, 0..1.
    """

    threshold: float
    pictures: int
    correct: int
    fraction: float

    @property
    def accuracy(self) -> float:
        """The fraction of these that is correct, 0..1, NaN where there are none."""
        return self.correct / self.pictures if self.pictures else math.nan


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model on one split.

    ``paths`` (n,) str; ``labels`` (n,) int64, positions in ``classes``; ``probabilities``
    (n, classes) float32, rows adding up to one; ``loss`` the mean cross-entropy per picture, of
    these probabilities, in nats; ``skipped`` the (path, reason) of files that could not be read.
    """

    classes: tuple[str, ...]
    paths: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    loss: float
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def log_probabilities(self) -> npt.NDArray[np.float64]:
        """(n, classes) float64, finite: a probability of 0 counts as the least of float32."""
        least = np.finfo(np.float32).tiny
        return np.log(np.maximum(self.probabilities.astype(np.float64), least))

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """(n,) int64: the position of the most probable class."""
        return self.probabilities.argmax(axis=1).astype(np.int64)

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """(n,) float32: the probability of the class predicted, 1/classes..1."""
        return self.probabilities.max(axis=1)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) bool: whether the prediction for a picture is its label."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """The fraction of pictures whose prediction is correct, 0..1."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson_interval(int(self.correct.sum()), len(self.labels))

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes) int64 counts: rows are labels, columns predictions."""
        matrix = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(matrix, (self.labels, self.predictions), 1)
        return matrix

    @property
    def recall(self) -> dict[str, float]:
        """For each class the fraction of its pictures that was predicted so; NaN for none."""
        matrix, totals = self.confusion, self.confusion.sum(axis=1)
        return {
            name: float(matrix[i, i] / totals[i]) if totals[i] else math.nan
            for i, name in enumerate(self.classes)
        }

    @property
    def recall_intervals(self) -> dict[str, tuple[float, float]]:
        """For each class the 95 % interval of its recall; 0 to 1 for none of its pictures."""
        matrix = self.confusion
        return {
            name: wilson_interval(int(matrix[i, i]), int(matrix[i].sum()))
            for i, name in enumerate(self.classes)
        }

    def reliability(self, bins: int = 15) -> tuple[Bin, ...]:
        """Return the predictions by confidence, in ``bins`` of equal width from 0 to 1."""
        confidence = self.confidence.astype(np.float64)
        places = (np.ceil(confidence * bins) - 1).clip(0, bins - 1).astype(np.int64)
        counts = np.bincount(places, minlength=bins)
        some = np.maximum(counts, 1)
        means = np.bincount(places, confidence, bins) / some
        fractions = np.bincount(places, self.correct, bins) / some
        return tuple(
            Bin(i / bins, (i + 1) / bins, float(means[i]), float(fractions[i]), int(count))
            if count
            else Bin(i / bins, (i + 1) / bins, math.nan, math.nan, 0)
            for i, count in enumerate(counts)
        )

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0..1 (Guo and others, 2017, arXiv:1706.04599).

        The sum over 15 bins of equal width of n_b / n * |accuracy_b - confidence_b|, where bin b
        holds n_b of the n predictions: by how much, in the mean, a confidence misses how often
        such a prediction is correct.
        """
        filled = [each for each in self.reliability() if each.pictures]
        missed = sum(each.pictures * abs(each.accuracy - each.confidence) for each in filled)
        return min(1.0, missed / len(self.labels))

    def coverage(self, thresholds: Sequence[float]) -> tuple[Predicted, ...]:
        """Return the predictions left at each threshold of the confidence, as in `process.py`."""
        order = np.argsort(self.confidence, kind="stable")
        confidence = self.confidence[order].astype(np.float64)
        correct_before = np.concatenate([[0], np.cumsum(self.correct[order])])
        total = len(order)
        below = np.searchsorted(confidence, np.asarray(thresholds, dtype=np.float64), "left")
        return tuple(
            Predicted(
                float(threshold),
                int(total - start),
                int(correct_before[-1] - correct_before[start]),
                float(total - start) / total,
            )
            for threshold, start in zip(thresholds, below, strict=True)
        )

    def untempered(self, temperature: float) -> Evaluation:
        """Return the predictions of outputs that were not divided by ``temperature``."""
        powers = self.log_probabilities * temperature
        powers = np.exp(powers - powers.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        loss = cross_entropy(probabilities, self.labels)
        return replace(self, probabilities=probabilities, loss=loss)

    def subset(self, mask: npt.NDArray[np.bool_]) -> Evaluation:
        """Return the predictions for some pictures; ``mask`` (n,) bool.

        Files that could not be read are not in it. Raises ValueError where no picture is chosen.
        """
        labels, probabilities = self.labels[mask], self.probabilities[mask]
        if not len(labels):
            raise ValueError("a part of an evaluation needs a picture.")
        return replace(
            self,
            paths=self.paths[mask],
            labels=labels,
            probabilities=probabilities,
            loss=cross_entropy(probabilities, labels),
            skipped=(),
        )

    def mistakes(self) -> npt.NDArray[np.int64]:
        """Return the positions (k,) of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    def summary(self) -> str:
        """Return accuracy, recall per class, their intervals, and loss in one line."""
        low, high = self.interval
        between = self.recall_intervals
        recall = ", ".join(
            f"recall {name} {value:.4f} ({between[name][0]:.4f} to {between[name][1]:.4f})"
            for name, value in self.recall.items()
        )
        return (
            f"accuracy {self.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}, "
            f"n = {len(self.labels)}), {recall}, loss {self.loss:.4f}"
        )


def fit_temperature(outputs: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]) -> float:
    """Return the T for which softmax(outputs / T) fits the labels best (Guo and others, 2017).

    ``outputs`` (n, classes), logits or log-probabilities, finite; ``labels`` (n,), positions in a
    row. T is in 0.05..20 and makes the mean negative log-likelihood of the labels least. It is 1.0
    for fewer than 50 pictures or 10 wrong predictions: without a wrong one, the
    smallest T always fits best, and with a few of them it is theirs rather than the net's.
    """
    rows = np.arange(len(labels))
    # Shifting a row changes no probability, and exp must not overflow.
    below = np.asarray(outputs, dtype=np.float64)
    below = below - below.max(axis=1, keepdims=True)
    true = below[rows, labels]
    if len(labels) < _FEWEST_PICTURES or np.count_nonzero(true < 0) < _FEWEST_WRONG:
        return 1.0
    low, high = (math.log(each) for each in _TEMPERATURES)
    # The likelihood's slope in 1 / T falls from end to end: halving finds where it is 0, or the
    # end that is nearest to there.
    for _ in range(50):
        middle = (low + high) / 2
        weights = np.exp(below * math.exp(-middle))
        expected = (weights * below).sum(axis=1) / weights.sum(axis=1)
        if expected.mean() < true.mean():
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)
