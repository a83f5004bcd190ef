"""Which files become pictures with a label, and which of these can be read."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import sys
import unicodedata
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_face, make_zip, python
from sentences import sentence

from face_gender.data import hashing
from face_gender.data.base_source import HIDDEN, OF_DEVICES, OTHER_ENDING
from face_gender.data.hashing import check_picture, hash_and_check, hashes_of
from face_gender.data.scan import Scan, read_groups, scan_data, taken_in_words
from face_gender.data.sources import FolderSource, open_source
from face_gender.errors import InputError


def put(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_face("male", 99 + i).save(folder / name, "JPEG")
    return folder


def label_of(scan: Scan) -> dict[str, int]:
    return dict(zip(scan.names, scan.labels, strict=True))


# --- folders of classes ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [None, "", "faces/", "мои лица/"])
@pytest.mark.parametrize(
    ("male", "female"),
    [("male", "female"), ("Male", "FEMALE"), ("men", "Women"), ("m", "female "), ("Мужчины", "ж")],
)
def test_class_folders_go_by_many_names(
    male: str, female: str, prefix: str | None, few: Path, tmp_path: Path
) -> None:
    shutil.move(few / "male", tmp_path / "x")
    shutil.move(few / "female", few / female)
    shutil.move(tmp_path / "x", few / male)
    data = few if prefix is None else make_zip(few, tmp_path / "faces.zip", prefix)
    scan, top = scan_data(data), prefix or ""
    expected = {f"{top}{male}/m_{i}.jpg": 0 for i in range(5)}
    expected |= {f"{top}{female}/f_{i}.jpg": 1 for i in range(4)}
    assert label_of(scan) == expected
    assert scan.names == sorted(scan.names)
    said = taken_in_words(label_of(scan), scan.source)
    usual = (male, female) == ("male", "female")
    assert said == ("" if usual else f"taken: {male}/ as male, {female}/ as female")


@pytest.mark.parametrize("in_archive", [False, True])
def test_what_is_taken_and_left_out_is_one_line(
    in_archive: bool, few: Path, tmp_path: Path
) -> None:
    put(few, "men/x.jpg", "unsorted/a.jpg", "unsorted/b/a.txt", "cover.jpg", "@eaDir/female/t.jpg")
    put(few, "female/@eaDir/f_0.jpg/SYNOPHOTO_THUMB_M.jpg", "male/55_0_0jpg", "male/.hidden.jpg")
    (few / "index.csv").write_text("x")
    scan = scan_data(make_zip(few, tmp_path / "faces.zip") if in_archive else few)
    assert len(scan.names) == 10 and label_of(scan)["men/x.jpg"] == 0
    assert scan.others == ("male/55_0_0jpg",)
    assert scan.source.passed_over == {
        "in other folders (unsorted/)": 2,
        OF_DEVICES: 2,
        HIDDEN: 1,
        "beside the class folders": 1,
        OTHER_ENDING: 1,
    }
    said = taken_in_words(label_of(scan), scan.source)
    assert said.startswith("taken: male/, men/ as male, female/ as female; passed over: 2 in ")
    assert "\n" not in said


def test_a_folder_in_a_class_folder_is_none_of_the_other_class(few: Path) -> None:
    """Such as one for each initial letter."""
    put(few, "male/f/x.jpg", "female/m/y.jpg")
    scan = scan_data(few)
    assert label_of(scan)["male/f/x.jpg"] == 0 and label_of(scan)["female/m/y.jpg"] == 1
    assert taken_in_words(label_of(scan), scan.source) == ""


@pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")
def test_a_list_names_pictures_with_a_backslash_in_their_name(few: Path) -> None:
    put(few, "a\\b.jpg", "in/c.jpg")
    (few / "labels.csv").write_text("path,label\na\\b.jpg,female\nin\\c.jpg,male\n")
    assert label_of(scan_data(few / "labels.csv")) == {"a\\b.jpg": 1, "in/c.jpg": 0}


def test_suffix_in_any_case_and_folders_inside_are_rows(few: Path) -> None:
    names = ("A.JPG", "b.Jpeg", "c.PNG", "deep/er/d.webp", "e.TIFF", "f.JXL")
    added = {f"male/{name}" for name in names}
    assert added <= set(scan_data(put(few, *added)).names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, r"holds no folders male/ and female/: name the folder"),
        ({"male": "guys", "female": "gals"}, r"female/ \(it holds gals/, guys/\): name the folder"),
        ({"male": "gentlemen"}, r"no pictures in male/ \(it has some in female/\)"),
        ({"female": "data/x/female", "male": "data/x/male"}, "did you mean .*x"),
    ],
)
def test_a_folder_without_classes_says_what_it_holds(
    change: dict[str, str], words: str, few: Path
) -> None:
    for old, new in change.items():
        new = new.removeprefix("data/")
        (few / new).parent.mkdir(exist_ok=True)
        shutil.move(few / old, few / new)
    if not change:
        shutil.rmtree(few)
        few.mkdir()
    with pytest.raises(InputError, match=words) as caught:
        scan_data(few)
    sentence(caught)


@pytest.mark.parametrize(
    ("prefix", "more", "words"),
    [
        ("one/", "two/male/m.jpg", r"several folders \(one, two\)"),
        (
            "a/b/",
            "a/x.jpg",
            r"one level down \(it holds a/, a/b/female/, a/b/male/\)",
        ),
    ],
)
def test_an_archive_without_its_classes_near_the_root_is_refused(
    prefix: str, more: str, words: str, few: Path, tmp_path: Path
) -> None:
    archive = make_zip(few, tmp_path / "faces.zip", prefix)
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr(more, b"x")
    with pytest.raises(InputError, match=words) as caught:
        scan_data(archive)
    sentence(caught)


def test_an_archive_of_a_folder_that_is_itself_called_like_a_class(
    few: Path, tmp_path: Path
) -> None:
    scan = scan_data(make_zip(few, tmp_path / "faces.zip", "women/"))
    assert sorted(set(scan.labels)) == [0, 1] and scan.labels.count(0) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipe_and_broken_link_are_listed_and_do_not_hang(few: Path) -> None:
    os.mkfifo(few / "male" / "pipe.jpg")
    (few / "male" / "link.jpg").symlink_to("nowhere.jpg")
    (few / "male" / "loop").symlink_to(few / "male")
    scan = scan_data(few)
    hashes, unreadable = hash_and_check(scan.source, scan.names, progress=False)
    assert [path for path, _ in unreadable] == ["male/link.jpg", "male/pipe.jpg"]
    assert len(hashes) == 11


# --- lists ----------------------------------------------------------------------------------------


def write_list(folder: Path, header: str, male: str, female: str, encoding: str = "utf-8") -> Path:
    lines = [header, *(male.format(i) for i in range(5)), *(female.format(i) for i in range(4))]
    (folder / "list.csv").write_bytes("\n".join(lines).encode(encoding))
    return folder / "list.csv"


@pytest.mark.parametrize(
    ("header", "male", "female"),
    [
        ("path,label", "male/m_{}.jpg,0", "female/f_{}.jpg,1"),
        ("path,label", "./male/m_{}.jpg,male", "./female/f_{}.jpg,Female"),
        ("path,label", "data/male/m_{}.jpg,0", "data/female/f_{}.jpg,1"),
        ("path,label", "male\\m_{}.jpg,0", "female\\f_{}.jpg,1"),
        ("image_name,class", "m_{}.jpg,0", "f_{}.jpg,1"),
        ("Sex;File Name;extra", "M;male/m_{}.jpg;", "F;female/f_{}.jpg;"),
        ("path\tlabel\tSplit", "m_{}.jpg\tman\tdev", "f_{}.jpg\twoman\tdev"),
    ],
)
def test_a_list_beside_its_pictures_is_scanned(
    few: Path, header: str, male: str, female: str
) -> None:
    path = write_list(few, header, male, female)
    before = path.read_bytes()
    assert label_of(scan_data(path)) == label_of(scan_data(few))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("listed", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_list_names_pictures_in_another_normal_form(listed: str, there: str, few: Path) -> None:
    name = unicodedata.normalize(there, "Zoë.jpg")
    put(few, f"female/{name}")
    path = write_list(few, "path,label", "m_{}.jpg,0", "f_{}.jpg,1")
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"\n{unicodedata.normalize(listed, name)},1")
    assert label_of(scan_data(path)) == label_of(scan_data(few))


def test_a_list_of_an_older_excel_names_pictures_in_russian(few: Path) -> None:
    put(few, *(f"Иван {i}.jpg" for i in range(5)), *(f"Анна {i}.jpg" for i in range(4)))
    path = write_list(few, "файл;пол", "Иван {}.jpg;муж", "Анна {}.jpg;жен", "cp1251")
    assert set(scan_data(path).names) == {each.name for each in few.glob("*.jpg")}


@pytest.mark.parametrize("form", ["upwards", "absolute"])
def test_a_list_names_no_pictures_outside_its_folder(few: Path, form: str) -> None:
    before = ".." if form == "upwards" else few.as_posix()
    lists = few / "lists"
    lists.mkdir()
    rows = [f"{before}/{name},{label}" for name, label in label_of(scan_data(few)).items()]
    (lists / "old.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(InputError, match="leads out of the folder"):
        scan_data(lists / "old.csv")
    if form == "absolute":  # of a folder that is now the list's own
        (lists / "old.csv").rename(few / "old.csv")
        assert len(scan_data(few / "old.csv").names) == 9


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("path,label\nmale/m_0.jpg,0\nmale/m_0.jpg,1\n", r"male/m_0\.jpg both labels"),
        ("path,label,group\nmale/m_0.jpg,0,a\nmale/m_0.jpg,0,b\n", r"male/m_0\.jpg two groups"),
        ("path,label\nx/m_0.jpg,0\n", r"not there, such as x/m_0\.jpg"),
        ("path,label\nmale/m_0.jpg,7\n", "label '7'"),
        ("a,b\nmale/m_0.jpg,7\n", "columns: a, b"),
        ("", "is empty"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence_without_a_circle(
    rows: str, words: str, few: Path
) -> None:
    (few / "list.csv").write_text(rows)
    with pytest.raises(InputError, match=words) as caught:
        scan_data(few / "list.csv")
    assert "data_split" not in sentence(caught)


def test_a_list_keeps_its_groups(few: Path) -> None:
    path = write_list(few, "path,label,group", "m_{0}.jpg,0,men {0}", "f_{}.jpg,1,")
    scan = scan_data(path)
    assert scan.groups["male/m_3.jpg"] == "men 3" and scan.groups["female/f_3.jpg"] == ""


# --- groups ---------------------------------------------------------------------------------------

NAMES = ["female/f_0.jpg", "faces/male/m_0.jpg", "male/m_1.jpg", "Zoë.jpg"]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("path,group\nmale/m_0.jpg,a\nmale/m_1.jpg,a\nx.jpg,b\n", {1: "a", 2: "a"}),
        ("path,group\n./male/m_1.jpg,a\nfemale\\f_0.jpg,b\nmale/m_0.jpg,\n", {0: "b", 2: "a"}),
        ("Group;File Name\n7;male/m_1.jpg\n", {2: "7"}),
        (unicodedata.normalize("NFD", "path,group\nZoë.jpg,z\n"), {3: "z"}),
        ("path,group\nZoe\u0308.jpg,z\n", {3: "z"}),
    ],
)
def test_groups_are_told_by_paths(text: str, groups: dict[int, str], tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(text, encoding="utf-8")
    expected = {NAMES[i]: group for i, group in groups.items()}
    assert read_groups(tmp_path / "groups.csv", NAMES) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,group\nother/m_0.jpg,a\n", r"names no picture .*other/m_0\.jpg.*female/f_0\.jpg"),
        ("path,group\nmale/m_0.jpg,a\nmale/m_0.jpg,b\n", "two groups"),
        ("", "path and group"),
        ("name,person\na,b\n", r"the columns path and group, and has name, person"),
        (None, "path and group"),
    ],
)
def test_groups_that_are_none_are_one_sentence(
    text: str | None, words: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_groups(tmp_path / "groups.csv", NAMES)
    sentence(caught)


# --- reading every picture once -------------------------------------------------------------------


@pytest.fixture
def mixed(few: Path) -> Path:
    """Pictures of two formats, and three files that are none."""
    whole = (few / "male" / "m_0.jpg").read_bytes()
    (few / "male" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (few / "female" / "zero.png").write_bytes(b"")
    (few / "female" / "text.jpg").write_text("no picture")
    draw_face("female", 9).save(few / "female" / "x.bmp")
    return few


Found = tuple[list[str], tuple[tuple[str, str], ...]]


def check(data: Path) -> Found:
    scan = scan_data(data)
    return hash_and_check(scan.source, scan.names, progress=False)


def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "PROCESSES_FROM", 1)
    monkeypatch.setattr(hashing, "CHUNK", 2)


@pytest.mark.parametrize("in_archive", [False, True])
@pytest.mark.parametrize("processes", [False, True])
def test_every_picture_is_decoded_and_hashed(
    mixed: Path, tmp_path: Path, in_archive: bool, processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if processes:
        in_processes(monkeypatch)
        monkeypatch.setattr(hashing, "threads_on_one_core_each", None)
    hashes, unreadable = check(make_zip(mixed, tmp_path / "a.zip") if in_archive else mixed)
    names = scan_data(mixed).names
    bad = ["female/text.jpg", "female/zero.png", "male/half.jpg"]
    assert [name for name, _ in unreadable] == bad
    for name, digest in zip(names, hashes, strict=True):
        content = (mixed / name).read_bytes()
        assert digest == ("" if name in bad else hashlib.sha256(content).hexdigest())


def test_pixels_are_looked_at_and_not_the_header_alone(few: Path) -> None:
    path = few / "male" / "m_0.png"
    draw_face("male", 5).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 30] ^= 255
    path.write_bytes(data)
    digest, reason = check_picture(FolderSource(few), "male/m_0.png")
    assert digest == "" and reason


@pytest.mark.slow
def test_spawned_workers_give_the_same(mixed: Path, tmp_path: Path) -> None:
    code = (
        "import multiprocessing, sys\n"
        "from pathlib import Path\n"
        "from face_gender.data import hashing, scan\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    hashing.PROCESSES_FROM, hashing.cpu_count = 1, lambda: 1\n"
        "    hashing.threads_on_one_core_each = None\n"  # in this process alone
        "    found = scan.scan_data(Path(sys.argv[1]))\n"
        "    print(hashing.hash_and_check(found.source, found.names, progress=False))\n"
    )
    archive = make_zip(mixed, tmp_path / "faces.zip")
    done = python("-c", code, archive)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(check(archive))


def die(*_: object) -> Any:
    os._exit(1)


@pytest.mark.skipif(sys.platform != "linux", reason="workers import this file elsewhere")
def test_killed_workers_cost_nothing_but_time(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = check(mixed)
    in_processes(monkeypatch)
    # Other ways to start workers, such as Python 3.14's, would import what is not patched.
    forked = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"))
    monkeypatch.setattr(hashing, "ProcessPoolExecutor", forked)
    parent, real = os.getpid(), hashing.decode_image
    monkeypatch.setattr(
        hashing,
        "decode_image",
        lambda *of, **how: real(*of, **how) if os.getpid() == parent else die(),
    )
    assert check(mixed) == expected


@pytest.mark.parametrize("error", [ImportError, OSError, PermissionError])
def test_where_no_processes_can_be_had_threads_decode(
    mixed: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    expected = check(mixed)
    in_processes(monkeypatch)
    monkeypatch.setattr(hashing, "ProcessPoolExecutor", refuse)
    assert check(mixed) == expected


def test_hashes_of_unreadable_names_are_empty(few: Path) -> None:
    content = (few / "male" / "m_0.jpg").read_bytes()
    found = hashes_of(open_source(few), ["male/m_0.jpg", "male/none.jpg"])
    assert found == [hashlib.sha256(content).hexdigest(), ""]


# --- names ----------------------------------------------------------------------------------------


def test_odd_names_are_scanned(few: Path, tmp_path: Path) -> None:
    names = ["лицо.jpg", "a b.jpg", "a,b.jpg", "a'b.jpg", "#1.jpg", "顔😀.jpg", "NA.jpg"]
    names += [] if sys.platform == "win32" else ['a"b".jpg']
    put(few, *(f"male/{name}" for name in names))
    for data in (few, make_zip(few, tmp_path / "faces.zip")):
        assert {f"male/{name}" for name in names} <= set(scan_data(data).names)


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_name_that_is_not_utf8_keeps_its_bytes(few: Path) -> None:
    raw = os.fsencode(few / "male") + b"/\xcc\xf3\xe6.jpg"
    os.rename(few / "male" / "m_0.jpg", raw)
    scan = scan_data(few)
    assert raw in {os.fsencode(few / name) for name in scan.names}
    path = few / "list.csv"
    path.write_bytes(b"path,label\n\xcc\xf3\xe6.jpg,0\nf_0.jpg,1\n")
    assert set(scan_data(path).names) < set(scan.names)
