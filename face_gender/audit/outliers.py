"""Pictures that are no faces: far from all others in the embeddings of a net for faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular
from sklearn.covariance import LedoitWolf

# Of logarithms of distances, in robust standard deviations: where findings begin.
FAR = 3.5
# The score is 0.5 here and 1 at twice as far.
_VERY_FAR = 5.0
_FOLDS = 5
_SAMPLE = 10_000
_CHUNK = 4_096
_TRIMMED = 0.1
# Fewer pictures than this have no shape of their own.
_FEWEST = 50


def outlier_scores(
    embedded: Sequence[npt.NDArray[np.float16]], good: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the score (n,) of being no face, 0 for none, from 0.35 up to 1.

    ``embedded``: embeddings (n, features) of one or several nets, whose distances are averaged;
    ``good`` (n,): the pictures that could be read.
    """
    scores = np.zeros(len(good), dtype=np.float32)
    for features in embedded:
        good = good & np.isfinite(features).all(axis=1)
    if good.sum() < _FEWEST or not embedded:
        return scores
    distance = np.mean([_distances(features, good) for features in embedded], axis=0)
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle))
    far = (distance - middle) / max(spread, 1e-9)
    scores[good] = np.where(far >= FAR, np.clip(far / (2 * _VERY_FAR), 0, 1), 0)
    return scores


def _distances(
    features: npt.NDArray[np.float16], good: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the log of the Mahalanobis distance (squared) of each good row from the others.

    Each fifth of the rows is judged by mean and covariance (Ledoit and Wolf, 2004, whose shrinkage
    bears more features than pictures) of the other four: what was fitted lies too close. They are
    fitted three times, twice without the farthest tenth of the time before, or outliers would
    stretch the ellipse until they lie within.
    """
    rows = np.flatnonzero(good)
    distances = np.empty(len(rows))
    for fold in range(_FOLDS):
        judged = np.arange(fold, len(rows), _FOLDS)
        others = np.delete(rows, judged)
        distance = _robust_distance(features[others[:: max(1, len(others) // _SAMPLE)]])
        for start in range(0, len(judged), _CHUNK):
            part = judged[start : start + _CHUNK]
            distances[part] = distance(features[rows[part]])
    return np.log(np.maximum(distances, 1e-12))


def _robust_distance(sample: npt.NDArray[np.float16]) -> Callable[[npt.NDArray], npt.NDArray]:
    """Return what gives the squared distance (n,) of rows (n, features) from most of ``sample``."""
    fitted = sample.astype(np.float32)
    centre, scale = np.median(fitted, axis=0), fitted.std(axis=0) + 1e-6
    fitted = (fitted - centre) / scale
    distance = _mahalanobis(fitted)
    for _ in range(2):
        fit = distance(fitted)
        distance = _mahalanobis(fitted[fit <= np.quantile(fit, 1 - _TRIMMED)])
    return lambda rows: distance((rows.astype(np.float32) - centre) / scale)


def _mahalanobis(fitted: npt.NDArray[np.float32]) -> Callable[[npt.NDArray], npt.NDArray]:
    """Return what gives the squared distance (n,) of rows (n, features) from ``fitted``."""
    # Without the inverse, which takes scikit-learn far longer than these triangles.
    model = LedoitWolf(store_precision=False).fit(fitted)
    # Copies of one picture alone have no spread at all, which has no triangle.
    spread = model.covariance_ + 1e-6 * np.eye(fitted.shape[1])
    factor = np.linalg.cholesky(spread)

    def distance(rows: npt.NDArray) -> npt.NDArray:
        whitened = solve_triangular(factor, (rows - model.location_).T, lower=True)
        return (whitened**2).sum(axis=0)

    return distance
