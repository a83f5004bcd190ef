"""Where bytes come from and where they go: folders and .zip archives in, whole files out.

Needs the standard library alone, so that commands can check their arguments before anything
heavy is imported.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".avif", ".heic", ".heif",
))  # fmt: skip

# More than the pixels that images.py accepts take uncompressed: no picture, but a bomb.
MAX_BYTES = 2**30


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
            prefix = Path(parent).relative_to(self.path)
            yield from ((prefix / name).as_posix() for name in files)
            if not recursive:
                return

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError as `read_file` does."""
        return read_file(self.path / name)

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
    """

    def __init__(self, path: Path, top: str = "") -> None:
        self.path = path
        self.top = top
        self.unlisted: list[tuple[str, str]] = []
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._owner = 0
        self._open()

    def _open(self) -> zipfile.ZipFile:
        # A forked worker shares the parent's file position, so every process opens its own.
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise InputError(
                    f"{self.path} cannot be read as a .zip archive ({error}): "
                    "make or download the archive again."
                ) from error
            names = ((_member_name(info), info) for info in self._archive.infolist())
            self._members = {
                name.removeprefix(self.top): info
                for name, info in names
                if name.startswith(self.top)
            }
            self._owner = os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None, "_members": {}, "_owner": 0}

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the name of every file member, each once; not ``recursive``: the root's own."""
        self._open()
        files = (name for name in self._members if not name.endswith("/"))
        return files if recursive else (name for name in files if "/" not in name)

    def read(self, name: str) -> bytes:
        """Return the bytes of one member. Raises OSError where it is missing or damaged."""
        archive = self._open()
        member = self._members.get(name)
        if member is None:
            raise OSError(f"not in {self.path.name}")
        if member.flag_bits & 1:
            raise OSError("encrypted in the archive")
        _check_size(member.file_size)
        try:
            return archive.read(member)
        except Exception as error:  # zlib.error, lzma.LZMAError: one type for each compression
            raise OSError(f"damaged in the archive: {error}") from error


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


def read_file(path: Path) -> bytes:
    """Return a file's bytes. Raises OSError, also for pipes, devices and over MAX_BYTES."""
    status = path.stat()
    # A pipe or device would block for ever or never end.
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    _check_size(status.st_size)
    return path.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"decompression bomb: over {MAX_BYTES:,} bytes")


def is_hidden(name: str) -> bool:
    """Tell whether any part of a POSIX path is hidden or a folder that tools leave behind."""
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
        for part in name.split("/")
    )


def has_image_suffix(name: str) -> bool:
    """Tell whether a file's name ends like a picture's, in any case."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


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
