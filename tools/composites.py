"""Composites: the mean of several portraits, warped onto their mean shape by face landmarks.

Used by make_samples.py, which says what it needs. "Composite units": the eyes are 42 apart, the
face about 84 wide.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.interpolate import LinearNDInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import Delaunay

from face_gender import CLASSES

Array = NDArray[Any]

# Portraits that lie in the wrong folder.
MISFILED = ("male/house_maria-salazar.jpg",)

# Indices into the 478 landmarks of MediaPipe's face mesh.
EYES_AND_MOUTH = ((33, 133), (362, 263), (61, 291))
NOSE_TIP, CHEEKS = 1, (234, 454)
LEAST_FRONTAL = 0.45  # nose to one cheek / nose to the other; 1 looks straight ahead
MOST_CONTRAST = 25.0  # grey levels of fine detail above the eyes; hair stays below, stripes do not

# A composite's own coordinates: the middles of the eyes and of the mouth, (x, y).
TEMPLATE = np.array([(59.0, 92.0), (101.0, 92.0), (80.0, 137.0)])
CHIN = 158.0
# Rays from the middle of the face over the head, on which the outline of the hair is sought.
CENTRE = np.array([80.0, 100.0])
ANGLES = np.radians(np.arange(-190, 11, 10))
RAYS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
REACH = np.arange(40.0, 130.0)
BORDER = np.array(
    [(x, y) for x in (-70, -10, 50, 110, 170, 230) for y in (-80, 280)]
    + [(x, y) for x in (-70, 230) for y in (0, 60, 120, 180)],
    dtype=float,
)


@dataclass(frozen=True)
class Portrait:
    """A source portrait, mirrored where needed so that all look to the same side.

    ``pixels``: float64 (rows, columns, 3), 0 to 255; ``mask``: (rows, columns), 1 on the person;
    ``points``: (478, 2), landmarks x and y in pixels; ``outline``: (21,), distance of the hair's
    outline from CENTRE; ``colour``: (3,), the backdrop's; ``thumbnail``: (20, 16, 3).
    """

    pixels: Array
    mask: Array
    points: Array
    outline: Array
    colour: Array
    thumbnail: Array


@dataclass(frozen=True)
class Frame:
    """The part of a composite that a picture shows.

    ``size``: width and height in pixels; ``span``: the width in a composite's own units, whose
    face is 84 wide; ``centre``: what lies in the middle, in these units; ``tilt``: in degrees.
    """

    size: tuple[int, int]
    span: float
    centre: tuple[float, float] = (80.0, 100.0)
    tilt: float = 0.0

    def grid(self) -> Array:
        """Return the (x, y) of every pixel in a composite's own units: (height, width, 2)."""
        width, height = self.size
        rows, columns = np.mgrid[0:height, 0:width]
        x, y = (columns + 0.5 - width / 2), (rows + 0.5 - height / 2)
        turned = (x + 1j * y) * np.exp(1j * np.radians(self.tilt)) * self.span / width
        return np.stack([turned.real, turned.imag], axis=-1) + self.centre


WIDE = Frame((160, 200), 160.0)


def similarity(source: Array, target: Array) -> Callable[[Array], Array]:
    """Return the least-squares similarity transform that takes (n, 2) source to (n, 2) target."""
    a, b = source @ (1, 1j), target @ (1, 1j)
    factor = np.vdot(a - a.mean(), b - b.mean()) / np.vdot(a - a.mean(), a - a.mean())

    def transform(points: Array) -> Array:
        moved = (points @ (1, 1j) - a.mean()) * factor + b.mean()
        return np.stack([moved.real, moved.imag], axis=-1)

    return transform


def anchors(points: Array) -> Array:
    """Return the middles of the eyes and the mouth: (3, 2), in the units of ``points``."""
    return np.stack([points[list(pair)].mean(axis=0) for pair in EYES_AND_MOUTH])


def read_at(values: Array, at: Array) -> Array:
    """Read (rows, columns[, 3]) ``values`` at (..., 2) points (x, y) by cubic splines."""
    if values.ndim == 3:
        return np.stack([read_at(values[..., k], at) for k in range(3)], axis=-1)
    return map_coordinates(values, [at[..., 1], at[..., 0]], order=3, mode="nearest")


class Detector:
    """MediaPipe's face landmarks and person mask for one picture at a time."""

    def __init__(self) -> None:
        from mediapipe import solutions

        self._mesh = solutions.face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=True, min_detection_confidence=0.3
        )
        self._person = solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)

    def landmarks(self, pixels: Array) -> Array | None:
        """Return (478, 2) points (x, y) in pixels of a uint8 RGB picture, or None."""
        faces = self._mesh.process(pixels).multi_face_landmarks
        if not faces:
            return None
        height, width = pixels.shape[:2]
        return np.array([(p.x * width, p.y * height) for p in faces[0].landmark])

    def mask(self, pixels: Array) -> Array:
        """Return (rows, columns), 0 on the backdrop and 1 on the person."""
        soft = self._person.process(pixels).segmentation_mask.astype(float)
        return np.clip((soft - 0.35) / 0.5, 0, 1)


def nose_ratio(points: Array) -> float:
    """Return nose tip to one cheek divided by nose tip to the other: 1 looks straight ahead."""
    one, other = np.linalg.norm(points[list(CHEEKS)] - points[NOSE_TIP], axis=1)
    return float(one / other)


def hair_outline(points: Array, mask: Array) -> Array:
    """Return how far along each ray the person reaches: (21,), and never inside the face."""
    along = CENTRE + REACH[None, :, None] * RAYS[:, None, :]
    inside = read_at(mask, similarity(TEMPLATE, anchors(points))(along)) > 0.5
    first_outside = np.where(inside.all(axis=1), len(REACH) - 1, (~inside).argmax(axis=1))
    padded = np.pad(REACH[first_outside], 1, mode="edge")
    smooth = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    offset = similarity(anchors(points), TEMPLATE)(points) - CENTRE
    angle, radius = np.arctan2(offset[:, 1], offset[:, 0]), np.linalg.norm(offset, axis=1)
    turn = (angle[None] - ANGLES[:, None] + np.pi) % (2 * np.pi) - np.pi
    face = np.where(np.abs(turn) < np.radians(12), radius[None], 0).max(axis=1)
    return np.maximum(smooth, face + 6)


def read_portrait(data: bytes, detector: Detector) -> Portrait | str:
    """Return the portrait in these JPEG bytes, or the reason why it is left out."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    points = detector.landmarks(pixels)
    if points is not None and nose_ratio(points) > 1:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        points = detector.landmarks(pixels)
    if points is None:
        return "no face found"
    if nose_ratio(points) < LEAST_FRONTAL:
        return "face turned too far to the side"
    mask = detector.mask(pixels)
    rest = 1 - mask[..., None]
    colour = (pixels * rest).sum(axis=(0, 1)) / max(rest.sum(), 1)
    flat = pixels * (1 - rest) + colour * rest
    aligned = read_at(flat, similarity(TEMPLATE, anchors(points))(WIDE.grid()))
    grey = aligned[:70].mean(axis=2)
    if (gaussian_filter(grey, 1) - gaussian_filter(grey, 5)).std() > MOST_CONTRAST:
        return "patterned headwear, which would show through the mean"
    outline = hair_outline(points, mask)
    return Portrait(pixels.astype(float), mask, points, outline, colour, aligned[5::10, 5::10])


def read_archive(path: Path) -> dict[str, list[Portrait]]:
    """Return the usable portraits of each class in name order; name the others on stderr."""
    detector = Detector()
    found: dict[str, list[Portrait]] = {label: [] for label in CLASSES}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            label = PurePosixPath(name).parent.name
            if label not in CLASSES or not name.lower().endswith(".jpg"):
                continue
            portrait: Portrait | str = "it lies in the wrong folder"
            if not name.endswith(MISFILED):
                portrait = read_portrait(archive.read(name), detector)
            if isinstance(portrait, str):
                print(f"left out {name}: {portrait}", file=sys.stderr)
            else:
                found[label].append(portrait)
    return found


def composite(members: list[Portrait], frame: Frame) -> tuple[Array, Array]:
    """Return the mean of the members in a frame, (height, width, 3), and where the person is.

    Face and hair are the mean in equal parts; below the chin the first's clothes take over, since
    those of several would be ghosts.
    """
    framed = [similarity(anchors(each.points), TEMPLATE)(each.points) for each in members]
    outline = np.mean([each.outline for each in members], axis=0)
    grid = frame.grid()
    shape = Delaunay(control_points(np.mean(framed, axis=0), outline, outline))
    below = np.clip((grid[..., 1] - CHIN) / 22, 0, 1)
    total, alpha = np.zeros((*grid.shape[:2], 3)), np.zeros(grid.shape[:2])
    for i, (each, points) in enumerate(zip(members, framed, strict=True)):
        own = control_points(points, each.outline, outline)
        source = similarity(TEMPLATE, anchors(each.points))(own)
        at = LinearNDInterpolator(shape, source)(grid)
        share = (1 - below) / len(members) + below * (i == 0)
        person = np.clip(read_at(each.mask, at), 0, 1) * share
        total += read_at(each.pixels, at) * person[..., None]
        alpha += person
    return np.clip(total / np.maximum(alpha, 1e-3)[..., None], 0, 255), alpha


def control_points(points: Array, outline: Array, mean_outline: Array) -> Array:
    """Join landmarks, hair outline, a ring around it and the border: (n, 2)."""
    hair = CENTRE + outline[:, None] * RAYS
    ring = CENTRE + (outline + 0.25 * mean_outline)[:, None] * RAYS
    return np.concatenate([points, hair, ring, BORDER])


def sharpened(pixels: Array) -> Image.Image:
    """Return a picture of these pixels; a mean of several skins is softer than any one of them."""
    picture = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    radius = 1.2 * picture.width / 160
    return picture.filter(ImageFilter.UnsharpMask(radius, percent=70, threshold=0))
