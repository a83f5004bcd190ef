"""The directory of a TIFF file (TIFF 6.0): what a decoder needs of it, and no more."""

from __future__ import annotations

import struct
import sys
from typing import Any, NamedTuple

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _PLANES, _COLOUR_MAP, _INK_SET, _EXTRA, _FORMAT = 277, 284, 320, 332, 338, 339
_FILL_ORDER = 266
# Tags of the pixels, of JPEG and of YCbCr among them; all others are metadata.
_KEPT = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, 273, _SAMPLES, 278, 279}
_KEPT |= {_PLANES, 292, 293, 317, _COLOUR_MAP, *range(322, 326), _EXTRA, _FORMAT, 347}
_KEPT |= {*range(512, 522), *range(529, 533)}
_SHORT = 3
_MOST_VALUES = 3 << 16  # of a tag that is read: a palette of 16 bits
_CODES = {1: "B", _SHORT: "H", 4: "I", 16: "Q"}  # field types that hold whole numbers

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_UNSPECIFIED, _ALPHA = 0, 2  # what a further sample is; 1: the colours are multiplied by it
_CCITT, _OLD_JPEG = (2, 3, 4), 6
_DEPTHS = {_RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _CMYK: (8, 16), _YCBCR: (8,), _LAB: (8,)}
_COLOURS = {_RGB: 3, _CMYK: 4, _YCBCR: 3, _LAB: 3}  # samples of a colour, 1 where not named


class NotDecoded(Exception):  # noqa: N818 - a name like UnreadableImage's
    """A file is known for what it is, and its pixels are refused; the message is the reason."""


class Tiff(NamedTuple):
    """A TIFF file's first picture, with the tags of its pixels alone."""

    depth: int  # bits of a sample
    is_negative: bool  # white is 0 there, and is not for a decoder of ``data``
    is_swapped: bool  # Pillow takes libtiff's 32-bit values for those of the file, big-endian
    has_doubtful_alpha: bool  # the file does not say that the fourth sample is that
    orientation: int  # 1 to 8
    data: bytes


class _Directory:
    """The entries of a file's first directory, as they are stored."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data.startswith(b"II") else ">"
        is_big = data[2:4] in (b"+\0", b"\0+")
        # How a place in the file, a number of entries, and an entry are stored.
        self.place, self.count, self.entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
        (start,) = self.read(self.place, 8 if is_big else 4)
        (length,) = self.read(self.count, start)
        at, size = start + struct.calcsize(self.count), struct.calcsize(f"<{self.entry}")
        entries = [self.read(self.entry, at + size * i) for i in range(min(length, 4096))]
        self.entries: dict[int, tuple[int, int, int, bytes]] = {
            tag: (tag, kind, count, stored) for tag, kind, count, stored in reversed(entries)
        }

    def read(self, code: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(self.order + code, self.data, at)

    def values(self, tag: int, *default: int) -> tuple[int, ...]:
        """Return the whole numbers of a tag."""
        if tag not in self.entries:
            return default
        _, kind, count, stored = self.entries[tag]
        if count > _MOST_VALUES:
            raise ValueError("a tag of the pixels has not so many values")
        code = f"{count}{_CODES.get(kind, 'x')}"
        if struct.calcsize(f"<{code}") <= len(stored):
            return struct.unpack_from(self.order + code, stored)
        return self.read(code, *struct.unpack(self.order + self.place, stored))

    def set(self, tag: int, *values: int) -> None:
        """Give a tag 16-bit values, behind the end of the file where they are many."""
        stored = struct.pack(f"{self.order}{len(values)}H", *values)
        width = struct.calcsize(f"<{self.place}")
        if len(stored) > width:
            place = len(self.data)
            self.data += stored
            stored = struct.pack(self.order + self.place, place)
        self.entries[tag] = (tag, _SHORT, len(values), stored.ljust(width, b"\0"))

    def written(self) -> bytes:
        """Return the file with a directory of the pixels' tags alone, at its end."""
        self.data += bytes(len(self.data) % 2)
        start = struct.pack(self.order + self.place, len(self.data))
        at = len(start)  # where the place of the directory stands: after 4 bytes, or 8
        entries = [self.entries[tag] for tag in sorted(self.entries.keys() & _KEPT)]
        return b"".join(
            (
                *(self.data[:at], start, self.data[2 * at :]),
                struct.pack(self.order + self.count, len(entries)),
                *(struct.pack(self.order + self.entry, *each) for each in entries),
                bytes(at),
            )
        )


def read_directory(data: bytes) -> Tiff:
    """Return a file's first picture so that a decoder meets the tags of its pixels alone.

    Raises NotDecoded for pixels that viewers do not agree on or decoders get wrong.
    """
    try:
        return _read_directory(data)
    except (struct.error, OverflowError, ValueError) as error:
        raise NotDecoded("damaged: a TIFF whose directory is cut off or odd") from error


def _read_directory(data: bytes) -> Tiff:
    directory = _Directory(data)
    photometric, depth, alpha = _layout(directory)
    is_doubtful = alpha == _UNSPECIFIED
    if is_doubtful:
        directory.set(_EXTRA, _ALPHA, *directory.values(_EXTRA)[1:])
    colours = directory.values(_COLOUR_MAP) if photometric == _PALETTE else ()
    if colours and max(colours) <= 255:  # as of an 8-bit palette; all viewers take them so
        directory.set(_COLOUR_MAP, *(257 * value for value in colours))
    is_negative = photometric == _WHITE_IS_ZERO and depth > 8
    directory.set(_PHOTOMETRIC, _BLACK_IS_ZERO if is_negative else photometric)
    (orientation,) = directory.values(_ORIENTATION, 1)[:1]
    is_swapped = depth == 32 and directory.order == ">" and sys.byteorder == "little"
    return Tiff(depth, is_negative, is_swapped, is_doubtful, orientation, directory.written())


def _layout(directory: _Directory) -> tuple[int, int, int | None]:
    """Return photometric interpretation, bits of a sample, and what the first extra sample is."""
    (compression,) = directory.values(_COMPRESSION, 1)
    depths = directory.values(_BITS, 1)
    (samples,) = directory.values(_SAMPLES, len(depths))
    depths = depths[:samples]
    if _PHOTOMETRIC in directory.entries:
        (photometric,) = directory.values(_PHOTOMETRIC)
    elif samples >= 3:
        photometric = _YCBCR if compression == _OLD_JPEG else _RGB
    else:
        photometric = _WHITE_IS_ZERO if compression in _CCITT else _BLACK_IS_ZERO
    formats = {*directory.values(_FORMAT, _UNSIGNED)} - {4}  # 4: not said
    kind = max(formats, default=_UNSIGNED)
    colours = _COLOURS.get(photometric, 1)
    extra = directory.values(_EXTRA)[: samples - colours]
    if photometric == _RGB and samples == 4:
        extra = extra or (_UNSPECIFIED,)
    planes, fill_order = directory.values(_PLANES, 1)[:1], directory.values(_FILL_ORDER, 1)[:1]
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        depths_known = {
            (_UNSIGNED, 1): (1, 2, 4, 8, 16, *([12] if directory.order == "<" else [])),
            (_UNSIGNED, 2): (8,) if photometric == _BLACK_IS_ZERO and planes == (1,) else (),
            (_SIGNED, 1): (32,) if photometric == _BLACK_IS_ZERO else (),
            (_FLOAT, 1): (32,) if photometric == _BLACK_IS_ZERO else (),
        }.get((kind, samples), ())
    else:
        depths_known = _DEPTHS.get(photometric, ()) if kind == _UNSIGNED else ()
        if photometric == _PALETTE and extra:
            depths_known = (8,) if planes == (1,) else ()
    is_known = (
        {*depths} <= {*depths_known}
        and len({*depths}) == 1
        and len(formats) <= 1
        and samples == colours + len(extra)
        and len(extra) <= (photometric <= _PALETTE)
        and directory.values(_INK_SET, 1) == (1,)
        and (fill_order == (1,) or depths[0] <= 8 or (directory.order == "<" and samples == 1))
    )
    if not is_known:
        raise NotDecoded(
            f"TIFF of {samples} x {depths[0]} bits, sample format {kind}, photometric "
            f"interpretation {photometric}: not decoded as viewers do, save it as PNG"
        )
    return photometric, depths[0], extra[0] if extra else None
