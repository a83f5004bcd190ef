"""face_gender.load(): a line of Python to a table of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import draw_face, encode, exif_of, gone_drive, make_zip, save_colour_net, zip_of
from PIL import Image
from sentences import sentence

import face_gender
from face_gender.classify.classifier import Classifier
from face_gender.errors import InputError


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return face_gender.load(save_colour_net(tmp_path_factory.mktemp("net") / "net.pth"), "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A man, a woman, and a file that is no picture."""
    (tmp_path / "in").mkdir()
    draw_face("male", 0).save(tmp_path / "in" / "a.png")
    draw_face("female", 0).save(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "c.jpg").write_text("text")
    return tmp_path / "in"


def test_a_folder_and_its_zip_give_the_same_table(net: Classifier, folder: Path) -> None:
    table = net.classify(folder)
    assert list(table) == ["name", "label", "confidence", "male", "female", "error"]
    assert list(table["name"]) == ["a.png", "b.png", "c.jpg"]
    assert list(table["label"]) == ["male", "female", None]
    assert (table["male"] + table["female"])[:2].tolist() == pytest.approx([1, 1])
    assert table["confidence"][1] == table["female"][1] > 0.9
    assert table["error"][2] == "not an image, or of a format that is not known"
    assert table["error"].isna().tolist() == [True, True, False]
    assert table["confidence"].isna().tolist() == [False, False, True]
    assert all(table[name].dtype == float for name in ("confidence", "male", "female"))
    archive = make_zip(folder, folder.parent / "in.zip")
    pd.testing.assert_frame_equal(net.classify(str(archive), progress=False), table)


def test_subfolders_are_classified_and_what_is_below_the_threshold_is_uncertain(
    net: Classifier, folder: Path
) -> None:
    (folder / "deep").mkdir()
    Image.new("RGB", (30, 30), "gray").save(folder / "deep" / "gray.png")
    table = net.classify(folder, recursive=True, threshold=0.8, batch_size=1, workers=2)
    assert dict(zip(table["name"], table["label"], strict=True)) == {
        "a.png": "male", "b.png": "female", "c.jpg": None, "deep/gray.png": "uncertain",
    }  # fmt: skip


def test_one_picture_may_be_a_path_an_image_or_an_array(net: Classifier, folder: Path) -> None:
    image = Image.open(folder / "b.png")
    for picture in (folder / "b.png", image, np.asarray(image)):
        assert net.classify(picture, progress=False)["label"].tolist() == ["female"]


def test_a_list_keeps_its_order_and_the_paths_as_they_were_given(
    net: Classifier, folder: Path
) -> None:
    path = str(folder / "b.png")
    table = net.classify([path, draw_face("male", 0), folder / "gone.png", path], progress=False)
    assert table["name"].tolist() == [path, "1", str(folder / "gone.png"), path]
    assert table["label"].tolist() == ["female", "male", None, "female"]
    assert table["error"][2] == "cannot be read (No such file or directory)"
    table = net.classify(pd.Series([folder, folder / "a.png"]), progress=False)
    assert table["name"].tolist() == [
        f"{folder}/{name}" for name in ("a.png", "b.png", "c.jpg")
    ] + [f"{folder}/a.png"]


def test_what_cannot_be_listed_is_a_row_in_a_list_too(net: Classifier, tmp_path: Path) -> None:
    data = encode(draw_face("male", 0), "PNG")
    archive = zip_of(tmp_path / "in.zip", {"a.png": data, "../b.png": data})
    alone, listed = (net.classify(given, progress=False) for given in (archive, [archive]))
    assert alone["error"].tolist() == [None, "its name leads out of the archive"]
    assert listed["name"].tolist() == [f"{archive}/{name}" for name in alone["name"]]
    assert listed["error"].tolist() == alone["error"].tolist()


def test_a_drive_that_is_gone_is_a_sentence_of_its_own(
    net: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        draw_face("male", i).save(tmp_path / f"{i}.png")
    monkeypatch.setattr("face_gender.data.base_source.PAUSES", ())
    gone_drive(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="its drive seems to be gone") as caught:
        net.classify(tmp_path, progress=False)
    assert "--resume" not in sentence(caught)  # which load() does not know


def test_an_empty_list_has_all_columns(net: Classifier) -> None:
    table = net.classify([], progress=False)
    assert list(table) == ["name", "label", "confidence", "male", "female", "error"]
    assert len(table) == 0


def scores(net: Classifier, pictures: list) -> list[float]:
    return net.classify(pictures, progress=False)["male"].tolist()


def test_arrays_are_what_the_file_of_the_same_pixels_is(net: Classifier, folder: Path) -> None:
    pixels = np.asarray(Image.open(folder / "a.png"))
    (expected,) = scores(net, [folder / "a.png"])
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    variants = [pixels, pixels / 255, (pixels / 255).astype(np.float32), opaque, opaque / 255]
    assert scores(net, variants) == pytest.approx([expected] * 5, abs=1e-6)
    assert scores(net, [pixels[::-1, ::-1][::-1, ::-1]]) == pytest.approx([expected], abs=1e-6)
    many = np.stack([pixels, pixels])
    assert scores(net, many) == pytest.approx([expected] * 2, abs=1e-6)  # type: ignore[arg-type]
    grey = scores(net, [pixels[..., 0], pixels[..., 0] / 255, np.zeros((5, 5), np.uint8)])
    assert grey == pytest.approx([0.5] * 3, abs=1e-6)  # neither red nor blue
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    assert scores(net, [clear]) == pytest.approx([0.5], abs=1e-6)  # laid over white


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_images_of_any_mode_keep_their_colours(mode: str, net: Classifier) -> None:
    image = draw_face("male", 0)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    else:
        image = image.convert(mode)
    assert scores(net, [image])[0] > 0.9


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "I;16", "F"])
def test_images_without_colour_are_of_neither_class(mode: str, net: Classifier) -> None:
    grey = draw_face("male", 0).convert("L")
    image = grey.convert("I").convert("I;16") if mode == "I;16" else grey.convert(mode)
    assert scores(net, [image])[0] == pytest.approx(0.5, abs=1e-6)


def test_an_image_is_turned_as_its_file_says(net: Classifier, tmp_path: Path) -> None:
    half = Image.new("RGB", (60, 60), "red")
    half.paste("blue", (0, 0, 60, 20))
    half.save(tmp_path / "turned.png", exif=exif_of(Orientation=6))
    by_path, by_image = scores(net, [tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    assert by_path == pytest.approx(by_image, abs=1e-6)


def test_an_opened_file_that_is_cut_short_is_a_row_with_a_reason(
    net: Classifier, tmp_path: Path
) -> None:
    draw_face("male", 0, (200, 200)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    table = net.classify([Image.open(tmp_path / "a.png")], progress=False)
    assert table["label"][0] is None
    assert table["error"][0].startswith("cannot be read (")


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        (np.zeros((3, 40, 40), np.uint8), r"an array of uint8 of shape \(3, 40, 40\)"),
        (np.zeros((40, 40), np.uint16), r"an array of uint16 of shape \(40, 40\)"),
        (np.zeros((0, 40), np.uint8), r"an array of uint8 of shape \(0, 40\)"),
        (np.full((40, 40), 200.0), "an array of float64 from 200 to 200"),
        (np.full((40, 40), -0.5), "an array of float64 from -0.5 to -0.5"),
        (np.full((40, 40, 3), np.nan), "an array of float64 from nan to nan"),
        (7, "of type int"),
        (b"bytes", "of type bytes"),
    ],
)
def test_what_is_no_picture_is_refused_before_any_is_classified(
    picture: object, found: str, net: Classifier
) -> None:
    with pytest.raises(InputError, match=f"picture 1 is {found}: give a path") as caught:
        net.classify([draw_face("male", 0), picture])  # type: ignore[list-item]
    sentence(caught)


def test_an_empty_path_is_not_the_working_directory(
    net: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for empty in ("", [""], ["a.jpg", ""]):
        with pytest.raises(InputError, match="a path is empty"):
            net.classify(empty)


def test_a_path_that_no_file_can_have_is_a_row_with_a_reason(net: Classifier, folder: Path) -> None:
    table = net.classify([folder / ("x" * 300), folder / "a.png"], progress=False)
    assert table["error"][0].startswith("cannot be read (")
    assert table["label"][1] is not None


def test_what_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.pth does not exist") as caught:
        face_gender.load(tmp_path / "no.pth")
    sentence(caught)
    with pytest.raises(InputError, match="is not there on this machine"):
        face_gender.load(device="cuda:77")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"engine": "x"}, "engine is one of"),
        ({"align": "x"}, "align is one of"),
        ({"faces": "x"}, "faces is one of"),
        ({"classes": "ab", "recipe": "compact_cnn"}, "classes are a list"),
        ({"classes": [1, 2], "recipe": "compact_cnn"}, "classes are a list"),
    ],
)
def test_what_load_does_not_know_is_one_sentence(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        face_gender.load(**wrong)  # type: ignore[arg-type]
    assert words in sentence(caught)


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"workers": 0}, {"batch_size": 0}, {"threshold": 5}]
)
def test_numbers_out_of_range_are_one_sentence(
    wrong: dict[str, float], net: Classifier, folder: Path
) -> None:
    with pytest.raises(InputError) as caught:
        net.classify(folder, **wrong)  # type: ignore[arg-type]
    assert next(iter(wrong)) in sentence(caught)
