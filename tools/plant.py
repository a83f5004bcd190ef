"""Plant what an audit is to find: altered copies, pictures of no face, wrong labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from face_gender.data.images import load_image
from face_gender.data.sources import Source

Generator = np.random.Generator


def _shrunk(image: Image.Image) -> Image.Image:
    size = [max(1, round(side * 0.8)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image) -> Image.Image:
    """Cut 5 % off each side."""
    x, y = round(image.width * 0.05), round(image.height * 0.05)
    return image.crop((x, y, image.width - x, image.height - y))


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality_60": lambda image: image,
    "scaled_80": _shrunk,
    "brightened_15": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "cropped_5": _cropped,
    "mirrored": ImageOps.mirror,
}


def altered(image: Image.Image, alteration: str) -> bytes:
    """Return a JPEG of the altered picture: of quality 60 where that is it, of 90 otherwise."""
    quality = 60 if alteration == "quality_60" else 90
    return jpeg(ALTERATIONS[alteration](image), quality)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Return the picture as the bytes of a JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _texture(rng: Generator, side: int) -> Image.Image:
    """Draw bricks, stripes, dots or blots in two colours."""
    back, front = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    image = Image.new("RGB", (side, side), back)
    draw = ImageDraw.Draw(image)
    step = int(rng.integers(6, 40))
    kind = rng.integers(4)
    for i in range(0, side, step):
        if kind == 0:
            draw.line((i, 0, side - i, side), fill=front, width=max(1, step // 3))
        for j in range(0, side, step):
            at = j + (i // step % 2) * step // 2
            if kind == 1:
                draw.rectangle((at, i, at + step - 3, i + step - 3), fill=front)
            elif kind == 2:
                draw.ellipse((j, i, j + step * 0.7, i + step * 0.7), fill=front)
    if kind == 3:
        blots = Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8))
        mask = blots.filter(ImageFilter.GaussianBlur(step / 4)).point(lambda v: 255 * (v > 127))
        image.paste(Image.new("RGB", image.size, front), mask=mask)
    return image


def _noise(rng: Generator, side: int) -> Image.Image:
    coarse = int(rng.choice([side, side // 2, side // 8]))
    pixels = rng.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _gradient(rng: Generator, side: int) -> Image.Image:
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


def _text(rng: Generator, side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(180, 256, 3)))
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(8, 28))
    for y in range(4, side, size + 4):
        letters = "".join(chr(int(c)) for c in rng.integers(97, 123, side // 6))
        draw.text((4, y), letters, fill=tuple(int(v) for v in rng.integers(0, 100, 3)),
                  font_size=size)  # fmt: skip
    return image


OUTLIERS: dict[str, Callable[[Generator, int], Image.Image]] = {
    "texture": _texture,
    "noise": _noise,
    "gradient": _gradient,
    "text": _text,
}


def background(image: Image.Image, rng: Generator, side: int) -> Image.Image:
    """Return a top corner of a portrait, a quarter of its width and height, scaled to ``side``."""
    width, height = image.width // 4, image.height // 4
    left = 0 if rng.random() < 0.5 else image.width - width
    return image.crop((left, 0, left + width, height)).resize((side, side))


def outliers(
    rng: Generator, count: int, side: int, portraits: Source, names: Sequence[str]
) -> list[tuple[str, bytes]]:
    """Return ``count`` (kind, JPEG) in equal parts of OUTLIERS and of backgrounds."""
    kinds = [*OUTLIERS, "background"]
    found = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        if kind == "background":
            portrait = load_image(names[int(rng.integers(len(names)))], portraits)
            picture = background(portrait, rng, side)
        else:
            picture = OUTLIERS[kind](rng, side)
        found.append((kind, jpeg(picture)))
    return found


def flipped(
    labels: npt.NDArray[np.int64], fraction: float, rng: Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the labels (n,) with the ``fraction`` of them turned, and which these are (n,)."""
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[rng.choice(len(labels), round(fraction * len(labels)), replace=False)] = True
    return np.where(chosen, 1 - labels, labels), chosen
