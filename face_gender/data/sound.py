"""JPEG and PNG files that are whole by their structure, told without decoding a pixel.

Decoding is most of the time that indexing a data set would take. What is not plainly sound here
is not bad: it takes a decoder to tell. Rules are those by which libjpeg and Pillow refuse a file."""

from __future__ import annotations

import re
import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

_SEGMENT = struct.Struct(">BBH")
_SOF = (0xC0, 0xC1, 0xC2)
_PROGRESSIVE = 0xC2
_DHT, _DQT, _DRI, _SOS, _EOI, _COM = 0xC4, 0xDB, 0xDD, 0xDA, 0xD9, 0xFE
_APPS = range(0xE0, 0xF0)
# A marker that ends a scan: neither an escaped 0xFF nor one of the restarts inside it.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# Metadata that Pillow reads on opening: how it starts, and how long it must be.
METADATA = {0xE0: (b"JFIF", 14), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}
_PARSED_METADATA = (b"MPF\0", b"Photoshop 3.0\0")
_MOST_BLOCKS = 10  # of all components in one unit of an interleaved scan

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_PALETTE = 3
_PNG_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
_PNG_LONGEST_TEXT = 65_535


class _OddError(Exception):
    """Something that it takes a decoder to judge."""


def sound_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a JPEG or PNG file whose structure is sound, else None.

    JPEG: baseline or progressive, 8 bits, grey or of three components, every segment and table
    well-formed, every scan with the tables that it uses, an EOI at the end. PNG: every checksum
    right, from IHDR to IEND. Zeros may follow. The pixels themselves are not looked at, so a
    damage among them may pass; None says that the file is of another format, rare or damaged.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg_size(data)
        if data.startswith(_PNG_SIGNATURE):
            return _png_size(data)
    except (_OddError, IndexError, struct.error):  # the latter two: read over the end
        return None
    return None


def _require(sound: bool) -> None:
    if not sound:
        raise _OddError


class _Frame(NamedTuple):
    """What a frame header announces."""

    width: int
    height: int
    is_progressive: bool
    # Of each component by its id: blocks across, blocks down, quantisation table.
    components: dict[int, tuple[int, int, int]]


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments from SOI to EOI."""
    frame: _Frame | None = None
    frame_key = (0, b"")
    quantisers = huffman = 0
    seen: set[int] = set()
    at = 2
    while True:
        prefix, marker, length = _SEGMENT.unpack_from(data, at)
        end = at + 2 + length
        _require(prefix == 0xFF and length >= 2 and end <= len(data))
        body = data[at + 4 : end]
        at = end
        if marker in _APPS or marker == _COM:
            start, shortest = METADATA.get(marker, (b"", 0))
            _require(not body.startswith(start) or len(body) >= shortest)
            _require(not body.startswith(_PARSED_METADATA))
        elif marker == _DQT:
            quantisers |= _quantisers(body)
        elif marker == _DHT:
            huffman |= _huffman_tables(body)
        elif marker == _DRI:
            _require(len(body) == 2)
        elif marker in _SOF and frame is None:
            frame_key = (marker, body)
            frame = _frame(marker, body)
        elif marker == _SOS and frame is not None:
            seen |= _scan(*frame_key, body, quantisers, huffman)
            found = _AFTER_SCAN.search(data, end)
            _require(found is not None and found.start() > end)
            at = found.start() if found else end
            if data[at + 1] == _EOI:
                _require(seen == frame.components.keys() and not data[at + 2 :].strip(b"\0"))
                return frame.width, frame.height
        else:
            raise _OddError


# Of the tables and headers below, most encoders write the same into every file.


@lru_cache(maxsize=64)
def _frame(marker: int, body: bytes) -> _Frame:
    """Read a frame header."""
    depth, height, width, count = struct.unpack_from(">BHHB", body)
    _require(depth == 8 and height > 0 and width > 0 and count in (1, 3))
    _require(len(body) == 6 + 3 * count)
    components = {
        body[i]: (body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in range(6, len(body), 3)
    }
    _require(len(components) == count)
    for direction in (0, 1):
        sampling = [component[direction] for component in components.values()]
        _require(all(1 <= each <= 4 and max(sampling) % each == 0 for each in sampling))
    return _Frame(width, height, marker == _PROGRESSIVE, components)


@lru_cache(maxsize=64)
def _scan(
    marker: int, frame_body: bytes, body: bytes, quantisers: int, huffman: int
) -> frozenset[int]:
    """Check a scan's header against its frame and the tables so far, a bit for each.

    Return the ids of the components that the scan begins.
    """
    frame = _frame(marker, frame_body)
    count = body[0]
    _require(1 <= count <= len(frame.components) and len(body) == 4 + 2 * count)
    first, last, high, low = body[-3], body[-2], body[-1] >> 4, body[-1] & 15
    if frame.is_progressive:
        _require(last == 0 if first == 0 else first <= last <= 63 and count == 1)
        _require(low <= 13 and (high == 0 or low == high - 1))
    else:
        _require((first, last, high, low) == (0, 63, 0, 0))
    ids = frozenset(body[1:-3:2])
    _require(len(ids) == count and ids <= frame.components.keys())
    blocks = 0
    for each, tables in zip(body[1:-3:2], body[2:-3:2], strict=True):
        across, down, quantiser = frame.components[each]
        blocks += across * down
        _require(quantisers >> quantiser & 1 == 1)
        if first == 0 and high == 0:
            _require(huffman >> (tables >> 4) & 1 == 1)
        if first > 0 or not frame.is_progressive:
            _require(huffman >> (tables & 15 | 16) & 1 == 1)
    _require(count == 1 or blocks <= _MOST_BLOCKS)
    return ids if first == 0 else frozenset()


@lru_cache(maxsize=64)
def _quantisers(body: bytes) -> int:
    """Return the quantisation tables that a DQT segment defines, a bit for each."""
    found = at = 0
    while at < len(body):
        _require(body[at] >> 4 <= 1 and body[at] & 15 <= 3)
        found |= 1 << (body[at] & 15)
        at += 129 if body[at] >> 4 else 65
    _require(at == len(body))
    return found


@lru_cache(maxsize=64)
def _huffman_tables(body: bytes) -> int:
    """Return the Huffman tables that a DHT segment defines, a bit for each, AC from bit 16 on."""
    found = at = 0
    while at < len(body):
        number, counts = body[at], body[at + 1 : at + 17]
        symbols = body[at + 17 : at + 17 + sum(counts)]
        _require(number & 15 <= 3 and number >> 4 <= 1 and 1 <= sum(counts) <= 256)
        _require(len(counts) == 16 and len(symbols) == sum(counts))
        _require(number >= 16 or max(symbols) <= 15)
        code = 0
        for length, count in enumerate(counts, start=1):
            code += count
            _require(code < 1 << length)  # a code of ones alone is reserved
            code <<= 1
        found |= 1 << number
        at += 17 + len(symbols)
    return found


def _png_size(data: bytes) -> tuple[int, int]:
    """Walk the chunks from IHDR to IEND."""
    view = memoryview(data)
    at, before, kinds = len(_PNG_SIGNATURE), b"", set()
    width = height = colour = 0
    while before != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        _require(zlib.crc32(view[at + 4 : end]) == checksum)
        _require((kind == b"IHDR") == (before == b""))
        if kind == b"IHDR":
            _require(length == 13)
            width, height, depth, colour, *rest = struct.unpack_from(">IIBBBBB", data, at + 8)
            _require(width > 0 and height > 0 and depth in _PNG_DEPTHS.get(colour, ()))
            _require(rest in ([0, 0, 0], [0, 0, 1]))
        elif kind == b"PLTE":
            _require(b"IDAT" not in kinds and 0 < length <= 768 and length % 3 == 0)
        elif kind == b"IDAT":
            _require(length > 0 and (before == b"IDAT" or b"IDAT" not in kinds))
        elif kind == b"tEXt":
            _require(length <= _PNG_LONGEST_TEXT)
        elif kind != b"IEND":
            _require(length == _PNG_LENGTHS.get(kind))
        kinds.add(kind)
        at, before = end + 4, kind
    _require(b"IDAT" in kinds and (colour != _PNG_PALETTE or b"PLTE" in kinds))
    _require(not data[at:].strip(b"\0"))
    return width, height
