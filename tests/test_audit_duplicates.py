"""Copies that a person would call the same photograph, and pictures that are not."""

from __future__ import annotations

import io
from functools import cache

import faiss
import numpy as np
import pytest
import torch
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from face_gender.audit.duplicates import SAME, SIDE, align, candidates, near_duplicates

Pairs = set[tuple[int, int]]


@cache
def photograph(seed: int) -> Image.Image:
    """A soft background with shapes on it, 160 x 200 pixels, unlike that of any other seed."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (10, 8, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((160, 200), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = random.integers(0, 140), random.integers(0, 180)
        width, height = random.integers(15, 60, 2)
        draw.ellipse((x, y, x + width, y + height), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, quality=60))).convert("RGB")


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.BILINEAR)


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.15)


def cropped(image: Image.Image) -> Image.Image:
    x, y = image.width // 20, image.height // 20
    return image.crop((x, y, image.width, image.height))


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def of(*images: Image.Image) -> np.ndarray:
    """The fingerprints that the audit makes of pictures."""
    small = [image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image) for image in small])


def pairs(fingerprints: np.ndarray) -> Pairs:
    found = near_duplicates(fingerprints)
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.mark.parametrize("others", [0, 1, 70])
@pytest.mark.parametrize("change", [encoded, smaller, brighter, cropped, mirrored])
def test_a_changed_copy_is_found_among_others(change: object, others: int) -> None:
    copy = change(photograph(0))  # type: ignore[operator]
    found = near_duplicates(of(photograph(0), *map(photograph, range(1, others + 1)), copy))
    assert list(zip(found.first, found.second, strict=True)) == [(0, others + 1)]
    assert found.agreement[0] >= SAME
    assert found.mirrored.tolist() == [change is mirrored]


def test_a_number_of_threads_is_that_of_the_search_alone() -> None:
    """Where faiss has torch's OpenMP, a training in the same process would calculate otherwise."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    near_duplicates(of(*map(photograph, range(70))), jobs=before[1] + 1)
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before


def test_copies_of_copies_are_found_too() -> None:
    image = photograph(3)
    copies = [image, encoded(smaller(image)), mirrored(brighter(image)), encoded(cropped(image))]
    found = pairs(of(*copies, *map(photograph, range(10, 80))))
    linked = {row for pair in found for row in pair}
    assert linked == {0, 1, 2, 3}
    assert len(found) >= 3


def test_a_photograph_in_more_copies_than_a_search_returns_stays_in_one_piece() -> None:
    image = photograph(5)
    copies = [encoded(image.resize((160 - 4 * i, 200 - 4 * i))) for i in range(12)]
    found = pairs(of(*copies, *map(photograph, range(100, 160))))
    reached, last = {0}, -1
    while len(reached) > last:
        last = len(reached)
        reached |= {row for pair in found if reached & set(pair) for row in pair}
    assert reached == set(range(12))


@pytest.mark.parametrize("count", [40, 90])
def test_different_pictures_are_no_pair(count: int) -> None:
    assert pairs(of(*map(photograph, range(count)))) == set()


def test_pictures_of_one_colour_never_pair() -> None:
    plain = [Image.new("RGB", (40, 50), (value,) * 3) for value in (0, 0, 90, 128, 255, 255)]
    assert pairs(of(*plain)) == set()
    assert pairs(of(*plain, *map(photograph, range(60)))) == set()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_have_no_pair(count: int) -> None:
    fingerprints = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    seen: list[int] = []
    found = near_duplicates(fingerprints, progress=seen.append)
    assert [len(each) for each in (found.first, found.second, found.agreement)] == [0, 0, 0]
    assert sum(seen) == count


def test_two_pictures_alone_are_compared_too() -> None:
    image = photograph(0)
    assert pairs(of(image, photograph(1))) == set()
    assert pairs(of(image, image)) == {(0, 1)}


@pytest.mark.parametrize("count", [2, 49, 60])
def test_progress_counts_every_picture_once(count: int) -> None:
    seen: list[int] = []
    near_duplicates(of(*map(photograph, range(count))), progress=seen.append)
    assert sum(seen) == count


def test_each_pair_is_ordered_and_named_once() -> None:
    images = [photograph(i) for i in range(60)]
    first, second, flip = candidates(of(*images, *map(encoded, images)))
    assert (first < second).all()
    rows = list(zip(first.tolist(), second.tolist(), flip.tolist(), strict=True))
    assert len(set(rows)) == len(rows)
    assert {(i, i + 60, False) for i in range(60)} <= set(rows)


@given(
    order=st.permutations(range(9)),
    changes=st.lists(
        st.sampled_from([encoded, smaller, brighter, cropped, mirrored]), min_size=3, max_size=3
    ),
)
@settings(deadline=None, max_examples=5)
def test_the_order_of_pictures_changes_no_pair(order: list[int], changes: list) -> None:
    images = [photograph(i) for i in range(6)]
    images += [change(images[i]) for i, change in enumerate(changes)]
    fingerprints = of(*images)
    expected = {(i, i + 6) for i in range(3)}
    assert pairs(fingerprints) == expected
    shuffled = {tuple(sorted((order[a], order[b]))) for a, b in pairs(fingerprints[order])}
    assert shuffled == expected


def test_the_order_of_many_pictures_changes_no_pair() -> None:
    images = [photograph(i) for i in range(60)]
    fingerprints = of(*images, *map(smaller, images[:10]), *map(mirrored, images[10:20]))
    expected = {(i, i + 60) for i in range(20)}
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(fingerprints))
        found = pairs(fingerprints[order])
        assert {tuple(sorted((int(order[a]), int(order[b])))) for a, b in found} == expected


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["noise", "plain", "steps", "bits"]))
@settings(deadline=None, max_examples=10)
def test_agreement_is_a_correlation(seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    shape = (6, SIDE, SIDE)
    fingerprints = {
        "noise": random.integers(0, 256, shape),
        "plain": np.broadcast_to(random.integers(0, 256, (6, 1, 1)), shape),
        "steps": np.repeat(random.integers(0, 256, (6, SIDE, 2)), SIDE // 2, axis=2),
        "bits": random.integers(0, 2, shape) * 255,
    }[kind].astype(np.uint8)
    first, second = np.triu_indices(6)
    agreement = align(fingerprints, first, second, random.random(len(first)) < 0.5)
    assert np.isfinite(agreement).all()
    assert agreement.min() >= -1 - 1e-5
    assert agreement.max() <= 1 + 1e-5


def test_a_picture_agrees_with_itself_wholly_and_with_its_negative_hardly() -> None:
    image = of(photograph(2))[0]
    rows = np.array([0, 0])
    agreement = align(np.stack([image, 255 - image]), rows, np.array([0, 1]), rows.astype(bool))
    assert agreement[0] == pytest.approx(1, abs=1e-4)
    assert agreement[1] < 0.5


def test_above_keeps_what_agrees_so_well() -> None:
    images = [photograph(i) for i in range(3)]
    found = near_duplicates(of(*images, *map(cropped, images)))
    best = float(found.agreement.max())
    assert len(found.above(best).first) == 1
    assert len(found.above(1.1).first) == 0
