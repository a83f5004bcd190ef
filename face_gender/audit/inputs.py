"""What is audited: an index, or all pictures of a folder or an archive."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender.data.index import Index, list_pictures
from face_gender.data.sources import Source
from face_gender.data.tables import MAKE_INDEX, read_cells, read_index
from face_gender.errors import InputError


@dataclass(frozen=True)
class AuditInput:
    """The n pictures to audit: ``path``, ``label``, and what else an index says of them.

    ``index``: the table that they were named in, as it is written, None for a folder;
    ``notes``: sentences on what could not be listed.
    """

    table: pd.DataFrame
    source: Source
    index: pd.DataFrame | None
    notes: tuple[str, ...] = ()

    @property
    def faces(self) -> npt.NDArray[np.int64]:
        """Return how many faces a detector found in each picture (n,), -1 where it is not known."""
        if "faces" not in self.table:
            return np.full(len(self.table), -1, dtype=np.int64)
        found = pd.to_numeric(self.table["faces"], errors="coerce")
        return found.fillna(-1).to_numpy(dtype=np.int64)


def open_input(
    given: Index | str | os.PathLike[str], data: str | os.PathLike[str] | None
) -> AuditInput:
    """Open an index, or list the pictures of a folder or archive. Raises InputError."""
    if isinstance(given, Index):
        return _of_index(given.table, given.source, given.table)
    path = Path(given)
    if path.suffix.lower() != ".csv":
        if data is not None:
            raise InputError(f"{path} is no index, and --data belongs to one: leave it out.")
        table, source, unlisted = list_pictures(path)
        notes = tuple(f"not looked into: {folder}: {reason}" for folder, reason in unlisted)
        return AuditInput(table, source, None, notes)
    try:
        index = Index.open(path, data)
    except InputError:
        with suppress(InputError):
            # A list whose names may be those of pictures in male/ and female/ beside it.
            if data is None and "split" not in read_index(path):
                table, source, _ = list_pictures(path)
                return AuditInput(table, source, None)
        raise
    return _of_index(index.table, index.source, read_cells(path, MAKE_INDEX))


def _of_index(table: pd.DataFrame, source: Source, written: pd.DataFrame) -> AuditInput:
    # A row that stands there twice is no copy of a picture, and clean would drop both.
    table = table.drop_duplicates(["path", "label"], ignore_index=True)
    return AuditInput(table, source, written)
