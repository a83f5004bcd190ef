from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sentences import sentence
from torch import Tensor

from face_gender.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Preprocessing

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
        Augmentation, horizontal_flip=st.floats(0, 1), rotation=st.floats(0, 180)
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
        augmentation=st.sampled_from([Augmentation(), Augmentation(0.5, 15)]),
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


@pytest.mark.parametrize(
    "wrong", [{"horizontal_flip": 1.5}, {"horizontal_flip": float("nan")}, {"rotation": -1}]
)
def test_augmentation_without_sense_is_refused_in_a_sentence(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError) as caught:
        Augmentation(**wrong)
    assert next(iter(wrong)) in sentence(caught)


@pytest.mark.parametrize("values", [{}, {"mean": [0, 0, 0], "std": [1, 1, 1], "colour": "no"}])
def test_other_data_are_no_preprocessing(values: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Preprocessing.from_dict(values)
