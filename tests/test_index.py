"""The index tells every picture once, and its split keeps its promises."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, draw_face, make_faces, make_zip, snapshot
from face_gender.data.sound import sound_size
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sentences import sentence

import face_gender.data.scan as index_module
from face_gender import CLASSES
from face_gender.data.images import UnreadableImage, decode_image
from face_gender.data.index import Index, list_pictures
from face_gender.data.scan import _hash_one, hashes_of
from face_gender.data.sources import ArchiveSource, FolderSource, Source, is_outside
from face_gender.data.split import SPLITS, split_rows
from face_gender.data.tables import read_index, write_index
from face_gender.errors import InputError

SHARES = (70, 15, 15)


def index(data: Path, **options: object) -> Index:
    return Index.create(data, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A data set of 5 + 4 drawn faces."""
    return make_faces(tmp_path / "data", 5, 4)


# ---------------------------------------------------------------- the split, as properties


def table_of(rows: Sequence[tuple[int, int, str]]) -> pd.DataFrame:
    """Make an index of (content, label, group) rows."""
    return pd.DataFrame(
        {
            "path": [f"{i:04}.jpg" for i in range(len(rows))],
            "label": np.array([label for _, label, _ in rows], dtype=np.int64),
            "sha256": [hashlib.sha256(str(content).encode()).hexdigest() for content, _, _ in rows],
            "group": [group for _, _, group in rows],
        }
    )


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Copies, groups, groups of both labels, and groups that copies connect."""
    contents = draw(st.lists(st.integers(0, 1), min_size=1, max_size=30))
    group = st.sampled_from(["", "", "", "anna", "boris", "vera", "gleb"])
    rows = [
        (content, label, draw(group))
        for content, label in enumerate(contents)
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4])))
    ]
    return table_of(draw(st.permutations(rows)))


def units_of(table: pd.DataFrame) -> list[int]:
    """Number the sets of rows that share content or group, by spreading the smallest number."""
    keys = [*zip(table["sha256"], table["group"], strict=True)]
    numbers, before = list(range(len(keys))), [-1]
    while numbers != before:
        before = numbers
        smallest: dict[str, int] = {}
        for number, (content, group) in sorted(zip(numbers, keys, strict=True), reverse=True):
            smallest[content] = smallest[group] = number
        numbers = [
            min(smallest[content], smallest[group] if group else len(keys))
            for content, group in keys
        ]
    return numbers


def units_by_label(table: pd.DataFrame) -> Counter[int]:
    units = {(unit, label) for unit, label in zip(units_of(table), table["label"], strict=True)}
    return Counter(label for _, label in units)


def just_enough(table: pd.DataFrame) -> pd.DataFrame:
    """Add single pictures until each class has the 3 units that a split needs."""
    units = units_by_label(table)
    rows = [(-2 * i - label - 1, label, "") for label in (0, 1) for i in range(3 - units[label])]
    more = table_of(rows)
    more["path"] = [f"more_{i}.jpg" for i in range(len(rows))]
    return pd.concat([table, more], ignore_index=True)


def by_path(table: pd.DataFrame, seed: int = 0) -> dict[str, str]:
    return dict(zip(table["path"], split_rows(table, SHARES, seed), strict=True))


@settings(deadline=None, max_examples=150)
@given(table=tables().map(just_enough), seed=st.integers(0, 5))
def test_same_bytes_and_same_group_never_straddle_and_no_class_is_missing(
    table: pd.DataFrame, seed: int
) -> None:
    table["split"] = split_rows(table, SHARES, seed)
    assert set(table["split"]) <= set(SPLITS)
    assert (table.groupby("sha256")["split"].nunique() == 1).all()
    assert (table[table["group"] != ""].groupby("group")["split"].nunique() == 1).all()
    assert (table.groupby("label")["split"].nunique() == 3).all()


@settings(deadline=None, max_examples=60)
@given(table=tables())
def test_class_with_fewer_units_than_splits_is_refused(table: pd.DataFrame) -> None:
    assume(min(units_by_label(table).values()) < 3)
    with pytest.raises(InputError, match="groups of pictures that belong together"):
        split_rows(table, SHARES, 0)


@settings(deadline=None, max_examples=80)
@given(table=tables().map(just_enough), data=st.data())
def test_split_depends_neither_on_the_order_of_rows_nor_on_names(
    table: pd.DataFrame, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(table))))
    assert by_path(table.iloc[list(order)].reset_index(drop=True)) == by_path(table)
    renamed = table.assign(path=table["path"].str.replace("0", "x"))
    assert split_rows(renamed, SHARES, 0).tolist() == split_rows(table, SHARES, 0).tolist()


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.tuples(st.integers(3, 150), st.integers(3, 150)),
    shares=st.tuples(*[st.integers(1, 98)] * 3),
    seed=st.integers(0, 2**32),
)
def test_single_pictures_are_stratified_within_one_of_the_quota(
    sizes: tuple[int, int], shares: tuple[int, int, int], seed: int
) -> None:
    rows = [(i, int(i >= sizes[0]), "") for i in range(sum(sizes))]
    table = table_of(rows)
    table["split"] = split_rows(table, shares, seed)
    for label, size in enumerate(sizes):
        counts = Counter(table.loc[table["label"] == label, "split"])
        assert all(counts[split] >= 1 for split in SPLITS)
        quotas = [size * share / sum(shares) for share in shares]
        if min(quotas) >= 1:
            assert all(abs(counts[s] - q) < 1 for s, q in zip(SPLITS, quotas, strict=True))


def test_groups_of_both_labels_leave_no_class_out_of_a_split() -> None:
    counts = {"both": (5, 2), "also both": (1, 6), "men": (5, 0), "women": (0, 8)}
    labels = [
        (g, label) for g, pair in counts.items() for label in (0, 1) for _ in range(pair[label])
    ]
    table = table_of([(i, label, group) for i, (group, label) in enumerate(labels)])
    for seed in range(10):
        table["split"] = split_rows(table, (80, 5, 15), seed)
        assert (table.groupby("label")["split"].nunique() == 3).all()


def test_one_seed_gives_one_split_and_other_seeds_give_others() -> None:
    table = table_of([(i, i % 2, "") for i in range(60)])
    assert by_path(table, 3) == by_path(table.copy(), 3)
    assert len({tuple(split_rows(table, SHARES, seed)) for seed in range(20)}) == 20


def test_large_groups_keep_the_shares_about() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 120)
    rows = [(i, 0, f"person {person}") for i, person in enumerate(np.repeat(range(120), sizes))]
    rows += [(-i - 1, 1, "") for i in range(100)]
    table = table_of(rows)
    table["split"] = split_rows(table, SHARES, 0)
    counts = table[table["label"] == 0]["split"].value_counts(normalize=True)
    assert [counts[split] for split in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_share_of_zero_leaves_its_split_empty() -> None:
    splits = split_rows(table_of([(i, i % 2, "") for i in range(20)]), (80, 20, 0), 0)
    assert Counter(splits.tolist()) == {"train": 16, "val": 4}


# ---------------------------------------------------------------- what becomes a row


def test_index_has_the_documented_columns_rows_and_place(few: Path) -> None:
    report = index(few)
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
    report = index(faces)
    assert report.counts().to_numpy().tolist() == [[14, 14], [3, 3], [3, 3]]
    assert "40 pictures, 0 of them repeat" in report.summary()
    assert "0 unreadable, 0 under both labels" in report.summary()


def test_index_is_written_once_and_read_back_the_same_after_a_restart(few: Path) -> None:
    report = index(few, seed=5)
    written = report.path.read_bytes()
    assert read_index(report.path)["split"].tolist() == report.table["split"].tolist()
    index(few, seed=5, force=True)
    assert report.path.read_bytes() == written


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.jpg",
        "._m_0.jpg",
        ".ipynb_checkpoints/m_0-checkpoint.jpg",
        "__MACOSX/m_0.jpg",
        "__MACOSX/._m_0.jpg",
        "Thumbs.db",
        "desktop.ini",
        "notes.txt",
        "labels.csv",
        "m_0",
        "m_0.jpg.part",
        "m_0.xmp",
    ],
)
def test_what_is_no_picture_never_becomes_a_row(few: Path, name: str, tmp_path: Path) -> None:
    extra = few / "male" / name
    extra.parent.mkdir(exist_ok=True)
    draw_face("male", 99).save(extra, "JPEG")
    archive = make_zip(few, tmp_path / "faces.zip")
    for data in (few, archive):
        report = index(data)
        assert len(report.table) == 9
        assert report.report.unreadable == ()


def test_files_beside_the_class_folders_are_not_rows(few: Path) -> None:
    draw_face("male", 99).save(few / "cover.jpg")
    (few / "other").mkdir()
    draw_face("male", 98).save(few / "other" / "a.jpg")
    assert len(index(few).table) == 9


@pytest.mark.parametrize("name", ["A.JPG", "b.Jpeg", "c.PNG", "deep/er/d.webp", "e.TIFF"])
def test_suffix_in_any_case_and_folders_inside_are_rows(few: Path, name: str) -> None:
    path = few / "male" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_face("male", 99).save(path)
    assert f"male/{name}" in set(index(few).table["path"])


def test_class_folders_in_any_case(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 3, 3)
    (data / "male").rename(data / "Male_")
    (data / "Male_").rename(data / "Male")
    labels = index(data).table.set_index("path")["label"]
    assert labels["Male/m_0.jpg"] == 0 and labels["female/f_0.jpg"] == 1


def test_unreadable_pictures_are_listed_with_reasons_and_left_as_they_are(few: Path) -> None:
    whole = (few / "male" / "m_0.jpg").read_bytes()
    (few / "male" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (few / "female" / "text.jpg").write_text("no picture")
    (few / "female" / "zero.png").write_bytes(b"")
    (few / "female" / "folder.jpg").mkdir()
    before = snapshot(few)
    report = index(few)
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipe_and_broken_link_are_listed_and_do_not_hang(few: Path) -> None:
    os.mkfifo(few / "male" / "pipe.jpg")
    (few / "male" / "link.jpg").symlink_to("nowhere.jpg")
    (few / "male" / "loop").symlink_to(few / "male")
    report = index(few)
    assert [path for path, _ in report.report.unreadable] == ["male/link.jpg", "male/pipe.jpg"]
    assert len(report.table) == 9


def test_damaged_member_of_an_archive_is_listed(few: Path, tmp_path: Path) -> None:
    archive = make_zip(few, tmp_path / "faces.zip")
    content = (few / "male" / "m_3.jpg").read_bytes()
    archive.write_bytes(archive.read_bytes().replace(content, content[:-9] + bytes(9)))
    report = index(archive)
    assert [path for path, _ in report.report.unreadable] == ["male/m_3.jpg"]
    assert "damaged" in report.report.unreadable[0][1]
    assert len(report.table) == 8


def test_copies_stay_together_and_are_counted(few: Path) -> None:
    content = (few / "male" / "m_0.jpg").read_bytes()
    for i in range(6):
        (few / "male" / f"copy_{i}.jpg").write_bytes(content)
    report = index(few)
    copies = report.table[report.table["sha256"] == hashlib.sha256(content).hexdigest()]
    assert len(copies) == 7 and copies["split"].nunique() == 1
    assert report.report.duplicates == 6


def test_same_bytes_under_both_labels_are_reported_and_left_out(few: Path) -> None:
    for i in range(2):
        content = (few / "male" / f"m_{i}.jpg").read_bytes()
        (few / "female" / f"also_{i}.jpg").write_bytes(content)
    report = index(few)
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
    of_folder, of_archive = index(few), index(archive)
    assert of_archive.path == tmp_path / "index.csv"
    expected = of_folder.table.assign(path=prefix + of_folder.table["path"])
    pd.testing.assert_frame_equal(of_archive.table, expected)
    assert of_archive.unreadable == ((prefix + "male/zero.jpg", "empty file"),)
    assert archive.read_bytes() == before


def test_archive_with_several_tops_is_refused_by_name(few: Path, tmp_path: Path) -> None:
    archive = make_zip(few, tmp_path / "faces.zip", "one/")
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("two/male/m.jpg", b"x")
    with pytest.raises(InputError, match=r"several folders \(one, two\)"):
        index(archive)


def test_archive_two_levels_down_is_refused(few: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at its root or one level down"):
        index(make_zip(few, tmp_path / "faces.zip", "a/b/"))


def test_folder_one_level_up_is_told_where_the_data_is(few: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean .*data\?"):
        index(few.parent)


def test_class_whose_pictures_are_all_unreadable_names_one_of_them(few: Path) -> None:
    for path in (few / "female").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"female has 0 usable .*female/f_0\.jpg: empty file"):
        index(few)


def test_class_of_copies_cannot_be_split(few: Path) -> None:
    for path in (few / "female").iterdir():
        draw_face("female", 0).save(path)
    with pytest.raises(InputError, match="female has only 1 groups"):
        index(few)


@pytest.mark.parametrize("ratios", [(70, 30), (50, 20, 20), (-10, 60, 50), (0, 50, 50), (1, 2, 3)])
def test_ratios_that_make_no_sense_are_refused(few: Path, ratios: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="ratios"):
        index(few, ratios=ratios)


@pytest.mark.parametrize("ratios", [(float("nan"), 50, 50), (float("inf"), 0, 0)])
def test_ratios_that_are_no_numbers_are_refused(few: Path, ratios: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="ratios"):
        index(few, ratios=ratios)


def test_ratios_may_be_shares_of_one(few: Path) -> None:
    assert index(few, ratios=(0.7, 0.15, 0.15)).path.exists()


@pytest.mark.parametrize("which", ["data", "groups"])
def test_force_never_replaces_what_the_index_is_made_from(
    few: Path, tmp_path: Path, which: str
) -> None:
    archive = make_zip(few, tmp_path / "faces.zip")
    groups = tmp_path / "groups.csv"
    groups.write_text("path,group\nmale/m_0.jpg,x\n")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="never replaced"):
        index(archive, groups=groups, force=True, output=archive if which == "data" else groups)
    assert snapshot(tmp_path) == before


def test_interrupted_hashing_writes_nothing(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(data: bytes, name: str) -> None:
        raise KeyboardInterrupt

    draw_face("male", 9).save(few / "male" / "m_9.bmp")
    before = snapshot(few)
    monkeypatch.setattr("face_gender.data.scan.decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        index(few)
    assert snapshot(few) == before


# ---------------------------------------------------------------- sound without decoding


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


FACE = draw_face("male", 1)
JPEGS = [
    encode(FACE, "JPEG"),
    encode(FACE.convert("L"), "JPEG", optimize=True),
    encode(FACE, "JPEG", progressive=True, subsampling=0),
    encode(FACE, "JPEG", restart_marker_blocks=2, comment=b"words", icc_profile=b"x" * 99),
]
PNGS = [
    encode(FACE, "PNG"),
    encode(FACE.convert("P"), "PNG", dpi=(72, 72)),
    encode(FACE.convert("1"), "PNG"),
    encode(FACE.convert("RGBA"), "PNG"),
]


@pytest.mark.parametrize("data", [*JPEGS, *PNGS, JPEGS[0] + bytes(512), PNGS[0] + bytes(3)])
def test_sound_pictures_are_told_by_their_structure(data: bytes) -> None:
    assert sound_size(data) == FACE.size == decode_image(data, "x").size


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def part(marker: int) -> bytes:
    """The first segment of a kind in the plain JPEG."""
    start = JPEGS[0].index(bytes([0xFF, marker]))
    return JPEGS[0][start : start + 2 + int.from_bytes(JPEGS[0][start + 2 : start + 4], "big")]


FRAME, SCAN, QUANTISER, HUFFMAN = part(0xC0), part(0xDA), part(0xDB), part(0xC4)
IDAT = PNGS[0].index(b"IDAT") - 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        JPEGS[0][:-2],
        JPEGS[0] + b"more",
        JPEGS[0].replace(FRAME, b""),
        JPEGS[0].replace(FRAME, FRAME + FRAME),
        JPEGS[0].replace(FRAME, FRAME[:4] + b"\x0c" + FRAME[5:]),  # 12 bits
        JPEGS[0].replace(FRAME, FRAME[:5] + bytes(2) + FRAME[7:]),  # no lines
        JPEGS[0].replace(FRAME, FRAME[:-1] + b"\3"),  # a quantisation table that is not there
        JPEGS[0].replace(FRAME, FRAME[:11] + b"\x51" + FRAME[12:]),  # 5 blocks across
        JPEGS[0].replace(QUANTISER, b""),
        JPEGS[0].replace(QUANTISER, QUANTISER[:4] + b"\7" + QUANTISER[5:]),
        JPEGS[0].replace(HUFFMAN, b""),
        JPEGS[0].replace(HUFFMAN, HUFFMAN[:5] + b"\xff" + HUFFMAN[6:]),  # more codes than bits
        JPEGS[0].replace(SCAN, SCAN[:5] + b"\7" + SCAN[6:]),  # a component that is not there
        JPEGS[0].replace(SCAN, SCAN + b"\xff\xd8"),  # a second SOI among the pixels
        JPEGS[0].replace(SCAN, segment(0xE0, b"JFIF") + SCAN),
        JPEGS[0].replace(SCAN, b"\0" + SCAN),
        PNGS[0][:-1],
        PNGS[0] + b"more",
        PNGS[0][:IDAT] + chunk(b"IEND", b""),
        PNGS[0][:50] + bytes([PNGS[0][50] ^ 1]) + PNGS[0][51:],
        PNGS[0][:8] + PNGS[0][IDAT:],
        PNGS[0][:IDAT] + chunk(b"gAMA", b"x") + PNGS[0][IDAT:],
        PNGS[1].replace(b"PLTE", b"pLTE"),
        encode(FACE, "GIF"),
        encode(FACE.convert("CMYK"), "JPEG"),
    ],
)
def test_what_is_not_plainly_sound_takes_a_decoder(data: bytes) -> None:
    assert sound_size(data) is None


class Held:
    """A source of one file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, name: str) -> bytes:
        return self.data


def reason_of(data: bytes) -> str:
    """Why decoding refuses a picture, "" where it does not."""
    try:
        decode_image(data, "x")
    except UnreadableImage as error:
        return error.reason
    return ""


@settings(deadline=None, max_examples=300)
@given(
    data=st.sampled_from([*JPEGS, *PNGS, encode(FACE, "GIF"), encode(FACE, "BMP")]),
    start=st.floats(0, 1, exclude_max=True),
    length=st.integers(0, 300),
    instead=st.binary(max_size=8),
)
def test_what_can_be_decoded_is_a_row_whatever_its_bytes(
    data: bytes, start: float, length: int, instead: bytes
) -> None:
    at = int(start * len(data))
    data = data[:at] + instead + data[at + length :]
    digest, reason = _hash_one(Held(data), "x")  # type: ignore[arg-type]
    if not reason_of(data):
        assert (digest, reason) == (hashlib.sha256(data).hexdigest(), "")
    elif not digest:
        assert reason == reason_of(data)


@settings(deadline=None, max_examples=300)
@given(data=st.sampled_from(JPEGS + PNGS), share=st.floats(0, 1, exclude_max=True))
def test_truncated_pictures_are_refused_with_the_reason_of_the_decoder(
    data: bytes, share: float
) -> None:
    data = data[: int(share * len(data))]
    # Pillow decodes a PNG that lacks no more than its end.
    digest = "" if reason_of(data) else hashlib.sha256(data).hexdigest()
    assert sound_size(data) is None
    assert _hash_one(Held(data), "x") == (digest, reason_of(data))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(65_535, 65_535), (40_000, 3_000)])
def test_size_of_a_bomb_is_refused_though_its_structure_is_sound(size: tuple[int, int]) -> None:
    frame = FRAME[:5] + struct.pack(">HH", *size[::-1]) + FRAME[9:]
    data = JPEGS[0].replace(FRAME, frame)
    assert sound_size(data) == size
    assert "bomb" in _hash_one(Held(data), "x")[1]  # type: ignore[arg-type]


# ---------------------------------------------------------------- workers


@pytest.fixture
def mixed(few: Path) -> Path:
    """Sound pictures, one that takes a decoder, and three that cannot be read."""
    whole = (few / "male" / "m_0.jpg").read_bytes()
    (few / "male" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (few / "female" / "zero.png").write_bytes(b"")
    (few / "female" / "text.jpg").write_text("no picture")
    draw_face("female", 9).save(few / "female" / "x.bmp")
    return few


def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("face_gender.data.scan._WORTH_PROCESSES", 1)
    monkeypatch.setattr("face_gender.data.scan._CHUNK", 2)


@pytest.mark.parametrize("archive", [False, True])
def test_processes_give_the_index_that_threads_give(
    mixed: Path, tmp_path: Path, archive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_zip(mixed, tmp_path / "faces.zip") if archive else mixed
    of_threads = index(data, output=tmp_path / "threads.csv")
    in_processes(monkeypatch)
    monkeypatch.setattr("face_gender.data.scan._hash_one", None)  # in this process alone
    monkeypatch.setattr("face_gender.data.scan._start_worker", start_with_hash_one)
    of_processes = index(data, output=tmp_path / "processes.csv")
    pd.testing.assert_frame_equal(of_processes.table, of_threads.table)
    assert of_processes.unreadable == of_threads.unreadable
    assert len(of_threads.unreadable) == 3


def start_with_hash_one(source: Source) -> None:
    index_module._hash_one = _hash_one
    start_worker(source)


start_worker = index_module._start_worker


def test_spawned_workers_give_the_same_index(mixed: Path, tmp_path: Path) -> None:
    code = (
        "import multiprocessing, sys\n"
        "multiprocessing.set_start_method('spawn')\n"
        "import face_gender.data.scan as index\n"
        "index._WORTH_PROCESSES = index._CHUNK = 1\n"
        "index._hash_one = None\n"  # in this process alone
        "index.Index.create(sys.argv[1], sys.argv[2], progress=False)\n"
    )
    archive = make_zip(mixed, tmp_path / "faces.zip")
    arguments = [sys.executable, "-c", code, str(archive), str(tmp_path / "spawned.csv")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "spawned.csv").read_bytes() == index(archive).path.read_bytes()


def die(names: Sequence[str]) -> None:
    os._exit(1)


@pytest.mark.skipif(sys.platform != "linux", reason="workers import this file elsewhere")
@pytest.mark.parametrize("name", ["_hash_in_worker", "_start_worker"])
def test_killed_workers_cost_nothing_but_time(
    mixed: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = index(mixed, output=tmp_path / "threads.csv").path.read_bytes()
    in_processes(monkeypatch)
    monkeypatch.setattr(f"face_gender.data.scan.{name}", die)
    assert index(mixed).path.read_bytes() == expected


@pytest.mark.parametrize("error", [ImportError, OSError, PermissionError])
def test_where_no_processes_can_be_had_threads_hash(
    mixed: Path, tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    expected = index(mixed, output=tmp_path / "threads.csv").path.read_bytes()
    in_processes(monkeypatch)
    monkeypatch.setattr("face_gender.data.scan.ProcessPoolExecutor", refuse)
    assert index(mixed).path.read_bytes() == expected


# ---------------------------------------------------------------- groups


def write_groups(path: Path, rows: dict[str, str]) -> Path:
    lines = "".join(f"{name},{group}\n" for name, group in rows.items())
    path.write_text("path,group\n" + lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("prefix", ["", "./"])
def test_rows_of_one_person_share_a_split(faces: Path, tmp_path: Path, prefix: str) -> None:
    rows = {f"{prefix}male/m_{i}.jpg": f"person {i // 4}" for i in range(20)}
    report = index(faces, groups=write_groups(tmp_path / "groups.csv", rows))
    men = report.table[report.table["group"] != ""]
    assert len(men) == 20
    assert (men.groupby("group")["split"].nunique() == 1).all()
    assert "group" in read_index(report.path)


def test_groups_may_leave_out_the_folder_inside_the_archive(few: Path, tmp_path: Path) -> None:
    archive = make_zip(few, tmp_path / "faces.zip", "faces/")
    groups = write_groups(tmp_path / "groups.csv", {"male/m_0.jpg": "a", "male/m_1.jpg": "a"})
    table = index(archive, groups=groups).table.set_index("path")
    assert table["group"]["faces/male/m_0.jpg"] == table["group"]["faces/male/m_1.jpg"] == "a"
    assert table["group"]["faces/female/f_0.jpg"] == ""


def test_groups_that_name_no_picture_are_refused(few: Path, tmp_path: Path) -> None:
    groups = write_groups(tmp_path / "groups.csv", {"other/m_0.jpg": "a"})
    with pytest.raises(InputError, match=r"names no picture .*other/m_0\.jpg.*female/f_0\.jpg"):
        index(few, groups=groups)


def test_groups_that_contradict_themselves_are_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("path,group\nmale/m_0.jpg,a\nmale/m_0.jpg,b\n")
    with pytest.raises(InputError, match="two groups"):
        index(few, groups=tmp_path / "groups.csv")


@pytest.mark.parametrize("text", ["", "name,person\na,b\n", None])
def test_groups_that_are_no_such_table_are_refused(
    few: Path, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=r"groups\.csv .*path and group"):
        index(few, groups=tmp_path / "groups.csv")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["лицо.jpg", "a b.jpg", "a,b.jpg", 'a"b".jpg', "a'b.jpg", "#1.jpg", "顔😀.jpg", "NA.jpg"],
)
def test_odd_names_are_indexed_and_read_back(few: Path, tmp_path: Path, name: str) -> None:
    if sys.platform == "win32" and '"' in name:
        pytest.skip("no such names there")
    (few / "male" / "m_0.jpg").rename(few / "male" / name)
    archive = make_zip(few, tmp_path / "faces.zip")
    for data in (few, archive):
        assert f"male/{name}" in set(read_index(index(data))["path"])


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_name_that_is_not_utf8_keeps_its_bytes(few: Path) -> None:
    raw = os.fsencode(few / "male") + b"/\xcc\xf3\xe6.jpg"
    os.rename(few / "male" / "m_0.jpg", raw)
    table = read_index(index(few))
    assert b"\nmale/\xcc\xf3\xe6.jpg,0," in (few / "index.csv").read_bytes()
    assert raw in {os.fsencode(few / path) for path in table["path"]}


@settings(deadline=None, max_examples=100)
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


# ---------------------------------------------------------------- older forms


@pytest.mark.parametrize(
    ("header", "male", "female"),
    [
        ("path,label", "male/m_{}.jpg,0", "female/f_{}.jpg,1"),
        ("path,label", "./male/m_{}.jpg,male", "./female/f_{}.jpg,Female"),
        ("path,label", "data/male/m_{}.jpg,0", "data/female/f_{}.jpg,1"),
        ("path,label", "male\\m_{}.jpg,0", "female\\f_{}.jpg,1"),
        ("image_name,class", "m_{}.jpg,0", "f_{}.jpg,1"),
        ("class,image_name", "male,male/m_{}.jpg", "female,female/f_{}.jpg"),
        ("\ufeffimage_name,class,extra", "m_{}.jpg,0,", "f_{}.jpg,1,"),
    ],
)
def test_older_csv_beside_its_pictures_is_indexed(
    few: Path, header: str, male: str, female: str
) -> None:
    lines = [header, *(male.format(i) for i in range(5)), *(female.format(i) for i in range(4))]
    (few / "old.csv").write_text("\n".join(lines), encoding="utf-8")
    before = (few / "old.csv").read_bytes()
    pd.testing.assert_frame_equal(index(few / "old.csv").table, index(few, force=True).table)
    assert (few / "old.csv").read_bytes() == before


@pytest.mark.parametrize("form", ["upwards", "absolute"])
def test_older_csv_names_no_pictures_outside_its_folder(few: Path, form: str) -> None:
    (few / "lists").mkdir()
    before = ".." if form == "upwards" else few.as_posix()
    table = index(few).table[["path", "label"]].to_numpy()
    rows = [f"{before}/{path},{label}" for path, label in table]
    (few / "lists" / "old.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(InputError, match="leads out of the folder"):
        index(few / "lists" / "old.csv")
    (few / "lists" / "old.csv").rename(few / "old.csv")
    if form == "absolute":  # of a folder that is now the CSV's own
        assert len(index(few / "old.csv", force=True).table) == 9


def test_older_csv_lists_the_pictures_that_are_gone(few: Path) -> None:
    rows = [f"male/m_{i}.jpg,0" for i in range(6)] + [f"female/f_{i}.jpg,1" for i in range(4)]
    (few / "old.csv").write_text("\n".join(["path,label", *rows]))
    report = index(few / "old.csv")
    assert [path for path, _ in report.report.unreadable] == ["male/m_5.jpg"]
    assert len(report.table) == 9


def test_older_csv_that_gives_one_path_both_labels_is_refused(few: Path) -> None:
    (few / "old.csv").write_text("path,label\nmale/m_0.jpg,0\nmale/m_0.jpg,1\n")
    with pytest.raises(InputError, match=r"male/m_0\.jpg both labels"):
        index(few / "old.csv")


def test_older_csv_far_from_its_pictures_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("path,label\nx/m_0.jpg,0\n")
    with pytest.raises(InputError, match=r"not there, such as x/m_0\.jpg"):
        index(tmp_path / "old.csv")


def test_index_indexed_again_keeps_its_groups(faces: Path, tmp_path: Path) -> None:
    rows = {f"male/m_{i}.jpg": f"person {i // 4}" for i in range(20)}
    first = index(faces, groups=write_groups(tmp_path / "groups.csv", rows))
    again = index(first.path, output=faces / "again.csv")
    pd.testing.assert_frame_equal(again.table, first.table)


@pytest.mark.parametrize(
    "text", ["path,label\na.jpg,0\nb.jpg,1\n", "image_name,class\na.jpg,male\nb.jpg,Female\n"]
)
def test_older_forms_are_read_as_an_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "old.csv").write_text(text)
    table = read_index(tmp_path / "old.csv")
    assert list(table.columns) == ["path", "label"]
    assert table.to_numpy().tolist() == [["a.jpg", 0], ["b.jpg", 1]]
    assert table["label"].dtype == np.int64


def test_column_of_the_newer_name_wins(tmp_path: Path) -> None:
    (tmp_path / "both.csv").write_text("path,label,class\na.jpg,1,smiling\n")
    assert read_index(tmp_path / "both.csv")["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("file,sex\na.jpg,0\n", "no column path and no column label"),
        ("path;label\na.jpg;0\n", "no column path"),
        ("path,label\na.jpg,2\n", "row 1: label '2'"),
        ("path,label\na.jpg,0\nb.jpg\n", "row 2: label ''"),
        ("path,label,split\na.jpg,0,dev\n", "split 'dev'"),
        ("path,label\na,b.jpg,0\n", "quotes around a name"),
        ("path,label,path\na.jpg,0,a.jpg\n", "a column twice"),
        (None, "cannot be read"),
    ],
)
def test_csv_that_is_no_index_is_refused_in_one_sentence(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "index.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_index(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_hashes_of_unreadable_names_are_empty(few: Path) -> None:
    from face_gender.data.sources import open_source

    content = (few / "male" / "m_0.jpg").read_bytes()
    found = hashes_of(open_source(few), ["male/m_0.jpg", "male/none.jpg"])
    assert found == [hashlib.sha256(content).hexdigest(), ""]


# ---------------------------------------------------------------- real pictures


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
    report = index(archive, output=tmp_path / "index.csv")
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
    report = index(archive, output=tmp_path / "index.csv", groups=tmp_path / "labels.csv")
    assert (report.table["group"] != "").all()
    assert report.table["group"].nunique() > 6_000
    assert (report.table.groupby("group")["split"].nunique() == 1).all()
    shares = report.counts() / report.counts().sum()
    assert np.allclose(shares, [[0.7, 0.7], [0.15, 0.15], [0.15, 0.15]], atol=0.005)


def test_files_that_are_no_pictures_by_name_are_counted(faces: Path) -> None:
    (faces / "male" / "55_0_0jpg").write_bytes((faces / "male" / "m_0.jpg").read_bytes())
    (faces / "male" / ".hidden").write_bytes(b"x")
    report = Index.create(faces, progress=False)
    assert report.report.others == ("male/55_0_0jpg",)
    assert "1 no pictures by name (male/55_0_0jpg)" in report.summary()


# The pictures of a data set without an index, and the data of an index


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


def test_an_archive_lists_the_pictures_of_its_folder(few: Path, tmp_path: Path) -> None:
    table, source, _ = list_pictures(make_zip(few, tmp_path / "faces.zip", "faces/"))
    own = list_pictures(few)[0]
    assert table["path"].tolist() == [f"faces/{path}" for path in own["path"]]
    assert table["label"].tolist() == own["label"].tolist()
    assert source.read(table["path"].iloc[0]) == (few / own["path"].iloc[0]).read_bytes()


def test_nothing_to_list_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list_pictures(tmp_path)
    assert "male/ and female/" in sentence(caught)


def test_the_data_of_an_index_are_the_folder_that_it_lies_in(few: Path, tmp_path: Path) -> None:
    make_zip(few, few / "copy.zip")  # the folder comes first
    report = index(few)
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
    report = index(packed)
    assert report.path.parent == tmp_path / "beside"
    source = Index.open(report.path).source
    assert isinstance(source, ArchiveSource)
    assert source.path.name == "b.ZIP"


def test_the_data_of_an_index_may_be_found_from_its_own_folder(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = index(few)
    monkeypatch.chdir(few)
    assert Index.open("index.csv").source.read(report.table["path"].iloc[0])


def test_data_that_are_nowhere_near_are_one_sentence(few: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    report = index(few, output=tmp_path / "away" / "index.csv")
    with pytest.raises(InputError) as caught:
        Index.open(report.path)
    assert "--data" in sentence(caught)
    assert report.table["path"].iloc[0] in str(caught.value)


# One value for the data


def test_an_index_is_opened_once_and_knows_its_splits(few: Path) -> None:
    made = index(few)
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


def test_pictures_of_other_data_are_refused(few: Path, tmp_path: Path) -> None:
    made = index(few)
    other = tmp_path / "other"
    for i, path in enumerate(made.table["path"]):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        draw_face("male", 1000 + i).save(other / path)
    for data, words in ((other, "has other bytes"), (tmp_path, "is not there")):
        with pytest.raises(InputError, match=words) as caught:
            Index.open(made.path, data)
        assert "made of other pictures" in sentence(caught)


def test_pictures_that_a_model_has_seen_are_counted_with_or_without_hashes(few: Path) -> None:
    made = index(few)
    seen = [int(each[:16], 16) for each in made.table["sha256"][:3]]
    signed = [each - 2**64 if each >= 2**63 else each for each in seen]
    for table in (made.table, made.table.drop(columns="sha256"), made.table.assign(sha256="?")):
        assert Index(table, made.source).count_seen(signed) == 3
    assert made.count_seen([]) == made.count_seen([1, 2]) == 0


def test_what_has_no_row_is_listed_with_its_reason(few: Path) -> None:
    (few / "male" / "zero.jpg").write_bytes(b"")
    made = index(few)
    draw_face("male", 77).save(few / "male" / "later.jpg")
    assert dict(Index.open(made.path).left_out()) == {
        "male/zero.jpg": "empty file",
        "male/later.jpg": "readable: it has a twin under the other label, or came after the index "
        "was made",
    }
