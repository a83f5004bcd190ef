"""The run over a folder of any files, on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import draw_face

from tools import corpus


def test_every_file_of_a_folder_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "files"
    (folder / "inner").mkdir(parents=True)
    for i in range(3):
        draw_face("male", i).save(folder / "inner" / f"{i}.png")
    data = (folder / "inner" / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "notes.txt").write_text("no picture")
    corpus.main([str(folder), "--batch", "3", "--output", str(tmp_path / "answers.jsonl")])
    printed = capsys.readouterr().out
    assert printed.startswith("5 files: 3 read, 2 refused\n")
    assert "1  not an image" in printed
    assert "0 shown otherwise" in printed
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [Path(each["name"]).name for each in answers if not each["reason"]] == [
        "0.png", "1.png", "2.png",
    ]  # fmt: skip
    assert {each["difference"] for each in answers if not each["reason"]} == {0.0}


def test_a_process_that_does_not_answer_is_named(tmp_path: Path) -> None:
    draw_face("male", 0).save(tmp_path / "a.png")
    (answer,) = corpus.answers([tmp_path / "a.png"], batch=1, timeout=0)
    assert isinstance(answer, dict)
    assert answer["name"].endswith("a.png") and "no answer within" in answer["reason"]
