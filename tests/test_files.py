"""Files are written whole or not at all, and never over what the user has."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import snapshot

from face_gender import files
from face_gender.errors import InputError
from face_gender.files import (
    check_output,
    copy_atomically,
    has_image_suffix,
    remove_leftovers,
    write_atomically,
)


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


def test_a_file_can_take_a_links_place_at_once(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    found = []

    def write(file: IO[bytes]) -> None:
        found.append(link.read_text())
        file.write(b"new")

    write_atomically(link, write, through_links=False)
    assert found == ["old"]  # until then, nothing is missing
    assert not link.is_symlink() and link.read_text() == "new"
    assert target.read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="other limits elsewhere")
def test_where_a_link_leads_and_how_long_a_name_may_be_are_told_before_the_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "r.json").symlink_to(tmp_path / "gone" / "x.json")
    with pytest.raises(InputError, match=r"no folder .*gone"):
        check_output(tmp_path / "r.json", [])
    for length, fits in ((241, True), (242, False)):
        path = tmp_path / ("x" * length)
        if fits:
            check_output(path, [])
            write_atomically(path, lambda file: file.write(b"new"))
        else:
            with pytest.raises(InputError, match="too long a name"):
                check_output(path, [])


def test_a_drive_that_gives_a_file_in_parts_gives_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InParts(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(7)

        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:7])

    content = bytes(range(256)) * 100
    (tmp_path / "a.jpg").write_bytes(content)
    monkeypatch.setattr(files, "open_regular", lambda path: InParts(path))
    assert files.read_file(tmp_path / "a.jpg") == content


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


def test_a_file_that_another_program_has_open_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where no file is replaced that a spreadsheet or a scanner of viruses reads."""
    target, busy, replace = tmp_path / "out.json", [1, 2], Path.replace

    def refused(path: Path, other: Path) -> Path:
        if busy:
            busy.pop()
            raise PermissionError(13, "Access is denied")
        return replace(path, other)

    monkeypatch.setattr(files, "PAUSES", (0, 0))
    monkeypatch.setattr(Path, "replace", refused)
    write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"
    busy += [1, 2, 3]
    with pytest.raises(InputError, match=r"Access is denied.*close it in other"):
        write_atomically(target, lambda file: file.write(b"newer"))
    assert snapshot(tmp_path).keys() == {"out.json"}


def test_write_without_a_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "none" / "out.json", lambda file: file.write(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_copy_replaces_the_target(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    copy_atomically(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["none/out.csv", "file/out.csv", ""])
def test_places_that_cannot_be_written_are_told_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    check_output(tmp_path / "out.csv", [])
    with pytest.raises(InputError, match=r"cannot be written|is a folder"):
        check_output(tmp_path / name, [])


def test_read_only_folder_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission"):
        check_output(tmp_path / "out.csv", [])


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.0123abcd.tmp", ".b.json.0123abcd.tmp", "a.json", ".a.json.tmp"):
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path, "a.json", seconds=3600)  # another process may be writing it
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(tmp_path, "a.json")
    assert {p.name for p in tmp_path.iterdir()} == {".b.json.0123abcd.tmp", "a.json", ".a.json.tmp"}


def test_output_is_no_link_to_a_picture(tmp_path: Path) -> None:
    """A link is written through, so that the picture would be lost."""
    (tmp_path / "face.jpg").write_bytes(b"x")
    (tmp_path / "link.json").symlink_to(tmp_path / "face.jpg")
    with pytest.raises(InputError, match="never replaced"):
        check_output(tmp_path / "link.json", [])


def test_two_outputs_that_are_not_there_yet_are_not_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never replaced"):
        check_output(tmp_path / "new.html", [tmp_path / "sub" / ".." / "new.html"])
