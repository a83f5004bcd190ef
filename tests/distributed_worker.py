"""What torchrun starts in tests/test_distributed.py: trains, and writes down what this process saw.

distributed_worker.py TASK INDEX OUT
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import face_gender.files  # noqa: E402
from face_gender.data.dataset import FaceLoader  # noqa: E402
from face_gender.model import checkpoint  # noqa: E402
from face_gender.model.architectures import build_model  # noqa: E402
from face_gender.model.recipes import get_recipe  # noqa: E402
from face_gender.train import run_folder  # noqa: E402
from face_gender.train.distributed import Share, as_one_batch, join, wrapped  # noqa: E402
from face_gender.train.loop import train  # noqa: E402

RANK = int(os.environ.get("RANK", "0"))
RECIPES = [
    get_recipe("compact_cnn", epochs=2, batch_size=5, learning_rate=1e-3),
    get_recipe("dropout_cnn", epochs=2, batch_size=7),
    # With averaged weights and a teacher.
    get_recipe("compact_cnn", name="taught", epochs=2, batch_size=5, average=0.9, distillation=0.5),
]


def figures(index: str, out: str) -> dict[str, object]:
    """Train by some recipes; return losses, the pictures of each epoch and the files written."""
    written, seen, losses = [], [], []
    write = face_gender.files.write_atomically

    def noted(path: os.PathLike[str], *arguments: object) -> None:
        written.append(str(path))
        write(path, *arguments)  # type: ignore[arg-type]

    for module in (face_gender.files, checkpoint, run_folder):
        module.write_atomically = noted  # type: ignore[attr-defined]
    batches = FaceLoader.__iter__

    def watched(loader: FaceLoader):
        for batch in batches(loader):
            seen.append([loader.sampler.shuffle, loader.sampler.epoch, batch.positions.tolist()])
            yield batch

    FaceLoader.__iter__ = watched  # type: ignore[method-assign]
    for recipe in RECIPES:
        seen.clear()
        data = Path(index).parent
        for report in train(recipe, index, data, out, mixed=False, progress=False):
            losses.append([report.train_loss, report.val_loss, report.val_accuracy])
    return {"losses": losses, "seen": seen, "written": written, "gradients": gradients()}


def gradients() -> list[float]:
    """Return how far gradients, running figures and loss of a ResNet18 are from one process's."""
    world, device = join("cpu")
    torch.manual_seed(0)
    alone = build_model("resnet18").double()
    share, together = Share(), copy.deepcopy(alone)
    if world.size > 1:
        together = wrapped(as_one_batch(together, share, device))
    images, labels = torch.randn(7, 3, 40, 40, dtype=torch.float64), torch.tensor([0, 1] * 3 + [0])
    own = slice(*[7 * i // world.size for i in (world.rank, world.rank + 1)])
    share.set(world.counts(len(labels[own]), device), world.rank)
    part = torch.nn.functional.cross_entropy(together(images[own]), labels[own], reduction="sum")
    (part * world.size / 7).backward()
    whole = torch.nn.functional.cross_entropy(alone(images), labels)
    whole.backward()
    pairs = list(zip(alone.parameters(), together.parameters(), strict=True))
    buffers = zip(alone.buffers(), together.buffers(), strict=True)
    return [
        max(float((a.grad - b.grad).norm() / a.grad.norm()) for a, b in pairs),
        max(float((a - b).abs().max()) for a, b in buffers),
        float((world.total(part.detach()) / 7 - whole).abs()),
    ]  # fmt: skip


def until_killed(index: str, out: str) -> dict[str, object]:
    """Train; the second process of the first attempt kills itself in the middle of an epoch."""
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    epochs = []
    batches = FaceLoader.__iter__

    def deadly(loader: FaceLoader):
        for number, batch in enumerate(batches(loader)):
            if first_attempt and RANK == 1 and loader.sampler.epoch == 2 and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    FaceLoader.__iter__ = deadly  # type: ignore[method-assign]
    recipe = get_recipe("dropout_cnn", epochs=4, batch_size=8)
    for report in train(recipe, index, Path(index).parent, out, progress=False):
        epochs.append(report.epoch)
    return {"epochs": epochs, "attempt": os.environ["TORCHELASTIC_RESTART_COUNT"]}


if __name__ == "__main__":
    task, index, out = sys.argv[1:]
    result = {"figures": figures, "until_killed": until_killed}[task](index, out)
    Path(out, f"rank_{RANK}.json").write_text(json.dumps(result), encoding="utf-8")
