"""Where bytes come from and where they go: folders and .zip archives in, whole files out.

Needs the standard library alone, so that commands can check their arguments before anything
heavy is imported.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
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

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the relative POSIX path of every file outside hidden folders, in no set order.

        Linked folders are followed, each real folder once, so that a loop of links ends.
        """
        visited: set[str] = set()
        for parent, folders, files in os.walk(self.path, followlinks=True, onerror=_raise):
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


class ArchiveSource:
    """The members of a .zip archive, read in place. Safe to use in threads and loader workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
            # Windows PowerShell's Compress-Archive writes backslashes.
            members = self._archive.infolist()
            self._members = {info.filename.replace("\\", "/"): info for info in members}
            self._owner = os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_archive": None, "_members": {}, "_owner": 0}

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the name of every file member, each once; not ``recursive``: one folder's own.

        That folder is the root of the archive or, where the root holds no file of its own, the
        single folder that everything lies in.
        """
        self._open()
        names = [name for name in self._members if not name.endswith("/")]
        if recursive:
            return iter(names)
        visible = [name for name in names if not is_hidden(name)]
        tops = {name.split("/")[0] for name in visible}
        depth = 2 if len(tops) == 1 and all("/" in name for name in visible) else 1
        return (name for name in visible if name.count("/") == depth - 1)

    def read(self, name: str) -> bytes:
        """Return the bytes of one member. Raises OSError where it is missing or damaged."""
        try:
            archive = self._open()
            member = self._members[name]
            size = member.file_size
            content = archive.read(member) if size <= MAX_BYTES else b""
        except KeyError as error:
            raise OSError(f"not in {self.path.name}") from error
        except Exception as error:  # zlib.error, lzma.LZMAError: one type for each compression
            raise OSError(f"damaged or encrypted member: {error}") from error
        _check_size(size)
        return content


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
    if not names:
        deeper = 0 if recursive else len(image_names(source.names()))
        hint = (
            f"{deeper} lie deeper, add --recursive." if deeper else "give the folder that has them."
        )
        raise InputError(f"{os.fspath(path)} holds no pictures: {hint}")
    return source, names


def check_writable(path: Path) -> None:
    """Raise InputError where `write_atomically` would, before work is done in vain."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written (no folder {path.parent}): make it first.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written (no permission): name another place.")


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it under its name at once.

    Whatever interrupts it, ``path`` holds either what it held before or all of the new content.
    Raises InputError where the place cannot be written to.
    """
    path = Path(path)
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


def _raise(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be listed ({error.strerror}): check its permissions."
    ) from error
