"""How a picture becomes a tensor, as a value that travels with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from face_gender.data.augmentation import N_UNIFORMS, Augmentation, is_number
from face_gender.errors import excerpt
from face_gender.faces.alignment import MARGIN, align
from face_gender.faces.detector import DETECTOR_SIDE, Face

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Eight times what the largest net of torchvision takes; a batch of such pictures is gigabytes.
MAX_NET_SIDE = 4096


def as_dict(value: Any) -> dict[Any, Any]:
    """Return what is in a dict from a file, whatever that carries in place of a dict's methods.

    Raises TypeError for anything else: a tensor is iterable too, and may seem to have 10^12 values.
    """
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} is no table of values")
    return dict(dict.items(value))


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a list or tuple from a file as a tuple. Raises TypeError for anything else."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"a {type(value).__name__} is no list of values")
    return tuple(value)


@dataclass(frozen=True)
class Preprocessing:
    """The one description from which the train and the eval transform are made.

    ``height`` and ``width`` in pixels. ``resize`` is "stretch" (to height x width whatever the
    picture's shape, as all four published recipes do) or "crop" (the shorter side to fit, then
    the centre). ``mean`` and ``std`` are per channel (RGB), for values in 0..1.

    ``align`` is "none", or "landmarks": the most prominent face is turned to one template and cut
    out with ``margin`` around it, as a fraction of the template's side (`faces.alignment.align`);
    a picture without a face is resized whole.
    """

    height: int = 224
    width: int = 224
    resize: Literal["stretch", "crop"] = "stretch"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augmentation: Augmentation = field(default_factory=Augmentation)
    align: Literal["none", "landmarks"] = "none"
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if not all(isinstance(side, Integral) for side in (self.height, self.width)):
            raise ValueError("height and width are whole numbers of pixels.")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.height} x {self.width} pixels has no pixels.")
        if max(self.height, self.width) > MAX_NET_SIDE:
            raise ValueError(f"a net takes pictures of at most {MAX_NET_SIDE:,} pixels a side.")
        if self.resize not in ("stretch", "crop"):
            raise ValueError(f"resize is 'stretch' or 'crop', not {excerpt(self.resize)!r}.")
        if self.align not in ("none", "landmarks"):
            raise ValueError(f"align is 'none' or 'landmarks', not {excerpt(self.align)!r}.")
        figures = (*self.mean, *self.std, self.margin)
        if not all(is_number(figure) for figure in figures):
            raise ValueError("mean, std and margin are finite numbers.")
        if not -0.25 <= self.margin <= 2:
            raise ValueError("margin is a fraction of the face's side from -0.25 to 2.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std take three numbers each, std above zero.")

    @property
    def aligns(self) -> bool:
        """Whether faces are to be found in pictures before these are prepared."""
        return self.align != "none"

    @property
    def at_least(self) -> int:
        """The shorter side, in pixels, that a larger JPEG may be decoded to: more than is used."""
        return max(4 * max(self.height, self.width), DETECTOR_SIDE if self.aligns else 0)

    def prepare(self, pixels: Tensor, face: Face | None = None) -> Tensor:
        """Return a decoded picture, uint8 (3, any, any), as uint8 (3, height, width).

        The one way from a picture's own pixels to those that are augmented and normalised.
        ``face``: the one to align, in pixels of this picture; without it, or where ``align`` is
        "none", the whole picture is resized.
        """
        if face is None or not self.aligns:
            return self.resized(pixels)
        array = pixels.permute(1, 2, 0).contiguous().numpy()
        size = (self.height, self.width)
        found = align(array, face.landmarks, face.box, size, self.margin)
        return torch.from_numpy(found).permute(2, 0, 1)

    def resized(self, pixels: Tensor) -> Tensor:
        """Return one picture, uint8 (3, any, any), as uint8 (3, height, width), antialiased."""
        if self.resize == "crop":
            pixels = self._largest_centre(pixels)
        # The result has its channels last, as a batch has, if torch can see that they are so here:
        # the strides of pixels[None] do not tell.
        batch = pixels.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
        size = (self.height, self.width)
        return nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)[0]

    def _largest_centre(self, pixels: Tensor) -> Tensor:
        """Cut out the largest centre that has the shape of the result.

        Before it is scaled, since a picture of 1 x 10,000 pixels scaled up to cover 224 x 224
        would take gigabytes.
        """
        height, width = pixels.shape[-2:]
        scale = max(self.height / height, self.width / width)
        tall, wide = (max(1, round(side / scale)) for side in (self.height, self.width))
        top, left = round((height - tall) / 2), round((width - wide) / 2)
        return pixels[..., top : top + tall, left : left + wide]

    def normalized(self, images: Tensor) -> Tensor:
        """Return (n, 3, H, W), values 0..255, as the float32 that a net takes, channels last.

        On MPS channels are first, as `to_device` has the net there.
        """
        count, _, height, width = images.shape
        mean, std = (torch.tensor(each).repeat(width) for each in (self.mean, self.std))
        scale, shift = (1 / (255 * std)).to(images.device), (-mean / std).to(images.device)
        # A row of all its channels: three values at a time would be slow.
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * 3)
        normal = rows.to(torch.float32, copy=True).mul_(scale).add_(shift)
        result = normal.reshape(count, height, width, 3).permute(0, 3, 1, 2)
        return result.contiguous() if result.device.type == "mps" else result

    def eval_transform(self) -> FaceTransform:
        """Return the transform from a PIL image to a float32 tensor of shape (3, H, W)."""
        return FaceTransform(self, random=False)

    def train_transform(self) -> FaceTransform:
        """Return the eval transform with the augmentation's random changes after the resize."""
        return FaceTransform(self, random=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Rebuild the value from plain data. Raises KeyError, TypeError or ValueError."""
        values = as_dict(values)
        augmentation = as_dict(values.pop("augmentation", {}))
        augmentation["zoom"] = as_tuple(augmentation.get("zoom", (1.0, 1.0)))
        mean, std = as_tuple(values.pop("mean")), as_tuple(values.pop("std"))
        return cls(augmentation=Augmentation(**augmentation), mean=mean, std=std, **values)


@dataclass(frozen=True)
class FaceTransform:
    """From one picture to a net's input; `dataset.to_input` does the same to a whole batch.

    ``random``: with the augmentation, for training, drawn from torch's global generator.
    """

    preprocessing: Preprocessing
    random: bool

    def __call__(self, image: Image.Image | Tensor, face: Face | None = None) -> Tensor:
        """PIL RGB image, or uint8 (3, any, any), and its face if known -> float32 (3, H, W)."""
        if not isinstance(image, Tensor):
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        images = self.preprocessing.prepare(image, face)[None]
        if self.random:
            uniforms = torch.rand(1, N_UNIFORMS)
            images = self.preprocessing.augmentation.apply(images, uniforms)
        return self.preprocessing.normalized(images)[0]


def stack(pictures: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Return pictures (3, H, W) of one size as a batch (n, 3, H, W), channels last in memory.

    ``out``: the memory to take, (n, H, W, 3).
    """
    # By numpy: torch would wake its threads for each picture, and wait for them.
    rows = [each.permute(1, 2, 0).numpy() for each in pictures]
    batch = np.stack(rows, out=None if out is None else out.numpy())
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
