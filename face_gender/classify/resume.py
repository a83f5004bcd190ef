"""Predictions kept in ``FILE.partial`` until all are made, so that an interruption loses none.

The file is JSON Lines: a header that says what predicts, then a line for each picture with the
state of its file, as ``{"name": "a.jpg", "stamp": [size, time], "faces": [[[0.98, 0.02], box]]}``.
"""

from __future__ import annotations

import glob
import json
import math
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from face_gender.classify.results import Prediction, Result
from face_gender.data.sources import Source
from face_gender.errors import InputError
from face_gender.files import remove_leftovers

FORMAT = 2
_STALE = 300  # seconds after which an unfinished file is nobody's
_MARK = b'{"face_gender_'  # how every format of this file begins: nothing else is overwritten


def partial_path(output: Path) -> Path:
    """Return where unfinished results of ``output`` go, touching nothing. Raises InputError."""
    path = output.with_name(f"{output.name}.partial")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode) or not os.access(path, os.R_OK | os.W_OK):
            raise InputError(f"{path} cannot be written: remove it or name another --output.")
        with open(path, "rb") as file:
            if not _MARK.startswith(file.read(len(_MARK))):
                raise InputError(
                    f"{path} is where unfinished results go and holds something else: "
                    "move it away or name another --output."
                )
    return path


def begun_by(path: Path) -> dict[str, Any]:
    """Return what unfinished results were predicted by, empty where there are none."""
    with suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        header = json.loads(file.readline())
        return header if isinstance(header, dict) else {}
    return {}


def read_partial(
    path: Path, origin: Mapping[str, Any], source: Source, names: Iterable[str]
) -> dict[str, Prediction]:
    """Return, by name, the predictions for those of ``names`` that are as they were then.

    ``origin``: what predicts, as plain data of JSON with ``classes``. Raises InputError where the
    file was begun with another one.
    """
    known: dict[str, Prediction] = {}
    with suppress(FileNotFoundError), open(path, "rb") as file:
        header, wanted, classes = file.readline(), set(names), tuple(origin["classes"])
        if header.endswith(b"\n"):  # else it was killed in its first moment
            _check_header(path, header, origin)
        for line in file:
            with suppress(ValueError, TypeError, KeyError, RecursionError):  # a damaged line
                row = json.loads(line)
                name = row["name"]
                first, *others = [_face(name, classes, *face) for face in row["faces"]]
                if name in wanted and _stamp(source, name) == row["stamp"]:
                    known[name] = replace(first, others=tuple(others))
    return known


def _face(
    name: str, classes: tuple[str, ...], scores: Sequence[float], box: Sequence[float] | None
) -> Prediction:
    """Return what a line says of one face. Raises ValueError or TypeError for what is none."""
    if len(scores) != len(classes) or not all(map(math.isfinite, [*scores, *(box or ())])):
        raise ValueError("not the probabilities of these classes")
    if box is not None and len(box) != 4:
        raise ValueError("not a box")
    return Prediction(name, classes, tuple(scores), None if box is None else tuple(box))  # type: ignore[arg-type]


def keep_results(
    path: Path,
    origin: Mapping[str, Any],
    source: Source,
    names: Iterable[str],
    known: Mapping[str, Prediction],
    classify: Callable[[Iterator[str]], Generator[Result, None, None]],
) -> Generator[Result, None, None]:
    """Yield what is ``known``, then what ``classify`` says of the other names, once it is kept.

    A kept prediction survives the end of the process, by whatever signal. What the file holds is
    replaced at the first prediction, or gone on with where ``known`` was read from it. Raises
    InputError where it cannot be written.
    """
    yield from known.values()
    stamps: dict[str, list[int] | None] = {}

    def unknown() -> Iterator[str]:
        for name in names:
            if name not in known:
                stamps[name] = _stamp(source, name)  # before it is read: a change is to be seen
                yield name

    results = classify(unknown())
    # The line end is for a last line that was cut short.
    mode, start = ("ab", b"\n") if known else ("wb", _line(_header(origin)))
    with ExitStack() as opened:
        file: IO[bytes] | None = None
        for result in results:
            stamp = stamps.pop(result.name)
            try:
                if isinstance(result, Prediction) and stamp:
                    faces = [(each.scores, each.box) for each in (result, *result.others)]
                    row = {"name": result.name, "stamp": stamp, "faces": faces}
                    with _as_input_error(path):
                        if file is None:
                            file = opened.enter_context(open(path, mode, buffering=0))
                        _write(file, start + _line(row))
                    start = b""
                yield result
            except KeyboardInterrupt as error:
                results.throw(error)  # which then does not wait for its threads


def remove_partial(path: Path) -> None:
    """Remove the file, and what killed runs left beside it, once all is in the output.

    What is young stays: another run may be writing it.
    """
    with suppress(OSError):
        path.unlink(missing_ok=True)
    remove_leftovers(path.parent, glob.escape(path.stem), _STALE)


def _write(file: IO[bytes], line: bytes) -> None:
    while line:  # a disk that is nearly full takes a part
        line = line[file.write(line) :]


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): "
            "free space there, then --resume goes on."
        ) from error


def _header(origin: Mapping[str, Any]) -> dict[str, Any]:
    return {"face_gender_partial": FORMAT, **origin}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"  # a name that is not UTF-8 stands escaped


def _check_header(path: Path, line: bytes, origin: Mapping[str, Any]) -> None:
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
    wanted = _header(origin)
    for key in {**wanted, **(found if isinstance(found, dict) else {})}:
        if not isinstance(found, dict) or found.get(key) != wanted.get(key):
            what = "version" if key == "face_gender_partial" else key
            raise InputError(f"{path} was begun with different {what}: run without --resume.")


def _stamp(source: Source, name: str) -> list[int] | None:
    with suppress(OSError):
        return list(source.stamp(name))
    return None
