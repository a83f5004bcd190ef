"""What folders, archives and single files share: patience with drives, and what is passed over."""

from __future__ import annotations

import errno
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TypeVar

from face_gender.errors import InputError

# Kinds of files that a listing passes over, as they stand after their number in a sentence.
HIDDEN = "hidden"
OF_DEVICES = "in folders that devices leave"
OTHER_ENDING = "with other endings"
REPLACED = "replaced by a later member of the same name"

# Folders in which network drives, systems and galleries keep deleted files, copies and thumbnails.
DEVICE_FOLDERS = (
    "@eaDir", "#recycle", "@Recycle", "@Recently-Snapshot", "#snapshot", "~snapshot", "@tmp",
    "@__thumb", "@sharebin", "Network Recycle Bin", "Recycle Bin", "RecycleBin", "$RECYCLE.BIN",
    "RECYCLER", "RECYCLED", "System Volume Information", "lost+found", "LOST.DIR", "_gsdata_",
    "files_trashbin", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder",
    "Backups.backupdb", "__MACOSX", "iPod Photo Cache", "Thumbs", "Thumbnails", "THMBNL",
    "CaptureOne",
)  # fmt: skip
_PATTERNS = (*map(re.escape, DEVICE_FOLDERS), r"found\.\d{3}", r"@GMT-[\d.-]+", r"[^/]*\.lrdata")
_OF_DEVICES = re.compile(
    rf"(?:^|/)(?:(?:{'|'.join(_PATTERNS)})/|SYNO(?:PHOTO|FILE)_THUMB_[^/]*$)",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"(?:^|/)\.(?!\.?(?:/|$))")

# Seconds to wait before a drive that failed is asked again.
PAUSES = (0.1, 0.5, 2.0)
# So many files in a row that a drive fails to give: it is gone.
MOST_FAILED = 10
_OF_DRIVES = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN",
        "EHOSTUNREACH", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN",
        "EREMOTEIO", "ENODEV", "ENXIO", "ENOMEDIUM", "EAGAIN", "EBUSY", "ENOLINK", "ECOMM",
    )
    if hasattr(errno, name)
)  # fmt: skip
_OF_WINDOWS_DRIVES = frozenset((21, 53, 59, 64, 121, 1117, 1167, 1231))

T = TypeVar("T")


class ReadError(OSError):
    """The drive failed, not the file: it was asked several times. The file may be read later."""


class DriveGoneError(InputError):
    """Many files in a row could not be read, whichever they were; ``args[0]`` says of what."""

    CURE = ": connect it, and the same command with --resume goes on."

    def __str__(self) -> str:
        return super().__str__() + self.CURE


@contextmanager
def without_resume() -> Iterator[None]:
    """Raise InputError for a DriveGoneError: the command has no --resume to name."""
    try:
        yield
    except DriveGoneError as error:
        raise InputError(f"{error.args[0]}: connect it and give the same command.") from error


class BaseSource:
    """What the sources share: a place, and the patience with the drive that it lies on.

    ``path``: the folder or archive; ``pause``: waits for so many seconds; ``unlisted``: (name,
    reason) of folders and members that cannot be listed; ``passed_over``: how many files the last
    listing passed over, by kind.
    """

    def __init__(self, path: Path, pause: Callable[[float], object] = time.sleep) -> None:
        self.path = path
        self.pause = pause
        self.unlisted: list[tuple[str, str]] = []
        self.passed_over: Counter[str] = Counter()
        self._device = _device(path)
        self._failed: set[str] = set()

    def _retry(self, name: str, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, called again after growing pauses where the drive fails.

        Raises ReadError where it fails to the end, DriveGoneError where it did so with many
        names since the last that it gave, and at once the OSError that is of the file itself.
        """
        for seconds in (*PAUSES, None):
            try:
                result = call()
            except OSError as error:
                if not self.is_of_the_drive(error):
                    self._failed.clear()
                    raise
                if seconds is None:
                    raise self._give_up(name, error) from error
                self.pause(seconds)
            else:
                self._failed.clear()
                return result
        raise AssertionError

    def _give_up(self, name: str, error: OSError) -> Exception:
        self._failed.add(name)
        reason = error.strerror or str(error) or type(error).__name__
        if len(self._failed) < MOST_FAILED:
            return ReadError(error.errno, reason)
        return DriveGoneError(
            f"{self.path} cannot be read any more ({reason}, {len(self._failed)} files in a row), "
            "its drive seems to be gone"
        )

    def is_of_the_drive(self, error: OSError) -> bool:
        """Tell whether an error of reading is the drive's and not the file's."""
        if isinstance(error, TimeoutError | ConnectionError) or error.errno in _OF_DRIVES:
            return True
        if getattr(error, "winerror", None) in _OF_WINDOWS_DRIVES:
            return True
        # Unmounted, the place is missing, or an empty folder of another drive.
        return isinstance(error, FileNotFoundError) and _device(self.path) != self._device


def _device(path: Path) -> int | None:
    try:
        return os.stat(path).st_dev
    except (OSError, ValueError):
        return None


def is_outside(name: str) -> bool:
    """Tell whether a relative path is none: absolute, or upwards from where it starts."""
    if not name.startswith(("/", "\\")) and ".." not in name and ":" not in name:
        return False  # as nearly all are
    path = PurePath(name)
    return bool(path.anchor) or ".." in path.parts


def passed_over_as(name: str) -> str:
    """Return the kind of files by which listings pass over a POSIX path, "" where they do not.

    A folder's ends in a slash. Only what lies below the place that the user names is judged.
    """
    if _OF_DEVICES.search(name):
        return OF_DEVICES
    return HIDDEN if _HIDDEN.search(name) else ""


def passed_over_in_words(counts: Counter[str]) -> str:
    """Return "passed over: 3 hidden, 12 with other endings", "" where nothing was."""
    found = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common() if count)
    return f"passed over: {found}" if found else ""


def is_hidden(name: str) -> bool:
    """Tell whether listings pass over a POSIX path: hidden, or of a folder that devices leave."""
    return bool(passed_over_as(name))


def to_nfc(name: str) -> str:
    """Return a name in the Unicode normal form that all but Apple's older disks write."""
    return unicodedata.normalize("NFC", name)
