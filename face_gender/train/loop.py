"""train(): a generator of one report an epoch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from face_gender import CLASSES
from face_gender.console import progress_bar
from face_gender.data.dataset import Failure, to_input
from face_gender.data.index import Index
from face_gender.errors import InputError
from face_gender.evaluate.predict import predict
from face_gender.model.architectures import train_mode
from face_gender.model.recipes import Recipe
from face_gender.train.distributed import as_input_error
from face_gender.train.optim import scaled_down
from face_gender.train.run import EpochReport, Run


def train(
    recipe: Recipe | str,
    index: Index | str | os.PathLike[str],
    out: str | os.PathLike[str] = "model_weights",
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    mixed: bool = True,
    resume: bool = False,
    progress: bool = True,
) -> Iterator[EpochReport]:
    """Train by ``recipe`` on the train split of ``index``; yield a report after each epoch.

    ``data``: where the pictures lie, by default beside the index. Each epoch is saved as
    ``out/<recipe>/epoch_{i}.pth``, the best so far (by the recipe's ``best_by`` on the validation
    split) as ``out/<recipe>/best.pth`` and ``out/best.pth``, the figures of all as
    ``out/<recipe>/history.csv``, and what it takes to go on as ``last.pth``. Each checkpoint has
    the temperature that fits its predictions on the validation split. The files of an earlier run
    of the recipe are moved into ``out/<recipe>/earlier_{n}/`` first; an ``out/best.pth`` that is
    no copy of one of them is kept as ``out/best_earlier_{n}.pth``. The caller may stop at any
    report. ``mixed``: calculate in 16 bits where the hardware does; no run remembers it. The same
    seed on the same machine gives the same numbers on a CPU.

    ``resume``: go on behind the last complete epoch of an earlier run with the same settings and
    index, as if it had not been interrupted: on a CPU to the same weights, bit for bit. A recipe's
    name stands for the recipe of that run; its ``epochs`` may be others where the learning rate
    is constant. Where there is no such run, one begins.

    Under torchrun, each process takes its shard of every batch (``batch_size`` is that of all),
    rank 0 alone writes, and a restarted job resumes by itself. Raises InputError.
    """
    with as_input_error():
        index = Index.open(index, data)
        run = Run(recipe, index, Path(out), seed, device, workers, mixed, progress, resume)
    epochs = progress_bar(
        run.recipe.epochs, run.recipe.name, "epoch", shown=run.progress, initial=run.epochs
    )
    with closing(run), epochs as bar:
        while not run.finished:
            with as_input_error():
                report = train_and_validate(run)
            bar.update()
            yield report


def train_and_validate(run: Run) -> EpochReport:
    """Train for one epoch, validate, save, and report. Raises InputError where losses diverge."""
    started = time.perf_counter()
    run.seed_epoch()
    train_loss, images_per_second = train_epoch(run)
    run.world.broadcast_buffers(run.step.eval_model)
    (validation,) = predict(
        run.step.eval_model, run.val_loader, CLASSES, precision=run.step.precision,
        mirror_within=run.recipe.mirror_within, progress=run.progress,
        gather=run.world.all_gather,
    )  # fmt: skip
    if not math.isfinite(train_loss + validation.loss):
        raise InputError(
            f"training diverged in epoch {run.epochs} (the loss is not a number): "
            "use a smaller learning_rate."
        )
    return run.end_epoch(train_loss, validation, started, images_per_second)


def train_epoch(run: Run) -> tuple[float, float]:
    """Train on each picture once; return the mean loss and pictures a second, of all processes."""
    step, loader, world = run.step, run.train_loader, run.world
    epoch, transform = run.epochs, loader.dataset.transform
    loader.batch_sampler.epoch = epoch
    train_mode(step.net)
    # On the device: to ask for a number there is to wait for it.
    total_loss = torch.zeros((), device=run.device)
    count, started = 0, time.perf_counter()
    failures: list[Failure] = []
    pictures = loader.batch_sampler.pictures
    with progress_bar(pictures, f"epoch {epoch}", shown=run.progress) as bar:
        for number, batch in enumerate(loader):
            failures += batch.failures
            counts = world.all_counts(len(batch.labels), run.device)
            if step.takes(counts):
                images = to_input(batch, transform, run.device, run.seed, epoch)
                images = scaled_down(images, run.recipe.size_fraction(epoch))
                total_loss += step(images, run.targets_of(batch), sum(counts))
                count += sum(counts)
                if run.progress and number % 10 == 0:
                    loss = total_loss.item() * world.size / count
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(sum(counts) + len(batch.failures))
    failures = sorted(each for part in world.all_gather(failures) for each in part)
    loader.leave_out(failures)
    if count == 0 and len(failures) < pictures:
        raise InputError(
            f"{run.recipe.arch} has BatchNorm, which learns from two pictures or more, and no "
            "batch gave each process so many to read: add pictures to the train split."
        )
    if count == 0:
        raise InputError("no picture of the train split could be read: make the index again.")
    mean_loss = world.all_reduce(total_loss).item() / count
    return mean_loss, count / (time.perf_counter() - started)
