"""Where the face of each picture of an index is: found once, kept as columns of its table."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender.console import progress_bar
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.sources import Source
from face_gender.errors import InputError, UnreadablePictureWarning, excerpt, printable
from face_gender.faces.detector import DETECTOR_SIDE, Detector, Face, load_detector
from face_gender.files import cpu_count
from face_gender.threads import map_in_order, threads_on_one_core_each

if TYPE_CHECKING:
    from torch import Tensor

    from face_gender.data.preprocessing import Preprocessing

# Left and right are those of the picture. All are fractions of the upright picture's sides.
POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
COORDINATES = (
    *(f"face_{side}" for side in ("left", "top", "width", "height")),
    *(f"{point}_{axis}" for point in POINTS for axis in "xy"),
)
COLUMNS = ("faces", *COORDINATES)
_EMPTY = ("", "na", "nan", "<na>")  # what programs write into a cell where there is nothing


def find_landmarks(
    source: Source, names: Sequence[str], progress: bool = True, threads: int | None = None
) -> pd.DataFrame:
    """Return the columns COLUMNS for each picture; empty where it cannot be read.

    ``faces``: how many were found; the others are those of the most prominent one, as fractions
    of the upright picture's width and height, NaN where there is none. ``threads``: as many as
    there are processors by default. Raises InputError where the detector's packages are missing.
    """
    detector = load_detector()

    def find(name: str) -> list[float]:
        try:
            picture = load_image(name, source, DETECTOR_SIDE)
        except UnreadableImage:
            return [np.nan] * len(COLUMNS)
        faces = detector.detect(np.asarray(picture))
        if not faces:
            return [0, *[np.nan] * len(COORDINATES)]
        return [len(faces), *_as_fractions(faces[0], picture.height, picture.width)]

    rows = []
    bar = progress_bar(len(names), "faces", shown=progress)
    with threads_on_one_core_each(threads or cpu_count(), leave_running=True) as pool, bar:
        for row in map_in_order(pool, find, names):
            rows.append(row)
            bar.update()
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=np.float64)
    table["faces"] = table["faces"].astype("Int64")
    return table.round(dict.fromkeys(COORDINATES, 5))


def prepared(preprocessing: Preprocessing, pixels: Tensor, detector: Detector | None) -> Tensor:
    """Return a picture, uint8 (3, any, any), as `Preprocessing.prepare` does, its face found now.

    ``detector``: None for a whole picture.
    """
    faces: list[Face] = []
    if detector is not None:
        faces = detector.detect(pixels.permute(1, 2, 0).contiguous().numpy())
    return preprocessing.prepare(pixels, faces[0] if faces else None)


def coordinates_of(table: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return COORDINATES of each row as (n, 14) float32, NaN where a cell is empty.

    Raises InputError for a cell that is no number.
    """
    columns = []
    for name in COORDINATES:
        numbers = pd.to_numeric(table[name], errors="coerce")
        for row, cell in table[name][numbers.isna()].items():
            if not (pd.isna(cell) or str(cell).strip().casefold() in _EMPTY):
                raise InputError(
                    f"the index, row {row + 1}: {name} {excerpt(str(cell))!r} is no number: write "
                    "it with a decimal point, or make the index again."
                )
        columns.append(numbers.to_numpy(np.float32, na_value=np.nan))
    return np.stack(columns, axis=1)


def add_landmarks(
    table: pd.DataFrame, source: Source, progress: bool = True, threads: int | None = None
) -> pd.DataFrame:
    """Return a table of paths with the columns of `find_landmarks`, found where it has none.

    Warns where pictures cannot be read.
    """
    if all(name in table for name in COLUMNS):
        return table
    found = find_landmarks(source, table["path"].tolist(), progress, threads)
    unread = table["path"].to_numpy()[found["faces"].isna()]
    if len(unread):
        warnings.warn(
            f"{len(unread)} pictures could not be read while faces were looked for, such as "
            f"{printable(unread[0])}, and count as without a face: give the command again, with "
            "--force if it has written an index.",
            UnreadablePictureWarning,
            stacklevel=2,
        )
    rows = table.drop(columns=[name for name in COLUMNS if name in table])
    return pd.concat([rows, found.set_index(rows.index)], axis=1)


def face_in(coordinates: npt.NDArray[np.float32], height: int, width: int) -> Face | None:
    """Return the face that (14,) fractions describe in a picture of that size, None for none."""
    if not np.isfinite(coordinates).all():
        return None
    pairs: Any = coordinates.reshape(-1, 2) * np.array([width, height], np.float32)
    (left, top), (wide, tall) = pairs[0].tolist(), pairs[1].tolist()
    return Face((left, top, wide, tall), pairs[2:], 1.0)


def _as_fractions(face: Face, height: int, width: int) -> list[float]:
    pairs = np.concatenate([np.array(face.box).reshape(2, 2), face.landmarks])
    fractions: list[float] = (pairs / (width, height)).ravel().tolist()
    return fractions
