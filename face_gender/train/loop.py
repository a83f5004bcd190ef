"""train(): a generator of one report an epoch."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.data.dataset import (
    Batch,
    FaceDataset,
    FaceLoader,
    scaled,
    select_split,
    soft_labels,
)
from face_gender.data.scan import check_matches, row_hashes
from face_gender.data.sources import Source, open_source
from face_gender.data.tables import read_index
from face_gender.devices import (
    forward,
    in_bits,
    is_out_of_memory,
    keep_freed_memory,
    mixed_precision,
)
from face_gender.errors import InputError
from face_gender.evaluate.metrics import Evaluation, fit_temperature
from face_gender.evaluate.predict import count_seen, predict
from face_gender.model.architectures import (
    average_into,
    build_model,
    freeze,
    freeze_all_but_head,
    has_batchnorm,
    head_name,
    to_device,
    train_mode,
)
from face_gender.model.checkpoint import Checkpoint, hash64, load_weights, read_weights
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.distributed import Share, World, as_input_error, as_one_batch, join, wrapped
from face_gender.train.run_folder import RunFolder, TrainingState


@dataclass(frozen=True)
class EpochReport:
    """One epoch's figures. Losses are means per picture, in nats; accuracy and recall 0..1.

    ``val_loss`` is that of temperature 1, whatever was fitted, so that epochs compare.
    ``epoch`` is 0-based; ``recall`` by class name; ``seconds`` for the whole epoch;
    ``images_per_second`` of its training part; ``is_best``: the best epoch so far;
    ``checkpoint``: the file that holds it.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    recall: dict[str, float]
    seconds: float
    images_per_second: float
    is_best: bool
    checkpoint: Path


def train(
    recipe: Recipe | str,
    index: str | os.PathLike[str] | pd.DataFrame,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] = "model_weights",
    *,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    mixed: bool = True,
    resume: bool = False,
    progress: bool = True,
) -> Iterator[EpochReport]:
    """Train by ``recipe`` on the train split of ``index``; yield a report after each epoch.

    Each epoch is saved as ``out/<recipe>/epoch_{i}.pth``, the best so far (by the recipe's
    ``best_by`` on the validation split) as ``out/<recipe>/best.pth`` and ``out/best.pth``, the
    figures of all as ``out/<recipe>/history.csv``, and what it takes to go on as ``last.pth``. Each
    checkpoint has the temperature that fits its answers on the validation split. The
    files of an earlier run of the recipe are moved into ``out/<recipe>/earlier_{n}/`` first; an
    ``out/best.pth`` that is no copy of one of them is kept as ``out/best_earlier_{n}.pth``.
    The caller may stop at any report. ``mixed``: calculate in 16 bits where the hardware does.
    The same seed on the same machine gives the same numbers on a CPU.

    ``resume``: go on behind the last complete epoch of an earlier run with the same settings and
    index, as if it had not been interrupted: on a CPU to the same weights, bit for bit. A recipe's
    name stands for the recipe of that run; its ``epochs`` may be others where the learning rate
    is constant. Where there is no such run, one begins.

    Under torchrun, each process takes its part of every batch (``batch_size`` is that of all),
    the first alone writes, and a restarted job resumes by itself. Raises InputError.
    """
    with as_input_error():
        run = _Run(recipe, index, data, Path(out), seed, device, workers, mixed, progress, resume)
    with closing(run), tqdm(
        total=run.recipe.epochs,
        initial=run.epochs,
        desc=run.recipe.name,
        unit="epoch",
        disable=not run.progress,
    ) as bar:  # fmt: skip
        while not run.finished:
            with as_input_error():
                report = run.epoch(run.epochs)
            bar.update()
            yield report


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        recipe: Recipe | str,
        index: str | os.PathLike[str] | pd.DataFrame,
        data: str | os.PathLike[str],
        out: Path,
        seed: int,
        device: str,
        workers: int | None,
        mixed: bool,
        progress: bool,
        resume: bool = False,
    ) -> None:
        keep_freed_memory()
        self.seed = seed
        source = open_source(data)
        table = index if isinstance(index, pd.DataFrame) else read_index(index)
        check_matches(table, source)
        wanted = get_recipe(recipe) if isinstance(recipe, str) else recipe
        self.index = _hash_of_rows(table, wanted)
        self.folder = RunFolder(out, wanted.name)
        self.world, self.device = join(device)
        self.progress = progress and self.world.first
        self.precision = mixed_precision(self.device) if mixed else None
        found = self._found(resume, recipe)
        chosen = found[0].recipe if found and isinstance(recipe, str) else wanted
        self.recipe = self.world.from_first(chosen)
        preprocessing = self.recipe.preprocessing
        self.train_set = FaceDataset(table, "train", source, preprocessing.train_transform())
        self.val_set = FaceDataset(table, "val", source, preprocessing.eval_transform())
        self.targets = soft_labels(select_split(table, "train"), self.recipe.distillation)
        torch.manual_seed(seed)
        model, seen = _start(self.recipe, found[0] if found else None)
        if not found:
            self._warn_of_seen(seen, table, source)
        self.seen = torch.unique(torch.cat([seen, _seen(table, source)]))
        # BatchNorm has no variance to learn from in a last batch of one.
        self.skips_single = self.recipe.batch_size > 1 and has_batchnorm(model)
        self._place(model)
        self._make_loaders(workers)
        self.schedule = _schedule(self.recipe, self.optimizer, len(self.train_loader))
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, float] | None = None
        self.best_epoch = self.waited = 0
        # Into so many parts each batch is cut, so that it fits into memory.
        self.parts = 1
        self._keep_random_state()
        if found:
            self._go_on(found[1])
        elif self.world.first:
            self.folder.begin(self._checkpoint(None, {}), self._state())
        self._say(
            f"{self.recipe.name}: on {self.device} in {in_bits(self.precision)}, batches of "
            f"{self.recipe.batch_size}{_in_processes(self.world)}, "
            f"{self.train_loader.workers or 'no'} processes that read"
        )

    def _place(self, model: nn.Module) -> None:
        """Move the net to its device, with an optimiser, and share it between the processes."""
        self.share = Share()
        if self.world.size > 1:
            model = as_one_batch(model, self.share, self.device)
        self.model = to_device(model, self.device)
        self.net = wrapped(self.model) if self.world.size > 1 else self.model
        # What is validated and saved: the weights themselves, or their average.
        self.result = copy.deepcopy(self.model) if self.recipe.average else self.model
        self.averaged = 0
        self.optimizer = _optimizer(self.recipe, self.model)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )

    def _make_loaders(self, workers: int | None) -> None:
        size, device, world = self.recipe.batch_size, self.device, self.world
        self.train_loader = FaceLoader(
            self.train_set, size, True, self.seed, workers, device, world
        )
        self.val_loader = FaceLoader(self.val_set, size, False, self.seed, workers, device, world)

    def _found(self, resume: bool, recipe: Recipe | str) -> tuple[Checkpoint, TrainingState] | None:
        """Return what to go on with, None to begin. Raises InputError where that cannot be."""
        if len(set(self.world.gathered(self.index))) > 1:
            raise InputError(
                "the processes of this training were given different indexes: give all the same."
            )
        found = None
        if self.world.first:
            found = self._found_by_first(resume, recipe)
        return self.world.from_first(found)

    def _found_by_first(
        self, resume: bool, recipe: Recipe | str
    ) -> tuple[Checkpoint, TrainingState] | None:
        if not resume and not self.world.job:
            return None
        try:
            found = self.folder.load()
        except InputError:
            if resume:
                raise
            return None  # of another job, or none at all
        if found is None:
            if resume:
                self._say(f"{self.folder.last} does not exist yet: training begins")
            return None
        checkpoint, state = found
        if not resume:
            same = state.job == self.world.job and not _ends(
                checkpoint.recipe, state.epochs, state.waited
            )
            return found if same else None
        self._check_resumable(checkpoint, state, recipe)
        return found

    def _check_resumable(
        self, checkpoint: Checkpoint, state: TrainingState, recipe: Recipe | str
    ) -> None:
        """Raise InputError where going on would not be going on with the same run."""
        last = self.folder.last
        if state.index != self.index:
            raise InputError(
                f"{last} was trained on another index than this one: give its own, or start a new "
                "run without --resume (resume=True)."
            )
        if state.seed != self.seed:
            raise InputError(
                f"{last} was trained with seed {state.seed}, not {self.seed}: give that one."
            )
        if isinstance(recipe, Recipe):
            _check_same_recipe(checkpoint.recipe, recipe, last)

    def _go_on(self, state: TrainingState) -> None:
        """Be what the run was at the end of its last complete epoch."""
        try:
            self.optimizer.load_state_dict(dict(state.optimizer))
            if self.schedule and state.schedule is not None:
                self.schedule.load_state_dict(dict(state.schedule))
            self.scaler.load_state_dict(dict(state.scaler))
            if state.trained is not None:
                self.model.load_state_dict(dict(state.trained))
            self.averaged = state.averaged
            self.random_state, self.device_random = state.random, state.device_random
            for loader, excluded in zip(self._loaders, state.excluded, strict=True):
                loader.sampler.excluded.update(excluded)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{self.folder.last} does not fit its own recipe, it is damaged: start a new run "
                "without --resume (resume=True)."
            ) from error
        self.parts, self.best, self.best_epoch = state.parts, state.best, state.best_epoch
        self.waited, self.history = state.waited, list(state.history)
        if self.world.first and self.epochs:
            self.folder.go_on(self.best_epoch)
        self._say(f"{self.folder.last}: {self.epochs} of {self.recipe.epochs} epochs are complete")

    def _warn_of_seen(self, seen: Tensor, table: pd.DataFrame, source: Source) -> None:
        """Say before hours of work that the weights to start from know what is to judge them."""
        for split, then in (
            ("test", "evaluate() will refuse them"),
            ("val", "figures on them are too good"),
        ):
            rows = table[table["split"] == split]
            found = count_seen(seen, rows, source)
            if found:
                self._say(
                    f"{self.recipe.init} was trained or chosen on {found} of the {len(rows)} "
                    f"{split} pictures of this index: {then}"
                )

    def _say(self, line: str) -> None:
        if self.progress:
            tqdm.write(line, file=sys.stderr)

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
        return _ends(self.recipe, self.epochs, self.waited)

    def _keep_random_state(self) -> None:
        self.random_state = torch.get_rng_state()
        self.device_random = (
            torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        )

    def _restore_random_state(self) -> None:
        torch.set_rng_state(self.random_state)
        if self.device_random is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.device_random, self.device)

    def epoch(self, epoch: int) -> EpochReport:
        """Train and validate once, save, and report."""
        started = time.perf_counter()
        # Whatever the caller drew since the last epoch.
        self._restore_random_state()
        train_loss, images_per_second = self._train_epoch(epoch)
        validation = predict(
            self.result, self.val_loader, CLASSES, 1.0, self.precision, self.progress
        )
        if not math.isfinite(train_loss + validation.loss):
            raise InputError(
                f"training diverged in epoch {epoch} (the loss is not a number): "
                "use a smaller learning_rate."
            )
        self._keep_random_state()
        is_best = self._is_best(validation, epoch)
        report = EpochReport(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            recall=validation.recall,
            seconds=time.perf_counter() - started,
            images_per_second=images_per_second,
            is_best=is_best,
            checkpoint=self.folder.checkpoint(epoch),
        )
        self.history.append(_row(report))
        if self.world.first:
            temperature = fit_temperature(validation.log_probabilities, validation.labels)
            checkpoint = self._checkpoint(epoch, _metrics(report), temperature)
            self.folder.write(checkpoint, self._state(), is_best)
        return report

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """Return the mean loss per picture and the pictures per second, of all processes."""
        train_mode(self.net)
        sampler = self.train_loader.sampler
        sampler.epoch = epoch
        self.train_loader.share_of_size = self.recipe.share_of_size(epoch)
        # On the device: to ask for a number there is to wait for it.
        total_loss = torch.zeros((), device=self.device)
        count, started = 0, time.perf_counter()
        bar = tqdm(total=sampler.pictures, desc=f"epoch {epoch}", unit="img", leave=False,
                   disable=not self.progress)  # fmt: skip
        failures: list[tuple[int, str]] = []
        with bar:
            for number, batch in enumerate(self.train_loader):
                failures += batch.failures
                counts = self.world.counts(len(batch.labels), self.device)
                self.share.set(counts, self.world.rank)
                whole = self.share.total
                single = whole == 1 and sampler.pictures > 1
                if whole and not (single and self.skips_single):
                    total_loss += self._step(self._images(batch), self._wanted(batch))
                    count += whole
                    if self.progress and number % 10 == 0:
                        loss = total_loss.item() * self.world.size / count
                        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(whole + len(batch.failures))
        self.train_loader.leave_out(failures)
        if count == 0:
            raise InputError("no picture of the train split could be read: make the index again.")
        mean = self.world.total(total_loss).item() / count
        return mean, count / (time.perf_counter() - started)

    def _images(self, batch: Batch) -> Tensor:
        """Return a batch's pictures; of a process whose part is empty, none in a like shape."""
        if batch.images is not None:
            return batch.images
        size = self.recipe.preprocessing
        return torch.empty((0, 3, size.height, size.width), device=self.device)

    def _wanted(self, batch: Batch) -> Tensor:
        """Return a batch's labels (n,), or with a teacher its targets (n, classes)."""
        return batch.labels if self.targets is None else self.targets[batch.positions]

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Make one optimiser step; return the sum of this process's losses, on the device."""
        labels = labels.to(self.device, non_blocking=True)
        while True:
            try:
                loss = self._backward(images, labels)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._cut_smaller(len(labels))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule:
            self.schedule.step()
        if self.recipe.average:
            self.averaged += 1
            average_into(self.result, self.model, self.recipe.average, self.averaged)
        return loss

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Set the gradients of the whole batch's mean loss, a part of the batch at a time.

        Return the sum of this process's losses.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        least = 2 if self.skips_single else 1
        parts = max(1, min(self.parts, len(labels) // least))
        for some, their in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            outputs = forward(self.net, some, self.precision)
            loss = _loss(outputs, their, self.recipe) if len(their) else outputs.sum()
            # Of gradients, the mean over processes is taken; of losses, that over all pictures.
            weight = len(their) * self.world.size / self.share.total
            self.scaler.scale(loss * weight).backward()
            total += loss.detach() * len(their)
        return total

    def _cut_smaller(self, batch: int) -> None:
        """Halve the parts of a batch. Raises InputError where a part has no pictures to spare."""
        if self.world.size > 1:  # the others could not follow
            raise InputError(
                f"memory is too small for {batch} pictures a process: use a smaller batch_size, "
                "or more processes."
            )
        least = 2 if self.skips_single else 1
        if batch // (2 * self.parts) < least:
            raise InputError(
                f"memory is too small for {self.recipe.arch} at this size of pictures: "
                "use a smaller size or another device."
            )
        self.parts *= 2
        self._say(f"out of memory: batches are cut into {self.parts} parts from here on")
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _is_best(self, validation: Evaluation, epoch: int) -> bool:
        score = (validation.accuracy, -validation.loss)
        if self.recipe.best_by == "val_loss":
            score = (-validation.loss, validation.accuracy)
        is_best = self.best is None or score > self.best
        if is_best:
            self.best, self.best_epoch = score, epoch
        self.waited = 0 if is_best else self.waited + 1
        return is_best

    def _checkpoint(
        self, epoch: int | None, metrics: dict[str, float], temperature: float = 1.0
    ) -> Checkpoint:
        return Checkpoint(
            recipe=self.recipe,
            classes=CLASSES,
            preprocessing=self.recipe.preprocessing,
            weights=self.result.state_dict(),
            epoch=epoch,
            metrics=metrics,
            temperature=temperature,
            seen=self.seen,
        )

    def _state(self) -> TrainingState:
        train, val = (sorted(loader.sampler.excluded) for loader in self._loaders)
        return TrainingState(
            index=self.index,
            seed=self.seed,
            job=self.world.job,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict() if self.schedule else None,
            scaler=self.scaler.state_dict(),
            trained=_on_cpu(self.model.state_dict()) if self.recipe.average else None,
            averaged=self.averaged,
            random=self.random_state,
            device_random=self.device_random,
            excluded=(train, val),
            parts=self.parts,
            best=self.best,
            best_epoch=self.best_epoch,
            waited=self.waited,
            history=self.history,
        )


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in weights.items()}


def _metrics(report: EpochReport) -> dict[str, float]:
    """Return an epoch's figures as its checkpoint carries them."""
    return {
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
        **{f"val_recall_{name}": value for name, value in report.recall.items()},
    }


def _row(report: EpochReport) -> dict[str, Any]:
    """Return an epoch's line of history.csv."""
    return {
        "epoch": report.epoch,
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
        **{f"recall_{name}": value for name, value in report.recall.items()},
        "seconds": round(report.seconds, 3),
        "images_per_second": round(report.images_per_second, 1),
        "is_best": report.is_best,
    }


def _ends(recipe: Recipe, epochs: int, waited: int) -> bool:
    return epochs >= recipe.epochs or waited >= (recipe.patience or math.inf)


def _in_processes(world: World) -> str:
    return f" in {world.size} processes" if world.size > 1 else ""


def _check_same_recipe(earlier: Recipe, now: Recipe, last: Path) -> None:
    """Raise InputError where a run would go on by another recipe than it began with."""
    then, new = earlier.to_dict(), now.to_dict()
    differing = [name for name in then if then[name] != new[name]]
    steady = earlier.schedule == "constant" and earlier.share_of_size(0) == 1
    if differing == ["epochs"] and steady:
        return
    if differing:
        name = differing[0]
        raise InputError(
            f"{last} was trained with {name} {then[name]!r}, not {new[name]!r}: give that, or "
            "start a new run without --resume (resume=True)."
        )


def _hash_of_rows(table: pd.DataFrame, recipe: Recipe) -> str:
    """Return a hash of the pictures and labels to train and to choose on, in their order.

    With a teacher's answers, if the recipe asks for them.
    """
    used = table[table["split"].isin(["train", "val"])] if "split" in table else table
    digest = hashlib.sha256()
    for column in ("path", "label", "split", *(["teacher"] if recipe.distillation else [])):
        if column in used:
            text = "\n".join(map(str, used[column]))
            digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _start(recipe: Recipe, last: Checkpoint | None = None) -> tuple[nn.Module, Tensor]:
    """Return the net to train and the hashes of what its weights have seen.

    ``last``: the epoch to go on from.
    """
    imagenet = recipe.init == "imagenet" and last is None
    model = build_model(recipe.arch, len(CLASSES), imagenet=imagenet)
    _try_size(model, recipe)
    seen = torch.empty(0, dtype=torch.int64)
    if last is not None:
        load_weights(model, last.weights, recipe.name)
        seen = last.seen
    elif recipe.init not in ("imagenet", "none"):
        seen = _load_init(model, recipe)
    if recipe.feature_extract:
        freeze_all_but_head(model)
    elif recipe.init != "none":
        freeze(model, recipe.frozen)
    return model, seen


def _try_size(model: nn.Module, recipe: Recipe) -> None:
    """Raise InputError where the net cannot take pictures of the recipe's size."""
    whole = recipe.preprocessing.height, recipe.preprocessing.width
    for share in dict.fromkeys((1.0, recipe.share_of_size(0))):
        height, width = scaled(whole, share)
        try:
            with torch.inference_mode():
                model.eval()(torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError) as error:
            cure = (
                "choose the size that the net was made for, often 224 x 224."
                if share == 1
                else "train it with start_size=1."
            )
            raise InputError(
                f"{recipe.arch} cannot take pictures of {height} x {width} pixels: {cure}"
            ) from error


def _load_init(model: nn.Module, recipe: Recipe) -> Tensor:
    """Start from a .pth; a last layer for other classes stays new. Return what it has seen."""
    found = read_weights(recipe.init)
    known = found if isinstance(found, Checkpoint) else None
    weights = dict(known.weights if known else found)  # type: ignore[arg-type]
    own, head = model.state_dict(), head_name(model)
    for key in (f"{head}.weight", f"{head}.bias"):
        if key in weights and key in own and weights[key].shape != own[key].shape:
            warnings.warn(
                f"{recipe.init}: {key} is for other classes, it starts anew", stacklevel=2
            )
            weights[key] = own[key]
        elif key in weights and known and sorted(known.classes) == sorted(CLASSES):
            weights[key] = weights[key][[known.classes.index(name) for name in CLASSES]]
    load_weights(model, weights, f"{recipe.arch}, which {recipe.init} is to start")
    return known.seen if known else torch.empty(0, dtype=torch.int64)


def _seen(table: pd.DataFrame, source: Source) -> Tensor:
    """Return the hashes of all pictures that this run trains and chooses on."""
    used = table[table["split"].isin(["train", "val"])]
    return hash64(each for each in row_hashes(used, source) if each)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [each for each in model.parameters() if each.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    fused = parameters[0].device.type in ("cpu", "cuda")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=recipe.momentum, weight_decay=decay, fused=fused
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay, amsgrad=recipe.amsgrad, fused=fused)


def _schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return what changes the learning rate after each of the ``steps`` of an epoch."""
    if recipe.schedule == "constant":
        return None
    # One more: a step that is left out or added must not run past the cycle's end.
    # And five at least: of four, the quarter that warms up ends where OneCycleLR divides by zero.
    total = max(5, recipe.epochs * steps + 1)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total, pct_start=0.25, cycle_momentum=False
    )


def _loss(outputs: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    if recipe.loss == "nll":
        return nn.functional.nll_loss(outputs, labels)
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing)
