"""Predictions kept beside the output: what is read again is what was written, or nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest
from conftest import nearly_full
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import sentence

from face_gender.classify.results import Prediction, Result, Skipped
from face_gender.classify.resume import keep_results, partial_path, read_partial, remove_partial
from face_gender.data.sources import FolderSource
from face_gender.errors import InputError

CLASSES = ("male", "female")
ORIGIN = {"weights": ["abc"], "classes": list(CLASSES), "device": "cpu"}
NAMES = [f"{i}.jpg" for i in range(7)]


class Stamped(FolderSource):
    """A folder in which every name is there; ``stamps`` differ from those of all other names."""

    def __init__(self, stamps: dict[str, tuple[int, int]] | None = None) -> None:
        super().__init__(Path())
        self.stamps = stamps or {}

    def stamp(self, name: str) -> tuple[int, int]:
        return self.stamps.get(name, (1, 2))


def predicted(name: str) -> Prediction:
    first = (hash(name) % 1000) / 1001
    return Prediction(name, CLASSES, (first, 1 - first))


def classify(names: Iterable[str]) -> Generator[Result, None, None]:
    """As `classifier.classify`, which asks for names ahead of its results."""
    names = list(names)
    yield from map(predicted, names)


def read(output: Path, names: list[str], source: FolderSource | None = None):  # type: ignore[no-untyped-def]
    return read_partial(partial_path(output), ORIGIN, source or Stamped(), names)


def write(
    output: Path,
    names: list[str],
    resume: bool = False,
    source: FolderSource | None = None,
    by=classify,  # type: ignore[no-untyped-def]
) -> list[Result]:
    """Do what the command does; return all results."""
    known = read(output, names, source) if resume else {}
    path = partial_path(output)
    return list(keep_results(path, ORIGIN, source or Stamped(), names, known, by))


def all_of(names: Iterable[str]) -> dict[str, Prediction]:
    return {name: predicted(name) for name in names}


not_utf8 = st.binary(min_size=1).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
any_name = st.one_of(
    st.text(st.characters(codec=None, exclude_categories=()), min_size=1), not_utf8
)


@settings(deadline=None, max_examples=40)
@given(scores=st.dictionaries(any_name, st.tuples(st.floats(0, 1), st.floats(0, 1))))
def test_what_is_read_is_what_was_written(scores: dict[str, tuple[float, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "r.json"
        expected = {name: Prediction(name, CLASSES, both) for name, both in scores.items()}
        names = list(scores)
        results = write(output, names, by=lambda rest: (expected[name] for name in rest))
        assert results == list(expected.values())
        assert read(output, names) == expected
        remove_partial(partial_path(output))
        assert list(Path(folder).iterdir()) == []


def test_a_file_cut_at_any_byte_is_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    whole = partial_path(output).read_bytes()
    assert whole.count(b"\n") == 1 + len(NAMES)  # a header, then a line for each
    for length in range(len(whole) + 1):
        partial_path(output).write_bytes(whole[:length])
        known = read(output, NAMES)
        assert known == all_of(NAMES[: len(known)])
        results = write(output, NAMES, resume=True)
        assert results == list(all_of(NAMES).values())
        assert read(output, NAMES) == all_of(NAMES), length


def test_a_damaged_line_costs_its_picture_alone(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    lines = partial_path(output).read_bytes().splitlines(keepends=True)
    row = json.loads(lines[1])
    damages = [b"\0" * 40, b"\xff\xfe", b"[]", b"7", b"null", b"{}", b"", b"[" * 100_000]
    for change in (
        {"name": ["0.jpg"]}, {"name": None}, {"stamp": 1}, {"stamp": [9, 9]}, {"faces": 5},
        {"faces": []}, {"faces": [[[0.5], None]]}, {"faces": [[[0.5, float("nan")], None]]},
        {"faces": [[[0.5, "x"], None]]}, {"faces": [[[0.5, 0.5], [1, 2, 3]]]},
        {"faces": [[[0.5, 0.5], [1, 2, 3, "x"]]]},
    ):  # fmt: skip
        damages.append(json.dumps({**row, **change}).encode())
    for damage in damages:
        partial_path(output).write_bytes(lines[0] + damage + b"\n" + b"".join(lines[2:]))
        assert read(output, NAMES) == all_of(NAMES[1:]), damage[:50]


def test_changed_and_added_pictures_alone_are_predicted_anew(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    changed = Stamped({"1.jpg": (1, 3), "4.jpg": (2, 2)})
    wanted = [*NAMES[:6], "new.jpg"]
    assert read(output, wanted, changed) == all_of(["0.jpg", "2.jpg", "3.jpg", "5.jpg"])
    asked: list[str] = []

    def ask(names: Iterable[str]) -> Generator[Result, None, None]:
        asked.extend(names)
        yield from map(predicted, asked)

    results = write(output, wanted, True, changed, ask)
    assert asked == ["1.jpg", "4.jpg", "new.jpg"]
    assert sorted(results, key=lambda each: each.name) == list(all_of(wanted).values())
    assert read(output, wanted, changed) == all_of(wanted)


def test_skipped_pictures_and_those_that_change_meanwhile_are_not_kept(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    source = Stamped()

    def change(names: Iterable[str]) -> Generator[Result, None, None]:
        for name in names:
            source.stamps["a"] = (1, 3)  # behind the back of who reads it
            yield predicted(name) if name == "a" else Skipped(name, "empty file")

    assert len(write(output, ["a", "b"], source=source, by=change)) == 2
    assert read(output, ["a", "b"], source) == {}


def test_a_file_that_is_gone_when_it_is_stamped_is_not_kept(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    (tmp_path / "a.jpg").write_bytes(b"here")
    source = FolderSource(tmp_path)
    write(output, ["a.jpg", "gone.jpg"], source=source)
    (tmp_path / "gone.jpg").write_bytes(b"back")
    assert read(output, ["a.jpg", "gone.jpg"], source) == all_of(["a.jpg"])


@pytest.mark.parametrize("key", [*ORIGIN, "face_gender_partial"])
def test_what_another_net_predicted_is_refused(key: str, tmp_path: Path) -> None:
    path = partial_path(tmp_path / "r.json")
    write(tmp_path / "r.json", NAMES)
    header, *rows = path.read_bytes().splitlines(keepends=True)
    other = json.dumps({**json.loads(header), key: "other"}).encode() + b"\n"
    older = b'{"face_gender_journal": 1}\n'
    for line in (
        other,
        older,
        b'{"face_gender_partial": \n',
        b'{"face_gender_' + b"[" * 9999 + b"\n",
    ):
        path.write_bytes(line + b"".join(rows))
        what = key if line == other and key in ORIGIN else "version"
        with pytest.raises(InputError, match=f"different {what}: run without --resume") as caught:
            read(tmp_path / "r.json", NAMES)
        sentence(caught)


def test_nothing_is_touched_before_the_first_prediction(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    before = partial_path(output).read_bytes()
    write(output, NAMES, by=lambda names: (Skipped(name, "empty file") for name in names))
    assert partial_path(output).read_bytes() == before
    write(output, ["b"])
    assert read(output, [*NAMES, "b"]) == all_of(["b"])


def test_what_is_no_partial_result_is_never_written_over(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "r.json.partial"

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            partial_path(tmp_path / "r.json")
        sentence(caught)

    for content in (b"{}", b"my notes", b'{"other": 1}', b"\n"):
        path.write_bytes(content)
        refused("something else")
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    refused("cannot be written")
    path.rmdir()
    for target in ("elsewhere", "nowhere"):
        (tmp_path / "elsewhere").write_bytes(b"")
        path.symlink_to(tmp_path / target)
        refused("cannot be written")
        path.unlink()
    path.write_bytes(b"")
    assert partial_path(tmp_path / "r.json") == path
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    refused("cannot be written")


def test_a_disk_that_fills_up_at_any_byte_is_a_sentence_and_keeps_the_rest(
    tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "r.json"
    write(output, NAMES)
    length = len(partial_path(output).read_bytes())
    for room in range(0, length, 7):
        with monkeypatch.context() as patch:
            patch.setattr("face_gender.classify.resume.open", nearly_full(room), raising=False)
            with pytest.raises(InputError, match="No space left on device") as caught:
                write(output, NAMES)
        assert "--resume" in sentence(caught)
        assert read(output, NAMES).items() <= all_of(NAMES).items()
        write(output, NAMES, resume=True)
        assert read(output, NAMES) == all_of(NAMES)


def test_an_interruption_reaches_what_classifies(tmp_path: Path) -> None:
    """Which then does not wait for its threads."""
    told: list[BaseException] = []

    def endless(names: Iterable[str]) -> Generator[Result, None, None]:
        try:
            yield from map(predicted, names)
        except KeyboardInterrupt as error:
            told.append(error)
            raise

    path = partial_path(tmp_path / "r.json")
    stream = keep_results(path, ORIGIN, Stamped(), NAMES, {}, endless)
    assert next(stream) == predicted(NAMES[0])
    with pytest.raises(KeyboardInterrupt) as caught:
        stream.throw(KeyboardInterrupt())
    assert told == [caught.value]
    assert read(tmp_path / "r.json", NAMES) == all_of(NAMES[:1])


def test_what_killed_runs_left_beside_the_result_is_removed_with_it(tmp_path: Path) -> None:
    output = tmp_path / "[a] results.json"
    left = tmp_path / ".[a] results.json.0123abcd.tmp"
    others = [tmp_path / ".b.json.0123abcd.tmp", tmp_path / ".[a] results.json.backup.tmp"]
    for path in (left, *others):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    others.append(tmp_path / ".[a] results.json.4567cdef.tmp")  # which another run is writing
    others[-1].write_bytes(b"half")
    write(output, NAMES)
    remove_partial(partial_path(output))
    assert not left.exists()
    assert all(path.exists() for path in others)
