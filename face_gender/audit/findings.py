"""What was found, as one table: audit.csv; and what follows: groups.csv and index_clean.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender import CLASSES
from face_gender.audit.duplicates import Pairs
from face_gender.audit.page import HEADINGS
from face_gender.audit.pictures import QUALITY_ISSUES
from face_gender.data.tables import find_path_column

COLUMNS = ("path", "label", "issue", "score", "related", "suggestion")

# No more of the others are named: a thousand copies of one placeholder would name a million.
MAX_RELATED = 24
_QUALITY_ADVICE = "leave out where the face cannot be made out"
# Below what --apply leaves out: a detector overlooks faces, and of several the main one is used.
_NO_FACE_FOUND, _SEVERAL_FACES = 0.45, 0.3


@dataclass(frozen=True)
class Judged:
    """All that is known of the n pictures of a data set.

    ``measured``: what `pictures.measure_all` returns; ``pairs``: near-duplicates by row;
    ``label_scores`` and ``outlier_scores`` (n,) float32: how doubtful the label is, and how
    unlike a face the picture, 0 for not at all; ``faces`` (n,) int64: how many a detector has
    found, -1 where none has looked.
    """

    paths: Sequence[str]
    labels: npt.NDArray[np.int64]
    measured: Mapping[str, npt.NDArray]
    pairs: Pairs
    label_scores: npt.NDArray[np.float32]
    outlier_scores: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int64]

    def findings(self) -> pd.DataFrame:
        """Return one row a finding with COLUMNS and ``looks_like``, worst first."""
        rows = [
            *self._unreadable(),
            *self._exact(),
            *self._near(),
            *self._labels(),
            *self._outliers(),
            *self._faces(),
            *self._quality(),
        ]
        # Not pandas' own str, which may refuse names that are not UTF-8.
        table = pd.DataFrame(rows, columns=[*COLUMNS, "looks_like"], dtype=object)
        table["score"] = table["score"].astype(np.float64).round(4)
        rank = table["issue"].map({name: i for i, name in enumerate(HEADINGS)})
        order = np.lexsort((table["path"], rank, -table["score"]))
        return table.iloc[order].reset_index(drop=True)

    def _row(
        self,
        row: int,
        issue: str,
        score: float,
        suggestion: str,
        related: str = "",
        looks_like: str = "",
    ) -> tuple:
        label = CLASSES[self.labels[row]]
        return (self.paths[row], label, issue, score, related, suggestion, looks_like)

    def _unreadable(self) -> list[tuple]:
        return [
            self._row(row, "unreadable", 1.0, f"replace or delete: {reason}")
            for row, reason in enumerate(self.measured["reason"].tolist())
            if reason
        ]

    def _same_bytes(self) -> list[list[int]]:
        rows_of: dict[str, list[int]] = {}
        for row, digest in enumerate(self.measured["sha256"].tolist()):
            if digest and not self.measured["reason"][row]:
                rows_of.setdefault(digest, []).append(row)
        path_of = self.paths.__getitem__
        return [sorted(rows, key=path_of) for rows in rows_of.values() if len(rows) > 1]

    def _exact(self) -> list[tuple]:
        found = []
        for rows in self._same_bytes():
            if len({int(self.labels[row]) for row in rows}) > 1:
                for row in rows:
                    others = islice((self.paths[each] for each in rows if each != row), MAX_RELATED)
                    advice = f"leave out all {len(rows)}, or keep the one whose label is right"
                    found.append(
                        self._row(row, "duplicate_other_label", 1.0, advice, "|".join(others))
                    )
            else:
                kept = self.paths[rows[0]]
                found += [
                    self._row(row, "exact_duplicate", 1.0, f"leave out: same bytes as {kept}", kept)
                    for row in rows[1:]
                ]
        return found

    def _near(self) -> list[tuple]:
        """Judge each pair; a picture is named once, with the partner that it agrees with best."""
        best: dict[tuple[int, str], tuple[float, int]] = {}
        pairs = self.pairs
        for i in np.argsort(-pairs.agreement, kind="stable").tolist():
            a, b, agreement = int(pairs.first[i]), int(pairs.second[i]), float(pairs.agreement[i])
            if self.labels[a] != self.labels[b]:
                best.setdefault((a, "near_duplicate_other_label"), (agreement, b))
                best.setdefault((b, "near_duplicate_other_label"), (agreement, a))
            else:
                kept, dropped = sorted((a, b), key=self._worth)
                best.setdefault((dropped, "near_duplicate"), (agreement, kept))
        found = []
        for (row, issue), (agreement, other) in best.items():
            related = self.paths[other]
            advice = f"leave out: same photograph as {related}"
            if issue == "near_duplicate_other_label":
                advice = f"same photograph as {related}, other label: keep the right one"
            found.append(self._row(row, issue, min(agreement, 1.0), advice, related))
        return found

    def _worth(self, row: int) -> tuple[int, str]:
        """Order the pictures of a pair: the one with the most pixels first, then by name."""
        pixels = int(self.measured["width"][row]) * int(self.measured["height"][row])
        return -pixels, self.paths[row]

    def _labels(self) -> list[tuple]:
        found = []
        for row in np.flatnonzero(self.label_scores > 0).tolist():
            other = CLASSES[1 - self.labels[row]]
            advice = f"looks {other}: relabel, or leave out"
            score = float(self.label_scores[row])
            found.append(self._row(row, "label", score, advice, "", other))
        return found

    def _outliers(self) -> list[tuple]:
        return [
            self._row(row, "not_a_face", float(score), "leave out if no face shows")
            for row, score in enumerate(self.outlier_scores)
            if score > 0
        ]

    def _faces(self) -> list[tuple]:
        advice = "leave out if no face shows"
        none = [
            self._row(row, "no_face_found", _NO_FACE_FOUND, advice)
            for row in np.flatnonzero(self.faces == 0).tolist()
        ]
        several = [
            self._row(row, "several_faces", _SEVERAL_FACES,
                      f"crop to one of {self.faces[row]} faces: the label is for one")
            for row in np.flatnonzero(self.faces > 1).tolist()
        ]  # fmt: skip
        return none + several

    def _quality(self) -> list[tuple]:
        return [
            self._row(row, issue, float(self.measured[issue][row]), _QUALITY_ADVICE)
            for issue in QUALITY_ISSUES
            for row in np.flatnonzero(self.measured[issue] > 0).tolist()
        ]


def clean(table: pd.DataFrame, findings: pd.DataFrame, score: float) -> pd.DataFrame:
    """Return the rows of an index without the pictures of findings of at least ``score``."""
    out = set(findings.loc[findings["score"] >= score, "path"])
    return table[~table[find_path_column(table)].isin(out)].reset_index(drop=True)
