"""What the tests of errors share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def sentence(caught: pytest.ExceptionInfo[Exception] | str) -> str:
    """Return the message of an error, having seen that it is one sentence."""
    message = caught if isinstance(caught, str) else str(caught.value)
    assert message.endswith((".", "?")), message
    assert "\n" not in message, message
    assert not re.search(r"[.!?]\s+[A-Z]", message), message
    return message


def one_sentence(text: str, program: str) -> str:
    """Return what a command said, having seen that it is its name, one sentence and no more."""
    (line,) = [line for line in text.splitlines() if line.strip()]
    assert line.startswith(f"{program}: "), text
    return sentence(line)


def broken_archive(data: Path) -> list[str]:
    (data / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    return [str(data / "broken.zip")]


def text_file(data: Path) -> list[str]:
    (data / "notes.txt").write_text("x")
    return [str(data / "notes.txt")]
