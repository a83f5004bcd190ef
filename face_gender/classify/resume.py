"""Answers kept beside the output while more are to come, so that an interruption loses none."""

from __future__ import annotations

import glob
import json
import math
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from face_gender.data.sources import Source
from face_gender.errors import InputError
from face_gender.files import remove_leftovers

FORMAT = 1
# What the file begins with, whichever format it has: nothing else is ever written over.
_MARK = b'{"face_gender_journal": '

Scores = tuple[float, ...]
Stamp = tuple[int, int]


class Journal:
    """``<output>.partial``: a line of JSON that says what answers, then a line for each batch.

    A batch is kept whole or not at all, so that one that is answered after an interruption is the
    batch that it would have been: the last digits of an answer may depend on its neighbours.
    ``known`` holds the answers of an earlier run, the probabilities of a picture by its name.
    """

    def __init__(self, output: Path) -> None:
        """Touch nothing. Raises InputError where the file could not be written, or is not ours."""
        self.path = output.with_name(f"{output.name}.partial")
        self.known: dict[str, Scores] = {}
        self._origin: Mapping[str, Any] = {}
        self._batches: deque[dict[str, Stamp]] = deque()
        self._file: IO[bytes] | None = None
        self._ending = b""  # of what the file holds and keeps
        self._check_place()

    def begin(self, origin: Mapping[str, Any]) -> None:
        """Start anew: the first answers replace what the file holds.

        ``origin``: plain data of JSON, what answers depend on besides the pictures.
        """
        self._origin = origin

    def resume(
        self, origin: Mapping[str, Any], source: Source, names: Iterable[str], classes: int
    ) -> None:
        """Fill ``known`` with the answers for those of ``names`` that are as they were then.

        ``classes``: how many probabilities an answer has. Raises InputError where the file is of
        another ``origin``; where there is none, this is `begin`.
        """
        self.begin(origin)
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            line = file.readline()
            if not line.endswith(b"\n"):  # ended by force in its first moment
                return
            self._check_origin(line)
            known: dict[str, Scores] = dict.fromkeys(names, ())
            for line in file:
                for name, stamp, scores in _answers(line, classes):
                    if name in known and _stamp(source, name) == stamp:
                        known[name] = scores
            self.known = {name: scores for name, scores in known.items() if scores}
            self._ending = line[-1:]

    def unanswered(self, source: Source, batches: Iterable[Sequence[str]]) -> Iterator[list[str]]:
        """Yield of each batch of names what is not ``known``, and note the state of these files."""
        for batch in batches:
            left = [name for name in batch if name not in self.known]
            if left:
                # Before they are read: what changes from now on is answered anew.
                found = {name: _stamp(source, name) for name in left}
                self._batches.append({name: each for name, each in found.items() if each})
                yield left

    def keep(self, answers: Iterable[tuple[str, Scores]]) -> None:
        """Write the answers of the oldest batch of `unanswered` that was not kept yet.

        They survive the end of the process, by whatever signal, once this returns. Raises
        InputError where they cannot be written.
        """
        stamps = self._batches.popleft()
        rows = [[name, stamps[name], scores] for name, scores in answers if name in stamps]
        if not rows:
            return
        try:
            self._write(_line(rows))
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror or error}): "
                "free space there, then --resume goes on."
            ) from error

    def remove(self) -> None:
        """Delete the file, and what killed runs left beside it, as the result is written."""
        if self._file is not None:
            self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        remove_leftovers(self.path.parent, glob.escape(self.path.stem))

    def _write(self, line: bytes) -> None:
        if self._file is None:
            if not self._ending:
                line = _line({"face_gender_journal": FORMAT, **self._origin}) + line
            elif self._ending != b"\n":  # a line cut short, which the next must not continue
                line = b"\n" + line
            self._file = open(self.path, "ab" if self._ending else "wb", buffering=0)  # noqa: SIM115
        while line:  # a disk that is nearly full takes a part
            line = line[self._file.write(line) :]

    def _check_place(self) -> None:
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise InputError(f"{self.path} is no regular file: remove it or name another --output.")
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise InputError(f"{self.path} cannot be written (no permission): remove it.")
        with open(self.path, "rb") as file:
            start = file.read(len(_MARK))
        if not _MARK.startswith(start):
            raise InputError(
                f"{self.path} is where unfinished answers go and holds something else: "
                "move it away or name another --output."
            )

    def _check_origin(self, header: bytes) -> None:
        found: Any = None
        with suppress(ValueError):
            found = json.loads(header)
        for name, value in {"face_gender_journal": FORMAT, **self._origin}.items():
            if not isinstance(found, dict) or found.get(name) != value:
                what = "version" if name == "face_gender_journal" else name
                raise InputError(
                    f"{self.path} was begun with different {what}: run without --resume."
                )


def _line(content: Any) -> bytes:
    # Names that are not UTF-8 hold lone surrogates.
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _answers(line: bytes, classes: int) -> Iterator[tuple[str, Stamp, Scores]]:
    """Yield name, stamp and probabilities of the pictures of a line, nothing of a damaged one."""
    with suppress(ValueError, TypeError, RecursionError):
        for name, (size, mark), scores in json.loads(line.decode("utf-8", "surrogatepass")):
            numbers = all(type(score) is float and math.isfinite(score) for score in scores)
            if type(name) is str and len(scores) == classes and numbers:
                yield name, (size, mark), tuple(scores)


def _stamp(source: Source, name: str) -> Stamp | None:
    with suppress(OSError):
        return source.stamp(name)
    return None
