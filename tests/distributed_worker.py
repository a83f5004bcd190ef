"""What torchrun starts in tests/test_distributed.py: trains, and notes what this process saw.

distributed_worker.py TASK INDEX OUT
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import face_gender.files  # noqa: E402
from face_gender.data import landmarks  # noqa: E402
from face_gender.data.dataset import Batch, FaceLoader  # noqa: E402
from face_gender.model import checkpoint  # noqa: E402
from face_gender.model.recipes import get_recipe  # noqa: E402
from face_gender.train import run_folder  # noqa: E402
from face_gender.train.loop import train  # noqa: E402

RANK = int(os.environ.get("RANK", "0"))
RECIPES = [
    get_recipe("compact_cnn", epochs=2, batch_size=5, learning_rate=1e-3),
    # With averaged weights and a teacher.
    get_recipe("compact_cnn", name="taught", epochs=2, batch_size=5, average=0.9, distillation=0.5),
    # With BatchNorm, whose losses are not those of one process, and faces to find.
    get_recipe("resnet18_tuned", init="none", size=(32, 32), epochs=2, batch_size=8),
]


def figures(index: str, out: str) -> dict[str, object]:
    """Train by some recipes; return losses, the pictures of each epoch and the files written."""
    written, seen, losses, looked = [], [], [], []
    write = face_gender.files.write_atomically

    def noted(path: os.PathLike[str], *arguments: object, **options: bool) -> None:
        written.append(str(path))
        write(path, *arguments, **options)  # type: ignore[arg-type]

    for module in (face_gender.files, checkpoint, run_folder):
        module.write_atomically = noted  # type: ignore[attr-defined]
    find = landmarks.find_landmarks

    def found(source: object, names: list[str], *arguments: object) -> object:
        looked.extend(names)
        return find(source, names, *arguments)  # type: ignore[arg-type]

    landmarks.find_landmarks = found  # type: ignore[assignment]
    batches = FaceLoader.__iter__

    def watched(loader: FaceLoader) -> Iterator[Batch]:
        for batch in batches(loader):
            sampler = loader.batch_sampler
            seen.append([sampler.shuffle, sampler.epoch, batch.positions.tolist()])
            yield batch

    FaceLoader.__iter__ = watched  # type: ignore[method-assign]
    for recipe in RECIPES:
        seen.append(recipe.name)
        for report in train(recipe, index, out, mixed=False, progress=False):
            losses.append([report.train_loss, report.val_loss, report.val_accuracy])
    return {"losses": losses, "seen": seen, "written": written, "looked": looked}


def until_killed(index: str, out: str) -> dict[str, object]:
    """Train; the second process of the first attempt kills itself in the middle of an epoch."""
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    epochs = []
    batches = FaceLoader.__iter__

    def deadly(loader: FaceLoader) -> Iterator[Batch]:
        for number, batch in enumerate(batches(loader)):
            if first_attempt and RANK == 1 and loader.batch_sampler.epoch == 1 and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    FaceLoader.__iter__ = deadly  # type: ignore[method-assign]
    recipe = get_recipe("dropout_cnn", epochs=2, batch_size=8)
    for report in train(recipe, index, out, progress=False):
        epochs.append(report.epoch)
    return {"epochs": epochs, "attempt": os.environ["TORCHELASTIC_RESTART_COUNT"]}


if __name__ == "__main__":
    task, index, out = sys.argv[1:]
    result = {"figures": figures, "until_killed": until_killed}[task](index, out)
    Path(out, f"rank_{RANK}.json").write_text(json.dumps(result), encoding="utf-8")
