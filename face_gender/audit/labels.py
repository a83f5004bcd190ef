"""Doubtful labels by confident learning (Northcutt, Jiang and Chuang, arXiv:1911.00068)."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from cleanlab.filter import find_label_issues


def label_scores(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the score (n,) of each label: 0 for no doubt, else the probability of the other.

    ``labels`` (n,) are 0 or 1; ``probabilities`` (n, 2) were predicted out of fold, NaN for
    pictures that were not judged. Doubtful is what cleanlab finds with its settings as they are.
    """
    scores = np.zeros(len(labels), dtype=np.float32)
    known = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    if len(np.unique(labels[known])) < 2:
        return scores
    own, given = probabilities[known].astype(np.float64), labels[known]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes of few pictures, in cleanlab's own terms
        found = find_label_issues(given, own, n_jobs=1)
    other = own[np.arange(len(known)), 1 - given]
    # A picture that looks more like its own label than the other stays below what --apply drops.
    scores[known[found]] = other[found]
    return scores
