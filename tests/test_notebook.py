"""The notebook tells its story from the first cell to the last."""

from __future__ import annotations

import ast
import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, python, snapshot
from nbclient import NotebookClient

import face_gender.plots

NOTEBOOK = ROOT / "train.ipynb"
# Files of samples/README.md, and how the audit may call what is wrong with them.
PLANTED = {
    "male/male_73.jpg": {"exact_duplicate"},
    "female/female_73.jpg": {"near_duplicate"},
    "male/male_74.jpg": {"near_duplicate"},
    "male/male_75.jpg": {"label"},
    "male/male_76.jpg": {"label"},
    "female/female_74.jpg": {"label"},
    "female/female_75.jpg": {"not_a_face", "no_face_found"},
    "male/male_77.jpg": {"not_a_face", "no_face_found"},
    "female/female_76.jpg": {"unreadable"},
}


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_defines_nothing_and_is_committed_without_outputs(cells: list[dict]) -> None:
    for cell in cells:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef)
            assert not any(isinstance(node, defined) for node in ast.walk(tree))
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_parameters_stand_in_the_first_code_cell(cells: list[dict]) -> None:
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert 'DATA = "samples"' in first
    assert 'RECIPE = "' in first


def test_no_later_cell_needs_what_is_passed_over_after_a_disconnect(cells: list[dict]) -> None:
    def names(some: list[dict], context: type[ast.expr_context]) -> set[str]:
        code = ("".join(cell["source"]) for cell in some if cell["cell_type"] == "code")
        nodes = (node for text in code for node in ast.walk(ast.parse(text)))
        return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)}

    start, end = (
        next(i for i, cell in enumerate(cells) if cell["source"][0].startswith(f"## {heading}"))
        for heading in ("From nothing", "After a disconnect")
    )
    known = names(cells[:start], ast.Store) | names(cells[end:], ast.Store)
    assert not (names(cells[start:end], ast.Store) - known) & names(cells[end:], ast.Load)


def test_every_figure_of_the_package_is_shown_or_written(cells: list[dict]) -> None:
    tool = (ROOT / "tools" / "readme_picture.py").read_text(encoding="utf-8")
    command = (ROOT / "face_gender" / "evaluate" / "__main__.py").read_text(encoding="utf-8")
    text = tool.replace("predictions_grid(", "plots.predictions_grid(") + command
    text += "".join("".join(cell["source"]) for cell in cells)
    for name, value in vars(face_gender.plots).items():
        own = getattr(value, "__module__", "") == "face_gender.plots"
        if own and callable(value) and not name.startswith("_"):
            assert f"plots.{name}(" in text


@pytest.mark.parametrize("missing", ["DATA", "FOLDER"])
def test_a_place_that_is_not_there_is_said_before_the_work(
    missing: str, cells: list[dict], tmp_path: Path
) -> None:
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    places = {"DATA": "samples", "FOLDER": "samples/photos"}
    first = code[0]
    for name, place in places.items():
        if name != missing:
            first = first.replace(f'{name} = "{place}"', f"{name} = {str(ROOT / place)!r}")
    done = python("-c", f"{first}\n{code[1]}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"There is no {places[missing]} here: set DATA")
    shutil.copytree(ROOT / "samples", tmp_path / "kit" / "samples")
    assert python("-c", f"{first}\n{code[1]}", cwd=tmp_path).returncode == 0


def test_it_runs_in_a_bare_folder_on_an_archive_that_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a rented machine: the package is installed, the data lie elsewhere, in a .zip."""
    data, work = tmp_path / "input", tmp_path / "work"
    shutil.copytree(ROOT / "samples", data / "samples")
    shutil.make_archive(str(data / "faces"), "zip", data / "samples")
    for path in (*data.rglob("*"), data):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(data)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # One epoch: learning is tested elsewhere.
    changes = {
        'DATA = "samples"': f"DATA = {str(data / 'faces.zip')!r}",
        'WORK = Path(".")': f"WORK = Path({str(work)!r})",
        'FOLDER = "samples/photos"': f"FOLDER = {str(data / 'samples' / 'photos')!r}",
        "RESUME = False": "RESUME = True",
        '"epochs": 3': '"epochs": 1',
        "epochs=12": "epochs=1",
    }
    for old, new in changes.items():
        assert sum(old in cell.source for cell in notebook.cells) == 1, old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(here)}}).execute()

    assert snapshot(data) == before and not list(here.iterdir())
    rows = list(csv.DictReader((work / "process_results.csv").open(encoding="utf-8")))
    faces = Counter(row["name"] for row in rows if row["face"])
    assert faces["group.jpg"] == 6 and faces["street.jpg"] == 2 and faces["far_away.jpg"] == 1
    weights = work / "model_weights"
    assert (weights / "best.pth").read_bytes() == (weights / "resnet18_tuned/best.pth").read_bytes()
    assert (weights / "from_nothing" / "compact_cnn" / "best.pth").exists()
    found = list(csv.DictReader((work / "audit" / "audit.csv").open(encoding="utf-8")))
    for name, issues in PLANTED.items():
        assert issues & {row["issue"] for row in found if name in (row["path"], row["related"])}
