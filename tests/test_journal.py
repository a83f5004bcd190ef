"""Answers kept beside the output: what is read again is what was written, or nothing."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from conftest import draw_face, make_zip
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import sentence

from face_gender.classify.resume import Journal, Scores
from face_gender.data.sources import FolderSource, open_source
from face_gender.errors import InputError

ORIGIN = {"weights": ["abc"], "classes": ["male", "female"], "device": "cpu"}
NAMES = [f"{i}.jpg" for i in range(7)]


class Stamped(FolderSource):
    """A folder in which every name is there; ``stamps`` differ from those of all other names."""

    def __init__(self, stamps: dict[str, tuple[int, int]] | None = None) -> None:
        super().__init__(Path())
        self.stamps = stamps or {}

    def stamp(self, name: str) -> tuple[int, int]:
        return self.stamps.get(name, (1, 2))


def scores_of(name: str) -> Scores:
    first = (hash(name) % 1000) / 1001
    return first, 1 - first


def write(output: Path, names: list[str], batch_size: int = 3, resume: bool = False) -> Journal:
    """Answer what is not known, as `classify` does."""
    journal = Journal(output)
    if resume:
        journal.resume(ORIGIN, Stamped(), names, 2)
    else:
        journal.begin(ORIGIN)
    batches = [names[i : i + batch_size] for i in range(0, len(names), batch_size)]
    for batch in journal.unanswered(Stamped(), batches):
        journal.keep((name, scores_of(name)) for name in batch)
    return journal


def read(output: Path, names: list[str], source: FolderSource | None = None) -> dict[str, Scores]:
    journal = Journal(output)
    journal.resume(ORIGIN, source or Stamped(), names, 2)
    return journal.known


def all_scores(names: list[str]) -> dict[str, Scores]:
    return {name: scores_of(name) for name in names}


not_utf8 = st.binary(min_size=1).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
any_name = st.one_of(
    st.text(st.characters(codec=None, exclude_categories=()), min_size=1), not_utf8
)


@settings(deadline=None, max_examples=60)
@given(
    answers=st.dictionaries(any_name, st.tuples(st.floats(0, 1), st.floats(0, 1))),
    batch_size=st.integers(1, 5),
)
def test_what_is_read_is_what_was_written(answers: dict[str, Scores], batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "r.json"
        journal = Journal(output)
        journal.begin(ORIGIN)
        names = list(answers)
        batches = [names[i : i + batch_size] for i in range(0, len(names), batch_size)]
        for batch in journal.unanswered(Stamped(), batches):
            journal.keep((name, answers[name]) for name in batch)
        known = read(output, names)
        assert known == answers
        assert list(known) == names
        journal.remove()
        assert list(Path(folder).iterdir()) == []


def test_a_journal_cut_at_any_byte_is_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    path = write(output, NAMES).path
    whole = path.read_bytes()
    assert read(output, NAMES) == all_scores(NAMES)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        known = read(output, NAMES)
        assert known.items() <= all_scores(NAMES).items()
        assert len(known) in (0, 3, 6, 7)  # a batch is there or not
        write(output, NAMES, resume=True)
        assert read(output, NAMES) == all_scores(NAMES), length


def test_a_line_damaged_in_the_middle_costs_its_batch_alone(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    path = write(output, NAMES).path
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (
        b"\0" * 40 + b"\n", b"\xff\xfe\n", b"[]\n", b"7\n", b"null\n", b"{}\n", b"\n",
        b'[["0.jpg", [1, 2], [0.5]]]\n', b'[["0.jpg", [1, 2], [0.5, NaN]]]\n',
        b'[["0.jpg", [1, 2], [0.5, "x"]]]\n', b'[["0.jpg", 1, [0.5, 0.5]]]\n',
        b'[["0.jpg", [1, 2], 5]]\n', b'[[["0.jpg"], [1, 2], [0.5, 0.5]]]\n', b"[" * 100_000 + b"\n",
    ):  # fmt: skip
        path.write_bytes(lines[0] + damage + b"".join(lines[2:]))
        assert read(output, NAMES) == all_scores(NAMES[3:]), damage[:50]


def test_changed_added_and_removed_pictures(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    changed = Stamped({"1.jpg": (1, 3), "4.jpg": (2, 2)})
    wanted = [*NAMES[:6], "new.jpg"]
    assert read(output, wanted, changed) == all_scores(["0.jpg", "2.jpg", "3.jpg", "5.jpg"])


def test_a_picture_answered_anew_has_its_newest_answer(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    changed = Stamped({"1.jpg": (1, 3)})
    journal = Journal(output)
    journal.resume(ORIGIN, changed, NAMES, 2)
    assert list(journal.unanswered(changed, [NAMES])) == [["1.jpg"]]
    journal.keep([("1.jpg", (0.25, 0.75))])
    assert read(output, NAMES, changed) == {**all_scores(NAMES), "1.jpg": (0.25, 0.75)}


def test_a_picture_changed_while_it_is_read_is_answered_anew(tmp_path: Path) -> None:
    draw_face("male", 1).save(tmp_path / "a.jpg")
    source = open_source(tmp_path)
    journal = Journal(tmp_path / "r.json")
    journal.begin(ORIGIN)
    for _ in journal.unanswered(source, [["a.jpg", "gone.jpg"]]):
        (tmp_path / "a.jpg").write_bytes(b"other")
        journal.keep([("a.jpg", (0.5, 0.5)), ("gone.jpg", (0.5, 0.5))])
    (tmp_path / "gone.jpg").write_bytes(b"back")
    assert read(tmp_path / "r.json", ["a.jpg", "gone.jpg"], source) == {}  # type: ignore[arg-type]


def test_the_stamp_of_a_file_and_of_a_member(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.jpg"
    path.write_bytes(b"one")
    folder = open_source(tmp_path / "in")
    archive = open_source(make_zip(tmp_path / "in", tmp_path / "one.zip"))
    before = folder.stamp("a.jpg"), archive.stamp("a.jpg")
    assert before == (folder.stamp("a.jpg"), archive.stamp("a.jpg"))
    path.write_bytes(b"two")
    os.utime(path, ns=(0, before[0][1] + 1))
    again = open_source(make_zip(tmp_path / "in", tmp_path / "two.zip"))
    assert folder.stamp("a.jpg") != before[0]
    assert again.stamp("a.jpg") != before[1]
    for source in (folder, archive):
        with pytest.raises(OSError):
            source.stamp("b.jpg")


@pytest.mark.parametrize("key", ORIGIN)
def test_a_journal_of_another_origin_is_refused(key: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", NAMES).path
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"different {key}: run without --resume") as caught:
        Journal(tmp_path / "r.json").resume({**ORIGIN, key: "other"}, Stamped(), NAMES, 2)
    sentence(caught)
    header = json.loads(before.splitlines()[0])
    path.write_bytes(json.dumps({**header, "face_gender_journal": 2}).encode() + b"\n")
    with pytest.raises(InputError, match="different version"):
        read(tmp_path / "r.json", NAMES)
    path.write_bytes(b'{"face_gender_journal": \n')
    with pytest.raises(InputError, match="different version"):
        read(tmp_path / "r.json", NAMES)


def test_nothing_is_touched_before_the_first_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", NAMES).path
    before = path.read_bytes()
    journal = Journal(tmp_path / "r.json")
    journal.begin(ORIGIN)
    for _ in journal.unanswered(Stamped(), [["a"], ["b"]]):
        journal.keep([])
    assert path.read_bytes() == before
    assert read(tmp_path / "r.json", NAMES) == all_scores(NAMES)
    write(tmp_path / "r.json", ["b"])
    assert read(tmp_path / "r.json", [*NAMES, "b"]) == all_scores(["b"])


def test_what_is_no_journal_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "r.json.partial"

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            Journal(tmp_path / "r.json")
        sentence(caught)

    for content in (b"{}", b"my notes", b'{"face_gender_journal"!', b"\n"):
        path.write_bytes(content)
        refused("something else")
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    refused("no regular file")
    path.rmdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    path.symlink_to(tmp_path / "elsewhere")
    refused("no regular file")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    refused("no regular file")


def test_a_journal_without_permission_is_refused(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "r.json", NAMES)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission") as caught:
        Journal(tmp_path / "r.json")
    sentence(caught)


class NearlyFull:
    """A file on a disk that has room for ``room`` bytes."""

    def __init__(self, path: Path, mode: str, room: int) -> None:
        self.file, self.room = open(path, mode, buffering=0), room  # noqa: SIM115

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written


def test_a_disk_that_fills_up_at_any_byte_is_a_sentence_and_keeps_the_rest(
    tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "r.json"
    length = len(write(output, NAMES).path.read_bytes())
    for room in range(0, length, 7):

        def opened(path: Path, mode: str, buffering: int = -1, room: int = room):
            return open(path, mode) if mode == "rb" else NearlyFull(path, mode, room)

        with monkeypatch.context() as patch:
            patch.setattr("face_gender.classify.resume.open", opened, raising=False)
            with pytest.raises(InputError, match="No space left on device") as caught:
                write(output, NAMES)
        assert "--resume" in sentence(caught)
        assert read(output, NAMES).items() <= all_scores(NAMES).items()
        write(output, NAMES, resume=True)
        assert read(output, NAMES) == all_scores(NAMES)


def test_what_killed_runs_left_beside_the_result_is_removed_with_it(tmp_path: Path) -> None:
    output = tmp_path / "[a] results.json"
    left = tmp_path / ".[a] results.json.0123abcd.tmp"
    others = [tmp_path / ".b.json.0123abcd.tmp", tmp_path / ".[a] results.json.backup.tmp"]
    for path in (left, *others):
        path.write_bytes(b"half")
    write(output, NAMES).remove()
    assert not left.exists()
    assert all(path.exists() for path in others)
