"""Pictures of any of Pillow's modes -> 8-bit RGB, as viewers show them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from face_gender.data.tiff import NotDecoded


def to_rgb(image: Image.Image, white: int | None = None) -> Image.Image:
    """Convert any mode to RGB; ``white`` is the value of white in 16 and 32 bits, if known."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _eight_bit(image, white).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image, white: float | None) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey values to 0..255; Pillow's own convert clips them."""
    values: npt.NDArray[np.floating] = np.asarray(image, dtype=np.float32)
    if white is None:
        white = 65_535 if image.mode.startswith("I;16") else _likely_white(values, image.mode)
    scaled = np.nan_to_num(values).clip(0, white) * np.float32(255 / white)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _likely_white(values: npt.NDArray[np.floating], mode: str) -> float:
    """Return the value of white that fits to the largest one; no file says it."""
    top = float(np.max(values, initial=0, where=np.isfinite(values)))
    if top > 65_535:
        raise NotDecoded(f"values of up to {top:.3g}, of which white is not known: save it as PNG")
    if mode == "F" and top <= 2:  # meant as 0..1, with some overshoot
        return 1
    return 255 if top <= 255 else 65_535


def without_empty_alpha(image: Image.Image) -> Image.Image:
    """Drop an alpha of zeros alone, which is one that the writer left empty; viewers do."""
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    return image.convert("RGB") if alpha and alpha.getextrema() == (0, 0) else image
