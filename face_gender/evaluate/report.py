"""The figures of an evaluation, as lines to read and as plain data for figures.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from face_gender import CLASSES
from face_gender.data.landmarks import COORDINATES
from face_gender.data.tables import text_column
from face_gender.errors import InputError, excerpt, printable
from face_gender.evaluate.metrics import Evaluation, wilson_interval
from face_gender.evaluate.robustness import Condition

THRESHOLDS = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
EVERY = "all pictures"
_OWN_COLUMNS = ("path", "label", "split", "sha256", "group", "teacher", *COORDINATES)
MOST_VALUES = 20  # of a column that is sliced unasked
_MOST_SLICES = 1_000  # of one that is asked for


class Tried(NamedTuple):
    """The predictions under one condition: by source, and of all pictures under `EVERY`."""

    condition: Condition
    parts: Mapping[str, Evaluation]


@dataclass(frozen=True)
class Report:
    """All figures of one evaluation.

    ``facts``: plain data, of which the lines show ``weights``, ``index``, ``split``, ``flip`` and
    ``temperature``;
    ``seen``: how many of the pictures the model was trained or chosen on; ``slices``: by column,
    then by its value.
    """

    facts: Mapping[str, Any]
    result: Evaluation
    seen: int = 0
    slices: Mapping[str, Mapping[str, Evaluation]] = field(default_factory=dict)
    robustness: Sequence[Tried] = ()

    def figures(self) -> dict[str, Any]:
        """Return all figures as plain data, None for what is not a number."""
        result = self.result
        values = {
            **self.facts,
            "seen_in_training": self.seen,
            "all": {**_scores(result), "confusion": result.confusion.tolist()},
            "calibration_error_at_temperature_1": self._untempered_error(),
            "slices": {
                column: {value: _scores(part) for value, part in parts.items()}
                for column, parts in self.slices.items()
            },
            "coverage": [
                {  # the names that the file has had from the beginning
                    "threshold": each.threshold,
                    "pictures": each.pictures,
                    "right": each.correct,
                    "share": each.fraction,
                    "accuracy": each.accuracy,
                    "interval": wilson_interval(each.correct, each.pictures),
                }
                for each in result.coverage(THRESHOLDS)
            ],
            "reliability": [each._asdict() for each in result.reliability()],
            "robustness": [
                {
                    "kind": tried.condition.kind,
                    "value": tried.condition.value,
                    "accuracy": {
                        name: {"n": len(part.labels), "accuracy": part.accuracy,
                               "interval": part.interval}
                        for name, part in tried.parts.items()
                    },
                }
                for tried in self.robustness
            ],
            "skipped": dict(result.skipped),
        }  # fmt: skip
        plain: dict[str, Any] = _plain(values)
        return plain

    def lines(self) -> list[str]:
        """Return all figures as lines of text."""
        lines = [
            f"{self.facts['weights']} on {self.facts['index']}, split {self.facts['split']}"
            f"{', each picture with its mirror image' if self.facts['flip'] else ''}",
            self.result.summary(),
            f"expected calibration error {self.result.calibration_error:.4f}: the mean distance of "
            f"a confidence from the fraction that is correct{self._at_temperature_1()}",
        ]
        if self.seen:
            total = len(self.result.labels) + len(self.result.skipped)
            lines.append(
                f"SEEN: the model was trained or chosen on {self.seen} of these {total} pictures, "
                "so these figures are too good: no test"
            )
        for column, parts in self.slices.items():
            lines += ["", *self._sliced(column, parts)]
        lines += ["", *self._covered()]
        return lines + (["", *self._tried()] if self.robustness else [])

    def _untempered_error(self) -> float | None:
        """Return the calibration error without the temperature, None with ``flip``."""
        if self.facts["flip"]:
            return None
        return self.result.untempered(self.facts["temperature"]).calibration_error

    def _at_temperature_1(self) -> str:
        error, temperature = self._untempered_error(), self.facts["temperature"]
        if error is None or temperature == 1:
            return ""
        return f"; at temperature 1, and not {temperature:.3f}, it would be {error:.4f}"

    def _sliced(self, column: str, parts: Mapping[str, Evaluation]) -> list[str]:
        recalls = [f"recall {name}" for name in self.result.classes]
        rows = [
            [
                _cell(value),
                str(len(part.labels)),
                _between(part.accuracy, part.interval),
                *(
                    _between(part.recall[name], part.recall_intervals[name])
                    for name in part.classes
                ),
            ]
            for value, part in parts.items()
        ]
        return _table([_cell(column), "n", "accuracy (95 % interval)", *recalls], rows)

    def _covered(self) -> list[str]:
        rows = [
            [
                f"{each.threshold:.2f}",
                f"{each.fraction:.4f}",
                _between(each.accuracy, wilson_interval(each.correct, each.pictures)),
            ]
            for each in self.result.coverage(THRESHOLDS)
        ]
        return _table(
            ["threshold", "fraction predicted", "accuracy of these (95 % interval)"], rows
        )

    def _tried(self) -> list[str]:
        names = list(self.robustness[0].parts)
        rows = [
            [str(tried.condition), *(f"{tried.parts[name].accuracy:.4f}" for name in names)]
            for tried in self.robustness
        ]
        return _table(["accuracy of pictures", *map(_cell, names)], rows)


def by_condition(results: Mapping[Condition, Evaluation], rows: pd.DataFrame) -> tuple[Tried, ...]:
    """Return what was predicted under each condition, of all pictures and by ``source``."""
    split = "source" in columns_to_slice(rows)
    return tuple(
        Tried(each, {EVERY: result, **(by_value(result, rows, "source") if split else {})})
        for each, result in results.items()
    )


def predictions(result: Evaluation) -> pd.DataFrame:
    """Return the predictions as a table: path, label, predicted, confidence, and each class."""
    names = np.array(result.classes, dtype=object)
    columns = dict(zip(result.classes, result.probabilities.T, strict=True))
    return pd.DataFrame({
        "path": text_column(result.paths.tolist()),
        "label": names[result.labels],
        "predicted": names[result.predictions],
        "confidence": result.confidence,
        **columns,
    })  # fmt: skip


def columns_to_slice(rows: pd.DataFrame) -> list[str]:
    """Return the further columns of an index, those of 2 to 20 different values."""
    return [
        name
        for name in rows
        if name not in _OWN_COLUMNS and 2 <= rows[name].nunique() <= MOST_VALUES
    ]


def check_few_values(rows: pd.DataFrame, column: str) -> None:
    """Raise InputError for a column of more than 1,000 values."""
    if (count := rows[column].nunique()) > _MOST_SLICES:
        raise InputError(
            f"column {column!r} has {count:,} different values: name one of at most "
            f"{_MOST_SLICES:,} with --by."
        )


def by_value(result: Evaluation, rows: pd.DataFrame, column: str) -> dict[str, Evaluation]:
    """Return the predictions by the value of a column of the index, "(none)" for an empty one.

    Values are in the order of the numbers in them, if any.
    """
    cells: dict[str, list[str]] = {}  # of a path that stands in several rows, in their order
    for path, cell in zip(rows["path"], rows[column], strict=True):
        value = CLASSES[cell] if column == "label" else cell or "(none)"
        cells.setdefault(path, []).append(value)
    left = {path: iter(values) for path, values in cells.items()}
    values = np.array([next(left[path]) for path in result.paths.tolist()], dtype=object)
    return {value: result.subset(values == value) for value in sorted(set(values), key=_natural)}


def _natural(text: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"([0-9]{1,18})", text)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], text


def _scores(result: Evaluation) -> dict[str, Any]:
    return {
        "n": len(result.labels),
        "accuracy": result.accuracy,
        "interval": result.interval,
        "recall": result.recall,
        "recall_intervals": result.recall_intervals,
        "loss": result.loss,
        "calibration_error": result.calibration_error,
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, which has no word for what is not a number."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(name: str) -> str:
    return excerpt(printable(name))


def _between(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return "-" if math.isnan(value) else f"{value:.4f} ({low:.4f} to {high:.4f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text in columns, two spaces apart."""
    widths = [max(len(cell) for cell in cells) for cells in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
