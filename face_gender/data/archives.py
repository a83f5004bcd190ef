"""The members of a .zip archive, by name -> bytes: zipfile reads them, within limits."""

from __future__ import annotations

import bz2
import copy
import lzma
import os
import re
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from face_gender.data.base_source import (
    REPLACED,
    BaseSource,
    ReadError,
    is_outside,
    passed_over_as,
    to_nfc,
)
from face_gender.errors import InputError
from face_gender.files import MAX_BYTES, check_size

# A member of over 64 MiB that is packed smaller than this is no photograph.
MOST_PACKED = (2**26, 100)
# What unpacking LZMA may take; its dictionary may be announced as 4 GB.
_LZMA_MEMORY = 2**28
# Flags of an encrypted member: its bytes, strongly, the directory too.
_ENCRYPTED = 0b10_0000_0100_0001
_UTF8_FLAG = 0x800


class ArchiveSource(BaseSource):
    """The members of a .zip archive, read in place. Safe to use in threads and loader workers.

    ``top``: a folder in the archive, with a slash at its end, that names are relative to. The
    directory is read here, and copies in other processes keep to it: what an archive that was
    replaced since holds instead is never taken for a member. Nothing is unpacked into a file;
    members whose names are absolute or lead upwards go into ``unlisted``, since results are
    written by name. Of members of one name, the last counts, as for every unpacker.
    """

    def __init__(
        self, path: Path, top: str = "", pause: Callable[[float], object] = time.sleep
    ) -> None:
        super().__init__(path, pause)
        self.top = top
        self._handles: dict[int, zipfile.ZipFile] = {}
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._replaced = 0
        for name, info in self._directory():
            if not name or name.endswith("/"):
                continue
            if is_outside(name):
                self.unlisted.append((name, "its name leads out of the archive"))
                continue
            if not name.startswith(top):
                continue
            self._replaced += name.removeprefix(top) in self._infos
            self._infos[name.removeprefix(top)] = info

    def _directory(self) -> list[tuple[str, zipfile.ZipInfo]]:
        try:
            infos = self._retry("", self._opened).infolist()
        except ReadError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}): try again when its drive is there."
            ) from error
        except PermissionError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}): check its permissions."
            ) from error
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"{self.path} cannot be read as a .zip archive ({error}): "
                "make or download the archive again."
            ) from error
        return list(zip(_member_names(infos), infos, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the name of every visible file member, each once; not ``recursive``: the root's.

        Hidden members and those of devices are counted in ``passed_over``.
        """
        self.passed_over = Counter({REPLACED: self._replaced} if self._replaced else {})
        for name in self._infos:
            if not recursive and "/" in name:
                continue
            if kind := passed_over_as(name):
                self.passed_over[kind] += 1
            else:
                yield name

    def read(self, name: str) -> bytes:
        """Return the bytes of one member. Raises OSError where it is missing or damaged."""
        info = self._info(name)
        method, packed, size = info.compress_type, info.compress_size, info.file_size
        if info.flag_bits & _ENCRYPTED:
            raise OSError("encrypted in the archive: unpack it with 7-Zip")
        if method not in _UNPACKED_BY:
            raise OSError(f"packed by method {method}, which is not read: unpack it with 7-Zip")
        check_size(size)
        least, ratio = MOST_PACKED
        if size > least and size > ratio * packed:
            raise OSError(f"decompression bomb: {size:,} bytes packed into {packed:,}")
        data = _unpack(self._retry(name, lambda: self._packed(info)), method, size)
        if data is None or zlib.crc32(data) != info.CRC:
            raise OSError("damaged in the archive, or changed since it was listed")
        return data

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and CRC-32, which differ for another member. Raises OSError."""
        info = self._info(name)
        return info.file_size, info.CRC

    def find(self, name: str) -> str | None:
        """Return the name by which a member is there, in whichever Unicode normal form, or None."""
        return name if name in self._infos else self._by_normal_form.get(to_nfc(name))

    @cached_property
    def _by_normal_form(self) -> dict[str, str]:
        return {to_nfc(name): name for name in self._infos if not name.isascii()}

    def _info(self, name: str) -> zipfile.ZipInfo:
        found = self.find(name)
        if found is None:
            raise OSError(f"not in {self.path.name}")
        return self._infos[found]

    def _opened(self) -> zipfile.ZipFile:
        """Return this process's handle; forked ones would share one position in the file.

        Its threads share it: zipfile locks each read, and a directory of 100,000 members for
        each of many threads would take minutes and gigabytes.
        """
        handle = self._handles.get(os.getpid())
        if handle is None:
            handle = self._handles.setdefault(os.getpid(), zipfile.ZipFile(self.path))
        return handle

    def _packed(self, info: zipfile.ZipInfo) -> bytes:
        """Return a member's bytes as they lie in the archive, fewer where something is odd."""
        raw = copy.copy(info)
        raw.compress_type, raw.file_size = zipfile.ZIP_STORED, info.compress_size
        del raw.CRC  # which is that of the bytes unpacked
        try:
            archive = self._opened()
            # Memory is taken before it is read.
            if info.compress_size > min(MAX_BYTES, os.path.getsize(self.path)):
                return b""
            with archive.open(raw) as file:
                return file.read()
        except OSError as error:
            if self.is_of_the_drive(error):  # what was opened before may be of no use after
                self._handles.pop(os.getpid(), None)
            raise
        except (zipfile.BadZipFile, EOFError, ValueError, OverflowError, NotImplementedError):
            return b""


def _unpack(packed: bytes, method: int, size: int) -> bytes | None:
    """Return a member's ``size`` bytes, None where they are fewer. Raises OSError for a bomb.

    No more is ever unpacked than announced: zipfile unpacks bzip2 and LZMA as far as they go.
    """
    try:
        data = _UNPACKED_BY[method](packed, size + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
        return None
    if len(data) > size:
        raise OSError(f"decompression bomb: over the {size:,} bytes that it announces")
    return data if len(data) == size else None


def _unlzma(packed: bytes, most: int) -> bytes:
    """Unpack what a .zip holds: a version, the length of the settings, these, and the stream."""
    start = 4 + int.from_bytes(packed[2:4], "little")
    alone = packed[4:start] + b"\xff" * 8 + packed[start:]  # a .lzma file of no known length
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, _LZMA_MEMORY).decompress(alone, most)


_UNPACKED_BY: dict[int, Callable[[bytes, int], bytes]] = {
    zipfile.ZIP_STORED: lambda packed, most: packed[:most],
    zipfile.ZIP_DEFLATED: lambda packed, most: zlib.decompressobj(-zlib.MAX_WBITS).decompress(
        packed, most
    ),
    zipfile.ZIP_BZIP2: lambda packed, most: bz2.BZ2Decompressor().decompress(packed, most),
    zipfile.ZIP_LZMA: _unlzma,
}


def _member_names(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the true names of an archive's members, with slashes.

    A name may be stored in the Unicode Path extra field (7-Zip, WinRAR), as UTF-8 with its mark,
    as UTF-8 without (zip on Linux, Finder), or in a code page without a mark: Explorer in Russian
    writes 866, which zipfile reads as 437. A few Cyrillic words in 866, such as "сад", are UTF-8
    of other letters; beside names in 866 that are no UTF-8, they are taken for Russian.
    """
    stored = [_stored_name(info) for info in infos]
    unmarked = [name for name in stored if isinstance(name, bytes)]
    is_russian = any(_utf8(name) is None and _ALL_CYRILLIC(_cp866(name)) for name in unmarked)
    names = []
    for name, info in zip(stored, infos, strict=True):
        if isinstance(name, bytes):
            text = None if is_russian and _ALL_CYRILLIC(_cp866(name)) else _utf8(name)
            name = text or _cp866(name) or info.filename
        names.append(name.replace("\\", "/"))  # which PowerShell's Compress-Archive writes
    return names


_ALL_CYRILLIC = re.compile(r"[\x00-\x7f\u0400-\u04ff]+").fullmatch


def _stored_name(info: zipfile.ZipInfo) -> str | bytes:
    """Return a member's name, or its bytes where their encoding is not marked."""
    is_marked = bool(info.flag_bits & _UTF8_FLAG)
    if info.orig_filename.isascii() and b"up" not in info.extra:
        return info.filename
    raw = info.orig_filename.encode("utf-8" if is_marked else "cp437")
    name = _unicode_path(info.extra, zlib.crc32(raw))
    return name or (info.filename if is_marked or raw.isascii() else raw.split(b"\0")[0])


def _unicode_path(extra: bytes, crc: int) -> str | None:
    """Return what the extra field 0x7075 says of a name, None where it is of another name."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 0x7075 and field[:5] == struct.pack("<BI", 1, crc):
            return _utf8(field[5:].split(b"\0")[0])
        at += 4 + length
    return None


def _utf8(raw: bytes) -> str | None:
    with suppress(UnicodeError):
        return raw.decode("utf-8")
    return None


def _cp866(raw: bytes) -> str:
    """Return what code page 866 makes of bytes, "" where words are other than Latin or Cyrillic."""
    text = raw.decode("cp866")
    words = re.findall(r"[^\W\d_]+", text)
    fits = all(word.isascii() or re.fullmatch("[\u0400-\u04ff]+", word) for word in words)
    return text if fits else ""
