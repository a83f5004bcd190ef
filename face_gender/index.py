"""A folder or an archive of pictures -> index.csv: scan, hash, split, once and for good."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.files import (
    ArchiveSource,
    FolderSource,
    InputError,
    Source,
    check_output,
    cpu_count,
    excerpt,
    has_image_suffix,
    is_hidden,
    leads_out,
    open_regular,
    open_source,
    shown,
    write_atomically,
)
from face_gender.images import UnreadableImage, decode_image, is_bomb
from face_gender.sound import sound_size

SPLITS = ("train", "val", "test")
_OLDER_NAMES = {"image_name": "path", "class": "label"}
_MOST_COLUMNS = 100  # short rows are filled up to as many
_SEARCHED = 1_000  # rows that tell whether an index belongs to some data
# Files that one worker hashes at a time: an interruption waits for the end of these.
_CHUNK = 100
# Starting processes takes longer than hashing so few files.
_WORTH_PROCESSES = 2_000
_MOST_PROCESSES = 61  # that Windows can wait for

_Hashed = tuple[str, str]  # sha256, or "" and the reason


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
            f"{shown(self.path)}: {len(self.table)} pictures, {self.duplicates} of them repeat "
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
        return f"; {len(self.others)} no pictures by name ({shown(self.others[0])})"

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
    outside = next((name for name in names if leads_out(name)), None)
    if outside is not None:
        raise InputError(
            f"{os.fspath(path)} names {excerpt(outside)}, which leads out of the folder: "
            "put the CSV into the folder that holds all the pictures."
        )


def split_rows(table: pd.DataFrame, shares: Sequence[float], seed: int) -> npt.NDArray[np.str_]:
    """Return "train", "val" or "test" for every row, stratified by label.

    Rows that share ``sha256`` or a non-empty ``group`` form one unit, and units are dealt out
    whole: those of both labels first, then the largest first, equals in an order drawn from
    ``seed`` and their content. Each goes where the share of the places filled is smallest
    (Webster's method), which meets the exact quota with single pictures and stays proportional
    with large groups; while a class has only as many units left as it has empty splits, it goes
    to one of these. Raises InputError where a class has fewer units than splits.
    """
    labels, hashes = table["label"].tolist(), table["sha256"].tolist()
    units = _units(table)
    counts = [_count(labels, rows) for rows in units]
    keys = [_key(seed, min(hashes[row] for row in rows)) for rows in units]
    # Were one label dealt out before, a unit of both might be owed to two splits at once.
    mixed = [min(count) > 0 for count in counts]
    order = sorted(range(len(units)), key=lambda i: (not mixed[i], -len(units[i]), keys[i]))
    used = [i for i, share in enumerate(shares) if share > 0]
    totals = [sum(count[label] for count in counts) for label in (0, 1)]
    quota = [_quotas(total, [shares[i] for i in used]) for total in totals]
    left = [sum(count[label] > 0 for count in counts) for label in (0, 1)]
    for label, units_left in enumerate(left):
        if 0 < units_left < len(used):
            raise InputError(
                f"class {CLASSES[label]} has only {units_left} groups of pictures that "
                f"belong together: {len(used)} splits need as many; add pictures or groups."
            )
    filled = [[0] * len(used) for _ in left]
    splits = [""] * len(labels)
    for unit in order:
        chosen = _choose(filled, quota, counts[unit], left)
        for label, count in enumerate(counts[unit]):
            filled[label][chosen] += count
            left[label] -= count > 0
        for row in units[unit]:
            splits[row] = SPLITS[used[chosen]]
    return np.array(splits, dtype="<U5")


def _count(labels: Sequence[int], rows: Sequence[int]) -> tuple[int, int]:
    """Return how many of the rows have label 0, and how many have label 1."""
    ones = sum(labels[row] for row in rows)
    return len(rows) - ones, ones


def _choose(
    filled: Sequence[Sequence[int]],
    quota: Sequence[Sequence[float]],
    count: tuple[int, int],
    left: Sequence[int],
) -> int:
    """Pick the split for a unit with ``count`` pictures of each label.

    ``filled`` and ``quota`` are by label, then by split; ``left`` are the units by label.
    """
    present = [label for label in (0, 1) if count[label]]
    levels = [
        [
            (taken + count[label] / 2) / max(places, 1e-9)
            for taken, places in zip(filled[label], quota[label], strict=True)
        ]
        for label in present
    ]
    if len(present) == 1:
        level = [each * count[present[0]] for each in levels[0]]
    else:  # numpy rounds a sum of products in its own way, by which ties have always been broken
        level = (np.array(levels).T @ np.array(count)).tolist()
    owed = [filled[label] for label in present if left[label] <= filled[label].count(0)]
    splits = range(len(level))
    if owed:
        return min((i for i in splits if any(row[i] == 0 for row in owed)), key=level.__getitem__)
    return min(splits, key=level.__getitem__)


def _quotas(total: int, shares: Sequence[float]) -> list[float]:
    """Split ``total`` into whole numbers by largest remainder, each at least 1 if it can be."""
    exact = [total * share / sum(shares) for share in shares]
    quotas = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - exact[i])
    for i in by_remainder[: total - sum(quotas)]:
        quotas[i] += 1
    for i, quota in enumerate(quotas):
        if quota == 0 and max(quotas) > 1:
            quotas[quotas.index(max(quotas))] -= 1
            quotas[i] = 1
    return [float(quota) for quota in quotas]


def _key(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def _units(table: pd.DataFrame) -> list[list[int]]:
    """Return the row positions of each set of rows connected by content or by group."""
    hashes = table["sha256"].tolist()
    groups = table["group"].tolist() if "group" in table else []
    parent = list(range(len(hashes)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for column in (hashes, groups):
        first: dict[str, int] = {}
        for row, value in enumerate(column):
            if value != "" and first.setdefault(value, row) != row:
                parent[root(row)] = root(first[value])
    members: dict[int, list[int]] = {}
    for row in range(len(parent)):
        members.setdefault(root(row), []).append(row)
    return list(members.values())


def default_output(data: str | os.PathLike[str]) -> Path:
    """Return where the index of ``data`` lies: inside a folder, beside a .zip or a CSV."""
    data = Path(data)
    return (data if data.is_dir() else data.parent) / "index.csv"


def _check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    total = sum(ratios)
    finite = all(math.isfinite(ratio) for ratio in ratios)
    if len(ratios) != 3 or not finite or min(ratios) < 0 or ratios[0] == 0:
        raise InputError(
            f"ratios are three numbers for {', '.join(SPLITS)}, that of train above 0."
        )
    if abs(total - 100) > 1e-6 and abs(total - 1) > 1e-6:
        raise InputError(f"ratios must add up to 100, not to {total:g}: for example 70 15 15.")
    return tuple(ratios)


class _Scan(NamedTuple):
    """Where to read from, the pictures' sorted names and labels, their groups, other files."""

    source: Source
    names: list[str]
    labels: list[int]
    groups: dict[str, str]
    others: tuple[str, ...]
    unlisted: tuple[tuple[str, str], ...] = ()


def _scan(data: Path) -> _Scan:
    """Find the pictures of a folder, an archive or an older CSV."""
    if data.suffix.lower() == ".csv" and data.is_file():
        return _scan_older_csv(data)
    source = open_source(data)
    unlisted: list[tuple[str, str]] = []
    if isinstance(source, FolderSource):
        found = _folder_names(data, unlisted)
    else:
        found = _archive_names(list(source.names()), data)
        unlisted += source.unlisted
    label_of = {name: label for name, label in found if has_image_suffix(name)}
    for label, folder in enumerate(CLASSES):
        if label not in label_of.values():
            raise InputError(
                f"{data} has no pictures in {folder}/: put that class's pictures there."
            )
    names = sorted(label_of)
    others = tuple(sorted(name for name, _ in found if name not in label_of))
    labels = [label_of[name] for name in names]
    return _Scan(source, names, labels, {}, others, tuple(unlisted))


def _folder_names(data: Path, unlisted: list[tuple[str, str]]) -> list[tuple[str, int]]:
    """Return the visible files in the class folders, with their labels."""
    try:
        inside = sorted(path for path in data.iterdir() if path.is_dir())
    except OSError as error:
        raise InputError(
            f"{data} cannot be listed ({error.strerror}): check its permissions."
        ) from error
    folders = [path for path in inside if _label(path.name) is not None]
    if not folders:
        inner = [path for path in inside if (path / "male").is_dir()]
        hint = f"did you mean {inner[0]}?" if inner else "name the folder that holds these two."
        raise InputError(f"{data} holds no folders male/ and female/: {hint}")
    found = []
    for folder in folders:
        source = FolderSource(folder)
        names = [f"{folder.name}/{name}" for name in source.names()]
        found += [(name, _label(folder.name) or 0) for name in names if not is_hidden(name)]
        unlisted += [(f"{folder.name}/{name}", reason) for name, reason in source.unlisted]
    return found


def _archive_names(names: list[str], data: Path) -> list[tuple[str, int]]:
    """Return the visible members in the class folders, with their labels."""
    visible = [name for name in names if not is_hidden(name)]
    for depth in (0, 1):
        found, tops = [], set()
        for name in visible:
            *parts, _ = name.split("/", depth + 1)
            if len(parts) > depth and (label := _label(parts[depth])) is not None:
                found.append((name, label))
                tops.add("/".join(parts[:depth]))
        if len(tops) > 1:
            raise InputError(
                f"{data} holds male/ and female/ in several folders "
                f"({', '.join(sorted(tops)[:3])}): make one archive of each."
            )
        if found:
            return found
    raise InputError(
        f"{data} holds no pictures in male/ and female/, at its root or one level down: "
        "make an archive of the folder that holds these two."
    )


def _label(folder: str) -> int | None:
    name = folder.lower()
    return CLASSES.index(name) if name in CLASSES else None


def _scan_older_csv(path: Path) -> _Scan:
    """Find the pictures that a CSV of an older form names, beside the CSV or in class folders."""
    table = _read_rows(path)
    root = path.parent
    named = [_posix(name) for name in table["path"]]
    labels = table["label"].tolist()
    names = [_locate(root, name, label) for name, label in zip(named, labels, strict=True)]
    _check_paths(names, path)
    if not any(os.path.isfile(root / name) for name in names[:_SEARCHED]):
        example = excerpt(named[0]) if named else "none"
        raise InputError(
            f"{path} names pictures that are not there, such as {example}: "
            "put the CSV into the folder that its paths start from."
        )
    label_of: dict[str, int] = {}
    for name, label in zip(names, labels, strict=True):
        if label_of.setdefault(name, label) != label:
            raise InputError(
                f"{path} gives {excerpt(name)} both labels: leave one of the rows out."
            )
    groups = dict(zip(names, table["group"], strict=True)) if "group" in table else {}
    keep = sorted(name for name in label_of if has_image_suffix(name) and not is_hidden(name))
    others = tuple(sorted(label_of.keys() - set(keep)))
    return _Scan(FolderSource(root), keep, [label_of[name] for name in keep], groups, others)


def _posix(name: str) -> str:
    """Return a path that a person or a Windows program wrote as the index writes it."""
    return name.replace("\\", "/").removeprefix("./")


def _locate(root: Path, name: str, label: int) -> str:
    """Return the path relative to ``root`` of a picture that an older CSV names."""
    if Path(name).is_absolute() and Path(name).is_relative_to(root.absolute()):
        name = Path(name).relative_to(root.absolute()).as_posix()
    inside = name.removeprefix(f"{root.absolute().name}/")
    candidates = [name, f"{CLASSES[label]}/{name}", inside]
    return next((each for each in candidates if os.path.isfile(root / each)), name)


def _read_groups(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Read ``path,group``; its paths are relative to the data or to what holds male/, female/."""
    table = read_cells(path, "name a CSV with the columns path and group")
    if "path" not in table or "group" not in table:
        raise InputError(f"{path} must have the columns path and group.")
    group_of: dict[str, str] = {}
    for name, group in zip(table["path"], table["group"], strict=True):
        if group_of.setdefault(_posix(name), group) != group:
            raise InputError(f"{path} gives {excerpt(name)} two groups: leave one of the rows out.")
    found = {}
    for name in names:
        known = _posix(name)
        group = group_of.get(known, group_of.get(known.partition("/")[2], ""))
        if group:
            found[name] = group
    if not found:
        example = next(iter(group_of), "nothing")
        raise InputError(
            f"{path} names no picture of the data (it has {excerpt(example)}, the data has "
            f"{names[0]}): its paths must be relative to the data."
        )
    return found


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


def _hash_all(
    source: Source, names: Sequence[str], progress: bool
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Return each file's sha256, "" for one that is no readable picture, and these' reasons."""
    hashes: list[str] = []
    unreadable: list[tuple[str, str]] = []
    with tqdm(total=len(names), desc="index", unit="file", disable=not progress) as bar:
        for chunk in _hash_chunks(source, names):
            for digest, reason in chunk:
                if reason:
                    unreadable.append((names[len(hashes)], reason))
                hashes.append(digest)
            bar.update(len(chunk))
    return hashes, tuple(unreadable)


def _hash_chunks(source: Source, names: Sequence[str]) -> Iterator[list[_Hashed]]:
    """Yield what `_hash_one` returns for each name, in order, some names at a time."""
    done = 0
    if len(names) >= _WORTH_PROCESSES and not multiprocessing.current_process().daemon:
        # Threads would wait for each other: at tens of KB a file, most of the work is Python's.
        # No processes can be had where semaphores or memory are short; or one may be killed.
        with suppress(ImportError, OSError, BrokenProcessPool):
            workers = min(_MOST_PROCESSES, cpu_count())
            pool = _process_pool(source, workers)
            for chunk in _map_in_order(pool, workers, _hash_in_worker, _cut(names, _CHUNK)):
                done += len(chunk)
                yield chunk
    workers = min(32, cpu_count())
    size = max(1, min(_CHUNK, len(names) // (4 * workers)))  # few files too go to all threads
    hash_here = partial(_hash_names, source)
    yield from _map_in_order(
        ThreadPoolExecutor(workers), workers, hash_here, _cut(names[done:], size)
    )


def _cut(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def _map_in_order(
    pool: Executor,
    workers: int,
    function: Callable[[Sequence[str]], list[_Hashed]],
    chunks: Iterable[Sequence[str]],
) -> Iterator[list[_Hashed]]:
    """Yield the results of ``function`` in order; the pool never holds more than some chunks."""
    waiting: deque[Future[list[_Hashed]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(function, chunk))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _process_pool(source: Source, workers: int) -> ProcessPoolExecutor:
    """Start workers, so that a Ctrl-C while they start is not theirs to answer either."""
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(source,))
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool.submit(int)  # forks them all, and what is held back here is in them too
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


_worker_source: Source  # in a worker process: where to read, sent once instead of with each chunk


def _start_worker(source: Source) -> None:
    """Make a process a worker that leaves Ctrl-C to its parent and ends with it."""
    global _worker_source
    _worker_source = source
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _hash_in_worker(names: Sequence[str]) -> list[_Hashed]:
    return _hash_names(_worker_source, names)


def _hash_names(source: Source, names: Sequence[str]) -> list[_Hashed]:
    return [_hash_one(source, name) for name in names]


def _hash_one(source: Source, name: str) -> _Hashed:
    try:
        data = source.read(name)
        if not _is_sound(data):
            decode_image(data, name)
    except UnreadableImage as error:
        return "", error.reason
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    return hashlib.sha256(data).hexdigest(), ""


def _is_sound(data: bytes) -> bool:
    """Tell whether a picture can be decoded, as far as its structure tells; False: perhaps."""
    size = sound_size(data)
    return size is not None and not is_bomb(*size, data)


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


def hashes_of(source: Source, names: Iterable[str]) -> list[str]:
    """Return the sha256 of each name's bytes, "" for one that cannot be read."""

    def digest(name: str) -> str:
        try:
            return hashlib.sha256(source.read(name)).hexdigest()
        except OSError:
            return ""

    with ThreadPoolExecutor(min(32, cpu_count())) as pool:
        return list(pool.map(digest, names))


def row_hashes(table: pd.DataFrame, source: Source) -> list[str]:
    """Return each row's sha256, made from the file where the index has none; "" for no file."""
    stored = table["sha256"].tolist() if "sha256" in table else [""] * len(table)
    names = table["path"].tolist()
    missing = [i for i, value in enumerate(stored) if not _is_sha256(value)]
    made = hashes_of(source, [names[i] for i in missing])
    for i, value in zip(missing, made, strict=True):
        stored[i] = value
    return [value.lower() for value in stored]


def check_matches(table: pd.DataFrame, source: Source, sample: int = 64) -> None:
    """Raise InputError where an index was made of other pictures than those of ``source``.

    Evenly spaced rows are compared, not all: it is another data set's index that this is to
    find. Files that are gone or changed since are not its concern, unless most of them are.
    """
    places = np.linspace(0, len(table) - 1, min(sample, len(table))).astype(int)
    rows = table.iloc[places]
    names = rows["path"].tolist()
    stored = rows["sha256"].tolist() if "sha256" in rows else [""] * len(rows)
    found = hashes_of(source, names)
    changed = [
        name
        for name, known, now in zip(names, stored, found, strict=True)
        if now and _is_sha256(known) and known.lower() != now
    ]
    if len(changed) > len(names) / 2 or not any(found):
        example = f"{changed[0]} has other bytes" if changed else f"{names[0]} is not there"
        raise InputError(
            f"the index was made of other pictures than those of {source.path} ({example}): "
            "make one for this data with data_split.py."
        )


def _is_sha256(text: object) -> bool:
    """Tell whether a cell of an index holds a sha256 in hexadecimal."""
    return isinstance(text, str) and re.fullmatch("[0-9a-fA-F]{64}", text) is not None
