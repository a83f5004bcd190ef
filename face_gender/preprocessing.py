"""How a picture becomes a tensor, as a value that travels with the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """Random changes made to training pictures alone.

    ``horizontal_flip`` is the probability of a mirrored picture (0 to 1), ``rotation`` the
    largest turn to either side in degrees (0 to 180); what turns in from outside is black.
    ``zoom``: smallest and largest scale; below 1 the picture shrinks within its frame.
    ``shift``: the largest move along each axis, as a share of the side. ``colour``: the largest
    change of brightness, contrast and saturation, as a share. ``grey``, ``downscale`` (to 24
    pixels at least, and back) and ``erasing`` (a rectangle of 2 to 20 % of the area) are
    probabilities.
    """

    horizontal_flip: float = 0.0
    rotation: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    colour: float = 0.0
    grey: float = 0.0
    downscale: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "colour", "grey", "downscale", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a number from 0 to 1, not {getattr(self, name)}.")
        pair = isinstance(self.zoom, tuple) and len(self.zoom) == 2
        if not pair or not 0 < self.zoom[0] <= self.zoom[1] < math.inf:
            raise ValueError(f"zoom is a smallest and a largest scale above 0, not {self.zoom}.")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is a probability, not {self.horizontal_flip}.")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is an angle from 0 to 180 degrees, not {self.rotation}.")


@dataclass(frozen=True)
class Preprocessing:
    """The one description from which the train and the eval transform are made.

    ``height`` and ``width`` in pixels. ``resize`` is "stretch" (to height x width whatever the
    picture's shape, as all four published recipes do) or "crop" (the shorter side to fit, then
    the centre). ``mean`` and ``std`` are per channel (RGB), for values in 0..1.
    """

    height: int = 224
    width: int = 224
    resize: Literal["stretch", "crop"] = "stretch"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.height} x {self.width} pixels has no pixels.")
        if self.resize not in ("stretch", "crop"):
            raise ValueError(f"resize is 'stretch' or 'crop', not {self.resize!r}.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std take three numbers each, std above zero.")

    def eval_transform(self) -> v2.Transform:
        """Return the transform from a PIL image to a float32 tensor of shape (3, H, W)."""
        return v2.Compose([v2.ToImage(), *self._resize(), *self._normalize()])

    def train_transform(self) -> v2.Transform:
        """Return the eval transform with the random augmentation after the resize."""
        random = _random_transforms(self.augmentation)
        return v2.Compose([v2.ToImage(), *self._resize(), *random, *self._normalize()])

    def _resize(self) -> list[v2.Transform]:
        size = [self.height, self.width]
        if self.resize == "stretch":
            return [v2.Resize(size, antialias=True)]
        return [_ShorterSideCrop(self.height, self.width)]

    def _normalize(self) -> list[v2.Transform]:
        to_float = v2.ToDtype(torch.float32, scale=True)
        return [to_float, v2.Normalize(list(self.mean), list(self.std))]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Rebuild the value from plain data. Raises KeyError, TypeError or ValueError."""
        values = dict(values)
        augmentation = dict(values.pop("augmentation", {}))
        augmentation["zoom"] = tuple(augmentation.get("zoom", (1.0, 1.0)))
        mean, std = tuple(values.pop("mean")), tuple(values.pop("std"))
        return cls(augmentation=Augmentation(**augmentation), mean=mean, std=std, **values)


def _random_transforms(augmentation: Augmentation) -> list[v2.Transform]:
    """Return the random changes that are not switched off, for uint8 pictures (3, H, W)."""
    random: list[v2.Transform] = []
    if augmentation.downscale:
        random.append(_Downscale(augmentation.downscale))
    if augmentation.horizontal_flip:
        random.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
    bilinear = v2.InterpolationMode.BILINEAR
    if augmentation.zoom != (1.0, 1.0) or augmentation.shift:
        shift = (augmentation.shift, augmentation.shift)
        random.append(
            v2.RandomAffine(augmentation.rotation, shift, augmentation.zoom, interpolation=bilinear)
        )
    elif augmentation.rotation:
        random.append(v2.RandomRotation(augmentation.rotation, bilinear))
    if augmentation.colour:
        random.append(v2.ColorJitter(*(augmentation.colour,) * 3))
    if augmentation.grey:
        random.append(v2.RandomGrayscale(augmentation.grey))
    if augmentation.erasing:
        random.append(v2.RandomErasing(augmentation.erasing, scale=(0.02, 0.2)))
    return random


class _Downscale(v2.Transform):
    """Scale a picture down, to 24 pixels on its shorter side at least, and up again."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        shorter = min(height, width)
        if shorter <= 24 or torch.rand(()) >= self.probability:
            return image
        share = int(torch.randint(24, shorter, ())) / shorter
        small = [max(1, round(height * share)), max(1, round(width * share))]
        image = v2.functional.resize(image, small, antialias=True)
        return v2.functional.resize(image, [height, width], antialias=True)


class _ShorterSideCrop(v2.Transform):
    """Cut out the largest centre that has the shape of height x width, then scale it to that.

    In this order, since a picture of 1 x 10,000 pixels scaled up to cover 224 x 224 would take
    gigabytes.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = [height, width]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        scale = max(self.size[0] / height, self.size[1] / width)
        centre = [max(1, round(side / scale)) for side in self.size]
        cropped = v2.functional.center_crop(image, centre)
        return v2.functional.resize(cropped, self.size, antialias=True)
