"""Lists of paths and labels are read as people have them, or answered by what was found."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentences import sentence

from face_gender import files
from face_gender.data import base_source
from face_gender.data.sources import is_outside
from face_gender.data.tables import class_of, decode_1251, read_index, read_labels, write_index
from face_gender.errors import InputError


def rows_of(path: Path, content: str | bytes) -> list[list[object]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_labels(path, "give a list")
    assert table["label"].dtype == np.int64
    return table[["path", "label"]].to_numpy().tolist()


@pytest.mark.parametrize(
    "name", [r"\Windows\a.jpg", r"\\server\share\a.jpg", "C:a.jpg", r"..\a.jpg"]
)
def test_names_lead_out_by_the_ways_of_windows_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_source, "PurePath", PureWindowsPath)
    assert is_outside(name)


@settings(deadline=None, max_examples=50)
@given(names=st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=5))
def test_any_name_survives_writing_and_reading(
    names: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = [name.decode("utf-8", "surrogateescape") + ".jpg" for name in names]
    assume(not any(is_outside(text) for text in texts))  # which is refused
    table = pd.DataFrame({"path": pd.Series(texts, dtype=object), "label": 0})
    path = tmp_path_factory.mktemp("names") / "index.csv"
    write_index(table, path)
    assert read_index(path)["path"].tolist() == texts


@pytest.mark.parametrize(
    "header",
    [
        "path,label", "image_name,class", "Path,LABEL", " path , label ", "File Name,Gender",
        "filename,sex", "image,target", "img_path,class_name", "IMAGE_ID,Label", "name,gender",
        "файл,пол", "Имя файла,Пол", "path,label,class,name",
    ],
)  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_go_by_many_names(header: str, delimiter: str, tmp_path: Path) -> None:
    more = ",x,y" if header.count(",") == 3 else ""
    text = f"{header}\na.jpg,0{more}\nb.png,1{more}\n".replace(",", delimiter)
    assert rows_of(tmp_path / "list.csv", text) == [["a.jpg", 0], ["b.png", 1]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("start", ["", "sep=;\r\n"])
def test_lists_are_read_in_the_encodings_that_spreadsheets_write(
    encoding: str, start: str, tmp_path: Path
) -> None:
    text = f"{start}path;label\r\nЙод, 1.jpg;женский\r\n顔.jpg;Male\r\n"
    expected = [["Йод, 1.jpg", 1], ["顔.jpg", 0]]
    assert rows_of(tmp_path / "list.csv", text.encode(encoding)) == expected


def test_russian_of_an_older_excel_is_read(tmp_path: Path) -> None:
    content = "файл;пол\nИван 1.jpg;мужской\nАнна.jpg;жен\n".encode("cp1251")
    rows = rows_of(tmp_path / "list.csv", content)
    assert [(decode_1251(str(name)), label) for name, label in rows] == [
        ("Иван 1.jpg", 0), ("Анна.jpg", 1)
    ]  # fmt: skip
    raw = b"caf\xe9\x82.jpg".decode("utf-8", "surrogateescape")
    assert decode_1251(raw) == raw  # nothing that is Russian


@pytest.mark.parametrize(
    ("column", "cells", "labels"),
    [
        ("label", ["male", "Female "], [0, 1]),
        ("label", ["M", "f"], [0, 1]),
        ("gender", ["man", "WOMAN"], [0, 1]),
        ("label", ["мужской", "женский"], [0, 1]),
        ("label", ["0.0", "1.0"], [0, 1]),
        ("sex", ["1", "2"], [0, 1]),  # ISO/IEC 5218
        ("Male", ["1", "-1"], [0, 1]),  # CelebA
        ("male", ["0", "1"], [1, 0]),
        ("Female", ["True", "False"], [1, 0]),
    ],
)
def test_labels_go_by_many_words(
    column: str, cells: list[str], labels: list[int], tmp_path: Path
) -> None:
    text = f"path,{column}\na.jpg,{cells[0]}\nb.jpg,{cells[1]}\n"
    assert [label for _, label in rows_of(tmp_path / "list.csv", text)] == labels
    # As pandas writes it, with the numbers of the rows in a column without a name.
    lines = zip(("", "0,", "1,"), text.splitlines(), strict=True)
    numbered = "\n".join(number + line if number else f",{line}" for number, line in lines)
    assert [label for _, label in rows_of(tmp_path / "list.csv", numbered)] == labels


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("name,filename,gender", "Anna,a.jpg,f"),  # of two, the one of pictures
        ("filename,class,gender", "a.jpg,3b,f"),  # of two, the one of labels
        ("image_name,class,gender", "a.jpg,f,f"),  # the older form
        ("Split,filename,gender", "training,a.jpg,f"),  # another's split is no matter
    ],
)
def test_cells_tell_which_of_two_columns_is_meant(header: str, cells: str, tmp_path: Path) -> None:
    assert rows_of(tmp_path / "list.csv", f"{header}\n{cells}\n") == [["a.jpg", 1]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        (
            "x,y\na.jpg,0\n",
            r"plainly the path or the label \(columns: x, y; wanted: ",
        ),
        ("a.jpg,0\nb.jpg,1\n", r"\(columns: a.jpg, 0;"),
        ("file,photo,label\na.jpg,b.jpg,0\n", "plainly the path"),
        ("path,gender,sex\na.jpg,0,1\n", "plainly the label"),
        ("path,male,female\na.jpg,0,1\n", "plainly the label"),
        (",path\n0,a.jpg\n", "plainly the label"),
        ("path,label\na.jpg,2\n", r"row 1: label '2' is not 0, 1, male or female.*found: 2"),
        ("path,label\na.jpg,1\nb.jpg,2\n", "row 2: label '2'"),  # 1 may be either
        ("path,sex\na.jpg,0\nb.jpg,2\n", "row 2: sex '2'"),
        ("path,sex\na.jpg,-1\nb.jpg,1\n", "row 1: sex '-1'"),
        ("path,label\na.jpg,0\nb.jpg\n", "row 2: label ''"),
        ("path,label\na,b.jpg,0\n", "quotes around a name"),
        ("path,label,path\na.jpg,0,a.jpg\n", "a column twice"),
        ("path,label" + ",c" * 99 + "\n", "over 100 columns"),
        (b"\xff\xfe\x00\xd8\x00\xd8", "cannot be read"),
        (f'path,label\na.jpg,"{"x" * 200_000}"\n', "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_what_is_not_plain_is_one_sentence_of_what_was_found(
    content: str | bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as caught:
        read_labels(path, "give a list")
    assert str(path) in sentence(caught) and "data_split" not in sentence(caught)
    assert len(sentence(caught)) < 500


def test_an_index_may_be_larger_than_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    table = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "label": [0, 1]})
    write_index(table, tmp_path / "index.csv")
    assert read_index(tmp_path / "index.csv")["path"].tolist() == ["a.jpg", "b.jpg"]


def test_short_rows_under_a_header_without_end_take_no_memory(tmp_path: Path) -> None:
    columns = ",".join(f"c{i}" for i in range(50_000))
    (tmp_path / "index.csv").write_text(f"path,label,{columns}\n" + "x\n" * 50_000)
    with pytest.raises(InputError, match="over 100 columns") as caught:
        read_index(tmp_path / "index.csv")
    sentence(caught)


@pytest.mark.parametrize("cell", ["x" * 120_000, "a\x1b[2Jb", "a\nb", "\u202egpj"])
def test_sentences_about_cells_are_short_and_of_one_line(cell: str, tmp_path: Path) -> None:
    for text in (f'path,label\nm.jpg,"{cell}"\n', f'path,label,split\nm.jpg,0,"{cell}"\n'):
        (tmp_path / "index.csv").write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read_index(tmp_path / "index.csv")
        assert len(sentence(caught)) < 500
        assert sentence(caught).isprintable()


def test_an_index_has_splits_of_three_names_and_paths_inside(tmp_path: Path) -> None:
    for row, words in (("a.jpg,0,dev", "split 'dev' is not"), ("../a.jpg,0,val", "leads out")):
        (tmp_path / "index.csv").write_text(f"path,label,split\n{row}\n")
        with pytest.raises(InputError, match=words) as caught:
            read_index(tmp_path / "index.csv")
        sentence(caught)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["male", "MALE ", "Men", "man", " m", "boys", "Мужчины", "М"], 0),
        (["female ", "Women", "woman", "F", "girls", "Женщины", "ж"], 1),
        (["", "0", "1", "males_old", "fem", "unknown", "мал"], None),
    ],
)
def test_many_words_name_a_class_and_others_none(words: list[str], label: int | None) -> None:
    assert {word: class_of(word) for word in words} == dict.fromkeys(words, label)


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff\xe0\0\x10JFIF", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"]
)
def test_a_picture_or_an_archive_is_no_csv(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(data + bytes(range(256)))
    with pytest.raises(InputError, match="is no CSV but a binary file") as caught:
        read_index(tmp_path / "a.csv")
    sentence(caught)


def test_of_a_column_that_is_there_twice_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,label,Group,GROUP\na.jpg,0,one,two\n")
    table = read_labels(path, "cure")
    assert table["group"].tolist() == ["one"] and table["GROUP"].tolist() == ["two"]
