"""Random changes of training pictures, a whole batch at a time, on whatever device holds it."""

from __future__ import annotations

import hashlib
import math
import reprlib
from dataclasses import dataclass
from functools import partial
from numbers import Real

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# Weights of red, green and blue in a grey value (ITU-R BT.601), as Pillow and torchvision have it.
_GREY = (0.299, 0.587, 0.114)
_LARGEST_SIGMA = 0.03  # of a blur, as a fraction of the shorter side


def is_number(value: object) -> bool:
    """Tell whether a setting is a finite number."""
    return isinstance(value, Real) and math.isfinite(value)


@dataclass(frozen=True)
class Augmentation:
    """Random changes made to training pictures alone.

    ``horizontal_flip`` is the probability of a mirrored picture (0 to 1), ``rotation`` the
    largest turn to either side in degrees (0 to 180); what turns in from outside is black, or
    else see ``reflection``.
    ``zoom``: smallest and largest scale; below 1 the picture shrinks within its frame.
    ``shift``: the largest move along each axis, as a fraction of the side. ``colour``: the largest
    change of brightness, contrast and saturation, as a fraction. ``grey``, ``downscale`` (to 24
    pixels at least, and back), ``blur`` (Gaussian, its sigma up to 3 % of the shorter side) and
    ``erasing`` (a rectangle of 2 to 20 % of the area) are probabilities; so is ``reflection``, that
    what comes in from outside the picture is the picture mirrored at its border and not black; and
    ``background``, that all outside an aligned face's ellipse is one colour: no hair, no clothes.
    """

    horizontal_flip: float = 0.0
    rotation: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    colour: float = 0.0
    grey: float = 0.0
    downscale: float = 0.0
    erasing: float = 0.0
    reflection: float = 0.0
    blur: float = 0.0
    background: float = 0.0

    def __post_init__(self) -> None:
        for name, most in {**dict.fromkeys(_FRACTIONS, 1), "rotation": 180}.items():
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= most:
                raise ValueError(f"{name} is a number from 0 to {most}, not {reprlib.repr(value)}.")
        zoom = self.zoom if isinstance(self.zoom, tuple) and len(self.zoom) == 2 else (0.0, 0.0)
        if not all(map(is_number, zoom)) or not 0 < zoom[0] <= zoom[1]:
            value = reprlib.repr(self.zoom)
            raise ValueError(f"zoom is a smallest and a largest scale above 0, not {value}.")

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Change every picture of a batch, each by its own ``uniforms``.

        ``images`` (n, 3, H, W) uint8; ``uniforms`` (n, N_UNIFORMS) float32 in 0..1, from
        `sample_uniforms`. Returns (n, 3, H, W), values 0..255: uint8 while no change needs
        fractions, then float32.
        """
        if not len(images):  # the shard of a process that the last batch has no picture for
            return images
        uniform = dict(zip(NAMES, uniforms.to(images.device).unbind(1), strict=True))
        if self.background:
            images = _hide_background(images, uniform, self.background)
        if self.downscale:
            images = _downscale(images, uniform, self.downscale)
        if self.blur:
            images = _blur(images, uniform, self.blur)
        if self.rotation or self.shift or self.zoom != (1.0, 1.0):
            images = self._warp(images, uniform)
        elif self.horizontal_flip:
            flips = _column(uniform["flip"] < self.horizontal_flip)
            images = torch.where(flips, images.flip(3), images)
        if self.colour:
            images = _jitter(images.float(), uniform, self.colour)
        if self.grey:
            images = torch.where(_column(uniform["grey"] < self.grey), to_grey(images), images)
        if self.erasing:
            images = images.masked_fill(_rectangles(images, uniform, self.erasing), 0)
        return images

    def _warp(self, images: Tensor, uniform: dict[str, Tensor]) -> Tensor:
        """Flip, turn, scale and move by one resampling (bilinear)."""
        height, width = images.shape[2:]
        angle = _spread(uniform["angle"], math.radians(self.rotation))
        smallest, largest = self.zoom
        scale = smallest + (largest - smallest) * uniform["zoom"]
        mirror = torch.where(uniform["flip"] < self.horizontal_flip, -1.0, 1.0)
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        # The place that each pixel of the result comes from, from -1 to 1 on both axes.
        x = torch.stack([cosine * mirror, sine * mirror * (height / width)], 1)
        y = torch.stack([-sine * (width / height), cosine], 1)
        turn = torch.stack([x, y], 1)
        # The move is one of the result.
        move = torch.stack(
            [_spread(uniform[name], 2 * self.shift) for name in ("right", "down")], 1
        )
        theta = torch.cat([turn, -(turn @ move[:, :, None])], 2)
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        images = images.float()
        framed = nn.functional.grid_sample(images, grid, align_corners=False)
        mirrored = torch.nonzero(uniform["border"] < self.reflection).flatten()
        if len(mirrored):
            framed[mirrored] = nn.functional.grid_sample(
                images[mirrored], grid[mirrored], padding_mode="reflection", align_corners=False
            )
        return framed


NAMES = (
    "flip", "angle", "zoom", "right", "down", "brightness", "contrast", "saturation", "grey",
    "downscale", "size", "erasing", "area", "shape", "top", "left",
    "border", "blur", "sigma", "background", "red", "green", "blue",
)  # fmt: skip
N_UNIFORMS = len(NAMES)
_FRACTIONS = (
    "horizontal_flip", "shift", "colour", "grey", "downscale", "erasing", "reflection", "blur",
    "background",
)  # fmt: skip
# The face in an aligned picture: its centre and half-axes, in x and y, as fractions of the sides.
_FACE_CENTRE, _FACE_AXES = (0.5, 0.53), (0.45, 0.55)


def sample_uniforms(seed: int, epoch: int, positions: Tensor) -> Tensor:
    """Return (n, N_UNIFORMS) float32 in 0..1 for the pictures at ``positions`` (n,) int64.

    A picture's numbers depend on seed, epoch and its position alone, so that neither the batch
    nor the number of workers changes them. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014),
    which unlike a generator object can be asked for any place in its sequence.
    """
    key = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    steps = np.arange(1, N_UNIFORMS + 1, dtype=np.uint64)
    places = positions.numpy().astype(np.uint64)[:, None] * np.uint64(N_UNIFORMS) + steps
    z: npt.NDArray[np.uint64] = np.uint64(int.from_bytes(key, "big")) + places * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _spread(uniform: Tensor, most: float) -> Tensor:
    """Return numbers from -``most`` to ``most``."""
    return (2 * uniform - 1) * most


def _column(values: Tensor) -> Tensor:
    """Return (n,) as (n, 1, 1, 1), one value for each picture."""
    return values[:, None, None, None]


def to_grey(images: Tensor) -> Tensor:
    """Return the grey values (n, 1, H, W) of pictures (n, 3, H, W), in their dtype."""
    red, green, blue = images.unbind(1)
    grey = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    return grey[:, None].to(images.dtype)


def _jitter(images: Tensor, uniform: dict[str, Tensor], most: float) -> Tensor:
    """Change brightness, then contrast, then saturation of float pictures, within 0..255."""
    factors = [
        1 + _column(_spread(uniform[n], most)) for n in ("brightness", "contrast", "saturation")
    ]
    images = (images * factors[0]).clamp_(0, 255)
    mean = to_grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, factors[1]).clamp_(0, 255)
    return torch.lerp(to_grey(images).expand_as(images), images, factors[2]).clamp_(0, 255)


def _downscale(images: Tensor, uniform: dict[str, Tensor], probability: float) -> Tensor:
    """Scale some pictures down, to 24 pixels on their shorter side at least, and up again."""
    height, width = images.shape[2:]
    shorter = min(height, width)
    if shorter <= 24:
        return images
    images = images.to(torch.float32, copy=True)
    resize = partial(nn.functional.interpolate, mode="bilinear", antialias=True)
    sizes = 24 + (uniform["size"] * (shorter - 24)).long()
    for i in torch.nonzero(uniform["downscale"] < probability).flatten().tolist():
        fraction = int(sizes[i]) / shorter
        small = [max(1, round(height * fraction)), max(1, round(width * fraction))]
        images[i : i + 1] = resize(resize(images[i : i + 1], small), [height, width])
    return images


def _blur(images: Tensor, uniform: dict[str, Tensor], probability: float) -> Tensor:
    """Blur some pictures, each by a sigma of its own; a border is repeated beyond itself."""
    chosen = torch.nonzero(uniform["blur"] < probability).flatten()
    if not len(chosen):
        return images
    largest = _LARGEST_SIGMA * min(images.shape[2:])
    sigma = (largest * uniform["sigma"][chosen]).clamp_min(1e-3)
    reach = math.ceil(3 * largest)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernels = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernels /= kernels.sum(1, keepdim=True)
    images = images.to(torch.float32, copy=True)
    # Pictures in place of channels: each has its own kernel, the same for red, green and blue.
    some = images[chosen].transpose(0, 1)
    some = nn.functional.pad(some, (reach, reach, reach, reach), mode="replicate")
    some = nn.functional.conv2d(some, kernels[:, None, None, :], groups=len(chosen))
    some = nn.functional.conv2d(some, kernels[:, None, :, None], groups=len(chosen))
    images[chosen] = some.transpose(0, 1)
    return images


def _hide_background(images: Tensor, uniform: dict[str, Tensor], probability: float) -> Tensor:
    """Fill what lies outside the face's ellipse with one random colour."""
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) + 0.5) / width - _FACE_CENTRE[0]
    y = (torch.arange(height, device=images.device) + 0.5) / height - _FACE_CENTRE[1]
    outside = (x / _FACE_AXES[0]) ** 2 + ((y / _FACE_AXES[1]) ** 2)[:, None] > 1
    hidden = _column(uniform["background"] < probability) & outside
    colour = torch.stack([uniform[name] for name in ("red", "green", "blue")], 1) * 255
    return torch.where(hidden, colour[..., None, None].to(images.dtype), images)


def _rectangles(images: Tensor, uniform: dict[str, Tensor], probability: float) -> Tensor:
    """Return (n, 1, H, W) bool: true inside the rectangle that is erased from a picture.

    Zhong et al., arXiv:1708.04896: 2 to 20 % of the area, sides from 0.3 to 3.3 to one.
    """
    height, width = images.shape[2:]
    area = (0.02 + 0.18 * uniform["area"]) * height * width
    shape = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * uniform["shape"])
    tall = (area * shape).sqrt().round().clamp(1, height)
    wide = (area / shape).sqrt().round().clamp(1, width)
    top = (uniform["top"] * (height - tall + 1)).floor()
    left = (uniform["left"] * (width - wide + 1)).floor()
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    inside_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    erased = _column(uniform["erasing"] < probability)
    return erased & (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
