"""The chunks of a PNG file (W3C, third edition): what a decoder needs of it, and no more."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from face_gender.data.jpeg import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_TRANSPARENT_COLOUR = {0: 1, 2: 3}  # colour type -> samples: a colour that is transparent
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_END = b"\0\0\0\0IEND\xaeB`\x82"


class Png(NamedTuple):
    """A PNG file's chunks of pixels, without the metadata, which no decoder can stumble over."""

    depth: int  # bits of a sample
    transparent: tuple[int, ...]  # the samples of the colour that is; () where none is
    orientation: int  # 1 to 8, of the EXIF block
    data: bytes


def read_chunks(data: bytes) -> Png | None:
    """Return a file's pixels; None: it does not begin as a PNG does.

    Of other chunks than those of the pixels, only transparency and orientation matter, where
    their checksums are right: so do viewers. What follows a broken or cut-off chunk is left as it
    is, for the decoder to judge.
    """
    if data[8:16] != b"\0\0\0\rIHDR" or len(data) < 33:
        return None
    depth, colour = data[24], data[25]
    view, kept, at = memoryview(data), bytearray(SIGNATURE), 8
    transparent: tuple[int, ...] = ()
    orientation, palette = 1, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if not kind.isalpha():
            kept += view[at:]
            break
        if end > len(data):  # cut off: what is left may be all that is needed
            body = data[at + 8 :]
            kept += struct.pack(">I", len(body)) + kind + body if kind in _PIXELS else b""
        elif kind in _PIXELS:
            kept += view[at:end]
            palette = length if kind == b"PLTE" else palette
        elif kind in (b"tRNS", b"eXIf") and _is_sound(data, at, end):
            body = data[at + 8 : end - 4]
            if kind == b"eXIf":
                orientation = exif_orientation(b"Exif\0\0" + body)
            elif colour == _PALETTE and 3 * length <= palette:  # longer, libpng passes over it
                kept += view[at:end]
            elif colour in _TRANSPARENT_COLOUR and length >= 2 * (
                samples := _TRANSPARENT_COLOUR[colour]
            ):
                transparent = struct.unpack_from(f">{samples}H", body)
        at = end
    return Png(depth, transparent, orientation, bytes(kept))


def with_end(chunks: bytes) -> bytes:
    """Return chunks with a whole last one, without which OpenCV reads nothing."""
    before, found, _ = chunks.rpartition(b"IEND")
    return (before[:-4] if found else chunks) + _END


def _is_sound(data: bytes, at: int, end: int) -> bool:
    return data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
