"""What all commands share: progress, in a terminal and in a log."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT
from sentences import one_sentence
from tqdm.auto import tqdm

from face_gender.console import STDERR, in_notebook, progress_bar, run_command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_work_of_a_moment_shows_no_progress(stream: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(10, "index") as bar:
        bar.update(10)
    assert sys.stderr.getvalue().strip() == ""  # type: ignore[attr-defined]


def test_a_line_clears_the_bar_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(10, "index"):
        tqdm.write("said", file=STDERR)
        assert "\rsaid\n\rindex:" in sys.stderr.getvalue()  # type: ignore[attr-defined]


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_a_stdout_that_takes_nothing_costs_no_result(where: str) -> None:
    code = "from face_gender.console import print_stdout; print_stdout('a'); print_stdout('b')"
    if where == "closed":
        code = f"import os; os.close(1); {code}"
    with open("/dev/full" if where == "/dev/full" else os.devnull, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "command",
    [
        "face_gender.data", "face_gender.train", "face_gender.evaluate", "face_gender.audit",
        "face_gender.export", "face_gender.classify",
    ],
)  # fmt: skip
def test_the_empty_path_is_a_usage_mistake(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be the working directory; an unset variable of the shell leaves it."""
    main = import_module(f"{command}.__main__").main
    given = {"face_gender.train": ["i.csv", "--recipe", "resnet18"],
             "face_gender.evaluate": ["w.pth", "i.csv"]}.get(command, ["x"])  # fmt: skip
    for arguments in ([""], [*given, "--output", ""]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "must not be empty" in capsys.readouterr().err


def test_what_the_machine_lacks_is_one_sentence_of_any_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(error: Exception) -> int:
        raise error

    for error, words in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "memory"),
        (MemoryError("Unable to allocate 4 GiB for an array"), "memory"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (ModuleNotFoundError("No module named 'numpy'"), "No module named 'numpy': install"),
    ):
        assert run_command("audit", partial(run, error)) == 1
        assert words in one_sentence(capsys.readouterr().err, "audit")
    with pytest.raises(RuntimeError, match="other"):
        run_command("audit", lambda: run(RuntimeError("other")))
