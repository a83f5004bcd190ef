"""A folder or an archive of pictures -> index.csv: scan, hash, split, once and for good."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from face_gender import CLASSES
from face_gender.data.sources import (
    is_outside,
)
from face_gender.data.split import SPLITS
from face_gender.errors import InputError, excerpt
from face_gender.files import (
    open_regular,
    write_atomically,
)

_OLDER_NAMES = {"image_name": "path", "class": "label"}
_MOST_COLUMNS = 100  # short rows are filled up to as many


def write_index(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write an index, or a table beside one, atomically as UTF-8.

    Names that are not UTF-8 keep their bytes.
    """
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which the csv module leaves unquoted, and then reads as a line's end
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def read_index(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read an index: ``path`` str, ``label`` int64, and ``split``, ``sha256``, ``group`` if there.

    The older forms ``path,label`` and ``image_name,class`` are read too; a label is 0, 1, male
    or female. Raises InputError for a missing file, missing columns, unknown labels and paths
    that lead out of the folder of the pictures.
    """
    table = _read_rows(path)
    _check_paths(table["path"].tolist(), path)
    return table


def _read_rows(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read an index as `read_index` does, wherever its paths lead."""
    table = read_cells(Path(path), "make an index with data_split.py")
    older = {old: new for old, new in _OLDER_NAMES.items() if new not in table}
    table = table.rename(columns=older)
    missing = [name for name in ("path", "label") if name not in table]
    if missing:
        raise InputError(
            f"{os.fspath(path)} has no column {' and no column '.join(missing)}: "
            "make the index with data_split.py."
        )
    words = {"0": 0, "1": 1, **{name: i for i, name in enumerate(CLASSES)}}
    label_of = {cell: words.get(cell.strip().lower()) for cell in set(table["label"])}
    labels = [label_of[cell] for cell in table["label"]]
    if None in label_of.values():
        row = labels.index(None)
        raise InputError(
            f"{os.fspath(path)}, row {row + 1}: label {excerpt(table['label'].iloc[row])!r} is not "
            "0, 1, male or female."
        )
    table["label"] = np.array(labels, dtype=np.int64)
    unknown = set(table["split"]) - set(SPLITS) if "split" in table else set()
    if unknown:
        raise InputError(
            f"{os.fspath(path)}: split {excerpt(min(unknown))!r} is not train, val or test: "
            "make the index with data_split.py."
        )
    return table


def _check_paths(names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Raise InputError for a path that leads elsewhere: an index may be anybody's."""
    outside = next((name for name in names if is_outside(name)), None)
    if outside is not None:
        raise InputError(
            f"{os.fspath(path)} names {excerpt(outside)}, which leads out of the folder: "
            "put the CSV into the folder that holds all the pictures."
        )


def read_cells(path: Path, cure: str) -> pd.DataFrame:
    """Read a CSV with a header, all of it as text. Raises InputError, which ends in ``cure``."""
    cells: list[str] = []
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with io.TextIOWrapper(
            io.BufferedReader(open_regular(path)),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
        ) as file:
            rows = (row for row in csv.reader(file) if row)
            # Of columns, all names that matter are ASCII; pandas may refuse what is not UTF-8.
            columns = [name.encode("utf-8", "replace").decode() for name in next(rows, [])]
            if len(columns) > _MOST_COLUMNS:
                raise InputError(f"{path} has over {_MOST_COLUMNS} columns: {cure}.")
            for row in rows:
                # Not a list of rows: collecting garbage among so many would double the time.
                cells += row if len(row) == len(columns) else _fitted(row, columns, path)
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}): {cure}.") from error
    if not columns:
        raise InputError(f"{path} is empty: {cure}.")
    if len(set(columns)) < len(columns):
        raise InputError(f"{path} names a column twice: {cure}.")
    return pd.DataFrame({name: _text(cells[i :: len(columns)]) for i, name in enumerate(columns)})


def _fitted(row: list[str], columns: list[str], path: Path) -> list[str]:
    """Return a row with as many cells as there are columns. Raises InputError for more."""
    if any(row[len(columns) :]):
        raise InputError(
            f"{path} has a row of {len(row)} values under {len(columns)} names "
            f"({excerpt(','.join(row))}): put quotes around a name that holds a comma."
        )
    return (row + [""] * len(columns))[: len(columns)]


def _text(values: Sequence[str]) -> pd.Series:
    """Return a column of dtype object: pandas' own str may refuse names that are not UTF-8."""
    return pd.Series(list(values), dtype=object)
