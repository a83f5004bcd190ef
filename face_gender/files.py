"""Files: read whole and only where they are files, written whole or not at all.

Needs the standard library alone, so that commands can check their arguments before anything
heavy is imported."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from face_gender.errors import InputError, excerpt, printable

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif", ".jxl",
))  # fmt: skip

# More than the pixels that images.py accepts take uncompressed: no picture, but a bomb.
MAX_BYTES = 2**30

# Seconds to wait for other programs on Windows, where a file that one has open is not replaced.
PAUSES = (0.1, 0.3, 1.0, 2.0) if os.name == "nt" else ()

# Besides pictures, what no result replaces.
PRECIOUS = (".zip", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")

# What results call a label below the threshold, and other columns than those of the classes.
_NO_CLASSES = frozenset((
    "uncertain", "name", "path", "label", "predicted", "confidence", "error", "face", "left", "top",
    "width", "height",
))  # fmt: skip


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a file for reading, unbuffered. Raises OSError, also for pipes, devices and folders.

    These would block for ever or never end; some act on being opened alone.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("not a regular file")
        file = open(path, "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115 - given away
    except ValueError as error:  # a zero byte, or characters that no name on this system has
        raise OSError("no name that a file can have") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # replaced between the two
        file.close()
        raise OSError("not a regular file")
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_file(path: str | os.PathLike[str], *, of_any_size: bool = False) -> bytes:
    """Return a file's bytes. Raises OSError, also for pipes and devices.

    Over MAX_BYTES too, unless ``of_any_size``: an index and weights may be larger than a picture.
    """
    # Buffered, since one read of the system may give less than was asked for.
    with io.BufferedReader(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if not of_any_size:
            check_size(size)
        data = file.read(size + 1)
    if len(data) != size:
        raise OSError("changed while it was read")
    return data


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal sha256 of a file's bytes. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(size: int) -> None:
    """Raise OSError for more bytes than a picture can have."""
    if size > MAX_BYTES:
        raise OSError(f"decompression bomb: over {MAX_BYTES:,} bytes")


def has_image_suffix(name: str) -> bool:
    """Tell whether a file's name ends like a picture's, in any case."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def check_class_names(names: Iterable[str]) -> None:
    """Raise InputError for a class that a folder or a column of results cannot be called by."""
    for name in names:
        is_path = name.startswith(".") or not {"/", "\\", ":"}.isdisjoint(name)
        if is_path or name in _NO_CLASSES or name != printable(name):
            raise InputError(
                f"no class can be called {excerpt(name)!r}, as folders and columns of results "
                "bear its name: give it another."
            )


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError where writing ``path`` would fail, or would destroy what the user has.

    To be called before any work is done. ``inputs`` are the files that are read; pictures,
    archives and weights are never replaced, whichever they are.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe: name a file to write.")
    named = (path, Path(os.path.realpath(path)))  # a link is written through
    precious = any(has_image_suffix(p.name) or p.suffix.lower() in PRECIOUS for p in named)
    if precious or any(is_same_file(path, each) for each in inputs):
        raise InputError(f"{path} is or would be an input, which is never replaced: name another.")
    folder = named[1].parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written (no folder {folder}): make it first.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written (no permission): name another place.")
    try:
        os.lstat(_temporary(named[1]))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{path} is too long a name: give a shorter one.") from error


def make_folder(path: Path, option: str = "--output") -> None:
    """Make a folder and those above it. Raises InputError where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be made ({error.strerror}): name another folder with {option}."
        ) from error
    if not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written (no permission): name another with {option}.")


def is_same_file(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one place, of a file that is there or would be."""
    if os.path.realpath(path) == os.path.realpath(other):  # also where neither is there yet
        return True
    return path.exists() and other.exists() and path.samefile(other)


def write_atomically(
    path: str | os.PathLike[str],
    write: Callable[[IO[bytes]], object],
    *,
    through_links: bool = True,
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it under its name at once.

    Whatever interrupts it, ``path`` holds either what it held before or all of the new content.
    ``through_links``: a link stays one, and what it leads to is written; else a file takes its
    place. Raises InputError where the place cannot be written to.
    """
    path = Path(os.path.realpath(path) if through_links else path)
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): "
            "free space there, close it in other programs, or name another place."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _replace(temporary: Path, path: Path) -> None:
    for pause in PAUSES:
        with suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(pause)
    temporary.replace(path)


def remove_leftovers(folder: Path, name: str = "*", seconds: float = 0) -> None:
    """Remove what `write_atomically` left of files so named when its process was killed.

    ``seconds``: younger ones stay, as another process may be writing them.
    """
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


def copy_atomically(source: Path, target: Path, *, through_links: bool = True) -> None:
    """Copy a file so that ``target`` is never half-written. Raises InputError as above."""
    with open(source, "rb") as file:
        write_atomically(
            target, lambda out: shutil.copyfileobj(file, out), through_links=through_links
        )


def cpu_count() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
