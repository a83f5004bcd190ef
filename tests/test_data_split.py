"""The command: one sentence for every mistake, an exit code for every end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, draw_face, make_faces, make_zip, snapshot
from sentences import broken_archive, text_file

import face_gender.data.__main__ as data_split
from face_gender.data.tables import read_index

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A data set of 5 + 4 drawn faces."""
    return make_faces(tmp_path / "data", 5, 4)


def split(arguments: list[str]) -> int:
    return data_split.main(arguments, "data_split.py")


def python(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_command_writes_the_index_and_says_what_it_wrote(few: Path, capsys: Capture) -> None:
    before = snapshot(few)
    assert split([str(few)]) == 0
    out = capsys.readouterr().out
    assert "male" in out and "train" in out
    assert f"{few / 'index.csv'}: 9 pictures" in out
    assert len(read_index(few / "index.csv")) == 9
    (few / "index.csv").unlink()
    assert snapshot(few) == before


def test_archive_is_indexed_beside_itself(few: Path, tmp_path: Path) -> None:
    archive = make_zip(few, tmp_path / "faces.zip", "faces/")
    assert split([str(archive)]) == 0
    assert set(read_index(tmp_path / "index.csv")["path"].str.split("/").str[0]) == {"faces"}


def test_options_reach_the_index(faces: Path, tmp_path: Path, capsys: Capture) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("path,group\nmale/m_0.jpg,x\nmale/m_1.jpg,x\n")
    output = tmp_path / "other.csv"
    options = ["--output", str(output), "--ratios", "50", "25", "25", "--groups", str(groups)]
    assert split([str(faces), *options]) == 0
    table = read_index(output)
    assert table["split"].value_counts().to_dict() == {"train": 20, "val": 10, "test": 10}
    assert (table["group"] == "x").sum() == 2
    assert not (faces / "index.csv").exists()
    assert split([str(faces), *options, "--force", "--seed", "1"]) == 0
    assert read_index(output)["split"].tolist() != table["split"].tolist()


def test_what_is_left_out_is_named_on_stderr(few: Path, capsys: Capture) -> None:
    (few / "male" / "zero.jpg").write_bytes(b"")
    content = (few / "male" / "m_0.jpg").read_bytes()
    (few / "female" / "also.jpg").write_bytes(content)
    assert split([str(few)]) == 0
    captured = capsys.readouterr()
    assert "left out: male/zero.jpg: empty file\n" in captured.err
    assert "both labels: female/also.jpg, male/m_0.jpg\n" in captured.err
    assert "left out: 1 unreadable, 2 under both labels" in captured.out


def test_class_folders_taken_and_files_passed_over_are_one_line(few: Path, capsys: Capture) -> None:
    (few / "female").rename(few / "Women ")
    for name in ("third/a.jpg", "male/@eaDir/m_0.jpg/SYNOPHOTO_THUMB_M.jpg", "male/notes.txt"):
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        (few / name).write_bytes(b"x")
    assert split([str(few)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "taken: male/ as male, Women / as female; passed over: 1 in folders that devices leave, "
        "1 in other folders (third/), 1 with other endings"
    )


def missing_folder(data: Path) -> list[str]:
    return [str(data.parent / "none")]


def missing_archive(data: Path) -> list[str]:
    return [str(data.parent / "none.zip")]


def missing_beside_an_index(data: Path) -> list[str]:
    (data / "index.csv").write_text("path,label\n")
    return [str(data / "none")]


def no_class_folders(data: Path) -> list[str]:
    (data / "male").rename(data / "guys")
    (data / "female").rename(data / "gals")
    return [str(data)]


def one_class_folder(data: Path) -> list[str]:
    (data / "male").rename(data / "guys")
    return [str(data)]


def list_of_other_columns(data: Path) -> list[str]:
    (data / "list.csv").write_text("a;b\nmale/m_0.jpg;0\n")
    return [str(data / "list.csv")]


def list_of_other_labels(data: Path) -> list[str]:
    (data / "list.csv").write_text("path,label\nmale/m_0.jpg,2\n")
    return [str(data / "list.csv")]


def empty_class(data: Path) -> list[str]:
    for path in (data / "female").iterdir():
        path.unlink()
    return [str(data)]


def class_of_two(data: Path) -> list[str]:
    for i in range(2, 4):
        (data / "female" / f"f_{i}.jpg").unlink()
    return [str(data)]


def existing_csv(data: Path) -> list[str]:
    (data / "index.csv").write_text("mine")
    return [str(data)]


def existing_output(data: Path) -> list[str]:
    (data / "other.csv").write_text("mine")
    return [str(data), "--output", str(data / "other.csv")]


def output_in_no_folder(data: Path) -> list[str]:
    return [str(data), "--output", str(data / "none" / "index.csv")]


def output_under_a_file(data: Path) -> list[str]:
    return [str(data), "--output", str(data / "male" / "m_0.jpg" / "index.csv")]


def output_is_a_folder(data: Path) -> list[str]:
    return [str(data), "--force", "--output", str(data)]


def output_too_long(data: Path) -> list[str]:
    return [str(data), "--output", str(data / ("x" * 300))]


def ratios_below_a_hundred(data: Path) -> list[str]:
    return [str(data), "--ratios", "50", "20", "20"]


def negative_ratios(data: Path) -> list[str]:
    return [str(data), "--ratios", "-10", "60", "50"]


def ratios_that_are_no_number(data: Path) -> list[str]:
    return [str(data), "--ratios", "nan", "50", "50"]


def missing_groups(data: Path) -> list[str]:
    return [str(data), "--groups", str(data / "none.csv")]


def foreign_groups(data: Path) -> list[str]:
    (data / "groups.csv").write_text("path,group\nelse/a.jpg,x\n")
    return [str(data), "--groups", str(data / "groups.csv")]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (missing_folder, "does not exist"),
        (missing_archive, "does not exist"),
        (missing_beside_an_index, "does not exist"),
        (no_class_folders, "no folders male/ and female/ (it holds gals/, guys/)"),
        (one_class_folder, "no pictures in male/"),
        (list_of_other_columns, "(columns: a, b; wanted: path, filename or image, and label, "),
        (list_of_other_labels, "row 1: label '2' is not 0, 1, male or female"),
        (empty_class, "no pictures in female/"),
        (class_of_two, "female has 2"),
        (broken_archive, "cannot be read as a .zip archive"),
        (text_file, "neither a folder nor a .zip"),
        (existing_csv, "--force"),
        (existing_output, "--force"),
        (output_in_no_folder, "cannot be written"),
        (output_under_a_file, "cannot be written"),
        (output_is_a_folder, "is a folder"),
        pytest.param(
            output_too_long,
            "too long",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="other limits there"),
        ),
        (ratios_below_a_hundred, "add up to 100"),
        (negative_ratios, "ratios"),
        (ratios_that_are_no_number, "ratios"),
        (missing_groups, "none.csv cannot be read"),
        (foreign_groups, "names no picture"),
    ],
)
def test_mistake_is_one_sentence_exit_1_and_nothing_written(
    few: Path, capsys: Capture, mistake: Callable[[Path], list[str]], words: str
) -> None:
    arguments = mistake(few)
    before = snapshot(few.parent)
    assert split(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("data_split.py: ") and words in captured.err
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    assert "with data_split.py" not in captured.err  # which is running
    assert snapshot(few.parent) == before


def test_mistake_found_while_hashing_is_one_sentence_after_the_progress(
    few: Path, capsys: Capture
) -> None:
    for i in range(2):
        (few / "female" / f"f_{i}.jpg").write_bytes(b"")
    before = snapshot(few)
    assert split([str(few)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("data_split.py: ")
    assert "female has 2 usable pictures" in error.splitlines()[-1]
    assert snapshot(few) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_read_only_folder_is_one_sentence(few: Path, capsys: Capture) -> None:
    few.chmod(0o500)
    try:
        assert split([str(few)]) == 1
    finally:
        few.chmod(0o700)
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["--ratios", "70", "30"], ["a", "b"], ["a", "--seed", "x"], ["a", "--unknown"]],
)
def test_usage_mistake_exits_2_and_names_the_cure(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        split(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_names_every_option(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        split(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("DATA", "--output", "--ratios", "--seed", "--groups", "--force", "exit codes"):
        assert option in text


def test_interruption_exits_130_and_writes_nothing(
    few: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(data: bytes, name: str, at_least: int | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("face_gender.data.hashing.decode_image", interrupt)
    draw_face("male", 9).save(few / "male" / "m_9.bmp")
    before = snapshot(few)
    assert split([str(few)]) == 130
    assert "interrupted, nothing was written" in capsys.readouterr().err
    assert snapshot(few) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no groups of processes there")
def test_ctrl_c_ends_the_workers_without_a_word_of_theirs(few: Path) -> None:
    code = (
        "import multiprocessing, os, signal, sys\n"
        "from face_gender.data import __main__ as data_split, hashing\n"
        # A shell's background job, as CI may be, starts with Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import tqdm\n"
        "class Bar(tqdm.tqdm):\n"
        "    def update(self, n=1):\n"
        "        print('workers', len(multiprocessing.active_children()))\n"
        "        os.killpg(0, signal.SIGINT)\n"  # as a terminal does, to workers too
        "hashing.progress_bar = lambda total, *_, **__: Bar(total=total)\n"
        "hashing.PROCESSES_FROM = hashing.CHUNK = 1\n"
        "print('code', data_split.main([sys.argv[1]], 'data_split.py'))\n"
        "print('left', multiprocessing.active_children())\n"
    )
    before = snapshot(few)
    done = subprocess.run(
        [sys.executable, "-c", code, str(few)],
        cwd=ROOT,
        capture_output=True,
        start_new_session=True,
        timeout=120,
    )
    workers, *rest = done.stdout.decode().splitlines()
    assert workers != "workers 0" and rest == ["code 130", "left []"]
    assert b"Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == b"data_split.py: interrupted, nothing was written."
    assert snapshot(few) == before


def test_command_needs_no_torch(few: Path) -> None:
    code = (
        "import sys\n"
        "from face_gender.data.__main__ import main\n"
        "main(sys.argv[1:])\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)\n"
    )
    assert python("-c", code, str(few)).stdout.decode().splitlines()[-1] == "False True"


def test_trailing_slash_and_relative_path_with_spaces_and_cyrillic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    make_faces(tmp_path / "мои лица", 3, 3)
    draw_face("male", 9).save(tmp_path / "мои лица" / "male" / "Иван Петров, 1.jpg")
    monkeypatch.chdir(tmp_path)
    assert split(["мои лица/"]) == 0
    table = read_index(tmp_path / "мои лица" / "index.csv")
    assert "male/Иван Петров, 1.jpg" in set(table["path"])


def test_help_and_usage_mistakes_import_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "for arguments in (['--help'], [], ['a', '--ratios', '1']):\n"
        "    sys.argv = ['data_split.py', *arguments]\n"
        "    try:\n"
        "        runpy.run_path('data_split.py', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        print('code', end.code)\n"
        "print('heavy', [m for m in ('torch', 'pandas', 'numpy', 'PIL') if m in sys.modules])\n"
    )
    lines = python("-c", code).stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("code")] == ["code 0", "code 2", "code 2"]
    assert lines[-1] == "heavy []"


def test_command_runs_from_any_folder_on_a_terminal_without_cyrillic(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "лица", 3, 3)
    (data / "male" / "пусто.jpg").write_bytes(b"")
    done = python(
        str(ROOT / "data_split.py"), "лица", cwd=tmp_path, PYTHONIOENCODING="cp1252", PYTHONUTF8="0"
    )
    assert done.returncode == 0, done.stderr
    assert b"6 pictures" in done.stdout
    assert b"left out: male/" in done.stderr and b"Traceback" not in done.stderr
    assert len(read_index(data / "index.csv")) == 6


def test_command_exits_1_without_a_traceback(tmp_path: Path) -> None:
    done = python(str(ROOT / "data_split.py"), "none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "data_split.py: none does not exist: give the path of a folder or of a .zip archive."
    ]
