"""The command: python -m face_gender.audit, from pictures to tables and a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import COLOURS, ROOT, draw_face, make_faces, make_zip, snapshot
from PIL import Image
from sentences import broken_archive, sentence, text_file

import face_gender.audit
import face_gender.data.__main__ as data_split
from face_gender import CLASSES
from face_gender.audit import run as run_module
from face_gender.audit.__main__ import main
from face_gender.audit.findings import COLUMNS
from face_gender.audit.run import AuditReport, audit
from face_gender.data.index import Index
from face_gender.data.tables import read_index, write_index
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, hash64
from face_gender.model.recipes import get_recipe
from face_gender.train.loop import train

Capture = pytest.CaptureFixture[str]
OUTPUTS = ("audit.csv", "audit.html", "groups.csv")


pytestmark = pytest.mark.usefixtures("one_thread")


def save_checkpoint(path: Path, seen: tuple[str, ...] = (), seed: int = 3) -> Path:
    """A net with random weights."""
    torch.manual_seed(seed)
    recipe = get_recipe("compact_cnn")
    weights = build_model("compact_cnn").state_dict()
    Checkpoint(recipe, CLASSES, recipe.preprocessing, weights, seen=hash64(seen)).save(path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "random.pth")


def portrait(label: str, seed: int) -> Image.Image:
    """Reddish or bluish patches; drawn faces are too like each other to be told from copies."""
    noise = np.random.default_rng([seed, len(label)]).integers(0, 256, (8, 7, 1))
    tint = np.array(COLOURS[label]) / 210
    patches = Image.fromarray((noise * tint).astype(np.uint8))
    # Sharp edges: else each is blurred, which is a finding too.
    return patches.resize((98, 112), Image.Resampling.NEAREST)


def make_portraits(folder: Path, male: int, female: int) -> Path:
    """Write folder/male/m_0.jpg … and folder/female/f_0.jpg …, no two of them alike."""
    for label, count in (("male", male), ("female", female)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            portrait(label, i).save(folder / label / f"{label[0]}_{i}.jpg", quality=95)
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """10 + 10 pictures, and among them copies and files that are no pictures."""
    data = make_portraits(tmp_path / "data", 10, 10)
    male, female = data / "male", data / "female"
    shutil.copy(male / "m_1.jpg", male / "z_same.jpg")
    shutil.copy(male / "m_2.jpg", female / "z_same_other.jpg")
    portrait("male", 0).resize((78, 90)).save(male / "z_near.jpg", quality=60)
    portrait("female", 1).crop((4, 4, 98, 112)).save(male / "z_near_other.jpg", quality=80)
    (female / "z_empty.jpg").write_bytes(b"")
    (female / "z_text.jpg").write_text("no picture", encoding="utf-8")
    (male / "z_cut.jpg").write_bytes((male / "m_3.jpg").read_bytes()[:300])
    Image.new("RGB", (50, 60)).save(male / "z_black.png")
    return data


def look(given: Path, output: Path, weights: Path, **options: object) -> AuditReport:
    values = {"progress": False, "jobs": 1, **options}
    return audit(given, output, [weights], **values)  # type: ignore[arg-type]


def issues_of(report: AuditReport) -> dict[str, set[str]]:
    """The issues of each picture that has any."""
    found: dict[str, set[str]] = {}
    for path, issue in zip(report.findings["path"], report.findings["issue"], strict=True):
        found.setdefault(path, set()).add(issue)
    return found


def index_of(data: Path, path: Path) -> Path:
    """Write an index of every file by name, as a person might."""
    rows = [
        (f"{label}/{each.name}", number)
        for number, label in enumerate(CLASSES)
        for each in sorted((data / label).iterdir())
    ]
    write_index(pd.DataFrame(rows, columns=["path", "label"]), path)
    return path


# ---- What is found


def test_everything_planted_is_found_and_nothing_is_touched(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    before = snapshot(planted)
    report = look(planted, tmp_path / "audit", weights)
    assert snapshot(planted) == before
    found = issues_of(report)
    assert found["male/z_same.jpg"] >= {"exact_duplicate"}
    assert "male/m_1.jpg" not in found or "exact_duplicate" not in found["male/m_1.jpg"]
    assert "duplicate_other_label" in found["male/m_2.jpg"] & found["female/z_same_other.jpg"]
    assert "near_duplicate" in found["male/z_near.jpg"]
    assert "near_duplicate" not in found.get("male/m_0.jpg", ())
    other = "near_duplicate_other_label"
    assert other in found["male/z_near_other.jpg"] & found["female/f_1.jpg"]
    for name in ("female/z_empty.jpg", "female/z_text.jpg", "male/z_cut.jpg"):
        assert found[name] == {"unreadable"}
    assert {"dark", "blank"} <= found["male/z_black.png"]
    kinds = {"exact_duplicate", "duplicate_other_label", "near_duplicate", other}
    paired = {path for path, issues in found.items() if issues & kinds}
    assert len(paired) == 6  # and no innocent picture


def test_the_tables_are_what_the_documentation_says(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    report = look(planted, tmp_path / "audit", weights)
    assert tuple(path.name for path in report.files) == ("audit.csv", "groups.csv", "audit.html")
    table = pd.read_csv(tmp_path / "audit" / "audit.csv", keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    assert table["score"].is_monotonic_decreasing
    assert table["score"].between(0, 1).all()
    assert set(table["label"]) <= set(CLASSES)
    groups = pd.read_csv(tmp_path / "audit" / "groups.csv", dtype=str)
    assert list(groups.columns) == ["path", "group"]
    readable = set(report.table["path"]) - {
        "female/z_empty.jpg", "female/z_text.jpg", "male/z_cut.jpg"
    }  # fmt: skip
    assert set(groups["path"]) == readable
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "z_near_other.jpg" in page
    assert not (tmp_path / "audit" / "index_clean.csv").exists()


def test_a_second_look_writes_the_same_bytes(planted: Path, tmp_path: Path, weights: Path) -> None:
    contents = []
    for name, jobs in (("one", 1), ("two", 2), ("two", 2)):
        look(planted, tmp_path / name, weights, jobs=jobs)
        contents.append([(tmp_path / name / each).read_bytes() for each in OUTPUTS])
    assert contents[0] == contents[1] == contents[2]


def test_the_order_of_an_index_changes_no_finding_of_copies(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    index = index_of(planted, planted / "index.csv")
    first = look(index, tmp_path / "one", weights)
    head, *rows = index.read_text(encoding="utf-8").splitlines()
    index.write_text("\n".join([head, *reversed(rows)]), encoding="utf-8")
    second = look(index, tmp_path / "two", weights)

    def copies(report: AuditReport) -> set[tuple[str, ...]]:
        found = report.findings[report.findings["issue"].str.contains("duplicate")]
        return set(found[["path", "issue", "related"]].itertuples(index=False, name=None))

    assert copies(first) == copies(second) != set()


def test_groups_keep_copies_in_one_split(planted: Path, tmp_path: Path, weights: Path) -> None:
    portrait("male", 3).save(planted / "male" / "z_again.png")
    report = look(planted, tmp_path / "audit", weights)
    groups, index = tmp_path / "audit" / "groups.csv", tmp_path / "split.csv"
    for seed in range(4):
        arguments = [str(planted), "--groups", str(groups), "--output", str(index), "--force"]
        assert data_split.main([*arguments, "--seed", str(seed)]) == 0
        table = read_index(index).set_index("path")
        assert table.groupby("group")["split"].nunique().max() == 1
        near = report.findings[report.findings["issue"].str.startswith("near")]
        assert len(near) >= 4
        pairs = zip(near["path"], near["related"], strict=True)
        for path, related in pairs:
            assert table["split"][path] == table["split"][related]


def test_pictures_that_the_net_has_seen_are_not_judged_by_it(tmp_path: Path) -> None:
    faces = make_portraits(tmp_path / "data", 20, 20)
    index = Index.create(faces, tmp_path / "index.csv", progress=False)
    rows = index.table[np.arange(40) % 4 != 0]
    seen, hashes = set(rows["path"]), tuple(rows["sha256"])
    some = save_checkpoint(tmp_path / "some.pth", hashes)
    every = save_checkpoint(tmp_path / "every.pth", seed=4)
    alone = look(faces, tmp_path / "alone", some)
    judged = np.isfinite(alone.answers).all(axis=1)
    assert set(alone.table["path"][~judged]) == seen
    assert any("30 of 40" in note for note in alone.notes)
    both = audit(faces, tmp_path / "both", [some, every], progress=False, jobs=1)
    other = look(faces, tmp_path / "other", every)
    assert np.isfinite(both.answers).all()
    assert np.array_equal(both.answers[~judged], other.answers[~judged])
    assert (both.answers[judged] != other.answers[judged]).any()


def test_a_recipe_trained_in_folds_finds_the_wrong_label(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_portraits(tmp_path / "data", 20, 20)
    shutil.move(data / "male" / "m_5.jpg", data / "female" / "wrong.jpg")
    recipe = get_recipe("compact_cnn", epochs=3, batch_size=4, learning_rate=1e-3)
    options = {"recipe": recipe, "folds": 2}
    report = look(data, tmp_path / "audit", weights, **options)
    assert np.isfinite(report.answers).all()
    suspects = report.findings[report.findings["issue"] == "label"]
    assert "female/wrong.jpg" in set(suspects["path"])
    assert suspects.set_index("path")["looks_like"]["female/wrong.jpg"] == "male"
    assert not list((tmp_path / "audit").rglob("*.pth"))

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run_module.embeddings, "train_fold", never)
    again = look(data, tmp_path / "audit", weights, **options)
    assert np.array_equal(again.answers, report.answers)


# ---- What it may be given


def test_the_forms_of_one_data_set_give_the_same_findings(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    (planted / "male" / "Иван Петров, 1.jpg").write_bytes(
        (planted / "male" / "m_4.jpg").read_bytes()
    )
    by_folder = look(planted, tmp_path / "a1", weights).findings
    archive = make_zip(planted, tmp_path / "faces.zip")
    by_archive = look(archive, tmp_path / "a2", weights).findings
    beside = tmp_path / "beside"
    beside.mkdir()
    shutil.copy(archive, beside / "faces.zip")
    by_index_beside_archive = look(index_of(planted, beside / "i.csv"), tmp_path / "a3", weights)
    elsewhere = index_of(planted, tmp_path / "elsewhere.csv")
    by_data = look(elsewhere, tmp_path / "a4", weights, data=planted)
    by_data_archive = look(elsewhere, tmp_path / "a5", weights, data=archive)
    by_index = look(index_of(planted, planted / "index.csv"), tmp_path / "a6", weights)
    assert "male/Иван Петров, 1.jpg" in set(by_folder["path"]) | set(by_folder["related"])
    tables = [by_archive, *(each.findings for each in
              (by_index_beside_archive, by_data, by_data_archive, by_index))]  # fmt: skip
    for i, table in enumerate(tables):
        own, expected = (
            each.sort_values(["path", "issue"], ignore_index=True) for each in (table, by_folder)
        )
        # Sums in another order differ in the last digit.
        pd.testing.assert_frame_equal(own, expected, atol=1e-3, obj=f"findings of form {i}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such names")
@pytest.mark.parametrize("odd", ["лицо \udcff.jpg", "a\rb.jpg", "a\nb,c\"d'.jpg", "<b>|x.jpg"])
def test_odd_names_come_through(tmp_path: Path, weights: Path, odd: str) -> None:
    data = make_portraits(tmp_path / "data", 5, 5)
    shutil.copy(data / "male" / "m_0.jpg", data / "male" / odd)
    shutil.copy(data / "female" / "f_0.jpg", data / "female" / f"z{odd}")
    report = look(data, tmp_path / "audit", weights, apply=True, score=1)
    assert f"female/z{odd}" in set(report.findings["path"])
    assert main([str(data), "--output", str(tmp_path / "audit"), "--weights", str(weights)]) == 0
    groups = tmp_path / "audit" / "groups.csv"
    index = Index.create(data, tmp_path / "index.csv", groups=groups, progress=False)
    assert {f"male/{odd}", f"female/z{odd}"} <= set(index.table["path"])
    assert (index.table["group"] != "").all()
    written = read_index(tmp_path / "audit" / "index_clean.csv")
    assert f"female/z{odd}" not in set(written["path"])


def test_a_row_that_stands_twice_is_no_copy(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    index = index_of(data, data / "index.csv")
    with open(index, "a", encoding="utf-8") as file:
        file.write("male/m_0.jpg,0\n")
    report = look(index, tmp_path / "audit", weights, apply=True, score=1)
    assert not report.findings["issue"].str.contains("duplicate").any()
    assert read_index(tmp_path / "audit" / "index_clean.csv").equals(read_index(index))


def test_an_index_with_rows_of_missing_files_is_looked_at(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    index = index_of(data, data / "index.csv")
    (data / "male" / "m_1.jpg").unlink()
    found = look(index, tmp_path / "audit", weights).findings
    assert found[found["issue"] == "unreadable"]["path"].tolist() == ["male/m_1.jpg"]


def test_an_index_of_one_class_is_looked_at(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    index = index_of(data, data / "index.csv")
    lines = [line for line in index.read_text().splitlines() if not line.endswith(",1")]
    index.write_text("\n".join(lines))
    report = look(index, tmp_path / "audit", weights)
    assert len(report.table) == 4
    assert "label" not in set(report.findings["issue"])


def test_copies_of_a_single_placeholder_are_no_error(tmp_path: Path, weights: Path) -> None:
    data = tmp_path / "data"
    for label in CLASSES:
        (data / label).mkdir(parents=True)
        for i in range(30):
            draw_face("male", 0).save(data / label / f"{i}.jpg")
    report = look(data, tmp_path / "audit", weights)
    assert set(report.findings["issue"]) == {"duplicate_other_label"}
    assert len(report.findings) == 60


def test_a_data_set_of_bad_files_alone_is_no_error(tmp_path: Path, weights: Path) -> None:
    for label in CLASSES:
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / label / f"{i}.jpg").write_bytes(b"")
    report = look(tmp_path / "data", tmp_path / "audit", weights)
    assert report.findings["issue"].tolist() == ["unreadable"] * 6


def test_changed_pictures_are_looked_at_again(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    assert "unreadable" not in set(look(data, tmp_path / "audit", weights).findings["issue"])
    (data / "male" / "m_0.jpg").write_bytes(b"")
    found = look(data, tmp_path / "audit", weights).findings
    assert found["path"][found["issue"] == "unreadable"].tolist() == ["male/m_0.jpg"]


# ---- index_clean.csv


def test_an_index_keeps_all_that_was_not_found(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    plain = read_index(index_of(planted, planted / "index.csv"))
    random = np.random.default_rng(0)
    order = random.permutation(len(plain))
    table = plain.iloc[order].assign(note=[f"№ {i}, odd" for i in range(len(plain))], split="train")
    table = table[["note", "label", "split", "path"]]
    index = planted / "index.csv"
    table.to_csv(index, index=False)
    before = index.read_bytes()
    report = look(index, tmp_path / "audit", weights, apply=True, score=0.9)
    assert index.read_bytes() == before
    kept = read_index(tmp_path / "audit" / "index_clean.csv")
    bad = set(report.findings["path"][report.findings["score"] >= 0.9])
    assert {"female/z_empty.jpg", "male/z_near.jpg", "male/z_same.jpg"} <= bad
    expected = table[~table["path"].isin(bad)].reset_index(drop=True)
    assert kept.astype(str).equals(expected.astype(str))
    assert list(kept.columns) == ["note", "label", "split", "path"]


def test_a_folder_gives_an_index_to_train_by(planted: Path, tmp_path: Path, weights: Path) -> None:
    look(planted, tmp_path / "audit", weights, apply=True, score=0.9)
    index = tmp_path / "audit" / "index_clean.csv"
    table = read_index(index)
    assert set(table["split"]) == {"train", "val", "test"}
    assert not table["sha256"].duplicated().any()
    recipe = get_recipe("compact_cnn", epochs=1)
    (report,) = train(recipe, index, tmp_path / "w", data=planted, workers=0, progress=False)
    assert report.checkpoint.exists()
    # And it can be looked at itself, where nothing so bad is left.
    again = look(index, tmp_path / "again", weights, data=planted)
    assert not again.findings["issue"].str.contains("duplicate|unreadable").any()


def test_a_higher_score_leaves_out_less(planted: Path, tmp_path: Path, weights: Path) -> None:
    kept = []
    for score in (0.5, 0.99, 1):
        look(planted, tmp_path / "audit", weights, apply=True, score=score)
        kept.append(set(read_index(tmp_path / "audit" / "index_clean.csv")["path"]))
    assert kept[0] <= kept[1] <= kept[2]
    assert "male/z_near.jpg" not in kept[0] and "male/z_near.jpg" in kept[2]
    assert "male/z_same.jpg" not in kept[2]


def test_the_index_that_is_read_is_never_replaced(
    tmp_path: Path, weights: Path, capsys: Capture
) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    index = index_of(data, data / "index_clean.csv")
    before = snapshot(data)
    arguments = [str(index), "--output", str(data), "--weights", str(weights)]
    assert main([*arguments, "--apply"]) == 1
    assert "never replaced" in capsys.readouterr().err
    assert snapshot(data) == before


# ---- Interruptions


def test_an_interruption_loses_no_finished_stage(
    planted: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    calls: list[str] = []

    def counted(name: str, module: object, interrupted: bool = False) -> None:
        real = getattr(module, name)

        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            if interrupted and calls.count(name) == 1:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted("measure_all", run_module.pictures)
    counted("near_duplicates", run_module.duplicates)
    counted("embed_all", run_module.embeddings, interrupted=True)
    arguments = [str(planted), "--output", str(tmp_path / "audit"), "--weights", str(weights)]
    assert main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "audit" / "audit.csv").exists()
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert calls == ["measure_all", "near_duplicates", "embed_all", "embed_all"]
    assert look(planted, tmp_path / "fresh", weights).findings["path"].tolist() == (
        pd.read_csv(tmp_path / "audit" / "audit.csv")["path"].tolist()
    )


def test_another_checkpoint_repeats_its_own_stage_alone(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    look(data, tmp_path / "audit", weights)

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(run_module.pictures, "measure_all", never)
    monkeypatch.setattr(run_module.duplicates, "near_duplicates", never)
    other = save_checkpoint(tmp_path / "other.pth", seed=8)
    fresh = np.load(tmp_path / "audit" / "stages" / "embeddings_0.npz")["final"]
    look(data, tmp_path / "audit", other)
    assert (np.load(tmp_path / "audit" / "stages" / "embeddings_0.npz")["final"] != fresh).any()


# ---- The command line


def test_the_command_says_what_it_found_and_wrote(
    planted: Path, tmp_path: Path, weights: Path, capsys: Capture
) -> None:
    output = tmp_path / "new" / "audit"
    arguments = [str(planted), "--weights", str(weights), "--output", str(output), "--jobs", "2"]
    assert main([*arguments, "--apply", "--score", "0.95"]) == 0
    captured = capsys.readouterr()
    assert "unreadable" in captured.out and "28 pictures" in captured.out
    for name in (*OUTPUTS, "index_clean.csv"):
        assert f"wrote {output / name}" in captured.out
        assert (output / name).stat().st_size > 0
    for stage in ("pictures", "near-duplicates", "embeddings"):
        assert stage in captured.err
    assert "Warning" not in captured.err


def missing_folder(data: Path) -> list[str]:
    return [str(data.parent / "none")]


def missing_index(data: Path) -> list[str]:
    return [str(data.parent / "none.csv")]


def missing_archive(data: Path) -> list[str]:
    return [str(data.parent / "none.zip")]


def missing_weights(data: Path) -> list[str]:
    return [str(data), "--weights", str(data / "none.pth")]


def weights_that_are_none(data: Path) -> list[str]:
    return [str(data), "--weights", str(data / "male" / "m_0.jpg")]


def plain_weights(data: Path) -> list[str]:
    torch.save(build_model("compact_cnn").state_dict(), data.parent / "plain.pth")
    return [str(data), "--weights", str(data.parent / "plain.pth")]


def empty_folder(data: Path) -> list[str]:
    (data / "empty").mkdir()
    return [str(data / "empty")]


def empty_class(data: Path) -> list[str]:
    shutil.rmtree(data / "male")
    (data / "male").mkdir()
    return [str(data)]


def empty_file(data: Path) -> list[str]:
    (data / "index.csv").write_bytes(b"")
    return [str(data / "index.csv")]


def index_without_rows(data: Path) -> list[str]:
    (data / "index.csv").write_text("path,label\n")
    return [str(data / "index.csv")]


def index_without_labels(data: Path) -> list[str]:
    (data / "index.csv").write_text("path\nmale/m_0.jpg\n")
    return [str(data / "index.csv")]


def index_of_nothing_beside(data: Path) -> list[str]:
    return [str(index_of(data, data.parent / "index.csv"))]


def index_of_other_pictures(data: Path) -> list[str]:
    other = make_faces(data.parent / "other", 3, 3)
    index = Index.create(other, data.parent / "index.csv", progress=False)
    for path in (data / "male").iterdir():
        draw_face("female", 50).save(path)
    for path in (data / "female").iterdir():
        draw_face("male", 51).save(path)
    return [os.fspath(index), "--data", str(data)]


def data_of_a_folder(data: Path) -> list[str]:
    return [str(data), "--data", str(data)]


def output_is_a_file(data: Path) -> list[str]:
    return [str(data), "--output", str(data / "male" / "m_0.jpg")]


def output_under_a_file(data: Path) -> list[str]:
    return [str(data), "--output", str(data / "male" / "m_0.jpg" / "audit")]


def output_too_long(data: Path) -> list[str]:
    return [str(data), "--output", str(data / ("x" * 300))]


def output_where_a_folder_has_its_name(data: Path) -> list[str]:
    (data / "out" / "audit.csv").mkdir(parents=True)
    return [str(data), "--output", str(data / "out")]


def one_fold(data: Path) -> list[str]:
    return [str(data), "--folds", "1"]


def no_score(data: Path) -> list[str]:
    return [str(data), "--score", "0"]


def too_much_score(data: Path) -> list[str]:
    return [str(data), "--score", "50"]


def score_that_is_no_number(data: Path) -> list[str]:
    return [str(data), "--score", "nan"]


def no_jobs(data: Path) -> list[str]:
    return [str(data), "--jobs", "0"]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (missing_folder, "does not exist"),
        (missing_index, "cannot be read"),
        (missing_archive, "does not exist"),
        (missing_weights, "none.pth does not exist"),
        (weights_that_are_none, "not a whole .pth file"),
        (plain_weights, "plain state_dict"),
        (empty_folder, "no folders male/ and female/"),
        (empty_class, "no pictures in male/"),
        (empty_file, "is empty"),
        (index_without_rows, "names no pictures"),
        (index_without_labels, "no column label"),
        (index_of_nothing_beside, "--data"),
        (index_of_other_pictures, "other pictures"),
        (data_of_a_folder, "--data"),
        (broken_archive, "cannot be read as a .zip archive"),
        (text_file, "neither a folder nor a .zip"),
        (output_is_a_file, "is a file"),
        (output_under_a_file, "cannot be made"),
        pytest.param(
            output_too_long,
            "too long",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="other limits there"),
        ),
        (output_where_a_folder_has_its_name, "is a folder"),
        (one_fold, "2 folds"),
        (no_score, "score"),
        (too_much_score, "score"),
        (score_that_is_no_number, "score"),
        (no_jobs, "job"),
    ],
)
def test_mistake_is_one_sentence_and_exit_1(
    tmp_path: Path,
    weights: Path,
    capsys: Capture,
    mistake: Callable[[Path], list[str]],
    words: str,
) -> None:
    arguments = mistake(make_faces(tmp_path / "data", 3, 3))
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "audit")]
    if "--weights" not in arguments:
        arguments += ["--weights", str(weights)]
    before = snapshot(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    prefix = "face_gender.audit: "
    assert captured.err.startswith(prefix) and captured.err.count("\n") == 1
    assert words in captured.err
    with pytest.raises(InputError) as caught:
        raise InputError(captured.err.removeprefix(prefix).rstrip("\n"))
    sentence(caught)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_an_output_that_may_not_be_written_is_one_sentence(
    tmp_path: Path, weights: Path, capsys: Capture
) -> None:
    data = make_faces(tmp_path / "data", 3, 3)
    (tmp_path / "closed").mkdir(mode=0o500)
    for output in (tmp_path / "closed", tmp_path / "closed" / "audit"):
        assert main([str(data), "--weights", str(weights), "--output", str(output)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_nothing_left_to_keep_is_one_sentence(
    tmp_path: Path, weights: Path, capsys: Capture
) -> None:
    for label in CLASSES:
        (tmp_path / "data" / label).mkdir(parents=True)
        draw_face("male", 0).save(tmp_path / "data" / label / "a.jpg")
    arguments = [str(tmp_path / "data"), "--weights", str(weights), "--apply"]
    assert main([*arguments, "--output", str(tmp_path / "audit")]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("face_gender.audit: ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "b"], ["a", "--folds", "x"], ["a", "--recipe", "none"], ["a", "--unknown"]],
)
def test_usage_mistake_exits_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_and_usage_mistakes_import_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "for arguments in (['--help'], [], ['a', '--jobs', 'x']):\n"
        "    sys.argv = ['audit', *arguments]\n"
        "    try:\n"
        "        runpy.run_module('face_gender.audit', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        print('code', end.code)\n"
        "heavy = ('torch', 'pandas', 'numpy', 'PIL', 'faiss', 'sklearn', 'cleanlab')\n"
        "print('heavy', [m for m in heavy if m in sys.modules])\n"
    )
    lines = python("-c", code).stdout.splitlines()
    assert [line for line in lines if line.startswith("code")] == ["code 0", "code 2", "code 2"]
    assert lines[-1] == "heavy []"
    text = "\n".join(lines)
    for option in ("INDEX_OR_DATA", "--weights", "--output", "--jobs", "--apply", "--score"):
        assert option in text


@pytest.mark.parametrize("library", ["cleanlab", "cleanvision", "faiss", "sklearn"])
def test_a_missing_library_is_one_sentence(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in [each for each in sys.modules if each.startswith("face_gender.audit.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(face_gender.audit, name.split(".")[2], raising=False)
    for name in [each for each in sys.modules if each.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # import takes that for not installed
    assert main(["anything"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"face_gender.audit: {library} is missing: pip install -r requirements-audit.txt\n"
    )


def test_without_the_libraries_the_command_ends_without_a_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('faiss', 'cleanlab', 'cleanvision', 'sklearn'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.argv = ['audit', 'none']\n"
        "runpy.run_module('face_gender.audit', run_name='__main__')\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "requirements-audit.txt" in done.stderr and done.stderr.count("\n") == 1


def test_the_command_runs_from_any_folder(tmp_path: Path, weights: Path) -> None:
    make_faces(tmp_path / "лица", 3, 3)
    done = python("-m", "face_gender.audit", "лица", "--weights", weights.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "audit.csv", "audit.html", "groups.csv", "stages"
    ]  # fmt: skip
    assert "6 pictures" in done.stdout


# ---- The report


def test_counts_are_by_issue_and_label(planted: Path, tmp_path: Path, weights: Path) -> None:
    report = look(planted, tmp_path / "audit", weights)
    counts = report.counts()
    assert list(counts.columns) == list(CLASSES)
    assert counts.loc["unreadable"].to_dict() == {"male": 1, "female": 2}
    assert int(counts.to_numpy().sum()) == len(report.findings)
    assert list(report.table.columns) == ["path", "label", "sha256", "group"]
    assert report.answers.shape == (len(report.table), 2)


def test_the_page_has_a_thumbnail_of_what_can_be_read(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    look(planted, tmp_path / "audit", weights)
    text = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    data = json.loads(text[start : text.index("</script>", start)])
    pictures = dict(zip(data["paths"], data["pictures"], strict=True))
    assert pictures["female/z_empty.jpg"] == -1
    assert pictures["male/z_near.jpg"] >= 0
    # What it resembles is on the page too, though nothing is wrong with it.
    assert pictures["male/m_0.jpg"] >= 0


# ---- What was there before


def test_groups_of_persons_are_kept(planted: Path, tmp_path: Path, weights: Path) -> None:
    index = index_of(planted, tmp_path / "index.csv")
    table = read_index(index)
    persons = {"male/m_4.jpg": "anna", "female/f_4.jpg": "anna", "male/z_near.jpg": "boris"}
    table["group"] = table["path"].map(persons).fillna("")
    table.loc[table["path"] == "male/m_5.jpg", "group"] = "boris"
    table.to_csv(index, index=False)
    report = look(index, tmp_path / "audit", weights, data=planted)
    group = dict(zip(report.table["path"], report.table["group"], strict=True))
    assert group["male/m_4.jpg"] == group["female/f_4.jpg"] != group["male/m_5.jpg"]
    # The copy of m_0 is Boris's, so that m_0 is too.
    assert group["male/z_near.jpg"] == group["male/m_5.jpg"] == group["male/m_0.jpg"]


def test_a_cleaned_index_keeps_the_form_of_its_own(
    planted: Path, tmp_path: Path, weights: Path
) -> None:
    names = [f"male/m_{i}.jpg" for i in range(6)] + [f"female/f_{i}.jpg" for i in range(6)]
    rows = [f"{name},{name.split('/')[0].upper()},{i:02d}" for i, name in enumerate(names)]
    rows += ["male/z_same.jpg,male,007"]
    index = planted / "older.csv"
    index.write_text("\n".join(["image_name,class,age", *rows, ""]), encoding="utf-8")
    look(index, tmp_path / "audit", weights, apply=True, score=0.99)
    left = (tmp_path / "audit" / "index_clean.csv").read_text(encoding="utf-8").splitlines()
    assert left == ["image_name,class,age", *rows[:-1]]
