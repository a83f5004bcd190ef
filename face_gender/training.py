"""train(): a generator of one report an epoch; evaluate(): what the result is worth."""

from __future__ import annotations

import filecmp
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.checkpoint import (
    Checkpoint,
    as_int64,
    hash64,
    load_checkpoint,
    load_weights,
    read_weights,
)
from face_gender.dataset import Batch, EpochSampler, FaceDataset, FaceLoader, select_split
from face_gender.devices import (
    in_bits,
    is_out_of_memory,
    keep_freed_memory,
    mixed_precision,
    pick_device,
)
from face_gender.files import InputError, Source, copy_atomically, open_source, shown
from face_gender.index import check_matches, read_index, row_hashes
from face_gender.metrics import Evaluation
from face_gender.models import (
    build_model,
    freeze,
    freeze_all_but_head,
    has_batchnorm,
    head_name,
    probabilities_of,
    to_device,
    train_mode,
)
from face_gender.recipes import Recipe, get_recipe


class LeakError(InputError):
    """The model was trained or chosen on pictures that it is to be judged by."""


class UnreadablePictureWarning(UserWarning):
    """A picture of the index could not be read and takes no part from here on."""


# Python shows a text once; a second training in the same notebook must name its files again.
warnings.simplefilter("always", UnreadablePictureWarning)


@dataclass(frozen=True)
class EpochReport:
    """One epoch's figures. Losses are means per picture, in nats; accuracy and recall 0..1.

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
    progress: bool = True,
) -> Iterator[EpochReport]:
    """Train by ``recipe`` on the train split of ``index``; yield a report after each epoch.

    Each epoch is saved as ``out/<recipe>/epoch_{i}.pth``, the best so far (by the recipe's
    ``best_by`` on the validation split) as ``out/<recipe>/best.pth`` and ``out/best.pth``. The
    files of an earlier run of the recipe are moved into ``out/<recipe>/earlier_{n}/`` first; an
    ``out/best.pth`` that is no copy of one of them is kept as ``out/best_earlier_{n}.pth``.
    The caller may stop at any report. ``mixed``: calculate in 16 bits where the hardware does.
    The same seed on the same machine gives the same numbers on a CPU. Raises InputError.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    run = _Run(recipe, index, data, Path(out), seed, device, workers, mixed, progress)
    with closing(run):
        for epoch in tqdm(
            range(recipe.epochs), desc=recipe.name, unit="epoch", disable=not progress
        ):
            yield run.epoch(epoch)
            if run.epochs_without_better >= (recipe.patience or math.inf):
                return


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        recipe: Recipe,
        index: str | os.PathLike[str] | pd.DataFrame,
        data: str | os.PathLike[str],
        out: Path,
        seed: int,
        device: str,
        workers: int | None,
        mixed: bool,
        progress: bool,
    ) -> None:
        keep_freed_memory()
        self.recipe = recipe
        self.progress = progress
        self.device = pick_device(device)
        self.precision = mixed_precision(self.device) if mixed else None
        source = open_source(data)
        table = index if isinstance(index, pd.DataFrame) else read_index(index)
        check_matches(table, source)
        preprocessing = recipe.preprocessing
        self.train_set = FaceDataset(table, "train", source, preprocessing.train_transform())
        self.val_set = FaceDataset(table, "val", source, preprocessing.eval_transform())
        torch.manual_seed(seed)
        model, seen = _start(recipe)
        self.model = to_device(model, self.device)
        self.seen = torch.unique(torch.cat([seen, _seen(table, source)]))
        self.optimizer = _optimizer(recipe, self.model)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )
        size = recipe.batch_size
        self.train_loader = FaceLoader(self.train_set, size, True, seed, workers, self.device)
        self.val_loader = FaceLoader(self.val_set, size, False, seed, workers, self.device)
        self.schedule = _schedule(recipe, self.optimizer, len(self.train_loader))
        self.out = out
        self.folder = _prepare_folder(out, recipe.name)
        self.random_state = torch.get_rng_state()
        # BatchNorm has no variance to learn from in a last batch of one.
        self.skips_single = recipe.batch_size > 1 and has_batchnorm(model)
        self.best: tuple[float, float] | None = None
        self.epochs_without_better = 0
        # Into so many parts each batch is cut, so that it fits into memory.
        self.parts = 1
        self._say(
            f"{recipe.name}: on {self.device} in {in_bits(self.precision)}, batches of {size}, "
            f"{self.train_loader.workers or 'no'} processes that read"
        )

    def _say(self, line: str) -> None:
        if self.progress:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the loaders' workers."""
        del self.train_loader, self.val_loader

    def epoch(self, epoch: int) -> EpochReport:
        """Train and validate once, save, and report."""
        started = time.perf_counter()
        # Whatever the caller drew since the last epoch.
        torch.set_rng_state(self.random_state)
        train_loss, images_per_second = self._train_epoch(epoch)
        validation = _predict(self.model, self.val_loader, CLASSES, self.precision, self.progress)
        if not math.isfinite(train_loss + validation.loss):
            raise InputError(
                f"training diverged in epoch {epoch} (the loss is not a number): "
                "use a smaller learning_rate."
            )
        self.random_state = torch.get_rng_state()
        is_best = self._is_best(validation)
        path = self.folder / f"epoch_{epoch}.pth"
        self._save(path, epoch, train_loss, validation, is_best)
        return EpochReport(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            recall=validation.recall,
            seconds=time.perf_counter() - started,
            images_per_second=images_per_second,
            is_best=is_best,
            checkpoint=path,
        )

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """Return the mean loss per picture and the pictures per second."""
        train_mode(self.model)
        sampler = self.train_loader.sampler
        sampler.epoch = epoch
        # On the device: to ask for a number there is to wait for it.
        total_loss = torch.zeros((), device=self.device)
        count, started = 0, time.perf_counter()
        bar = tqdm(total=sampler.pictures, desc=f"epoch {epoch}", unit="img", leave=False,
                   disable=not self.progress)  # fmt: skip
        with bar:
            for number, batch in enumerate(self.train_loader):
                _exclude(batch, self.train_set, sampler)
                single = len(batch.labels) == 1 and sampler.pictures > 1
                if batch.images is not None and not (single and self.skips_single):
                    total_loss += self._step(batch.images, batch.labels) * len(batch.labels)
                    count += len(batch.labels)
                    if self.progress and number % 10 == 0:
                        bar.set_postfix(loss=f"{total_loss.item() / count:.4f}", refresh=False)
                bar.update(len(batch.labels) + len(batch.failures))
        if count == 0:
            raise InputError("no picture of the train split could be read: make the index again.")
        return total_loss.item() / count, count / (time.perf_counter() - started)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Make one optimiser step; return the mean loss of the batch, on the device."""
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
        return loss

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Set the gradients of a batch's mean loss, a part of the batch at a time; return it."""
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=self.device)
        least = 2 if self.skips_single else 1
        parts = max(1, min(self.parts, len(labels) // least))
        for some, their in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            outputs = _forward(self.model, some, self.precision)
            loss = _loss(outputs, their, self.recipe) * (len(their) / len(labels))
            self.scaler.scale(loss).backward()
            mean += loss.detach()
        return mean

    def _cut_smaller(self, batch: int) -> None:
        """Halve the parts of a batch. Raises InputError where a part has no pictures to spare."""
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

    def _is_best(self, validation: Evaluation) -> bool:
        score = (validation.accuracy, -validation.loss)
        if self.recipe.best_by == "val_loss":
            score = (-validation.loss, validation.accuracy)
        is_best = self.best is None or score > self.best
        self.best = score if is_best else self.best
        self.epochs_without_better = 0 if is_best else self.epochs_without_better + 1
        return is_best

    def _save(
        self, path: Path, epoch: int, train_loss: float, validation: Evaluation, is_best: bool
    ) -> None:
        recall = {f"val_recall_{name}": value for name, value in validation.recall.items()}
        metrics = {
            "train_loss": train_loss,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            **recall,
        }
        Checkpoint(
            recipe=self.recipe,
            classes=CLASSES,
            preprocessing=self.recipe.preprocessing,
            weights=self.model.state_dict(),
            epoch=epoch,
            metrics=metrics,
            seen=self.seen,
        ).save(path)
        if is_best:
            copy_atomically(path, self.folder / "best.pth")
            copy_atomically(path, self.out / "best.pth")


def evaluate(
    weights: Checkpoint | str | os.PathLike[str],
    index: str | os.PathLike[str] | pd.DataFrame,
    data: str | os.PathLike[str],
    split: str | None = "test",
    *,
    allow_seen: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Run a model over one split (None: all rows) and return what it answered, in float32.

    Raises LeakError where the model was trained or chosen on any of the pictures, unless
    ``allow_seen``; InputError for all else that is wrong.
    """
    name = "the model" if isinstance(weights, Checkpoint) else os.fspath(weights)
    checkpoint = weights if isinstance(weights, Checkpoint) else load_checkpoint(weights)
    source = open_source(data)
    rows = select_split(index, split)
    check_matches(rows, source)
    if not allow_seen:
        _refuse_leak(checkpoint, rows, source, name)
    model, transform = checkpoint.build()
    # The index numbers classes its own way; the outputs follow the checkpoint's.
    position = {i: _position(checkpoint.classes, name) for i, name in enumerate(CLASSES)}
    rows = rows.assign(label=rows["label"].map(position))
    dataset = FaceDataset(rows, None, source, transform)
    chosen = pick_device(device)
    loader = FaceLoader(dataset, batch_size, workers=workers, device=chosen)
    return _predict(to_device(model, chosen), loader, checkpoint.classes, None, progress)


def _refuse_leak(checkpoint: Checkpoint, rows: pd.DataFrame, source: Source, name: str) -> None:
    seen = set(checkpoint.seen.tolist())
    found = sum(1 for each in row_hashes(rows, source) if each and as_int64(each) in seen)
    if found:
        raise LeakError(
            f"LEAK: {name} was trained or chosen on {found} of these {len(rows)} pictures, so any "
            "figure would be too good: evaluate it on pictures that it has not seen (the test "
            "split of its own index), or pass allow_seen=True and do not call the result a test."
        )


def _position(classes: tuple[str, ...], name: str) -> int:
    if name not in classes:
        raise InputError(f"the model knows the classes {', '.join(classes)}, and no {name}.")
    return classes.index(name)


def _start(recipe: Recipe) -> tuple[nn.Module, Tensor]:
    """Return the net to train and the hashes of what its first weights have seen."""
    model = build_model(recipe.arch, len(CLASSES), imagenet=recipe.init == "imagenet")
    _try_size(model, recipe)
    seen = torch.empty(0, dtype=torch.int64)
    if recipe.init not in ("imagenet", "none"):
        seen = _load_init(model, recipe)
    if recipe.feature_extract:
        freeze_all_but_head(model)
    elif recipe.init != "none":
        freeze(model, recipe.frozen)
    return model, seen


def _try_size(model: nn.Module, recipe: Recipe) -> None:
    """Raise InputError where the net cannot take pictures of the recipe's size."""
    height, width = recipe.preprocessing.height, recipe.preprocessing.width
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{recipe.arch} cannot take pictures of {height} x {width} pixels: choose the size "
            "that the net was made for, often 224 x 224."
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
    total = recipe.epochs * steps + 1
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total, pct_start=0.25, cycle_momentum=False
    )


def _forward(model: nn.Module, images: Tensor, precision: torch.dtype | None) -> Tensor:
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        outputs: Tensor = model(images)
    return outputs.float()


def _in_halves(model: nn.Module, images: Tensor, precision: torch.dtype | None) -> Tensor:
    """Answer a batch, in halves where it does not fit into memory. Raises InputError for one."""
    try:
        return _forward(model, images, precision)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    if len(images) == 1:
        raise InputError("memory is too small for a single picture: use another device.")
    return torch.cat([_in_halves(model, half, precision) for half in images.tensor_split(2)])


def _loss(outputs: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    if recipe.loss == "nll":
        return nn.functional.nll_loss(outputs, labels)
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing)


@torch.no_grad()
def _predict(
    model: nn.Module,
    loader: FaceLoader,
    classes: tuple[str, ...],
    precision: torch.dtype | None,
    progress: bool,
) -> Evaluation:
    """Answer every picture of the loader; the loss is that of the probabilities."""
    model.eval()
    dataset, sampler = loader.dataset, loader.sampler
    positions, probabilities, skipped = [], [], []
    with tqdm(total=sampler.pictures, desc="evaluate", unit="img", leave=False,
              disable=not progress) as bar:  # fmt: skip
        for batch in loader:
            _exclude(batch, dataset, sampler)
            skipped += [(str(dataset.paths[i]), reason) for i, reason in batch.failures]
            if batch.images is not None:
                outputs = _in_halves(model, batch.images, precision)
                probabilities.append(probabilities_of(outputs).cpu())
                positions.append(batch.positions)
            bar.update(len(batch.labels) + len(batch.failures))
    if not positions:
        raise InputError("no picture of the split could be read: make the index again.")
    chosen = torch.cat(positions).numpy()
    answers = torch.cat(probabilities)
    labels = dataset.labels[chosen]
    log_right = answers.clamp_min(1e-12).log()[torch.arange(len(labels)), torch.from_numpy(labels)]
    return Evaluation(
        classes=classes,
        paths=dataset.paths[chosen],
        labels=labels,
        probabilities=answers.numpy(),
        loss=abs(float(log_right.mean())),  # minus would make -0.0 of 0
        skipped=tuple(skipped),
    )


def _exclude(batch: Batch, dataset: FaceDataset, sampler: EpochSampler) -> None:
    """Warn of each file that could not be read, and leave it out from the next epoch on."""
    for position, reason in batch.failures:
        sampler.excluded.add(position)
        warnings.warn(
            shown(f"{dataset.paths[position]} is left out: {reason}"),
            UnreadablePictureWarning,
            stacklevel=2,
        )


def _prepare_folder(out: Path, name: str) -> Path:
    """Make the run's folder and move the files of earlier runs aside, so that none is lost."""
    folder = out / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(folder.glob("epoch_*.pth")) + sorted(folder.glob("best.pth"))
        if earlier:
            aside = folder / f"earlier_{_next_number(folder, 'earlier_')}"
            aside.mkdir()
            for file in earlier:
                file.rename(aside / file.name)
        _keep_foreign_best(out)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): name another folder for the weights."
        ) from error
    return folder


def _keep_foreign_best(out: Path) -> None:
    """Keep a copy of an ``out/best.pth`` that stands nowhere else, before a run replaces it."""
    best = out / "best.pth"
    copies = list(out.glob("*/**/best.pth")) + list(out.glob("best_earlier_*.pth"))
    if best.exists() and not any(filecmp.cmp(best, copy, shallow=False) for copy in copies):
        copy_atomically(best, out / f"best_earlier_{_next_number(out, 'best_earlier_')}.pth")


def _next_number(folder: Path, prefix: str) -> int:
    pattern = re.compile(rf"{prefix}(\d+)")
    taken = [int(match[1]) for path in folder.iterdir() if (match := pattern.match(path.name))]
    return max(taken, default=0) + 1
