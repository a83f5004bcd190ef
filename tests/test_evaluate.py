"""The command that evaluates: its figures, its files, and a sentence for every mistake."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    draw_face,
    gone_drive,
    interrupt_once_begun,
    make_checkpoint,
    make_faces,
    make_index,
    snapshot,
)
from PIL import Image
from sentences import one_sentence

from face_gender import CLASSES
from face_gender.data.dataset import UnreadablePictureWarning
from face_gender.data.index import Index
from face_gender.data.sources import FolderSource, open_source
from face_gender.data.tables import read_index, write_index
from face_gender.evaluate import __main__ as evaluate
from face_gender.evaluate import predict
from face_gender.evaluate.predict import evaluate as evaluation_of
from face_gender.evaluate.report import EVERY, THRESHOLDS, by_value, columns_to_slice
from face_gender.evaluate.robustness import (
    AS_GIVEN,
    CONDITIONS,
    Condition,
    evaluate_conditions,
)
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.recipes import get_recipe
from face_gender.train.loop import train

Capture = pytest.CaptureFixture[str]
ALWAYS = ["confusion_matrix.png", "coverage.png", "figures.json", "mistakes.png",
          "mistakes_explained.png", "predictions.csv", "reliability.png"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, its index with two further columns, and weights trained on it."""
    folder = tmp_path_factory.mktemp("made")
    data = make_faces(folder / "data", 24, 24)
    table = make_index(data).table
    table["source"] = ["web" if i % 3 else "scan" for i in range(len(table))]
    table["age"] = [("9", "10-19", "")[i % 3] for i in range(len(table))]
    table["many"] = [f"value {i}" for i in range(len(table))]
    # So that an answer is wrong.
    test = table.index[table["split"] == "test"]
    table.loc[test[0], "label"] = 1 - table.loc[test[0], "label"]
    write_index(table, data / "index.csv")
    recipe = get_recipe("compact_cnn", epochs=2, batch_size=4, learning_rate=1e-3)
    list(train(recipe, data / "index.csv", folder / "weights", progress=False))
    shutil.copy(folder / "weights" / "best.pth", folder / "best.pth")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def command(place: Path, *options: str) -> int:
    return evaluate.main([
        str(place / "best.pth"), str(place / "data" / "index.csv"),
        "--output", str(place / "out"), "--device", "cpu", *options,
    ])  # fmt: skip


def figures(place: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (place / "out" / "figures.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def refused(place: Path, capsys: Capture, *options: str) -> str:
    """Return the one sentence that a command ends with, having written nothing."""
    capsys.readouterr()
    assert command(place, *options) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not (place / "out").is_dir() or not list((place / "out").glob("*.json"))
    return one_sentence(captured.err, "face_gender.evaluate")


# What is written and said


def test_every_file_is_written_and_agrees_with_evaluate(place: Path, capsys: Capture) -> None:
    before = snapshot(place)
    assert command(place) == 0
    data = place / "data"
    assert sorted(path.name for path in (place / "out").iterdir()) == ALWAYS
    for path in (place / "out").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
    expected = evaluation_of(place / "best.pth", data / "index.csv", progress=False)
    found = figures(place)
    assert found["all"]["accuracy"] == expected.accuracy
    assert found["all"]["confusion"] == expected.confusion.tolist()
    assert found["all"]["n"] == len(expected.labels) == 6
    assert found["all"]["accuracy"] == 5 / 6
    assert found["seen_in_training"] == 0 and found["robustness"] == []
    for name, path in (("weights", place / "best.pth"), ("index", data / "index.csv")):
        assert found[f"{name}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [each["threshold"] for each in found["coverage"]] == list(THRESHOLDS)
    assert sum(each["pictures"] for each in found["reliability"]) == 6
    out = capsys.readouterr().out
    assert expected.summary() in out
    assert "SEEN" not in out
    shutil.rmtree(place / "out")
    assert snapshot(place) == before


def test_predictions_are_a_row_a_picture(place: Path) -> None:
    assert command(place, "--quiet") == 0
    with open(place / "out" / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "predicted", "confidence", "male", "female"]
    table = read_index(place / "data" / "index.csv")
    assert [row["path"] for row in rows] == table["path"][table["split"] == "test"].tolist()
    labels = [CLASSES[label] for label in table["label"][table["split"] == "test"]]
    assert [row["label"] for row in rows] == labels
    for row in rows:
        chances = {name: float(row[name]) for name in CLASSES}
        assert row["predicted"] == max(chances, key=chances.__getitem__)
        assert float(row["confidence"]) == max(chances.values())
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)


def test_slices_are_the_further_columns_of_few_values(place: Path, capsys: Capture) -> None:
    """But not `many`, which has a value a row."""
    assert command(place, "--split", "all", "--allow-seen") == 0
    slices = figures(place)["slices"]
    assert list(slices) == ["source", "age"]
    assert {name: part["n"] for name, part in slices["source"].items()} == {"scan": 16, "web": 32}
    assert list(slices["age"]) == ["9", "10-19", "(none)"]
    out = capsys.readouterr().out
    for part in ("scan", "web", "(none)", "10-19"):
        assert any(line.startswith(f"{part} ") for line in out.splitlines()), part


def test_by_chooses_the_columns(place: Path, capsys: Capture) -> None:
    assert command(place, "--by", "label", "many") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line[:5] == "male "]
    assert line.endswith("  -")  # of a class without pictures there
    slices = figures(place)["slices"]
    assert {name: part["n"] for name, part in slices["label"].items()} == {"male": 4, "female": 2}
    assert len(slices["many"]) == 6
    male = slices["label"]["male"]
    assert male["accuracy"] == 0.75
    assert male["recall"] == {"male": 0.75, "female": None}
    assert male["recall_intervals"]["female"] == [0, 1]


def test_values_of_a_column_stay_with_their_pictures(made: Path) -> None:
    """Also where rows were left out, and in the order of the numbers in them."""
    data = made / "data"
    table = read_index(data / "index.csv")
    result = evaluation_of(make_checkpoint(), data / "index.csv", None, progress=False)
    part = result.subset(np.arange(len(table)) % 2 == 1)
    for value, answers in by_value(part, table, "many").items():
        assert table["many"][table["path"] == answers.paths[0]].item() == value
    numbers = [int(value.split()[1]) for value in by_value(part, table, "many")]
    assert numbers == sorted(numbers) == list(range(1, len(table), 2))


def test_a_picture_of_several_rows_counts_in_the_slice_of_each(made: Path) -> None:
    index = Index.open(made / "data" / "index.csv")
    table = index.table.iloc[[0, 1, 0]].assign(source=["scan", "web", "book"])
    result = evaluation_of(make_checkpoint(), replace(index, table=table), None, progress=False)
    parts = by_value(result, table, "source")
    assert {value: part.paths.tolist() for value, part in parts.items()} == {
        value: [path] for value, path in zip(table["source"], table["path"], strict=True)
    }


def test_an_index_without_splits_is_answered_whole(place: Path, capsys: Capture) -> None:
    table = pd.DataFrame({"path": ["female/new_1.jpg", "male/new.jpg"], "label": [1, 0]})
    for path in table["path"]:
        draw_face(path.split("/")[0], 99).save(place / "data" / path)
    write_index(table, place / "data" / "index.csv")
    assert "--split all" in refused(place, capsys)
    assert command(place, "--split", "all", "--quiet") == 0
    assert figures(place)["all"]["n"] == 2


def test_an_existing_folder_keeps_what_else_is_in_it(place: Path, capsys: Capture) -> None:
    (place / "out").mkdir()
    (place / "out" / "notes.txt").write_text("mine")
    (place / "out" / "figures.json").write_text("of an earlier run")
    capsys.readouterr()
    assert command(place, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert (place / "out" / "notes.txt").read_text() == "mine"
    assert figures(place)["all"]["n"] == 6


# Mirror images and changes


def test_the_error_before_the_temperature_is_said_too(place: Path, capsys: Capture) -> None:
    assert command(place) == 0
    plain = figures(place)
    assert plain["temperature"] == 1
    before = plain["all"]["calibration_error"]
    assert plain["calibration_error_at_temperature_1"] == before
    checkpoint = load_checkpoint(place / "best.pth")
    replace(checkpoint, temperature=80.0).save(place / "best.pth")
    assert command(place) == 0
    found = figures(place)
    assert found["calibration_error_at_temperature_1"] == pytest.approx(before, abs=1e-4)
    assert found["all"]["calibration_error"] != pytest.approx(before, abs=1e-3)
    assert "at temperature 1, and not 80.000" in capsys.readouterr().out


def test_flip_is_the_mean_of_a_picture_and_its_mirror_image(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, image in (("straight", draw_face("male", 1)), ("other", draw_face("female", 2))):
        (data / name).mkdir(parents=True)
        image.save(data / name / "a.png")
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(data / name / "b.png")
    table = pd.DataFrame({
        "path": [f"{name}/{side}.png" for name in ("straight", "other") for side in "ab"],
        "label": [0, 0, 1, 1],
    })  # fmt: skip
    index = Index(table, open_source(data))
    plain, both = (
        evaluation_of(make_checkpoint(), index, None, flip=flip, progress=False)
        for flip in (False, True)
    )
    a, b = plain.probabilities[0::2], plain.probabilities[1::2]
    assert not np.allclose(a, b, atol=1e-5)
    assert np.allclose(both.probabilities[0::2], (a + b) / 2, atol=1e-5)
    assert np.allclose(both.probabilities[1::2], (a + b) / 2, atol=1e-5)


def test_flip_reaches_the_figures(place: Path, capsys: Capture) -> None:
    assert command(place, "--flip") == 0
    assert figures(place)["flip"] is True
    assert "mirror image" in capsys.readouterr().out
    data = place / "data"
    expected = evaluation_of(place / "best.pth", data / "index.csv", flip=True, progress=False)
    assert figures(place)["all"]["loss"] == pytest.approx(expected.loss)


def test_a_change_is_made_before_pictures_are_normalised(made: Path) -> None:
    seen = []

    def grey(images: torch.Tensor) -> torch.Tensor:
        seen.append((images.dtype, tuple(images.shape[1:]), int(images.max())))
        return torch.full_like(images, 128)

    data = made / "data"
    index = data / "index.csv"
    result = evaluation_of(make_checkpoint(), index, change=grey, progress=False)
    assert np.ptp(result.probabilities, axis=0).max() == 0
    assert {(dtype, shape) for dtype, shape, _ in seen} == {(torch.uint8, (3, 100, 80))}
    assert max(highest for *_, highest in seen) > 150


def test_robustness_has_every_condition_by_source(place: Path, capsys: Capture) -> None:
    assert command(place, "--robustness", "--by", "source") == 0
    found = figures(place)
    tried = {(each["kind"], each["value"]): each["accuracy"] for each in found["robustness"]}
    assert list(tried) == [(each.kind, each.value) for each in CONDITIONS]
    sides = found["slices"]["source"]
    for parts in tried.values():
        assert {name: part["n"] for name, part in parts.items()} == {
            EVERY: 6, **{name: part["n"] for name, part in sides.items()},
        }  # fmt: skip
    # The net's pictures are 100 x 80: 96 pixels would be more than there are.
    for same in (tried["none", 0.0], tried["size", 96]):
        assert same[EVERY]["accuracy"] == found["all"]["accuracy"]
    with Image.open(place / "out" / "robustness.png") as image:
        assert image.width > image.height
    out = capsys.readouterr().out
    for words in ("as given", "margin 40 %", "zoom 1.4", "blur 1 %", "size 16"):
        assert f"\n{words} " in out


def test_conditions_change_predictions_and_each_picture_is_decoded_once(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(made / "data" / "index.csv")
    few = replace(index, table=index.table.head(6))
    read: list[str] = []
    once = FolderSource.read

    def noted(self: FolderSource, name: str) -> bytes:
        read.append(name)
        return once(self, name)

    monkeypatch.setattr(FolderSource, "read", noted)
    found = evaluate_conditions(make_checkpoint(), few, None, progress=False)
    assert sorted(read) == sorted(few.table["path"])
    assert list(found) == list(CONDITIONS)
    given = evaluation_of(make_checkpoint(), few, None, progress=False)
    for same in (AS_GIVEN, Condition("size", 96)):
        assert np.array_equal(found.pop(same).probabilities, given.probabilities)
    others = {each.probabilities.tobytes() for each in found.values()}
    assert len(others) == len(CONDITIONS) - 2
    assert given.probabilities.tobytes() not in others


# What is refused


def test_a_leak_is_refused_unless_it_is_asked_for(place: Path, capsys: Capture) -> None:
    message = refused(place, capsys, "--split", "val")
    assert "LEAK" in message and "best.pth" in message and "--allow-seen" in message
    assert command(place, "--split", "val", "--allow-seen") == 0
    assert "SEEN: the model was trained or chosen on 8 of these 8" in capsys.readouterr().out
    assert figures(place)["seen_in_training"] == 8


@pytest.mark.parametrize(("module", "name"), [(predict, "evaluate"), (Index, "open")])
def test_weights_replaced_in_the_meantime_are_a_sentence(
    module: Any, name: str, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a training that goes on: the figures would name others than predicted."""
    real = getattr(module, name)

    def replaced(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        make_checkpoint(seed=9).save(place / "best.pth")
        return found

    monkeypatch.setattr(module, name, replaced)
    assert "best.pth was replaced while it was in use" in refused(place, capsys)


def test_a_drive_that_is_gone_ends_the_command_in_a_sentence(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_drive(monkeypatch, place / "data")
    monkeypatch.setattr("face_gender.data.base_source.PAUSES", ())
    message = refused(place, capsys)
    assert message.endswith("seems to be gone: connect it and give the same command.")


def nothing(place: Path) -> None:
    """Spoil nothing: the options are wrong."""


@pytest.mark.parametrize(
    ("spoil", "options", "named"),
    [
        (lambda place: (place / "best.pth").unlink(), [], "best.pth"),
        (lambda place: (place / "best.pth").write_bytes(b"no weights"), [], "best.pth"),
        (lambda place: (place / "data/index.csv").unlink(), [], "index.csv"),
        (
            lambda place: (place / "data/index.csv").write_text("path,label,split\n"),
            [],
            "index.csv has no rows",
        ),
        (lambda place: [shutil.rmtree(place / "data" / each) for each in CLASSES], [], "--data"),
        (lambda place: (place / "out").write_text("mine"), [], "out"),
        (lambda place: (place / "out/predictions.csv").mkdir(parents=True), [], "predictions.csv"),
        (
            lambda place: [each.write_bytes(b"no picture") for each in place.rglob("*.jpg")],
            [],
            "made of other pictures",
        ),
        (nothing, ["--by", "race"], "race"),
        (nothing, ["--data", "none"], "none"),
        (nothing, ["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    spoil: Callable[[Path], object], options: list[str], named: str, place: Path, capsys: Capture
) -> None:
    spoil(place)
    assert named in refused(place, capsys, *options)


def test_too_many_values_are_refused_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("face_gender.evaluate.predict.evaluate", None)
    table = pd.concat([read_index(place / "data" / "index.csv")] * 21, ignore_index=True)
    table["many"] = [f"value {i}" for i in range(len(table))]
    write_index(table, place / "data" / "index.csv")
    message = refused(place, capsys, "--split", "all", "--by", "source", "many")
    assert f"'many' has {len(table):,} different values" in message


@pytest.mark.parametrize("options", [["--split", "x"], ["--batch-size", "0"], ["--by", ""]])
def test_usage_ends_with_2(options: list[str], place: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        command(place, *options)
    assert caught.value.code == 2


def test_an_input_is_never_replaced(place: Path, capsys: Capture) -> None:
    data = place / "data"
    (place / "out").mkdir()
    shutil.copy(data / "index.csv", place / "out" / "predictions.csv")
    before = snapshot(place)
    arguments = [str(place / "best.pth"), str(place / "out" / "predictions.csv"), "--data",
                 str(data), "--output", str(place / "out")]  # fmt: skip
    assert evaluate.main(arguments) == 1
    assert "predictions.csv is or would be an input" in capsys.readouterr().err
    assert snapshot(place) == before


def test_a_picture_of_the_index_is_never_replaced(place: Path, capsys: Capture) -> None:
    data = place / "data"
    draw_face("male", 77).save(data / "male" / "mistakes.png")
    table = pd.DataFrame({"path": ["male/mistakes.png", "female/f_1.jpg"], "label": [0, 1]})
    write_index(table, data / "index.csv")
    before = snapshot(place)
    options = ["--split", "all", "--allow-seen", "--output", str(data / "male")]
    assert command(place, *options) == 1
    assert "mistakes.png is a picture of the index" in capsys.readouterr().err
    assert snapshot(place) == before


# Pictures that cannot be read


@pytest.mark.filterwarnings(
    f"error::{UnreadablePictureWarning.__module__}.UnreadablePictureWarning"
)
def test_unreadable_pictures_are_told_and_left_out(place: Path, capsys: Capture) -> None:
    table = read_index(place / "data" / "index.csv")
    path = table["path"][table["split"] == "test"].iloc[2]
    (place / "data" / path).write_bytes(b"")
    assert command(place, "--robustness", "--quiet") == 0
    assert capsys.readouterr().err == f"left out: {path}: empty file\n"
    found = figures(place)
    assert found["all"]["n"] == 5 and found["skipped"] == {path: "empty file"}
    assert path not in (place / "out" / "predictions.csv").read_text()
    assert {each["accuracy"][EVERY]["n"] for each in found["robustness"]} == {5}


def test_names_that_are_no_plain_text_end_nothing(place: Path, capsys: Capture) -> None:
    """Dollar signs are formulas to matplotlib, some signs are in no font, some are no UTF-8."""
    data = place / "data"
    names = ["male/$\\frac$ {.jpg", "female/脸.jpg"]
    if sys.platform == "linux":
        names.append("male/\udcff.jpg")
    for name in names:
        draw_face(name.split("/")[0], 55 + len(name)).save(data / "new.jpg")
        shutil.move(data / "new.jpg", data / name)
    labels = [int(name.startswith("male")) for name in names]  # all wrong, for the gallery
    sources = ["a$b^$", "\x1b[31m", "c"][: len(names)]
    cells = {"path": names, "label": labels, "source": sources}
    table = pd.DataFrame(cells, dtype=object)  # pandas' own str takes no such names
    write_index(table, data / "index.csv")
    assert command(place, "--split", "all", "--robustness") == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out and "Glyph" not in captured.err
    assert figures(place)["all"]["n"] == len(names)


# Interruptions


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
def test_ctrl_c_in_the_middle_ends_the_command_at_once(place: Path) -> None:
    table = read_index(place / "data" / "index.csv")
    write_index(pd.concat([table] * 400), place / "data" / "index.csv")
    program = (  # which says when its first batch is with the net
        "import runpy, sys\n"
        "from face_gender.evaluate import predict\n"
        "real = predict.forward\n"
        "def forward(*given, **named):\n"
        "    print('begun', file=sys.stderr, flush=True)\n"
        "    return real(*given, **named)\n"
        "predict.forward = forward\n"
        "runpy.run_module('face_gender.evaluate', run_name='__main__', alter_sys=True)\n"
    )
    options = ["--split", "all", "--allow-seen", "--output", place / "out", "--device", "cpu"]
    given = [place / "best.pth", place / "data" / "index.csv", *options]
    ended = interrupt_once_begun(program, *given)
    assert ended.returncode == 130
    assert b"interrupted, nothing was written." in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert ended.stdout == b"" and list((place / "out").iterdir()) == []


def test_landmarks_are_no_columns_to_slice_by() -> None:
    rows = pd.DataFrame({"path": ["a", "b"], "nose_x": [0.1, 0.2], "face_left": [0.1, 0.2]})
    assert columns_to_slice(rows.assign(source=["x", "y"])) == ["source"]
