"""The notebook tells its story from the first cell to the last."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

import face_gender.plots

NOTEBOOK = ROOT / "train.ipynb"


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


def test_every_figure_of_the_package_is_shown_or_written(cells: list[dict]) -> None:
    tool = (ROOT / "tools" / "readme_picture.py").read_text(encoding="utf-8")
    command = (ROOT / "face_gender" / "evaluate" / "__main__.py").read_text(encoding="utf-8")
    text = tool.replace("predictions_grid(", "plots.predictions_grid(") + command
    text += "".join("".join(cell["source"]) for cell in cells)
    for name, value in vars(face_gender.plots).items():
        own = getattr(value, "__module__", "") == "face_gender.plots"
        if own and callable(value) and not name.startswith("_"):
            assert f"plots.{name}(" in text


def test_it_runs_on_the_samples(tmp_path: Path) -> None:
    for name in ("face_gender", "samples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "model_weights").mkdir()
    shutil.copy(ROOT / "model_weights" / "shipped.pth", tmp_path / "model_weights")
    (tmp_path / "samples" / "index.csv").unlink(missing_ok=True)
    shutil.copy(ROOT / "process.py", tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        # One epoch: learning is tested elsewhere.
        cell.source = cell.source.replace("CHANGES = {", 'CHANGES = {"epochs": 1, ')
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    answers = json.loads((tmp_path / "process_results.json").read_text(encoding="utf-8"))
    assert len(answers) == 60
    assert set(answers.values()) <= {"male", "female"}
    weights = tmp_path / "model_weights"
    assert (weights / "best.pth").read_bytes() == (weights / "resnet18_tuned/best.pth").read_bytes()
    assert not list(tmp_path.glob("samples/*/*.pth"))
