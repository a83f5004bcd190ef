"""Each picture of a batch is changed by its own numbers, and by nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NEUTRAL, draw_face, results_of
from PIL import Image, ImageDraw
from sentences import sentence
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import gaussian_blur

from face_gender.data.augmentation import N_UNIFORMS, NAMES, Augmentation, sample_uniforms
from face_gender.data.preprocessing import Preprocessing

EVERYTHING = Augmentation(0.5, 30, (0.6, 1.5), 0.2, 0.5, 0.4, 0.6, 0.6, 0.5, 0.5)
BILINEAR = v2.InterpolationMode.BILINEAR


def chances_of(count: int = 1, **values: float) -> Tensor:
    """Numbers for a batch: 0.5, the middle of every range, unless another is named."""
    uniforms = torch.full((count, N_UNIFORMS), 0.5)
    for name, value in values.items():
        uniforms[:, NAMES.index(name)] = value
    return uniforms


def smooth(count: int, height: int, width: int) -> Tensor:
    """Soft coloured pictures (n, 3, H, W), in which a shift by half a pixel changes little."""
    generator = torch.Generator().manual_seed(4)
    rough = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return v2.functional.resize(rough, [height, width])


def centre_of(image: Tensor) -> tuple[float, float]:
    """Where the light of one picture (3, H, W) lies: x and y in pixels from the middle."""
    light = image[0].float()
    y = (light.sum(1) * torch.arange(light.shape[0])).sum() / light.sum()
    x = (light.sum(0) * torch.arange(light.shape[1])).sum() / light.sum()
    return float(x) - (light.shape[1] - 1) / 2, float(y) - (light.shape[0] - 1) / 2


def marked(height: int, width: int, x: float, y: float, radius: float = 2.5) -> Tensor:
    """One black picture (1, 3, H, W) with a white spot, x and y in pixels from the middle."""
    image = Image.new("RGB", (width, height))
    x, y = x + (width - 1) / 2, y + (height - 1) / 2
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill="white")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


# The numbers


def test_the_numbers_of_a_picture_depend_on_seed_epoch_and_position_alone() -> None:
    numbers = sample_uniforms(1, 2, torch.arange(50))
    assert numbers.shape == (50, N_UNIFORMS)
    assert numbers.dtype == torch.float32
    assert torch.equal(sample_uniforms(1, 2, torch.tensor([49, 3, 3])), numbers[[49, 3, 3]])
    assert len({row.numpy().tobytes() for row in numbers}) == 50
    for other in (sample_uniforms(2, 2, torch.arange(50)), sample_uniforms(1, 3, torch.arange(50))):
        assert not (other == numbers).all(1).any()
        assert abs(np.corrcoef(other.flatten(), numbers.flatten())[0, 1]) < 0.15
    assert not torch.equal(
        sample_uniforms(11, 1, torch.arange(1)), sample_uniforms(1, 11, torch.arange(1))
    )


def test_the_numbers_are_uniform_and_independent() -> None:
    numbers = sample_uniforms(0, 0, torch.arange(4000)).double().numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(each, 10, (0, 1))[0] for each in numbers.T])
    assert np.abs(counts - 400).max() < 100  # five standard deviations
    between_names = np.corrcoef(numbers.T) - np.eye(N_UNIFORMS)
    assert np.abs(between_names).max() < 0.08
    between_neighbours = [np.corrcoef(each[1:], each[:-1])[0, 1] for each in numbers.T]
    assert np.abs(between_neighbours).max() < 0.08


def test_numbers_touch_no_generator() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    sample_uniforms(0, 0, torch.arange(9))
    EVERYTHING.apply(smooth(2, 40, 30), sample_uniforms(0, 0, torch.arange(2)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_any_whole_number_is_a_seed_of_its_own() -> None:
    found = [sample_uniforms(seed, 0, torch.arange(3)) for seed in (-1, 0, 1, 2**70)]
    assert len({str(numbers.tolist()) for numbers in found}) == 4


# Batches


def test_a_batch_is_changed_as_its_pictures_are_one_by_one() -> None:
    images, uniforms = smooth(9, 40, 30), sample_uniforms(7, 0, torch.arange(9))
    together = EVERYTHING.apply(images, uniforms)
    alone = [EVERYTHING.apply(images[i : i + 1], uniforms[i : i + 1]) for i in range(9)]
    assert torch.allclose(together, torch.cat(alone), atol=0.01)
    some = [8, 2, 5]
    assert torch.allclose(EVERYTHING.apply(images[some], uniforms[some]), together[some], atol=0.01)


@pytest.mark.parametrize(
    "on",
    [
        {},
        {"horizontal_flip": 1.0},
        {"rotation": 20.0},
        {"zoom": (0.5, 0.8)},
        {"shift": 0.3},
        {"colour": 0.5},
        {"grey": 1.0},
        {"downscale": 1.0},
        {"erasing": 1.0},
        asdict(EVERYTHING),
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True])
def test_the_pictures_that_are_given_stay_as_they_are(on: dict[str, Any], last: bool) -> None:
    images = smooth(5, 40, 30)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    before, uniforms = images.clone(), sample_uniforms(0, 0, torch.arange(5))
    result = Augmentation(**on).apply(images, uniforms)
    assert torch.equal(images, before)
    assert torch.equal(uniforms, sample_uniforms(0, 0, torch.arange(5)))
    assert result.shape == images.shape
    assert torch.equal(result, images) == (not on)
    again = Augmentation(**on).apply(images, uniforms)
    assert torch.equal(result, again)


@pytest.mark.parametrize(
    ("on", "dtype"),
    [
        ({}, torch.uint8),
        ({"horizontal_flip": 1.0, "grey": 1.0, "erasing": 1.0}, torch.uint8),
        ({"rotation": 1.0}, torch.float32),
        ({"downscale": 1.0}, torch.float32),
        ({"colour": 0.1}, torch.float32),
    ],
)
def test_values_become_fractions_only_where_a_change_needs_them(
    on: dict[str, Any], dtype: torch.dtype
) -> None:
    images = smooth(5, 40, 30)
    result = Augmentation(**on).apply(images, sample_uniforms(0, 0, torch.arange(5)))
    assert result.dtype == dtype
    assert result.min() >= -0.001
    assert result.max() <= 255.001


def test_what_comes_in_from_outside_is_black_or_the_mirrored_picture() -> None:
    images = torch.full((40, 3, 30, 30), 200, dtype=torch.uint8)
    uniforms = sample_uniforms(0, 0, torch.arange(40))
    shrunk = Augmentation(zoom=(0.5, 0.5)).apply(images, uniforms)
    assert (shrunk[:, :, 0, 0] == 0).all()
    mirrored = Augmentation(zoom=(0.5, 0.5), reflection=1.0).apply(images, uniforms)
    assert torch.allclose(mirrored, torch.full_like(mirrored, 200), atol=0.01)
    mixed = Augmentation(zoom=(0.5, 0.5), reflection=0.5).apply(images, uniforms)
    share = float((mixed[:, 0, 0, 0] > 100).float().mean())
    assert 0.2 < share < 0.8


def test_a_blur_takes_detail_and_no_brightness_from_some_pictures() -> None:
    images = torch.randint(0, 256, (60, 3, 40, 50), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    uniforms = sample_uniforms(0, 0, torch.arange(60))
    result = Augmentation(blur=0.5).apply(images, uniforms)
    changed = (result != images).flatten(1).any(1)
    assert 0.2 < float(changed.float().mean()) < 0.8
    before, after = images[changed].float(), result[changed]
    detail = [each.diff(dim=3).abs().mean() for each in (before, after)]
    assert detail[1] < 0.8 * detail[0]
    torch.testing.assert_close(after.mean(), before.mean(), rtol=0.01, atol=0)
    assert torch.equal(result[~changed], images[~changed].float())


def test_a_blur_is_that_of_torchvision() -> None:
    images = torch.randint(0, 256, (1, 3, 48, 48), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    uniforms = sample_uniforms(0, 0, torch.arange(1))
    uniforms[0, NAMES.index("sigma")] = 1.0
    result = Augmentation(blur=1.0).apply(images, uniforms)
    sigma = 0.03 * 48
    reach = math.ceil(3 * sigma)
    expected = gaussian_blur(images.float(), 2 * reach + 1, sigma)
    inner = (..., slice(reach, -reach), slice(reach, -reach))  # they treat borders differently
    torch.testing.assert_close(result[inner], expected[inner], rtol=1e-4, atol=1e-2)


def test_every_change_is_off_unless_asked_for() -> None:
    images = smooth(3, 40, 30)
    assert torch.equal(Augmentation().apply(images, sample_uniforms(0, 0, torch.arange(3))), images)
    assert asdict(Augmentation()) == {
        **dict.fromkeys(("horizontal_flip", "rotation", "shift", "colour", "grey"), 0.0),
        **dict.fromkeys(("downscale", "erasing", "reflection", "blur", "background"), 0.0),
        "zoom": (1.0, 1.0),
    }


# Flip, turn, scale, move


def test_a_mirrored_picture_is_the_mirror_to_the_bit() -> None:
    images = smooth(4, 40, 31)
    uniforms = torch.cat([chances_of(1, flip=value) for value in (0.0, 0.29, 0.3, 1.0)])
    result = Augmentation(horizontal_flip=0.3).apply(images, uniforms)
    assert torch.equal(result[:2], images[:2].flip(3))
    assert torch.equal(result[2:], images[2:])


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 60), (61, 30)])
@pytest.mark.parametrize(("chance", "angle"), [(1.0, 50), (0.7, 20), (0.5, 0), (0.0, -50)])
def test_a_picture_is_turned_as_torchvision_does(
    chance: float, angle: float, height: int, width: int
) -> None:
    images = smooth(2, height, width)
    result = Augmentation(rotation=50).apply(images, chances_of(2, angle=chance))
    # To which side a number turns is free to choose; that both are reached is not.
    expected = v2.functional.rotate(images.float(), -angle, BILINEAR)
    assert torch.allclose(result, expected, atol=0.05)


@pytest.mark.parametrize(("height", "width"), [(60, 60), (40, 90), (90, 40)])
def test_a_turn_keeps_distances_and_angles_in_pictures_of_any_shape(
    height: int, width: int
) -> None:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = torch.hypot(x - (width - 1) / 2, y - (height - 1) / 2)
    rings = (255 * (distance / 6).cos() ** 2 * (distance < 19)).to(torch.uint8).expand(1, 3, -1, -1)
    for chance in (0.0, 0.25, 0.6, 1.0):
        turned = Augmentation(rotation=90).apply(rings, chances_of(angle=chance))
        assert (turned - rings.float())[..., distance < 18].abs().max() < 8
    spot = marked(height, width, 16, 0)
    x, y = centre_of(Augmentation(rotation=60).apply(spot, chances_of(angle=1.0))[0])
    assert math.hypot(x, y) == pytest.approx(16, abs=0.3)
    assert math.degrees(math.atan2(abs(y), x)) == pytest.approx(60, abs=1)


@pytest.mark.parametrize(("chance", "scale"), [(0.0, 0.5), (0.5, 1.25), (1.0, 2.0)])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 62)])
def test_a_zoom_above_one_brings_the_picture_nearer(
    chance: float, scale: float, height: int, width: int
) -> None:
    on = Augmentation(zoom=(0.5, 2.0), rotation=30)
    images = smooth(2, height, width)
    result = on.apply(images, chances_of(2, zoom=chance, angle=0.9))
    expected = v2.functional.affine(images.float(), 24, [0, 0], scale, [0], BILINEAR)
    assert torch.allclose(result, expected, atol=0.05)
    spot = on.apply(marked(height, width, 6, 4), chances_of(zoom=chance))[0]
    assert centre_of(spot) == pytest.approx((6 * scale, 4 * scale), abs=0.3)


def test_a_shift_moves_by_its_share_to_either_side() -> None:
    images, on = smooth(1, 40, 60), Augmentation(shift=0.25)
    found = {}
    for name in ("right", "down"):
        for chance in (0.0, 1.0):
            result = on.apply(images, chances_of(**{name: chance}))
            for dx, dy in ((15, 0), (-15, 0), (0, 10), (0, -10)):
                expected = v2.functional.affine(images.float(), 0, [dx, dy], 1, [0], BILINEAR)
                if torch.allclose(result, expected, atol=0.05):
                    found[name, chance] = (dx, dy)
    assert {found["right", 0.0], found["right", 1.0]} == {(15, 0), (-15, 0)}
    assert {found["down", 0.0], found["down", 1.0]} == {(0, 10), (0, -10)}
    halfway = on.apply(images, chances_of(right=0.5, down=0.5))
    assert torch.allclose(halfway, images.float(), atol=0.05)


@pytest.mark.parametrize(
    "also", [{}, {"zoom": (2.0, 2.0)}, {"zoom": (0.5, 0.5)}, {"rotation": 45.0}], ids=str
)
def test_a_shift_is_measured_in_the_frame_whatever_else_is_done(also: dict[str, Any]) -> None:
    """As it is documented: the largest move along each axis, as a share of the side."""
    on = Augmentation(shift=0.25, **also)
    for right in (0.0, 1.0):
        for down in (0.0, 1.0):
            moved = on.apply(marked(80, 120, 0, 0), chances_of(right=right, down=down, angle=1.0))
            x, y = centre_of(moved[0])
            assert (abs(x), abs(y)) == pytest.approx((30, 20), abs=0.5)


def test_a_picture_is_mirrored_before_it_is_turned() -> None:
    images, on = smooth(2, 40, 60), Augmentation(0.5, 40, (0.8, 1.3))
    other = {"angle": 0.8, "zoom": 0.9}
    mirrored = on.apply(images, chances_of(2, flip=0.0, **other))
    expected = on.apply(images.flip(3), chances_of(2, flip=1.0, **other))
    assert torch.allclose(mirrored, expected, atol=0.05)


# Colours


def test_colours_change_as_torchvision_does_one_after_the_other() -> None:
    images = smooth(3, 40, 30)
    uniforms = chances_of(3, brightness=0.8, contrast=0.1, saturation=0.9)
    result = Augmentation(colour=0.5).apply(images, uniforms)
    expected = v2.functional.adjust_brightness(images.float() / 255, 1.3)
    expected = v2.functional.adjust_contrast(expected, 0.6)
    expected = v2.functional.adjust_saturation(expected, 1.4) * 255
    assert torch.allclose(result, expected, atol=0.1)


def test_grey_is_that_of_torchvision() -> None:
    images = smooth(2, 40, 30)
    uniforms = torch.cat([chances_of(grey=0.2), chances_of(grey=0.3)])
    result = Augmentation(grey=0.3).apply(images, uniforms)
    expected = v2.functional.rgb_to_grayscale(images[:1], 3)
    assert (result[:1].int() - expected.int()).abs().max() <= 1
    assert torch.equal(result[1:], images[1:])


def test_downscaling_is_there_and_back_by_torchvision() -> None:
    images = smooth(2, 60, 90)
    uniforms = torch.cat([chances_of(downscale=0.2, size=0.5), chances_of(downscale=0.3)])
    result = Augmentation(downscale=0.3).apply(images, uniforms)
    small = v2.functional.resize(images[:1].float(), [42, 63], antialias=True)
    expected = v2.functional.resize(small, [60, 90], antialias=True)
    assert torch.allclose(result[:1].float(), expected, atol=1)
    assert torch.equal(result[1:].float(), images[1:].float())


def test_what_is_erased_is_a_rectangle_within_the_picture() -> None:
    white = torch.full((300, 3, 60, 80), 255, dtype=torch.uint8)
    result = Augmentation(erasing=0.6).apply(white, sample_uniforms(0, 0, torch.arange(300)))
    places, shares, shapes = set(), [], []
    for image in result:
        black = image[0] == 0
        assert torch.equal(image, image[:1].expand(3, 60, 80))
        if black.any():
            rows, columns = black.any(1).nonzero()[:, 0], black.any(0).nonzero()[:, 0]
            tall, wide = len(rows), len(columns)
            assert black.sum() == tall * wide
            assert int(rows[-1] - rows[0]) == tall - 1
            places.add((int(rows[0]), int(columns[0])))
            shares.append(tall * wide / 4800)
            shapes.append(tall / wide)
    assert 0.5 < len(shares) / 300 < 0.7
    assert 0.015 < min(shares) < 0.03
    assert 0.17 < max(shares) < 0.22
    assert min(shapes) < 0.45 and max(shapes) > 2.2
    assert len(places) > 100


# Through the transform of training


@pytest.mark.parametrize(
    "on",
    [
        {"zoom": (0.5, 0.8)},
        {"zoom": (1.5, 2.0)},
        {"shift": 0.3},
        {"colour": 0.5},
        {"grey": 1.0},
        {"downscale": 1.0},
        {"erasing": 1.0},
    ],
    ids=str,
)
def test_each_change_is_made_to_training_pictures_alone(on: dict[str, Any]) -> None:
    preprocessing = Preprocessing(60, 50, augmentation=Augmentation(**on), **NEUTRAL)
    image = draw_face("male", 0, (50, 60))
    plain = preprocessing.eval_transform()(image)
    assert torch.equal(plain, Preprocessing(60, 50, **NEUTRAL).eval_transform()(image))
    tensors = results_of(preprocessing.train_transform(), image, range(12))
    assert sum(not torch.equal(tensor, plain) for tensor in tensors) >= 9
    assert all(tensor.shape == plain.shape for tensor in tensors)
    assert all(tensor.min() >= -1e-6 and tensor.max() <= 1 + 1e-6 for tensor in tensors)
    again = results_of(preprocessing.train_transform(), image, range(12))
    assert all(map(torch.equal, tensors, again))


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("setting", ["horizontal_flip", "grey", "downscale", "erasing"])
def test_probabilities_are_met_about(setting: str, chance: float) -> None:
    images = smooth(1, 30, 32).expand(500, 3, 30, 32)
    result = Augmentation(**{setting: chance}).apply(
        images, sample_uniforms(0, 0, torch.arange(500))
    )
    changed = (result != images).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(chance, abs=0.06)


def test_downscaling_costs_detail_and_spares_small_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    image, on = Image.fromarray(noise), Augmentation(downscale=1)
    plain = Preprocessing(96, 96, **NEUTRAL).eval_transform()(image)
    large = results_of(Preprocessing(96, 96, augmentation=on, **NEUTRAL).train_transform(), image,
                  range(8))  # fmt: skip
    assert all(tensor.std() < plain.std() for tensor in large)
    assert all(abs(tensor.mean() - plain.mean()) < 0.02 for tensor in large)
    small = Preprocessing(24, 60, augmentation=on, **NEUTRAL)
    expected = small.eval_transform()(image)
    for tensor in results_of(small.train_transform(), image, range(5)):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"horizontal_flip": 1.5},
        {"horizontal_flip": float("nan")},
        {"rotation": -1},
        *({name: -0.1} for name in ("shift", "colour", "grey", "downscale", "erasing")),
        *({name: 1.5} for name in ("shift", "colour", "grey", "downscale", "erasing")),
        {"shift": float("nan")},
        {"zoom": (0.0, 1.0)},
        {"zoom": (1.2, 0.8)},
        {"zoom": (1.0,)},
        {"zoom": (float("nan"), 1.0)},
    ],
)
def test_augmentation_without_sense_is_refused_in_a_sentence(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        Augmentation(**wrong)
    assert next(iter(wrong)) in sentence(caught)


def test_background_is_hidden_in_one_colour_and_the_face_stays() -> None:
    images = torch.arange(4 * 3 * 40 * 40, dtype=torch.int64).remainder(251).view(4, 3, 40, 40)
    images = images.to(torch.uint8)
    uniforms = sample_uniforms(0, 0, torch.arange(4))
    changed = Augmentation(background=1.0).apply(images, uniforms)
    assert torch.equal(changed[:, :, 15:28, 15:25], images[:, :, 15:28, 15:25])
    corners = torch.stack([changed[:, :, y, x] for y in (0, -1) for x in (0, -1)])
    assert torch.equal(corners, corners[:1].expand_as(corners))
    assert len({tuple(each.tolist()) for each in corners[0]}) == 4
    assert Augmentation(background=0.0).apply(images, uniforms) is images
