"""What all commands share: types of options, messages on stderr, signals and exit codes."""

from __future__ import annotations

import gc
import io
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from face_gender.errors import (
    InputError,
    UnreadablePictureWarning,
    first_line,
    is_out_of_memory,
    printable,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tqdm import tqdm

_stderr = 2  # the file descriptor of the terminal, which `without_library_messages` moves


def not_empty(text: str) -> str:
    """Return a text, not the empty one that an unset variable of the shell leaves."""
    if not text:
        raise ArgumentTypeError("must not be empty")
    return text


def given_path(text: str) -> Path:
    """Return a path; that of the empty text would be the working directory."""
    from pathlib import Path  # late: until this module is imported, a Ctrl-C is a traceback

    return Path(not_empty(text))


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


def class_names(text: str) -> tuple[str, ...]:
    """Return the names of classes, in the order of a net's outputs."""
    from face_gender.files import check_class_names  # late, as above

    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ArgumentTypeError("must be different names, such as female,male")
    try:
        check_class_names(names)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from error
    return names


class Terminated(KeyboardInterrupt):
    """SIGTERM, as job schedulers and `kill` send it, where a Ctrl-C raises KeyboardInterrupt."""


def exit_on_signal(sentence: str) -> None:
    """Let both signals end this process with a sentence: for as long as nothing is to be kept.

    An exception would not do: libraries that are being imported make errors of their own of it.
    For a program, not for a function that others call; a job in the background that ignores a
    Ctrl-C goes on doing so.
    """
    _take_standard_files()
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker has nothing to say
            os._exit(128 + number)
        with suppress(OSError):  # not by sys.stderr, which may be in the middle of a line
            os.write(_stderr, f"{sentence}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _take_standard_files() -> None:
    """Let no file that is opened later get the number of a stdin, stdout or stderr that is closed.

    What is written to stderr would be written into it.
    """
    with suppress(OSError):
        while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(taken, True)
        os.close(taken)


def raise_on_first_signal() -> None:
    """After `exit_on_signal`: let the first signal raise, and those after it pass.

    They come twice where a program between the terminal and this one passes them on, and the
    second must not end what the first began.
    """

    def end(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    _replace(end)


@contextmanager
def raised_signals() -> Iterator[None]:
    """After `exit_on_signal`: let the first signal raise while there are files to put away."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raise_on_first_signal()
    try:
        yield
    finally:
        for number, handler in before.items():
            if _is_own(number):  # after a signal, both pass
                signal.signal(number, handler)


def ignore_signals() -> None:
    """After `exit_on_signal`: let both signals pass."""
    _replace(signal.SIG_IGN)


def usage_name(name: str) -> str:
    """Return how a command is typed, of the name that opens its messages."""
    return f"python -m {name}" if name.startswith("face_gender.") else name


def exit_with(code: int) -> None:
    """End this process; an interrupted one without waiting for what its threads still do."""
    ignore_signals()
    if code > 128:
        os._exit(code)  # stderr is written through at the end of each line
    sys.exit(code)


def _replace(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set a handler where one of this module is, so that callers of a command keep theirs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if _is_own(number):
            signal.signal(number, handler)


def _is_own(number: signal.Signals) -> bool:
    return getattr(signal.getsignal(number), "__module__", None) == __name__


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Say warnings as plain lines of stderr, and every picture that could not be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnreadablePictureWarning)
        warnings.showwarning = lambda message, *_: print_stderr(f"{message}")
        yield


def exit_code(error: KeyboardInterrupt) -> int:
    """Return what a shell reports for a program that the signal ended: 130, or 143 for SIGTERM."""
    return 143 if isinstance(error, Terminated) else 130


class _Stderr:
    """sys.stderr as it is now; that it is closed or gone must not cost a result."""

    def write(self, text: str) -> None:
        """Write, or let it be: a service has no stderr, a closed pipe takes nothing."""
        with suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush likewise."""
        with suppress(AttributeError, OSError, ValueError):
            sys.stderr.flush()


STDERR = _Stderr()  # one, by which tqdm knows that a line and a bar share a place


@contextmanager
def without_library_messages() -> Iterator[None]:
    """Discard what C libraries write to stderr; what Python writes still reaches it.

    libtiff and libjpeg say what they think of a damaged file without its name, and the one who
    reads the file says it with the name. Also a decorator.
    """
    global _stderr
    if _stderr != 2:  # discarded already
        yield
        return
    python = sys.stderr
    try:
        own, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # a service has no stderr
        yield
        return
    STDERR.flush()
    with suppress(AttributeError, OSError, ValueError):  # a notebook's or a test's is no file
        if python.fileno() == 2:
            sys.stderr = os.fdopen(own, "w", 1, python.encoding, python.errors, closefd=False)
    os.dup2(null, 2)
    before, _stderr = _stderr, own
    try:
        yield
    finally:
        STDERR.flush()
        os.dup2(own, 2)
        sys.stderr, _stderr = python, before
        os.close(own)
        os.close(null)


class _Lines:
    """What a progress bar writes to: a line for each state, as a log wants it."""

    def write(self, text: str) -> None:
        """Write a state of the bar; those that only erase it say nothing."""
        if line := text.strip():
            print_stderr(line)

    def flush(self) -> None:
        """Do nothing: lines are written at once."""


def in_notebook() -> bool:
    """Tell whether a notebook runs this process; others may have imported a part of Jupyter."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def progress_bar(
    total: int, desc: str, unit: str = "img", *, shown: bool = True, initial: int = 0
) -> tqdm[Any]:
    """Return a progress bar with the time left, which shows itself after two seconds.

    In a terminal or a notebook it is drawn; where stderr is a file or a pipe, it is a plain line
    every 30 seconds.
    """
    from tqdm.auto import tqdm

    how: dict[str, Any] = {"delay": 2, "leave": False}
    if in_notebook():
        pass  # which has a bar of its own
    elif getattr(sys.stderr, "isatty", bool)():
        how["file"] = STDERR
    else:
        form = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} passed, {remaining} left{postfix}"
        how |= {"file": _Lines(), "mininterval": 30, "maxinterval": 30, "bar_format": form}
    return tqdm(total=total, desc=desc, unit=unit, disable=not shown, initial=initial, **how)


def escape_unencodable() -> None:
    """Let stdout escape what its encoding lacks: a Windows code page lacks most of the names."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_stderr(text: str) -> None:
    """Write a line to stderr, and no more than a line whatever names are in it."""
    STDERR.write(f"{printable(text)}\n")


def print_stdout(text: str) -> None:
    """Write lines to stdout; that it is closed, full or gone must not cost a result."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        with suppress(
            OSError, ValueError, AttributeError
        ):  # so that the end of Python says nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def error_message(error: InputError | OSError) -> str:
    """Return the sentence that a command ends with."""
    if isinstance(error, InputError):
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    return printable(f"{place}{error.strerror or error}: check its name and its permissions.")


@contextmanager
def first_imports() -> Iterator[None]:
    """Import torch, the first time, in three quarters of the time, its end included.

    Its modules are 300,000 objects that live as long as the process. Python searches them for
    unreachable cycles again and again as they grow, and at the end: here they are not searched.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def run_command(
    name: str,
    run: Callable[[], int | None],
    interrupted: str = "interrupted, nothing was written.",
) -> int:
    """Call ``run`` and return the command's exit code; a failure is one sentence on stderr.

    The code is what ``run`` returns (None: 0), 1 after an InputError or OSError or where a package
    or memory is missing, and after a signal what `exit_code` returns. ``name`` opens the sentence,
    ``interrupted`` is what it says after a signal.
    """
    escape_unencodable()
    try:
        return run() or 0
    except (InputError, OSError) as error:
        print_stderr(f"{name}: {error_message(error)}")
        return 1
    except ImportError as error:
        print_stderr(
            f"{name}: {first_line(error)}: install what requirements.txt lists, in this Python."
        )
        return 1
    except (RuntimeError, MemoryError) as error:
        if "can't start new thread" in str(error):
            print_stderr(
                f"{name}: the system allows no more threads: end what else runs, or raise its "
                "limit (ulimit -u)."
            )
        elif isinstance(error, MemoryError) or is_out_of_memory(error):
            print_stderr(f"{name}: memory is too small: end what else runs, or use another device.")
        else:
            raise
        return 1
    except KeyboardInterrupt as error:
        print_stderr(f"{name}: {interrupted}")
        return exit_code(error)
