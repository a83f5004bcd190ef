"""What the commands' options take: text -> value, or argparse's error with what it should be."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from contextlib import suppress


def not_empty(text: str) -> str:
    """Return a text, not the empty one that an unset variable of the shell leaves."""
    if not text:
        raise ArgumentTypeError("must not be empty")
    return text


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return int(text)


def probability(text: str) -> float:
    """Return a number from 0 to 1."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise ArgumentTypeError(f"must be a number from 0 to 1, not {text}")


def device(text: str) -> str:
    """Return a device's name; whether it is there is for `devices.pick_device` to say."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"must be auto, cpu, cuda, cuda:1 or mps, not {text}")
    return text
