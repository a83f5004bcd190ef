"""The README says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT, SHIPPED, python

import face_gender.audit.__main__
import face_gender.classify.__main__ as process
import face_gender.data.__main__ as data_split
import face_gender.evaluate.__main__
import face_gender.export.__main__
import face_gender.train.__main__
from examples.ray import classify as classify_ray
from face_gender.model.recipes import RECIPES

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def section(title: str, text: str = COMMANDS) -> str:
    """Return the text under a heading, up to the next one."""
    return re.split(r"\n##+ ", text.split(f"{title}\n", 1)[1])[0]


@pytest.mark.parametrize(
    ("command", "title"),
    [
        (process, "## `python process.py FOLDER`"),
        (classify_ray, "## `python -m examples.ray.classify INPUT OUTPUT`"),
        (data_split, "## `python data_split.py DATA`"),
        (face_gender.train.__main__, "## `python -m face_gender.train INDEX`"),
        (face_gender.evaluate.__main__, "## `python -m face_gender.evaluate WEIGHTS INDEX`"),
        (face_gender.audit.__main__, "## `python -m face_gender.audit INDEX_OR_DATA`"),
        (face_gender.export.__main__, "## `python -m face_gender.export WEIGHTS`"),
    ],
)
def test_exactly_the_options_that_exist_are_documented(command, title: str, capsys) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    existing = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    documented = set(re.findall(r"^\| `(--[a-z-]+)", section(title), re.MULTILINE))
    assert documented == existing


def test_exit_codes_are_those_of_the_help(capsys) -> None:
    with pytest.raises(SystemExit):
        process.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    codes = re.findall(r"^\| (\d+) \|", section("## `python process.py FOLDER`"), re.MULTILINE)
    for code in codes:
        assert f"{code} " in text
    assert codes == ["0", "1", "2", "3", "130", "143"]


def test_the_readme_is_short_and_names_every_document() -> None:
    assert len(README.splitlines()) < 150
    linked = set(re.findall(r"\]\(docs/([a-z_]+\.md)", README))
    assert {path.name for path in ROOT.glob("docs/*.md")} - linked <= {"explanations.md"}


def test_the_russian_readme_says_the_same() -> None:
    russian = (ROOT / "README.ru.md").read_text(encoding="utf-8")
    russian = re.sub(r"(?<=\d)\u00a0(?=\d{3}\b)", ",", russian)  # how Russian writes thousands

    def facts(text: str) -> dict[str, list[str]]:
        return {
            "code": re.findall(r"```.*?```", text, re.DOTALL),
            "names": sorted(
                re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
            ),
            "figures": sorted(re.findall(r"\d[\d.,]*\d|\d", text)),
            "links": re.findall(r"\]\(((?!README)[^)]+)\)", text),
            "headings": [line.split(" ")[0] for line in text.splitlines() if line.startswith("#")],
            "tables": [str(line.count("|")) for line in text.splitlines() if line.startswith("|")],
        }

    english = facts(README)
    for kind, found in facts(russian).items():
        assert found == english[kind], kind


def test_the_python_of_the_readme_runs() -> None:
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    done = python("-c", first)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\.jpg +(\w+)", done.stdout) == ["female"] * 5


def test_the_rooms_of_the_architecture_are_those_of_the_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "face_gender"
    named = set(re.findall(r"\b(\w+\.py)\b", text))
    assert {path.name for path in package.rglob("[a-z]*.py")} <= named
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(re.findall(r"\b(\w+/)", text))


def test_recipes_in_the_table_are_the_recipes() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("## Recipes", README), re.MULTILINE)
    assert rows == list(RECIPES)


def test_the_first_command_labels_the_samples(tmp_path: Path) -> None:
    line = next(line for line in README.splitlines() if line.startswith("pip install -r req"))
    install, run = line.split(" && ")
    assert install == "pip install -r requirements.txt"
    program, *arguments = run.split()
    assert program == "python"
    done = python(*arguments, "--output", tmp_path / "r.json", "--weights", SHIPPED)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.json").read_text().count(".jpg") == 158  # with photos/


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    lines = [line for line in README.splitlines() if line.startswith("pip install -r req")]
    assert lines[1] == "pip install -r requirements-dev.txt && python -m pytest -n 2"
    assert "pip install -r requirements-dev.txt && " in (ROOT / ".ci/run").read_text()


def test_every_file_that_documents_link_to_exists() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    for document in documents:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
