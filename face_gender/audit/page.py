"""The page on which a person goes through the findings: one HTML file that needs nothing else.

No server, no network, no other file: pictures and findings lie in the page, and page.html, the
template, holds the program that shows sixty of them at a time.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from face_gender import CLASSES
from face_gender.classify.page import as_json, fill
from face_gender.files import write_atomically

# Title and explanation of every issue, in the order of their tabs: wrong labels cost most.
HEADINGS = {
    "duplicate_other_label": (
        "Same file, both labels",
        "Byte-identical files that lie under both labels: one label is wrong. "
        "Keep the picture once, under the right label.",
    ),
    "near_duplicate_other_label": (
        "Same photo, both labels",
        "One photograph, re-encoded, resized or cropped, under both labels: one label is wrong. "
        "Keep it once, under the right label.",
    ),
    "label": (
        "Doubtful label",
        "Models that never saw the picture's label disagree with it, and may be wrong. "
        "Look, then move the picture or leave it.",
    ),
    "exact_duplicate": (
        "Same file",
        "Byte-identical files under one label. They weigh double and can fall on both sides of a "
        "split: keep one.",
    ),
    "near_duplicate": (
        "Same photo",
        "One photograph, re-encoded, resized or cropped, under one label. "
        "Keep the best copy, or keep all of them in one split.",
    ),
    "not_a_face": (
        "No face?",
        "Pictures unlike the rest: no faces, faces in unusual light or colour, and people who are "
        "rare in the data. Remove those alone that show no face.",
    ),
    "no_face_found": (
        "No face found",
        "A detector found no face here. It overlooks some, above all cropped, turned or covered "
        "ones: remove those alone that show no face.",
    ),
    "several_faces": (
        "Several faces",
        "The label is for one face, and the most prominent is taken. Crop to the one meant.",
    ),
    "unreadable": (
        "Unreadable",
        "Files that cannot be decoded: cut off, empty or no pictures. Replace or remove them.",
    ),
    "blank": ("Blank", "Pictures of nearly one colour. Remove them."),
    "dark": ("Dark", "So dark that little is seen. Remove what you cannot recognise yourself."),
    "bright": (
        "Bright",
        "So bright that little is seen. Remove what you cannot recognise yourself.",
    ),
    "blurred": ("Blurred", "Without fine detail. Remove what you cannot recognise yourself."),
    "tiny": ("Tiny", "Of few pixels. Find larger versions, or remove them."),
    "odd_aspect": (
        "Odd shape",
        "Much wider or higher than the rest, so that resizing distorts them. Crop to the face.",
    ),
}

_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(
    path: str | os.PathLike[str],
    findings: pd.DataFrame,
    thumbnails: Mapping[str, bytes],
    title: str,
    summary: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the findings as one self-contained HTML file, UTF-8, whole or not at all.

    ``findings``, worst first: ``path``, ``label`` ("male", "female" or ""), ``issue`` (a key of
    HEADINGS), ``score`` (0..1, 1 is worst), ``related`` (paths joined by "|"), ``suggestion`` and
    ``looks_like`` (a label or ""). A related picture has the label of its own finding, or the one
    that the issue implies. ``thumbnails``: JPEG bytes by path; a picture without one gets a grey
    field. ``summary``: names and values for the head of the page. Equal arguments give equal bytes.
    Raises InputError where ``path`` cannot be written.
    """
    store = _Store(thumbnails)
    data = {
        "issues": _tabs(findings, store),
        "paths": list(store.paths),
        "pictures": list(store.paths.values()),
        "summary": [[str(name), str(value)] for name, value in summary],
    }
    pieces = {
        "title": (html.escape(title).encode("utf-8", "backslashreplace"),),
        "data": (as_json(data),),
        "thumbnails": store.blocks(),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    write_atomically(path, lambda file: file.writelines(fill(template, pieces)))


class _Store:
    """Numbers paths, and the distinct thumbnails among those that are in use."""

    def __init__(self, thumbnails: Mapping[str, bytes]) -> None:
        self.thumbnails = thumbnails
        # The thumbnail's number by path, -1 where there is none.
        self.paths: dict[str, int] = {}
        self._order: dict[str, int] = {}
        self._contents: dict[bytes, int] = {}

    def number(self, path: str) -> int:
        """Return the place of a path in ``paths``; the same path, the same place."""
        if path not in self._order:
            self._order[path] = len(self._order)
            content = self.thumbnails.get(path)
            # Byte-identical pictures have byte-identical thumbnails, which are stored once.
            self.paths[path] = (
                self._contents.setdefault(content, len(self._contents)) if content else -1
            )
        return self._order[path]

    def blocks(self) -> Iterator[bytes]:
        """Yield an element for each thumbnail, so that the page decodes only what it shows."""
        for content, number in self._contents.items():
            encoded = base64.b64encode(content)
            yield b'<script type="text/plain" id="t%d">%b</script>\n' % (number, encoded)


def _implied_label(issue: str, label: str) -> str:
    """Return the label that a related picture has by the meaning of the issue, or ""."""
    if label not in CLASSES or "duplicate" not in issue:
        return ""
    return next(name for name in CLASSES if (name == label) != issue.endswith("_other_label"))


def _tabs(findings: pd.DataFrame, store: _Store) -> list[dict[str, Any]]:
    """Return the issues that have findings, in the order of HEADINGS, as page.html reads them.

    Paths are numbers.
    """
    label_of = dict(zip(findings["path"], findings["label"], strict=True))
    packed: dict[str, list[list[Any]]] = {issue: [] for issue in HEADINGS}
    for row in findings.itertuples(index=False):
        own = store.number(row.path)
        related = [
            [store.number(each), label_of.get(each) or _implied_label(row.issue, row.label)]
            for each in (row.related.split("|") if row.related else [])
        ]
        score = round(row.score, 3)  # compared with the slider as it is shown: three digits
        packed[row.issue].append([own, row.label, score, related, row.suggestion, row.looks_like])
    return [
        {"name": issue, "title": heading, "help": explanation, "findings": packed[issue]}
        for issue, (heading, explanation) in HEADINGS.items()
        if packed[issue]
    ]
