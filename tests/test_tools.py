"""The scripts that the shipped weights and their figures come from, on tiny data."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import draw_face, make_faces

from face_gender.data.tables import read_index
from tools import compare, pretrain, sources


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """utkface/ and celeba64/ of drawn faces, with one photograph under both labels."""
    root = tmp_path / "data"
    for i in range(20):
        for label, number in (("male", 0), ("female", 1)):
            folder = root / "utkface" / label
            folder.mkdir(parents=True, exist_ok=True)
            age = 2 if i < 4 else 30 + i
            name = f"{age}_{number}_{i % 5}_2017011{i:05d}.jpg"
            draw_face(label, i).save(folder / name, quality=92)
    draw_face("male", 7).save(root / "utkface" / "female" / "37_1_0_copy.jpg", quality=50)
    make_faces(root / "celeba64", 12, 12)
    names = [p.relative_to(root / "celeba64").as_posix() for p in root.glob("celeba64/*/*.jpg")]
    groups = [str(i // 2) for i in range(len(names))]
    pd.DataFrame({"path": names, "group": groups}).to_csv(
        root / "celeba64" / "labels.csv", index=False
    )
    return root


@pytest.fixture(params=["", "utkface/"], ids=["of the folder", "of the archive"])
def audit(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Path:
    """What an audit found, whose paths begin with the folder's name where it read an archive."""
    folder = tmp_path / "audit"
    folder.mkdir()
    prefix = str(request.param)
    paths = sorted(p.relative_to(data / "utkface").as_posix() for p in data.glob("utkface/*/*.jpg"))
    pd.DataFrame(
        {"path": [prefix + path for path in paths], "group": [str(i) for i in range(len(paths))]}
    ).to_csv(folder / "groups.csv", index=False)
    male = next(path for path in paths if path.startswith("male/37_"))
    finding = {
        "path": f"{prefix}female/37_1_0_copy.jpg",
        "issue": "near_duplicate_other_label",
        "related": f"{prefix}{male}|{prefix}male/40_0_0_201701100010.jpg",
    }
    pd.DataFrame([finding]).to_csv(folder / "audit.csv", index=False)
    return folder


def test_contradictory_photographs_and_small_children_are_out(
    data: Path, audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sources", str(data), "--audit", str(audit)])
    assert sources.main() == 0
    rows = read_index(data / "index.csv")
    names = [Path(path).name for path in rows["path"]]
    for name in ("37_1_0_copy.jpg", "37_0_2_201701100007.jpg", "40_0_0_201701100010.jpg"):
        assert list(data.glob(f"utkface/*/{name}"))
        assert name not in names
    children = read_index(data / "children.csv")
    assert set(children["split"]) <= {"test"}
    assert set(children["age"]) <= {"0-3"}
    assert set(rows.loc[rows["source"] == "utkface", "age"]) <= {"30-44", "45-59"}
    assert set(rows["source"]) == {"utkface", "celeba64"}
    assert rows["path"].str.startswith(("utkface/", "celeba64/")).all()
    assert rows.groupby("group")["split"].nunique().max() == 1
    # Sources that are not at hand are none of the index's business.
    assert not (data / "unseen.csv").exists()
    make_faces(data / "scut_dev", 6, 6)
    assert sources.main() == 0
    assert set(read_index(data / "unseen.csv")["split"]) == {"test"}


def test_the_table_shows_what_has_been_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = np.array([f"{source}/{i}.jpg" for source in compare.SOURCES for i in range(50)])
    labels = np.arange(100) % 2
    for seed, wrong in enumerate((5, 10)):
        right = np.where(np.arange(100) % 50 < wrong, 1 - labels, labels)
        probabilities = np.eye(2, dtype=np.float32)[right]
        for name in compare.ENSEMBLE:
            np.savez(
                tmp_path / f"{name}_{seed}.npz",
                paths=paths, labels=labels, plain=probabilities, flip=probabilities,
            )  # fmt: skip
            (tmp_path / f"{name}_{seed}.json").write_text('{"minutes": 2.0}', encoding="utf-8")
    compare.print_table(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("| `compact_cnn`")]
    assert "0.8500 (" in row
    assert "0.8000 to 0.9000" in row
    assert any(line.startswith("| mean of the four published") for line in lines)
    assert not any("shipped weights" in line for line in lines)
    shutil.rmtree(tmp_path)


def test_both_labels_count_the_same_at_every_age() -> None:
    rows = pd.DataFrame(
        {"source": ["a"] * 8 + ["b"] * 4, "label": [0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0]}
    )
    ages = np.array([20, 21, 22, 23, 70, 71, 72, 73, 70, 71, 72, np.nan])
    weights = pretrain.balance(rows, ages)
    for those in (slice(0, 4), slice(4, 8), slice(8, 11)):
        female = rows["label"][those] == 1
        assert weights[those][female].sum() == pytest.approx(weights[those][~female].sum())
        assert weights[those].sum() == pytest.approx(len(female))
    assert weights[0] < 1 < weights[3]
    # One woman among many men does not outweigh all the rest.
    alone = pd.DataFrame({"source": ["a"] * 100, "label": [1] + [0] * 99})
    assert pretrain.balance(alone, np.full(100, 30.0)).max() == pretrain.HEAVIEST


def test_ages_that_are_not_known_are_guessed_and_the_others_kept() -> None:
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(300, 128))
    ages = np.exp(3.5 + 0.3 * numbers[:, 0])
    known = np.where(np.arange(300) < 280, ages, np.nan)
    numbers[299] = np.nan
    found = pretrain.with_guesses(known, numbers)
    assert (found[:280] == ages[:280]).all()
    assert found[280:299] == pytest.approx(ages[280:299], rel=0.1)
    assert np.isnan(found[299])
