"""What is done to pictures before a model is asked again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from face_gender.evaluate.robustness import CONDITIONS, Condition, blurred, coarse, reframed

sides = st.integers(8, 60)


def noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("condition", [each for each in CONDITIONS if each.kind != "none"], ids=str)
@settings(max_examples=15, deadline=None)
@given(height=sides, width=sides, value=st.integers(0, 255))
def test_no_change_alters_shape_or_adds_what_was_not_there(
    condition: Condition, height: int, width: int, value: int
) -> None:
    images = noise(height, width)
    before = images.clone()
    changed = condition.change(images)
    assert torch.equal(images, before)
    assert changed.shape == images.shape and changed.dtype == torch.float32
    assert images.min() - 0.01 <= changed.min() and changed.max() <= images.max() + 0.01
    plain = condition.change(torch.full_like(images, value))
    assert torch.allclose(plain, torch.full(plain.shape, float(value)), atol=0.01)


@pytest.mark.parametrize(("margin", "side"), [(0.0, 140), (0.4, 100), (0.25, 112)])
def test_a_face_with_a_margin_takes_its_share_of_the_side(margin: float, side: int) -> None:
    """White with a black border a pixel wide: around it all is border, repeated."""
    images = torch.full((1, 3, 140, 140), 255, dtype=torch.uint8)
    images[..., 0, :] = images[..., -1, :] = images[..., :, 0] = images[..., :, -1] = 0
    changed = reframed(images, 1 / (1 + margin))
    for line in (changed[0, 0, 70], changed[0, 0, :, 70]):
        inside = (line > 200).nonzero().flatten()
        assert len(inside) == pytest.approx(side - 2, abs=2)
        assert int(inside.min() + inside.max()) == pytest.approx(139, abs=1)  # in the middle


def test_what_comes_in_from_outside_is_the_border_repeated() -> None:
    rows = torch.arange(0, 200, 4, dtype=torch.uint8)
    images = rows.view(1, 1, 50, 1).expand(1, 3, 50, 50).contiguous()
    changed = reframed(images, 1 / 1.4)
    assert torch.allclose(changed, changed[..., :1].expand_as(changed), atol=0.01)
    top, bottom = changed[0, 0, :7, 0], changed[0, 0, -7:, 0]
    assert (top == top[0]).all() and top[0] < 4
    assert (bottom == bottom[0]).all() and bottom[0] > 192


@pytest.mark.parametrize("scale", [1.2, 1.4, 2.0])
def test_zooming_in_shows_the_centre_alone(scale: float) -> None:
    images = torch.zeros(1, 3, 84, 84, dtype=torch.uint8)
    inner = round(84 / scale)
    start = (84 - inner) // 2
    images[..., start : start + inner, start : start + inner] = 200
    assert torch.allclose(reframed(images, scale), torch.tensor(200.0), atol=0.01)


def test_a_blur_spreads_a_point_by_its_sigma() -> None:
    images = torch.zeros(1, 3, 101, 101)
    images[..., 50, 50] = 255
    changed = blurred(images, 0.04)[0, 0]
    assert changed.sum() == pytest.approx(255, rel=1e-3)
    places = torch.arange(101.0) - 50
    spread = (changed.sum(0) * places**2).sum() / changed.sum()
    assert spread.sqrt() == pytest.approx(4.04, rel=0.05)


def test_no_blur_leaves_a_picture_sharper_than_a_blur() -> None:
    images = noise(64, 48)
    sharpness = [
        blurred(images, fraction).diff(dim=3).abs().mean() for fraction in (0.01, 0.02, 0.04)
    ]
    assert images.float().diff(dim=3).abs().mean() > sharpness[0] > sharpness[1] > sharpness[2]


def test_a_size_leaves_detail_of_so_many_pixels() -> None:
    images = noise(64, 80)
    assert torch.equal(coarse(images, 64), images.float())
    assert torch.equal(coarse(images, 96), images.float())
    detail = [coarse(images, side).diff(dim=3).abs().mean() for side in (48, 32, 16)]
    assert detail == sorted(detail, reverse=True)
    # Stripes finer than a pixel of the small picture are grey in it.
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 255
    assert coarse(stripes, 16).std() < 20


def test_conditions_are_told_apart_by_their_words() -> None:
    assert len({str(each) for each in CONDITIONS}) == len(CONDITIONS)
    assert [str(each) for each in CONDITIONS][2:4] == ["as given", "margin 10 %"]
