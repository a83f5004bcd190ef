"""examples/ray/classify.py: fast without Ray, and one run of a cluster of this machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, draw_face, encode, save_colour_net

pa = pytest.importorskip("pyarrow", reason="needs requirements-scale.txt")
pq = pytest.importorskip("pyarrow.parquet", reason="needs requirements-scale.txt")
from pyarrow.fs import LocalFileSystem  # noqa: E402

from examples.ray import classify as example  # noqa: E402
from face_gender.errors import InputError  # noqa: E402

COLUMNS = ["path", "label", "confidence", "male", "female", "error"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_net(tmp_path_factory.mktemp("net") / "net.pth")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve faces in a folder and its subfolder, a text and an empty file named as pictures."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i in range(12):
        draw_face(("male", "female")[i % 2], i).save(tmp_path / "in" / f"{i:02}.png")
    draw_face("female", 1).save(tmp_path / "in" / "deep" / "x.png")
    (tmp_path / "in" / "text.jpg").write_text("no picture")
    (tmp_path / "in" / "void.png").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_bytes(b"passed over")
    return tmp_path / "in"


def labels(folder: Path) -> dict[str, str | None]:
    found = {f"{folder}/{i:02}.png": ("male", "female")[i % 2] for i in range(12)}
    others = {f"{folder}/deep/x.png": "female", f"{folder}/text.jpg": None}
    return {**found, **others, f"{folder}/void.png": None}


def test_paths_get_labels_or_reasons(weights: Path, folder: Path) -> None:
    net = example.FaceClassifier(weights, LocalFileSystem(), threshold=0.5)
    paths = [*labels(folder), f"{folder}/gone.png", None]
    rows = net(pa.table({"path": pa.array(paths, pa.string())}))
    assert rows.column_names == COLUMNS
    assert rows["path"].to_pylist() == paths
    assert rows["label"].to_pylist() == [*labels(folder).values(), None, None]
    for row in rows.to_pylist():
        assert (row["error"] is None) == (row["label"] is not None)
        if row["label"]:
            assert math.isclose(row["male"] + row["female"], 1, abs_tol=1e-5)
            assert row["confidence"] == row[row["label"]]
    reasons = dict(zip(paths, rows["error"].to_pylist(), strict=True))
    assert reasons[f"{folder}/void.png"] == "empty file"
    assert "No such file" in reasons[f"{folder}/gone.png"]
    certain = example.FaceClassifier(weights, LocalFileSystem(), threshold=1.0)
    assert set(certain(rows)["label"].to_pylist()) == {"uncertain", None}


def test_bytes_are_read_in_place_of_paths_and_no_rows_have_all_columns(weights: Path) -> None:
    data = encode(draw_face("female", 0), "PNG")
    net = example.FaceClassifier(weights, LocalFileSystem())
    rows = net(pa.table({"path": ["a", "b"], "bytes": [data, b"text"]}))
    assert rows["label"].to_pylist() == ["female", None]
    none = net(rows.slice(0, 0))
    assert none.schema == rows.schema
    assert len(none) == 0


def test_what_is_done_is_read_from_whole_files(tmp_path: Path) -> None:
    assert example.paths_done(str(tmp_path / "new")).to_pylist() == []
    pq.write_table(pa.table({"path": ["a", "b"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "2.parquet")
    assert example.paths_done(str(tmp_path)).to_pylist() == ["a", "b"]
    data = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "3.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"3\.parquet is not whole"):
        example.paths_done(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such names")
def test_odd_names_and_foreign_files_are_sentences(tmp_path: Path, folder: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(InputError, match=r"mine\.parquet was not written by this command"):
        example.paths_done(str(tmp_path))
    os.rename(folder / "00.png", os.fsencode(folder) + b"/\xff.png")
    with pytest.raises(InputError, match=r"xff\.png'\): rename the file"):
        example.files_in(str(folder))


@pytest.mark.parametrize("wrong", [[], ["in"], ["", "out"], ["in", "out", "--workers", "0"]])
def test_usage_mistakes_exit_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main(wrong)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("given", "output"),
    [("in", "in/out"), ("in/", "in"), ("out/all.parquet", "out")],
)
def test_input_and_output_do_not_lie_in_one_another(given: str, output: str, capsys) -> None:
    assert example.main([given, output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{given} and {output} lie in one another: name another OUTPUT.")
    example.check_apart("in", "in_2")


def test_what_no_file_system_knows_is_a_sentence(capsys) -> None:
    with pytest.raises(InputError, match="nothing://a/b cannot be opened"):
        example.located("nothing://a/b")
    assert example.main(["in", "out", "--weights", "no.pth"]) == 1
    assert "no.pth does not exist" in capsys.readouterr().err


def test_ray_missing_is_a_sentence_with_its_own_cure(weights: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert example.main(["in", "out", "--weights", str(weights)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -r requirements-scale.txt" in line


@pytest.mark.slow
def test_a_cluster_of_this_machine_and_a_second_run_that_goes_on(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs requirements-scale.txt")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "examples.ray.classify", folder, output, "--weights", weights]
    settings = {**os.environ, "RAY_AUTH_MODE": "disabled"}

    def run(*more: str) -> str:
        done = subprocess.run(
            [*map(str, command), *more], cwd=ROOT, env=settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def rows() -> dict[str, str | None]:
        tables = [pq.read_table(path) for path in output.glob("*.parquet")]
        found = [row for table in tables for row in table.to_pylist()]
        assert len(found) == len({row["path"] for row in found})  # none twice
        assert all(set(row) == set(COLUMNS) for row in found)
        return {row["path"]: row["label"] for row in found}

    assert "0 pictures are there already" in run()
    assert rows() == labels(folder)
    before = set(output.iterdir())
    draw_face("male", 99).save(folder / "new.png")
    assert "15 pictures are there already" in run()
    assert rows() == {**labels(folder), f"{folder}/new.png": "male"}
    assert before < set(output.iterdir())
