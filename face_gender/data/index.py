"""A folder or an archive of pictures -> index.csv: scan, hash, split, once and for good."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from face_gender import CLASSES
from face_gender.data.scan import _SEARCHED, _hash_all, _hash_one, _read_groups, _scan
from face_gender.data.sources import (
    ArchiveSource,
    FolderSource,
    Source,
)
from face_gender.data.split import SPLITS, _check_ratios, split_rows
from face_gender.data.tables import _text, read_index, write_index
from face_gender.errors import InputError, printable
from face_gender.files import (
    check_output,
)


@dataclass(frozen=True)
class IndexReport:
    """What `create_csv` wrote and what it left out. Can be passed wherever a path is taken.

    ``path``: the CSV; ``table``: its rows; ``unreadable``: (path, reason) of pictures that
    cannot be read; ``contradictions``: for each content that lies under both labels, its paths;
    ``duplicates``: how many rows repeat the bytes of an earlier row; ``others``: visible files in
    the class folders whose names do not end like a picture's.
    """

    path: Path
    table: pd.DataFrame
    unreadable: tuple[tuple[str, str], ...]
    contradictions: tuple[tuple[str, ...], ...]
    duplicates: int
    others: tuple[str, ...]

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def summary(self) -> str:
        """Return what was written and what was left out, as text of a few lines."""
        contradicting = sum(len(paths) for paths in self.contradictions)
        return (
            f"{self.counts().to_string()}\n"
            f"{printable(self.path)}: {len(self.table)} pictures, {self.duplicates} of them repeat "
            f"another's bytes; left out: {len(self.unreadable)} unreadable, "
            f"{contradicting} under both labels"
            f"{self._groups_in_words()}{self._others_in_words()}"
        )

    def _groups_in_words(self) -> str:
        if "group" not in self.table:
            return ""
        grouped = int((self.table["group"] != "").sum())
        return f"; {grouped} of {len(self.table)} pictures have a group"

    def _others_in_words(self) -> str:
        if not self.others:
            return ""
        return f"; {len(self.others)} no pictures by name ({printable(self.others[0])})"

    def counts(self) -> pd.DataFrame:
        """Return the number of pictures by split (rows) and class (columns)."""
        classes = self.table["label"].map(dict(enumerate(CLASSES)))
        counts = pd.crosstab(self.table["split"], classes)
        return counts.reindex(index=list(SPLITS), columns=list(CLASSES), fill_value=0)


def create_csv(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = (70, 15, 15),
    seed: int = 0,
    groups: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: bool = True,
) -> IndexReport:
    """Index the pictures of ``data`` and write the CSV ``path,label,split,sha256[,group]``.

    ``data``: a folder that holds male/ and female/, a .zip archive of one (at its root or one
    level down), or a CSV of an older form (``path,label`` or ``image_name,class``) beside its
    pictures. ``path`` is POSIX and relative to ``data``; ``label`` 0 = male, 1 = female.
    ``ratios``: shares of train, val and test, adding up to 100. ``groups``: a CSV ``path,group``;
    rows of one group (a person) stay in one split, as byte-identical files always do. The split
    depends on the contents, the groups, ``ratios`` and ``seed``, never on names or their order.
    Nothing but the CSV is written. Raises InputError, in one sentence, for all that is wrong.
    """
    data = Path(data)
    shares = _check_ratios(ratios)
    output = Path(output) if output is not None else default_output(data)
    if data.exists():
        check_output(output, [data, *([Path(groups)] if groups else [])])
        if output.exists() and not force:
            raise InputError(
                f"{output} exists, and a split is drawn once: use it, name another --output, or "
                "replace it with --force (force=True)."
            )
    scan = _scan(data)
    names = scan.names
    group_of = {**scan.groups, **(_read_groups(Path(groups), names) if groups else {})}
    _check_classes(scan.labels, data, ())
    hashes, unreadable = _hash_all(scan.source, names, progress)
    table = pd.DataFrame({"path": _text(names), "label": scan.labels, "split": ""})
    table["sha256"] = _text(hashes)
    if groups or group_of:
        table["group"] = _text([group_of.get(name, "") for name in names])
    table = table[table["sha256"] != ""].reset_index(drop=True)
    table, contradictions = _without_contradictions(table)
    _check_classes(table["label"].tolist(), data, unreadable)
    table["split"] = split_rows(table, shares, seed)
    write_index(table, output)
    duplicates = int(table["sha256"].duplicated().sum())
    unreadable = (*scan.unlisted, *unreadable)
    return IndexReport(output, table, unreadable, contradictions, duplicates, scan.others)


def list_pictures(
    data: str | os.PathLike[str],
) -> tuple[pd.DataFrame, Source, tuple[tuple[str, str], ...]]:
    """Return ``path`` and ``label`` of every picture of ``data`` by name, read or not.

    Also where to read them from, and (folder, reason) of folders that cannot be listed.
    Raises InputError as `create_csv` does.
    """
    scan = _scan(Path(data))
    table = pd.DataFrame({"path": _text(scan.names), "label": scan.labels})
    return table, scan.source, scan.unlisted


def find_data(index: str | os.PathLike[str], table: pd.DataFrame) -> Source:
    """Return the folder or the archive that an index lies in or beside, by its first pictures.

    Raises InputError where neither the CSV's folder nor an archive in it holds them.
    """
    folder = Path(index).absolute().parent
    names = table["path"].tolist()[:_SEARCHED]
    archives = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".zip")
    if any(os.path.isfile(folder / name) for name in names):
        return FolderSource(folder)
    for archive in archives:
        with suppress(InputError):
            source = ArchiveSource(archive)
            if not set(names).isdisjoint(source.names()):
                return source
    raise InputError(
        f"{os.fspath(index)} names pictures that lie neither beside it nor in an archive beside "
        f"it, such as {names[0] if names else 'none'}: name their folder or .zip with --data."
    )


def left_out(data: str | os.PathLike[str], index: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return (path, reason) of each picture of ``data`` that ``index`` has no row for."""
    scan = _scan(Path(data))
    rows = set(read_index(index)["path"])
    missing = [name for name in scan.names if name not in rows]
    other = "readable: it has a twin under the other label, or came after the index was made"
    return [(name, _hash_one(scan.source, name)[1] or other) for name in missing]


def default_output(data: str | os.PathLike[str]) -> Path:
    """Return where the index of ``data`` lies: inside a folder, beside a .zip or a CSV."""
    data = Path(data)
    return (data if data.is_dir() else data.parent) / "index.csv"


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
