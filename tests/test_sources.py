"""Folders, archives and single files are read alike, from whatever drive, system or packer."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import random
import shutil
import stat
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import make_zip, peak_of, zip_of
from sentences import sentence

from face_gender import files
from face_gender.data import archives, base_source, sources
from face_gender.data.base_source import DEVICE_FOLDERS, HIDDEN, OF_DEVICES, OTHER_ENDING, REPLACED
from face_gender.data.sources import (
    ArchiveSource,
    DriveGoneError,
    FolderSource,
    ReadError,
    find_images,
    is_hidden,
    open_source,
    passed_over_in_words,
)
from face_gender.data.tables import class_of
from face_gender.errors import InputError
from face_gender.files import read_file

CONTENT = {"a.jpg": b"first", "in/b.PNG": b"second", "in/deep/c.txt": b"third"}
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
ON_UNIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
WITH_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def fill(folder: Path, names: dict[str, bytes] | list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(names[name] if isinstance(names, dict) else b"x")
    return folder


def raw_zip(path: Path, names: list[tuple[bytes, int, bytes]]) -> Path:
    """Write an archive of members of these (name as stored, flags, extra field)."""
    data, directory = b"", b""
    for name, flags, extra in names:
        numbers = struct.pack("<IIIHH", zlib.crc32(b"x"), 1, 1, len(name), len(extra))
        head = struct.pack("<HHHHH", 20, flags, 0, 0, 33) + numbers
        place = len(data)
        data += b"PK\3\4" + head + name + extra + b"x"
        entry = b"PK\1\2" + struct.pack("<H", 20) + head + bytes(10) + struct.pack("<I", place)
        directory += entry + name + extra
    counts = struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(directory), len(data), 0)
    path.write_bytes(data + directory + b"PK\5\6" + counts)
    return path


def names_of(path: Path, *members: tuple[bytes, int, bytes]) -> list[str]:
    """Return the names that an archive of such members lists, having read each."""
    source = open_source(raw_zip(path / "names.zip", list(members)))
    names = list(source.names())
    assert all(source.read(name) == b"x" for name in names)
    return names


def unicode_path(name: str, stored: bytes, version: int = 1) -> bytes:
    field = struct.pack("<BI", version, zlib.crc32(stored)) + name.encode()
    return struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(field)) + field


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "folder", CONTENT)


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    return make_zip(folder, tmp_path / "archive.zip")


def test_folder_and_archive_give_the_same_names_and_bytes(folder: Path, archive: Path) -> None:
    for source in (open_source(folder), open_source(str(archive))):
        assert {name: source.read(name) for name in source.names()} == CONTENT
        assert list(source.names(recursive=False)) == ["a.jpg"]
        with pytest.raises(OSError):
            source.read("none.jpg")


def test_a_zipped_folder_names_its_pictures_as_it_does(folder: Path, tmp_path: Path) -> None:
    archive = make_zip(folder, tmp_path / "one.zip", prefix="photos/")
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("__MACOSX/photos/._a.jpg", b"resource fork")
        out.writestr("README.txt", b"text")
    source, names = find_images(archive)
    assert names == ["a.jpg"]
    assert source.read("a.jpg") == (folder / "a.jpg").read_bytes()
    assert pickle.loads(pickle.dumps(source)).read("a.jpg") == source.read("a.jpg")
    assert "photos/a.jpg" in find_images(archive, recursive=True)[1]


def test_members_that_lead_out_are_named_also_beside_an_only_folder(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"wrapped/a.jpg": b"x", "../evil.jpg": b"x"})
    source, names = find_images(archive)
    assert names == ["a.jpg"]
    assert source.unlisted == [("../evil.jpg", "its name leads out of the archive")]


# --- names as packers store them ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "flags", "extra", "name"),
    [
        ("Müller 5.jpg".encode(), 0, b"", "Müller 5.jpg"),  # zip on Linux, Finder
        ("顔/ねこ.jpg".encode(), 0, b"", "顔/ねこ.jpg"),
        ("Иван.jpg".encode(), 0, b"", "Иван.jpg"),
        ("e\u0301.jpg".encode(), 0, b"", "e\u0301.jpg"),  # as Finder decomposes it
        ("Müller.jpg".encode(), 0x800, b"", "Müller.jpg"),
        ("café.jpg".encode("cp437"), 0, b"", "café.jpg"),
        ("Анна 1.jpg".encode("cp866"), 0, b"", "Анна 1.jpg"),  # Explorer in Russian
        ("папка/я.jpg".encode("cp866"), 0, b"", "папка/я.jpg"),
        (b"male\\1.jpg", 0, b"", "male/1.jpg"),  # PowerShell
        (b"M_ller.jpg", 0, unicode_path("Müller.jpg", b"M_ller.jpg"), "Müller.jpg"),  # 7-Zip
        (b"\x81.jpg", 0, unicode_path("Ł.jpg", b"\x81.jpg"), "Ł.jpg"),
        (b"new.jpg", 0, unicode_path("Old.jpg", b"old.jpg"), "new.jpg"),  # renamed since
        (b"a.jpg", 0, unicode_path("ü.jpg", b"a.jpg", version=2), "a.jpg"),
        (b"a.jpg", 0, b"up\xff\xff", "a.jpg"),
    ],
)
def test_a_member_has_its_true_name(
    stored: bytes, flags: int, extra: bytes, name: str, tmp_path: Path
) -> None:
    if extra[:2] == b"up":  # damaged: that the archive is refused is for zipfile to say
        with pytest.raises(InputError, match="cannot be read"):
            names_of(tmp_path, (stored, flags, extra))
    else:
        assert names_of(tmp_path, (stored, flags, extra)) == [name]


def test_russian_names_that_happen_to_be_utf8_are_told_by_their_neighbours(tmp_path: Path) -> None:
    garden = ("сад.jpg".encode("cp866"), 0, b"")
    assert names_of(tmp_path, garden) == [garden[0].decode("utf-8")]
    others = [("Анна.jpg".encode("cp866"), 0, b""), ("Müller.jpg".encode(), 0, b"")]
    assert names_of(tmp_path, garden, *others) == ["сад.jpg", "Анна.jpg", "Müller.jpg"]


def test_of_members_of_one_name_the_last_counts_and_the_others_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.mkdir("male")
        for name, data in (("male/ü.jpg", b"old"), ("male\\ü.jpg", b"new"), ("b.jpg", b"x")):
            info = zipfile.ZipInfo("x")
            info.filename = name
            out.writestr(info, data)
    source = ArchiveSource(tmp_path / "a.zip")
    assert list(source.names()) == ["male/ü.jpg", "b.jpg"]
    assert source.read("male/ü.jpg") == b"new"
    assert source.passed_over == {REPLACED: 1}


@pytest.mark.parametrize("in_archive", [False, True])
@pytest.mark.parametrize(("asked", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_in_the_other_normal_form(
    asked: str, there: str, in_archive: bool, tmp_path: Path
) -> None:
    name = "Zoë/Йод é.jpg"
    folder = fill(tmp_path / "folder", {unicodedata.normalize(there, name): b"found"})
    source = open_source(make_zip(folder, tmp_path / "a.zip") if in_archive else folder)
    wanted = unicodedata.normalize(asked, name)
    assert source.read(wanted) == b"found"
    assert source.stamp(wanted)[0] == 5
    assert source.find(wanted) == next(source.names())
    assert source.find("Zoe/none.jpg") is None
    with pytest.raises(OSError):
        source.read(f"{wanted}x")


# --- what is passed over --------------------------------------------------------------------------

LEFT_BY_DEVICES = [
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "male/@eadir/a.jpg", "#recycle/a.jpg", "@Recycle/a.jpg",
    "@Recently-Snapshot/1/a.jpg", "#snapshot/a.jpg", "$RECYCLE.BIN/S-1-5/$RX.jpg",
    "RECYCLER/a.jpg", "System Volume Information/a.jpg", "lost+found/a.jpg", "Thumbs/a.jpg",
    "__MACOSX/male/._a.jpg", "male/THUMBS/a.jpg", "SYNOPHOTO_THUMB_M.jpg", "FOUND.000/a.jpg",
    "Catalog Previews.lrdata/a.jpg", "iPod Photo Cache/a.jpg", "x/CaptureOne/Cache/a.jpg",
]  # fmt: skip
OF_TOOLS = [".Trash-1000/files/a.jpg", ".picasaoriginals/a.jpg", "._a.jpg", ".thumbnails/a.jpg",
            "in/.ipynb_checkpoints/a.jpg", ".git/x.jpg", ".@__thumb/a.jpg"]  # fmt: skip
SHOWN = ["a.jpg", "in/a.b.jpg", "Originals/a.jpg", "@anna/a.jpg", "Thumbsy/a.jpg", "Thumbs.jpg",
         "recycled bottles/a.jpg", "MACOSX/a.jpg", "#1/a.jpg"]  # fmt: skip


@pytest.mark.parametrize("in_archive", [False, True])
def test_what_devices_and_tools_leave_is_passed_over_and_counted(
    in_archive: bool, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "folder", [*LEFT_BY_DEVICES, *OF_TOOLS, *SHOWN, "notes.txt"])
    data = make_zip(folder, tmp_path / "a.zip") if in_archive else folder
    source, names = find_images(data, recursive=True)
    assert names == sorted(SHOWN)
    counted = {OF_DEVICES: len(LEFT_BY_DEVICES), HIDDEN: len(OF_TOOLS), OTHER_ENDING: 1}
    assert source.passed_over == counted
    assert passed_over_in_words(source.passed_over) == (
        "passed over: 18 in folders that devices leave, 7 hidden, 1 with other endings"
    )
    list(source.names())
    assert source.passed_over.total() == len(LEFT_BY_DEVICES) + len(OF_TOOLS)  # counted anew


def test_a_place_that_the_user_names_is_taken_whatever_it_is(tmp_path: Path) -> None:
    for name in (".data", "@eaDir", "#recycle/male", "__MACOSX"):
        root = fill(tmp_path / name, ["seen.jpg", ".git/x.jpg", "@eaDir/x.jpg"])
        assert find_images(root, recursive=True)[1] == ["seen.jpg"]


def test_no_class_folder_is_one_that_devices_leave() -> None:
    assert not [name for name in DEVICE_FOLDERS if class_of(name) is not None]


def test_a_folder_of_such_files_alone_says_so(tmp_path: Path) -> None:
    fill(tmp_path, ["@eaDir/a.jpg", "b.txt"])
    with pytest.raises(InputError) as caught:
        find_images(tmp_path, recursive=True)
    assert "1 in folders that devices leave" in sentence(caught)


def test_names_of_hidden_files_and_of_devices_are_hidden() -> None:
    assert not [name for name in ("../a.jpg", "./a.jpg", *SHOWN) if is_hidden(name)]
    assert all(map(is_hidden, (*LEFT_BY_DEVICES, *OF_TOOLS)))


# --- folders --------------------------------------------------------------------------------------


def scandir_that_fails(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Callable[[str], OSError | None]
) -> None:
    real = os.scandir

    def scandir(path: str) -> Any:
        fault = error(str(path)) if Path(path).name == name else None
        if fault:
            raise fault
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_listed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, ["locked/a.jpg", "@eaDir/a.jpg"])
    deny = lambda path: PermissionError(13, "Permission denied", path)  # noqa: E731
    for name in ("locked", "@eaDir"):
        scandir_that_fails(monkeypatch, name, deny)
    source = FolderSource(folder)
    assert "a.jpg" in list(source.names())
    assert source.unlisted == [("locked/", "cannot be listed (Permission denied)")]
    scandir_that_fails(monkeypatch, "folder", deny)
    with pytest.raises(InputError, match=r"folder cannot be listed \(Permission denied\)"):
        list(FolderSource(folder).names())


@WITH_LINKS
def test_links_are_followed_and_no_folder_is_read_twice(folder: Path) -> None:
    (folder / "in" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "in")
    (folder / "self.jpg").symlink_to("self.jpg")
    fill(folder, [".store/d.jpg"])
    (folder / "shown").symlink_to(folder / ".store")  # though its target is hidden
    names = list(FolderSource(folder).names())
    ends = sorted(name.split("/")[-1] for name in names)
    assert ends == ["a.jpg", "b.PNG", "c.txt", "d.jpg", "self.jpg"] and "shown/d.jpg" in names
    with pytest.raises(OSError):
        FolderSource(folder).read("self.jpg")
    (folder / "link.jpg").symlink_to(fill(folder.parent, ["elsewhere.jpg"]) / "elsewhere.jpg")
    assert FolderSource(folder).read("link.jpg") == b"x"


@ON_UNIX
def test_pipe_is_refused_instead_of_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    for read in (lambda: FolderSource(folder).read("pipe.jpg"), lambda: read_file("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read()


@ON_UNIX
def test_a_file_that_turns_into_a_pipe_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fill(tmp_path, ["a.jpg"]) / "a.jpg"
    real = os.stat

    def swap(*arguments: Any, **options: Any) -> os.stat_result:
        found = real(*arguments, **options)
        if Path(arguments[0]) == path and stat.S_ISREG(found.st_mode):
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(os, "stat", swap)
    with pytest.raises(OSError, match="not a regular file"):
        read_file(path)


@pytest.mark.parametrize("size", [0, 10, 999, 10**6])
def test_a_file_that_grows_or_shrinks_while_it_is_read_is_told(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fill(tmp_path, {"a.jpg": bytes(1000)}) / "a.jpg"
    real, looks = os.fstat, iter(range(9))

    def resize(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if next(looks) == 1:  # the first is at what it is
            os.truncate(path, size)
        return found

    monkeypatch.setattr(os, "fstat", resize)
    with pytest.raises(OSError, match="changed while it was read"):
        read_file(path)


# --- single files ---------------------------------------------------------------------------------


def test_pictures_may_be_given_one_by_one(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, names = find_images(folder / "in" / "b.PNG")
    assert names == ["b.PNG"] and source.read("b.PNG") == b"second"
    fill(folder, {"in/a.jpg": b"other"})
    monkeypatch.chdir(folder)
    source, names = find_images(["in/b.PNG", Path("a.jpg"), "in/a.jpg", "./a.jpg"])
    assert names == ["a.jpg", "b.PNG", "in/a.jpg"]
    assert [source.read(name) for name in names] == [b"first", b"second", b"other"]
    assert source.stamp("in/a.jpg")[0] == 5 and source.find("c.jpg") is None
    assert source.path == folder
    with pytest.raises(OSError):
        source.read("c.jpg")
    fill(folder, [".hidden.jpg", "x.txt"])
    source, names = find_images([archive, "in", folder])  # and folders and archives beside them
    whole = [f"{archive.as_posix()}/a.jpg", "in/a.jpg", f"{folder.as_posix()}/a.jpg"]
    assert sorted(names) == sorted(["b.PNG", *whole])
    assert [source.read(name) for name in whole] == [b"first", b"other", b"first"]
    assert source.passed_over == {HIDDEN: 1, OTHER_ENDING: 1}


def test_no_picture_of_several_takes_the_name_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"b/a/x.jpg": b"1", "a/x.jpg": b"2", "c/x.jpg": b"3", "y.jpg": b"4"})
    monkeypatch.chdir(tmp_path)
    source, names = find_images(["b", "a/x.jpg", "c/x.jpg", "y.jpg"], recursive=True)
    assert names == ["a/x.jpg", "b/a/x.jpg", "c/x.jpg", "y.jpg"]
    assert [source.read(name) for name in names] == [b"2", b"1", b"3", b"4"]
    assert find_images(["a", "a/x.jpg"])[1] == ["a/x.jpg"]  # one picture, named twice


def test_pictures_may_lie_on_several_drives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commonpath(paths: object) -> str:
        raise ValueError("Paths don't have the same drive")  # as on Windows

    monkeypatch.setattr(os.path, "commonpath", commonpath)
    source, names = find_images([folder / "a.jpg", folder / "in" / "b.PNG"])
    assert names == ["a.jpg", "b.PNG"] and source.path == folder
    assert source.read("b.PNG") == b"second"


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["none"], "none does not exist"),
        (["none.jpg"], "none.jpg does not exist"),
        (["a.jpg", "none.jpg"], "none.jpg does not exist"),
        (["a.jpg", "in/deep"], "in/deep holds no pictures"),
        (["in/deep/c.txt"], "neither a folder nor a .zip archive"),
        ([], "no path is given"),
        (["in/deep"], "holds no pictures"),
        (["top"], "holds no pictures: 1 lie deeper, add --recursive"),
    ],
)
def test_what_holds_no_pictures_is_one_sentence(
    paths: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, ["top/deeper/a.jpg"])
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as caught:
        find_images(paths)
    assert words in sentence(caught)


# --- archives -------------------------------------------------------------------------------------


def test_half_downloaded_archive_is_called_so(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cannot be read as a \.zip archive"):
        open_source(archive)


def test_file_too_large_for_any_picture_is_refused_before_it_is_read(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", len(CONTENT["a.jpg"]))
    for source in (FolderSource(folder), ArchiveSource(archive)):
        assert source.read("a.jpg") == b"first"
        with pytest.raises(OSError, match="bomb"):
            source.read("in/b.PNG")


@pytest.mark.parametrize("method", METHODS)
def test_damage_raises_oserror_and_its_neighbours_stay_readable(
    method: int, tmp_path: Path
) -> None:
    noise = random.Random(0).randbytes(2000)
    path = zip_of(tmp_path / "a.zip", {"a.jpg": noise, "b.jpg": noise}, method)
    assert open_source(path).read("a.jpg") == noise
    data = bytearray(path.read_bytes())
    data[500:520] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        ArchiveSource(path).read("a.jpg")
    assert ArchiveSource(path).read("b.jpg") == noise


@pytest.mark.parametrize(
    ("flags", "method", "words"),
    [
        (1, 0, "encrypted in the archive: unpack it with 7-Zip"),
        (1, 99, "encrypted"),
        (0x41, 8, "encrypted"),
        (0, 9, "packed by method 9, which is not read: unpack it with 7-Zip"),
    ],
)
def test_a_member_that_python_cannot_unpack_names_its_method_and_the_cure(
    flags: int, method: int, words: str, archive: Path
) -> None:
    data = bytearray(archive.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        struct.pack_into("<HH", data, data.index(mark) + at, flags, method)
    archive.write_bytes(data)
    with pytest.raises(OSError, match=words):
        ArchiveSource(archive).read("a.jpg")
    assert ArchiveSource(archive).read("in/b.PNG") == b"second"


@pytest.mark.parametrize("method", METHODS)
def test_one_archive_is_read_by_threads_processes_and_copies_at_once(
    tmp_path: Path, method: int
) -> None:
    content = {f"{i}.jpg": bytes([i]) * 5_000 for i in range(60)}
    source = ArchiveSource(zip_of(tmp_path / "many.zip", content, method))
    copied = pickle.loads(pickle.dumps(source))
    for start in ("fork", "spawn") if method == METHODS[1] else ("fork",):
        context = multiprocessing.get_context(start)
        with ProcessPoolExecutor(2, mp_context=context) as pool, ThreadPoolExecutor(8) as threads:
            found = [pool.map(source.read, content), threads.map(source.read, content)]
            found.append(map(copied.read, content))
            assert all(list(each) == list(content.values()) for each in found)


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_that_is_replaced_gives_no_other_files_bytes(
    method: int, tmp_path: Path
) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.jpg": b"first", "b.jpg": b"second"}, method)
    source = open_source(path)
    copied = pickle.loads(pickle.dumps(source))
    zip_of(path, {"x.jpg": b"other", "b.jpg": b"others"}, method)
    for each in (source, copied):
        with pytest.raises(OSError):
            each.read("a.jpg")
    path.write_bytes(b"words")
    with pytest.raises(OSError):
        source.read("a.jpg")


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.jpg")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(info, "/etc/passwd")
    assert ArchiveSource(tmp_path / "a.zip").read("link.jpg") == b"/etc/passwd"


def test_members_that_lead_out_are_unlisted(tmp_path: Path) -> None:
    outside = ["../up.jpg", "/absolute.jpg", "in/../../deep.jpg", "..\\windows.jpg"]
    source = open_source(zip_of(tmp_path / "a.zip", dict.fromkeys([*outside, "a.jpg"], b"x")))
    assert list(source.names()) == ["a.jpg"]
    assert [name for name, _ in source.unlisted] == [name.replace("\\", "/") for name in outside]
    with pytest.raises(OSError, match=r"not in a\.zip"):
        source.read("../up.jpg")


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_member_packed_a_hundredfold_is_a_bomb(
    method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_PACKED", (2**20, 100))
    source = ArchiveSource(zip_of(tmp_path / "a.zip", {"a": bytes(2**21), "b": b"x"}, method))
    error, peak = peak_of(lambda: source.read("a"), OSError)
    assert "decompression bomb" in str(error) and peak < 100_000
    assert source.read("b") == b"x"


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_member_that_unpacks_to_more_than_it_announces_is_refused_and_not_unpacked(
    method: int, tmp_path: Path
) -> None:
    """As zipfile would, of bzip2 and LZMA, before it cuts it to the size announced."""
    content = random.Random(0).randbytes(2000) + bytes(20 * 2**20)
    path = zip_of(tmp_path / "a.zip", {"a.jpg": content}, method)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\1\2", 16), (b"PK\3\4", 14)):
        place = data.rindex(mark) + at
        struct.pack_into("<I", data, place, zlib.crc32(content[:1000]))
        struct.pack_into("<I", data, place + 8, 1000)
    path.write_bytes(data)
    source = ArchiveSource(path)
    error, peak = peak_of(lambda: source.read("a.jpg"), OSError)
    assert "decompression bomb" in str(error)
    assert peak < 2**24  # the dictionary of LZMA


@pytest.mark.parametrize("size", [2**31, 2**32 - 2])
def test_a_member_that_announces_gigabytes_takes_no_memory(size: int, archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 20, size)
    archive.write_bytes(data)
    error, peak = peak_of(lambda: ArchiveSource(archive).read("a.jpg"), OSError)
    assert "damaged" in str(error) and peak < 100_000


# --- drives that fail -----------------------------------------------------------------------------


class Drive:
    """Fails a number of times, and counts the pauses between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int, code: int = errno.EIO):
        self.failures, self.code, self.pauses = failures, code, list[float]()
        self.read = sources.read_file
        monkeypatch.setattr(sources, "read_file", self.read_file)

    def read_file(self, path: str) -> bytes:
        if self.failures:
            self.failures -= 1
            raise OSError(self.code, os.strerror(self.code), path)
        return self.read(path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN])
def test_a_drive_is_asked_again_after_growing_pauses(
    code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = Drive(monkeypatch, 3, code)
    source = FolderSource(folder, drive.pauses.append)
    assert source.read("a.jpg") == b"first"
    assert drive.pauses == list(base_source.PAUSES) == sorted(drive.pauses)
    drive.failures = 4
    with pytest.raises(ReadError) as caught:
        source.read("a.jpg")
    assert caught.value.errno == code and caught.value.strerror == os.strerror(code)
    assert source.read("a.jpg") == b"first"


def test_a_file_that_is_missing_or_no_file_is_not_asked_for_again(folder: Path) -> None:
    source = FolderSource(folder, lambda seconds: pytest.fail("paused"))
    for name in ("none.jpg", "in", "../a.jpg"):
        with pytest.raises(OSError) as caught:
            source.read(name)
        assert not isinstance(caught.value, ReadError)


def test_many_files_that_fail_in_a_row_mean_that_the_drive_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = Drive(monkeypatch, 10**6)
    source = FolderSource(folder, drive.pauses.append)
    for i in (*range(9), *range(9)):  # the same again are no others
        with pytest.raises(ReadError):
            source.read(f"{i}.jpg")
    drive.failures = 0
    assert source.read("a.jpg") == b"first"
    drive.failures = 10**6
    for i in range(9):
        with pytest.raises(ReadError):
            source.read(f"{i}.jpg")
    with pytest.raises(DriveGoneError) as caught:
        source.read("9.jpg")
    assert "its drive seems to be gone" in sentence(caught) and "--resume" in sentence(caught)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_folder_that_vanishes_is_a_drive_that_is_gone(folder: Path) -> None:
    source = FolderSource(folder, lambda seconds: None)
    shutil.rmtree(folder)
    for i in range(9):
        with pytest.raises(ReadError):
            source.read(f"{i}.jpg")
    with pytest.raises(DriveGoneError):
        source.read("9.jpg")


def test_a_folder_is_listed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]
    scandir_that_fails(monkeypatch, "in", lambda path: waits.pop() if waits else None)
    source = FolderSource(folder, lambda seconds: None)
    assert sorted(source.names()) == sorted(CONTENT)
    assert not source.unlisted and not waits


def test_an_archive_is_opened_again(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [errno.EIO, errno.ESTALE]
    real = zipfile.ZipFile.open

    def fail(self: zipfile.ZipFile, *arguments: Any, **options: Any) -> Any:
        if failures:
            raise OSError(failures.pop(), "the drive failed")
        return real(self, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", fail)
    source = ArchiveSource(archive, pause=lambda seconds: None)
    assert source.read("a.jpg") == b"first" and not failures
    failures += [errno.EIO] * 99
    with pytest.raises(ReadError, match="the drive failed"):
        source.read("a.jpg")


def test_kinds_of_files_add_up_to_a_line() -> None:
    assert passed_over_in_words(Counter({"hidden": 0})) == ""
    assert passed_over_in_words(Counter({"hidden": 1234})) == "passed over: 1,234 hidden"
