"""Ctrl-C and SIGTERM end a command in one way: what is done is kept, and a sentence says so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as job schedulers and `kill` send it, where a Ctrl-C raises KeyboardInterrupt."""


def raise_on_sigterm() -> None:
    """Let SIGTERM raise Terminated in this process, whatever a library has made of it."""
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker has nothing to keep
            os._exit(128 + number)
        raise Terminated

    with suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGTERM, end)


def end_at_once(sentence: str) -> None:
    """Let both signals end this process with a sentence: for as long as nothing is to be kept.

    An exception would not do: libraries that are being imported make errors of their own of it.
    For a program, not for a function that others call; a job in the background that ignores a
    Ctrl-C goes on doing so.
    """
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker has nothing to say
            os._exit(128 + number)
        with suppress(OSError):  # not by sys.stderr, which may be in the middle of a line
            os.write(2, f"{sentence}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def raise_once() -> None:
    """After `end_at_once`: let the first signal raise, and those after it pass.

    They come twice where a program between the terminal and this one passes them on, and the
    second must not end what the first began.
    """

    def end(number: int, frame: FrameType | None) -> None:
        ignore()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    _replace(end)


def ignore() -> None:
    """After `end_at_once`: let both signals pass."""
    _replace(signal.SIG_IGN)


def leave(code: int) -> None:
    """End this process; an interrupted one without waiting for what its threads still do."""
    ignore()
    if code > 128:
        os._exit(code)  # stderr is written through at the end of each line
    sys.exit(code)


def _replace(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set a handler where one of this module is, so that callers of a command keep theirs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if getattr(signal.getsignal(number), "__module__", None) == __name__:
            signal.signal(number, handler)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return what a shell reports for a program that the signal ended: 130, or 143 for SIGTERM."""
    return 143 if isinstance(error, Terminated) else 130
