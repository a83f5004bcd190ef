"""What the tests of errors share."""

from __future__ import annotations

import re

import pytest


def sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    """Return the message of an error, having seen that it is one sentence."""
    message = str(caught.value)
    assert message.endswith((".", "?")), message
    assert "\n" not in message, message
    assert not re.search(r"[.!?]\s+[A-Z]", message), message
    return message
