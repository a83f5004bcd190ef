"""The folder of a training run: epoch_N.pth, best.pth, history.csv, and last.pth to go on from."""

from __future__ import annotations

import csv
import errno
import filecmp
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from face_gender.errors import InputError
from face_gender.files import copy_atomically, remove_leftovers, write_atomically
from face_gender.model.checkpoint import Checkpoint, parse_content, read_content


@dataclass(frozen=True)
class TrainingState:
    """What a run knows at the end of an epoch, beside the checkpoint.

    ``index``: a hash of the rows that it trains and chooses on; ``job``: see `World`;
    ``optimizer``, ``schedule`` (None for a constant rate) and ``scaler``: their state_dicts;
    ``trained``: the weights that are trained, where those of the checkpoint are their average,
    and ``averaged``: how many steps are in it;
    ``random`` and ``device_random``: the generators' states, uint8 (None on a CPU);
    ``excluded``: positions of pictures that could not be read, in train and in val; ``parts``:
    into how many each batch is cut; ``best`` and ``best_epoch``: the best epoch's score and
    number, None before the first; ``waited``: epochs since; ``history``: a row of figures for
    each epoch.
    """

    index: str
    seed: int
    job: str
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any] | None
    scaler: Mapping[str, Any]
    trained: Mapping[str, Tensor] | None
    averaged: int
    random: Tensor
    device_random: Tensor | None
    excluded: tuple[list[int], list[int]]
    parts: int
    best: tuple[float, float] | None
    best_epoch: int
    waited: int
    history: list[dict[str, Any]]

    @property
    def epochs(self) -> int:
        """How many epochs are complete."""
        return len(self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data and tensors."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_dict(cls, values: object, path: Path) -> TrainingState:
        """Rebuild what `to_dict` made. Raises InputError, naming the file, for all else."""
        names = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names:
            raise InputError(
                f"{path} holds no training that could go on: start a new one, with it as --init "
                "where its weights are wanted."
            )
        return cls(**values)


class RunFolder:
    """``out/<name>/``, and ``out/best.pth`` beside it.

    A run killed at any moment leaves whole files, and a last.pth that is never newer than the
    others: what came after it is made again. It is there from the beginning, with no epoch yet.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.out = out
        self.path = out / name
        self.last = self.path / "last.pth"

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of an epoch's checkpoint."""
        return self.path / f"epoch_{epoch}.pth"

    def load(self) -> tuple[Checkpoint, TrainingState] | None:
        """Read last.pth, None where there is none. Raises InputError for one that is damaged."""
        if not self.last.exists():
            return None
        content = read_content(self.last)
        checkpoint = parse_content(content, self.last)
        return checkpoint, TrainingState.from_dict(content.get("training"), self.last)

    def begin(self, checkpoint: Checkpoint, state: TrainingState) -> None:
        """Make the folder, move the files of earlier runs aside, and write the first last.pth."""
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
            earlier = [*sorted(self.path.glob("epoch_*.pth")), *self.path.glob("best.pth")]
            if earlier:
                earlier += [*self.path.glob("history.csv"), *self.path.glob("last.pth")]
                aside = self.path / f"earlier_{_next_number(self.path, 'earlier_')}"
                aside.mkdir()
                # last.pth first: without it, nothing takes the rest for a run to go on with.
                for file in reversed(earlier):
                    file.rename(aside / file.name)
            self._keep_foreign_best()
        checkpoint.save(self.last, training=state.to_dict())

    def go_on(self, best_epoch: int) -> None:
        """Let best.pth be what it was at the end of the last complete epoch."""
        with self._writable():
            best, own = self.checkpoint(best_epoch), self.path / "best.pth"
            if best.exists() and not _same(best, own):
                if _same(self.out / "best.pth", own):
                    copy_atomically(best, self.out / "best.pth")
                copy_atomically(best, own)

    def write(self, checkpoint: Checkpoint, state: TrainingState, is_best: bool) -> None:
        """Write what an epoch leaves, last.pth at the end. Raises InputError."""
        path = self.checkpoint(state.epochs - 1)
        checkpoint.save(path)
        if is_best:
            copy_atomically(path, self.path / "best.pth")
            copy_atomically(path, self.out / "best.pth")
        write_atomically(self.path / "history.csv", lambda file: file.write(_csv(state.history)))
        checkpoint.save(self.last, training=state.to_dict())

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            remove_leftovers(self.path)
            remove_leftovers(self.out, "best.pth", seconds=3600)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): name another folder for the "
                "weights."
            ) from error

    def _keep_foreign_best(self) -> None:
        """Keep a copy of an ``out/best.pth`` that stands nowhere else, before it is replaced."""
        best = self.out / "best.pth"
        copies = list(self.out.glob("*/**/best.pth")) + list(self.out.glob("best_earlier_*.pth"))
        if best.exists() and not any(_same(best, copy) for copy in copies):
            number = _next_number(self.out, "best_earlier_")
            copy_atomically(best, self.out / f"best_earlier_{number}.pth")


def _csv(history: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def _same(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same bytes, False where one is missing."""
    return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)


def _next_number(folder: Path, prefix: str) -> int:
    pattern = re.compile(rf"{prefix}(\d+)")
    taken = [int(match[1]) for path in folder.iterdir() if (match := pattern.match(path.name))]
    return max(taken, default=0) + 1
