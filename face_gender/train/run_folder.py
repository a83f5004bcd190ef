"""The folder of a training run: epoch_N.pth, best.pth, history.csv, and last.pth to go on from."""

from __future__ import annotations

import errno
import filecmp
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, Any

import pandas as pd
from torch import Tensor

from face_gender.errors import InputError
from face_gender.files import copy_atomically, remove_leftovers, sha256_of, write_atomically
from face_gender.model.checkpoint import Checkpoint, parse_content, plain, read_content
from face_gender.model.recipes import Recipe


@dataclass(frozen=True)
class TrainingState:
    """The state of a run at the end of an epoch, beside the checkpoint.

    ``index``: a hash of the rows that it trains and chooses on; ``job``: see `World`;
    ``optimizer``, ``schedule`` (None for a constant rate) and ``scaler``: their state_dicts;
    ``trained``: the weights that are trained, where those of the checkpoint are their average,
    and ``averaged``: how many steps are in it; ``micro_batches``: into how many each batch is cut;
    ``excluded``: positions of pictures that could not be read, in train and in val; ``history``: a
    row of figures for each epoch.
    """

    index: str
    seed: int
    job: str
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any] | None
    scaler: Mapping[str, Any]
    trained: Mapping[str, Tensor] | None
    averaged: int
    micro_batches: int
    excluded: tuple[list[int], list[int]]
    history: list[dict[str, Any]]

    @classmethod
    def from_dict(cls, values: object, path: Path) -> TrainingState:
        """Rebuild a state of its ``vars``. Raises InputError, naming the file, for all else."""
        names = {each.name for each in fields(cls)}
        if (
            not isinstance(values, dict)
            or not names <= values.keys()
            or not _is_history(values["history"])
        ):
            raise InputError(
                f"{path} holds no training that could go on: start a new one, with it as --init "
                "where its weights are wanted."
            )
        return cls(**{name: values[name] for name in names})


def _is_history(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and all(isinstance(row.get(name), float) for name in ("val_loss", "val_accuracy"))
        for row in rows
    )


def best_epoch(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> int:
    """Return the first of the best epochs by the recipe's ``best_by``, of equals by the other."""

    def score(epoch: int) -> tuple[float, float]:
        loss, accuracy = -history[epoch]["val_loss"], history[epoch]["val_accuracy"]
        return (loss, accuracy) if recipe.best_by == "val_loss" else (accuracy, loss)

    return max(range(len(history)), key=score, default=0)


def ends(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a run is complete, or has gone on as long without a better epoch as it may."""
    waited = len(history) - 1 - best_epoch(recipe, history)
    return len(history) >= recipe.epochs or waited >= (recipe.patience or math.inf)


class RunFolder:
    """``out/<name>/``, and ``out/best.pth`` beside it.

    A run killed at any moment leaves whole files, and a last.pth that is never newer than the
    others: what came after it is made again. It is there from the beginning, with no epoch yet.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.out = out
        self.path = out / name
        self.last = self.path / "last.pth"
        self._own: str | None = None  # the digest of last.pth as this object has read or written it

    def _digest(self) -> str | None:
        """Return the sha256 of last.pth, None where it cannot be read.

        Its time would do, but for drives in the network, which may change it later.
        """
        with suppress(OSError):
            return sha256_of(self.last)
        return None

    def _check_own(self) -> None:
        """Raise InputError where another training has begun in the folder since the last epoch."""
        if self._own and self._digest() not in (self._own, None):
            raise InputError(
                f"another training writes into {self.path}, and may have moved this one's epochs "
                "to earlier_1 or the like there: give each an --output of its own."
            )

    def check_writable(self) -> None:
        """Raise InputError where nothing can be written, before any work; make nothing."""
        for folder in (self.path, self.out):
            there = next(filter(os.path.exists, (folder, *folder.absolute().parents)), folder)
            if not there.is_dir() or not os.access(there, os.W_OK):
                reason = errno.EACCES if there.is_dir() else errno.ENOTDIR
                raise self._unwritable(os.strerror(reason))

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of an epoch's checkpoint."""
        return self.path / f"epoch_{epoch}.pth"

    def load(self) -> tuple[Checkpoint, TrainingState] | None:
        """Read last.pth, None where there is none. Raises InputError for one that is damaged."""
        if not self.last.exists():
            return None
        self._own = self._digest()
        content = read_content(self.last)
        checkpoint = parse_content(content, self.last)
        return checkpoint, TrainingState.from_dict(content.get("training"), self.last)

    def find(
        self, resume: bool, job: str, index: str, seed: int, recipe: Recipe | str
    ) -> tuple[Checkpoint, TrainingState] | None:
        """Return what to go on with, None to begin.

        With ``resume`` that is last.pth, whose index, seed and recipe must be these; without, the
        run that the same ``job`` of torchrun did not finish, if it has these. Raises InputError.
        """
        if not resume:
            with suppress(InputError):  # damaged, of other settings, or none at all
                found = self.load() if job else None
                if found and found[1].job == job:
                    self._check_resumable(*found, index, seed, recipe)
                    return None if ends(found[0].recipe, found[1].history) else found
            return None
        found = self.load()
        if found:
            self._check_resumable(*found, index, seed, recipe)
        return found

    def _check_resumable(
        self,
        checkpoint: Checkpoint,
        state: TrainingState,
        index: str,
        seed: int,
        recipe: Recipe | str,
    ) -> None:
        """Raise InputError where going on would not be going on with the same run."""
        if state.index != index:
            raise InputError(
                f"{self.last} was trained on another index than this one: give its own, or start "
                "a new run without --resume (resume=True)."
            )
        if state.seed != seed:
            raise InputError(
                f"{self.last} was trained with seed {state.seed}, not {seed}: give that one."
            )
        if isinstance(recipe, Recipe):
            _check_same_recipe(checkpoint.recipe, recipe, self.last)

    def begin(self, checkpoint: Checkpoint, state: TrainingState) -> None:
        """Make the folder, move the files of earlier runs aside, and write the first last.pth."""
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
            self._keep_foreign_best()
            earlier = [*sorted(self.path.glob("epoch_*.pth")), *self.path.glob("best.pth")]
            if earlier:
                earlier += [*self.path.glob("history.csv"), *self.path.glob("last.pth")]
                aside = self.path / f"earlier_{_next_number(self.path, 'earlier_')}"
                aside.mkdir()
                # last.pth first: without it, nothing takes the rest for a run to go on with.
                for file in reversed(earlier):
                    file.rename(aside / file.name)
        self._save(checkpoint, state)

    def go_on(self, best_epoch: int) -> None:
        """Let best.pth be what it was at the end of the last complete epoch."""
        with self._writable():
            best, own = self.checkpoint(best_epoch), self.path / "best.pth"
            if best.exists() and not _same(best, own):
                if _same(self.out / "best.pth", own):
                    _replace(self.out / "best.pth", best)
                _replace(own, best)
            self._keep_foreign_best()

    def write(self, checkpoint: Checkpoint, state: TrainingState, is_best: bool) -> None:
        """Write what an epoch leaves, last.pth at the end. Raises InputError."""
        self._check_own()
        path = self.checkpoint(len(state.history) - 1)
        checkpoint.save(path)
        if is_best:
            _replace(self.path / "best.pth", path)
            _replace(self.out / "best.pth", path)
        write_atomically(self.path / "history.csv", partial(_write_csv, state.history))
        self._save(checkpoint, state)

    def _save(self, checkpoint: Checkpoint, state: TrainingState) -> None:
        checkpoint.save(self.last, training=vars(state))
        self._own = self._digest()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            remove_leftovers(self.path)
            remove_leftovers(self.out, "best.pth", seconds=3600)
        except OSError as error:
            raise self._unwritable(error.strerror) from error

    def _unwritable(self, reason: str | None) -> InputError:
        return InputError(
            f"{self.path} cannot be written ({reason}): name another folder for the weights."
        )

    def _keep_foreign_best(self) -> None:
        """Keep a copy of an ``out/best.pth`` that stands nowhere else, before it is replaced."""
        best = self.out / "best.pth"
        copies = list(self.out.glob("*/**/best.pth")) + list(self.out.glob("best_earlier_*.pth"))
        if best.exists() and not any(_same(best, copy) for copy in copies):
            number = _next_number(self.out, "best_earlier_")
            copy_atomically(best, self.out / f"best_earlier_{number}.pth")


def _check_same_recipe(earlier: Recipe, now: Recipe, last: Path) -> None:
    """Raise InputError where a run would go on by another recipe than it began with."""
    then, new = plain(earlier.to_dict()), plain(now.to_dict())
    differing = [name for name in then if then[name] != new[name]]
    steady = earlier.schedule == "constant" and earlier.size_fraction(0) == 1
    if differing and not (differing == ["epochs"] and steady):
        name = differing[0]
        if name == "preprocessing":
            then, new = then[name], new[name]
            name = next(each for each in then if then[each] != new[each])
        raise InputError(
            f"{last} was trained with {name} {then[name]!r}, not {new[name]!r}: give that, or "
            "start a new run without --resume (resume=True)."
        )


def _write_csv(history: Sequence[Mapping[str, Any]], file: IO[bytes]) -> None:
    pd.DataFrame(history).to_csv(file, index=False, lineterminator="\n", na_rep="nan")


def _replace(best: Path, epoch: Path) -> None:
    """Make a best.pth a copy of an epoch's file; a link may lead to another epoch's, and goes."""
    copy_atomically(epoch, best, through_links=False)


def _same(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same bytes, False where one is missing."""
    return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)


def _next_number(folder: Path, prefix: str) -> int:
    pattern = re.compile(rf"{prefix}(\d+)")
    taken = [int(match[1]) for path in folder.iterdir() if (match := pattern.match(path.name))]
    return max(taken, default=0) + 1
