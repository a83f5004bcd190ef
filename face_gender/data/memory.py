"""What all threads of a process together may take for pixels while they are decoded."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST_MEMORY = 3 * 2**29  # bytes

_door = threading.Lock()
_freed = threading.Condition()
_taken = 0


@contextmanager
def reserve(cost: int) -> Iterator[None]:
    """Wait until so many bytes are free of MOST_MEMORY, or all of it where that is less.

    A large picture that waits keeps the door closed to the small ones behind it.
    Not to be called within itself.
    """
    global _taken
    cost = min(cost, MOST_MEMORY)
    with _door, _freed:
        _freed.wait_for(lambda: _taken + cost <= MOST_MEMORY)
        _taken += cost
    try:
        yield
    finally:
        with _freed:
            _taken -= cost
            _freed.notify_all()


def _begin_again() -> None:
    """A forked child has none of the threads that would give back."""
    global _door, _freed, _taken
    _door, _freed, _taken = threading.Lock(), threading.Condition(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
