"""A face lies at the same place in every aligned picture, however it lay before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from face_gender.faces.alignment import MARGIN, align, similarity, template

SIZE = (96, 96)
CENTRE = np.array([48.0, 48.0])


def moved(points: NDArray, degrees: float, scale: float, shift: tuple[float, float]) -> NDArray:
    """Turn points clockwise (y points down), scale and shift them."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ turn.T * scale + shift


def dots(points: NDArray, height: int, width: int, radius: float) -> NDArray[np.uint8]:
    """Draw a soft white dot at each point of a black picture, first the red, then the green …"""
    y, x = np.mgrid[:height, :width] + 0.5
    picture = np.zeros((height, width, 3), np.uint8)
    for i, (px, py) in enumerate(points):
        spot = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2))
        picture[..., i % 3] = np.maximum(picture[..., i % 3], spot.astype(np.uint8))
    return picture


def centroids(picture: NDArray[np.uint8], near: NDArray) -> NDArray:
    """Return the centre of mass of the dot of its colour around each point."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    found = []
    for i, (px, py) in enumerate(near):
        weight = picture[..., i % 3] * (np.hypot(x - px, y - py) < 7.0)
        found.append(((x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()))
    return np.array(found)


@pytest.mark.parametrize("degrees", [0, 17, -40, 90, 180])
@pytest.mark.parametrize("scale", [0.7, 1.0, 2.5, 9.3])
def test_each_landmark_comes_to_its_place_of_the_template(degrees: float, scale: float) -> None:
    target = template(SIZE, MARGIN)
    points = moved(target - CENTRE, degrees, scale, (70 * scale, 80 * scale))
    picture = dots(points, round(160 * scale), round(140 * scale), 1.5 * scale)
    chip = align(picture, points, None, SIZE, MARGIN)
    assert chip.shape == (96, 96, 3) and chip.dtype == np.uint8
    np.testing.assert_allclose(centroids(chip, target), target, atol=0.12)


def test_a_face_that_lies_there_already_is_not_changed() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    assert np.array_equal(align(picture, template(SIZE, MARGIN), None, SIZE, MARGIN), picture)


@pytest.mark.parametrize("size", [(96, 96), (218, 178), (64, 200)])
def test_the_template_stays_in_the_picture_and_is_smaller_with_a_margin(
    size: tuple[int, int],
) -> None:
    spans = []
    for margin in (0.0, 0.2, 0.5):
        points = template(size, margin)
        assert (points > 0).all() and (points < size[::-1]).all()
        assert points[:2, 1].mean() < points[2, 1] < points[3:, 1].mean()
        spans.append(np.linalg.norm(points[1] - points[0]) * (1 + 2 * margin))
    assert np.allclose(spans, spans[0]) and spans[0] == pytest.approx(0.3146 * min(size), rel=1e-3)


def test_the_similarity_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(1)
    points, goal = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    # The same as a linear system in a, b, x, y of (ax - by + x, bx + ay + y).
    rows = [((x, -y, 1, 0), (y, x, 0, 1)) for x, y in points]
    a, b, x, y = np.linalg.lstsq(np.reshape(rows, (10, 4)), goal.ravel(), rcond=None)[0]
    assert np.allclose(similarity(points, goal), [[a, -b, x], [b, a, y], [0, 0, 1]])
    with pytest.raises(ValueError, match="one place"):
        similarity(np.ones((5, 2)), goal)


def test_a_face_that_is_shrunk_much_shows_no_moire() -> None:
    fine = np.indices((2000, 2000)).sum(0) % 2 * 255
    picture = np.repeat(fine[..., None], 3, 2).astype(np.uint8)
    points = moved(template(SIZE, 0.2) - CENTRE, 11, 12.4, (1000, 1000))
    chip = align(picture, points, None, SIZE, 0.2)
    assert abs(chip.astype(int) - 127).max() <= 6


def test_beyond_the_edges_the_edges_are_repeated() -> None:
    picture = np.full((50, 50, 3), 90, np.uint8)
    picture[:, 0], picture[:, -1] = (200, 0, 0), (0, 0, 200)
    points = moved(template(SIZE, 0.2) - CENTRE, 0, 0.5, (2, 25))  # the face half outside
    chip = align(picture, points, None, SIZE, 0.2)
    assert (chip[:, :40] == (200, 0, 0)).all() and (chip[:, 60:] == 90).all()
    chip = align(picture, points + 10_000, None, SIZE, 0.2)
    assert (chip == (0, 0, 200)).all()


def turned_away(kind: str) -> NDArray:
    points = moved(template(SIZE, 0) - CENTRE, 0, 1, (100, 100))
    if kind == "eyes in one place":
        points[1] = points[0]
    elif kind == "one point":
        points[:] = 100.0
    elif kind == "profile":
        points[:, 0] = 100 + (points[:, 0] - 100) * 0.05
    else:
        points[3, 1] = np.nan
    return points.astype(np.float32)


@pytest.mark.parametrize("kind", ["eyes in one place", "one point", "profile", "not finite"])
def test_where_landmarks_say_nothing_the_box_is_cut_out_upright(kind: str) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (200, 200, 3), np.uint8)
    box = (60.0, 50.0, 80.0, 100.0)
    chip = align(picture, turned_away(kind), box, SIZE, 0.1)
    assert np.array_equal(chip, align(picture, None, box, SIZE, 0.1))
    assert not np.array_equal(chip, align(picture, None, None, SIZE, 0.1))


def test_the_box_alone_frames_a_face_about_as_its_landmarks_do() -> None:
    points = moved(template(SIZE, 0) - CENTRE, 0, 2, (200, 200))
    box = (119.0, 116.0, 162.0, 185.0)  # as the detector draws it around such landmarks
    picture = dots(points, 400, 400, 6)
    by_box = centroids(align(picture, None, box, SIZE, 0.2), template(SIZE, 0.2))
    assert abs(by_box - template(SIZE, 0.2)).max() < 4


def test_without_a_face_the_whole_picture_is_stretched() -> None:
    picture = np.zeros((40, 20, 3), np.uint8)
    picture[:20] = 255
    chip = align(picture, None, None, (10, 30), 0.2)
    assert chip.shape == (10, 30, 3) and (chip[:5] == 255).all() and (chip[5:] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 2), (2500, 7)])
@pytest.mark.parametrize("box", [None, (0, 0, 0, 5), (-50, -50, 900, 900), (np.inf, 0, 1, 1)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_any_picture_and_any_box_give_a_picture(
    shape: tuple[int, int], box: tuple[float, float, float, float] | None, scale: float
) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    for landmarks in (None, (template(SIZE, 0) * scale).astype(np.float32)):
        assert align(picture[:, ::-1], landmarks, box, (24, 32), 0.2).shape == (24, 32, 3)
