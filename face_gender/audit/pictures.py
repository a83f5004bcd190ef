"""Every file read once: its hash, its size, how it was exposed, and a small grey fingerprint.

What counts as dark, bright, blank or of odd shape is CleanVision's to say: its measures and its
thresholds are used as they are. Blur is measured otherwise: CleanVision finds a third of faces
that were blurred by 8 % of their side, and calls one sharp face in ten blurred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from cleanvision.issue_managers import IssueType
from cleanvision.issue_managers.image_property import (
    AspectRatioProperty,
    BrightnessProperty,
    EntropyProperty,
    ImageProperty,
)
from cleanvision.issue_managers.image_property_issue_manager import ImagePropertyIssueManager
from PIL import Image
from scipy.ndimage import uniform_filter1d

from face_gender.audit.duplicates import SIDE
from face_gender.data.images import UnreadableImage, decode_image
from face_gender.data.sources import Source

# A shorter side below this many pixels is tiny: the least that a net is trained to recognise.
TINY = 32

# Our name of each issue, CleanVision's, and what measures it.
_ISSUES: tuple[tuple[str, IssueType, ImageProperty], ...] = (
    ("blank", IssueType.LOW_INFORMATION, EntropyProperty()),
    ("dark", IssueType.DARK, BrightnessProperty(IssueType.DARK.value)),
    ("bright", IssueType.LIGHT, BrightnessProperty(IssueType.LIGHT.value)),
    ("odd_aspect", IssueType.ODD_ASPECT_RATIO, AspectRatioProperty()),
)
QUALITY_ISSUES = ("tiny", "blurred", *(name for name, _, _ in _ISSUES))

# Blur effect from which a picture counts as blurred: the most blurred 1 % of UTKFace. A Gaussian
# of 3 % of the side takes sharp faces halfway from here to the highest value there is.
BLURRED = 0.62
_MOST_BLURRED = 0.9
# Side of the picture and length of the filter: fine blur shows in the first, heavy in the second.
_BLUR_SCALES = ((128, 11), (32, 7))

# Exposure is measured on a picture no larger than this: percentiles hardly change, time does.
_LARGEST = 128
_CHUNK = 1_000


class Measured(NamedTuple):
    """Of one file: its sha256 ("" if it cannot be read at all) and why it is no picture, or what
    was measured: ``blur`` 0..1, ``measures`` by CleanVision's names, and the ``fingerprint``
    (SIDE, SIDE) uint8."""

    sha256: str
    reason: str = ""
    width: int = 0
    height: int = 0
    blur: float = 0.0
    measures: dict[str, float] = {}  # noqa: RUF012 - never changed
    fingerprint: npt.NDArray[np.uint8] | None = None


def measure_all(
    source: Source, names: Sequence[str], jobs: int, progress: Callable[[int], object]
) -> dict[str, npt.NDArray]:
    """Measure every file with ``jobs`` threads; unreadable ones have a ``reason``.

    Returns arrays of len(names): ``sha256`` and ``reason`` str, ``width`` and ``height`` int32,
    ``fingerprints`` (n, SIDE, SIDE) uint8, and for each of QUALITY_ISSUES a float32 score, 0 for
    none, up to 1.
    """
    fingerprints = np.zeros((len(names), SIDE, SIDE), dtype=np.uint8)
    rows: list[Measured] = []
    with ThreadPoolExecutor(jobs) as pool:
        # In chunks, so that the pool never holds more than one chunk's results.
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            for row in pool.map(lambda name: measure(source, name), chunk):
                if row.fingerprint is not None:
                    fingerprints[len(rows)] = row.fingerprint
                rows.append(row._replace(fingerprint=None))
                progress(1)
    return {
        "sha256": np.array([row.sha256 for row in rows], dtype=np.str_),
        "reason": np.array([row.reason for row in rows], dtype=np.str_),
        "width": np.array([row.width for row in rows], dtype=np.int32),
        "height": np.array([row.height for row in rows], dtype=np.int32),
        "fingerprints": fingerprints,
        **_scores(rows),
    }


def measure(source: Source, name: str) -> Measured:
    """Read, hash and measure one file."""
    try:
        data = source.read(name)
    except OSError as error:
        return Measured("", f"cannot be read ({error.strerror or error})")
    digest = hashlib.sha256(data).hexdigest()
    try:
        image = decode_image(data, name)
    except UnreadableImage as error:
        return Measured(digest, error.reason)
    small = image.copy()
    small.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BOX)
    values: dict[str, float] = {}
    for issue, _, measured in _ISSUES:
        picture = image if issue == "odd_aspect" else small
        if issue == "blank":  # in colour, even a picture of one colour has an entropy
            picture = small.convert("L")
        if issue != "bright":  # measured with dark
            values |= {key: float(value) for key, value in measured.calculate(picture).items()}
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    blur = max(blur_effect(image, side, length) for side, length in _BLUR_SCALES)
    return Measured(digest, "", image.width, image.height, blur, values, np.asarray(grey))


def blur_effect(image: Image.Image, side: int, length: int) -> float:
    """Return how little a picture loses by one more blur: 0 (all of its detail) to 1 (nothing).

    The measure of Crete, Dolmiere, Ladret and Nicolas, "The blur effect: perception and
    estimation with a new no-reference perceptual blur metric" (2007), on the grey picture shrunk
    to ``side`` pixels, with a mean filter of ``length``. 0 for a picture of one colour.
    """
    small = image.convert("L")
    small.thumbnail((side, side), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    effects = []
    for axis in (0, 1):
        change = np.abs(np.diff(pixels, axis=axis))
        after = np.abs(np.diff(uniform_filter1d(pixels, length, axis=axis), axis=axis))
        total = float(change.sum())
        effects.append(1 - float(np.maximum(0, change - after).sum()) / total if total else 0.0)
    return max(effects)


def _scores(rows: Sequence[Measured]) -> dict[str, npt.NDArray[np.float32]]:
    """Turn measures into scores: 0 at the threshold and better, 1 at the worst."""
    good = np.array([not row.reason for row in rows], dtype=bool)
    scores = {name: np.zeros(len(rows), dtype=np.float32) for name in QUALITY_ISSUES}
    if not good.any():
        return scores
    raw = pd.DataFrame([row.measures for row in rows if not row.reason])
    settings = ImagePropertyIssueManager().get_default_params()
    for name, issue, measured in _ISSUES:
        own = dict(settings[issue.value])
        threshold = own.pop("threshold")
        value = measured.get_scores(raw, issue.value, **own).iloc[:, 0].to_numpy()
        scores[name][good] = np.clip(1 - value / threshold, 0, 1)
    blur = np.array([row.blur for row in rows if not row.reason])
    scores["blurred"][good] = np.clip((blur - BLURRED) / (_MOST_BLURRED - BLURRED), 0, 1)
    shorter = np.array([min(row.width, row.height) for row in rows if not row.reason])
    scores["tiny"][good] = np.clip(1 - shorter / TINY, 0, 1)
    return scores
