"""Who may import whom, and how the code is written down: read from the source, not run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "face_gender"
# Each module may import those of the layers before its own.
LAYERS = (
    {"arguments", "augmentation", "files", "interruption", "sound"},
    {"images", "index", "journal", "metrics", "models", "devices", "parts", "preprocessing", "pth"},
    {"distributed"},
    {"recipes", "dataset"},
    {"checkpoint"},
    {"engines", "evaluation", "run_folder"},
    {"training", "inference", "robustness"},
    {"report"},
    {"plots"},
    {"evaluate", "export", "scale", "train"},
)
WITHIN_A_LAYER = {("index", "images")}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
# A command of its own on top of the others, of which none knows it.
AUDIT = sorted(f"audit/{path.stem}" for path in (PACKAGE / "audit").glob("*.py"))
AUDIT_LIBRARIES = {"cleanlab", "cleanvision", "faiss", "sklearn", "scipy"}
LONGEST_FUNCTION = 60


def tree(module: str | Path) -> ast.Module:
    path = module if isinstance(module, Path) else PACKAGE / f"{module}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module: str | Path) -> set[str]:
    """The full names that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def siblings(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    inner = (name.split(".") for name in imported(module) if name.startswith("face_gender."))
    return {parts[1] for parts in inner if parts[1] in MODULES}


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def definitions(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """Public functions, classes and their public methods, by dotted name."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.stmt]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                yield f"{prefix}.{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}.{node.name}")

    return walk(tree(module).body, module)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_has_its_place() -> None:
    assert set(MODULES) == set().union(*LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    wrong = {
        other
        for other in siblings(module)
        if layer(other) >= layer(module) and (module, other) not in WITHIN_A_LAYER
    }
    assert wrong == set()


def test_training_and_inference_never_import_each_other() -> None:
    assert "inference" not in siblings("training")
    assert "training" not in siblings("inference")


def test_plots_alone_imports_matplotlib() -> None:
    users = {
        module
        for module in MODULES
        if any(name.split(".")[0] == "matplotlib" for name in imported(module))
    }
    assert users == {"plots"}
    assert {module for module in MODULES if "plots" in siblings(module)} == {"evaluate"}


def test_training_and_commands_know_nothing_of_the_audit() -> None:
    sources = [PACKAGE / f"{module}.py" for module in ("__init__", *MODULES)]
    for path in (*sources, ROOT / "process.py", ROOT / "data_split.py"):
        names = imported(path)
        assert not {name for name in names if name.startswith("face_gender.audit")}, path
        assert {name.split(".")[0] for name in names}.isdisjoint(AUDIT_LIBRARIES), path


def test_training_and_inference_load_nothing_of_the_audit() -> None:
    code = (
        "import sys, face_gender.training, face_gender.inference, process, data_split\n"
        "print(*sys.modules)"
    )
    loaded = run_python(code).split()
    assert "face_gender.training" in loaded
    assert not [name for name in loaded if name.startswith("face_gender.audit")]
    assert {name.split(".")[0] for name in loaded}.isdisjoint(AUDIT_LIBRARIES)


def test_the_libraries_of_the_audit_are_in_its_requirements_alone() -> None:
    own = (ROOT / "requirements-audit.txt").read_text(encoding="utf-8")
    plain = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for package in ("cleanlab", "cleanvision", "faiss-cpu", "scikit-learn"):
        assert package in own
        assert package not in plain


def test_the_audit_uses_no_library_that_its_requirements_do_not_bring() -> None:
    known = sys.stdlib_module_names | AUDIT_LIBRARIES | {"face_gender"}
    known |= {"numpy", "pandas", "torch", "torchvision", "PIL", "tqdm"}
    for module in AUDIT:
        assert {name.split(".")[0] for name in imported(module)} <= known, module


def test_the_audit_names_missing_libraries_before_anything_heavy_is_imported() -> None:
    top = {
        name
        for node in tree("audit/__main__").body
        if isinstance(node, ast.ImportFrom)
        for name in [str(node.module)]
    }
    assert {name for name in top if name.startswith("face_gender")} == {
        "face_gender",
        "face_gender.files",
    }


def test_the_package_knows_nothing_of_ray() -> None:
    users = {
        module
        for module in [*MODULES, *AUDIT]
        if any(name.split(".")[0] == "ray" for name in imported(module))
    }
    assert users == set()


def test_pyarrow_is_for_parts_alone() -> None:
    """Which needs requirements-scale.txt: training and process.py work without it."""
    for module in MODULES:
        names = {name.split(".")[0] for name in imported(module)}
        assert (not names.isdisjoint({"pyarrow", "fsspec"})) == (module == "parts"), module
        assert "parts" not in siblings(module)


def test_files_needs_the_standard_library_alone() -> None:
    assert {name.split(".")[0] for name in imported("files")} <= sys.stdlib_module_names


def test_importing_the_package_pulls_in_no_library() -> None:
    code = "import sys, face_gender, face_gender.files; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    assert loaded.isdisjoint({"torch", "torchvision", "numpy", "pandas", "PIL", "matplotlib"})


def test_inference_pulls_in_neither_pandas_nor_matplotlib() -> None:
    code = "import sys, face_gender.inference; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    assert loaded.isdisjoint({"pandas", "matplotlib"})
    assert "torch" in loaded


@pytest.mark.parametrize("module", [*MODULES, *AUDIT])
def test_public_names_have_docstrings(module: str) -> None:
    assert ast.get_docstring(tree(module)), f"{module} has no docstring"
    # What torch calls, such as forward, is described by the class.
    known = ("forward",)
    bare = [
        name
        for name, node in definitions(module)
        if name.split(".")[-1] not in known and not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert bare == []


@pytest.mark.parametrize("module", [*MODULES, *AUDIT])
def test_functions_are_short(module: str) -> None:
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("module", [*MODULES, *AUDIT])
def test_text_files_name_their_encoding(module: str) -> None:
    """Or Windows reads and writes them in a code page of its own."""
    bare = [
        node.lineno
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
        and not any(keyword.arg == "encoding" for keyword in node.keywords)
    ]
    assert bare == []


def test_entry_points_are_thin() -> None:
    for name in ("process.py", "data_split.py"):
        source = ast.parse(Path(ROOT / name).read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(source) if isinstance(node, ast.ClassDef)], name
