"""One training run: what it is made of, and what it leaves after each epoch."""

from __future__ import annotations

import hashlib
import operator
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.console import STDERR
from face_gender.data.dataset import Batch, FaceDataset, FaceLoader, make_loader, soft_labels
from face_gender.data.index import Index
from face_gender.devices import in_bits, keep_freed_memory, mixed_precision
from face_gender.errors import InputError
from face_gender.evaluate.metrics import Evaluation, fit_temperature
from face_gender.model.architectures import to_device
from face_gender.model.checkpoint import Checkpoint, hash64
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.distributed import join
from face_gender.train.optim import build_for
from face_gender.train.run_folder import RunFolder, TrainingState, best_epoch, ends
from face_gender.train.step import Step


@dataclass(frozen=True)
class EpochReport:
    """One epoch's figures. Losses are means per picture, in nats; accuracy and recall 0..1.

    ``val_loss`` is that of temperature 1, whatever was fitted, so that epochs compare.
    ``epoch`` is 0-based; ``val_recall`` by class name; ``seconds`` for the whole epoch;
    ``images_per_second`` of its training part; ``is_best``: the best epoch so far;
    ``checkpoint``: the file that holds it.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_recall: dict[str, float]
    seconds: float
    images_per_second: float
    is_best: bool
    checkpoint: Path

    def metrics(self) -> dict[str, float]:
        """Return the figures by name, as history.csv and the checkpoint have them."""
        return {
            "train_loss": self.train_loss,
            "val_loss": self.val_loss,
            "val_accuracy": self.val_accuracy,
            **{f"val_recall_{name}": value for name, value in self.val_recall.items()},
        }


class Run:
    """The state of one training run; `loop.train` drives it and describes the arguments."""

    def __init__(
        self,
        recipe: Recipe | str,
        index: Index,
        out: Path,
        seed: int = 0,
        device: str = "auto",
        workers: int | None = None,
        mixed: bool = True,
        progress: bool = True,
        resume: bool = False,
    ) -> None:
        keep_freed_memory()
        self.seed = seed = operator.index(seed)  # of NumPy's integers too
        wanted = get_recipe(recipe) if isinstance(recipe, str) else recipe
        self.index_hash = _hash_of_rows(index)
        self.folder = RunFolder(out, wanted.name)
        self.world, self.device = join(device)
        self.progress = progress and self.world.is_main
        found = self._find(resume, recipe if resume else wanted)
        self.recipe = self.world.broadcast(
            found[0].recipe if found and isinstance(recipe, str) else wanted
        )
        if self.recipe.preprocessing.aligns:
            index = self._with_landmarks(index)
        train_rows, rows = index.split("train"), index.split("val")
        self.targets = soft_labels(train_rows.table, self.recipe.distillation)
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"the seed {seed} is too large: give a whole number of 64 bits.")
        torch.manual_seed(seed)
        model, seen = build_for(self.recipe, found[0] if found else None)
        if not found:
            self._warn_of_seen(seen, index)
        self.seen = torch.unique(torch.cat([seen, _hashes(train_rows), _hashes(rows)]))
        precision = mixed_precision(self.device) if mixed else None
        model = to_device(model, self.device)
        self.step = Step(self.recipe, model, precision, self.world, self.say)
        preprocessing = self.recipe.preprocessing
        self.train_loader = self._loader(train_rows, preprocessing.train_transform(), workers)
        self.val_loader = self._loader(rows, preprocessing.eval_transform(), workers)
        if self.step.smallest > 1:
            self.train_loader.batch_sampler.smallest = self.step.smallest * self.world.size
        self.step.plan(len(self.train_loader))
        self.history: list[dict[str, Any]] = []
        if found:
            self._go_on(found[1])
        elif self.world.is_main:
            self.folder.begin(self._checkpoint(None, {}), self._state())
        self.say(
            f"{self.recipe.name}: on {self.device} in {in_bits(precision)}, batches of "
            f"{self.recipe.batch_size}"
            f"{f' in {self.world.size} processes' if self.world.size > 1 else ''}, "
            f"{self.train_loader.num_workers or 'no'} processes that read"
        )

    def _with_landmarks(self, index: Index) -> Index:
        """Return the index with landmarks, of which each process finds its share for all."""
        rank, size, places = self.world.rank, self.world.size, np.arange(len(index))
        share = replace(index, table=index.table.iloc[rank::size])
        found = share.with_landmarks(self.progress, self.world.processors)
        every = self.world.all_gather(found.table)
        order = np.concatenate([places[each::size] for each in range(size)]).argsort()
        return replace(index, table=pd.concat(every).iloc[order])

    def _loader(self, rows: Index, transform: Any, workers: int | None) -> FaceLoader:
        return make_loader(
            FaceDataset(rows, None, transform),
            self.recipe.batch_size,
            shuffle=transform.random,
            seed=self.seed,
            workers=workers,
            device=self.device,
            rank=self.world.rank,
            world_size=self.world.size,
            threads=self.world.processors,
        )

    def _find(self, resume: bool, recipe: Recipe | str) -> tuple[Checkpoint, TrainingState] | None:
        """Return what to go on with, None to begin. Raises InputError where that cannot be."""
        if len(set(self.world.all_gather(self.index_hash))) > 1:
            raise InputError(
                "the processes of this training were given different indexes: give all the same."
            )
        found = None
        if self.world.is_main:
            self.folder.check_writable()
            found = self.folder.find(resume, self.world.job, self.index_hash, self.seed, recipe)
            if resume and not found:
                self.say(f"{self.folder.last} does not exist yet: training begins")
        return self.world.broadcast(found)

    def _go_on(self, state: TrainingState) -> None:
        """Be what the run was at the end of its last complete epoch."""
        try:
            self.step.load_state_dict(vars(state))
            for loader, excluded in zip(self._loaders, state.excluded, strict=True):
                loader.batch_sampler.excluded.update(excluded)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{self.folder.last} does not fit its own recipe, it is damaged: start a new run "
                "without --resume (resume=True)."
            ) from error
        self.history = list(state.history)
        if self.world.is_main:
            self.folder.go_on(best_epoch(self.recipe, self.history))
        self.say(f"{self.folder.last}: {self.epochs} of {self.recipe.epochs} epochs are complete")

    def _warn_of_seen(self, seen: Tensor, index: Index) -> None:
        """Say before hours of work that the weights to start from know what is to judge them."""
        for split, then in (
            ("test", "evaluate() will refuse them"),
            ("val", "figures on them are too good"),
        ):
            if len(seen) and (index.table["split"] == split).any():
                rows = index.split(split)
                if found := rows.count_seen(seen):
                    self.say(
                        f"{self.recipe.init} was trained or chosen on {found} of the {len(rows)} "
                        f"{split} pictures of this index: {then}"
                    )

    def say(self, line: str) -> None:
        """Write a line to stderr, beside the progress bars; without them, nothing."""
        if self.progress:
            tqdm.write(line, file=STDERR)

    def close(self) -> None:
        """End the loaders' workers."""
        del self.train_loader, self.val_loader

    @property
    def _loaders(self) -> tuple[FaceLoader, FaceLoader]:
        return self.train_loader, self.val_loader

    @property
    def epochs(self) -> int:
        """How many epochs are complete."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether all epochs are, or the recipe's patience is at its end."""
        return ends(self.recipe, self.history)

    def seed_epoch(self) -> None:
        """Let what the net draws (dropout) hang on seed, epoch and process alone."""
        text = f"{self.seed}/{self.epochs}/{self.world.rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1)

    def targets_of(self, batch: Batch) -> Tensor:
        """Return a batch's labels (n,), or with a teacher its probabilities (n, classes)."""
        return batch.labels if self.targets is None else self.targets[batch.positions]

    def end_epoch(
        self, train_loss: float, validation: Evaluation, started: float, images_per_second: float
    ) -> EpochReport:
        """Write the epoch's files and return its figures; ``started`` by time.perf_counter()."""
        figures = {"val_loss": validation.loss, "val_accuracy": validation.accuracy}
        report = EpochReport(
            epoch=self.epochs,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            val_recall=validation.recall,
            seconds=time.perf_counter() - started,
            images_per_second=images_per_second,
            is_best=best_epoch(self.recipe, [*self.history, figures]) == self.epochs,
            checkpoint=self.folder.checkpoint(self.epochs),
        )
        self.history.append({
            "epoch": report.epoch,
            **report.metrics(),
            "seconds": round(report.seconds, 3),
            "images_per_second": round(report.images_per_second, 1),
            "is_best": report.is_best,
        })  # fmt: skip
        if self.world.is_main:
            temperature = fit_temperature(validation.log_probabilities, validation.labels)
            checkpoint = self._checkpoint(report.epoch, report.metrics(), temperature)
            self.folder.write(checkpoint, self._state(), report.is_best)
        return report

    def _checkpoint(
        self, epoch: int | None, metrics: dict[str, float], temperature: float = 1.0
    ) -> Checkpoint:
        return Checkpoint(
            recipe=self.recipe,
            classes=CLASSES,
            preprocessing=self.recipe.preprocessing,
            weights=self.step.eval_model.state_dict(),
            epoch=epoch,
            metrics=metrics,
            temperature=temperature,
            seen_hashes=self.seen,
        )

    def _state(self) -> TrainingState:
        train, val = (sorted(each.batch_sampler.excluded) for each in self._loaders)
        return TrainingState(
            index=self.index_hash,
            seed=self.seed,
            job=self.world.job,
            excluded=(train, val),
            history=self.history,
            **self.step.state_dict(),
        )


def _hashes(rows: Index) -> Tensor:
    """Return the hashes (n,) int64 of the pictures of some rows."""
    return hash64(each for each in rows.hashes() if each)


def _hash_of_rows(index: Index) -> str:
    """Return a hash of the rows to train and to choose on, a teacher's probabilities included."""
    table = index.table
    used = table[table["split"].isin(["train", "val"])] if "split" in table else table
    digest = hashlib.sha256()
    for column in ("path", "label", "split", "sha256", "teacher"):
        if column in used:
            text = "\n".join(map(str, used[column]))
            digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
