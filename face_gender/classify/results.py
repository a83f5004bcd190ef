"""What is predicted for each picture, and the file that a user gets: JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from face_gender.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from face_gender.model.checkpoint import Checkpoint

Format = Literal["flat", "full", "csv"]
Box = tuple[float, float, float, float]
UNCERTAIN = "uncertain"
_BOX = ("left", "top", "width", "height")


def scaled(box: Box, scale: float) -> Box:
    """Return a box as it is in the same picture of another size."""
    left, top, width, height = box
    return left * scale, top * scale, width * scale, height * scale


def around(box: Box, size: tuple[int, int], wide: float, tall: float) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a box with margins, in pixels of a picture.

    ``wide`` is added at its left and right, ``tall`` above and below, as far as the picture of
    ``size``, width and height, goes. At least a pixel is in it, wherever the box lies.
    """
    x, y, width, height = box
    left, top = max(0, int(x - wide)), max(0, int(y - tall))
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    right, bottom = min(size[0], int(x + width + wide)), min(size[1], int(y + height + tall))
    return left, top, max(right, left + 1), max(bottom, top + 1)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for one face of a picture, or for all of it.

    ``scores`` are the probabilities of ``classes``. ``box``: left, top, width and height of the
    face in pixels of the upright picture, None where the whole picture was classified.
    ``others``: the same for the picture's further faces, where they were asked for, the most
    prominent first. ``crop``: uint8 (H, W, 3), the aligned face, where it was asked for.
    """

    name: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    box: Box | None = None
    others: tuple[Prediction, ...] = ()
    crop: npt.NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    @property
    def faces(self) -> tuple[Prediction, ...]:
        """This face and the others; none where no face was found."""
        return () if self.box is None else (self, *self.others)

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
    every_face: bool = False,
) -> None:
    """Write the results atomically, sorted by name, as UTF-8 (names that are not keep their bytes).

    "flat": {name: label}. "full": {"model": …, "results": {name: {label, confidence,
    probabilities, face}}, "skipped": {name: reason}}, and "unanswered": ``left`` where an
    interruption left so many pictures out; face is the box, or null. "csv": name, label,
    confidence, a column for each class, the face's number and its box. ``every_face``: a list of
    faces for each picture, {label, confidence, box} each, or in "csv" a row for each face. Raises
    InputError where the file cannot be written.
    """
    ordered = sorted(results, key=lambda result: result.name)
    predictions = [each for each in ordered if isinstance(each, Prediction)]
    if form == "csv":
        text = _csv(predictions, checkpoint.classes, threshold, every_face)
    elif form == "full":
        skipped = {each.name: each.reason for each in ordered if isinstance(each, Skipped)}
        content = {
            "model": _describe(checkpoint, weights),
            "threshold": threshold,
            "results": {each.name: _details(each, threshold, every_face) for each in predictions},
            "skipped": skipped,
            **({"unanswered": left} if left else {}),
        }
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    else:
        flat = {
            each.name: _faces(each, threshold) if every_face else each.label(threshold)
            for each in predictions
        }
        text = json.dumps(flat, ensure_ascii=False, indent=2) + "\n"
    # A name that is not UTF-8 holds lone surrogates. \udcXX is how JSON writes these; in a CSV
    # they are the name's own bytes, as in an index, but on Windows, where they stand for none.
    keeps_bytes = form == "csv" and os.name != "nt"
    data = text.encode("utf-8", "surrogateescape" if keeps_bytes else "backslashreplace")
    write_atomically(path, lambda file: file.write(data))


def _faces(prediction: Prediction, threshold: float) -> list[dict[str, Any]]:
    return [
        {
            "label": each.label(threshold),
            "confidence": round(each.confidence, 6),
            "box": _rounded(each.box),
        }
        for each in prediction.faces
    ]


def _rounded(box: Box | None) -> list[float] | None:
    return None if box is None else [round(side, 1) for side in box]


def _details(prediction: Prediction, threshold: float, every_face: bool) -> Any:
    if every_face:
        return [_details(each, threshold, False) for each in prediction.faces]
    return {
        "label": prediction.label(threshold),
        "confidence": round(prediction.confidence, 6),
        "probabilities": {k: round(v, 6) for k, v in prediction.probabilities.items()},
        "face": _rounded(prediction.box),
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


def _csv(
    predictions: Sequence[Prediction], classes: Sequence[str], threshold: float, every_face: bool
) -> str:
    out = io.StringIO()
    # Before Python 3.13 the csv module leaves a "\r" unquoted, and then reads it as a line's end.
    is_odd = any("\r" in each.name for each in predictions)
    writer = csv.writer(
        out, lineterminator="\n", quoting=csv.QUOTE_ALL if is_odd else csv.QUOTE_MINIMAL
    )
    writer.writerow(["name", "label", "confidence", *classes, "face", *_BOX])
    for prediction in predictions:
        for number, each in enumerate(prediction.faces if every_face else [prediction]):
            values = [f"{score:.6f}" for score in each.scores]
            box = _rounded(each.box)
            face = ["", *[""] * len(_BOX)] if box is None else [number, *box]
            row = [each.name, each.label(threshold), f"{each.confidence:.6f}", *values, *face]
            writer.writerow(row)
    return out.getvalue()
