"""What all commands share: progress, in a terminal and in a log."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace

import pytest

from face_gender.console import in_notebook, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_work_of_a_moment_shows_no_progress(stream: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(10, "index") as bar:
        bar.update(10)
    assert sys.stderr.getvalue().strip() == ""  # type: ignore[attr-defined]


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(10, "index", "file") as bar:
        bar.delay = 0
        bar.update(4)
        bar.refresh()
    line = sys.stderr.getvalue().splitlines()[0]  # type: ignore[attr-defined]
    assert line.startswith("index: 4 of 10 file") and line.endswith("left") and "\r" not in line


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(10, "index") as bar:
        bar.delay = 0
        bar.update(4)
        bar.refresh()
    assert "\rindex:  40%" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(10, "index", shown=False) as bar:
        bar.update(4)
        bar.refresh()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_part_of_jupyter_makes_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar in a notebook's way would write to stderr itself, and end with it."""
    shell = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not in_notebook()
    with progress_bar(10, "index") as bar:
        assert not isinstance(bar.fp, io.StringIO) and bar.mininterval == 30
    shell.kernel = "a kernel"
    assert in_notebook()
