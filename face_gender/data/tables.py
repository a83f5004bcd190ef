"""CSVs: the index, as this kit writes it, and lists of paths and labels, as people have them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd

from face_gender import CLASSES
from face_gender.data.base_source import is_outside, to_nfc
from face_gender.data.split import SPLITS
from face_gender.errors import InputError, excerpt, first_line
from face_gender.files import has_image_suffix, read_file, write_atomically

MAKE_INDEX = "make an index with data_split.py"
_DELIMITERS = ",;\t|"
_HEAD = 2**16  # characters that tell what separates cells; below the csv module's limit of one
_MOST_COLUMNS = 100  # short rows are filled up to as many
# Names of columns, without case, spaces, dashes and dots; the first ones win over all others.
PATH_COLUMNS = (
    "path", "imagename", "filename", "filepath", "file", "image", "imagepath", "imagefile",
    "imageid", "img", "imgname", "imgpath", "name", "photo", "picture", "путь", "файл", "имяфайла",
    "имя", "фото", "изображение",
)  # fmt: skip
_LABELS = ("label", "class", "labels", "classname", "gender", "sex", "target", "пол", "метка")
_FIRST = frozenset(("path", "imagename", "label", "class", "group"))
# Of these, 1 and 2 are male and female by ISO/IEC 5218; elsewhere they may be anything.
_OF_ISO_5218 = frozenset(("gender", "sex", "пол"))
_OTHER_COLUMNS = ("split", "sha256", "group")
_WORDS = (
    "male males man men m boy boys мужчина мужчины мужской мужские муж м",
    "female females woman women f w girl girls женщина женщины женский женские жен ж",
)
_CLASS_OF = {word: label for label, words in enumerate(_WORDS) for word in words.split()}
_CELLS = {**_CLASS_OF, "0": 0, "0.0": 0, "1": 1, "1.0": 1}
_YES, _NO = ("1", "1.0", "true", "yes", "да"), ("0", "0.0", "-1", "-1.0", "false", "no", "нет")
_BINARY = re.compile("[\0-\x08\x0e-\x1f]")  # no header has these
_LONE_BYTES = re.compile("[\udc80-\udcff]")
_CYRILLIC = re.compile("[\x00-\x7f\u0400-\u04ff№«»–—]*")


def class_of(word: str) -> int | None:
    """Return the label that a word names, in any case and with spaces around; None for none.

    male, man, men, m, boy, мужчины, м, …: 0; female, woman, women, f, w, girl, женщины, ж, …: 1.
    """
    return _CLASS_OF.get(_plain(word))


def write_index(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write an index, or a table beside one, atomically as UTF-8.

    Names that are not UTF-8 keep their bytes.
    """
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # left unquoted before Python 3.13, and then read as a line's end
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def read_index(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read an index: ``path`` str, ``label`` int64, and ``split``, ``sha256``, ``group`` if there.

    Lists of paths and labels are read too, as `read_labels` does. Raises InputError for a missing
    file, missing columns, unknown labels or splits, and paths that lead out of the folder of the
    pictures.
    """
    table = read_labels(path, MAKE_INDEX)
    unknown = set(table["split"]) - set(SPLITS) if "split" in table else set()
    if unknown:
        raise InputError(
            f"{os.fspath(path)}: split {excerpt(min(unknown))!r} is not train, val or test: "
            f"{MAKE_INDEX}."
        )
    check_paths(table["path"].tolist(), path)
    return table


def read_labels(path: str | os.PathLike[str], cure: str) -> pd.DataFrame:
    """Read a list of paths and labels, whatever its columns are called; ``label`` is int64.

    The columns become ``path`` and ``label`` (and ``split``, ``sha256``, ``group``), the others
    stay. A label is 0, 1 or a word that `class_of` knows; in a column ``male`` or ``female`` it is
    1 or 0, -1, true or false; in one of a sex, 1 and 2 as in ISO/IEC 5218. Raises InputError with
    the columns or values found where that is not plain, and ``cure`` where there is no table.
    """
    table = read_cells(path, cure)
    path_column = find_path_column(table)
    label_column = find_column(table, _LABELS, _are_labels)
    if label_column is None:
        label_column = find_column(table, CLASSES, _are_labels)
    if path_column is None or label_column is None:
        missing = [n for n, c in (("path", path_column), ("label", label_column)) if c is None]
        raise InputError(
            f"{os.fspath(path)} has no column that is plainly the {' or the '.join(missing)} "
            f"(columns: {excerpt(', '.join(table))}; wanted: path, filename or image, and label, "
            f"gender or sex): {cure}."
        )
    labels = _read_column(table, label_column)
    if None in labels:
        row = labels.index(None)
        found = sorted({str(cell) for cell in table[label_column]})
        raise InputError(
            f"{os.fspath(path)}, row {row + 1}: {excerpt(label_column)} "
            f"{excerpt(table[label_column].iloc[row])!r} is not 0, 1, male or female, nor "
            f"another word for one of the two (found: {excerpt(', '.join(found))})."
        )
    renamed = {path_column: "path", label_column: "label"}
    for name in _OTHER_COLUMNS:
        first = next((column for column in table if _key(column) == name), name)
        renamed |= {first: name} if name not in table else {}
    stays = [c for c in table if c in renamed or c not in ("path", "label")]
    table = table[stays].rename(columns=renamed)
    table["label"] = np.array(labels, dtype=np.int64)
    return table


def check_paths(names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Raise InputError for a path that leads elsewhere: an index may be anybody's."""
    outside = next((name for name in names if is_outside(name)), None)
    if outside is not None:
        raise InputError(
            f"{os.fspath(path)} names {excerpt(outside)}, which leads out of the folder: "
            "put the CSV into the folder that holds all the pictures."
        )


def read_cells(path: str | os.PathLike[str], cure: str) -> pd.DataFrame:
    """Read a table with a header, all of it as text; spaces around a column's name are left out.

    Cells are separated by commas, semicolons, tabs or bars; the text is UTF-8, where other bytes
    are kept, or UTF-16. Raises InputError, which ends in ``cure``.
    """
    path = os.fspath(path)
    cells: list[str] = []
    try:
        decoded = _decode(read_file(path, of_any_size=True))
        if _BINARY.search(decoded.partition("\n")[0]) or decoded.startswith("\udc89PNG"):
            raise InputError(f"{path} is no CSV but a binary file: {cure}.")
        text, delimiter = _find_delimiter(decoded)
        rows = _rows(text, delimiter)
        columns = next(rows, [])
        # Of columns, those that matter are legible; pandas may refuse what is not UTF-8.
        columns = [
            decode_1251(name).encode("utf-8", "replace").decode().strip() for name in columns
        ]
        if len(columns) > _MOST_COLUMNS:
            raise InputError(f"{path} has over {_MOST_COLUMNS} columns: {cure}.")
        for row in rows:
            # Not a list of rows: collecting garbage among so many would double the time.
            cells += row if len(row) == len(columns) else _fitted(row, columns, path)
    except (OSError, UnicodeError, csv.Error, MemoryError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path} cannot be read ({reason}): {cure}.") from error
    if not columns:
        raise InputError(f"{path} is empty: {cure}.")
    if len(set(columns)) < len(columns):
        raise InputError(f"{path} names a column twice: {cure}.")
    return pd.DataFrame(
        {name: text_column(cells[i :: len(columns)]) for i, name in enumerate(columns)}
    )


def text_column(values: Sequence[str]) -> pd.Series:
    """Return a column of dtype object: pandas' own str may refuse names that are not UTF-8."""
    return pd.Series(list(values), dtype=object)


def decode_1251(text: str) -> str:
    """Return a text of bytes that are no UTF-8 as code page 1251, if it then is Russian."""
    if _LONE_BYTES.search(text):
        with suppress(UnicodeError):
            decoded = text.encode("utf-8", "surrogateescape").decode("cp1251")
            if _CYRILLIC.fullmatch(decoded):
                return decoded
    return text


def _decode(data: bytes) -> str:
    """Return a file's text; bytes that are no UTF-8 are kept as lone surrogates."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if len(data) > 1 and bool(data[0]) != bool(data[1]):  # a header begins with an ASCII letter
        return data.decode("utf-16-le" if data[0] else "utf-16-be")
    # Spreadsheets put a byte-order mark before the first column's name.
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _find_delimiter(text: str) -> tuple[str, str]:
    """Return the text of a table, and what separates its cells by what its header then is."""
    if said := re.match(r"sep=(.)\r?\n", text):  # which Excel writes and heeds
        return text[said.end() :], said[1]

    def promise(delimiter: str) -> tuple[int, int]:
        columns = next(_rows(text[:_HEAD], delimiter), [])
        known = sum(_key(name) in (*PATH_COLUMNS, *_LABELS, *_OTHER_COLUMNS) for name in columns)
        return known, len(columns)

    return text, max(_DELIMITERS, key=promise)


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    return (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row)


def _fitted(row: list[str], columns: list[str], path: str) -> list[str]:
    """Return a row with as many cells as there are columns. Raises InputError for more."""
    if any(row[len(columns) :]):
        raise InputError(
            f"{path} has a row of {len(row)} values under {len(columns)} names "
            f"({excerpt(','.join(row))}): put quotes around a name that holds a comma."
        )
    return (row + [""] * len(columns))[: len(columns)]


def find_column(
    table: pd.DataFrame, known: Sequence[str], fits: Callable[[pd.DataFrame, str], bool]
) -> str | None:
    """Return the column that goes by one of some names, None for none.

    Case, spaces, dashes and dots do not count. Of `_FIRST`, the first name, as it is, wins over
    all others; of several columns, one whose cells fit. None also where two do.
    """
    if known[0] in _FIRST and known[0] in table:
        return known[0]
    found = sorted((c for c in table if _key(c) in known), key=lambda c: known.index(_key(c)))
    if len(found) > 1:
        found = [column for column in found if fits(table, column)]
    is_plain = len(found) == 1 or (found and _key(found[0]) in _FIRST)
    return found[0] if is_plain else None


def find_path_column(table: pd.DataFrame) -> str | None:
    """Return the column that names the pictures, None where none does plainly."""
    return find_column(table, PATH_COLUMNS, _are_pictures)


def _are_pictures(table: pd.DataFrame, column: str) -> bool:
    """Tell whether all cells of a column end like the name of a picture."""
    return all(map(has_image_suffix, table[column]))


def _are_labels(table: pd.DataFrame, column: str) -> bool:
    return None not in _read_column(table, column)


def _read_column(table: pd.DataFrame, column: str) -> list[int | None]:
    """Return the label that each cell of a column stands for, None where it does for none."""
    plain = {cell: _plain(decode_1251(cell)) for cell in set(table[column])}
    key = _key(column)
    words: Mapping[str, int] = _CELLS
    if key in CLASSES:
        yes = CLASSES.index(key)
        words = dict.fromkeys(_YES, yes) | dict.fromkeys(_NO, 1 - yes)
    elif key in _OF_ISO_5218 and set(plain.values()) == {"1", "2"}:
        words = {"1": 0, "2": 1}
    label_of = {cell: words.get(word) for cell, word in plain.items()}
    return [label_of[cell] for cell in table[column]]


def _plain(word: str) -> str:
    return to_nfc(word).strip().casefold()


def _key(column: str) -> str:
    return re.sub(r"[\s_.-]+", "", _plain(column))
