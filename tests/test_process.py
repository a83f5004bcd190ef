"""process.py as a user meets it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face, exif_of, make_zip, python, save_colour_net, snapshot
from PIL import Image
from sentences import one_sentence, text_file

from face_gender.classify import __main__ as process
from face_gender.model import weights as lookup
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net that tells the drawn faces apart."""
    return save_colour_net(tmp_path_factory.mktemp("net") / "best.pth")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three men and three women in one folder; the working directory is another."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        draw_face("male", i).save(pictures / f"img_{i}.jpg")
        draw_face("female", i).save(pictures / f"img_{i + 3}.jpg")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return pictures


EXPECTED = {f"img_{i}.jpg": "male" if i < 3 else "female" for i in range(6)}


def run(*arguments: str | Path) -> int:
    return process.main([str(each) for each in arguments], name="process.py")


def results(name: str = "process_results.json") -> dict:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def test_writes_the_label_of_every_picture_sorted(folder: Path, weights: Path) -> None:
    before = snapshot(folder)
    assert run(folder, "--weights", weights) == 0
    assert results() == EXPECTED
    assert list(results()) == sorted(EXPECTED)
    assert snapshot(folder) == before


@pytest.mark.parametrize("form", ["absolute", "slash", "relative", "from inside"])
def test_the_path_of_a_folder_may_have_every_form(
    form: str, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"absolute": f"{folder}", "slash": f"{folder}/", "relative": "../pictures"}.get(
        form, "."
    )
    if form == "from inside":
        monkeypatch.chdir(folder)
    assert run(named, "--weights", weights, "--quiet") == 0
    assert results() == EXPECTED


def test_pictures_may_be_given_one_by_one_and_twice(folder: Path, weights: Path) -> None:
    assert run(folder / "img_4.jpg", "--weights", weights) == 0
    assert results() == {"img_4.jpg": "female"}
    given = [folder / "img_5.jpg", folder / "img_0.jpg", folder / "img_0.jpg"]
    assert run(*given, "--weights", weights) == 0
    assert results() == {"img_0.jpg": "male", "img_5.jpg": "female"}


def test_equal_names_of_several_folders_are_told_apart_by_their_paths(
    folder: Path, weights: Path
) -> None:
    more = folder.parent / "more"
    more.mkdir()
    draw_face("female", 9).save(more / "img_0.jpg")
    archive = make_zip(more, folder.parent / "more.zip")
    draw_face("male", 9).save(more / "alone.jpg")
    assert run(folder / "img_0.jpg", more, "--weights", weights) == 0
    assert results() == {
        "alone.jpg": "male",
        f"{folder}/img_0.jpg": "male",  # equal names are the paths as they were given
        f"{more}/img_0.jpg": "female",
    }
    assert run(archive, folder / "img_3.jpg", "--weights", weights, "--format", "full") == 0
    assert results()["results"].keys() == {"img_0.jpg", "img_3.jpg"}
    assert run(folder / "img_3.jpg", folder / "gone.jpg", "--weights", weights) == 1


def test_spaces_and_cyrillic_are_written_as_they_are(folder: Path, weights: Path) -> None:
    named = folder.rename(folder.with_name("мои фото 2024"))
    (named / "img_0.jpg").rename(named / "Анна Петрова.jpg")
    assert run(named, "--weights", weights) == 0
    assert results()["Анна Петрова.jpg"] == "male"
    assert "Анна" in Path("process_results.json").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_names_with_line_ends_are_one_cell_of_the_table(folder: Path, weights: Path) -> None:
    for i, name in enumerate(("a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg")):
        (folder / f"img_{i}.jpg").rename(folder / name)
    assert run(folder, "--weights", weights, "--format", "csv", "--quiet") == 0
    with open("process_results.csv", encoding="utf-8", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == sorted(os.listdir(folder))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux allows such names")
def test_names_that_are_not_utf8_are_written_in_every_format(folder: Path, weights: Path) -> None:
    os.rename(folder / "img_0.jpg", os.fsencode(folder) + b"/\xff.jpg")
    for form in ("full", "csv", "flat"):
        assert run(folder, "--weights", weights, "--format", form, "--quiet") == 0
    assert results()["\udcff.jpg"] == "male"
    assert b"\n\xff.jpg,male," in Path("process_results.csv").read_bytes()


def test_bad_files_shift_no_label(tmp_path: Path, weights: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hundred"
    folder.mkdir()
    expected = {}
    for i in range(90):
        label = ("male", "female")[i * 7 % 3 % 2]
        draw_face(label, i).save(folder / f"{i:03}.jpg")
        expected[f"{i:03}.jpg"] = label
    whole = (folder / "000.jpg").read_bytes()
    bad = [b"", b"not a picture", whole[: len(whole) // 2], b"\xff\xd8\xff", b"\x00" * 500] * 2
    for i, data in enumerate(bad):
        (folder / f"{i * 9:03}_bad.jpg").write_bytes(data)
    before = snapshot(folder)
    assert run(folder, "--weights", weights, "--batch-size", "7") == 0
    captured = capsys.readouterr().err
    assert results() == expected
    assert captured.count("skipped: ") == 10
    assert "10 skipped" in captured
    assert all(f"{i * 9:03}_bad.jpg" in captured for i in range(10))
    assert snapshot(folder) == before
    assert run(folder, "--weights", weights, "--strict", "--output", "strict.json") == 3
    assert results("strict.json") == expected


def test_full_format_tells_everything(folder: Path, weights: Path) -> None:
    (folder / "bad.jpg").write_text("text")
    assert run(folder, "--weights", weights, "--format", "full", "--output", "full.json") == 0
    full = results("full.json")
    assert full["skipped"].keys() == {"bad.jpg"}
    assert full["model"]["recipe"] == "compact_cnn"
    assert full["model"]["metrics"]["val_accuracy"] == 1.0
    for name, details in full["results"].items():
        assert details["label"] == EXPECTED[name]
        assert details["confidence"] == max(details["probabilities"].values())
        assert sum(details["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_full_format_is_strict_json_without_nan(folder: Path, weights: Path) -> None:
    checkpoint = load_checkpoint(weights)
    replace(checkpoint, metrics={"val_recall_female": float("nan")}).save("nan.pth")
    assert run(folder, "--weights", "nan.pth", "--format", "full") == 0
    assert results()["model"]["metrics"] == {"val_recall_female": None}


def test_probabilities_have_the_temperature_of_the_weights(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = build_model("compact_cnn").state_dict()
    net["fc4.weight"] *= 30  # or all probabilities were about one half
    scaled = tmp_path / "scaled.pth"
    found = []
    for temperature in (1.0, 2.0):
        replace(load_checkpoint(weights), weights=net, temperature=temperature).save(scaled)
        assert run(folder, "--weights", scaled, "--format", "full") == 0
        found.append(results())
    before, after = found
    assert (before["model"]["temperature"], after["model"]["temperature"]) == (1.0, 2.0)
    for name, details in before["results"].items():
        roots = {k: v**0.5 for k, v in details["probabilities"].items()}
        expected = {k: v / sum(roots.values()) for k, v in roots.items()}
        cooler = after["results"][name]
        assert cooler["probabilities"] == pytest.approx(expected, abs=2e-3)
        assert cooler["label"] == details["label"]
        assert cooler["confidence"] < details["confidence"]
    for temperature, labels in ((1.0, set(EXPECTED.values())), (100.0, {"uncertain"})):
        replace(load_checkpoint(weights), temperature=temperature).save(scaled)
        assert run(folder, "--weights", scaled, "--threshold", "0.8") == 0
        assert set(results().values()) == labels


def test_csv_has_a_row_a_picture_with_its_probabilities(folder: Path, weights: Path) -> None:
    assert run(folder, "--weights", weights, "--format", "csv") == 0
    with open("process_results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: row["label"] for row in rows} == EXPECTED
    assert float(rows[0]["male"]) + float(rows[0]["female"]) == pytest.approx(1, abs=1e-5)


def test_labels_below_the_threshold_are_uncertain(folder: Path, weights: Path) -> None:
    Image.new("RGB", (40, 40), "gray").save(folder / "gray.png")  # neither red nor blue
    assert run(folder, "--weights", weights, "--format", "full", "--threshold", "0.9") == 0
    found = results()["results"]
    assert found["gray.png"]["label"] == "uncertain"
    for details in found.values():
        assert (details["label"] == "uncertain") == (details["confidence"] < 0.9)


def test_recursive_keys_are_relative_paths(folder: Path, weights: Path, capsys) -> None:
    (folder / "more" / "deep").mkdir(parents=True)
    draw_face("female", 9).save(folder / "more" / "deep" / "x.JPG", format="JPEG")
    (folder / ".hidden").mkdir()
    draw_face("female", 9).save(folder / ".hidden" / "x.jpg")
    assert run(folder, "--weights", weights, "--recursive") == 0
    assert results() == {**EXPECTED, "more/deep/x.JPG": "female"}
    assert run(folder / "more", "--weights", weights) == 1
    assert "--recursive" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("prefix", ["", "wrapped/"])
def test_a_zip_is_read_in_place_and_its_only_folder_left_out_of_names(
    prefix: str, folder: Path, weights: Path
) -> None:
    archive = make_zip(folder, folder.parent / "pictures.zip", prefix)
    assert run(archive, "--weights", weights) == 0
    assert results() == EXPECTED
    assert run(archive, "--weights", weights, "--recursive") == 0
    assert results() == {prefix + name: label for name, label in EXPECTED.items()}


def test_labels_follow_the_file_when_the_classes_are_reversed(folder: Path, weights: Path) -> None:
    checkpoint = load_checkpoint(weights)
    turned = dict(checkpoint.weights)
    for name in ("fc4.weight", "fc4.bias"):
        turned[name] = turned[name].flip(0)
    replace(checkpoint, classes=("female", "male"), weights=turned).save("turned.pth")
    assert run(folder, "--weights", "turned.pth") == 0
    assert results() == EXPECTED


def test_a_plain_state_dict_needs_its_recipe_and_classes(
    folder: Path, weights: Path, capsys
) -> None:
    torch.save(dict(load_checkpoint(weights).weights), "plain.pth")
    known = ["--weights", "plain.pth", "--recipe", "compact_cnn", "--classes"]
    assert run(folder, *known, "male,female") == 0
    assert results() == EXPECTED
    assert run(folder, *known, "female,male") == 0
    assert results() == {k: "female" if v == "male" else "male" for k, v in EXPECTED.items()}
    capsys.readouterr()
    assert run(folder, "--weights", "plain.pth") == 1
    assert "add --recipe" in one_sentence(capsys.readouterr().err, "process.py")


def test_own_weights_come_before_the_shipped(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    own, shipped, packaged = (Path(f"{n}.pth").absolute() for n in ("own", "shipped", "packaged"))
    monkeypatch.setattr(lookup, "default_weights", lambda: [own, shipped, packaged])
    assert run(folder) == 1
    assert "do not exist" in one_sentence(capsys.readouterr().err, "process.py")
    for path in (packaged, shipped, own):
        path.write_bytes(weights.read_bytes())
        assert run(folder) == 0
        assert f"weights: {path} " in capsys.readouterr().err


def test_the_end_counts_labels_skipped_files_and_those_passed_over(
    folder: Path, weights: Path, capsys
) -> None:
    for name in ("a.txt", "b.txt", ".hidden.jpg"):
        (folder / name).touch()
    assert run(folder, "--weights", weights) == 0
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "process_results.json: 3 female, 3 male, 0 skipped",
        "passed over: 2 with other endings, 1 hidden",
    ]


def test_quiet_says_nothing_but_skipped_files(folder: Path, weights: Path, capfd) -> None:
    assert run(folder, "--weights", weights, "--quiet") == 0
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""
    (folder / "bad.png").write_bytes(b"")
    assert run(folder, "--weights", weights, "--quiet") == 0
    assert capfd.readouterr().err.strip() == "skipped: bad.png: empty file"


def test_libraries_that_write_to_stderr_are_not_heard(folder: Path, weights: Path, capfd) -> None:
    """libtiff and libjpeg say what they think of a file, without its name."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(folder / "bad.tif", compression="tiff_lzw")
    data = bytearray((folder / "bad.tif").read_bytes())
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    (folder / "bad.tif").write_bytes(data)
    assert run(folder, "--weights", weights, "--quiet") == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["skipped", "bad.tif"]]
    os.write(2, b"heard again\n")
    assert capfd.readouterr().err == "heard again\n"


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda folder: [folder.parent / "nowhere"], "nowhere does not exist"),
        (lambda folder: [folder, folder.parent / "no.jpg"], "no.jpg does not exist"),
        (lambda folder: [folder.parent / "work"], "holds no pictures"),
        (lambda folder: text_file(folder.parent), "notes.txt is neither"),
        (lambda folder: [folder, "--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (lambda folder: [folder, "--weights", folder / "img_0.jpg"], "is not a whole .pth"),
        (lambda folder: [folder, "--weights", folder], "pictures"),
        (lambda folder: [folder, "--output", folder.parent / "no" / "where.json"], "no folder"),
        (lambda folder: [folder, "--output", folder.parent], "is a folder"),
        (lambda folder: [folder, "--device", "cuda:77"], "'cuda:77' is not there"),
        (lambda folder: [folder, "--output", "x.html", "--html", "x.html"], "never replaced"),
        (lambda folder: [folder, "--crops", folder / "crops"], "only read"),
        (lambda folder: [folder.rename(folder.with_name("male")), "--crops", ".."], "only read"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_writes_nothing(
    arrange, said: str, folder: Path, weights: Path, capsys
) -> None:
    arguments = arrange(folder)
    if "--weights" not in arguments:
        arguments += ["--weights", weights]
    before = snapshot(folder.parent)
    assert run(*arguments) == 1
    assert said in one_sentence(capsys.readouterr().err, "process.py")
    assert snapshot(folder.parent) == before


def test_unreadable_pictures_alone_leave_an_earlier_result(
    folder: Path, weights: Path, capsys
) -> None:
    for path in folder.iterdir():
        path.write_text("text")
    Path("process_results.json").write_text("{}")
    assert run(folder, "--quiet", "--weights", weights) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert "no picture can be read" in one_sentence(lines[-1], "process.py")
    assert Path("process_results.json").read_text() == "{}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nonsense"],
        ["x", "--format", "xml"],
        ["x", "--threshold", "2"],
        ["x", "--threshold", "nan"],
        ["x", "--batch-size", "0"],
        ["x", "--workers", "many"],
        ["x", "--device", "toaster"],
        ["x", "--recipe", "resnet19", "--classes", "a,b", "--weights", "w"],
        ["x", "--recipe", "resnet18"],
        ["x", "--classes", "male,male", "--recipe", "resnet18"],
        ["x", "--recipe", "resnet18", "--classes", "male,female"],
        ["x", "--recipe", "resnet18", "--classes", "male,../x", "--weights", "w"],
    ],
)
def test_usage_mistakes_exit_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        process.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_mistakes_are_answered_without_torch() -> None:
    lines = (
        ["nowhere"],
        ["tests/no.zip"],
        ["samples", "--weights", "nowhere.pth"],
        ["samples", "--recursive", "--output", "README.md/x.json"],
        ["x", "--device", "toaster"],
        ["x", "--recipe", "resnet18"],
    )
    script = (
        "import sys\nfrom face_gender.classify.__main__ import main\n"
        f"for arguments in {lines!r}:\n"
        "    try: assert main(arguments) == 1\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'torchvision', 'pandas', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr


def test_odd_modes_have_the_label_of_their_rgb_twin(folder: Path, weights: Path) -> None:
    face = draw_face("male", 1, (80, 100))
    for mode in ("P", "RGBA", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        face.convert(mode).save(folder / f"odd_{mode}.{suffix}")
    face.transpose(Image.Transpose.ROTATE_90).save(
        folder / "turned.jpg", exif=exif_of(Orientation=6)
    )
    assert run(folder, "--weights", weights) == 0
    assert {label for name, label in results().items() if name[0] in "ot"} == {"male"}


def test_an_opencv_that_cannot_be_imported_costs_whole_pictures_nothing(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken" / "cv2").mkdir(parents=True)
    broken = "raise AttributeError('several versions on top of each other')"
    (tmp_path / "broken" / "cv2" / "__init__.py").write_text(broken, encoding="utf-8")
    outputs = []
    for path in (str(ROOT), os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])):
        outputs.append(tmp_path / f"{len(outputs)}.json")
        given = [folder, "--weights", weights, "--align", "never", "--output", outputs[-1]]
        done = python("process.py", *given, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize(
    "name", ["pictures/img_0.jpg", "archive.zip", "weights.pth", "of_another.safetensors"]
)
def test_output_never_replaces_an_input(name: str, folder: Path, weights: Path, capsys) -> None:
    (folder.parent / "weights.pth").write_bytes(weights.read_bytes())
    make_zip(folder, folder.parent / "archive.zip")
    before = snapshot(folder.parent)
    given = [folder, "--weights", folder.parent / "weights.pth", "--output", folder.parent / name]
    assert run(*given) == 1
    assert "never replaced" in one_sentence(capsys.readouterr().err, "process.py")
    assert snapshot(folder.parent) == before


@pytest.mark.parametrize("stderr", [None, "full"])
def test_a_stderr_that_takes_nothing_costs_no_result(
    stderr: str | None, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Full:
        def write(self, text: str = "") -> int:
            said.append(text)
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    (folder / "bad.jpg").write_text("text")
    monkeypatch.setattr(sys, "stderr", None if stderr is None else Full())
    assert run(folder, "--weights", weights) == 0, said
    assert results() == EXPECTED


@pytest.mark.skipif(os.name != "posix", reason="no 2>&- elsewhere")
def test_a_stderr_that_is_closed_from_the_start_costs_no_result_in_any_folder(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    """The archive would be opened under its number, and what libraries say be put over it."""
    given = [make_zip(folder, tmp_path / "faces.zip"), "--weights", weights, "--output", "r.json"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "process.py"), *map(str, given)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.close(2),
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert results("r.json") == EXPECTED


def test_the_page_of_several_folders_gives_a_command_that_can_be_run(
    folder: Path, weights: Path
) -> None:
    more = folder.parent / "more"
    more.mkdir()
    draw_face("female", 9).save(more / "b.jpg")
    assert run(folder, more, "--weights", weights, "--html", "page.html") == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert f"python process.py {folder.parent} --recursive" in page
    assert "Unpack" not in page
