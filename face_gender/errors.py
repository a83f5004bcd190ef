"""The error that a user reads, and text that is safe to show in it. Standard library alone."""

from __future__ import annotations

import re
import reprlib
import warnings

# Control characters, line ends, marks that turn the direction of writing, and lone surrogates.
_UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_EXCERPT = 80


def printable(text: object) -> str:
    """Return a text as a terminal may show it: what would move or colour it stands escaped."""
    return _UNSHOWN.sub(lambda sign: sign[0].encode("unicode_escape").decode("ascii"), str(text))


def excerpt(value: object) -> str:
    """Return the start of a text or value that may be of any length, for a sentence."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= _LONGEST_EXCERPT else f"{text[:_LONGEST_EXCERPT]}…"


def first_line(error: BaseException) -> str:
    """Return an error's first line without its full stop, or its type's name, for a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return excerpt(lines[0] if lines else type(error).__name__).rstrip(".:")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error of torch says that a device, or the machine, had no memory left."""
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "unable to find an engine",  # cuDNN, where none of its ways has room
        "ALLOC_FAILED",  # cuBLAS and cuDNN
    )
    is_named_so = type(error).__name__ == "OutOfMemoryError"
    return is_named_so or any(word in str(error) for word in words)


class InputError(Exception):
    """What the user gave cannot be used; the message is one sentence that names it and the cure."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UnreadablePictureWarning(UserWarning):
    """A picture of the index could not be read; the message says what becomes of it."""


# Python shows a text once; a second training in the same notebook must name its files again.
warnings.simplefilter("always", UnreadablePictureWarning)
