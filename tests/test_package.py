"""pip install, and the one command that it brings."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, draw_face, save_colour_net

from face_gender import __main__ as command
from face_gender import __version__
from face_gender.model import weights

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(path: Path) -> set[str]:
    """The lines of a requirements file, without comments and the files that it includes."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("-r ")}


def test_the_dependencies_are_those_of_the_requirements_files() -> None:
    extras = {name: set(names) for name, names in PROJECT["optional-dependencies"].items()}
    assert set(PROJECT["dependencies"]) | extras["notebook"] == requirements(
        ROOT / "requirements.txt"
    )
    for path in ROOT.glob("requirements-*.txt"):
        own = extras[path.stem.removeprefix("requirements-")]
        assert {each for each in own if not each.startswith("face-gender[")} == requirements(path)
    (included,) = (each for each in extras["dev"] if each.startswith("face-gender["))
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    files = set(re.findall(r"^-r requirements-(\w+)\.txt$", lines, re.MULTILINE))
    assert set(included[len("face-gender[") : -1].split(",")) == files | {"notebook"}


def test_the_wheel_brings_the_code_the_page_and_the_shipped_weights(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="needs requirements-dev.txt")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        shipped = wheel.read("face_gender/model_weights/shipped.pth")
        entry_points = wheel.read(f"face_gender-{__version__}.dist-info/entry_points.txt").decode()
    assert shipped == (ROOT / "model_weights" / "shipped.pth").read_bytes()
    assert "face-gender = face_gender.__main__:script" in entry_points
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "face_gender").rglob("*.py")}
    assert code | {"face_gender/audit/page.html"} <= names
    assert {name.split("/")[0] for name in names} == {
        "face_gender", f"face_gender-{__version__}.dist-info",
    }  # fmt: skip


def test_weights_are_looked_for_in_the_checkout_and_then_in_the_package(tmp_path: Path) -> None:
    checkout = ROOT / "model_weights"
    packaged = ROOT / "face_gender" / "model_weights" / "shipped.pth"
    assert weights.default_weights() == [checkout / "best.pth", checkout / "shipped.pth", packaged]
    # As pip installs it: nothing of a checkout around the package.
    code = "from face_gender.model.weights import default_weights; print(*default_weights())"
    (tmp_path / "face_gender").mkdir()
    for name in ("__init__.py", "errors.py", "model/__init__.py", "model/weights.py"):
        (tmp_path / "face_gender" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "face_gender" / name).write_bytes((ROOT / "face_gender" / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    installed = tmp_path / "face_gender" / "model_weights" / "shipped.pth"
    here = Path("model_weights")
    expected = [here / "best.pth", here / "shipped.pth", installed]
    assert [Path(each) for each in done.stdout.split()] == expected


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_help_under_its_name(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: face-gender {name} ")


def test_a_command_runs_and_opens_its_messages_with_its_name(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_face("male", 0).save("a.png")
    save_colour_net(Path("net.pth"))
    assert command.main(["classify", "a.png", "--weights", "net.pth", "--output", "r.json"]) == 0
    assert Path("r.json").read_text() == '{\n  "a.png": "male"\n}\n'
    capsys.readouterr()
    assert command.main(["split", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("face-gender split: nowhere")


@pytest.mark.parametrize("name", [*command.COMMANDS, "--help"])
def test_signals_are_handled_by_the_program_alone(name: str, monkeypatch) -> None:
    on_signal: list[str] = []
    monkeypatch.setattr(command, "exit_on_signal", on_signal.append)
    monkeypatch.setattr(command, "exit_with", lambda code: None)
    monkeypatch.setattr(command, "main", lambda: 0)
    monkeypatch.setattr("sys.argv", ["face-gender", name])
    command.script()
    said = [f"face-gender {name}: interrupted, nothing was written."]
    assert on_signal == (said if name in command.COMMANDS else [])


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nonsense"], 2), (["--help"], 0)])
def test_usage_and_help_name_every_command(arguments: list[str], code: int, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == code
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert not arguments or all(name in said for name in command.COMMANDS)


def test_the_version_is_said_once(capsys) -> None:
    with pytest.raises(SystemExit):
        command.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
