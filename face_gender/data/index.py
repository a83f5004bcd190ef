"""The data of a training as one value: a table of pictures and the source they are read from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender import CLASSES
from face_gender.data.base_source import to_nfc, without_resume
from face_gender.data.hashing import (
    SAMPLED,
    check_matches,
    check_picture,
    count_matching,
    hash_and_check,
    row_hashes,
)
from face_gender.data.landmarks import add_landmarks
from face_gender.data.scan import SEARCHED, read_groups, scan_data
from face_gender.data.sources import FolderSource, Source, open_source
from face_gender.data.split import SPLITS, check_ratios, connected, split_rows
from face_gender.data.tables import read_index, text_column, write_index
from face_gender.errors import InputError, printable
from face_gender.faces.detector import detector_available
from face_gender.files import check_output


@dataclass(frozen=True)
class IndexReport:
    """What `Index.create` left out.

    ``unreadable``: (path, reason) of pictures that cannot be read; ``contradictions``: for each
    content that lies under both labels, its paths; ``duplicates``: how many rows repeat the bytes
    of an earlier row (these stay); ``others``: visible files in the class folders whose names do
    not end like a picture's.
    """

    unreadable: tuple[tuple[str, str], ...] = ()
    contradictions: tuple[tuple[str, ...], ...] = ()
    duplicates: int = 0
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        contradicting = sum(len(paths) for paths in self.contradictions)
        words = f"{self.duplicates} of them repeat another's bytes; "
        words += f"left out: {len(self.unreadable)} unreadable, {contradicting} under both labels"
        if self.others:
            words += f"; {len(self.others)} no pictures by name ({printable(self.others[0])})"
        return words


@dataclass(frozen=True, eq=False)
class Index:
    """The rows of a data set and where their pictures lie, opened and verified once.

    ``table``: ``path`` str, POSIX and relative to ``source``; ``label`` int64, 0 male, 1 female;
    and, where they are known, ``split``, ``sha256``, ``group`` and columns of one's own.
    ``path``: the CSV that the table was read from; ``report``: what `create` left out.
    Use `open` or `create`; an Index that is made of a table and a source is not verified.
    """

    table: pd.DataFrame
    source: Source
    path: Path | None = None
    report: IndexReport | None = None

    @classmethod
    def open(
        cls, index: Index | str | os.PathLike[str], data: str | os.PathLike[str] | None = None
    ) -> Index:
        """Read an index and see that its pictures are those of ``data``; an Index stays as it is.

        ``data``: the folder or the .zip, by default the one that the CSV lies in or beside.
        Raises InputError where the CSV is no index, where ``data`` cannot be found, or where it
        holds other pictures than those that the index was made of.
        """
        if isinstance(index, Index):
            return index
        table = read_index(index)
        if table.empty:
            raise InputError(f"{os.fspath(index)} has no rows: make it with data_split.py.")
        source = open_source(data) if data is not None else _find_source(Path(index), table)
        check_matches(table, source)
        return cls(table, source, Path(index))

    @classmethod
    @without_resume()
    def create(
        cls,
        data: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        ratios: Sequence[float] = (70, 15, 15),
        seed: int = 0,
        groups: str | os.PathLike[str] | None = None,
        force: bool = False,
        progress: bool = True,
        landmarks: bool | None = None,
    ) -> Index:
        """Index the pictures of ``data`` and write the CSV ``path,label,split,sha256[,group]``.

        ``data``: a folder that holds male/ and female/, a .zip archive of one (at its root or one
        level down), or a CSV of an older form (``path,label`` or ``image_name,class``) beside its
        pictures. ``ratios``: percentages of train, val and test. ``groups``: a CSV
        ``path,group``; rows of one group (a person) stay in one split, as byte-identical files
        always do. The split depends on the contents, the groups, ``ratios`` and ``seed``, never
        on names or their order. ``landmarks``: also find the faces and write the columns of
        `landmarks.find_landmarks` (None: where the detector's packages are installed). Nothing
        but the CSV is written. Raises InputError.
        """
        if not isinstance(seed, Integral):  # NumPy's too
            raise InputError(f"the seed is a whole number, not {seed!r}.")
        data = Path(data)
        fractions = check_ratios(ratios)
        output = Path(output) if output is not None else default_output(data)
        if data.exists():
            _check_output(output, [data, *([Path(groups)] if groups else [])], force)
        scan = scan_data(data)
        _check_classes(scan.labels, data, ())
        group_of = scan.groups
        if groups:
            given = read_groups(Path(groups), scan.names)
            group_of = _joined(scan.names, given, group_of) if group_of else given
        hashes, unreadable = hash_and_check(scan.source, scan.names, progress)
        table = pd.DataFrame({"path": text_column(scan.names), "label": scan.labels, "split": ""})
        table["sha256"] = text_column(hashes)
        if groups or group_of:
            table["group"] = text_column([group_of.get(name, "") for name in scan.names])
        table = table[table["sha256"] != ""].reset_index(drop=True)
        table, contradictions = _without_contradictions(table)
        _check_classes(table["label"].tolist(), data, unreadable)
        table["split"] = split_rows(table, fractions, seed)
        if detector_available() if landmarks is None else landmarks:
            table = add_landmarks(table, scan.source, progress)
        write_index(table, output)
        copies = int(table["sha256"].duplicated().sum())
        unreadable = (*scan.unlisted, *unreadable)
        report = IndexReport(unreadable, contradictions, copies, scan.others)
        return cls(table, scan.source, output, report)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def name(self) -> str:
        """The CSV's path, or words in its place, to open a sentence with."""
        return "the index" if self.path is None else os.fspath(self.path)

    def split(self, name: str | None) -> Index:
        """Return the rows of one split, of all splits for None. Raises InputError for none."""
        if name is None:
            return self
        if name not in SPLITS:
            raise InputError(f"there is no split {name!r}: choose one of {', '.join(SPLITS)}.")
        _check_has_split(self)
        rows = self.table[self.table["split"] == name]
        if rows.empty:
            raise InputError(f"{self.name} has no pictures in split {name!r}: use other ratios.")
        return replace(self, table=rows)

    def with_landmarks(self, progress: bool = True, threads: int | None = None) -> Index:
        """Return the index with the columns of `find_landmarks`, found now where it has none.

        Raises InputError where the detector's packages are missing.
        """
        return replace(self, table=add_landmarks(self.table, self.source, progress, threads))

    def hashes(self) -> list[str]:
        """Return each row's sha256, of its file where the table has none; "" for no file."""
        return row_hashes(self.table, self.source)

    def count_seen(self, hashes: npt.ArrayLike) -> int:
        """Return how many rows have one of these hashes, of 64 bits: `Checkpoint.seen_hashes`."""
        known = {each % 2**64 for each in np.asarray(hashes).tolist()}
        if not known:
            return 0
        return sum(int(each[:16], 16) in known for each in self.hashes() if each)

    def left_out(self) -> list[tuple[str, str]]:
        """Return (path, reason) of each picture of the source that the table has no row for."""
        rows = set(map(to_nfc, self.table["path"]))
        other = "readable: it has a twin under the other label, or came after the index was made"
        return [
            (name, check_picture(self.source, name)[1] or other)
            for name in scan_data(self.source.path).names
            if to_nfc(name) not in rows
        ]

    def counts(self) -> pd.DataFrame:
        """Return the number of pictures by split (rows) and class (columns).

        Raises InputError where the index has no splits.
        """
        _check_has_split(self)
        classes = self.table["label"].map(dict(enumerate(CLASSES)))
        counts = pd.crosstab(self.table["split"], classes)
        return counts.reindex(index=list(SPLITS), columns=list(CLASSES), fill_value=0)

    def summary(self) -> str:
        """Return the counts, and what was left out where that is known, in a few lines."""
        words = f"{printable(self.name)}: {len(self)} pictures"
        words += f", {self.report}" if self.report else ""
        if "group" in self.table:
            grouped = int((self.table["group"] != "").sum())
            words += f"; {grouped} of {len(self)} pictures have a group"
        if "faces" in self.table:
            faces = pd.to_numeric(self.table["faces"], errors="coerce").fillna(0)
            words += f"; no face found in {int((faces == 0).sum())}"
            words += f", several in {int((faces > 1).sum())}"
        return f"{self.counts().to_string()}\n{words}"


def _check_has_split(index: Index) -> None:
    if "split" not in index.table:
        raise InputError(
            f"{index.name} has no column split: make one with data_split.py {index.name} "
            "--output NEW; evaluation alone can do without (--split all, split=None)."
        )


def list_pictures(
    data: str | os.PathLike[str],
) -> tuple[pd.DataFrame, Source, tuple[tuple[str, str], ...]]:
    """Return ``path``, ``label``, a list's ``group``, of every picture of ``data``, read or not.

    Also where to read them from, and (folder, reason) of folders that cannot be listed.
    Raises InputError as `Index.create` does.
    """
    scan = scan_data(Path(data))
    table = pd.DataFrame({"path": text_column(scan.names), "label": scan.labels})
    if scan.groups:
        table["group"] = text_column([scan.groups.get(name, "") for name in scan.names])
    return table, scan.source, scan.unlisted


def default_output(data: str | os.PathLike[str]) -> Path:
    """Return where the index of ``data`` lies: inside a folder, beside a .zip or a CSV."""
    data = Path(data)
    return (data if data.is_dir() else data.parent) / "index.csv"


def _check_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    check_output(output, inputs)
    if output.exists() and not force:
        raise InputError(
            f"{output} exists, and a split is drawn once: use it, name another --output, or "
            "replace it with --force (force=True)."
        )


def _joined(names: Sequence[str], *groups: dict[str, str]) -> dict[str, str]:
    """Return groups in which pictures of one group of any kind are together."""
    columns = [[each.get(name, "") for name in names] for each in groups]
    joined: dict[str, str] = {}
    for rows in connected(*columns):
        group = next((column[row] for column in columns for row in rows if column[row]), "")
        joined |= {names[row]: group for row in rows}
    return joined


def _find_source(index: Path, table: pd.DataFrame) -> Source:
    """Return the folder or the archive that an index lies in or beside, by its first pictures."""
    folder = index.absolute().parent
    names = table["path"].tolist()[:SEARCHED]
    beside = FolderSource(folder)
    found: list[Source] = [beside] if any(beside.find(name) for name in names) else []
    # Archives may be large, and are not opened where the folder has most.
    if found and 2 * count_matching(table, beside) > min(SAMPLED, len(table)):
        return beside
    for archive in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".zip"):
        with suppress(InputError):
            source = open_source(archive)
            if not set(names).isdisjoint(source.names()):
                found.append(source)
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(
            f"{index} names pictures that lie neither beside it nor in an archive beside it, such "
            f"as {names[0]}: name their folder or .zip with --data, or make an index of a list "
            "with data_split.py."
        )
    counts = [count_matching(table, source) for source in found]
    best = [each for each, count in zip(found, counts, strict=True) if count == max(counts)]
    # Where the bytes are known, the best are alike; and an archive may have been unpacked here.
    if len(best) == 1 or "sha256" in table or best[0] is beside:
        return best[0]
    raise InputError(
        f"{index} names pictures that lie in {best[0].path.name} and in {best[1].path.name}: "
        "name the right one with --data."
    )


def _without_contradictions(
    table: pd.DataFrame,
) -> tuple[pd.DataFrame, tuple[tuple[str, ...], ...]]:
    """Leave out the contents that lie under both labels, and return their paths."""
    both = table.groupby("sha256")["label"].transform("nunique") > 1
    paths = table[both].groupby("sha256")["path"].apply(tuple)
    return table[~both].reset_index(drop=True), tuple(sorted(paths))


def _check_classes(
    labels: Sequence[int], data: Path, unreadable: Sequence[tuple[str, str]]
) -> None:
    """Raise InputError where a class is too small, naming an unreadable picture if there is one."""
    for label, folder in enumerate(CLASSES):
        count = labels.count(label)
        if count < len(SPLITS):
            left_out = f" ({len(unreadable)} cannot be read, such as " if unreadable else ""
            left_out += f"{unreadable[0][0]}: {unreadable[0][1]})" if unreadable else ""
            raise InputError(
                f"{data}: class {folder} has {count} usable pictures, and a split needs at "
                f"least {len(SPLITS)}: add pictures{left_out}."
            )
