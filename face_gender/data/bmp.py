"""Windows bitmaps without compression, of every header, depth and mask of bits.

Pillow reads the masks of some writers alone, and takes the indices of a black-and-white palette of
4 or 8 bits for pixels of one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from face_gender.data.tiff import NotDecoded

SIGNATURE = b"BM"
_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_OS2, _OS2_SECOND, _WITH_ALPHA = 12, 64, 56  # lengths of headers
_BITS = (1, 2, 4, 8, 16, 24, 32)
_PLAIN, _MASKS = 0, 3
_DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}


class Header(NamedTuple):
    """What a bitmap's header says."""

    width: int
    height: int
    is_top_down: bool
    bits: int  # of a pixel: 1, 2, 4, 8, 16, 24 or 32
    masks: tuple[int, ...]  # of red, green, blue and, where there is one, alpha
    palette: npt.NDArray[np.uint8]  # (colours, 3)
    start: int  # of the pixels


def read_header(data: bytes) -> Header | None:
    """Read the header; None: of another kind, or its pixels are compressed. Raises NotDecoded."""
    start, length = struct.unpack_from("<II", data, 10)
    compression = colours = 0
    if length == _OS2:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif length in _HEADERS:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        (colours,) = struct.unpack_from("<I", data, 46)
    if length in _HEADERS and min(width, abs(height)) <= 0:
        raise NotDecoded("damaged: a bitmap without pixels")
    if length not in _HEADERS or compression not in (_PLAIN, _MASKS) or bits not in _BITS:
        return None
    if compression == _MASKS and length == _OS2_SECOND:  # there, it is Huffman coding
        return None
    masks = _DEFAULT_MASKS.get(bits, ())
    if compression == _MASKS:
        stored = struct.unpack_from("<4I" if length >= _WITH_ALPHA else "<3I", data, 54)
        masks = tuple(stored[: 3 + any(stored[3:])]) if any(stored[:3]) else masks
    each, at = 3 if length == _OS2 else 4, 14 + length
    count = min(colours or 2**bits, 2**bits) if bits <= 8 else 0
    count = min(count, max(0, start - at) // each)
    palette = np.frombuffer(data, np.uint8, count * each, at).reshape(count, each)[:, 2::-1]
    return Header(width, abs(height), height < 0, bits, masks, palette, start)


def decode(data: bytes, header: Header) -> npt.NDArray[np.uint8]:
    """Return the pixels, (height, width, 3), or 4 with alpha; NotDecoded where some are missing."""
    width, height = header.width, header.height
    stride = (width * header.bits + 31) // 32 * 4
    if (there := max(0, len(data) - header.start)) < stride * height:
        raise NotDecoded(f"truncated: {100 * there // (stride * height)} % of its rows are there")
    rows = np.frombuffer(data, np.uint8, stride * height, header.start).reshape(height, stride)
    rows = rows if header.is_top_down else rows[::-1]
    if header.bits == 24:
        return rows[:, : 3 * width].reshape(height, width, 3)[..., ::-1]
    if header.bits > 8:
        values = np.ascontiguousarray(rows).view(f"<u{header.bits // 8}")[:, :width]
        return np.stack([_scaled(values, mask) for mask in header.masks], axis=-1)
    if header.bits == 8:
        indices = rows[:, :width]
    else:
        bits = np.unpackbits(rows, axis=1)[:, : width * header.bits].reshape(height, width, -1)
        indices = bits @ (1 << np.arange(header.bits, dtype=np.uint8)[::-1])
    palette = np.zeros((2**header.bits, 3), np.uint8)  # an index beyond it is black
    palette[: len(header.palette)] = header.palette
    return palette[indices]


def _scaled(values: npt.NDArray[np.unsignedinteger], mask: int) -> npt.NDArray[np.uint8]:
    """Return the bits under a mask as 0..255."""
    return np.round((values & mask) * (255.0 / max(1, mask))).astype(np.uint8)
