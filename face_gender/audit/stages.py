"""What each stage of an audit found, kept in files, so that an interruption loses none."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from face_gender.files import make_folder, write_atomically

Arrays = Mapping[str, npt.NDArray]


class Stages:
    """A folder of .npz files, one a stage, each with the key of what it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)

    def get(
        self,
        name: str,
        key: str,
        make: Callable[[], Arrays],
        is_whole: Callable[[Arrays], object] = bool,
    ) -> dict[str, npt.NDArray]:
        """Return the arrays of a stage: from its file if that was made from ``key``, else made.

        A file of another key, or a damaged one, is replaced. What is not whole is not kept.
        """
        path = self.folder / f"{name}.npz"
        found = _read(path, key)
        if found is None:
            found = dict(make())
            if is_whole(found):
                _write(path, key, found)
        return found


def key_of(*parts: object) -> str:
    """Return a short text that differs where any of the parts does."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _read(path: Path, key: str) -> dict[str, npt.NDArray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in file.files if name != "key"}
    except Exception:  # a damaged file raises anything; the stage is made again
        return None


def _write(path: Path, key: str, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{"key": np.array(key), **arrays})
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))
