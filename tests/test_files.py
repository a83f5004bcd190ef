"""Folders and archives are read alike; files are written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import sys
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from conftest import make_zip, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from face_gender import files
from face_gender.data.sources import (
    ArchiveSource,
    FolderSource,
    find_images,
    image_names,
    is_hidden,
    open_source,
)
from face_gender.errors import InputError
from face_gender.files import (
    check_output,
    copy_atomically,
    has_image_suffix,
    read_file,
    write_atomically,
)

CONTENT = {"a.jpg": b"first", "in/b.PNG": b"second", "in/deep/c.txt": b"third"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    return make_zip(folder, tmp_path / "archive.zip")


def damage(archive: Path, content: bytes, other: bytes) -> Path:
    """Overwrite what a stored member holds, so that its checksum no longer fits."""
    data = archive.read_bytes()
    assert data.count(content) == 1 and len(content) == len(other)
    archive.write_bytes(data.replace(content, other))
    return archive


def test_folder_and_archive_give_the_same_names_and_bytes(folder: Path, archive: Path) -> None:
    for source in (open_source(folder), open_source(str(archive))):
        assert {name: source.read(name) for name in source.names()} == CONTENT


def test_not_recursive_stays_in_the_folder_itself(folder: Path, archive: Path) -> None:
    assert list(FolderSource(folder).names(recursive=False)) == ["a.jpg"]
    assert list(ArchiveSource(archive).names(recursive=False)) == ["a.jpg"]


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


@pytest.mark.parametrize(
    ("written", "read"),
    [("Анна 1.jpg", "Анна 1.jpg"), ("папка/я.jpg", "папка/я.jpg")],
)
def test_cyrillic_names_as_windows_zips_them(written: str, read: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("x" * len(written), b"bytes")
    data = (tmp_path / "w.zip").read_bytes()
    (tmp_path / "w.zip").write_bytes(data.replace(b"x" * len(written), written.encode("cp866")))
    assert list(open_source(tmp_path / "w.zip").names()) == [read]


def test_accents_of_code_page_437_stay(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("caf_.jpg", b"bytes")
    data = (tmp_path / "w.zip").read_bytes()
    (tmp_path / "w.zip").write_bytes(data.replace(b"caf_", "café".encode("cp437")))
    assert list(open_source(tmp_path / "w.zip").names()) == ["café.jpg"]


@pytest.mark.parametrize("name", ["face.jpg", "photos.ZIP", "best.pth"])
def test_output_never_replaces_a_picture_an_archive_or_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never replaced"):
        check_output(tmp_path / name, [])


def test_output_is_no_input_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "weights")
    with pytest.raises(InputError, match="never replaced"):
        check_output(tmp_path / "link", [tmp_path / "weights"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on Windows")
def test_output_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        check_output(tmp_path / "pipe", [])


def test_a_link_stays_a_link_when_written_to(tmp_path: Path) -> None:
    (tmp_path / "target.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    write_atomically(tmp_path / "link.json", lambda file: file.write(b"new"))
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "target.json").read_text() == "new"


def test_a_subfolder_that_cannot_be_listed_is_noted_and_the_rest_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "locked").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = FolderSource(folder)
    assert "a.jpg" in list(source.names())
    assert source.unlisted == [("locked/", "cannot be listed (Permission denied)")]


def test_hidden_folders_are_not_entered_but_a_hidden_root_is(tmp_path: Path) -> None:
    root = tmp_path / ".data"
    for name in ("seen.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "in/.ipynb_checkpoints/x.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    assert list(FolderSource(root).names()) == ["seen.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_loops_of_links_end_and_no_folder_is_read_twice(folder: Path) -> None:
    (folder / "in" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "in")
    (folder / "self.jpg").symlink_to("self.jpg")
    names = list(FolderSource(folder).names())
    assert sorted(name.split("/")[-1] for name in names) == ["a.jpg", "b.PNG", "c.txt", "self.jpg"]
    with pytest.raises(OSError):
        FolderSource(folder).read("self.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_folder_is_read_although_its_target_is_hidden(tmp_path: Path) -> None:
    (tmp_path / ".store").mkdir()
    (tmp_path / ".store" / "a.jpg").write_bytes(b"x")
    (tmp_path / "shown").symlink_to(tmp_path / ".store")
    assert list(FolderSource(tmp_path).names()) == ["shown/a.jpg"]


def test_folder_that_cannot_be_listed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"folder cannot be listed \(Permission denied\)"):
        list(FolderSource(folder).names())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipe_is_refused_instead_of_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        FolderSource(folder).read("pipe.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(folder / "pipe.jpg")


def test_missing_file_and_missing_member_raise_oserror(folder: Path, archive: Path) -> None:
    with pytest.raises(OSError):
        FolderSource(folder).read("none.jpg")
    with pytest.raises(OSError, match=r"not in archive\.zip"):
        ArchiveSource(archive).read("none.jpg")


def test_file_too_large_for_any_picture_is_refused_before_it_is_read(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", len(CONTENT["a.jpg"]))
    for source in (FolderSource(folder), ArchiveSource(archive)):
        assert source.read("a.jpg") == b"first"
        with pytest.raises(OSError, match="bomb"):
            source.read("in/b.PNG")


def test_archive_names_skip_folders_and_repeat_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as out:
        out.mkdir("male")
        out.writestr("male/a.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate name"):
            out.writestr("male/a.jpg", b"new")
    assert list(ArchiveSource(tmp_path / "twice.zip").names()) == ["male/a.jpg"]


def test_damaged_member_raises_oserror_and_its_neighbours_stay_readable(archive: Path) -> None:
    source = ArchiveSource(damage(archive, b"second", b"sEcond"))
    with pytest.raises(OSError, match="damaged"):
        source.read("in/b.PNG")
    assert source.read("a.jpg") == b"first"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_of_each_compression_raises_oserror(tmp_path: Path, method: int) -> None:
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("a.jpg", bytes(range(256)) * 8)
    data = bytearray(path.read_bytes())
    data[50:70] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        ArchiveSource(path).read("a.jpg")


def test_encrypted_member_raises_oserror(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flag in the member's own header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory's entry
    archive.write_bytes(data)
    with pytest.raises(OSError, match="encrypted"):
        ArchiveSource(archive).read("a.jpg")


def test_pickled_archive_holds_no_open_file_and_reads_on(archive: Path) -> None:
    read = ArchiveSource(archive)
    read.read("a.jpg")
    source = pickle.loads(pickle.dumps(read))
    assert source._file is None
    assert {name: source.read(name) for name in source.names()} == CONTENT


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods()[:2])
def test_archive_is_read_by_another_process_while_this_one_reads(
    tmp_path: Path, method: str
) -> None:
    content = {f"{i}.jpg": bytes([i]) * 5_000 for i in range(60)}
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as out:
        for name, data in content.items():
            out.writestr(name, data)
    source = ArchiveSource(tmp_path / "many.zip")
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        there = pool.map(source.read, content)
        here = [source.read(name) for name in content]
        assert list(there) == here == list(content.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_forked_archive_does_not_move_the_parents_file_position(
    tmp_path: Path, method: int
) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", method) as out:
        for name, content in CONTENT.items():
            out.writestr(name, content)
    source = ArchiveSource(tmp_path / "packed.zip")
    source.read("a.jpg")
    assert source._file is not None
    child = os.fork()
    if child == 0:
        os._exit(0 if source.read("a.jpg") == b"first" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert source._file.tell() == 0 and source.read("in/b.PNG") == b"second"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_archive_is_read_by_threads_where_there_is_no_pread(
    tmp_path: Path, method: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pread", raising=False)
    content = {f"{i}.jpg": bytes([i]) * 3_000 for i in range(40)}
    with zipfile.ZipFile(tmp_path / "many.zip", "w", method) as out:
        for name, data in content.items():
            out.writestr(name, data)
    source = ArchiveSource(tmp_path / "many.zip")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, list(content) * 5)) == list(content.values()) * 5


def test_member_that_unpacks_to_more_than_it_announces_is_refused_and_not_unpacked(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.jpg", bytes(20_000_000))
    full = struct.pack("<L", zlib.crc32(bytes(20_000_000))), struct.pack("<L", 20_000_000)
    data = path.read_bytes()
    assert data.count(full[0]) == data.count(full[1]) == 2
    data = data.replace(full[0], struct.pack("<L", zlib.crc32(bytes(5))))
    path.write_bytes(data.replace(full[1], struct.pack("<L", 5)))
    source = ArchiveSource(path)
    tracemalloc.start()
    with pytest.raises(OSError, match="bomb"):
        source.read("a.jpg")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


@settings(deadline=None, max_examples=80)
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8).map(
            lambda text: f"{text}a"
        ),
        max_size=5,
        unique=True,
    ),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    comment=st.sampled_from([b"", b"words"]),
    before=st.sampled_from([b"", b"#!/bin/sh\n"]),
    many=st.booleans(),
)
def test_directory_is_read_as_zipfile_reads_it(
    names: list[str],
    method: int,
    comment: bytes,
    before: bytes,
    many: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with (
        pytest.MonkeyPatch.context() as patch,
        zipfile.ZipFile(path, "w", method) as out,
    ):
        if many:  # or what an archive of more members than this has at its end
            patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
        for i, name in enumerate(names):
            out.writestr(name, bytes([i]) * 50)
        out.comment = comment
        out.close()
    path.write_bytes(before + path.read_bytes())
    source = ArchiveSource(path)
    expected = source._directory_by_zipfile()
    assert files._read_directory(path) == (None if before else expected)
    with zipfile.ZipFile(path) as opened:
        contents = {files._member_name(info): opened.read(info) for info in opened.infolist()}
    outside = {name for name, _ in source.unlisted}
    assert outside == {name for name in contents if files.is_outside(name)}
    inside = {name: data for name, data in contents.items() if name not in outside}
    assert {name: source.read(name) for name in inside} == inside


def test_threads_share_one_archive(archive: Path) -> None:
    source = ArchiveSource(archive)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, list(CONTENT) * 50)) == list(CONTENT.values()) * 50


def test_what_is_neither_folder_nor_archive_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(InputError, match="neither a folder nor"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "none")


def test_half_downloaded_archive_is_called_so(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cannot be read as a \.zip archive"):
        open_source(archive)


@pytest.mark.parametrize(
    "name", [".a.jpg", "in/.a.jpg", ".git/a.jpg", "__MACOSX/a.jpg", "x/.ipynb_checkpoints/a.jpg"]
)
def test_hidden_names(name: str) -> None:
    assert is_hidden(name)
    assert image_names([name, "b.jpg"]) == ["b.jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "in/a.b.jpg", "../a.jpg", "./a.jpg", "MACOSX/a.jpg"])
def test_visible_names(name: str) -> None:
    assert not is_hidden(name)


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("a.JPG", True),
        ("A.JpEg", True),
        ("лицо.PNG", True),
        ("a.webp", True),
        ("jpg", False),
        ("a.jpg.txt", False),
        ("a.jpg/readme", False),
        ("Thumbs.db", False),
        ("a.zip", False),
    ],
)
def test_suffix_tells_a_picture_in_any_case(name: str, picture: bool) -> None:
    assert has_image_suffix(name) is picture


def test_write_is_invisible_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"

    write_atomically(target, write)
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, SystemExit])
def test_interrupted_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "out.json").write_bytes(b"old")
    before = snapshot(tmp_path)

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "out.json", write)
    assert snapshot(tmp_path) == before


def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_bytes(b"old")
    before = snapshot(tmp_path)

    def write(file: IO[bytes]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"out\.json cannot be written \(No space left"):
        write_atomically(tmp_path / "out.json", write)
    assert snapshot(tmp_path) == before


def test_write_without_a_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "none" / "out.json", lambda file: file.write(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_copy_replaces_the_target(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    copy_atomically(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes() == b"new"


def writable(path: Path) -> Path:
    return path / "out.csv"


def in_no_folder(path: Path) -> Path:
    return path / "none" / "out.csv"


def under_a_file(path: Path) -> Path:
    (path / "file").write_bytes(b"")
    return path / "file" / "out.csv"


@pytest.mark.parametrize("place", [in_no_folder, under_a_file, Path])
def test_places_that_cannot_be_written_are_told_before_the_work(
    tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    check_output(writable(tmp_path), [])
    with pytest.raises(InputError, match=r"cannot be written|is a folder"):
        check_output(place(tmp_path), [])


def test_read_only_folder_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission"):
        check_output(writable(tmp_path), [])


def test_zip_with_backslashes_as_windows_powershell_writes_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = "male\\1.jpg"
        archive.writestr(info, b"bytes")
    source = open_source(tmp_path / "w.zip")
    assert list(source.names()) == ["male/1.jpg"]
    assert source.read("male/1.jpg") == b"bytes"


def test_threads_that_read_first_at_once_share_one_file(tmp_path: Path) -> None:
    """A second file that replaced the first would close it in the middle of another's read."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jpg", b"bytes")
    for _ in range(200):
        source = open_source(tmp_path / "a.zip")
        assert isinstance(source, ArchiveSource)
        barrier = threading.Barrier(8)

        def read(_: int, source: ArchiveSource = source, barrier: threading.Barrier = barrier):
            barrier.wait()
            return source.read("x.jpg"), id(source._opened())

        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(read, range(8)))
        assert found == {(b"bytes", id(source._file))}
