"""A folder or an archive of pictures -> index.csv: scan, hash, split, once and for good."""

from __future__ import annotations

import hashlib
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
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.data.images import UnreadableImage, decode_image, is_bomb
from face_gender.data.sound import sound_size
from face_gender.data.sources import (
    FolderSource,
    Source,
    is_hidden,
    open_source,
)
from face_gender.data.tables import _check_paths, _read_rows, read_cells
from face_gender.errors import InputError, excerpt
from face_gender.files import (
    cpu_count,
    has_image_suffix,
)

# Files that one worker hashes at a time: an interruption waits for the end of these.
_CHUNK = 100
# Starting processes takes longer than hashing so few files.
_WORTH_PROCESSES = 2_000
_MOST_PROCESSES = 61  # that Windows can wait for
_SEARCHED = 1_000  # rows that tell whether an index belongs to some data

_Hashed = tuple[str, str]  # sha256, or "" and the reason


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
