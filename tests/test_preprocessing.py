from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NEUTRAL, draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sentences import sentence
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from face_gender.data.augmentation import N_UNIFORMS, Augmentation
from face_gender.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, stack

settings_of = st.builds(
    Preprocessing,
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    resize=st.sampled_from(["stretch", "crop"]),
    align=st.sampled_from(["none", "landmarks"]),
    margin=st.floats(0, 1),
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


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)])
def test_values_are_normalised_per_channel(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    colour = (255, 0, 128)
    transform = Preprocessing(8, 6, mean=mean, std=std).eval_transform()
    tensor = transform(Image.new("RGB", (20, 20), colour))
    expected = (torch.tensor(colour) / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(tensor, expected[:, None, None].expand(3, 8, 6), atol=1e-6)


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    image = draw_face("female", 3, (20, 30))
    tensor = Preprocessing(30, 20, **NEUTRAL).eval_transform()(image)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(tensor, pixels, atol=1e-6)


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


class _Largest(TorchDispatchMode):
    """Notes how many values the largest tensor has that an operation returns."""

    values = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_crop_of_a_hair_needs_no_more_than_the_tensor(size: tuple[int, int]) -> None:
    """1 x 20,000 pixels scaled up to cover 224 x 224 would be 12 gigabytes."""
    with _Largest() as largest:
        tensor = Preprocessing(224, 224, "crop").eval_transform()(Image.new("RGB", size))
    assert tensor.shape == (3, 224, 224)
    assert largest.values == 3 * 224 * 224


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"width": -3},
        {"resize": "squeeze"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5, 0.5)},
        {"std": (1.0,)},
        {"align": "eyes"},
        {"margin": float("nan")},
        {"margin": 3},
    ],
)
def test_settings_without_sense_are_refused_in_a_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:
        Preprocessing(**wrong)  # type: ignore[arg-type]
    sentence(caught)


def test_settings_from_before_there_was_an_alignment_have_none() -> None:
    values = Preprocessing().to_dict()
    del values["align"], values["margin"]
    assert Preprocessing.from_dict(values) == Preprocessing() and not Preprocessing().aligns


@pytest.mark.parametrize("values", [{}, {"mean": [0, 0, 0], "std": [1, 1, 1], "colour": "no"}])
def test_other_data_are_no_preprocessing(values: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Preprocessing.from_dict(values)


# Whole batches


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def expected_centre(preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]
    scale = max(preprocessing.height / height, preprocessing.width / width)
    sides = (preprocessing.height, preprocessing.width)
    return v2.functional.center_crop(pixels, [max(1, round(side / scale)) for side in sides])


@given(
    resize=st.sampled_from(["stretch", "crop"]),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    window=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_pictures_are_resized_as_torchvision_does(
    resize: Any, target: tuple[int, int], source: tuple[int, int], window: bool
) -> None:
    height, width = source
    pixels = noise(height + 9, width + 9, 3).permute(2, 0, 1)[:, 4:-5, 2:-7]
    pixels = pixels if window else pixels.clone()
    preprocessing = Preprocessing(*target, resize)
    whole = expected_centre(preprocessing, pixels) if resize == "crop" else pixels
    expected = v2.functional.resize(whole.clone(), list(target), antialias=True)
    before = pixels.clone()
    result = preprocessing.resized(pixels)
    assert result.dtype == torch.uint8
    assert torch.equal(result, expected)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize(
    ("source", "target"), [((218, 178), (224, 224)), ((64, 64), (100, 80)), ((9, 9), (20, 30))]
)
def test_a_picture_whose_channels_lie_apart_is_resized_to_channels_last_too(
    source: tuple[int, int], target: tuple[int, int], resize: Any
) -> None:
    pixels = noise(*source, 3).permute(2, 0, 1)
    preprocessing = Preprocessing(*target, resize)
    results = preprocessing.resized(pixels.contiguous()), preprocessing.resized(pixels)
    assert torch.equal(*results)
    assert all(each.permute(1, 2, 0).is_contiguous() for each in results)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0, 0, 0), (1, 2, 3))])
def test_a_batch_is_normalised_as_torchvision_does(
    mean: Any, std: Any, count: int, dtype: torch.dtype
) -> None:
    for images in (noise(count, 3, 11, 7), noise(count, 11, 7, 3).permute(0, 3, 1, 2)):
        given_images = images.to(dtype)
        before = given_images.clone()
        result = Preprocessing(11, 7, mean=mean, std=std).normalized(given_images)
        expected = v2.functional.normalize(images.float() / 255, list(mean), list(std))
        assert result.dtype == torch.float32
        assert torch.allclose(result, expected, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(given_images, before)
        assert count == 0 or result.data_ptr() != given_images.data_ptr()


def test_pictures_are_stacked_channels_last() -> None:
    pictures = [noise(3, 11, 7, seed=1), noise(11, 7, 3, seed=2).permute(2, 0, 1)]
    batch = stack(pictures)
    assert torch.equal(batch, torch.stack(pictures))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_picture_has_one_way_to_a_tensor_as_an_image_and_as_pixels() -> None:
    shaken = Augmentation(0.5, 20, (0.8, 1.2), 0.1, 0.3, 0.3, 0.3, 0.3)
    preprocessing = Preprocessing(40, 30, augmentation=shaken)
    image = draw_face("male", 0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    torch.manual_seed(5)
    uniforms = torch.rand(1, N_UNIFORMS)
    changed = shaken.apply(preprocessing.prepare(pixels)[None], uniforms)
    for given_ in (image, pixels):
        torch.manual_seed(5)
        found = preprocessing.train_transform()(given_)
        assert torch.equal(found, preprocessing.normalized(changed)[0])
        assert not torch.equal(found, preprocessing.eval_transform()(given_))
