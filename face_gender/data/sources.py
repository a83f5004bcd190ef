"""Where bytes come from and where they go: folders and .zip archives in, whole files out.

Needs the standard library alone, so that commands can check their arguments before anything
heavy is imported."""

from __future__ import annotations

import bz2
import lzma
import os
import re
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO, Any, Protocol

from face_gender.errors import InputError
from face_gender.files import _check_size, has_image_suffix, read_file

# What reading a member takes: its place, bytes packed and unpacked, CRC-32, method and flags.
_MEMBER = struct.Struct("<QQQIHH")
_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")  # of the archive's directory
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0b10_0000_0100_0001  # flags: the bytes, strongly, the directory too
# A member of over 64 MiB that is packed smaller than this is no photograph.
_MOST_PACKED = (2**26, 100)
# What unpacking LZMA may take; its dictionary may be announced as 4 GB.
_LZMA_MEMORY = 2**28


class FolderSource:
    """The regular files under a folder, by POSIX path relative to it. Reads only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unlisted: list[tuple[str, str]] = []
        self.passed_over: Counter[str] = Counter()

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the relative POSIX path of every file outside hidden folders, in no set order.

        Linked folders are followed, each real folder once, so that a loop of links ends. Folders
        inside that cannot be listed go into ``unlisted``, each with the reason. Raises InputError
        where the folder itself cannot be.
        """
        visited: set[str] = set()
        self.unlisted = []
        for parent, folders, files in os.walk(
            self.path, followlinks=True, onerror=self._note_unlisted
        ):
            real = os.path.realpath(parent)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            inside = Path(parent).relative_to(self.path).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            yield from (prefix + name for name in files)
            if not recursive:
                return

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError as `read_file` does.

        Also for a name that leads out of the folder, which an index from elsewhere may hold.
        Links in the folder are followed wherever they lead: who owns the folder put them there.
        """
        if is_outside(name):
            raise OSError("its name leads out of the folder")
        return read_file(os.path.join(self.path, name))

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and time of change, another pair where a file is. Raises OSError."""
        status = os.stat(os.path.join(self.path, name))
        return status.st_size, status.st_mtime_ns

    def _note_unlisted(self, error: OSError) -> None:
        folder = Path(error.filename)
        if folder == self.path:
            raise InputError(
                f"{folder} cannot be listed ({error.strerror}): check its permissions."
            ) from error
        name = folder.relative_to(self.path).as_posix()
        self.unlisted.append((f"{name}/", f"cannot be listed ({error.strerror})"))


class ArchiveSource:
    """The members of a .zip archive, read in place. Safe to use in threads and loader workers.

    ``top``: a folder in the archive, with a slash at its end, that names are relative to.
    The directory is read once, here; forked and pickled copies bring it along. It is kept as
    bytes: with an object for each member, a forked worker would copy the memory of each that it
    reads, as using an object writes into it. Nothing is ever unpacked into a file; members whose
    names are absolute or lead upwards go into ``unlisted``, since results are written by name.
    """

    def __init__(self, path: Path, top: str = "") -> None:
        self.path = path
        self.top = top
        self.passed_over: Counter[str] = Counter()
        self._reset()
        names, self._table = _read_directory(path) or self._directory_by_zipfile()
        self.unlisted = [
            (name, "its name leads out of the archive")
            for name in names
            if is_outside(name) and not name.endswith("/")
        ]
        outside = {name for name, _ in self.unlisted}
        self._places = {
            name.removeprefix(top): i
            for i, name in enumerate(names)
            if name.startswith(top) and name not in outside
        }

    def _directory_by_zipfile(self) -> tuple[list[str], bytes]:
        """Return what `_read_directory` does, of any archive. Raises InputError for no archive."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"{self.path} cannot be read as a .zip archive ({error}): "
                "make or download the archive again."
            ) from error
        table = b"".join(
            _MEMBER.pack(
                min(max(info.header_offset, 0), 2**62),  # any other place is outside the archive
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                info.flag_bits,
            )
            for info in infos
        )
        return [_member_name(info) for info in infos], table

    def _reset(self) -> None:
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_file", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the name of every file member, each once; not ``recursive``: the root's own."""
        files = (name for name in self._places if not name.endswith("/"))
        return files if recursive else (name for name in files if "/" not in name)

    def read(self, name: str) -> bytes:
        """Return the bytes of one member. Raises OSError where it is missing or damaged."""
        place = self._places.get(name)
        if place is None:
            raise OSError(f"not in {self.path.name}")
        offset, packed, size, crc, method, flags = _MEMBER.unpack_from(
            self._table, place * _MEMBER.size
        )
        if flags & _ENCRYPTED:
            raise OSError("encrypted in the archive")
        if method not in _UNPACKED_BY:
            raise OSError(f"packed by a method that is not known ({method})")
        _check_size(size)
        least, ratio = _MOST_PACKED
        if size > least and size > ratio * packed:
            raise OSError(f"decompression bomb: {size:,} bytes packed into {packed:,}")
        data = _unpack(self._packed(offset, packed), method, size)
        if data is None or zlib.crc32(data) != crc:
            raise OSError("damaged in the archive, or changed since it was listed")
        return data

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and CRC-32, another pair where a member is. Raises OSError."""
        place = self._places.get(name)
        if place is None:
            raise OSError(f"not in {self.path.name}")
        _, _, size, crc, _, _ = _MEMBER.unpack_from(self._table, place * _MEMBER.size)
        return size, crc

    def _packed(self, offset: int, size: int) -> bytes:
        """Return a member's bytes as they lie in the archive, fewer where something is odd."""
        header = self._read_at(offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            return b""
        if size > os.fstat(self._opened().fileno()).st_size:  # memory is taken before it is read
            return b""
        _, *lengths = _LOCAL_HEADER.unpack(header)
        return self._read_at(offset + _LOCAL_HEADER.size + sum(lengths), size)

    def _opened(self) -> IO[bytes]:
        """Return the archive's file: the same to all threads, as a second would close the first."""
        if self._file is None:
            with self._lock:
                if self._file is None:
                    self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - it stays open
        return self._file

    def _read_at(self, offset: int, size: int) -> bytes:
        file = self._opened()
        if hasattr(os, "pread"):  # without a position, which threads and forked workers share
            return os.pread(file.fileno(), size, offset)
        with self._lock:
            file.seek(offset)
            return file.read(size)


def _read_directory(path: Path) -> tuple[list[str], bytes] | None:
    """Return the members' names, and a `_MEMBER` record of each; None where that is for zipfile.

    zipfile makes an object of each member, and takes most of a second for 100,000. It is left
    those archives that are damaged, begin with something else, or hold names in a code page or
    members of over 4 GB.
    """
    names, records = [], []
    with suppress(OSError, ValueError, OverflowError, struct.error), open(path, "rb") as file:
        start, size = _find_directory(file)
        file.seek(start)
        directory = file.read(size)
        at = 0
        while at < size:
            mark, flags, method, crc, packed, unpacked, *lengths, offset = _ENTRY.unpack_from(
                directory, at
            )
            raw = directory[at + _ENTRY.size : at + _ENTRY.size + lengths[0]]
            if mark != b"PK\1\2" or b"\0" in raw or 2**32 - 1 in (packed, unpacked, offset):
                return None
            names.append(raw.decode("utf-8" if flags & 0x800 else "ascii").replace("\\", "/"))
            records.append(_MEMBER.pack(offset, packed, unpacked, crc, method, flags))
            at += _ENTRY.size + sum(lengths)
        return names, b"".join(records)
    return None


def _find_directory(file: IO[bytes]) -> tuple[int, int]:
    """Return where an archive's directory starts, and its length. Raises ValueError, struct.error.

    Its place stands at the archive's end: in a record that may be followed by a comment, and, of
    more than 65,535 members, in a larger record before that one.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 2**17))
    tail = file.read()
    at = tail.rindex(b"PK\5\6")
    end = length - len(tail) + at
    size, start = struct.unpack_from("<II", tail, at + 12)
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        (end,) = struct.unpack_from("<Q", tail, at - 12)
        file.seek(end)
        size, start = struct.unpack_from("<QQ", file.read(56), 40)
    if start + size != end:
        raise ValueError
    return start, size


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


class Reader(Protocol):
    """Anything that has the bytes of pictures by name, such as a `Source`."""

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError. Called from several threads."""


class FileSource:
    """Pictures that were named one by one, and those of folders and archives named beside them.

    A picture is named by its file's name, one of a folder as in that folder; where two names are
    equal, both are the paths as they were given.
    """

    def __init__(self, paths: Sequence[Path], recursive: bool = False) -> None:
        self.path = paths[0].parent
        self.passed_over: Counter[str] = Counter()
        self.unlisted: list[tuple[str, str]] = []
        found: list[tuple[str, str, Source | None, str]] = []
        for path in dict.fromkeys(paths):
            if _is_picture(path):
                found.append((path.name, path.as_posix(), None, str(path)))
                continue
            source, names = find_images(path, recursive)
            found += [(name, (path / name).as_posix(), source, name) for name in names]
            self.unlisted += source.unlisted
            self.passed_over += source.passed_over
        counts = Counter(name for name, *_ in found)
        self._places = {
            name if counts[name] == 1 else whole: (source, inner)
            for name, whole, source, inner in found
        }

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the name of every picture, in the order in which they were given."""
        return iter(self._places)

    def read(self, name: str) -> bytes:
        """Return the bytes of one picture. Raises OSError."""
        source, inner = self._places[name]
        return source.read(inner) if source else read_file(inner)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return what differs where the picture does. Raises OSError."""
        source, inner = self._places[name]
        if source:
            return source.stamp(inner)
        status = os.stat(inner)
        return status.st_size, status.st_mtime_ns


Source = FolderSource | ArchiveSource | FileSource


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a folder or a .zip archive for reading. Raises InputError where it is neither."""
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: give the path of a folder or of a .zip archive.")
    # A pipe or a device is not even opened: it may block for ever.
    if not path.is_file() or (path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path)):
        raise InputError(f"{path} is neither a folder nor a .zip archive: give one of these.")
    return ArchiveSource(path)


def is_outside(name: str) -> bool:
    """Tell whether a relative path is none: absolute, or upwards from where it starts."""
    if not name.startswith("/") and ".." not in name and ":" not in name:
        return False  # as nearly all are
    path = PurePath(name)
    return bool(path.anchor) or ".." in path.parts


def is_hidden(name: str) -> bool:
    """Tell whether any part of a POSIX path is hidden or a folder that tools leave behind."""
    if not name.startswith(".") and "/." not in name and "__MACOSX" not in name:
        return False  # as nearly all are
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
        for part in name.split("/")
    )


def image_names(names: Iterable[str]) -> list[str]:
    """Return the names that are visible and end like a picture's, sorted."""
    return sorted(name for name in names if has_image_suffix(name) and not is_hidden(name))


def _is_picture(path: Path) -> bool:
    return path.is_file() and has_image_suffix(path.name)


def find_images(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], recursive: bool = False
) -> tuple[Source, list[str]]:
    """Return where the pictures of a folder or archive are read, and their sorted names.

    ``paths``: one folder, archive or picture, or several. Raises InputError where one has none.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if len(given) > 1 or _is_picture(Path(given[0])):
        files = FileSource([Path(each) for each in given], recursive)
        return files, sorted(files.names())
    path = Path(given[0])
    source: Source = open_source(path)
    names = image_names(source.names(recursive))
    if not names and not recursive:
        every = image_names(source.names())
        top = _only_top(every) if isinstance(source, ArchiveSource) else ""
        if top:
            # A zipped folder: its pictures are named as in the folder itself.
            source = ArchiveSource(source.path, top)
            names = image_names(source.names(recursive=False))
        if every and not names:
            raise InputError(
                f"{os.fspath(path)} holds no pictures: {len(every)} lie deeper, add --recursive."
            )
    if not names:
        raise InputError(f"{os.fspath(path)} holds no pictures: give the one that does.")
    return source, names


def _only_top(names: Sequence[str]) -> str:
    """Return the one folder, with a slash, that all names lie in, "" where there is none."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


def _member_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name with slashes, and as Windows wrote it where it is Cyrillic.

    PowerShell's Compress-Archive writes backslashes; Explorer in Russian writes code page 866
    without a mark, which zipfile reads as code page 437.
    """
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeError):
            as_russian = name.encode("cp437").decode("cp866")
            words = re.findall(r"[^\W\d_]+", as_russian)
            if all(word.isascii() or re.fullmatch("[\u0400-\u04ff]+", word) for word in words):
                name = as_russian
    return name.replace("\\", "/")
