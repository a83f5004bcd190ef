"""A data set of any size as parts, on a disk or in an object store."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_faces, snapshot
from sentences import sentence

from face_gender.data.sources import find_images
from face_gender.errors import InputError

pa = pytest.importorskip("pyarrow", reason="needs requirements-scale.txt")
fsspec = pytest.importorskip("fsspec", reason="needs requirements-scale.txt")
pq = pytest.importorskip("pyarrow.parquet", reason="needs requirements-scale.txt")

from face_gender.parts import (
    Place,
    Plan,
    answers_schema,
    finish,
    folder_of,
    make_plan,
    part_name,
    rows_of_part,
    write_answers,
)

SETTINGS = {"part_size": 7, "weights": "abc"}


def plan_of(
    source: Path | str, output: Path | str, recursive: bool = True, **other: object
) -> Plan:
    places = Place.named(str(source)), Place.named(str(output))
    return make_plan(*places, recursive, {**SETTINGS, **other})


def rows_of(plan: Plan, batch_size: int = 4) -> list[list[dict]]:
    """The rows of each part."""
    parts = []
    for job in plan.table.to_pylist():
        batches = list(rows_of_part(plan.source, job["file"], job["row_group"], batch_size))
        columns = {name: [v for each in batches for v in each[name]] for name in batches[0]}
        assert max(len(each["path"]) for each in batches) <= batch_size
        assert len(columns["path"]) == job["rows"]
        rows = zip(*columns.values(), strict=True)
        parts.append([dict(zip(columns, row, strict=True)) for row in rows])
    return parts


def names_of(plan: Plan) -> list[str]:
    return [row["path"] for part in rows_of(plan) for row in part]


def answer(plan: Plan, output: Path, parts: list[int]) -> None:
    """Write something for these parts."""
    place, schema = Place.named(str(output)), answers_schema(("male", "female"))
    for part in parts:
        write_answers(place, part, [], schema)


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store without a network: fsspec's, in this process."""
    filesystem = fsspec.filesystem("memory")
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True) if filesystem.exists("/bucket") else None


@pytest.mark.parametrize("recursive", [True, False])
def test_a_folder_gives_the_names_that_process_takes(tmp_path: Path, recursive: bool) -> None:
    data = make_faces(tmp_path / "data", 10, 9)
    for name in ("a.jpg", "b.JPG", "notes.txt", ".hidden.jpg", ".cache/c.jpg", "male/d.txt"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"x")
    before = snapshot(data)
    plan = plan_of(data, tmp_path / "out", recursive)
    assert sorted(names_of(plan)) == find_images(data, recursive)[1]
    assert [len(part) for part in rows_of(plan)] == ([7, 7, 7] if recursive else [2])
    assert snapshot(data) == before


def test_more_names_than_a_file_holds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("face_gender.parts._GROUPS", 2)
    data = make_faces(tmp_path / "data", 20, 15)
    plan = plan_of(data, tmp_path / "out")
    assert len(os.listdir(tmp_path / "out" / "_names")) == 3
    assert sorted(names_of(plan)) == find_images(data, True)[1]


def test_a_plan_stays_when_the_folder_changes(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 10, 9)
    first = plan_of(data, tmp_path / "out")
    (data / "new.jpg").write_bytes(b"x")
    (data / "male" / "m_3.jpg").unlink()
    again = plan_of(data, tmp_path / "out")
    assert names_of(again) == names_of(first)
    answer(again, tmp_path / "out", [0, 2])
    assert again.missing(Place.named(str(tmp_path / "out"))) == [1]


def test_names_of_a_plan_that_was_never_finished_are_forgotten(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 4, 4)
    stale = tmp_path / "out" / "_names"
    stale.mkdir(parents=True)
    pq.write_table(pa.table({"path": ["gone.jpg"]}), stale / "000007.parquet")
    plan = plan_of(data, tmp_path / "out")
    assert sorted(names_of(plan)) == find_images(data, True)[1]
    assert os.listdir(stale) == ["000000.parquet"]


def test_paths_in_several_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    names = [f"/data/{i % 20}.jpg" for i in range(30)] + [None]  # a name twice is two rows
    pq.write_table(pa.table({"path": names[:20]}), folder / "a.parquet", row_group_size=3)
    pq.write_table(pa.table({"path": names[20:], "id": range(11)}), folder / "b.parquet")
    (folder / "_SUCCESS").write_text("")
    plan = plan_of(folder, tmp_path / "out")
    assert names_of(plan) == names
    assert plan.pictures == 31
    assert plan.table["rows"].to_pylist() == [7, 7, 7, 7, 3]


@pytest.mark.parametrize("named", [True, False])
def test_bytes_stay_where_they_are_a_row_group_a_part(tmp_path: Path, named: bool) -> None:
    data = [bytes([i]) for i in range(10)]
    columns = {"bytes": data} | ({"path": [f"{i}.jpg" for i in range(10)]} if named else {})
    pq.write_table(pa.table(columns), tmp_path / "faces.parquet", row_group_size=4)
    plan = plan_of(tmp_path / "faces.parquet", tmp_path / "out")
    assert [len(part) for part in rows_of(plan, 3)] == [4, 4, 2]
    rows = [row for part in rows_of(plan, 3) for row in part]
    assert [row["bytes"] for row in rows] == data
    assert [row["path"] for row in rows] == [
        f"{i}.jpg" if named else f"faces.parquet#{i}" for i in range(10)
    ]
    assert not (tmp_path / "out" / "_names").exists()
    assert names_of(plan_of(tmp_path / "faces.parquet", tmp_path / "out")) == names_of(plan)


def test_an_object_store(tmp_path: Path, bucket: str) -> None:
    data = make_faces(tmp_path / "data", 10, 9)
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{data}/", "/bucket/faces/", recursive=True)
    filesystem.pipe("/bucket/faces/.hidden/h.jpg", b"x")
    filesystem.pipe("/bucket/faces/notes.txt", b"x")
    source = Place.named(f"{bucket}/faces")
    plan = plan_of(f"{bucket}/faces", f"{bucket}/out")
    assert sorted(names_of(plan)) == find_images(data, True)[1]
    name = names_of(plan)[0]
    assert source.picture(name) == (data / name).read_bytes()
    assert source.picture(f"{bucket}/faces/{name}") == (data / name).read_bytes()
    assert source.picture(str(data / name)) == (data / name).read_bytes()
    output = Place.named(f"{bucket}/out")
    for part in plan.missing(output):
        rows = {"path": [f"p{part}"], "label": [None], "confidence": [0.5], "male": [0.5],
                "female": [0.5], "error": [None]}  # fmt: skip
        write_answers(output, part, [rows], answers_schema(("male", "female")))
    finish(plan, output)
    assert "_SUCCESS" in output.listed()
    written = [
        output.inside(part_name(part)).parquet().read()["path"][0].as_py() for part in (0, 2)
    ]
    assert written == ["p0", "p2"]


def test_a_uri_of_a_disk_is_that_disk(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "some data", 3, 3)
    plan = plan_of(f"file://{tmp_path}/some data", f"file://{tmp_path}/out")
    assert sorted(names_of(plan)) == find_images(data, True)[1]
    place = pickle.loads(pickle.dumps(Place.named(f"file://{tmp_path}/some data")))
    assert place.picture("male/m_0.jpg") == (data / "male" / "m_0.jpg").read_bytes()
    odd = data / "50% #1 ?.jpg"
    odd.write_bytes(b"odd")
    assert Place.named("/").picture(f"file://{odd}") == b"odd"


@pytest.mark.parametrize("top", ["", "memory://bucket/", "file://{tmp}/"])
def test_a_picture_that_is_not_there_is_an_error_in_words(tmp_path: Path, top: str, bucket) -> None:
    top = top.format(tmp=tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        Place.named(str(tmp_path)).picture(f"{top}no.jpg")
    assert caught.value.strerror == "No such file or directory"


def test_what_no_file_system_knows_is_an_error_of_that_row(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        Place.named(str(tmp_path)).picture("nothing://bucket/a.jpg")


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes are Linux's")
def test_a_name_that_parquet_cannot_hold_is_told(tmp_path: Path, capsys) -> None:
    data = make_faces(tmp_path / "data", 3, 3)
    os.rename(data / "male" / "m_0.jpg", os.fsencode(data / "male") + b"/\xff.jpg")
    assert len(names_of(plan_of(data, tmp_path / "out"))) == 5
    assert capsys.readouterr().err == "skipped: 'male/\\udcff.jpg': its name is not UTF-8\n"


def test_the_end_is_said_when_all_is_there(tmp_path: Path) -> None:
    plan = plan_of(make_faces(tmp_path / "data", 10, 9), tmp_path / "out")
    output = Place.named(str(tmp_path / "out"))
    answer(plan, tmp_path / "out", [0, 2])
    leftover = tmp_path / "out" / ".part-00000001.parquet.0a1b.tmp"
    leftover.write_bytes(b"half")
    with pytest.raises(InputError) as caught:
        finish(plan, output)
    assert "lacks 1 parts" in sentence(caught)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    answer(plan, tmp_path / "out", [1])
    finish(plan, output)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert not leftover.exists()


def test_jobs_hold_every_part_once(tmp_path: Path) -> None:
    plan = plan_of(make_faces(tmp_path / "data", 10, 9), tmp_path / "out", part_size=2)
    for pieces in (1, 3, 100):
        jobs = plan.jobs([1, 2, 5, 9], pieces)
        assert [part for job in jobs for part in job["part"].to_pylist()] == [1, 2, 5, 9]
    assert [len(job) for job in plan.jobs(list(range(10)), 3)] == [3, 3, 3, 1]


def refused(source: Path | str, output: Path | str, **other: object) -> str:
    with pytest.raises(InputError) as caught:
        plan_of(source, output, **other)
    return sentence(caught)


def test_results_are_never_mixed(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 3, 3)
    plan_of(data, tmp_path / "out")
    assert "another weights" in refused(data, tmp_path / "out", weights="other")
    assert "part_size and weights" in refused(data, tmp_path / "out", part_size=9, weights="o")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    assert "mine holds other files" in refused(data, tmp_path / "mine")
    assert "is a file" in refused(data, tmp_path / "mine" / "precious.txt")
    below_a_file = refused(data, tmp_path / "mine" / "precious.txt" / "out")
    assert "precious.txt/out" in below_a_file
    assert "(Not a directory)" in below_a_file
    assert os.listdir(tmp_path / "mine") == ["precious.txt"]


def test_inputs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    pq.write_table(pa.table({"image": ["a"]}), tmp_path / "other.parquet")
    assert "does not exist" in refused(tmp_path / "no", out)
    assert "holds no pictures" in refused(tmp_path / "empty", out)
    assert "neither a folder nor a .parquet" in refused(tmp_path / "notes.txt", out)
    assert "cannot be read as parquet" in refused(tmp_path / "bad.parquet", out)
    assert "(but image)" in refused(tmp_path / "other.parquet", out)
    assert "cannot be opened" in refused("nothing://bucket/faces", out)


def test_relative_paths_are_relative_to_the_folder_of_their_list(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 1, 0)
    pq.write_table(pa.table({"path": ["male/m_0.jpg"]}), data / "list.parquet")
    base = folder_of(Place.named(str(data / "list.parquet")))
    assert base.picture("male/m_0.jpg") == (data / "male" / "m_0.jpg").read_bytes()
    assert folder_of(Place.named(str(data))).path == str(data)
