"""Ctrl-C and SIGTERM end a command in one way: what is done is kept, and a sentence says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def end_at_once(sentence: str = "") -> None:
    """Let Ctrl-C and SIGTERM end this process with a sentence, as long as nothing is to be kept.

    An exception would not do: libraries that are being imported turn it into errors of their own.
    """

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # not by sys.stderr, which may be in the middle of a line
            os.write(2, sentence.encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
            signal.signal(number, end)


def raise_again() -> None:
    """End what `end_at_once` began: from here on, both signals raise."""
    raise_on_sigterm()
    with suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let both signals pass unheard while the last moments of a command take their course."""
    before = {}
    try:
        with suppress(ValueError):  # not in the main thread, which alone hears them
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.getsignal(number)
                signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            with suppress(ValueError):
                signal.signal(number, handler)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return what a shell reports for a program that the signal ended: 130, or 143 for SIGTERM."""
    return 143 if isinstance(error, Terminated) else 130
