"""Every picture of a data set decoded once, and hashed: which can be read, which are the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from functools import partial

import numpy as np
import pandas as pd

from face_gender.console import progress_bar
from face_gender.data.images import UnreadableImage, decode_image
from face_gender.data.sources import Source
from face_gender.errors import InputError
from face_gender.files import cpu_count
from face_gender.threads import map_in_order, threads_on_one_core_each

SAMPLED = 64  # rows that tell whether an index was made of some data
# Starting processes takes longer than decoding so few files.
PROCESSES_FROM = 2_000
# Files that a process decodes at a time: an interruption waits for the end of these.
CHUNK = 16
_MOST_PROCESSES = 61  # that Windows can wait for

Checked = tuple[str, str]  # sha256, or "" and the reason


def hash_and_check(
    source: Source, names: Sequence[str], progress: bool = True
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Read and decode every picture once, in all processors, with a progress bar.

    Return each file's sha256, "" for one that is no readable picture, and (name, reason) of
    these. Raises DriveGoneError where the drive is gone.
    """
    hashes: list[str] = []
    unreadable: list[tuple[str, str]] = []
    bar = progress_bar(len(names), "index", "file", shown=progress)
    with bar, closing(_check_all(source, names)) as checked:
        for digest, reason in checked:
            if reason:
                unreadable.append((names[len(hashes)], reason))
            hashes.append(digest)
            bar.update()
    return hashes, tuple(unreadable)


def check_picture(source: Source, name: str) -> Checked:
    """Return a file's sha256 and "", or "" and the reason why it is no readable picture."""
    try:
        data = source.read(name)
        decode_image(data, name, at_least=1)  # all its bytes, few of its pixels
    except UnreadableImage as error:
        return "", error.reason
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    return hashlib.sha256(data).hexdigest(), ""


def _check_all(source: Source, names: Sequence[str]) -> Generator[Checked, None, None]:
    """Yield what `check_picture` returns for each name, in order."""
    done = 0
    if len(names) >= PROCESSES_FROM and not multiprocessing.current_process().daemon:
        # No processes can be had where semaphores or memory are short; or one may be killed.
        with suppress(ImportError, OSError, BrokenProcessPool):
            pool = _process_pool(source, min(_MOST_PROCESSES, cpu_count()))
            for each in _in_processes(pool, names):
                done += 1
                yield each
    if done < len(names):
        with threads_on_one_core_each(cpu_count()) as threads:
            yield from map_in_order(threads, partial(check_picture, source), names[done:])


def _in_processes(
    pool: ProcessPoolExecutor, names: Sequence[str]
) -> Generator[Checked, None, None]:
    try:
        yield from pool.map(_check_in_worker, names, chunksize=CHUNK)
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


def _check_in_worker(name: str) -> Checked:
    return check_picture(_worker_source, name)


def hashes_of(source: Source, names: Sequence[str]) -> list[str]:
    """Return the sha256 of each name's bytes, "" for one that cannot be read."""

    def digest(name: str) -> str:
        try:
            return hashlib.sha256(source.read(name)).hexdigest()
        except OSError:
            return ""

    with ThreadPoolExecutor(min(32, cpu_count())) as pool:
        return list(map_in_order(pool, digest, names))


def row_hashes(table: pd.DataFrame, source: Source) -> list[str]:
    """Return each row's sha256, made from the file where the index has none; "" for no file."""
    stored = table["sha256"].tolist() if "sha256" in table else [""] * len(table)
    names = table["path"].tolist()
    missing = [i for i, value in enumerate(stored) if not _is_sha256(value)]
    made = hashes_of(source, [names[i] for i in missing])
    for i, value in zip(missing, made, strict=True):
        stored[i] = value
    return [value.lower() for value in stored]


def check_matches(table: pd.DataFrame, source: Source) -> None:
    """Raise InputError where an index was made of other pictures than those of ``source``.

    Evenly spaced rows are compared, not all: it is another data set's index that this is to
    find. Files that are gone or changed since are not its concern, unless most of them are.
    """
    sampled, there, changed = _compared(table, source)
    if len(changed) > len(sampled) / 2 or not there:
        example = f"{changed[0]} has other bytes" if changed else f"{sampled[0]} is not there"
        raise InputError(
            f"the index was made of other pictures than those of {source.path} ({example}): "
            "make one for this data with data_split.py; in the notebook, set another WORK, or "
            "remove its index.csv."
        )


def count_matching(table: pd.DataFrame, source: Source) -> int:
    """Return how many of the same rows have their picture in ``source``, with its own bytes."""
    _, there, changed = _compared(table, source)
    return len(there) - len(changed)


def _compared(table: pd.DataFrame, source: Source) -> tuple[list[str], list[str], list[str]]:
    """Return the names of evenly spaced rows, of those that are there, and that are changed."""
    places = np.linspace(0, len(table) - 1, min(SAMPLED, len(table))).astype(int)
    rows = table.iloc[places]
    names = rows["path"].tolist()
    stored = rows["sha256"].tolist() if "sha256" in rows else [""] * len(rows)
    found = hashes_of(source, names)
    there = [name for name, now in zip(names, found, strict=True) if now]
    changed = [
        name
        for name, known, now in zip(names, stored, found, strict=True)
        if now and _is_sha256(known) and known.lower() != now
    ]
    return names, there, changed


def _is_sha256(text: object) -> bool:
    """Tell whether a cell of an index holds a sha256 in hexadecimal."""
    return isinstance(text, str) and re.fullmatch("[0-9a-fA-F]{64}", text) is not None
