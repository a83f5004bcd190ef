"""Figures of merit, from labels and probabilities; numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % confidence interval of the share ``right / total`` (Wilson, 1927).

    Unlike the normal approximation it stays within 0..1, and says something at 0 and at 1.
    """
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on one split.

    ``paths`` (n,) str; ``labels`` (n,) int64, positions in ``classes``; ``probabilities``
    (n, classes) float32, rows adding up to one; ``loss`` the mean cross-entropy per picture, in
    nats; ``skipped`` the (path, reason) of files that could not be read.
    """

    classes: tuple[str, ...]
    paths: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    loss: float
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """(n,) int64: the position of the most probable class."""
        return self.probabilities.argmax(axis=1).astype(np.int64)

    @property
    def accuracy(self) -> float:
        """The share of pictures answered as they are labelled, 0..1."""
        return float((self.predictions == self.labels).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson_interval(int((self.predictions == self.labels).sum()), len(self.labels))

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes) int64 counts: rows as labelled, columns as answered."""
        matrix = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(matrix, (self.labels, self.predictions), 1)
        return matrix

    @property
    def recall(self) -> dict[str, float]:
        """For each class the share of its pictures that were answered with it; NaN for none."""
        return recall_per_class(self.confusion, self.classes)

    def mistakes(self) -> npt.NDArray[np.int64]:
        """Return the positions of the wrong answers, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        confidence = self.probabilities[wrong].max(axis=1)
        return wrong[np.argsort(-confidence, kind="stable")]

    def summary(self) -> str:
        """Return accuracy, interval, recall per class and loss in one line."""
        low, high = self.interval
        recall = ", ".join(f"recall {name} {value:.4f}" for name, value in self.recall.items())
        return (
            f"accuracy {self.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}, "
            f"n = {len(self.labels)}), {recall}, loss {self.loss:.4f}"
        )


def recall_per_class(
    confusion: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, float]:
    """Return recall by class name from a confusion matrix with rows as labelled."""
    totals = confusion.sum(axis=1)
    return {
        name: float(confusion[i, i] / totals[i]) if totals[i] else math.nan
        for i, name in enumerate(classes)
    }
