"""The aligned faces as files by label: the start of a data set."""

from __future__ import annotations

import io
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from face_gender.classify.results import Prediction, Result
from face_gender.files import make_folder, write_atomically

_IN_NO_NAME = re.compile(r'[<>:"|?*\\\x00-\x1f]')  # of a file on Windows
_MOST_BYTES = 200  # of the 255 that a name may have; numbers and what is temporary come on top


def write_crops(folder: Path, result: Result, threshold: float = 0.0) -> list[Path]:
    """Write each face of a result as ``folder/<label>/<name>_<number>.jpg``; return the paths.

    The name is that of the picture, with ``_`` for the slashes of subfolders; no file is ever
    replaced: where another one is there, the next free number after a ``-`` is added. Raises
    InputError where a file cannot be written.
    """
    if not isinstance(result, Prediction):
        return []
    written = []
    stem = str(PurePosixPath(result.name.strip("/")).with_suffix("")).replace("/", "_")
    stem = _IN_NO_NAME.sub("_", stem).lstrip(".") or "picture"
    while len(os.fsencode(stem)) > _MOST_BYTES:
        stem = stem[1:]
    for number, face in enumerate((result, *result.others)):
        if face.crop is None:
            continue
        own = folder / face.label(threshold)
        make_folder(own, "--crops")
        written.append(_write_crop(own, f"{stem}_{number}", face.crop))
    return written


def _write_crop(folder: Path, stem: str, crop: npt.NDArray[np.uint8]) -> Path:
    jpeg = io.BytesIO()
    Image.fromarray(crop).save(jpeg, format="JPEG", quality=95)
    path = _free(folder, stem, jpeg.getvalue())
    if not path.exists():  # else of a run that ended before it could keep the prediction
        write_atomically(path, lambda file: file.write(jpeg.getvalue()))
    return path


def without_crops(result: Result) -> Result:
    """Return a result without its pixels, which would fill the memory."""
    if not isinstance(result, Prediction):
        return result
    others = tuple(replace(each, crop=None) for each in result.others)
    return replace(result, crop=None, others=others)


def _free(folder: Path, stem: str, data: bytes) -> Path:
    """Return the first path that is free, or that of a file with these bytes."""
    names = (
        f"{stem}{end}.jpg" for end in itertools.chain([""], map("-{}".format, itertools.count(1)))
    )
    paths = map(folder.joinpath, names)
    return next(path for path in paths if not os.path.lexists(path) or _holds(path, data))


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
