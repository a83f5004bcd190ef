"""One picture: bytes of any format and mode -> RGB pixels, or UnreadableImage."""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from face_gender.data import bmp, jpeg, png, tiff
from face_gender.data.memory import reserve
from face_gender.data.modes import to_rgb, without_empty_alpha
from face_gender.data.plugins import missing_plugin
from face_gender.data.sources import Reader
from face_gender.data.tiff import NotDecoded
from face_gender.errors import excerpt, printable
from face_gender.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# No picture is returned larger. A JPEG is decoded at a half where it is, others are reduced.
MAX_PIXELS = 89_478_485
# 16,384 x 16,384, more than any camera's. A file that announces more is a bomb.
_MOST_ANNOUNCED = 2**28
# JPEG's own limit. A line of pixels, stretched to a net's input, would take gigabytes.
MAX_SIDE = 65_535
# Above MAX_PIXELS, other files than JPEG are decoded whole: those of photographs are larger.
_MOST_PIXELS_PER_BYTE = 100
# Every scan of a progressive JPEG goes over all pixels again, and a scan takes some 20 bytes.
_MOST_SCANNED = 20 * MAX_PIXELS

# Bytes that Pillow takes for a pixel while it is decoded and converted, that libjpeg takes, and
# that a progressive JPEG keeps of each at full scale.
_PILLOW_COST, _LIBJPEG_COST, _PROGRESSIVE_COST = 12, 4, 6

# The formats of photographs; Pillow knows more, one of which (EPS) starts a program.
_FORMATS = ("BMP", "DIB", "GIF", "WEBP", "PPM", "AVIF", "HEIF", "JXL")

# Where a JPEG's scans are cut off, libjpeg makes pixels of this grey; CMYK may round it down.
_FILL = ({127}, {128})
# In place of what may be missing at the end of a scan: no bit is the same in both, and restarts
# follow, of which every eighth is the one that a decoder waits for.
_PADS = tuple(
    bytes((start, *noise)) + b"".join(bytes((0xFF, 0xD0 + i, *noise)) for i in range(8))
    for start, noise in ((0xAA, range(1, 99)), (0x55, range(99, 0, -1)))
)
_TRUNCATED = "truncated: {} % of its rows are there"
_BOMB = (
    f"decompression bomb: over {_MOST_ANNOUNCED:,} pixels, {MAX_SIDE:,} on a side, or more pixels "
    "or scans than so small a file holds"
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own reader of uncompressed files takes 16-bit planes for bytes.
TiffImagePlugin.READ_LIBTIFF = True
# Oddities of metadata do not concern the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(Exception):  # noqa: N818 - a name from the design, it says what it is
    """A file that cannot become a picture: ``path`` and, in a few words, the ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


class UnreadFile(UnreadableImage):
    """A file whose bytes could not be read; they may be a picture another time."""


def load_image(
    path: str | os.PathLike[str], source: Reader | None = None, at_least: int | None = None
) -> Image.Image:
    """Read one picture, upright (EXIF orientation applied), as an 8-bit RGB image.

    ``path`` is a file or, with ``source``, a name in that folder or archive. Grey, palette,
    1-bit, 16-bit, float, CMYK and transparent pictures are converted (transparency is laid over
    white); of an animation, the first frame is taken. With ``at_least``, a JPEG is decoded at a
    half, a quarter or an eighth of its size where its shorter side keeps that many pixels; above
    MAX_PIXELS, every picture is. Raises UnreadableImage for everything that cannot be read:
    missing, empty or truncated files, text, pixels that viewers do not agree on, and bombs: over
    2**28 pixels or MAX_SIDE on a side, or scans without end.
    """
    name = os.fspath(path)
    return decode_image(read_bytes(name, source), name, at_least)


def load_pixels(
    path: str | os.PathLike[str], source: Reader | None = None, at_least: int | None = None
) -> Tensor:
    """Read one picture as `load_image` does, as uint8 (3, H, W) with channels last in memory.

    The values are those of `load_image`. Most JPEG files are decoded by OpenCV, in half the time.
    """
    name = os.fspath(path)
    return decode_pixels(read_bytes(name, source), name, at_least)


def read_bytes(name: str, source: Reader | None) -> bytes:
    """Return the bytes of a file, or of ``source``'s. Raises UnreadFile."""
    try:
        return source.read(name) if source is not None else read_file(Path(name))
    except OSError as error:
        raise UnreadFile(name, f"cannot be read ({error.strerror or error})") from error


def decode_pixels(data: bytes, name: str, at_least: int | None = None) -> Tensor:
    """Decode the bytes of one picture as `load_pixels` does: uint8 (3, H, W).

    Raises UnreadableImage, for which ``name`` is.
    """
    import torch  # here: making an index needs none

    pixels = _by_opencv(data, at_least)
    if pixels is None:  # what it refuses, Pillow may still read, and if not, it says why
        pixels = np.array(decode_image(data, name, at_least))
    return torch.from_numpy(pixels).permute(2, 0, 1)


@functools.cache
def _opencv() -> Any:
    """Return OpenCV, None where it is missing or older than 4.11: Pillow decodes the same."""
    with suppress(Exception):  # of several versions on top of each other, anything
        import cv2

        return cv2 if hasattr(cv2, "IMREAD_COLOR_RGB") else None
    return None


def _by_opencv(data: bytes, at_least: int | None) -> npt.NDArray[np.uint8] | None:
    """Return the pixels (H, W, 3) of a JPEG that OpenCV decodes as `decode_image` does, or None."""
    cost = _libjpeg_cost(data, at_least)
    if cost is not None and (cv2 := _opencv()):
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        with suppress(cv2.error), reserve(cost):
            pixels: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), how)
            if pixels is not None and {*pixels[-1, -1].tolist()} not in _FILL:
                return pixels
    return None


def _libjpeg_cost(data: bytes, at_least: int | None) -> int | None:
    """Return the memory for a JPEG of which libjpeg alone makes what `decode_image` does.

    That is a whole file of grey or YCbCr pixels, 8 bits each, at full scale, that no metadata
    turns; None for others.
    """
    if not (data.startswith(jpeg.SIGNATURE) and data.endswith(jpeg.END)):
        return None
    header = jpeg.read_header(data)
    if header is None or not header.is_tidy or header.bits != 8 or header.orientation != 1:
        return None
    if header.components not in (1, 3) or min(header.width, header.height) == 0:
        return None
    if is_bomb(header.width, header.height, data) or _scale(header, at_least) != 1:
        return None
    end, is_whole = jpeg.find_end(data, header)
    is_whole &= data.startswith(jpeg.END, end)  # else libjpeg goes on where `decode_image` ends
    if not header.is_progressive and data.count(b"\xff\xda", header.scans, end) > 1:
        return None  # OpenCV says nothing of what is wrong behind the last row
    return _cost(header, 1, _LIBJPEG_COST) if is_whole else None


def _scale(header: jpeg.Header, at_least: int | None) -> int:
    """Return by what to divide a JPEG's size: 1, 2, 4 or 8."""
    pixels, shorter = header.width * header.height, min(header.width, header.height)
    least, scale = 2 * (at_least or shorter + 1), 1
    while scale < 8 and (pixels > MAX_PIXELS * scale**2 or shorter >= scale * least):
        scale *= 2
    return scale


def _cost(header: jpeg.Header, scale: int, each: int) -> int:
    pixels = header.width * header.height
    return each * pixels // scale**2 + _PROGRESSIVE_COST * pixels * header.is_progressive


def full_side(data: bytes, size: tuple[int, int]) -> int:
    """Return the longer side of a picture's file, of which one of that size may be a part."""
    if data.startswith(jpeg.SIGNATURE):
        header = jpeg.read_header(data)
        return max(header.width, header.height) if header else max(size)
    if 4 * size[0] * size[1] > MAX_PIXELS:  # else it cannot be a half
        with suppress(Exception), _opened(data, (*_FORMATS, "PNG", "TIFF")) as image:
            return max(image.size)
    return max(size)


def is_bomb(width: int, height: int, data: bytes) -> bool:
    """Tell whether a file announces more pixels, or JPEG scans of them, than any photograph."""
    pixels = width * height
    if pixels > _MOST_ANNOUNCED or max(width, height) > MAX_SIDE:
        return True
    if not data.startswith(jpeg.SIGNATURE):
        return pixels > MAX_PIXELS and pixels > _MOST_PIXELS_PER_BYTE * len(data)
    most = _MOST_SCANNED // max(1, pixels)  # among the pixels, this marker cannot stand
    return len(data) > 10 * most and data.count(b"\xff\xda") > most


def decode_image(data: bytes, name: str, at_least: int | None = None) -> Image.Image:
    """Decode the bytes of one picture as `load_image` does: 8-bit RGB.

    Raises UnreadableImage, for which ``name`` is.
    """
    if not data:
        raise UnreadableImage(name, "empty file")
    try:
        return _decode(data, at_least)
    except UnidentifiedImageError as error:
        raise UnreadableImage(name, "not an image, or of a format that is not known") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, _BOMB) from error
    except NotDecoded as error:
        raise UnreadableImage(name, str(error)) from error
    except struct.error as error:
        raise UnreadableImage(name, "damaged: its header is cut off") from error
    except MemoryError as error:
        raise UnreadFile(name, "no memory is left for it") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise UnreadableImage(name, f"damaged: {excerpt(reason)}") from error


def _decode(data: bytes, at_least: int | None) -> Image.Image:
    if data.startswith(jpeg.SIGNATURE):
        return _decode_jpeg(data, at_least)
    if data.startswith(png.SIGNATURE):
        return _decode_png(data)
    if data.startswith(tiff.SIGNATURES):
        return _decode_tiff(data)
    bitmap = bmp.read_header(data) if data.startswith(bmp.SIGNATURE) else None
    if bitmap is not None:
        return _decode_bitmap(data, bitmap)
    with _loaded(data, _FORMATS) as image:
        is_turned = image.format in ("WEBP", "AVIF")  # HEIF's plugin has turned it
        orientation = jpeg.exif_orientation(image.info.get("exif", b"")) if is_turned else 1
        box = getattr(image, "dispose_extent", None)  # of a GIF's first frame
        if box and box != (0, 0, *image.size):
            canvas = Image.new("RGB", image.size, "white")
            canvas.paste(to_rgb(image).crop(box), box)
            return _finished(canvas)
        # Pillow stretches the values of a PGM to all of 16 bits.
        return _finished(image, orientation, 65_535 if image.mode == "I" else None)


@contextmanager
def _loaded(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open and decode a file in one of Pillow's formats, with memory for it reserved."""
    with _opened(data, formats) as image:
        if is_bomb(*image.size, data):
            raise Image.DecompressionBombError
        with reserve(_PILLOW_COST * image.width * image.height):
            image.load()
            yield image


def _opened(data: bytes, formats: tuple[str, ...]) -> ImageFile:
    """Open a file in the first of Pillow's formats that can read it; its pixels are not read."""
    Image.init()
    missing = missing_plugin(data)
    failed: Exception = NotDecoded(missing) if missing else UnidentifiedImageError()
    for name in formats:
        factory, accept = Image.OPEN.get(name, (None, None))
        # As Image.open does, whose limit of pixels is lower, and whose errors say less.
        if factory and accept and accept(data[:16]) is True:
            try:
                return factory(io.BytesIO(data), "")
            except SyntaxError as error:  # the plugin of AVIF accepts brands that HEIC has too
                failed = failed if missing else error
    raise failed


def _decode_jpeg(data: bytes, at_least: int | None) -> Image.Image:
    header = jpeg.read_header(data)
    if header is None:
        raise NotDecoded("damaged: a JPEG without pixels")
    if header.bits != 8:
        raise NotDecoded(f"JPEG of {header.bits} bits: save it as one of 8 bits")
    if is_bomb(header.width, header.height, data):
        raise Image.DecompressionBombError
    end, is_whole = jpeg.find_end(data, header)
    if end == header.scans:
        raise NotDecoded(_TRUNCATED.format(0))
    scans = header.segments + data[header.scans : end]
    scale = _scale(header, at_least)
    with reserve(_cost(header, scale, _PILLOW_COST)):
        image = _draft(scans + jpeg.END, scale)
        last = image.crop((image.width - 1, image.height - 1, *image.size)).tobytes()
        if not is_whole or {*last} in _FILL:
            _check_rows(image, scans, scale)
        return _finished(image, header.orientation)


def _check_rows(image: Image.Image, scans: bytes, scale: int) -> None:
    """Raise NotDecoded where rows come out otherwise with other bits behind the scans."""
    values = np.asarray(image)
    differs = np.zeros(image.height, bool)
    for pad in _PADS:
        other = np.asarray(_draft(scans + pad + jpeg.END, scale))
        differs |= (values != other).reshape(image.height, -1).any(axis=1)
    if differs.any():
        raise NotDecoded(_TRUNCATED.format(100 * int(differs.argmax()) // image.height))


def _draft(data: bytes, scale: int) -> Image.Image:
    """Decode a JPEG at a fraction of its size."""
    with JpegImageFile(io.BytesIO(data)) as image:
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return image


def _decode_png(data: bytes) -> Image.Image:
    chunks = png.read_chunks(data)
    if chunks is None:
        raise NotDecoded("damaged: a PNG without a header")
    with _loaded(chunks.data, ("PNG",)) as image:
        if chunks.transparent:
            mask = _is_transparent(image, chunks)
            values = np.asarray(to_rgb(image)).copy()
            values[mask] = 255
            return _finished(Image.fromarray(values), chunks.orientation)
        return _finished(image, chunks.orientation)


def _is_transparent(image: Image.Image, chunks: png.Png) -> npt.NDArray[np.bool_]:
    """Tell of each pixel (H, W) whether it is of the colour that a PNG makes transparent."""
    top = 2**chunks.depth - 1
    key = np.asarray(chunks.transparent) & top
    values = np.asarray(image)
    if chunks.depth < 16:
        key = key * 255 // top
        values = values * np.uint8(255) if image.mode == "1" else values
    elif image.mode == "RGB":  # Pillow has dropped half of the bits
        if not (cv2 := _opencv()):
            raise NotDecoded("PNG of 48 bits with a transparent colour: save it with 8 bits each")
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
        values = cv2.imdecode(np.frombuffer(png.with_end(chunks.data), np.uint8), how)
        if values is None:
            raise NotDecoded("damaged: a PNG of 48 bits whose pixels or checksums are wrong")
    return np.all(values.reshape(*values.shape[:2], -1) == key, axis=2)


def _decode_tiff(data: bytes) -> Image.Image:
    first = tiff.read_directory(data)
    with _loaded(first.data, ("TIFF",)) as image:
        if first.has_doubtful_alpha:
            image = without_empty_alpha(image)
        white = 2**first.depth - 1
        if first.is_negative:
            image = Image.fromarray(white - np.asarray(image))
        if first.is_swapped:
            image = Image.fromarray(np.asarray(image).byteswap())
        return _finished(image, first.orientation, white if first.depth in (12, 16) else None)


def _decode_bitmap(data: bytes, header: bmp.Header) -> Image.Image:
    if is_bomb(header.width, header.height, data):
        raise Image.DecompressionBombError
    with reserve(_PILLOW_COST * header.width * header.height):
        return _finished(without_empty_alpha(Image.fromarray(bmp.decode(data, header))))


def _finished(image: Image.Image, orientation: int = 1, white: int | None = None) -> Image.Image:
    """Return a picture as RGB, upright, of MAX_PIXELS at most."""
    rgb = to_rgb(image, white)
    if rgb.width * rgb.height > MAX_PIXELS:
        rgb = rgb.reduce(2)
    if orientation in _TURNS:
        return rgb.transpose(_TURNS[orientation])
    return rgb.copy() if rgb is image else rgb
