"""The scripts that the shipped weights and their figures come from, on tiny data."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SAMPLES, SHIPPED
from PIL import Image

from face_gender.data.index import Index
from face_gender.data.landmarks import COLUMNS, coordinates_of
from face_gender.data.tables import read_index, write_index
from face_gender.errors import InputError
from face_gender.model.checkpoint import load_checkpoint
from tools import compare, descriptor, pretrain, sources, teachers

SHARES = ("utkface", "celeba64", "aaf", "appa", "mebeauty", "twfy", "celeba_half")


def run(module: ModuleType, *arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        return int(module.main())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven sources made of the sample composites; one has a child, one an unsure picture.

    And their index, with landmarks; not to be written to.
    """
    root = tmp_path_factory.mktemp("data")
    for number, source in enumerate(SHARES):
        rows = []
        for i, path in enumerate(SAMPLES[number::10]):
            label = path.parent.name
            age, folder = 20 + 5 * i, root / source / label
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{age}_{int(label == 'female')}_0_{i}.jpg"
            with Image.open(path) as image:
                image.resize((100 + number, 120)).save(folder / name)
            rows.append((f"{label}/{name}", f"g{i}", age, 0.02 + 0.96 * (label == "male")))
        columns = ["path", "group", "age", "teacher_male"]
        pd.DataFrame(rows, columns=columns).to_csv(root / source / "labels.csv", index=False)
    shutil.copy(next(root.glob("utkface/male/*.jpg")), root / "utkface/male/2_0_0_99.jpg")
    (root / "aaf" / "unsure").mkdir()
    shutil.copy(SAMPLES[-1], root / "aaf" / "unsure" / "x.jpg")
    labels = root / "aaf" / "labels.csv"
    with open(labels, "a", encoding="utf-8") as file:
        file.write("unsure/x.jpg,u,30,0.9\n")
    assert run(sources, root) == 0
    found = Index.open(root / "index.csv").with_landmarks(progress=False)
    write_index(found.table, root / "index.csv")
    return root


def test_sources_become_one_index(data: Path) -> None:
    rows = read_index(data / "index.csv").set_index("path")
    assert set(rows["source"]) == set(SHARES)
    assert not any("/2_0_0_99" in path for path in rows.index)
    assert rows.loc["aaf/unsure/x.jpg", ["known", "label", "split"]].tolist() == ["no", 0, "train"]
    assert rows.groupby("group")["split"].nunique().max() == 1
    known = rows[rows["known"] == "yes"]
    assert (known["label"] == [int("/female/" in path) for path in known.index]).all()


def test_a_teacher_counts_less_on_children_and_the_old() -> None:
    table = pd.DataFrame({
        "label": [1, 1, 1, 0, 1], "teacher": [0.6, 0.6, 0.01, 0.9, 0.4],
        "age": ["30", "8", "30", "", "70"], "known": ["yes", "yes", "yes", "no", "yes"],
    })  # fmt: skip
    expected = [0.7 * 0.6 + 0.3, 0.4 * 0.6 + 0.6, 0.02, 0.9, 0.4 * 0.4 + 0.6]
    assert pretrain.targets(table, table["teacher"].to_numpy()) == pytest.approx(expected, abs=1e-6)


def test_rare_sources_labels_and_ages_are_drawn_more_often() -> None:
    table = pd.DataFrame({"source": ["a"] * 100 + ["b"], "age": ["30"] * 101})
    frequency = pretrain.weights_of(table, np.float32([1] * 101))
    assert frequency.sum() == pytest.approx(1)
    assert frequency[100] / frequency[0] == pytest.approx(100**0.55)


def test_training_goes_on_where_it_was_and_gives_a_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.pth"
    options = ("--init", SHIPPED, "--batch-size", 4)
    assert run(pretrain, data / "index.csv", out, *options, "--steps", 1) == 0
    assert run(pretrain, data / "index.csv", out, *options, "--steps", 2) == 0
    found = load_checkpoint(out)
    assert found.preprocessing.align == "landmarks"
    assert found.metrics["val_accuracy"] > 0.9
    assert torch.load(f"{out}.partial", weights_only=True)["step"] == 2


def test_training_of_other_options_or_pictures_does_not_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--init", SHIPPED, "--batch-size", 4, "--steps", 1)
    shutil.copytree(data, tmp_path / "data")
    index, out = tmp_path / "data" / "index.csv", tmp_path / "new.pth"
    write_index(read_index(index).drop(columns=list(COLUMNS)), index)  # without landmarks
    assert run(pretrain, index, out, *options) == 0
    written = out.read_bytes()
    capsys.readouterr()
    assert run(pretrain, index, out, *options, "--learning-rate", 1e-5) == 1
    write_index(read_index(index).assign(age="30"), index)
    assert run(pretrain, index, out, *options) == 1
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith(f"pretrain: {out}.partial was begun with other options")
    assert out.read_bytes() == written


def test_without_its_parts_training_sees_the_aligned_faces(data: Path) -> None:
    index = Index.open(data / "index.csv")
    rows = np.arange(6)
    plain = pretrain.as_input(np.stack([pretrain.Faces(index, 0).aligned(row) for row in rows]))
    left = pretrain.Faces(index, 0, without=pretrain.PARTS).batch(0, rows)
    assert all(
        torch.equal(found, face) or torch.equal(found, face.flip(2))
        for found, face in zip(left, plain, strict=True)
    )
    for part in ("background", "photometric", "frames", "jitter"):
        others = [each for each in pretrain.PARTS if each != part]
        pair = [pretrain.Faces(index, 0, without) for without in (others, pretrain.PARTS)]
        changed, same = (faces.batch(0, np.resize(rows, 60)) for faces in pair)
        assert not torch.equal(changed, same)


def test_without_teachers_labels_alone_are_learnt(data: Path) -> None:
    table = read_index(data / "index.csv")
    teacher = pd.to_numeric(table["teacher"]).to_numpy(float)
    wanted, frequency = pretrain.learnt(table, teacher, ["teachers", "balance"])
    known = ((table["split"] == "train") & (table["known"] == "yes")).to_numpy()
    assert ((wanted > 0.5) == table["label"])[known].all()
    assert frequency[known].tolist() == pytest.approx([1 / known.sum()] * known.sum())
    assert frequency[~known].sum() == 0


def test_a_teacher_has_not_seen_the_group_that_it_is_asked_about() -> None:
    r = np.random.default_rng(0)
    labels = r.integers(0, 2, 400)
    known = r.normal(0, 1, (400, teachers.NUMBERS + 2)).astype(np.float32)
    known[:, :100] += 2 * labels[:, None]
    known[:, teachers.NUMBERS :] = 0.5
    known[399] = np.nan
    table = pd.DataFrame({
        "label": labels, "group": [f"g{i // 2}" for i in range(400)], "split": "train",
        "known": "yes", "source": "aaf",
    })  # fmt: skip
    female = teachers.out_of_fold(known, table, seed=0)
    assert ((female[:399] > 0.5) == labels[:399]).mean() > 0.9
    assert np.isnan(female[399])
    turned = table.assign(label=np.where(table["group"] == "g7", 1 - labels, labels))
    assert teachers.out_of_fold(known, turned, seed=0)[14:16] == pytest.approx(female[14:16])


def test_the_descriptor_net_is_read_from_a_package_of_8_bits(tmp_path: Path) -> None:
    """Filters are 0, shifts 1: what is found is what blocks and the ways past them add.

    At the end, 2 x 2 pixels have on average 13 13/16 in the first 32 channels, which pass all
    stages, 4 less in the next 32, 8 less in 64 and 11 less in 128: in all 1,488.
    """
    sides = {"conv32_down": (7, 3, 32)}
    before = 32
    for stage, count in descriptor.STAGES.items():
        width = int(stage.removeprefix("conv"))
        blocks = [f"{stage}_{i + 1}" for i in range(count)]
        for block in [f"{stage}_down"] * (stage != "conv32") + blocks:
            sides |= {f"{block}/conv1": (3, before, width), f"{block}/conv2": (3, width, width)}
            before = width
    sides |= {f"conv256_down_out/conv{i}": (3, 256, 256) for i in (1, 2)}
    manifest, content = [], b""

    def add(name: str, *shape: int, value: int) -> None:
        nonlocal content
        packed = {"dtype": "uint8", "scale": 0.5, "min": -1.0}  # 2 is 0, 4 is 1
        manifest.append({"name": name, "shape": shape, "quantization": packed})
        content += bytes([2 + 2 * value]) * math.prod(shape)

    for name, (side, last, width) in sides.items():
        add(f"{name}/conv/filters", side, side, last, width, value=0)
        add(f"{name}/conv/bias", width, value=0)
        add(f"{name}/scale/weights", width, value=1)
        add(f"{name}/scale/biases", width, value=1)
    add("fc", 256, 128, value=1)
    name = "face_recognition_model"
    text = json.dumps([{"weights": manifest}])
    (tmp_path / f"{name}-weights_manifest.json").write_text(text, encoding="utf-8")
    (tmp_path / f"{name}.bin").write_bytes(content)
    net = descriptor.DescriptorNet(tmp_path).eval()
    found = net(torch.zeros(2, 3, descriptor.SIDE, descriptor.SIDE))
    assert found.shape == (2, descriptor.LENGTH)
    assert found.unique().tolist() == [1488]


def test_teachers_go_on_with_the_faces_that_they_were_asked_about_alone(
    data: Path, tmp_path: Path
) -> None:
    class Noted:
        asked = 0

        def ask(self, pictures: list[np.ndarray], *_: object) -> np.ndarray:
            self.asked += len(pictures)
            return np.ones((len(pictures), teachers.NUMBERS + 2), np.float32)

    index = Index.open(data / "index.csv")
    rows = index.table[np.isfinite(coordinates_of(index.table)).all(1)]
    faces = pretrain.Faces(Index(pd.concat([rows] * 10)[:110], index.source), 0)
    beside = tmp_path / "said.npz.partial"
    first, second = Noted(), Noted()
    known = teachers.answers(faces, first, beside, batch=1)  # type: ignore[arg-type]
    assert first.asked == 110 and beside.exists()
    assert np.array_equal(teachers.answers(faces, second, beside, batch=1), known)  # type: ignore[arg-type]
    assert second.asked == 10
    others = pretrain.Faces(Index(pd.concat([rows[::-1]] * 10)[:110], index.source), 0)
    with pytest.raises(InputError, match="another index"):
        teachers.answers(others, second, beside, batch=1)  # type: ignore[arg-type]


def test_a_teacher_that_is_not_there_is_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(teachers, data / "index.csv", tmp_path / "nets", tmp_path / "said.npz") != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / "nets" / "faceres.onnx") in line


def test_a_student_learns_the_teachers_numbers(data: Path, tmp_path: Path) -> None:
    paths = read_index(data / "index.csv")["path"].to_numpy(str)
    told = np.random.default_rng(0).normal(size=(len(paths), 8)).astype(np.float16)
    told[1] = np.nan
    female = np.full(len(paths), 0.5, np.float32)
    np.savez(tmp_path / "said.npz", path=paths[1:], numbers=told[1:], female=female[1:])
    numbers = pretrain.Numbers(tmp_path / "said.npz", read_index(data / "index.csv"))
    assert numbers.female[1:].tolist() == [0.5] * (len(paths) - 1) and numbers.female[0] != 0.5
    known = torch.from_numpy(numbers.values)
    every = np.arange(len(paths))
    assert numbers.loss(known, every).item() == pytest.approx(0, abs=1e-6)
    assert numbers.loss(-known, every).item() == pytest.approx(2, abs=1e-6)
    options = ("--init", SHIPPED, "--batch-size", 4, "--teachers", tmp_path / "said.npz")
    assert run(pretrain, data / "index.csv", tmp_path / "new.pth", *options, "--steps", 1) == 0
    assert load_checkpoint(tmp_path / "new.pth").weights["fc.weight"].shape == (2, 512)


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


@pytest.mark.parametrize(("male", "female", "shift"), [(3, 4, 0), (4, 3, 0.2), (4, 2, 1)])
def test_female_is_raised_until_recalls_are_equal(male: int, female: int, shift: float) -> None:
    """Of four each: so many are right; the wrong women miss by 0.15, all others by 5 or more."""
    lead = np.array([-5.0] * male + [5.0] * (4 - male) + [5.0] * female + [-0.15] * (4 - female))
    if shift == 1:
        lead[lead == -0.15] = -9
    logs = np.stack([np.zeros(8), lead], 1)
    labels = np.repeat([0, 1], 4)
    sources = np.full(8, "a")
    assert pretrain.shift_for_equal_recalls(logs, labels, sources) == pytest.approx(shift)


def test_a_large_source_does_not_decide_alone_by_how_much_female_is_raised() -> None:
    """Of 92 pictures of a all women are right, of 4 of b one of two is: all in all 47 of 48."""
    lead = np.array([-5.0] * 45 + [5.0] + [5.0] * 46 + [-5.0, -5.0, 5.0, -0.15])
    logs = np.stack([np.zeros(96), lead], 1)
    labels = np.concatenate([np.repeat([0, 1], 46), np.repeat([0, 1], 2)])
    sources = np.array(["a"] * 92 + ["b"] * 4)
    assert pretrain.shift_for_equal_recalls(logs, labels, np.full(96, "a")) == 0
    assert pretrain.shift_for_equal_recalls(logs, labels, sources) == pytest.approx(0.2)
