"""What is predicted for each picture, and the file that a user gets: JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from face_gender.files import write_atomically

if TYPE_CHECKING:
    from face_gender.model.checkpoint import Checkpoint

Format = Literal["flat", "full", "csv"]
UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for one picture: ``scores`` are the probabilities of ``classes``."""

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
    """A file without a prediction, and why."""

    name: str
    reason: str


Result = Prediction | Skipped


def write_results(
    path: str | os.PathLike[str],
    results: Iterable[Result],
    checkpoint: Checkpoint,
    form: Format = "flat",
    threshold: float = 0.0,
    weights: str = "",
    left: int = 0,
) -> None:
    """Write the results atomically, sorted by name, as UTF-8.

    "flat": {name: label}. "full": {"model": …, "results": {name: {label, confidence,
    probabilities}}, "skipped": {name: reason}}, and "unanswered": ``left`` where an interruption
    left so many pictures out. "csv": name, label, confidence and a column for each class. Raises
    InputError where the file cannot be written.
    """
    ordered = sorted(results, key=lambda result: result.name)
    predictions = [each for each in ordered if isinstance(each, Prediction)]
    if form == "csv":
        text = _csv(predictions, checkpoint.classes, threshold)
    elif form == "full":
        skipped = {each.name: each.reason for each in ordered if isinstance(each, Skipped)}
        content = {
            "model": _describe(checkpoint, weights),
            "threshold": threshold,
            "results": {each.name: _details(each, threshold) for each in predictions},
            "skipped": skipped,
            **({"unanswered": left} if left else {}),
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
        "temperature": checkpoint.temperature,
    }


def _csv(predictions: Sequence[Prediction], classes: Sequence[str], threshold: float) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "label", "confidence", *classes])
    for each in predictions:
        values = [f"{score:.6f}" for score in each.scores]
        writer.writerow([each.name, each.label(threshold), f"{each.confidence:.6f}", *values])
    return out.getvalue()
