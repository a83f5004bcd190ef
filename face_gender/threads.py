"""A pool of threads that calculate side by side, each on one processor."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from face_gender.files import cpu_count

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Items that a thread is given at a time, of many: each part that waits for one takes 2 KB.
_AT_A_TIME = 16

_lock = threading.Lock()
_pools = 0
_before = (0, 0)  # threads of torch and of OpenCV, where no pool is open


@contextmanager
def threads_on_one_core_each(
    count: int, *, leave_running: bool = False
) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``count`` threads in which torch and OpenCV start no threads of their own.

    Of these two, those that are loaded; their settings, of the whole process, are restored when no
    such pool is left. At the end, work that has not begun is dropped; what runs is waited for, but
    after a Ctrl-C with ``leave_running``, for work that takes long in a process that is about to
    end.
    """
    global _pools, _before
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")
    on_one_core = partial(torch.set_num_threads, 1) if torch else None
    pool = ThreadPoolExecutor(count, initializer=on_one_core)
    with _lock:
        of_torch, of_opencv = _before if _pools else (0, 0)
        if torch and not of_torch:
            of_torch = torch.get_num_threads()
        if cv2 and not of_opencv:  # not loaded when the first of the pools was opened, perhaps
            of_opencv = cv2.getNumThreads()
        _before = of_torch, of_opencv
        _pools += 1
        if cv2:
            cv2.setNumThreads(1)
    wait = True
    try:
        yield pool
    except (KeyboardInterrupt, GeneratorExit):  # also where it is raised outside and this is closed
        wait = not leave_running
        raise
    finally:
        try:
            pool.shutdown(wait, cancel_futures=True)
        finally:  # also after a Ctrl-C while it waits
            _close()


def _close() -> None:
    """Restore the threads of torch and OpenCV when the last pool ends."""
    global _pools
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")
    with _lock:
        _pools -= 1
        of_torch, of_opencv = (0, 0) if _pools else _before
        if torch and of_torch:
            torch.set_num_threads(of_torch)  # what new threads start from: the pool changed it
        if cv2 and of_opencv:
            cv2.setNumThreads(of_opencv)


def map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Iterator[_Result]:
    """Yield what the threads of a pool make of each item, in order of the items."""
    size = max(1, min(_AT_A_TIME, len(items) // (8 * cpu_count())))
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    ended = threading.Event()
    try:
        for made in pool.map(
            lambda part: [function(item) for item in part if not ended.is_set()], parts
        ):
            yield from made
    finally:
        ended.set()  # after an interruption, no thread begins another item
