"""How each picture looks to a net: embeddings, and what out-of-fold heads on them predict."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from face_gender import CLASSES
from face_gender.data.dataset import FaceDataset, make_loader, to_input
from face_gender.data.index import Index
from face_gender.data.sources import Source
from face_gender.devices import halving_on_oom, mixed_precision, pick_device
from face_gender.evaluate.predict import evaluate
from face_gender.model.architectures import embed, head_name, to_device
from face_gender.model.checkpoint import Checkpoint, as_int64
from face_gender.model.recipes import Recipe
from face_gender.train.loop import train

# Inverse strength of the penalty, in units of standardised features.
_PENALTY = 0.01
_BATCH = 64


@torch.inference_mode()
def embed_all(
    checkpoint: Checkpoint,
    table: pd.DataFrame,
    source: Source,
    jobs: int,
    progress: Callable[[int], object],
) -> dict[str, npt.NDArray[np.float16]]:
    """Return two embeddings (n, features) of the pictures of ``table``, NaN for an unreadable one.

    "final" is what the last layer is given, "early" the means of the convolutions at the
    resolutions before its own. In float16: at 100,000 pictures the double would not fit beside
    the rest.
    """
    model, transform = checkpoint.build()
    device = pick_device()
    model = to_device(model, device)
    precision = mixed_precision(device)
    dataset = FaceDataset(Index(table, source), None, transform)
    out: npt.NDArray[np.float16] | None = None
    workers = jobs if len(dataset) >= 256 else 0
    for batch in make_loader(dataset, _BATCH, workers=workers, device=device):
        progress(len(batch.labels) + len(batch.failures))
        if not len(batch.images):
            continue
        images = to_input(batch, transform, device)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            features = halving_on_oom(partial(embed, model), images).cpu().numpy()
        if out is None:
            out = np.full((len(dataset), features.shape[1]), np.nan, dtype=np.float16)
        out[batch.positions.numpy()] = np.clip(features, -6e4, 6e4)
    width = checkpoint.weights[f"{head_name(model)}.weight"].shape[1]
    if out is None:
        out = np.full((len(dataset), 2 * width), np.nan, dtype=np.float16)
    early = out[:, :-width]
    # The last convolution tells one face from another, and hides what is none: docs/audit.md.
    before_last = early.shape[1] - last_channels(model)
    return {"early": early[:, :before_last] if before_last > 0 else early, "final": out[:, -width:]}


def last_channels(model: nn.Module) -> int:
    """Return how many channels the last convolution before the last layer has, 0 for none."""
    head = head_name(model)
    convolutions = (m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != head)
    return max((m.out_channels for m in list(convolutions)[-1:]), default=0)


def hash_weights(checkpoint: Checkpoint) -> str:
    """Return the sha256 of a net's weights, the same on every machine and for any threads."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def seen_by(
    checkpoint: Checkpoint, hashes: Sequence[str], groups: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Tell for each sha256 (n,) whether the net was trained on it or on a copy (of its group)."""
    seen = set(checkpoint.seen_hashes.tolist())
    known = [bool(each) and as_int64(each) in seen for each in hashes]
    known_groups = {group for group, is_known in zip(groups, known, strict=True) if is_known}
    return np.array([group in known_groups for group in groups], dtype=bool)


def fold_of(groups: Sequence[str], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold (n,) of each picture; those of one group, copies of each other, share it.

    Drawn from the group's name and the seed alone, so that the order does not matter.
    """
    digests = (hashlib.sha256(f"{seed}:{group}".encode()).digest() for group in groups)
    return np.array([int.from_bytes(each[:8], "big") % folds for each in digests], dtype=np.int64)


def out_of_fold(
    features: npt.NDArray, labels: npt.NDArray[np.int64], folds: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return probabilities (n, 2) from logistic regressions that were fitted on the other folds.

    NaN for rows of ``features`` (n, d) that hold one, and where a fold leaves a class without
    pictures.
    """
    probabilities = np.full((len(labels), len(CLASSES)), np.nan, dtype=np.float32)
    rows = np.isfinite(features).all(axis=1)
    for fold in np.unique(folds[rows]):
        fit, judge = rows & (folds != fold), rows & (folds == fold)
        if len(np.unique(labels[fit])) < len(CLASSES):
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=300))
        model.fit(features[fit].astype(np.float32), labels[fit])
        probabilities[judge] = model.predict_proba(features[judge].astype(np.float32))
    return probabilities


def train_fold(
    recipe: Recipe,
    table: pd.DataFrame,
    source: Source,
    held_out: npt.NDArray[np.bool_],
    folder: Path,
    seed: int,
    jobs: int | None,
    progress: bool = True,
) -> npt.NDArray[np.float32]:
    """Train a recipe on what is not ``held_out`` (n,); return probabilities (n, 2) for the rest.

    One in twenty of its pictures is its validation split. NaN elsewhere, and for what cannot be
    read. The checkpoints are removed.
    """
    split = np.where(held_out, "test", "train").astype(object)
    others = np.flatnonzero(~held_out)
    probabilities = np.full((len(table), len(CLASSES)), np.nan, dtype=np.float32)
    if len(others) < 4 or table["label"].iloc[others].nunique() < len(CLASSES):
        return probabilities
    split[np.random.default_rng(abs(seed)).permutation(others)[: max(2, len(others) // 20)]] = "val"
    index = Index(table.assign(split=split), source)
    try:
        for _ in train(recipe, index, folder, seed=seed, workers=jobs, progress=progress):
            pass
        best = folder / recipe.name / "best.pth"
        result = evaluate(best, index, workers=jobs, progress=progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    position = {path: i for i, path in enumerate(table["path"])}
    probabilities[[position[str(path)] for path in result.paths]] = result.probabilities
    return probabilities
