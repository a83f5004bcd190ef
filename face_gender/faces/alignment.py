"""Turns a face to one template: eyes level, each landmark at the same place in every picture."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from face_gender.faces.detector import Pixels, Points

Matrix = NDArray[np.float64]

# Where eyes, nose and mouth corners are in the unit square, without a margin: ArcFace's template
# (Deng and others, 2019), of 112 x 112 pixels there.
TEMPLATE = (
    np.array(
        [
            (38.2946, 51.6963),
            (73.5318, 51.5014),
            (56.0252, 71.7366),
            (41.5493, 92.3655),
            (70.7299, 92.2041),
        ]
    )
    / 112
)
# What `template` adds on each side unless told otherwise, as a fraction of that square.
MARGIN = 0.05
# The square in heights of a detector's box, and how far its centre is above the box's.
BOX_SIDE, BOX_RISE = 1.05, 0.09
# Below this fraction of the box the eyes are as good as one point, as in a profile.
MIN_EYES = 0.15


def align(
    pixels: Pixels,
    landmarks: Points | None,
    box: tuple[float, float, float, float] | None,
    size: tuple[int, int],
    margin: float,
) -> Pixels:
    """Return the face of a picture, uint8 (H, W, 3), as uint8 (height, width, 3).

    ``landmarks``: (5, 2) as in `Face`; without them, or where they allow no similarity, the
    ``box`` is cut out upright; without both the whole picture is taken, stretched. ``size``: height
    and width in pixels. ``margin``: what is added to each side of the template, as a fraction of
    its side. Shrinking is antialiased; beyond the picture its edges are repeated.
    """
    import cv2

    matrix = _matrix(landmarks, box, size, margin)
    if matrix is None:
        return _stretched(pixels, size)
    pixels, matrix = _reduced(pixels, matrix, size)
    # OpenCV counts from the centre of the first pixel.
    matrix = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
    how, edges = cv2.INTER_LINEAR, cv2.BORDER_REPLICATE
    chip = cv2.warpAffine(pixels, matrix[:2], size[::-1], flags=how, borderMode=edges)
    return np.asarray(chip, np.uint8)


def template(size: tuple[int, int], margin: float) -> Matrix:
    """Return where the five landmarks come to lie in a picture of that size, (5, 2) in pixels."""
    height, width = size
    unit = (TEMPLATE - 0.5) / (1 + 2 * margin)
    return unit * min(size) + (width / 2, height / 2)


def similarity(points: Matrix, targets: Matrix) -> Matrix:
    """Return the (3, 3) rotation, scale and shift that brings points nearest to targets, (n, 2).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    1991, in its closed form for the plane. Raises ValueError where the points are one point.
    """
    centre, goal = points.mean(0), targets.mean(0)
    p, q = points - centre, targets - goal
    spread = (p**2).sum()
    if not spread > 0:
        raise ValueError("points in one place allow no similarity.")
    a, b = (p * q).sum() / spread, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, goal - linear @ centre
    return matrix


def _matrix(
    landmarks: Points | None,
    box: tuple[float, float, float, float] | None,
    size: tuple[int, int],
    margin: float,
) -> Matrix | None:
    """Return the (3, 3) map from the picture to the result, or None where no face is known."""
    if landmarks is not None:
        points = np.asarray(landmarks, np.float64)
        if usable(points, box):
            return similarity(points, template(size, margin))
    if box is None or not np.isfinite(box).all() or min(box[2:]) <= 0:
        return None
    x, y, _, h = box
    scale = min(size) / (h * BOX_SIDE * (1 + 2 * margin))
    centre = x + box[2] / 2, y + h / 2 - BOX_RISE * h
    matrix = np.diag([scale, scale, 1.0])
    matrix[:2, 2] = size[1] / 2 - scale * centre[0], size[0] / 2 - scale * centre[1]
    return matrix


def usable(landmarks: Matrix, box: tuple[float, float, float, float] | None) -> bool:
    """Tell whether five landmarks (5, 2) say how a face is turned: the eyes are two places."""
    if not np.isfinite(landmarks).all():
        return False
    eyes = math.dist(landmarks[0], landmarks[1])
    face = max(box[2:]) if box else 2 * math.dist(landmarks[:2].mean(0), landmarks[3:].mean(0))
    return eyes > MIN_EYES * face > 0


def _reduced(pixels: Pixels, matrix: Matrix, size: tuple[int, int]) -> tuple[Pixels, Matrix]:
    """Cut out the part that the result shows; shrink it, by the mean of areas, to its scale.

    OpenCV warps nothing of 32,767 pixels a side, and where it shrinks it skips pixels.
    """
    factor = 1 / math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    reach = 2 * max(factor, 1.0)
    height, width = size
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)], float)
    seen = (np.linalg.inv(matrix) @ corners.T)[:2]
    limits = np.array(pixels.shape[1::-1])
    low = np.clip(np.floor(seen.min(1) - reach), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(seen.max(1) + reach), low + 1, limits).astype(int)
    part = np.ascontiguousarray(pixels[low[1] : high[1], low[0] : high[0]])
    matrix = matrix @ _shift(*low)
    if factor <= 1:
        return part, matrix
    wide, tall = (max(1, round(float(side))) for side in (high - low) / factor)
    return _stretched(part, (tall, wide)), matrix @ np.diag([*((high - low) / (wide, tall)), 1.0])


def _stretched(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    import cv2

    shrinks = size[0] <= pixels.shape[0] and size[1] <= pixels.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(
        cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=how), np.uint8
    )


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])
