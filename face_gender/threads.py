"""A pool of threads that calculate side by side, each on one processor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial


@contextmanager
def threads_on_one_core_each(
    count: int, *, leave_running: bool = False
) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``count`` threads in which torch and OpenCV start no threads of their own.

    Of these two, those that are loaded; their settings, of the whole process, are restored at the
    end. Work that has not begun by then is dropped; what runs is waited for, but after a Ctrl-C
    with ``leave_running``, for work that takes long in a process that is about to end.
    """
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")
    of_torch = torch.get_num_threads() if torch else 0
    of_opencv = cv2.getNumThreads() if cv2 else 0
    if cv2:
        cv2.setNumThreads(1)
    on_one_core = partial(torch.set_num_threads, 1) if torch else None
    pool = ThreadPoolExecutor(count, initializer=on_one_core)
    wait = True
    try:
        yield pool
    except (KeyboardInterrupt, GeneratorExit):  # also where it is raised outside and this is closed
        wait = not leave_running
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)
        if torch:
            torch.set_num_threads(of_torch)  # what new threads start from, changed by the pool's
        if cv2:
            cv2.setNumThreads(of_opencv)
