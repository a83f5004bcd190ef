"""How accuracy falls when pictures are framed, blurred or scaled otherwise than those given."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from face_gender.data.index import Index
from face_gender.evaluate.metrics import Evaluation
from face_gender.evaluate.predict import evaluate_changed
from face_gender.model.checkpoint import Checkpoint

MARGINS = (0.1, 0.2, 0.3, 0.4)
ZOOMS = (1.2, 1.4)
BLURS = (0.01, 0.02, 0.04)
SIZES = (96, 64, 48, 32, 24, 16)


@dataclass(frozen=True)
class Condition:
    """A change of all pictures: ``kind`` is "none", "zoom", "margin", "blur" or "size".

    ``value``: of a zoom the factor, of a margin and a blur a fraction of the side, of a size
    pixels.
    """

    kind: str
    value: float = 0.0

    def __str__(self) -> str:
        words = {
            "none": "as given",
            "zoom": f"zoom {self.value:g}",
            "size": f"size {self.value:g}",
        }
        return words.get(self.kind, f"{self.kind} {100 * self.value:g} %")

    @property
    def change(self) -> Callable[[Tensor], Tensor]:
        """The function from a batch (n, 3, H, W), values 0..255, to the changed one."""
        if self.kind == "zoom":
            return partial(reframed, scale=self.value)
        if self.kind == "margin":
            return partial(reframed, scale=1 / (1 + self.value))
        if self.kind == "blur":
            return partial(blurred, fraction=self.value)
        return partial(coarse, side=int(self.value))


AS_GIVEN = Condition("none")
# In the order of the figure: from cut faces to faces in a wide frame, then worse and worse.
CONDITIONS = (
    *(Condition("zoom", value) for value in reversed(ZOOMS)),
    AS_GIVEN,
    *(Condition("margin", value) for value in MARGINS),
    *(Condition("blur", value) for value in BLURS),
    *(Condition("size", value) for value in SIZES),
)


def reframed(images: Tensor, scale: float) -> Tensor:
    """Return pictures (n, 3, H, W), 0..255, whose content is ``scale`` times as large, float32.

    Above 1 their centre fills the frame. Below 1 the whole stands in its middle, and the pixels of
    its own border are repeated around it, so that no black frame is a hint. This is done to the
    resized pixels, not to the decoded picture, which saves decoding it again: a picture that is
    framed otherwise would have more or less detail in the face.
    """
    images = images.float()
    height, width = images.shape[2:]
    if scale > 1:
        tall, wide = (max(1, round(side / scale)) for side in (height, width))
        top, left = (height - tall) // 2, (width - wide) // 2
        return _scaled(images[..., top : top + tall, left : left + wide], height, width)
    tall, wide = (max(1, round(side * scale)) for side in (height, width))
    top, left = (height - tall) // 2, (width - wide) // 2
    border = (left, width - wide - left, top, height - tall - top)
    return nn.functional.pad(_scaled(images, tall, wide), border, mode="replicate")


def blurred(images: Tensor, fraction: float) -> Tensor:
    """Return pictures (n, 3, H, W), 0..255, after a Gaussian blur, float32.

    ``fraction``: its sigma, of the shorter side of the resized picture.
    """
    sigma = fraction * min(images.shape[2:])
    # Three sigmas to each side, as far as a mirrored border reaches.
    reach = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    return gaussian_blur(images.float(), 2 * reach + 1, sigma)


def coarse(images: Tensor, side: int) -> Tensor:
    """Return pictures (n, 3, H, W), 0..255, with no more detail than ``side`` pixels hold, float32.

    The shorter side of the resized picture is scaled down to so many pixels, and up again; a
    picture that has no more of them stays as it is.
    """
    images = images.float()
    height, width = images.shape[2:]
    scale = side / min(height, width)
    if scale >= 1:
        return images
    return _scaled(_scaled(images, round(height * scale), round(width * scale)), height, width)


def _scaled(images: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)


def evaluate_conditions(
    weights: Checkpoint | str | os.PathLike[str],
    index: Index | str | os.PathLike[str],
    split: str | None = "test",
    **options: Any,
) -> dict[Condition, Evaluation]:
    """Return what a model predicts under each of `CONDITIONS`, each picture decoded once.

    ``options`` and errors: those of `evaluate.predict.evaluate`.
    """
    changes = [None if each is AS_GIVEN else each.change for each in CONDITIONS]
    found = evaluate_changed(weights, index, split, changes, **options)
    return dict(zip(CONDITIONS, found, strict=True))
