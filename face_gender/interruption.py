"""Ctrl-C and SIGTERM end a command in one way: what is done is kept, and a sentence says so."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as job schedulers and `kill` send it, where a Ctrl-C raises KeyboardInterrupt."""


def raise_on_sigterm() -> None:
    """Let SIGTERM raise Terminated in this process. Does nothing outside the main thread."""
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker has nothing to keep
            os._exit(128 + number)
        raise Terminated

    with suppress(ValueError):
        signal.signal(signal.SIGTERM, end)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return what a shell reports for a program that the signal ended: 130, or 143 for SIGTERM."""
    return 143 if isinstance(error, Terminated) else 130
