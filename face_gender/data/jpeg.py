"""The segments of a JPEG file (ITU T.81, annex B): what a decoder needs of it, and no more."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from PIL import ExifTags, Image

SIGNATURE = b"\xff\xd8\xff"
END = b"\xff\xd9"

_SOF, _SOS, _EOI, _TEM = 0xC0, 0xDA, 0xD9, 0x01
_RESTARTS = range(0xD0, 0xD8)
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among the numbers of frame headers: tables, and a reserved one
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # Huffman, arithmetic, quantisation, restart interval
_APPS = range(0xE0, 0xF0)
_APP1, _COM = 0xE1, 0xFE
# They tell how colours are stored, if they are long enough. All other metadata can do harm only.
_COLOUR = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff]")
# What ends a scan: neither an escaped 0xFF nor one of the restarts inside it.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# More zeros than that at the end of a file without end marker are a transfer's, not the picture's.
_ZEROS_OF_SCAN = 2
# Every file has less, and one that is made to take time is given up.
_MOST_MARKERS = 1 << 16


class Header(NamedTuple):
    """What stands before the first scan of a JPEG file."""

    width: int
    height: int
    components: int
    bits: int
    is_progressive: bool
    # Of the EXIF block, 1 to 8. That in XMP is not followed: viewers do not.
    orientation: int
    # Every segment is one that all decoders read alike.
    is_tidy: bool
    # The frame and the tables, from the start of the file to the first scan.
    segments: bytes
    scans: int  # where they begin


def read_header(data: bytes) -> Header | None:
    """Read the segments up to the first scan; None: there is no scan, or no frame before it."""
    kept, exif, frame, at, is_tidy = [data[:2]], b"", None, 2, True
    for _ in range(_MOST_MARKERS):
        if not (found := _NEXT_MARKER.search(data, at)):
            break
        marker, start = data[found.end() - 1], found.start()
        is_tidy &= start == at
        at = found.end()
        if marker in _RESTARTS or marker == _TEM:
            is_tidy = False
            continue
        body = _body(data, at)
        if marker == _EOI or body is None:
            return None
        if marker == _SOS:
            return _header(*frame, exif, is_tidy, b"".join(kept), start) if frame else None
        at += 2 + len(body)
        colour, shortest = _COLOUR.get(marker, (b"", 0))
        if marker == _APP1 and not exif and body.startswith(b"Exif\0"):
            exif = body
        elif marker in _APPS and not (colour and body.startswith(colour)):
            pass
        elif len(body) < shortest:
            is_tidy = False
        elif marker in _COLOUR or marker in _TABLES or _SOF <= marker < 0xD0:
            kept.append(data[start:at])
            if marker not in _NO_FRAME and _SOF <= marker < 0xD0:
                frame = marker, body
        else:
            is_tidy &= marker == _COM
    return None


def _body(data: bytes, at: int) -> bytes | None:
    """Return what a segment holds whose length stands at a place; None: it is cut off."""
    length = int.from_bytes(data[at : at + 2], "big")
    return data[at + 2 : at + length] if 2 <= length <= len(data) - at else None


def _header(
    marker: int, frame: bytes, exif: bytes, is_tidy: bool, segments: bytes, scans: int
) -> Header | None:
    if len(frame) < 6:
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", frame)
    progressive = marker in (0xC2, 0xCA)
    is_tidy &= marker <= 0xC2
    turn = exif_orientation(exif)
    return Header(width, height, components, bits, progressive, turn, is_tidy, segments, scans)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 where there is none or it is damaged."""
    if b"\x12\x01" not in exif and b"\x01\x12" not in exif:  # the tag, in either order of bytes
        return 1
    block = Image.Exif()
    try:
        block.load(exif)
        value = block.get(ExifTags.Base.Orientation)
    except Exception:  # a damaged block raises anything; the pixels are still good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def find_end(data: bytes, header: Header) -> tuple[int, bool]:
    """Return where the last scan ends, and whether every row is known to be there.

    It is where an end marker follows, and where scans before the last one hold all coefficients:
    a progressive file without its last scans is coarse, and viewers show it. Motion photographs
    and panoramas carry other data behind the picture, some without a marker between; of a broken
    transfer the marker is missing, or zeros stand in place of the rest. Where whole scans are
    missing, so are all rows, and the scans end before the first one.
    """
    at, end = header.scans, 0
    seen: set[tuple[int, int]] = set()  # coefficients, each of a component
    current: set[tuple[int, int]] = set()
    for _ in range(_MOST_MARKERS):
        if not (found := _AFTER_SCAN.search(data, at)):
            break
        marker, start, at = data[found.end() - 1], found.start(), found.end()
        if marker == 0xFF:  # a marker may be preceded by any number of them
            at -= 1
            continue
        end = end or start
        body = _body(data, at)
        if marker == _EOI:
            return end, True
        if body is None or not (marker in _TABLES or marker in _APPS or marker in (_SOS, _COM)):
            break
        at += 2 + len(body)
        if marker == _SOS and len(body) >= 6:
            seen, end = seen | current, 0
            coefficients = range(body[-3], body[-2] + 1)
            current = {(component, each) for component in body[1:-3:2][:4] for each in coefficients}
    all_of_them = 64 * header.components
    if len(seen) >= all_of_them:
        return end or len(data), True
    if len(seen | current) < all_of_them:
        return header.scans, False
    return end or len(_without_filling(data)), False


def _without_filling(data: bytes) -> bytes:
    rest = data.rstrip(b"\xff")  # the first byte of an end marker
    bare = rest.rstrip(b"\0")
    return rest[: len(bare) + _ZEROS_OF_SCAN]
