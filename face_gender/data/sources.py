"""Where pictures come from: folders, .zip archives and single files, by name -> bytes. Reads only.

Needs the standard library alone, so that commands can check their arguments before anything
heavy is imported."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from face_gender.data.archives import ArchiveSource
from face_gender.data.base_source import (
    OTHER_ENDING,
    BaseSource,
    DriveGoneError,
    ReadError,
    is_hidden,
    is_outside,
    passed_over_as,
    passed_over_in_words,
)
from face_gender.errors import InputError
from face_gender.files import has_image_suffix, read_file

__all__ = [
    "ArchiveSource", "DriveGoneError", "FileSource", "FolderSource", "ReadError", "Reader",
    "Source", "find_images", "is_hidden", "is_outside", "list_images",
    "open_source", "passed_over_in_words",
]  # fmt: skip

T = TypeVar("T")


class FolderSource(BaseSource):
    """The regular files under a folder, by POSIX path relative to it."""

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the relative POSIX path of every visible file, in no set order.

        Hidden files and those of devices are counted in ``passed_over``. Linked folders are
        followed, each real folder once, so that a loop of links ends. Folders inside that cannot
        be listed go into ``unlisted``. Raises InputError where the folder itself cannot be.
        """
        self.unlisted, self.passed_over = [], Counter()
        visited: set[str] = set()
        waiting, counted = [""], list[str]()
        while waiting or counted:  # those that are counted come last: links may show them
            prefix = (waiting or counted).pop()
            kind = passed_over_as(prefix)
            real = os.path.realpath(os.path.join(self.path, prefix))
            if real in visited:
                continue
            visited.add(real)
            folders, files = self._list(prefix, bool(kind))
            for name in files:
                own = kind or passed_over_as(name)
                if own:
                    self.passed_over[own] += 1
                else:
                    yield prefix + name
            for name in sorted(folders, reverse=True) if recursive else ():
                inner = f"{prefix}{name}/"
                (counted if passed_over_as(inner) else waiting).append(inner)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError as `read_file` does, ReadError for a drive.

        A name in another Unicode normal form is found. Raises OSError also for a name that leads
        out of the folder, which an index from elsewhere may hold; links in the folder are
        followed wherever they lead: whoever owns the folder put them there.
        """
        return self._at(name, read_file)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and time of change, which differ for another file. Raises OSError."""
        status = self._at(name, os.stat)
        return status.st_size, status.st_mtime_ns

    def find(self, name: str) -> str | None:
        """Return the name by which a file is there, in whichever Unicode normal form, or None."""
        found = ""
        if is_outside(name):
            return None
        for part in name.split("/"):
            forms = dict.fromkeys((part, *(unicodedata.normalize(f, part) for f in ("NFC", "NFD"))))
            there = (f for f in forms if os.path.lexists(os.path.join(self.path, found + f)))
            part_found = next(there, None)
            if part_found is None:
                return None
            found += f"{part_found}/"
        return found[:-1]

    def _at(self, name: str, function: Callable[[str], T]) -> T:
        """Return what a function returns for a file's path."""

        def call() -> T:
            try:
                return function(os.path.join(self.path, name))
            except FileNotFoundError:
                found = self.find(name)
                if found is None or found == name:
                    raise
                return function(os.path.join(self.path, found))

        if is_outside(name):
            raise OSError("its name leads out of the folder")
        return self._retry(name, call)

    def _list(self, prefix: str, is_passed_over: bool) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder."""

        def call() -> list[tuple[str, bool]]:
            with os.scandir(os.path.join(self.path, prefix)) as entries:
                return [(entry.name, _is_folder(entry)) for entry in entries]

        found: list[tuple[str, bool]] = []
        try:
            found = self._retry(prefix, call)
        except OSError as error:
            if not prefix:
                raise InputError(
                    f"{self.path} cannot be listed ({error.strerror}): check its permissions."
                ) from error
            if not is_passed_over:
                self.unlisted.append((prefix, f"cannot be listed ({error.strerror})"))
        return [n for n, is_folder in found if is_folder], [n for n, is_f in found if not is_f]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


class FileSource:
    """Pictures given one by one, and those of folders and archives given beside them.

    A picture's name is that of its file, or as in its folder or archive; where two are equal,
    both are the paths as given, and all are where such a path is the name of another.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]], recursive: bool = False) -> None:
        given = list(dict.fromkeys(map(Path, paths)))
        self.path = _common_folder(given)
        self.unlisted: list[tuple[str, str]] = []
        self.passed_over: Counter[str] = Counter()
        folders: dict[Path, Source] = {}
        found: list[tuple[str, str, Source, str]] = []
        for path in given:
            if _is_picture(path):
                source = folders.setdefault(path.parent, FolderSource(path.parent))
                found.append((path.name, path.as_posix(), source, path.name))
                continue
            source, names = find_images(path, recursive)
            found += [(name, (path / name).as_posix(), source, name) for name in names]
            self.unlisted += source.unlisted
            self.passed_over += source.passed_over
        counts = Counter(name for name, *_ in found)
        names = [name if counts[name] == 1 else whole for name, whole, *_ in found]
        wholes = [whole for _, whole, *_ in found]
        if len(set(names)) < len(set(zip(names, wholes, strict=True))):
            names = wholes
        places = [(source, inner) for _, _, source, inner in found]
        self._places = dict(zip(names, places, strict=True))

    def names(self, recursive: bool = True) -> Iterator[str]:
        """Yield the name of every picture, in the order given."""
        yield from self._places

    def read(self, name: str) -> bytes:
        """Return the bytes of one picture. Raises OSError as `FolderSource.read` does."""
        source, inner = self._place(name)
        return source.read(inner)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return what differs where the picture does. Raises OSError."""
        source, inner = self._place(name)
        return source.stamp(inner)

    def find(self, name: str) -> str | None:
        """Return the name if it is one of those given, or None."""
        return name if name in self._places else None

    def _place(self, name: str) -> tuple[Source, str]:
        if name not in self._places:
            raise OSError("not among the pictures given")
        return self._places[name]


def _common_folder(paths: Sequence[Path]) -> Path:
    parents = [path.absolute().parent for path in paths]
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:  # they lie on several drives of Windows
        return parents[0]


def _is_picture(path: Path) -> bool:
    return has_image_suffix(path.name) and not path.is_dir()


class Reader(Protocol):
    """Anything that has the bytes of pictures by name, such as a `Source`."""

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError. Called from several threads."""


Source = FolderSource | ArchiveSource | FileSource


def is_archive(path: Path) -> bool:
    """Tell whether a file is taken for a .zip archive: by its ending, or by its bytes."""
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def open_source(path: str | os.PathLike[str]) -> FolderSource | ArchiveSource:
    """Open a folder or a .zip archive for reading. Raises InputError where it is neither."""
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: give the path of a folder or of a .zip archive.")
    # A pipe or a device is not even opened: it may block for ever.
    if not path.is_file() or not is_archive(path):
        raise InputError(f"{path} is neither a folder nor a .zip archive: give one of these.")
    return ArchiveSource(path)


def list_images(source: Source, recursive: bool = True) -> list[str]:
    """Return the sorted names of a source's pictures; others are counted in ``passed_over``."""
    names = list(source.names(recursive))
    found = sorted(filter(has_image_suffix, names))
    if len(found) < len(names):
        source.passed_over[OTHER_ENDING] += len(names) - len(found)
    return found


def find_images(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], recursive: bool = False
) -> tuple[Source, list[str]]:
    """Return a source and the sorted names of the pictures in it.

    ``paths``: a folder, a .zip archive or a picture, or several of these. Raises InputError where
    one is missing or has none.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not all(map(os.fspath, listed)):  # which a Path would take for the working directory
        raise InputError("a path is empty: give that of a folder, of a .zip or of a picture.")
    given = [Path(each) for each in listed]
    if missing := [path for path in given if not os.path.lexists(path)]:
        raise InputError(
            f"{missing[0]} does not exist: give the path of a folder, of a .zip archive or of "
            "a picture."
        )
    if len(given) != 1 or _is_picture(given[0]):
        if not given:
            raise InputError("no path is given: name a folder, a .zip archive or pictures.")
        several = FileSource(given, recursive)
        return several, sorted(several.names())
    (path,) = given
    source = open_source(path)
    names = list_images(source, recursive)
    if not names and not recursive:
        source, names = _one_level_down(source)
    if not names:
        passed = passed_over_in_words(source.passed_over)
        raise InputError(
            f"{path} holds no pictures: name another that does{f' ({passed})' if passed else ''}."
        )
    return source, names


def _one_level_down(
    source: FolderSource | ArchiveSource,
) -> tuple[FolderSource | ArchiveSource, list[str]]:
    """Return the pictures of an archive's only folder, named as in the folder itself.

    Raises InputError where others lie deeper.
    """
    every = list_images(source)
    top = _only_top(every) if isinstance(source, ArchiveSource) else ""
    names: list[str] = []
    if top:
        source = ArchiveSource(source.path, top)
        names = list_images(source, recursive=False)
    if every and not names:
        raise InputError(
            f"{source.path} holds no pictures: {len(every)} lie deeper, add --recursive."
        )
    return source, names


def _only_top(names: Sequence[str]) -> str:
    """Return the one folder, with a slash, that all names lie in, "" where there is none."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
