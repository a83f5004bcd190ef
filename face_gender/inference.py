"""Names -> batches of (name, tensor) -> probabilities -> process_results.json."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from face_gender.checkpoint import Checkpoint, load_checkpoint
from face_gender.devices import pick_device
from face_gender.files import Source, cpu_count, write_atomically
from face_gender.images import UnreadableImage, load_image
from face_gender.models import probabilities_of, to_device

Format = Literal["flat", "full", "csv"]
UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture: ``scores`` are the probabilities of ``classes``, in order."""

    name: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each class by name, adding up to one."""
        return dict(zip(self.classes, self.scores, strict=True))

    @property
    def confidence(self) -> float:
        """The probability of the most probable class."""
        return max(self.scores)

    def label(self, threshold: float = 0.0) -> str:
        """Return the most probable class, "uncertain" where its probability is below."""
        if self.confidence < threshold:
            return UNCERTAIN
        return self.classes[self.scores.index(self.confidence)]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that got no answer, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Classifier:
    """A net on its device with the transform and the class names that belong to it."""

    checkpoint: Checkpoint
    model: nn.Module
    transform: v2.Transform
    device: torch.device

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) float32 -> (n, classes) float32 on the CPU, rows adding up to one."""
        images = images.to(self.device, memory_format=torch.channels_last)
        return probabilities_of(self.model(images)).cpu()


def load_classifier(
    weights: str | os.PathLike[str],
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
) -> Classifier:
    """Open a checkpoint, or a plain state_dict with its ``recipe`` and ``classes``.

    Raises InputError for a file that is neither, and for a device that is not there.
    """
    checkpoint = load_checkpoint(weights, recipe, classes)
    model, transform = checkpoint.build()
    chosen = pick_device(device)
    return Classifier(checkpoint, to_device(model, chosen), transform, chosen)


def classify(
    classifier: Classifier,
    source: Source | None,
    names: Iterable[str],
    batch_size: int = 32,
    workers: int | None = None,
) -> Iterator[Prediction | Skipped]:
    """Yield an answer for every name, in order of the names.

    ``source`` None: the names are paths. ``workers`` threads read pictures (Pillow works outside
    the interpreter's lock), one for each processor by default. At most three batches are in
    memory, however many names there are.
    """
    workers = max(1, workers if workers is not None else cpu_count())
    items = _load_ahead(classifier.transform, source, names, 2 * batch_size, workers)
    for batch in _batched(items, batch_size):
        yield from _answer(classifier, batch)


def _load_ahead(
    transform: v2.Transform, source: Source | None, names: Iterable[str], ahead: int, workers: int
) -> Iterator[tuple[str, Tensor] | Skipped]:
    """Yield (name, tensor) in order while threads load the next ones."""

    def load(name: str) -> tuple[str, Tensor] | Skipped:
        try:
            return name, transform(load_image(name, source))
        except UnreadableImage as error:
            return Skipped(name, error.reason)

    remaining = iter(names)
    pool = ThreadPoolExecutor(workers)
    try:
        first = itertools.islice(remaining, ahead)
        waiting: deque[Future[tuple[str, Tensor] | Skipped]] = deque(
            pool.submit(load, name) for name in first
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(load, name) for name in itertools.islice(remaining, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batched(
    items: Iterable[tuple[str, Tensor] | Skipped], size: int
) -> Iterator[list[tuple[str, Tensor] | Skipped]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _answer(
    classifier: Classifier, batch: list[tuple[str, Tensor] | Skipped]
) -> Iterator[Prediction | Skipped]:
    """Answer one batch; each name is carried with its own tensor."""
    loaded = [item for item in batch if not isinstance(item, Skipped)]
    rows: dict[str, list[float]] = {}
    if loaded:
        answers = classifier.probabilities(torch.stack([tensor for _, tensor in loaded]))
        rows = {name: row for (name, _), row in zip(loaded, answers.tolist(), strict=True)}
    for item in batch:
        if isinstance(item, Skipped):
            yield item
        elif not all(math.isfinite(value) for value in rows[item[0]]):
            yield Skipped(item[0], "the net's answer is not a number: its weights are damaged")
        else:
            yield Prediction(item[0], classifier.checkpoint.classes, tuple(rows[item[0]]))


def write_results(
    path: str | os.PathLike[str],
    answers: Iterable[Prediction | Skipped],
    checkpoint: Checkpoint,
    form: Format = "flat",
    threshold: float = 0.0,
    weights: str = "",
) -> None:
    """Write the answers atomically, sorted by name, as UTF-8.

    "flat": {name: label}. "full": {"model": …, "results": {name: {label, confidence,
    probabilities}}, "skipped": {name: reason}}. "csv": name, label, confidence and a column for
    each class. Raises InputError where the file cannot be written.
    """
    ordered = sorted(answers, key=lambda answer: answer.name)
    predictions = [answer for answer in ordered if isinstance(answer, Prediction)]
    if form == "csv":
        text = _csv(predictions, checkpoint.classes, threshold)
    elif form == "full":
        skipped = {answer.name: answer.reason for answer in ordered if isinstance(answer, Skipped)}
        content = {
            "model": _describe(checkpoint, weights),
            "threshold": threshold,
            "results": {each.name: _details(each, threshold) for each in predictions},
            "skipped": skipped,
        }
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    else:
        flat = {each.name: each.label(threshold) for each in predictions}
        text = json.dumps(flat, ensure_ascii=False, indent=2) + "\n"
    # A name that is not UTF-8 holds lone surrogates, and \udcXX is how JSON writes these.
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _details(prediction: Prediction, threshold: float) -> dict[str, Any]:
    return {
        "label": prediction.label(threshold),
        "confidence": round(prediction.confidence, 6),
        "probabilities": {k: round(v, 6) for k, v in prediction.probabilities.items()},
    }


def _describe(checkpoint: Checkpoint, weights: str) -> dict[str, Any]:
    return {
        "weights": weights,
        "recipe": checkpoint.recipe.name,
        "classes": list(checkpoint.classes),
        "epoch": checkpoint.epoch,
        # JSON has no NaN, which recall is where validation lacked a class.
        "metrics": {k: v if math.isfinite(v) else None for k, v in checkpoint.metrics.items()},
    }


def _csv(predictions: Sequence[Prediction], classes: Sequence[str], threshold: float) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "label", "confidence", *classes])
    for each in predictions:
        values = [f"{score:.6f}" for score in each.scores]
        writer.writerow([each.name, each.label(threshold), f"{each.confidence:.6f}", *values])
    return out.getvalue()
