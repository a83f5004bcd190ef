"""evaluate(): what a model is worth on pictures that it has not seen."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.data.dataset import FaceDataset, FaceLoader, select_split
from face_gender.data.scan import check_matches, row_hashes
from face_gender.data.sources import Source, open_source
from face_gender.devices import forward, is_out_of_memory, pick_device
from face_gender.errors import InputError
from face_gender.evaluate.metrics import Evaluation, cross_entropy
from face_gender.model.architectures import probabilities_of, to_device
from face_gender.model.checkpoint import Checkpoint, as_int64, load_checkpoint
from face_gender.train.distributed import World


class LeakError(InputError):
    """The model was trained or chosen on pictures that it is to be judged by."""


def evaluate(
    weights: Checkpoint | str | os.PathLike[str],
    index: str | os.PathLike[str] | pd.DataFrame,
    data: str | os.PathLike[str],
    split: str | None = "test",
    *,
    allow_seen: bool = False,
    flip: bool = False,
    change: Callable[[Tensor], Tensor] | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Run a model over one split (None: all rows) and return what it answered, in float32.

    ``flip``: answer with the mean of the probabilities of a picture and of its mirror image.
    ``change``: what is done to pictures before they are normalised, such as a blur; it takes
    (n, 3, H, W) uint8, resized, on the device, and returns as many with values 0..255.

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
    dataset = FaceDataset(rows, None, source, replace(transform, change=change))
    chosen = pick_device(device)
    loader = FaceLoader(dataset, batch_size, workers=workers, device=chosen)
    model, temperature = to_device(model, chosen), checkpoint.temperature
    result = predict(model, loader, checkpoint.classes, temperature, None, progress, flip=flip)
    if not math.isfinite(result.loss):
        raise InputError(f"{name} answers with what is not a number: its weights are damaged.")
    return result


def count_seen(seen: Tensor, rows: pd.DataFrame, source: Source) -> int:
    """Return how many of an index's rows a model was trained or chosen on.

    ``seen``: as a `Checkpoint` has it.
    """
    known = set(seen.tolist())
    if not known:
        return 0
    return sum(1 for each in row_hashes(rows, source) if each and as_int64(each) in known)


def _refuse_leak(checkpoint: Checkpoint, rows: pd.DataFrame, source: Source, name: str) -> None:
    found = count_seen(checkpoint.seen, rows, source)
    if found:
        raise LeakError(
            f"LEAK: {name} was trained or chosen on {found} of these {len(rows)} pictures, so any "
            "figure would be too good: evaluate it on pictures that it has not seen (the test "
            "split of its own index), or pass --allow-seen (allow_seen=True) and do not call the "
            "result a test."
        )


def _position(classes: tuple[str, ...], name: str) -> int:
    if name not in classes:
        raise InputError(f"the model knows the classes {', '.join(classes)}, and no {name}.")
    return classes.index(name)


@torch.no_grad()
def predict(
    model: nn.Module,
    loader: FaceLoader,
    classes: tuple[str, ...],
    temperature: float,
    precision: torch.dtype | None,
    progress: bool,
    *,
    flip: bool = False,
) -> Evaluation:
    """Answer every picture of the loader, each once by one of its processes.

    ``flip``: with the mean of the probabilities of a picture and of its mirror image. The loss is
    that of the probabilities. Raises InputError where no picture can be read.
    """
    model.eval()
    dataset, sampler = loader.dataset, loader.sampler
    positions, probabilities, failures = [], [], []
    with tqdm(total=sampler.pictures, desc="evaluate", unit="img", leave=False,
              disable=not progress) as bar:  # fmt: skip
        for batch in loader:
            failures += batch.failures
            if batch.images is not None:
                outputs = _in_halves(model, batch.images, precision)
                answers = probabilities_of(outputs, temperature)
                if flip:
                    outputs = _in_halves(model, batch.images.flip(3), precision)
                    answers = (answers + probabilities_of(outputs, temperature)) / 2
                probabilities.append(answers.cpu())
                positions.append(batch.positions)
            bar.update((len(batch.labels) + len(batch.failures)) * sampler.world.size)
    failures = loader.leave_out(failures)
    chosen, every = _in_order(sampler.world, positions, probabilities)
    labels = dataset.labels[chosen]
    return Evaluation(
        classes=classes,
        paths=dataset.paths[chosen],
        labels=labels,
        probabilities=every,
        loss=cross_entropy(every, labels),
        skipped=tuple((str(dataset.paths[i]), reason) for i, reason in failures),
    )


def _in_halves(model: nn.Module, images: Tensor, precision: torch.dtype | None) -> Tensor:
    """Answer a batch, in halves where it does not fit into memory. Raises InputError for one."""
    try:
        return forward(model, images, precision)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    if len(images) == 1:
        raise InputError("memory is too small for a single picture: use another device.")
    return torch.cat([_in_halves(model, half, precision) for half in images.tensor_split(2)])


def _in_order(
    world: World, positions: list[Tensor], probabilities: list[Tensor]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return (n,) positions, ascending, and (n, classes) probabilities from all processes."""
    own = (torch.cat(positions), torch.cat(probabilities)) if positions else None
    every = [part for part in world.gathered(own) if part is not None]
    if not every:
        raise InputError("no picture of the split could be read: make the index again.")
    chosen = torch.cat([part[0] for part in every])
    order = chosen.argsort()
    return chosen[order].numpy(), torch.cat([part[1] for part in every])[order].numpy()
