"""Writers of picture files that Pillow cannot write: odd depths, layouts, masks and chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Pixels = Any  # an array (H, W) or (H, W, samples)


def packed(rows: Pixels, bits: int) -> list[bytes]:
    """Pack each row's values of ``bits`` bits, the highest bit first."""
    flat = np.asarray(rows).astype(np.uint64).reshape(len(rows), -1)
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    planes = (flat[..., None] >> shifts & np.uint64(1)).astype(np.uint8)
    return [np.packbits(row).tobytes() for row in planes.reshape(len(rows), -1)]


def tiff(
    pixels: Pixels,
    photometric: int,
    bits: int,
    order: str = "<",
    planes: int = 1,
    packing: int = 1,
    rows: int = 4,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """Write a TIFF of strips; packing 1 is none and 8 deflate, ``tags`` hold 16-bit values."""
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, samples = pixels.shape
    layers = [pixels] if planes == 1 else np.split(pixels, samples, axis=2)
    strips = []
    for layer in layers:
        for start in range(0, height, rows):
            strip = layer[start : start + rows]
            if bits in (8, 16, 32):
                kind = pixels.dtype.kind if pixels.dtype.kind in "fi" else "u"
                data = strip.astype(f"{order}{kind}{bits // 8}").tobytes()
            else:
                data = b"".join(packed(strip, bits))
            reverse = dict(tags or {}).get(266) == [2]
            data = zlib.compress(data) if packing == 8 else data
            strips.append(bytes(int(f"{b:08b}"[::-1], 2) for b in data) if reverse else data)
    fields: dict[int, tuple[str, Sequence[int]]] = {
        **{256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * samples)},
        **{259: ("H", [packing]), 262: ("H", [photometric]), 277: ("H", [samples])},
        **{278: ("I", [rows]), 279: ("I", [*map(len, strips)]), 284: ("H", [planes])},
        **{tag: ("H", values) for tag, values in (tags or {}).items()},
    }
    places = 8 + np.cumsum([0, *map(len, strips)])[:-1]
    fields[273] = ("I", [*map(int, places)])
    body = b"".join(strips)
    entries, tail, end = b"", b"", 8 + len(body) + 2 + 12 * len(fields) + 4
    for tag, (code, values) in sorted(fields.items()):
        stored = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(stored) > 4:
            tail, stored = tail + stored, struct.pack(f"{order}I", end + len(tail))
        kind = {"H": 3, "I": 4}[code]
        entries += struct.pack(f"{order}HHI4s", tag, kind, len(values), stored.ljust(4, b"\0"))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(f"{order}H", len(fields))
    head = magic + struct.pack(f"{order}I", 8 + len(body))
    return head + body + count + entries + bytes(4) + tail


def tiff_of_jpeg(jpeg: bytes, width: int, height: int) -> bytes:
    """Put a JPEG file of 4:4:4 into a TIFF as compression 6 did, which version 6.0 gave up."""
    fields = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 6), (262, 3, 6)]
    fields += [(273, 4, 0), (277, 3, 3), (278, 4, height), (279, 4, len(jpeg))]
    fields += [(513, 4, 0), (514, 4, len(jpeg)), (530, 3, 1 | 1 << 16)]
    start = 8 + 2 + 12 * len(fields) + 4
    out = b"II*\0" + struct.pack("<IH", 8, len(fields))
    for tag, kind, value in fields:
        count = 2 if tag == 530 else 1
        out += struct.pack("<HHII", tag, kind, count, start if tag in (273, 513) else value)
    return out + bytes(4) + jpeg


def bmp(
    rows: Sequence[bytes],
    width: int,
    bits: int,
    header: int = 40,
    masks: Sequence[int] = (),
    palette: Sequence[Sequence[int]] = (),
    colours: int = 0,
    top_down: bool = False,
    compression: int | None = None,
) -> bytes:
    """Write a bitmap of a header of 12 to 124 bytes; rows come top first."""
    body = b"".join(row + bytes(-len(row) % 4) for row in (rows if top_down else rows[::-1]))
    compression = (3 if masks else 0) if compression is None else compression
    colour_table = b"".join(bytes(each[::-1]) + bytes(header > 12) for each in palette)
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, len(rows), 1, bits)
    else:
        height = -len(rows) if top_down else len(rows)
        head = struct.pack("<IiiHHI", header, width, height, 1, bits, compression)
        head += struct.pack("<IiiII", len(body), 2835, 2835, colours, 0)
        head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    start = 14 + len(head) + len(colour_table)
    return b"BM" + struct.pack("<III", start + len(body), 0, start) + head + colour_table + body


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    pixels: Pixels,
    colour: int,
    depth: int,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Write a PNG with chunks before and after the pixels."""
    pixels = np.asarray(pixels)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    passes = [*passes, (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]
    parts = [pixels[y::down, x::across] for y, x, down, across in passes]
    raw = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, depth))
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = before + chunk(b"IDAT", zlib.compress(raw)) + after
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def announcing_png(width: int, height: int) -> bytes:
    """Write a PNG of some 60 bytes that says that it is of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def segment(marker: int, content: bytes) -> bytes:
    """Write a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
