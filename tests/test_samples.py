"""The samples are what samples/README.md says."""

from __future__ import annotations

import csv
import re
from collections import Counter

import numpy as np
import pytest
from conftest import PORTRAITS, ROOT, SAMPLES
from PIL import Image

from face_gender import CLASSES
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.scan import scan_data
from face_gender.data.sources import passed_over_in_words
from face_gender.faces.detector import load_detector

FOLDER = ROOT / "samples"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PICTURES = sorted(FOLDER.glob("*male/*.jpg"))
GROUPS = dict(csv.reader((FOLDER / "groups.csv").open(encoding="utf-8", newline="")))


def planted(words: str) -> list[str]:
    """Return the files of the table's row that says so."""
    (row,) = (line for line in README.splitlines() if line.startswith("| `") and words in line)
    return re.findall(r"`(\w+/\w+\.jpg)`", row)


def test_there_are_as_many_as_the_readme_says() -> None:
    counts = Counter(path.parent.name for path in PICTURES)
    assert (
        f"{len(PICTURES)} pictures, {counts['male']} in `male/` and {counts['female']} in" in README
    )
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 3_000_000
    assert sum(path.stat().st_size for path in FOLDER.glob("photos/*")) < 1_000_000
    sides = [Image.open(path).size for path in PICTURES]
    assert f"{min(map(min, sides))} to {max(map(max, sides))} pixels on a side" in README
    assert len(SAMPLES) > 130 and len(PORTRAITS) > 40


def test_copies_are_copies_and_share_a_group() -> None:
    copy, original = planted("the same bytes as")
    assert (FOLDER / copy).read_bytes() == (FOLDER / original).read_bytes()
    assert len({path.read_bytes() for path in PICTURES}) == len(PICTURES) - 1
    assert set(GROUPS) == {"path", *(path.relative_to(FOLDER).as_posix() for path in PICTURES)}
    pairs = [(copy, original)] + [
        tuple(re.findall(r"`(\w+/\w+\.jpg)`", line))
        for line in README.splitlines()
        if "compressed again" in line
    ]
    assert len(pairs) == 3
    for one, other in pairs:
        assert GROUPS[one] == GROUPS[other]


def test_a_wrong_label_has_a_group_of_the_other_label_and_no_other_has() -> None:
    wrong = planted("women") + planted("portraits of men")
    for name, group in GROUPS.items():
        if name != "path" and "pool" in group:
            assert (group.split("_")[0] != name.split("/")[0]) == (name in wrong), name


def test_what_cannot_be_read_and_what_shows_no_face() -> None:
    detector = load_detector()
    unreadable, faceless = [], []
    for path in PICTURES:
        try:
            found = detector.detect(np.asarray(load_image(path)))
        except UnreadableImage:
            unreadable.append(path.relative_to(FOLDER).as_posix())
        else:
            faceless += [] if found else [path.relative_to(FOLDER).as_posix()]
    assert unreadable == planted("ends too early")
    assert faceless == planted("no face: flowers")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("photos/*")), ids=lambda path: path.stem)
def test_the_faces_of_a_photograph_are_found(path) -> None:
    (said,) = re.findall(rf"\| `{path.name}` \| (\w+)", README)
    faces = load_detector().detect(np.asarray(load_image(path)), everywhere=True)
    assert len(faces) == int(said.replace("none", "0"))


def test_a_data_set_leaves_the_photographs_out_in_a_sentence() -> None:
    scan = scan_data(FOLDER)
    assert {name.split("/")[0] for name in scan.names} == set(CLASSES)
    assert "6 in other folders (photos/)" in passed_over_in_words(scan.source.passed_over)
