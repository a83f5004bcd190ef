"""A pool of threads that calculate side by side, each on one processor."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

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
        if not _pools:
            of_torch = torch.get_num_threads() if torch else 0
            _before = of_torch, cv2.getNumThreads() if cv2 else 0
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
        pool.shutdown(wait, cancel_futures=True)
        with _lock:
            _pools -= 1
            of_torch, of_opencv = (0, 0) if _pools else _before
            if torch and of_torch:
                torch.set_num_threads(of_torch)  # what new threads start from: the pool changed it
            if cv2 and of_opencv:
                cv2.setNumThreads(of_opencv)
