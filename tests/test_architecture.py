"""Who may import whom, and how the code is written down: read from the source, not run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, loaded_after, python

from face_gender.__main__ import COMMANDS

PACKAGE = ROOT / "face_gender"
# A room may import those of the layers above its own; docs/architecture.md draws them.
LAYERS = (
    {"__init__", "errors"},
    {"files"},
    {"console", "devices", "threads"},
    {"faces"},
    {"data"},
    {"model"},
    {"evaluate"},
    {"train", "classify"},
    {"export", "audit", "plots"},
    {"__main__"},  # the commands
)
AUDIT_LIBRARIES = {"cleanlab", "cleanvision", "faiss", "sklearn", "scipy"}
HEAVY = {"torch", "torchvision", "numpy", "pandas", "PIL", "matplotlib", "cv2", "tqdm"}
HEAVY |= AUDIT_LIBRARIES
OPTIONAL = {"ray", "pyarrow", "fsspec", "openvino", "onnx", "onnxruntime", "pillow_heif"}
MOST_LINES = {"module": 400, "function": 55, "class": 160}
LONGER = {"Run"}  # a training's state: every further part would need all the others
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in MODULES]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path, top_level: bool = False) -> set[str]:
    """The full names that a module imports: anywhere in it, or when it is imported itself."""
    body = tree(path).body
    nodes = body if top_level else [each for node in body for each in ast.walk(node)]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def libraries(path: Path, top_level: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imported(path, top_level)} - {"face_gender"}


def room(name: str) -> str:
    """The room of a module, by its path in the package; commands are one of their own."""
    return "__main__" if name.endswith("__main__") else name.split("/")[0]


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if room(name) in names)


def neighbours(path: Path) -> set[str]:
    """The modules of the package that a module imports, by their path in it."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        while parts and parts[0] == "face_gender":
            inside = "/".join(parts[1:]) or "__init__"
            if inside in NAMES:
                found.add(inside)
                break
            if f"{inside}/__init__" in NAMES:
                found.add(f"{inside}/__init__")
                break
            parts = parts[:-1]
    return found


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if own == "__init__":
        return  # load() imports the last packages, when it is called
    wrong = {
        other
        for other in neighbours(path)
        if (room(other) != room(own) and layer(other) >= layer(own))
        or (room(other) == "__main__" and not own.endswith("__main__"))
    }  # fmt: skip
    assert wrong == set()


def test_training_and_classification_never_import_each_other() -> None:
    for own, other in (("train", "classify"), ("classify", "train")):
        paths = list((PACKAGE / own).rglob("*.py"))
        assert paths
        for path in paths:
            assert not {name for name in neighbours(path) if room(name) == other}, path


def test_plots_alone_imports_matplotlib_and_the_audit_its_libraries() -> None:
    for path, name in zip(MODULES, NAMES, strict=True):
        assert ("matplotlib" in libraries(path)) == (name == "plots"), name
        if room(name) != "audit" and not name.startswith("audit/"):
            assert libraries(path).isdisjoint(AUDIT_LIBRARIES), name


def test_optional_libraries_are_imported_where_they_are_used_alone() -> None:
    for path, name in zip(MODULES, NAMES, strict=True):
        assert libraries(path, top_level=True).isdisjoint(OPTIONAL), name
        assert libraries(path).isdisjoint({"ray", "pyarrow", "fsspec"}), name


def test_the_libraries_of_the_audit_are_in_its_requirements_alone() -> None:
    own = (ROOT / "requirements-audit.txt").read_text(encoding="utf-8")
    plain = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for package in ("cleanlab", "cleanvision", "faiss-cpu", "scikit-learn"):
        assert package in own
        assert package not in plain


def test_the_base_needs_the_standard_library_alone() -> None:
    for name in ("console", "errors", "files"):
        assert libraries(PACKAGE / f"{name}.py", top_level=True) <= sys.stdlib_module_names, name


def test_importing_the_package_pulls_in_no_library() -> None:
    loaded = loaded_after(
        "import face_gender.__main__, face_gender.console, face_gender.data.sources"
    )
    assert {name.split(".")[0] for name in loaded}.isdisjoint(HEAVY)


def test_help_and_usage_mistakes_of_every_command_pull_in_no_library() -> None:
    code = (
        "import sys\nfrom face_gender.__main__ import main\n"
        f"for name in {list(COMMANDS)!r}:\n"
        "    for arguments in (['--help'], [], ['a', '--unknown']):\n"
        "        try: main([name, *arguments])\n"
        "        except SystemExit as end: print('ended', end.code)\n"
        "print(*sys.modules)"
    )
    *lines, loaded = python("-c", code).stdout.splitlines()
    ended = [line.split()[1] for line in lines if line.startswith("ended ")]
    assert ended == ["0", "2", "2"] * len(COMMANDS)
    assert {name.split(".")[0] for name in loaded.split()}.isdisjoint(HEAVY)


def test_few_pictures_are_classified_by_few_libraries_and_nothing_of_training(
    tmp_path: Path,
) -> None:
    """Importing torchvision takes as long as all else together."""
    arguments = [str(ROOT / "samples" / "male"), "--quiet", "--output", str(tmp_path / "r.json")]
    loaded = loaded_after(
        f"import face_gender.classify.__main__ as process\nassert process.main({arguments!r}) == 0"
    )
    libraries_in_use = {name.split(".")[0] for name in loaded}
    unused = {"torchvision", "pandas", "matplotlib", "openvino", "openvino_telemetry", "onnx"}
    assert libraries_in_use.isdisjoint(unused | {"onnxruntime"})
    assert "torch" in libraries_in_use
    others = ("face_gender.train", "face_gender.audit")
    assert not [name for name in loaded if name.startswith(others)]


@pytest.mark.parametrize("script", ["process.py", "data_split.py"])
def test_scripts_are_thin(script: str) -> None:
    source = ROOT / script
    assert len(source.read_text(encoding="utf-8").splitlines()) < 25
    kinds = (ast.ClassDef, ast.FunctionDef, ast.For, ast.While, ast.Try)
    assert not [node for node in ast.walk(tree(source)) if isinstance(node, kinds)]


def definitions(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Public functions, classes and their public methods, by dotted name."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.stmt]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                yield f"{prefix}.{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}.{node.name}")

    return walk(tree(path).body, path.stem)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_public_names_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{path} has no docstring"
    # What torch calls, such as forward, is described by the class.
    bare = [
        name
        for name, node in definitions(path)
        if name.split(".")[-1] != "forward" and not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert bare == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_modules_classes_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES["module"]
    longest = {"FunctionDef": MOST_LINES["function"], "ClassDef": MOST_LINES["class"]}
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and (node.end_lineno or 0) - node.lineno + 1 > longest[type(node).__name__]
        and node.name not in LONGER
    }
    assert lengths == {}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_text_files_name_their_encoding(path: Path) -> None:
    """Or Windows reads and writes them in a code page of its own."""
    bare = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
        and not any(keyword.arg == "encoding" for keyword in node.keywords)
    ]
    assert bare == []
