"""Where bytes come from and where they go: folders and .zip archives in, whole files out.

Needs the standard library alone, so that commands can check their arguments before anything
heavy is imported.
"""

from __future__ import annotations

import os
import posixpath
import re
import secrets
import shutil
import stat
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".avif", ".heic", ".heif",
))  # fmt: skip

# More than the pixels that images.py accepts take uncompressed: no picture, but a bomb.
MAX_BYTES = 2**30

# What reading a member takes: its place, bytes packed and unpacked, CRC-32, method and flags.
_MEMBER = struct.Struct("<QQQIHH")
_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")  # of the archive's directory
_LOCAL_HEADER = struct.Struct("<4s22xHH")
# Flags that leave the bytes as they are: degree of deflating, sizes behind the bytes, UTF-8.
_PLAIN_FLAGS = 0b1000_0000_1110


class InputError(Exception):
    """What the user gave cannot be used; the message is one sentence that names it and the cure."""


class FolderSource:
    """The regular files under a folder, by POSIX path relative to it. Reads only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unlisted: list[tuple[str, str]] = []

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
        """Return the bytes of one file. Raises OSError as `read_file` does."""
        return read_file(os.path.join(self.path, name))

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
    reads, as using an object writes into it.
    """

    def __init__(self, path: Path, top: str = "") -> None:
        self.path = path
        self.top = top
        self.unlisted: list[tuple[str, str]] = []
        self._reset()
        names, self._table = _read_directory(path) or self._directory_by_zipfile()
        self._places = {
            name.removeprefix(top): i for i, name in enumerate(names) if name.startswith(top)
        }

    def _directory_by_zipfile(self) -> tuple[list[str], bytes]:
        """Return what `_read_directory` does, of any archive. Raises InputError for no archive."""
        infos = self._open_zip().infolist()
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
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_file", "_archive", "_owner", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _open_zip(self) -> zipfile.ZipFile:
        # A forked worker shares the parent's file position, so every process opens its own.
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise InputError(
                    f"{self.path} cannot be read as a .zip archive ({error}): "
                    "make or download the archive again."
                ) from error
            self._owner = os.getpid()
        return self._archive

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
        if flags & 1:
            raise OSError("encrypted in the archive")
        _check_size(size)
        if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not flags & ~_PLAIN_FLAGS:
            data = _unpack(self._packed(offset, packed), method, size)
            if data is not None and zlib.crc32(data) == crc:
                return data
        return self._read_by_zipfile(place)

    def _packed(self, offset: int, size: int) -> bytes:
        """Return a member's bytes as they lie in the archive, fewer where something is odd."""
        header = self._read_at(offset, _LOCAL_HEADER.size)
        if size > MAX_BYTES or len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            return b""
        _, *lengths = _LOCAL_HEADER.unpack(header)
        return self._read_at(offset + _LOCAL_HEADER.size + sum(lengths), size)

    def _read_at(self, offset: int, size: int) -> bytes:
        file = self._file
        if file is None:
            file = self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - it stays open
        if hasattr(os, "pread"):  # without a position, which threads and forked workers share
            return os.pread(file.fileno(), size, offset)
        with self._lock:
            file.seek(offset)
            return file.read(size)

    def _read_by_zipfile(self, place: int) -> bytes:
        """Read what is rarely packed, or damaged: zipfile knows all methods and the reasons."""
        archive = self._open_zip()
        try:
            return archive.read(archive.infolist()[place])
        except Exception as error:  # zlib.error, lzma.LZMAError: one type for each compression
            raise OSError(f"damaged in the archive: {error}") from error


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
    """Return a member's ``size`` bytes, None where they are fewer. Raises OSError for a bomb."""
    data = packed
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        except zlib.error:
            return None
        if len(data) > size:
            raise OSError(f"decompression bomb: over the {size:,} bytes that it announces")
    return data if len(data) == size else None


class Reader(Protocol):
    """Anything that has the bytes of pictures by name, such as a `Source`."""

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError. Called from several threads."""


Source = FolderSource | ArchiveSource


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a folder or a .zip archive for reading. Raises InputError where it is neither."""
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: give the path of a folder or of a .zip archive.")
    if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is neither a folder nor a .zip archive: give one of these.")
    return ArchiveSource(path)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes. Raises OSError, also for pipes, devices and over MAX_BYTES."""
    status = os.stat(path)
    # A pipe or device would block for ever or never end.
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    _check_size(status.st_size)
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"decompression bomb: over {MAX_BYTES:,} bytes")


def is_hidden(name: str) -> bool:
    """Tell whether any part of a POSIX path is hidden or a folder that tools leave behind."""
    if not name.startswith(".") and "/." not in name and "__MACOSX" not in name:
        return False  # as nearly all are
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
        for part in name.split("/")
    )


def has_image_suffix(name: str) -> bool:
    """Tell whether a file's name ends like a picture's, in any case."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_names(names: Iterable[str]) -> list[str]:
    """Return the names that are visible and end like a picture's, sorted."""
    return sorted(name for name in names if has_image_suffix(name) and not is_hidden(name))


def find_images(path: str | os.PathLike[str], recursive: bool = False) -> tuple[Source, list[str]]:
    """Return a folder or archive and the sorted names of the pictures in it.

    Raises InputError where there are none.
    """
    source = open_source(path)
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


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError where writing ``path`` would fail, or would destroy what the user has.

    To be called before any work is done. ``inputs`` are the files that are read; pictures,
    archives and weights are never replaced, whichever they are.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe: name a file to write.")
    precious = has_image_suffix(path.name) or path.suffix.lower() in (".zip", ".pth")
    if precious or any(_is_same_file(path, each) for each in inputs):
        raise InputError(f"{path} is or would be an input, which is never replaced: name another.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written (no folder {path.parent}): make it first.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path} cannot be written (no permission): name another place.")


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be made ({error.strerror}): name another folder with --output."
        ) from error


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it under its name at once.

    Whatever interrupts it, ``path`` holds either what it held before or all of the new content.
    Raises InputError where the place cannot be written to.
    """
    # Through links to the file itself, so that a link stays one.
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): "
            "free space there or name another place."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is never half-written. Raises InputError as above."""
    with open(source, "rb") as file:
        write_atomically(target, lambda out: shutil.copyfileobj(file, out))


def cpu_count() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Stderr:
    """sys.stderr as it is now; that it is closed or gone must not cost a result."""

    def write(self, text: str) -> None:
        """Write, or let it be: a service has no stderr, a closed pipe takes nothing."""
        with suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush likewise."""
        with suppress(AttributeError, OSError, ValueError):
            sys.stderr.flush()


def tell(text: str) -> None:
    """Write a line to stderr."""
    Stderr().write(f"{text}\n")


def in_words(error: InputError | OSError) -> str:
    """Return the sentence that a command ends with."""
    if isinstance(error, InputError):
        return str(error)
    return f"{error.filename}: {error.strerror}: check its permissions."
