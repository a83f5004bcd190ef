"""The index tells every picture once, and its split keeps its promises."""

from __future__ import annotations

import hashlib
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import draw_face, gone_drive, make_faces, make_index, make_zip, snapshot
from PIL import Image
from sentences import sentence

from face_gender import CLASSES
from face_gender.data import sources
from face_gender.data.hashing import hash_and_check
from face_gender.data.index import Index, list_pictures
from face_gender.data.sources import ArchiveSource, FolderSource
from face_gender.data.split import SPLITS, split_rows
from face_gender.data.tables import read_index, write_index
from face_gender.errors import InputError

SHARES = (70, 15, 15)


def test_index_has_the_documented_columns_rows_and_place(few: Path) -> None:
    report = make_index(few)
    assert report.path == few / "index.csv" and Index.open(report) is report
    text = report.path.read_text(encoding="utf-8")
    assert text.startswith("path,label,split,sha256\nfemale/f_0.jpg,1,")
    table = read_index(report.path)
    assert table["path"].tolist() == sorted(table["path"])
    assert dict(zip(table["path"], table["label"], strict=True)) == {
        **{f"male/m_{i}.jpg": 0 for i in range(5)},
        **{f"female/f_{i}.jpg": 1 for i in range(4)},
    }
    for path, digest in zip(table["path"], table["sha256"], strict=True):
        assert digest == hashlib.sha256((few / path).read_bytes()).hexdigest()
    assert table["split"].tolist() == split_rows(table, SHARES, 0).tolist()


def test_summary_counts_pictures_by_split_and_class(faces: Path) -> None:
    report = make_index(faces)
    assert report.counts().to_numpy().tolist() == [[14, 14], [3, 3], [3, 3]]
    assert "40 pictures, 0 of them repeat" in report.summary()
    assert "0 unreadable, 0 under both labels" in report.summary()


def test_the_index_that_is_written_is_read_back_and_made_again_the_same(few: Path) -> None:
    report = make_index(few, seed=5)
    written = report.path.read_bytes()
    assert read_index(report.path)["split"].tolist() == report.table["split"].tolist()
    make_index(few, seed=5, force=True)
    assert report.path.read_bytes() == written


def test_unreadable_pictures_are_listed_with_reasons_and_left_as_they_are(few: Path) -> None:
    whole = (few / "male" / "m_0.jpg").read_bytes()
    (few / "male" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (few / "female" / "text.jpg").write_text("no picture")
    (few / "female" / "zero.png").write_bytes(b"")
    (few / "female" / "folder.jpg").mkdir()
    before = snapshot(few)
    report = make_index(few)
    assert [path for path, _ in report.report.unreadable] == [
        "female/text.jpg",
        "female/zero.png",
        "male/half.jpg",
    ]
    reasons = dict(report.report.unreadable)
    assert "not an image" in reasons["female/text.jpg"]
    assert reasons["female/zero.png"] == "empty file"
    assert "truncated" in reasons["male/half.jpg"]
    assert len(report.table) == 9
    report.path.unlink()
    assert snapshot(few) == before


def test_copies_stay_together_and_are_counted(few: Path) -> None:
    content = (few / "male" / "m_0.jpg").read_bytes()
    for i in range(6):
        (few / "male" / f"copy_{i}.jpg").write_bytes(content)
    report = make_index(few)
    copies = report.table[report.table["sha256"] == hashlib.sha256(content).hexdigest()]
    assert len(copies) == 7 and copies["split"].nunique() == 1
    assert report.report.duplicates == 6


def test_same_bytes_under_both_labels_are_reported_and_left_out(few: Path) -> None:
    for i in range(2):
        content = (few / "male" / f"m_{i}.jpg").read_bytes()
        (few / "female" / f"also_{i}.jpg").write_bytes(content)
    report = make_index(few)
    assert report.report.contradictions == (
        ("female/also_0.jpg", "male/m_0.jpg"),
        ("female/also_1.jpg", "male/m_1.jpg"),
    )
    left_out = {path for paths in report.report.contradictions for path in paths}
    assert len(report.table) == 7 and not left_out & set(report.table["path"])


@pytest.mark.parametrize("prefix", ["", "faces/", "мои лица/"])
def test_archive_gives_the_folders_index_with_its_prefix(
    few: Path, tmp_path: Path, prefix: str
) -> None:
    (few / "male" / "zero.jpg").write_bytes(b"")
    archive = make_zip(few, tmp_path / "faces.zip", prefix)
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("__MACOSX/male/m_0.jpg", b"x")
        out.writestr("readme.txt", b"x")
    before = archive.read_bytes()
    of_folder, of_archive = make_index(few), make_index(archive)
    assert of_archive.path == tmp_path / "index.csv"
    expected = of_folder.table.assign(path=prefix + of_folder.table["path"])
    pd.testing.assert_frame_equal(of_archive.table, expected)
    assert of_archive.report and of_archive.report.unreadable == (
        (prefix + "male/zero.jpg", "empty file"),
    )
    assert archive.read_bytes() == before


def test_class_whose_pictures_are_all_unreadable_names_one_of_them(few: Path) -> None:
    for path in (few / "female").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"female has 0 usable .*female/f_0\.jpg: empty file"):
        make_index(few)


def test_class_of_copies_cannot_be_split(few: Path) -> None:
    for path in (few / "female").iterdir():
        draw_face("female", 0).save(path)
    with pytest.raises(InputError, match="female has only 1 groups"):
        make_index(few)


@pytest.mark.parametrize("which", ["data", "groups"])
def test_force_never_replaces_what_the_index_is_made_from(
    few: Path, tmp_path: Path, which: str
) -> None:
    archive = make_zip(few, tmp_path / "faces.zip")
    groups = tmp_path / "groups.csv"
    groups.write_text("path,group\nmale/m_0.jpg,x\n")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="never replaced"):
        make_index(
            archive, groups=groups, force=True, output=archive if which == "data" else groups
        )
    assert snapshot(tmp_path) == before


@pytest.mark.real
def test_contradictions_of_utkface_are_those_that_sha256_finds(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    archive = shared("utkface.zip")
    labels: dict[str, set[str]] = {}
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith(".jpg")]
        for name in names:
            digest = hashlib.sha256(opened.read(name)).hexdigest()
            labels.setdefault(digest, set()).add(name.split("/")[1])
    both = sum(len(folders) == 2 for folders in labels.values())
    report = make_index(archive, output=tmp_path / "index.csv")
    assert len(report.report.contradictions) == both > 0
    left_out = sum(len(paths) for paths in report.report.contradictions) + len(
        report.report.unreadable
    )
    assert len(report.table) + left_out == len(names) == 23_703
    assert (report.table.groupby("sha256")["split"].nunique() == 1).all()


@pytest.mark.real
def test_no_person_of_celeba_is_in_two_splits(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    archive = shared("celeba64.zip")
    with zipfile.ZipFile(archive) as opened:
        (tmp_path / "labels.csv").write_bytes(opened.read("celeba64/labels.csv"))
    report = make_index(archive, output=tmp_path / "index.csv", groups=tmp_path / "labels.csv")
    assert (report.table["group"] != "").all()
    assert report.table["group"].nunique() > 6_000
    assert (report.table.groupby("group")["split"].nunique() == 1).all()
    shares = report.counts() / report.counts().sum()
    assert np.allclose(shares, [[0.7, 0.7], [0.15, 0.15], [0.15, 0.15]], atol=0.005)


def test_every_picture_by_name_is_listed_read_or_not(few: Path) -> None:
    (few / "male" / "zero.jpg").write_bytes(b"")
    (few / "male" / "notes.txt").write_text("x", encoding="utf-8")
    before = snapshot(few)
    table, source, unlisted = list_pictures(few)
    assert list(table.columns) == ["path", "label"]
    assert table["path"].tolist() == sorted(table["path"])
    assert "male/zero.jpg" in set(table["path"])
    assert "male/notes.txt" not in set(table["path"])
    labels = [CLASSES[label] for label in table["label"]]
    assert labels == [path.split("/")[0] for path in table["path"]]
    assert source.read(table["path"].iloc[0])
    assert unlisted == ()
    assert snapshot(few) == before


def test_the_data_of_an_index_are_the_folder_that_it_lies_in(few: Path, tmp_path: Path) -> None:
    make_zip(few, few / "copy.zip")  # the folder comes first
    report = make_index(few)
    source = Index.open(report.path).source
    assert isinstance(source, FolderSource)
    assert source.path.samefile(few)


def test_the_data_of_an_index_are_the_archive_beside_it_that_has_them(
    few: Path, tmp_path: Path
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "broken.zip").write_bytes(b"PK and no more")
    make_zip(make_faces(tmp_path / "other", 3, 3), tmp_path / "beside" / "a.zip", "other/")
    packed = make_zip(few, tmp_path / "beside" / "b.ZIP", "faces/")
    report = make_index(packed)
    assert report.path.parent == tmp_path / "beside"
    source = Index.open(report.path).source
    assert isinstance(source, ArchiveSource)
    assert source.path.name == "b.ZIP"


@pytest.mark.parametrize("with_hashes", [True, False])
def test_of_two_archives_that_name_a_picture_the_one_that_has_it_is_taken(
    with_hashes: bool, few: Path, tmp_path: Path
) -> None:
    (tmp_path / "beside").mkdir()
    other = tmp_path / "other"
    for path in few.rglob("*.jpg"):
        (other / path.relative_to(few)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (len(path.name), 0, ord(path.stem[-1]))).save(
            other / path.relative_to(few)
        )
    make_zip(other, tmp_path / "beside" / "a.zip")
    some = tmp_path / "some"
    shutil.copytree(few, some)
    for path in [*some.rglob("*.jpg")][2:]:
        path.unlink()
    make_zip(some, tmp_path / "beside" / "0.zip")
    (tmp_path / "beside" / "male").mkdir()
    shutil.copy(few / "male" / "m_0.jpg", tmp_path / "beside" / "male")
    report = make_index(make_zip(few, tmp_path / "beside" / "b.zip"))
    assert report.path is not None
    if with_hashes:
        assert Index.open(report.path).source.path.name == "b.zip"
        return
    write_index(report.table.drop(columns="sha256"), report.path)
    with pytest.raises(InputError, match=r"a\.zip and in b\.zip: .* --data") as caught:
        Index.open(report.path)
    sentence(caught)


def test_a_folder_that_has_most_pictures_is_taken_and_no_archive_opened(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = make_index(few)
    make_zip(few, few / "faces.zip")
    next(few.rglob("m_0.jpg")).unlink()
    monkeypatch.setattr(sources.zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    assert report.path is not None
    assert isinstance(Index.open(report.path).source, FolderSource)


def test_persons_of_a_list_are_not_lost_to_other_groups(few: Path, tmp_path: Path) -> None:
    rows = make_index(few).table[["path", "label"]]
    persons = rows.assign(group=["p" if i in (4, 5) else "" for i in range(len(rows))])
    write_index(persons, few / "labels.csv")
    given = rows[["path"]].assign(group=["q" if i in (7, 8) else "" for i in range(len(rows))])
    write_index(given, tmp_path / "groups.csv")
    assert len(rows) == 9  # 4 female ones first
    made = make_index(few / "labels.csv", tmp_path / "a.csv", groups=tmp_path / "groups.csv")
    assert made.table.groupby("group").size().to_dict() == {"": 5, "p": 2, "q": 2}
    # Of which one picture is in both: all three are together.
    write_index(
        given.assign(group=["q" if i in (5, 6) else "" for i in range(9)]), tmp_path / "g.csv"
    )
    made = make_index(few / "labels.csv", tmp_path / "b.csv", groups=tmp_path / "g.csv")
    assert made.table["group"].tolist() == [""] * 4 + ["q"] * 3 + [""] * 2


def test_groups_of_a_list_that_names_no_picture_are_one_sentence(few: Path, tmp_path: Path) -> None:
    for path in [*few.rglob("*.jpg")]:
        path.rename(path.with_suffix(""))
    rows = [f"{label}/{label[0]}_0,{label}" for label in ("male", "female")]
    (few / "labels.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "groups.csv").write_text("path,group\nmale/m_0,a\n")
    with pytest.raises(InputError, match="0 usable pictures") as caught:
        make_index(few / "labels.csv", groups=tmp_path / "groups.csv")
    sentence(caught)


def test_the_data_of_an_index_may_be_found_from_its_own_folder(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = make_index(few)
    monkeypatch.chdir(few)
    assert Index.open("index.csv").source.read(report.table["path"].iloc[0])


def test_data_that_are_nowhere_near_are_one_sentence(few: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    report = make_index(few, output=tmp_path / "away" / "index.csv")
    with pytest.raises(InputError) as caught:
        Index.open(report.path)
    assert "--data" in sentence(caught)
    assert report.table["path"].iloc[0] in str(caught.value)


def test_files_that_are_no_pictures_by_name_are_counted(faces: Path) -> None:
    (faces / "male" / "55_0_0jpg").write_bytes((faces / "male" / "m_0.jpg").read_bytes())
    (faces / "male" / ".hidden").write_bytes(b"x")
    report = make_index(faces)
    assert report.report.others == ("male/55_0_0jpg",)
    assert "1 no pictures by name (male/55_0_0jpg)" in report.summary()


def test_an_index_is_opened_once_and_knows_its_splits(few: Path) -> None:
    made = make_index(few)
    opened = Index.open(made.path)
    assert Index.open(opened) is opened
    assert opened.table.equals(read_index(made.path)) and opened.path == made.path
    sizes = {name: len(opened.split(name)) for name in SPLITS}
    assert sum(sizes.values()) == len(opened) == len(opened.split(None)) == 9
    assert all(set(opened.split(name).table["split"]) == {name} for name in SPLITS)
    assert opened.hashes() == made.table["sha256"].tolist()
    assert opened.counts().to_numpy().sum() == 9


@pytest.mark.parametrize(
    ("text", "split", "words"),
    [
        ("path,label,split\nmale/m_0.jpg,0,train\n", "Train", "train, val, test"),
        ("path,label,split\nmale/m_0.jpg,0,train\n", "test", "no pictures in split 'test'"),
        ("path,label\nmale/m_0.jpg,0\n", "test", "data_split.py"),
        ("path,label,split\n", None, "has no rows"),
    ],
)
def test_a_split_that_is_not_there_is_one_sentence(
    text: str, split: str | None, words: str, few: Path
) -> None:
    (few / "index.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        Index.open(few / "index.csv").split(split)
    sentence(caught)


def test_a_list_without_splits_has_no_counts_by_split(few: Path) -> None:
    (few / "index.csv").write_text("path,label\nmale/m_0.jpg,0\n", encoding="utf-8")
    index = Index.open(few / "index.csv")
    for asked in (index.counts, index.summary):
        with pytest.raises(InputError, match="no column split") as caught:
            asked()
        sentence(caught)


def test_pictures_of_other_data_are_refused(few: Path, tmp_path: Path) -> None:
    made = make_index(few)
    other = tmp_path / "other"
    for i, path in enumerate(made.table["path"]):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        draw_face("male", 1000 + i).save(other / path)
    for data, words in ((other, "has other bytes"), (tmp_path, "is not there")):
        with pytest.raises(InputError, match=words) as caught:
            Index.open(made.path, data)
        assert "made of other pictures" in sentence(caught)


def test_pictures_that_a_model_has_seen_are_counted_with_or_without_hashes(few: Path) -> None:
    made = make_index(few)
    seen = [int(each[:16], 16) for each in made.table["sha256"][:3]]
    signed = [each - 2**64 if each >= 2**63 else each for each in seen]
    for table in (made.table, made.table.drop(columns="sha256"), made.table.assign(sha256="?")):
        assert Index(table, made.source).count_seen(signed) == 3
    assert made.count_seen([]) == made.count_seen([1, 2]) == 0


def test_what_has_no_row_is_listed_with_its_reason(few: Path) -> None:
    (few / "male" / "zero.jpg").write_bytes(b"")
    made = make_index(few)
    draw_face("male", 77).save(few / "male" / "later.jpg")
    assert dict(Index.open(made.path).left_out()) == {
        "male/zero.jpg": "empty file",
        "male/later.jpg": "readable: it has a twin under the other label, or came after the index "
        "was made",
    }


def test_an_index_of_another_unicode_form_finds_its_pictures(few: Path) -> None:
    """A Mac writes names decomposed, other systems composed; copying may change them."""
    for path in [*few.glob("male/*.jpg")]:
        path.rename(path.with_name(unicodedata.normalize("NFC", f"й{path.name}")))
    made = make_index(few).path
    made.write_text(unicodedata.normalize("NFD", made.read_text(encoding="utf-8")), "utf-8")
    opened = Index.open(made)
    assert isinstance(opened.source, FolderSource) and opened.left_out() == []
    opened.table["path"] = opened.table["path"].iloc[0:1].tolist() * len(opened)
    assert len(opened.left_out()) == 8


@pytest.mark.parametrize("hashed", [False, True])
def test_a_drive_that_is_gone_ends_in_a_sentence(
    hashed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_faces(tmp_path / "data", 30, 30)

    def then_gone(*given: Any) -> Any:
        found = hash_and_check(*given)
        gone_drive(monkeypatch, data)
        return found

    monkeypatch.setattr("face_gender.data.base_source.PAUSES", ())
    if hashed:  # and goes while faces are looked for
        monkeypatch.setattr("face_gender.data.index.hash_and_check", then_gone)
    else:
        gone_drive(monkeypatch, data)
    with pytest.raises(InputError, match="its drive seems to be gone: connect it") as caught:
        Index.create(data, progress=False, landmarks=True)
    assert "--resume" not in sentence(caught)  # which data_split.py does not know
