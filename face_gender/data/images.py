"""One picture: bytes of any format and mode -> RGB pixels, or UnreadableImage."""

from __future__ import annotations

import io
import os
import struct
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from face_gender.data.sound import METADATA
from face_gender.data.sources import Reader
from face_gender.errors import excerpt, printable
from face_gender.files import read_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


# Pillow's own threshold for a decompression bomb. It only warns there; here it is the end.
MAX_PIXELS = 89_478_485
# JPEG's own limit. A line of pixels, stretched to a net's input, would take gigabytes.
MAX_SIDE = 65_535
# Every scan of a progressive JPEG goes over all pixels again, and a scan takes some 20 bytes.
_MOST_SCANNED = 20 * MAX_PIXELS

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "HEIF")

_SCAN = b"\xff\xda"

_RGB = 3  # torchvision.io.ImageReadMode.RGB

_HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")

# Oddities of metadata do not concern the pixels, and size is checked in _decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(Exception):  # noqa: N818 - a name from the design, it says what it is
    """A file that cannot become a picture: ``path`` and, in a few words, the ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


def load_image(path: str | os.PathLike[str], source: Reader | None = None) -> Image.Image:
    """Read one picture, upright (EXIF orientation applied), as an 8-bit RGB image.

    ``path`` is a file or, with ``source``, a name in that folder or archive. Grey, palette,
    1-bit, 16-bit, float, CMYK and transparent pictures are converted (transparency is laid over
    white); of an animation, the first frame is taken. Raises UnreadableImage for everything
    that cannot be read: missing, empty or truncated files, text, more than MAX_PIXELS pixels
    or MAX_SIDE on a side, scans without end.
    """
    name = os.fspath(path)
    return decode_image(read_bytes(name, source), name)


def load_pixels(path: str | os.PathLike[str], source: Reader | None = None) -> Tensor:
    """Read one picture as `load_image` does, as uint8 (3, H, W) with channels last in memory.

    The values are those of `load_image`, faster: most JPEG files are decoded without Pillow.
    """
    name = os.fspath(path)
    return decode_pixels(read_bytes(name, source), name)


def read_bytes(name: str, source: Reader | None) -> bytes:
    """Return the bytes of a file, or of ``source``'s. Raises UnreadableImage."""
    try:
        return source.read(name) if source is not None else read_file(Path(name))
    except OSError as error:
        raise UnreadableImage(name, f"cannot be read ({error.strerror or error})") from error


def decode_pixels(data: bytes, name: str) -> Tensor:
    """Decode the bytes of one picture as `load_pixels` does; ``name`` is for the error alone."""
    import torch  # here: making an index needs none

    libjpeg = _libjpeg()
    if libjpeg is not None and _is_plain_jpeg(data):
        # What libjpeg refuses, Pillow may still read, and if not, it says why.
        with suppress(RuntimeError):
            pixels: Tensor = libjpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)
            return pixels
    image = decode_image(data, name)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@cache
def _libjpeg() -> Callable[..., Tensor] | None:
    """Return torchvision's decoder, None where it has none: Pillow then reads all files.

    The operator and not the function around it, which warns at every call that a future release
    of torchvision will be without.
    """
    try:
        import torch
        import torchvision.io  # noqa: F401 - registers it

        decoder: Callable[..., Tensor] = torch.ops.image.decode_jpeg.default
    except (ImportError, AttributeError, RuntimeError):
        return None
    return decoder


def _is_plain_jpeg(data: bytes) -> bool:
    """Tell whether libjpeg alone gives what `decode_image` does.

    That is a whole file of grey or YCbCr pixels, 8 bits each, not too many of them, that no
    metadata turns. Walks the segments of the header (ITU T.81, annex B) up to the frame.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return False
    place, has_metadata, known = 2, False, False
    while place + 10 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            known = bits == 8 and components in (1, 3) and min(height, width) > 0
            known &= not is_bomb(width, height, data)
        elif marker == 0xDA:
            return known and not (has_metadata and _is_turned(data))
        elif not 0xC4 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            return False
        has_metadata |= marker == 0xE1  # APP1: EXIF and XMP
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        start, least = METADATA.get(marker, (b"", 0))
        if start and data.startswith(start, place + 4) and length - 2 < least:
            return False
        place += 2 + length
    return False


def _is_turned(data: bytes) -> bool:
    """Tell whether a JPEG's metadata may turn or mirror it."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # damaged: for `decode_image` to judge
        return True


def is_bomb(width: int, height: int, data: bytes) -> bool:
    """Tell whether a file announces more pixels, or JPEG scans of them, than any photograph."""
    pixels = width * height
    if pixels > MAX_PIXELS or max(width, height) > MAX_SIDE:
        return True
    # Only where it matters: among the pixels themselves, this marker cannot stand.
    most = _MOST_SCANNED // max(1, pixels)
    return len(data) > 10 * most and data.startswith(b"\xff\xd8") and data.count(_SCAN) > most


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode the bytes of one picture as `load_image` does; ``name`` is for the error alone."""
    if not data:
        raise UnreadableImage(name, "empty file")
    try:
        return _decode(data)
    except UnidentifiedImageError as error:
        is_heic = data[4:12] in _HEIC
        reason = "not an image, or of a format that is not known"
        raise UnreadableImage(name, "HEIC: save it as JPEG" if is_heic else reason) from error
    except Image.DecompressionBombError as error:
        reason = f"decompression bomb: over {MAX_PIXELS:,} pixels, {MAX_SIDE:,} on a side, or scans"
        raise UnreadableImage(name, reason) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise UnreadableImage(name, f"damaged: {excerpt(reason)}") from error


def _decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        if is_bomb(*image.size, data):
            raise Image.DecompressionBombError
        image.load()
        return _to_rgb(_upright(image))


@cache
def _formats() -> tuple[str, ...]:
    """The formats of photographs; Pillow knows more, one of which (EPS) starts a program."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block raises anything; the pixels are still good
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith(("I", "F")):
        return _eight_bit(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey values to 0..255; Pillow's own convert clips them."""
    values: npt.NDArray[np.floating] = np.asarray(image, dtype=np.float32)
    top = float(np.nanmax(values, initial=0))
    if image.mode.startswith("I;16") or top > 255:
        values = values / 257
    elif image.mode == "F" and top <= 2:  # meant as 0..1, with some overshoot
        values = values * 255
    return Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))
