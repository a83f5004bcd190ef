"""The command: one sentence for every mistake, an exit code for every end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    draw_face,
    interrupt_once_begun,
    loaded_after,
    make_faces,
    make_zip,
    python,
    snapshot,
)
from sentences import broken_archive, one_sentence, text_file

import face_gender.data.__main__ as data_split
from face_gender.data.tables import read_index

Capture = pytest.CaptureFixture[str]


def split(arguments: list[str]) -> int:
    return data_split.main(arguments, "data_split.py")


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


def test_options_reach_the_index(tmp_path: Path, capsys: Capture) -> None:
    data = make_faces(tmp_path / "data", 8, 8)
    groups = tmp_path / "groups.csv"
    groups.write_text("path,group\nmale/m_0.jpg,x\nmale/m_1.jpg,x\n")
    output = tmp_path / "other.csv"
    options = ["--output", str(output), "--ratios", "50", "25", "25", "--groups", str(groups)]
    assert split([str(data), *options]) == 0
    table = read_index(output)
    assert table["split"].value_counts().to_dict() == {"train": 8, "val": 4, "test": 4}
    assert (table["group"] == "x").sum() == 2
    assert not (data / "index.csv").exists()
    assert split([str(data), *options, "--force", "--seed", "1"]) == 0
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


def given(*arguments: str) -> Callable[[Path], list[str]]:
    """These arguments; {} is the folder of the data."""
    return lambda data: [each.format(data) for each in arguments]


def option(*arguments: str) -> Callable[[Path], list[str]]:
    return given("{}", *arguments)


def beside(name: str, text: str, *arguments: str) -> Callable[[Path], list[str]]:
    """The arguments, where a file of this text lies in the folder."""

    def write(data: Path) -> list[str]:
        (data / name).write_text(text)
        return given(*arguments)(data)

    return write


def without_pictures(label: str, kept: int) -> Callable[[Path], list[str]]:
    def remove(data: Path) -> list[str]:
        for path in sorted((data / label).iterdir())[kept:]:
            path.unlink()
        return [str(data)]

    return remove


def other_folders(data: Path) -> list[str]:
    (data / "male").rename(data / "guys")
    (data / "female").rename(data / "gals")
    return [str(data)]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (given("{}/none"), "does not exist"),
        (given("{}/none.zip"), "does not exist"),
        (beside("index.csv", "path,label\n", "{}/none"), "does not exist"),
        (other_folders, "no folders male/ and female/ (it holds gals/, guys/)"),
        (without_pictures("female", 0), "no pictures in female/"),
        (without_pictures("female", 2), "female has 2"),
        (broken_archive, "cannot be read as a .zip archive"),
        (text_file, "neither a folder nor a .zip nor a .csv"),
        (beside("index.csv", "mine", "{}"), "--force"),
        (beside("other.csv", "mine", "{}", "--output", "{}/other.csv"), "--force"),
        (option("--output", "{}/none/index.csv"), "cannot be written"),
        (option("--output", "{}/male/m_0.jpg/index.csv"), "cannot be written"),
        (option("--force", "--output", "{}"), "is a folder"),
        pytest.param(
            option("--output", "{}/" + "x" * 300),
            "too long",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="other limits there"),
        ),
        (option("--ratios", "50", "20", "20"), "add up to 100"),
        (option("--groups", "{}/none.csv"), "none.csv cannot be read"),
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
    assert words in one_sentence(captured.err, "data_split.py")
    assert "with data_split.py" not in captured.err  # which is running
    assert snapshot(few.parent) == before


def test_mistake_found_while_hashing_is_one_sentence_after_the_progress(
    few: Path, capsys: Capture
) -> None:
    for i in range(2):
        (few / "female" / f"f_{i}.jpg").write_bytes(b"")
    before = snapshot(few)
    assert split([str(few)]) == 1
    *progress, last = capsys.readouterr().err.splitlines()
    assert "female has 2 usable pictures" in one_sentence(last, "data_split.py")
    assert not any("Traceback" in line for line in progress)
    assert snapshot(few) == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["--ratios", "70", "30"], ["a", "b"], ["a", "--seed", "x"], ["a", "--unknown"]],
)
def test_usage_mistake_exits_2_and_names_the_cure(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        split(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


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


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
def test_ctrl_c_ends_the_search_for_faces_at_once(few: Path) -> None:
    program = (
        "import runpy, sys, threading\n"
        "from face_gender.data import landmarks\n"
        "def load(*given, **named):\n"
        "    print('begun', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait(100)\n"
        "landmarks.load_image = load\n"
        "sys.argv[0] = 'data_split.py'\n"
        "runpy.run_path('data_split.py', run_name='__main__')\n"
    )
    before = snapshot(few)
    ended = interrupt_once_begun(program, few)
    assert ended.returncode == 130
    lines = [line for line in ended.stderr.splitlines() if line != b"begun"]
    assert lines == [b"data_split.py: interrupted, nothing was written."]
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
    loaded = loaded_after(f"from face_gender.data.__main__ import main; main([{str(few)!r}])")
    assert "torch" not in loaded and "pandas" in loaded


def test_trailing_slash_and_relative_path_with_spaces_and_cyrillic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    make_faces(tmp_path / "мои лица", 3, 3)
    draw_face("male", 9).save(tmp_path / "мои лица" / "male" / "Иван Петров, 1.jpg")
    monkeypatch.chdir(tmp_path)
    assert split(["мои лица/"]) == 0
    table = read_index(tmp_path / "мои лица" / "index.csv")
    assert "male/Иван Петров, 1.jpg" in set(table["path"])


def test_command_runs_from_any_folder_on_a_terminal_without_cyrillic(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "лица", 3, 3)
    (data / "male" / "пусто.jpg").write_bytes(b"")
    done = python(
        ROOT / "data_split.py", "лица", cwd=tmp_path, PYTHONIOENCODING="cp1252", PYTHONUTF8="0"
    )
    assert done.returncode == 0, done.stderr
    assert "6 pictures" in done.stdout
    assert "left out: male/" in done.stderr and "Traceback" not in done.stderr
    assert len(read_index(data / "index.csv")) == 6


def test_command_exits_1_without_a_traceback(tmp_path: Path) -> None:
    done = python(ROOT / "data_split.py", "none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "data_split.py: none does not exist: give the path of a folder or of a .zip archive."
    ]
