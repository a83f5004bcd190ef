from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sentences import sentence
from torch import Tensor

from face_gender.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Preprocessing,
    _random_transforms,
)

NEUTRAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # leaves values in 0..1


def halves(size: tuple[int, int], left: str, right: str) -> Image.Image:
    """A picture of (width, height) pixels whose halves differ."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def drawn(transform: object, image: Image.Image, seeds: range) -> list[Tensor]:
    """What a random transform makes of one picture, once for each seed."""
    results = []
    for seed in seeds:
        torch.manual_seed(seed)
        results.append(transform(image))  # type: ignore[operator]
    return results


settings_of = st.builds(
    Preprocessing,
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    resize=st.sampled_from(["stretch", "crop"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 2)] * 3),
    augmentation=st.builds(
        Augmentation,
        horizontal_flip=st.floats(0, 1),
        rotation=st.floats(0, 180),
        zoom=st.tuples(st.floats(0.01, 1), st.floats(1, 9)),
        shift=st.floats(0, 1),
        colour=st.floats(0, 1),
        grey=st.floats(0, 1),
        downscale=st.floats(0, 1),
        erasing=st.floats(0, 1),
    ),
)


@given(settings_of)
@settings(deadline=None, max_examples=60)
def test_plain_data_gives_the_same_value_back(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    # JSON has no tuples: what is left after it is as plain as data can be.
    through_json = json.loads(json.dumps(preprocessing.to_dict()))
    assert Preprocessing.from_dict(through_json) == preprocessing


@given(
    preprocessing=st.builds(
        Preprocessing,
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        resize=st.sampled_from(["stretch", "crop"]),
        augmentation=st.sampled_from(
            [
                Augmentation(),
                Augmentation(0.5, 15),
                Augmentation(0.5, 10, (0.5, 2.0), 0.5, 1.0, 0.5, 1.0, 1.0),
            ]
        ),
    ),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
@settings(deadline=None, max_examples=60)
def test_any_picture_becomes_height_by_width(
    preprocessing: Preprocessing, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, (10, 200, 90))
    for transform in (preprocessing.eval_transform(), preprocessing.train_transform()):
        tensor = transform(image)
        assert tensor.shape == (3, preprocessing.height, preprocessing.width)
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()


def test_height_comes_before_width() -> None:
    tensor = Preprocessing(height=100, width=80).eval_transform()(draw_face("male", 0))
    assert tensor.shape == (3, 100, 80)


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)])
def test_values_are_normalised_per_channel(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    colour = (255, 0, 128)
    transform = Preprocessing(8, 6, mean=mean, std=std).eval_transform()
    tensor = transform(Image.new("RGB", (20, 20), colour))
    expected = (torch.tensor(colour) / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(tensor, expected[:, None, None].expand(3, 8, 6), atol=1e-6)


def test_channels_keep_the_order_red_green_blue() -> None:
    tensor = Preprocessing(4, 4, **NEUTRAL).eval_transform()(Image.new("RGB", (4, 4), "red"))
    assert tensor.mean(dim=(1, 2)).tolist() == [1, 0, 0]


def test_without_mean_and_std_values_stay_in_0_to_1() -> None:
    tensor = Preprocessing(30, 20, **NEUTRAL).eval_transform()(draw_face("female", 1))
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    assert tensor.max() > 0.5


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    image = draw_face("female", 3, (20, 30))
    tensor = Preprocessing(30, 20, **NEUTRAL).eval_transform()(image)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(tensor, pixels, atol=1e-6)


def test_eval_is_deterministic_even_with_augmentation() -> None:
    transform = Preprocessing(40, 40, augmentation=Augmentation(1, 90)).eval_transform()
    plain = Preprocessing(40, 40).eval_transform()(draw_face("male", 0))
    for tensor in drawn(transform, draw_face("male", 0), range(5)):
        assert torch.equal(tensor, plain)


def test_train_without_augmentation_is_eval() -> None:
    preprocessing = Preprocessing(40, 30)
    expected = preprocessing.eval_transform()(draw_face("male", 0))
    for tensor in drawn(preprocessing.train_transform(), draw_face("male", 0), range(5)):
        assert torch.equal(tensor, expected)


def test_half_of_the_training_pictures_are_mirrored() -> None:
    preprocessing = Preprocessing(8, 8, augmentation=Augmentation(horizontal_flip=0.5))
    image = halves((8, 8), "black", "white")
    upright = preprocessing.eval_transform()(image)
    tensors = drawn(preprocessing.train_transform(), image, range(60))
    mirrored = [torch.equal(tensor, upright.flip(-1)) for tensor in tensors]
    kept = [torch.equal(tensor, upright) for tensor in tensors]
    assert 15 < sum(mirrored) < 45
    assert sum(mirrored) + sum(kept) == 60


def test_rotation_turns_training_pictures_to_both_sides_at_most_so_far() -> None:
    preprocessing = Preprocessing(41, 41, augmentation=Augmentation(rotation=15), **NEUTRAL)
    image = Image.new("RGB", (41, 41))
    image.paste("white", (36, 18, 41, 23))  # a mark at 3 o'clock, 18 pixels from the centre
    rows = []
    for tensor in drawn(preprocessing.train_transform(), image, range(40)):
        weights = tensor[0]
        rows.append(float((weights.sum(1) * torch.arange(41)).sum() / weights.sum()) - 20)
    furthest = 18 * np.sin(np.radians(15)) + 1
    assert all(abs(row) <= furthest for row in rows)
    assert min(rows) < -2
    assert max(rows) > 2
    assert len({round(row, 3) for row in rows}) > 10


def test_stretch_shows_the_whole_picture_and_crop_its_centre() -> None:
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 40, 20))  # the middle third
    stretched = Preprocessing(20, 20, "stretch", **NEUTRAL).eval_transform()(image)
    cropped = Preprocessing(20, 20, "crop", **NEUTRAL).eval_transform()(image)
    assert stretched[0].mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert cropped.min() == 1


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (21, 33), (7, 5)])
def test_crop_keeps_a_circle_round(size: tuple[int, int]) -> None:
    width, height = size[0] * 4, size[1] * 4
    image, radius = Image.new("RGB", (width, height)), min(size)
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    ImageDraw.Draw(image).ellipse(box, fill="white")
    mask = Preprocessing(80, 80, "crop", **NEUTRAL).eval_transform()(image)[0] > 0.5
    across, down = int(mask.any(dim=0).sum()), int(mask.any(dim=1).sum())
    assert abs(across - down) <= 4
    assert across > 30


def test_crop_of_a_hair_needs_no_more_than_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 x 20,000 pixels scaled up to cover 224 x 224 would be 12 gigabytes."""
    from torchvision.transforms import v2

    resize, areas = v2.functional.resize, []

    def watched(image: Tensor, size: list[int], **options: object) -> Tensor:
        areas.append(size[0] * size[1])
        return resize(image, size, **options)

    monkeypatch.setattr(v2.functional, "resize", watched)
    for size in ((1, 20_000), (20_000, 1)):
        tensor = Preprocessing(224, 224, "crop").eval_transform()(Image.new("RGB", size))
        assert tensor.shape == (3, 224, 224)
    assert areas == [224 * 224] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"width": -3},
        {"resize": "squeeze"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5, 0.5)},
        {"std": (1.0,)},
    ],
)
def test_settings_without_sense_are_refused_in_a_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:
        Preprocessing(**wrong)  # type: ignore[arg-type]
    sentence(caught)


def test_every_change_is_off_unless_asked_for() -> None:
    assert _random_transforms(Augmentation()) == []
    assert asdict(Augmentation()) == {
        **dict.fromkeys(("horizontal_flip", "rotation", "shift", "colour", "grey"), 0.0),
        **dict.fromkeys(("downscale", "erasing"), 0.0),
        "zoom": (1.0, 1.0),
    }


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
    tensors = drawn(preprocessing.train_transform(), image, range(12))
    assert sum(not torch.equal(tensor, plain) for tensor in tensors) >= 9
    assert all(tensor.shape == plain.shape for tensor in tensors)
    assert all(tensor.min() >= 0 and tensor.max() <= 1 for tensor in tensors)
    again = drawn(preprocessing.train_transform(), image, range(12))
    assert all(map(torch.equal, tensors, again))


@pytest.mark.parametrize(("chance", "most"), [(0.5, 40), (0.1, 15)])
@pytest.mark.parametrize("setting", ["grey", "downscale", "erasing"])
def test_probabilities_are_met_about(setting: str, chance: float, most: int) -> None:
    preprocessing = Preprocessing(50, 50, augmentation=Augmentation(**{setting: chance}))
    image = draw_face("female", 0, (50, 50))
    plain = preprocessing.eval_transform()(image)
    tensors = drawn(preprocessing.train_transform(), image, range(60))
    changed = sum(not torch.equal(tensor, plain) for tensor in tensors)
    assert chance * 60 / 3 < changed < most


def test_a_zoom_below_one_shrinks_the_picture_within_a_black_frame() -> None:
    white = Image.new("RGB", (40, 40), "white")
    small = Preprocessing(40, 40, augmentation=Augmentation(zoom=(0.5, 0.5)), **NEUTRAL)
    (tensor,) = drawn(small.train_transform(), white, range(1))
    assert tensor.mean().item() == pytest.approx(0.25, abs=0.03)
    assert tensor[:, 20, 20].tolist() == [1, 1, 1]
    large = Preprocessing(40, 40, augmentation=Augmentation(zoom=(2.0, 2.0)), **NEUTRAL)
    (tensor,) = drawn(large.train_transform(), white, range(1))
    assert tensor.min() == 1


def test_a_shift_moves_no_further_than_its_share() -> None:
    preprocessing = Preprocessing(40, 40, augmentation=Augmentation(shift=0.25), **NEUTRAL)
    tensors = drawn(preprocessing.train_transform(), Image.new("RGB", (40, 40), "white"), range(20))
    black = [int((tensor[0].amax(0) < 0.5).sum()) for tensor in tensors]
    assert max(black) <= 10
    assert len(set(black)) > 3


def test_grey_leaves_no_colour() -> None:
    preprocessing = Preprocessing(40, 40, augmentation=Augmentation(grey=1), **NEUTRAL)
    tensor = preprocessing.train_transform()(draw_face("male", 0))
    assert torch.equal(tensor[0], tensor[1]) and torch.equal(tensor[1], tensor[2])


def test_downscaling_costs_detail_and_spares_small_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    image, on = Image.fromarray(noise), Augmentation(downscale=1)
    plain = Preprocessing(96, 96, **NEUTRAL).eval_transform()(image)
    large = drawn(Preprocessing(96, 96, augmentation=on, **NEUTRAL).train_transform(), image,
                  range(8))  # fmt: skip
    assert all(tensor.std() < plain.std() for tensor in large)
    assert all(abs(tensor.mean() - plain.mean()) < 0.02 for tensor in large)
    small = Preprocessing(24, 60, augmentation=on, **NEUTRAL)
    expected = small.eval_transform()(image)
    for tensor in drawn(small.train_transform(), image, range(5)):
        assert torch.equal(tensor, expected)


def test_erasing_takes_a_fifth_at_most() -> None:
    preprocessing = Preprocessing(60, 60, augmentation=Augmentation(erasing=1), **NEUTRAL)
    white = Image.new("RGB", (60, 60), "white")
    for tensor in drawn(preprocessing.train_transform(), white, range(20)):
        assert 0.01 < (tensor == 0).float().mean() <= 0.21


def test_settings_of_older_files_change_nothing_new() -> None:
    values = Preprocessing(augmentation=Augmentation(0.5, 15)).to_dict()
    values["augmentation"] = {"horizontal_flip": 0.5, "rotation": 15}
    assert Preprocessing.from_dict(values) == Preprocessing(augmentation=Augmentation(0.5, 15))


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


@pytest.mark.parametrize("values", [{}, {"mean": [0, 0, 0], "std": [1, 1, 1], "colour": "no"}])
def test_other_data_are_no_preprocessing(values: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Preprocessing.from_dict(values)
