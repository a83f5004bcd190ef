"""The command: python -m face_gender.audit, from pictures to tables and a page."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    COLOURS,
    data_of,
    draw_face,
    gone_drive,
    make_checkpoint,
    make_faces,
    make_index,
    make_zip,
    python,
    snapshot,
)
from PIL import Image
from sentences import one_sentence

import face_gender.data.__main__ as data_split
from face_gender import CLASSES
from face_gender.audit import duplicates, embeddings, pictures
from face_gender.audit.__main__ import main
from face_gender.audit.findings import COLUMNS
from face_gender.audit.run import AuditReport, audit
from face_gender.data.images import UnreadableImage
from face_gender.data.index import Index, list_pictures
from face_gender.data.landmarks import COORDINATES
from face_gender.data.sources import open_source
from face_gender.data.tables import read_index, write_index
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import hash64
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.loop import train

Capture = pytest.CaptureFixture[str]
OUTPUTS = ("audit.csv", "audit.html", "groups.csv")
UNREADABLE = {"female/z_empty.jpg", "female/z_text.jpg", "male/z_cut.jpg"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    make_checkpoint(seed=3).save(path)
    return path


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


def make_planted(data: Path) -> Path:
    """10 + 10 pictures, and among them copies and files that are no pictures."""
    make_portraits(data, 10, 10)
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


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make_planted` writes, for tests that change nothing."""
    return make_planted(tmp_path_factory.mktemp("planted") / "data")


def look(given: object, output: Path, weights: Path, **options: object) -> AuditReport:
    values = {"progress": False, "jobs": 1, **options}
    return audit(given, output, [weights], **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def looked(planted: Path, weights: Path) -> AuditReport:
    """What one audit of it found; its files lie in planted/../audit."""
    before = snapshot(planted)
    report = look(planted, planted.parent / "audit", weights, apply=True, score=0.9)
    assert snapshot(planted) == before
    return report


def issues_of(report: AuditReport) -> dict[str, set[str]]:
    """The issues of each picture that has any."""
    return report.findings.groupby("path")["issue"].agg(set).to_dict()


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


def test_everything_planted_is_found(looked: AuditReport) -> None:
    found = issues_of(looked)
    assert found["male/z_same.jpg"] >= {"exact_duplicate"}
    assert "exact_duplicate" not in found.get("male/m_1.jpg", ())
    assert "duplicate_other_label" in found["male/m_2.jpg"] & found["female/z_same_other.jpg"]
    assert "near_duplicate" in found["male/z_near.jpg"]
    assert "near_duplicate" not in found.get("male/m_0.jpg", ())
    other = "near_duplicate_other_label"
    assert other in found["male/z_near_other.jpg"] & found["female/f_1.jpg"]
    for name in UNREADABLE:
        assert found[name] == {"unreadable"}
    assert {"dark", "blank"} <= found["male/z_black.png"]
    kinds = {"exact_duplicate", "duplicate_other_label", "near_duplicate", other}
    paired = {path for path, issues in found.items() if issues & kinds}
    assert len(paired) == 6  # and no innocent picture


def test_the_tables_are_what_the_documentation_says(looked: AuditReport, planted: Path) -> None:
    folder = planted.parent / "audit"
    assert [path.name for path in looked.files] == [
        "audit.csv", "groups.csv", "audit.html", "index_clean.csv"
    ]  # fmt: skip
    table = pd.read_csv(folder / "audit.csv", keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    assert table["score"].is_monotonic_decreasing
    assert table["score"].between(0, 1).all()
    assert set(table["label"]) <= set(CLASSES)
    groups = pd.read_csv(folder / "groups.csv", dtype=str)
    assert list(groups.columns) == ["path", "group"]
    assert set(groups["path"]) == set(looked.table["path"]) - UNREADABLE
    assert list(looked.table.columns) == ["path", "label", "sha256", "group"]
    assert looked.probabilities.shape == (len(looked.table), 2)
    counts = looked.counts()
    assert list(counts.columns) == list(CLASSES)
    assert counts.loc["unreadable"].to_dict() == {"male": 1, "female": 2}
    assert int(counts.to_numpy().sum()) == len(looked.findings)


def test_the_page_has_a_thumbnail_of_what_can_be_read(looked: AuditReport) -> None:
    data = data_of(looked.files[2])
    thumbnails = dict(zip(data["paths"], data["pictures"], strict=True))
    assert thumbnails["female/z_empty.jpg"] == -1
    assert thumbnails["male/z_near.jpg"] >= 0
    # What it resembles is on the page too, though nothing is wrong with it.
    assert thumbnails["male/m_0.jpg"] >= 0


def test_the_number_of_jobs_and_a_second_look_change_no_byte(
    looked: AuditReport, planted: Path, tmp_path: Path, weights: Path
) -> None:
    contents = [[(planted.parent / "audit" / each).read_bytes() for each in OUTPUTS]]
    for _ in range(2):
        look(planted, tmp_path, weights, jobs=2)
        contents.append([(tmp_path / each).read_bytes() for each in OUTPUTS])
    assert contents[0] == contents[1] == contents[2]


def test_groups_keep_copies_in_one_split(
    looked: AuditReport, planted: Path, tmp_path: Path
) -> None:
    index = tmp_path / "split.csv"
    near = looked.findings[looked.findings["issue"].str.startswith("near")]
    assert len(near) >= 3
    for seed in range(3):
        arguments = [str(planted), "--groups", str(looked.files[1]), "--output", str(index)]
        assert data_split.main([*arguments, "--force", "--seed", str(seed)]) == 0
        table = read_index(index).set_index("path")
        assert table.groupby("group")["split"].nunique().max() == 1
        for path, related in zip(near["path"], near["related"], strict=True):
            assert table["split"][path] == table["split"][related]


def test_pictures_that_the_net_has_seen_are_named_and_still_judged(tmp_path: Path) -> None:
    data = make_portraits(tmp_path / "data", 20, 20)
    index = make_index(data, tmp_path / "index.csv")
    seen = index.table[np.arange(40) % 4 != 0]
    portrait("male", 0).save(data / "male" / "copy.png")  # of one that was seen, or not
    some = tmp_path / "some.pth"
    make_checkpoint(seed=3, seen_hashes=hash64(seen["sha256"])).save(some)
    report = look(data, tmp_path / "audit", some)
    assert np.isfinite(report.probabilities).all()
    told = set(report.table["path"][report.seen])
    assert told - {"male/copy.png"} == set(seen["path"])
    assert ("male/copy.png" in told) == ("male/m_0.jpg" in told)
    (note,) = report.notes
    assert f"{len(told)} of 41 pictures" in note and "some.pth" in note
    assert note in report.summary()
    assert "were in the training" in report.files[2].read_text(encoding="utf-8")
    other = tmp_path / "other.pth"
    make_checkpoint(seed=4).save(other)
    unseen = look(data, tmp_path / "other", other)
    assert not unseen.seen.any() and unseen.notes == ()
    both = audit(data, tmp_path / "both", [some, other], progress=False, jobs=1)
    assert both.probabilities == pytest.approx(
        (report.probabilities + unseen.probabilities) / 2, abs=1e-5
    )


def test_a_recipe_trained_in_folds_finds_the_wrong_label(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_portraits(tmp_path / "data", 20, 20)
    shutil.move(data / "male" / "m_5.jpg", data / "female" / "wrong.jpg")
    recipe = get_recipe("compact_cnn", epochs=3, batch_size=4, learning_rate=1e-3)
    options = {"recipe": recipe, "folds": 2}
    report = look(data, tmp_path / "audit", weights, **options)
    assert np.isfinite(report.probabilities).all()
    suspects = report.findings[report.findings["issue"] == "label"].set_index("path")
    assert suspects["looks_like"]["female/wrong.jpg"] == "male"
    assert not list((tmp_path / "audit").rglob("*.pth"))

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(embeddings, "train_fold", never)
    again = look(data, tmp_path / "audit", weights, **options)
    assert np.array_equal(again.probabilities, report.probabilities)


@pytest.mark.parametrize("recipe", [None, get_recipe("compact_cnn", epochs=1)])
def test_what_could_not_be_read_is_looked_at_again(
    recipe: Recipe | None, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a decoder that was installed since, its bytes and its date being the same."""
    data = make_portraits(tmp_path / "data", 6, 6)
    portrait("male", 0).save(data / "male" / "copy.jpg", quality=95)
    expected = look(data, tmp_path / "whole", weights, recipe=recipe, folds=2)
    decode = pictures.decode_image

    def without_decoder(content: bytes, name: str) -> Image.Image:
        if name == "male/m_0.jpg":
            raise UnreadableImage(name, "no decoder")
        return decode(content, name)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode_image", without_decoder)
        first = look(data, tmp_path / "audit", weights, recipe=recipe, folds=2)
    assert "unreadable" in first.findings["issue"].tolist()
    report = look(data, tmp_path / "audit", weights, recipe=recipe, folds=2)
    pd.testing.assert_frame_equal(report.findings, expected.findings)
    assert np.array_equal(report.probabilities, expected.probabilities)


def test_what_failed_in_a_later_stage_is_not_kept(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that was away for a moment, after its bytes had been looked at."""
    data = make_portraits(tmp_path / "data", 6, 6)
    expected = look(data, tmp_path / "whole", weights)
    embed = embeddings.embed_all

    def without_one(*given: Any) -> Any:
        found = embed(*given)
        found["final"][3] = np.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "embed_all", without_one)
        first = look(data, tmp_path / "audit", weights)
    assert not np.isfinite(first.probabilities).all()
    report = look(data, tmp_path / "audit", weights)
    assert np.array_equal(report.probabilities, expected.probabilities)


def test_groups_of_a_list_of_bare_names_are_kept(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 6, 6)
    rows = [f"{label[0]}_{i}.jpg,{label},p{i // 2}" for label in CLASSES for i in range(6)]
    (data / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    report = look(data / "list.csv", tmp_path / "audit", weights)
    assert report.table.groupby(report.table["path"].str[-5])["group"].nunique().max() <= 2
    together = report.table.set_index("path")["group"]
    for i in range(0, 6, 2):
        pictures_of = [f"{label}/{label[0]}_{i + j}.jpg" for label in CLASSES for j in (0, 1)]
        assert together[pictures_of].nunique() == 1
    again = make_index(data / "list.csv", tmp_path / "new.csv", groups=report.files[1])
    assert again.table.groupby("group")["split"].nunique().max() == 1


def test_folds_that_groups_change_are_trained_again(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds: list[list[bool]] = []

    def trained(recipe: Recipe, table: pd.DataFrame, source: object, held_out: np.ndarray,
                *_: object, **__: object) -> np.ndarray:  # fmt: skip
        folds.append(held_out.tolist())
        return np.full((len(table), 2), 0.5, np.float32)

    monkeypatch.setattr(embeddings, "train_fold", trained)
    data = make_portraits(tmp_path / "data", 10, 10)
    index = index_of(data, tmp_path / "index.csv")
    options = {"data": data, "recipe": get_recipe("compact_cnn"), "folds": 2}
    for _ in range(2):
        look(index, tmp_path / "audit", weights, **options)
    assert len(folds) == 2
    table = read_index(index)
    write_index(table.assign(group=[f"g{i // 4}" for i in range(len(table))]), index)
    look(index, tmp_path / "audit", weights, **options)
    assert len(folds) == 4 and folds[2:] != folds[:2]


def save_aligning_net(path: Path) -> Path:
    preprocessing = replace(get_recipe("compact_cnn").preprocessing, align="landmarks")
    make_checkpoint(recipe=get_recipe("compact_cnn", preprocessing=preprocessing)).save(path)
    return path


def test_what_cannot_be_read_is_read_again_once_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by weights that look for faces first."""
    data = make_portraits(tmp_path / "data", 4, 4)
    (data / "male" / "m_0.jpg").write_bytes(b"no picture")
    net, measure, calls = save_aligning_net(tmp_path / "net.pth"), pictures.measure_all, []

    def counted(*given: Any) -> Any:
        calls.append(list(given[1]))
        return measure(*given)

    monkeypatch.setattr(pictures, "measure_all", counted)
    for _ in range(2):
        look(data, tmp_path / "audit", net)
    assert len(calls) == 2 and calls[1] == ["male/m_0.jpg"]


def test_faces_that_were_moved_are_embedded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_aligning_net(tmp_path / "net.pth")
    data = make_portraits(tmp_path / "data", 3, 3)
    index = index_of(data, tmp_path / "index.csv")
    table = read_index(index).assign(faces="1", **dict.fromkeys(COORDINATES, "0.4"))
    embed, calls = embeddings.embed_all, []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return embed(*given)

    monkeypatch.setattr(embeddings, "embed_all", counted)
    for moved in (table, table, table.assign(left_eye_x="0.3")):
        write_index(moved, index)
        look(index, tmp_path / "audit", tmp_path / "net.pth", data=data)
    assert len(calls) == 2


def test_faces_that_an_index_counts_are_findings(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 3, 3)
    index = index_of(data, tmp_path / "index.csv")
    table = read_index(index).assign(faces=["1", "0", "", "3", "1", "1"])
    write_index(table, index)
    report = look(index, tmp_path / "audit", weights, data=data, apply=True)
    found = report.findings.set_index("path")["issue"].to_dict()
    assert found == {"male/m_1.jpg": "no_face_found", "female/f_0.jpg": "several_faces"}
    # Reported, and not left out: detectors overlook faces.
    assert len(read_index(tmp_path / "audit" / "index_clean.csv")) == 6


def test_a_drive_that_is_gone_ends_an_audit_in_a_sentence(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = list_pictures(make_faces(tmp_path / "data", 30, 30))[0]
    source = gone_drive(monkeypatch, tmp_path / "data")
    with pytest.raises(InputError, match="seems to be gone: connect it") as caught:
        look(Index(table, source), tmp_path / "audit", weights)
    assert "--resume" not in str(caught.value)  # which the audit does not know
    assert not (tmp_path / "audit" / "audit.csv").exists()


# ---- What it may be given


def test_the_forms_of_one_data_set_give_the_same_findings(tmp_path: Path, weights: Path) -> None:
    data = make_planted(tmp_path / "data")
    shutil.copy(data / "male" / "m_4.jpg", data / "male" / "Иван Петров, 1.jpg")
    expected = look(data, tmp_path / "a0", weights).findings
    assert "male/Иван Петров, 1.jpg" in set(expected["path"]) | set(expected["related"])
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere.csv"
    beside.mkdir()
    archive = make_zip(data, beside / "faces.zip")
    turned = read_index(index_of(data, elsewhere))[::-1].reset_index(drop=True)
    write_index(turned, elsewhere)
    opened = Index(turned, open_source(data))
    forms = [
        (archive, {}),
        (index_of(data, beside / "i.csv"), {}),
        (index_of(data, data / "index.csv"), {}),
        (elsewhere, {"data": data}),
        (elsewhere, {"data": archive}),
        (opened, {}),
    ]
    for i, (given, options) in enumerate(forms, start=1):
        found = look(given, tmp_path / f"a{i}", weights, **options).findings
        tables = (each.sort_values(["path", "issue"], ignore_index=True)
                  for each in (found, expected))  # fmt: skip
        # Sums in another order differ in the last digit.
        pd.testing.assert_frame_equal(*tables, atol=1e-3, obj=f"findings of form {i}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such names")
def test_odd_names_are_found_grouped_and_left_out(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 5, 5)
    odd = ["лицо \udcff.jpg", "a\rb.jpg", "a\nb,c\"d'.jpg", "<b>|x.jpg"]
    for i, name in enumerate(odd):
        shutil.copy(data / "male" / f"m_{i}.jpg", data / "male" / name)
        shutil.copy(data / "female" / f"f_{i}.jpg", data / "female" / f"z{name}")
    report = look(data, tmp_path / "audit", weights, apply=True, score=1)
    assert {f"female/z{name}" for name in odd} <= set(report.findings["path"])
    assert main([str(data), "--output", str(tmp_path / "audit"), "--weights", str(weights)]) == 0
    index = make_index(data, tmp_path / "index.csv", groups=report.files[1])
    kept = {f"{folder}{name}" for name in odd for folder in ("male/", "female/z")}
    assert kept <= set(index.table["path"])
    assert (index.table["group"] != "").all()
    written = read_index(report.files[3])
    assert set(written["path"]).isdisjoint(f"female/z{name}" for name in odd)


@pytest.mark.skipif(os.name != "posix", reason="no such names on Windows")
def test_a_summary_shows_names_escaped(tmp_path: Path, weights: Path) -> None:
    data = make_portraits(tmp_path / "data", 3, 3)
    archive = make_zip(data, tmp_path / "faces.zip")
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("../\x1b[2J\nfake: all is well.jpg", b"")
    report = look(archive, tmp_path / "audit", weights)
    assert "fake" in report.notes[0]
    assert r"\x1b[2J\nfake: all is well.jpg" in report.summary()
    assert "\x1b" not in report.summary()


def test_rows_that_stand_twice_or_of_missing_files_are_no_error(
    tmp_path: Path, weights: Path
) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    index = index_of(data, data / "index.csv")
    with open(index, "a", encoding="utf-8") as file:
        file.write("male/m_0.jpg,0\n")
    (data / "male" / "m_1.jpg").unlink()
    report = look(index, tmp_path / "audit", weights, apply=True, score=1)
    assert issues_of(report)["male/m_1.jpg"] == {"unreadable"}
    assert not report.findings["issue"].str.contains("duplicate").any()
    expected = read_index(index).query("path != 'male/m_1.jpg'").reset_index(drop=True)
    assert read_index(report.files[3]).equals(expected)


def one_class(data: Path) -> Path:
    table = read_index(index_of(data, data / "index.csv"))
    write_index(table[table["label"] == 0], data / "index.csv")
    return data / "index.csv"


def one_placeholder(data: Path) -> Path:
    for path in data.rglob("*.jpg"):
        draw_face("male", 0).save(path)
    return data


def bad_files_alone(data: Path) -> Path:
    for path in data.rglob("*.jpg"):
        path.write_bytes(b"")
    return data


@pytest.mark.parametrize(
    ("make", "issues"),
    [
        (one_class, set()),
        (one_placeholder, {"duplicate_other_label"}),
        (bad_files_alone, {"unreadable"}),
    ],
)
def test_what_cannot_be_learnt_from_is_looked_at_too(
    tmp_path: Path, weights: Path, make: Callable[[Path], Path], issues: set[str]
) -> None:
    given = make(make_portraits(tmp_path / "data", 30, 30))
    report = look(given, tmp_path / "audit", weights)
    assert set(report.findings["issue"]) - {"not_a_face"} == issues
    assert len(report.table) == (30 if make is one_class else 60)
    if make is not one_placeholder:
        assert np.isnan(report.probabilities).all()


# ---- index_clean.csv


def test_an_index_keeps_all_that_was_not_found(tmp_path: Path, weights: Path) -> None:
    data = make_planted(tmp_path / "data")
    plain = read_index(index_of(data, data / "index.csv"))
    order = np.random.default_rng(0).permutation(len(plain))
    table = plain.iloc[order].assign(note=[f"№ {i}, odd" for i in range(len(plain))], split="train")
    table = table[["note", "label", "split", "path"]]
    index = data / "index.csv"
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


def test_a_folder_gives_an_index_to_train_by(
    looked: AuditReport, planted: Path, tmp_path: Path, weights: Path
) -> None:
    index = looked.files[3]
    table = read_index(index)
    assert set(table["split"]) == {"train", "val", "test"}
    assert not table["sha256"].duplicated().any()
    recipe = get_recipe("compact_cnn", epochs=1)
    (report,) = train(recipe, index, tmp_path / "w", data=planted, workers=0, progress=False)
    assert report.checkpoint.exists()
    # And it can be looked at itself, where nothing so bad is left; a higher score leaves out less.
    again = look(index, tmp_path / "again", weights, data=planted, apply=True, score=1)
    assert not again.findings["issue"].str.contains("duplicate|unreadable").any()
    assert set(read_index(again.files[3])["path"]) == set(table["path"])
    more = look(planted, tmp_path / "more", weights, apply=True, score=1)
    left = set(read_index(more.files[3])["path"])
    assert left > set(table["path"])
    assert "male/z_near.jpg" in left - set(table["path"])
    assert "male/z_same.jpg" not in left


def test_a_cleaned_index_keeps_the_form_of_its_own(
    looked: AuditReport, tmp_path: Path, weights: Path
) -> None:
    data = make_planted(tmp_path / "data")
    names = [f"male/m_{i}.jpg" for i in range(6)] + [f"female/f_{i}.jpg" for i in range(6)]
    rows = [f"{name},{name.split('/')[0].upper()},{i:02d}" for i, name in enumerate(names)]
    rows += ["male/z_same.jpg,male,007"]
    index = data / "older.csv"
    index.write_text("\n".join(["image_name,class,age", *rows, ""]), encoding="utf-8")
    look(index, tmp_path / "audit", weights, apply=True, score=0.99)
    left = (tmp_path / "audit" / "index_clean.csv").read_text(encoding="utf-8").splitlines()
    assert left == ["image_name,class,age", *rows[:-1]]


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


def test_groups_of_persons_are_kept(planted: Path, tmp_path: Path, weights: Path) -> None:
    table = read_index(index_of(planted, tmp_path / "index.csv"))
    persons = {"male/m_4.jpg": "anna", "female/f_4.jpg": "anna",
               "male/z_near.jpg": "boris", "male/m_5.jpg": "boris"}  # fmt: skip
    table["group"] = table["path"].map(persons).fillna("")
    write_index(table, tmp_path / "index.csv")
    report = look(tmp_path / "index.csv", tmp_path / "audit", weights, data=planted)
    group = dict(zip(report.table["path"], report.table["group"], strict=True))
    assert group["male/m_4.jpg"] == group["female/f_4.jpg"] != group["male/m_5.jpg"]
    # The copy of m_0 is Boris's, so that m_0 is too.
    assert group["male/z_near.jpg"] == group["male/m_5.jpg"] == group["male/m_0.jpg"]


# ---- Interruptions


def test_an_interruption_loses_no_finished_stage(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    data = make_portraits(tmp_path / "data", 4, 4)
    calls: list[str] = []

    def counted(name: str, module: object, interrupted: bool = False) -> None:
        real = getattr(module, name)

        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            if interrupted and calls.count(name) == 1:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted("measure_all", pictures)
    counted("near_duplicates", duplicates)
    counted("embed_all", embeddings, interrupted=True)
    arguments = [str(data), "--output", str(tmp_path / "audit")]
    assert main([*arguments, "--weights", str(weights)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "audit" / "audit.csv").exists()
    for _ in range(2):
        assert main([*arguments, "--weights", str(weights)]) == 0
    assert calls == ["measure_all", "near_duplicates", "embed_all", "embed_all"]
    # Another net repeats its own stage alone, a changed file those that read it.
    other = tmp_path / "other.pth"
    make_checkpoint(seed=8).save(other)
    assert main([*arguments, "--weights", str(other)]) == 0
    assert calls[4:] == ["embed_all"]
    (data / "male" / "m_0.jpg").write_bytes(b"")
    assert main([*arguments, "--weights", str(other)]) == 0
    assert calls[5:] == ["measure_all", "near_duplicates", "embed_all"]
    found = pd.read_csv(tmp_path / "audit" / "audit.csv")
    assert found["path"][found["issue"] == "unreadable"].tolist() == ["male/m_0.jpg"]


# ---- The command line


def test_the_command_says_what_it_found_and_wrote(
    planted: Path, tmp_path: Path, weights: Path, capsys: Capture
) -> None:
    output = tmp_path / "new" / "audit"
    arguments = [str(planted), "--weights", str(weights), "--output", str(output), "--jobs", "2"]
    assert main(arguments) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted([*OUTPUTS, "stages"])
    capsys.readouterr()
    shutil.rmtree(output)
    assert main([*arguments, "--apply", "--score", "0.95"]) == 0
    captured = capsys.readouterr()
    assert "unreadable" in captured.out and "28 pictures" in captured.out
    for name in (*OUTPUTS, "index_clean.csv"):
        assert f"wrote {output / name}" in captured.out
        assert (output / name).stat().st_size > 0
    assert "Warning" not in captured.err


Mistake = Callable[[Path], list[str]]


def file_of(text: str) -> Mistake:
    """An index of that text."""

    def write(data: Path) -> list[str]:
        (data / "index.csv").write_text(text, encoding="utf-8")
        return [str(data / "index.csv")]

    return write


def plain_weights(data: Path) -> list[str]:
    torch.save(build_model("compact_cnn").state_dict(), data.parent / "plain.pth")
    return [str(data), "--weights", str(data.parent / "plain.pth")]


def index_of_other_pictures(data: Path) -> list[str]:
    other = make_faces(data.parent / "other", 3, 3)
    index = make_index(other, data.parent / "index.csv")
    for path in data.rglob("*.jpg"):
        draw_face("female", 50).save(path)
    return [str(index.path), "--data", str(data)]


def output_where_a_folder_has_its_name(data: Path) -> list[str]:
    (data / "out" / "audit.csv").mkdir(parents=True)
    return [str(data), "--output", str(data / "out")]


def option(*arguments: str) -> Mistake:
    """These arguments behind the data's folder, whose name stands for {}."""
    return lambda data: [str(data), *(each.format(data) for each in arguments)]


MISTAKES: list[tuple[Mistake, str]] = [
    (lambda data: [str(data.parent / "none")], "does not exist"),
    (lambda data: [str(data.parent / "none.csv")], "cannot be read"),
    (lambda data: [str(index_of(data, data.parent / "index.csv"))], "--data"),
    (file_of(""), "is empty"),
    (file_of("path,label\n"), "has no rows"),
    (file_of("path\nmale/m_0.jpg\n"), "wanted: path"),
    (index_of_other_pictures, "other pictures"),
    (plain_weights, "plain state_dict"),
    (option("--weights", "{}/none.pth"), "none.pth does not exist"),
    (option("--weights", "{}/male/m_0.jpg"), "not a whole .pth file"),
    (option("--data", "{}"), "--data"),
    (option("--output", "{}/male/m_0.jpg"), "is a file"),
    (option("--output", "{}/male/m_0.jpg/audit"), "cannot be made"),
    (output_where_a_folder_has_its_name, "is a folder"),
    (option("--folds", "1"), "2 folds"),
    (option("--score", "0"), "score"),
    (option("--score", "nan"), "score"),
    (option("--jobs", "0"), "job"),
]


@pytest.mark.parametrize(("mistake", "words"), MISTAKES)
def test_mistake_is_one_sentence_and_exit_1(
    tmp_path: Path, weights: Path, capsys: Capture, mistake: Mistake, words: str
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
    assert words in one_sentence(captured.err, "face_gender.audit")
    assert snapshot(tmp_path) == before


def test_nothing_left_to_keep_is_one_sentence(
    tmp_path: Path, weights: Path, capsys: Capture
) -> None:
    for label in CLASSES:
        (tmp_path / "data" / label).mkdir(parents=True)
        draw_face("male", 0).save(tmp_path / "data" / label / "a.jpg")
    arguments = [str(tmp_path / "data"), "--weights", str(weights), "--apply"]
    assert main([*arguments, "--output", str(tmp_path / "audit")]) == 1
    *progress, last = capsys.readouterr().err.splitlines()
    assert "would be empty" in one_sentence(last, "face_gender.audit")
    assert not any("Traceback" in line for line in progress)


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "b"], ["a", "--folds", "x"], ["a", "--recipe", "none"], ["a", "--unknown"]],
)
def test_usage_mistake_exits_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_missing_library_is_one_sentence(tmp_path: Path) -> None:
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
    assert "pip install -r requirements-audit.txt" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_runs_from_any_folder_by_the_weights_of_the_kit(tmp_path: Path) -> None:
    make_faces(tmp_path / "лица", 3, 3)
    done = python("-m", "face_gender.audit", "лица", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "audit.csv", "audit.html", "groups.csv", "stages"
    ]  # fmt: skip
    assert "6 pictures" in done.stdout
