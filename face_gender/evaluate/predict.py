"""evaluate(): how good a model is on pictures that it has not seen."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from face_gender import CLASSES
from face_gender.console import progress_bar
from face_gender.data.base_source import without_resume
from face_gender.data.dataset import FaceDataset, FaceLoader, Failure, make_loader, to_input
from face_gender.data.index import Index
from face_gender.devices import forward, halving_on_oom, pick_device
from face_gender.errors import InputError
from face_gender.evaluate.metrics import Evaluation, cross_entropy
from face_gender.model.architectures import probabilities_of, to_device, with_mirror
from face_gender.model.checkpoint import Checkpoint, load_checkpoint

# Of pictures (n, 3, H, W), resized, with values 0..255, on the device: as many with such values.
Change = Callable[[Tensor], Tensor]


class LeakError(InputError):
    """The model was trained or chosen on pictures that it is to be judged by."""


def evaluate(
    weights: Checkpoint | str | os.PathLike[str],
    index: Index | str | os.PathLike[str],
    split: str | None = "test",
    *,
    change: Change | None = None,
    **options: Any,
) -> Evaluation:
    """Run a model over one split (None: all rows) and return what it predicts, in float32.

    ``change``: what is done to pictures before they are normalised, such as a blur. ``options``
    and errors: those of `evaluate_changed`.
    """
    return evaluate_changed(weights, index, split, [change], **options)[0]


@without_resume()
def evaluate_changed(
    weights: Checkpoint | str | os.PathLike[str],
    index: Index | str | os.PathLike[str],
    split: str | None,
    changes: Sequence[Change | None],
    *,
    data: str | os.PathLike[str] | None = None,
    allow_seen: bool = False,
    flip: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> list[Evaluation]:
    """Evaluate as `evaluate` does under each change, the model built and pictures read once.

    ``data``: where the pictures lie, by default beside the index. ``flip``: predict the mean of
    the probabilities of a picture and of its mirror image. Raises LeakError where the model was
    trained or chosen on any of the pictures, unless ``allow_seen``; InputError for all else that
    is wrong.
    """
    name = "the model" if isinstance(weights, Checkpoint) else os.fspath(weights)
    checkpoint = weights if isinstance(weights, Checkpoint) else load_checkpoint(weights)
    rows = Index.open(index, data).split(split)
    if not allow_seen:
        _refuse_leak(checkpoint, rows, name)
    model, transform = checkpoint.build()
    # The index numbers classes its own way; the outputs follow the checkpoint's.
    position = {i: _position(checkpoint.classes, each, name) for i, each in enumerate(CLASSES)}
    rows = replace(rows, table=rows.table.assign(label=rows.table["label"].map(position)))
    chosen = pick_device(device)
    dataset = FaceDataset(rows, None, transform, progress=progress)
    results = predict(
        to_device(model, chosen),
        make_loader(dataset, batch_size, workers=workers, device=chosen),
        checkpoint.classes,
        temperature=checkpoint.temperature,
        mirror_within=checkpoint.recipe.mirror_within,
        flip=flip,
        changes=changes,
        progress=progress,
    )
    if not all(math.isfinite(result.loss) for result in results):
        raise InputError(f"{name} answers with what is not a number: its weights are damaged.")
    return results


def _refuse_leak(checkpoint: Checkpoint, rows: Index, name: str) -> None:
    found = rows.count_seen(checkpoint.seen_hashes)
    if found:
        raise LeakError(
            f"LEAK: {name} was trained or chosen on {found} of these {len(rows)} pictures, so any "
            "figure would be too good: evaluate it on pictures that it has not seen (the test "
            "split of its own index), or pass --allow-seen (allow_seen=True) and do not call the "
            "result a test."
        )


def _position(classes: tuple[str, ...], wanted: str, name: str) -> int:
    if wanted not in classes:
        raise InputError(
            f"{name} knows the classes {', '.join(classes)}, and no {wanted}: name weights for "
            f"{' and '.join(CLASSES)}."
        )
    return classes.index(wanted)


@torch.no_grad()
def predict(
    model: nn.Module,
    loader: FaceLoader,
    classes: tuple[str, ...],
    *,
    temperature: float = 1.0,
    precision: torch.dtype | None = None,
    mirror_within: float = 0.0,
    flip: bool = False,
    changes: Sequence[Change | None] = (None,),
    progress: bool = False,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> list[Evaluation]:
    """Return what a net predicts of every picture of a loader, once for each of ``changes``.

    The net's device is where the pictures go. ``mirror_within``: that of the recipe. ``flip``: the
    mean of each picture and of its mirror image. ``gather``: from a value of this process to those
    of all that share the loader's batches. The loss is that of the probabilities. Raises InputError
    where no picture is readable.
    """
    model.eval()
    device = next(model.parameters()).device
    dataset, sampler = loader.dataset, loader.batch_sampler
    outputs = partial(forward, model, precision=precision)

    def probabilities(images: Tensor) -> Tensor:
        own = partial(with_mirror, outputs, within=0 if flip else mirror_within)
        return probabilities_of(halving_on_oom(own, images), temperature)

    found: list[list[Tensor]] = [[] for _ in changes]
    positions: list[Tensor] = []
    failures: list[Failure] = []
    with progress_bar(sampler.pictures, "evaluate", shown=progress) as bar:
        for batch in loader:
            failures += batch.failures
            bar.update((len(batch.labels) + len(batch.failures)) * sampler.world_size)
            if not len(batch.images):
                continue
            positions.append(batch.positions)
            for change, rows in zip(changes, found, strict=True):
                images = to_input(batch, dataset.transform, device, change=change)
                each = probabilities(images)
                rows.append(((each + probabilities(images.flip(3))) / 2 if flip else each).cpu())
    failures = sorted(each for part in gather(failures) for each in part)
    loader.leave_out(failures)
    read, every = _in_order(gather, positions, found)
    skipped = tuple((str(dataset.paths[i]), reason) for i, reason, _ in failures)
    paths, labels = dataset.paths[read], dataset.labels[read]
    return [
        Evaluation(classes, paths, labels, rows, cross_entropy(rows, labels), skipped)
        for rows in every
    ]


def _in_order(
    gather: Callable[[Any], list[Any]], positions: list[Tensor], found: list[list[Tensor]]
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]:
    """Return positions (n,), ascending, and probabilities (n, classes) of all processes."""
    own = (torch.cat(positions), [torch.cat(rows) for rows in found]) if positions else None
    every = [part for part in gather(own) if part is not None]
    if not every:
        raise InputError("no picture of the split could be read: make the index again.")
    read = torch.cat([part[0] for part in every])
    order = read.argsort()
    joined = [torch.cat([part[1][i] for part in every])[order].numpy() for i in range(len(found))]
    return read[order].numpy(), joined
