"""The results page: what is in the file, what a browser shows of it, and labels that come back."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import data_of, draw_face, make_checkpoint, make_faces, make_zip
from PIL import Image

from face_gender.classify.classifier import Classifier
from face_gender.classify.page import as_json, explain_doubtful, fill, write_page
from face_gender.classify.results import Prediction, Skipped
from face_gender.data import images
from face_gender.data.__main__ import main as data_split
from face_gender.data.sources import find_images, open_source
from face_gender.errors import InputError
from face_gender.model.explain import CAVEAT

if TYPE_CHECKING:
    from playwright.sync_api import Page

CLASSES = ("male", "female")
NASTY = (
    '"><img src=x onerror=alert(1)>.jpg',
    "<script>document.title='x'<!--.jpg",
    "{{data}}&amp;&lt;.jpg",
    "\udcff\udc80,b.jpg",
    "two\nlines\u2028.jpg",
    "\u202egpj.exe.jpg",
    "лицо 'Ольги', 100% #1 🙂.jpg",
)


def predicted(name: str, label: str, confidence: float, **more: Any) -> Prediction:
    scores = (confidence, 1 - confidence) if label == "male" else (1 - confidence, confidence)
    return Prediction(name, CLASSES, scores, **more)


def thumbnails_of(page: Path) -> list[Image.Image]:
    blocks = re.findall(
        rb'<script type="text/plain" id="t\d+">(.*?)</script>', page.read_bytes(), re.S
    )
    jpegs = [base64.b64decode(line, validate=True) for block in blocks for line in block.split()]
    return [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures without class folders, and one that no name can be written more oddly."""
    faces = make_faces(tmp_path / "faces", male=10, female=10)
    inside = tmp_path / "pictures"
    inside.mkdir()
    for path in faces.rglob("*.jpg"):
        path.rename(inside / path.name)
    return inside


def twenty() -> list[Prediction]:
    """Predictions of ten men and ten women, from 0.50 to 0.98; two in four labels are wrong."""
    names = [f"{letter}_{i}.jpg" for i in range(10) for letter in "mf"]
    return [
        predicted(name, "male" if i % 4 < 2 else "female", 0.5 + i / 40)
        for i, name in enumerate(names)
    ]


# ---- The file


def test_the_page_holds_predictions_from_the_least_confident_on(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "results.html"
    skipped = [Skipped("b.jpg", "empty file"), Skipped("a.jpg", "damaged")]
    write_page(page, reversed(twenty()), skipped, open_source(folder), threshold=0.6)
    data = data_of(page)
    assert data["confidence"] == sorted(data["confidence"])
    names = [data["names"][i] for i in data["picture"]]
    assert names == [each.name for each in twenty()]
    assert [CLASSES[i] for i in data["label"]] == [each.label() for each in twenty()]
    assert data["uncertain"] == sum(each.label(0.6) == "uncertain" for each in twenty()) == 4
    assert data["skipped"] == [["a.jpg", "damaged"], ["b.jpg", "empty file"]]
    assert data["base"] == "pictures"
    assert len(thumbnails_of(page)) == 20
    # A folder's other name leads from the page's other name to the same place.
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    source = open_source(tmp_path / "link" / folder.name)
    write_page(tmp_path / "link" / "results.html", twenty(), skipped, source)
    assert data_of(page)["base"] == "pictures"


def test_labels_are_kept_for_the_same_predictions_alone(folder: Path, tmp_path: Path) -> None:
    def key(predictions: list[Prediction]) -> str:
        write_page(tmp_path / "page.html", predictions, [], open_source(folder))
        return data_of(tmp_path / "page.html")["hash"]

    assert key(twenty()) == key(twenty()[::-1])
    assert key(twenty()) != key([*twenty()[1:], predicted("m_0.jpg", "male", 0.51)])


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_pictures_beyond_the_limit_are_linked_to(kind: str, folder: Path, tmp_path: Path) -> None:
    page, source = tmp_path / "page.html", open_source(folder)
    if kind == "archive":
        source = open_source(make_zip(folder, tmp_path / "pictures.zip"))
    read: list[int] = []
    write_page(page, twenty(), [], source, thumbnails_limit=3_000, progress=read.append)
    data = data_of(page)
    embedded = [i for i, number in enumerate(data["thumb"]) if number >= 0]
    assert 0 < len(embedded) < 20
    assert embedded == list(range(len(embedded)))  # the doubtful ones
    assert data["base"] == ("pictures" if kind == "folder" else None)
    assert sum(read) == 20  # which one chunk holds


@pytest.mark.parametrize("limit", [images.MAX_PIXELS, 200_000])
def test_a_face_in_a_photograph_is_cut_out_and_the_photograph_kept(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a photograph so large that it is read at a half."""
    monkeypatch.setattr(images, "MAX_PIXELS", limit)
    (tmp_path / "in").mkdir()
    photo = Image.new("RGB", (800, 600), "white")
    photo.paste(Image.new("RGB", (60, 60), "red"), (700, 40))
    photo.save(tmp_path / "in" / "photo.jpg")
    draw_face("male", 0, (80, 80)).save(tmp_path / "in" / "crop.png")
    found = [
        predicted("photo.jpg", "female", 0.9, box=(700.0, 40.0, 60.0, 60.0)),
        predicted("photo.jpg", "male", 0.8, box=(-50.0, 700.0, 20.0, 20.0)),  # outside
        predicted("crop.png", "male", 0.7, box=(5.0, 5.0, 70.0, 70.0)),
    ]
    write_page(tmp_path / "page.html", found, [], open_source(tmp_path / "in"))
    data, pictures = data_of(tmp_path / "page.html"), thumbnails_of(tmp_path / "page.html")
    shot = pictures[data["thumb"][2]].convert("RGB")
    red, green, _ = np.asarray(shot)[shot.height // 2, shot.width // 2]
    assert red > 200 > 80 > green
    whole = data["names"].index("photo.jpg")
    assert data["photo"].keys() == {str(whole)}
    assert pictures[data["photo"][str(whole)]].size == (400, 300)
    assert data["size"][str(whole)] == [800, 600]
    assert data["face"] == {"1": 1, "2": 0}  # as a CSV numbers them, whatever their confidence


def test_the_most_doubtful_are_explained(folder: Path) -> None:
    checkpoint = make_checkpoint()
    model = checkpoint.build()[0].requires_grad_(False)
    classifier = Classifier(checkpoint, model, torch.device("cpu"), torch.float32)
    found = [predicted("gone.jpg", "male", 0.5), *twenty()]
    drawn = explain_doubtful(classifier, open_source(folder), found[::-1], most=4)
    assert set(drawn) == set(found[1:4])
    assert {each.shape for each in drawn.values()} == {(100, 80, 3)}
    assert explain_doubtful(classifier, open_source(folder), []) == {}


def test_a_page_that_cannot_be_written_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path / "none" / "page.html", twenty(), [], open_source(folder))


@pytest.mark.skipif(os.name == "nt", reason="commands are quoted otherwise there")
@pytest.mark.parametrize("prefix", ["", "top/"])
def test_the_command_on_the_page_of_an_archive_can_be_run(
    prefix: str, folder: Path, tmp_path: Path
) -> None:
    archive = make_zip(folder, tmp_path / "my pictures.zip", prefix)
    source, names = find_images(archive)
    write_page(tmp_path / "page.html", twenty(), [], source)
    words, command = data_of(tmp_path / "page.html")["next"]
    found = re.fullmatch(r"Unpack .* into (.*)\. Put labels.csv into (.*), then:", words)
    assert found
    unpacked, place = found.groups()
    shutil.unpack_archive(archive, unpacked)
    rows = [f"{name},{'male' if name.startswith('m') else 'female'}" for name in names]
    Path(place, "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert command.startswith("python data_split.py ")
    assert data_split(shlex.split(command)[2:]) == 0


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert b"".join(fill("a{{x}}b{{y}}", {"x": [b"{{y}}"], "y": [b"!"]})) == b"a{{y}}b!"


def test_json_inside_a_script_cannot_end_it() -> None:
    text = as_json([*NASTY, "</script>", "\ufeff\x85"])
    assert not re.search(rb"[<>&]|\xe2\x80\xa8", text)
    assert json.loads(text)[: len(NASTY)] == list(NASTY)


# ---- In a browser


def shown(tab: Page) -> list[str]:
    return tab.locator(".card .path").all_inner_texts()


def counts(tab: Page) -> list[str]:
    """What the tabs say: all, male, female, uncertain, yours, skipped."""
    return tab.locator("nav .count").all_inner_texts()


def slide(tab: Page, which: str, value: int) -> None:
    tab.locator(f"#{which}").evaluate(
        "(slider, value) => {slider.value = value; slider.dispatchEvent(new Event('input'))}", value
    )


def saved(tab: Page, which: str) -> bytes:
    tab.locator("#export").click()
    with tab.expect_download() as download:
        tab.locator(f"#save-{which}").click()
    tab.keyboard.press("Escape")
    return download.value.path().read_bytes()


def test_filters_move_the_counts(show: Callable[..., Page], folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    skipped = [Skipped("m_bad.jpg", "empty file")]
    write_page(page, twenty(), skipped, open_source(folder), threshold=0.6)
    tab = show(page)
    assert shown(tab) == [each.name for each in twenty()]
    assert counts(tab) == ["20", "8", "8", "4", "0", "1"]
    slide(tab, "from", 70)
    assert counts(tab) == ["12", "6", "6", "0", "0", "1"]
    slide(tab, "to", 75)
    assert shown(tab) == [each.name for each in twenty() if 0.7 <= each.confidence < 0.76]
    tab.locator("#name").fill("M_")
    assert [name[0] for name in shown(tab)] == ["m"] * len(shown(tab)) != []
    tab.wait_for_url("**name=M_**")
    tab.reload()  # keeps the filters
    assert tab.locator("#name").input_value() == "M_"
    slide(tab, "from", 50)
    slide(tab, "to", 100)
    tab.locator("#name").fill("")
    tab.locator("#sort").select_option("name")
    assert shown(tab) == sorted(each.name for each in twenty())
    tab.get_by_role("button", name="uncertain").click()
    assert len(shown(tab)) == 4
    tab.get_by_role("button", name="skipped").click()
    assert tab.locator(".card").all_inner_texts() == ["m_bad.jpg\nempty file"]


def test_keys_go_by_their_letters_on_every_latin_keyboard(
    show: Callable[..., Page], folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    write_page(page, twenty(), [], open_source(folder), threshold=0.6)
    tab = show(page)

    def press(code: str, key: str, shift: bool = False) -> None:
        tab.evaluate(
            "e => document.body.dispatchEvent(new KeyboardEvent('keydown', {...e, bubbles: true}))",
            {"code": code, "key": key, "shiftKey": shift},
        )

    press("KeyM", ",")  # of a French keyboard, on which M stands where others have a semicolon
    assert counts(tab)[4] == "0"
    press("Semicolon", "m")
    assert counts(tab)[4] == "1"
    press("Slash", "_", shift=True)  # of a German one, on which the slash stands over the seven
    assert not tab.locator("#keys").is_visible()
    press("Digit7", "/", shift=True)
    assert tab.locator("#name").evaluate("box => box === document.activeElement")


def test_labels_by_key_and_click_are_kept_and_exported(
    show: Callable[..., Page], folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    write_page(page, twenty(), [], open_source(folder), threshold=0.6)
    tab = show(page)
    names = shown(tab)
    tab.keyboard.press("f")
    tab.keyboard.press("2")
    tab.keyboard.press("x")
    # M of a Russian keyboard, whose sign is another.
    tab.evaluate("dispatchEvent.call(document.body, new KeyboardEvent('keydown',"
                 "{code: 'KeyM', key: 'ь', bubbles: true}))")  # fmt: skip
    tab.keyboard.press("m")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Backspace")
    tab.locator(".card").nth(10).get_by_role("button", name="female").click()
    tab.reload()
    assert counts(tab)[4] == "5"
    tab.get_by_role("button", name="yours").click()
    assert shown(tab) == [*names[:4], names[10]]
    rows = list(csv.reader(io.StringIO(saved(tab, "own").decode())))
    expected = {names[0]: "female", names[1]: "female", names[3]: "male", names[10]: "female"}
    assert rows == [["path", "label"], *map(list, sorted(expected.items()))]
    (folder / "labels.csv").write_bytes(saved(tab, "all"))
    assert data_split([str(folder / "labels.csv"), "--output", str(tmp_path / "index.csv")]) == 0
    index = {row["path"]: row["label"] for row in csv.DictReader((tmp_path / "index.csv").open())}
    net = {each.name: each.label(0.6) for each in twenty()}
    labels = {name: label for name, label in {**net, **expected}.items() if label != "uncertain"}
    assert index == {name: str(CLASSES.index(labels[name])) for name in labels}


def test_names_of_any_kind_come_back_from_the_page(
    show: Callable[..., Page], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    names = [name for name in (*NASTY, "a.jpg", "b.jpg", "c.jpg") if "\n" not in name]
    for i, name in enumerate(names):
        draw_face(CLASSES[i % 2], i).save(tmp_path / "in" / os.fsdecode(os.fsencode(name)))
    page = tmp_path / "page.html"
    found = [predicted(name, CLASSES[i % 2], 0.9) for i, name in enumerate(names)]
    write_page(page, found, [], open_source(tmp_path / "in"), thumbnails_limit=0)
    tab = show(page)
    assert set(shown(tab)) >= {"\\xff\\x80,b.jpg", "\\u202egpj.exe.jpg", NASTY[0]}
    for place in range(len(names)):  # linked to, each of them
        image = tab.locator(".card img").nth(place)
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
    (tmp_path / "in" / "labels.csv").write_bytes(saved(tab, "all"))
    assert data_split([str(tmp_path / "in" / "labels.csv"), "--output", f"{tmp_path}/i.csv"]) == 0
    with open(tmp_path / "i.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == set(names)


def test_a_long_list_is_paged(show: Callable[..., Page], folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    long = [predicted(f"{i:04}" + "x" * 10_000 * (i == 61), "male", 0.9) for i in range(130)]
    write_page(page, long, [], open_source(make_zip(folder, tmp_path / "in.zip")))
    tab = show(page, width=360)
    assert len(shown(tab)) == 60
    for _ in range(60):
        tab.keyboard.press("ArrowRight")
    assert tab.locator("#place").inner_text() == "page 2 of 3"
    tab.keyboard.press("End")
    assert shown(tab) == [each.name for each in long[120:]]
    tab.keyboard.press("PageUp")
    # A phone scrolls down, not sideways; and nothing is too small to be read.
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    sizes = tab.evaluate(f"[...document.querySelectorAll('body *')].map({size})")
    assert min(sizes) >= 12
    tab.keyboard.press("?")
    assert "label it male" in tab.locator("#keys").inner_text()


def test_photographs_show_boxes_and_maps(show: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (400, 200), "grey").save(tmp_path / "in" / "photo.jpg")
    found = [
        predicted("photo.jpg", "male", 0.9, box=(300.0, 50.0, 40.0, 50.0)),
        predicted("photo.jpg", "female", 0.6, box=(100.0, 50.0, 40.0, 50.0)),
    ]
    page, maps = tmp_path / "page.html", {found[1]: np.full((96, 80, 3), 255, np.uint8)}
    write_page(page, found, [], open_source(tmp_path / "in"), explanations=maps)
    tab = show(page)
    tab.keyboard.press("w")
    tab.locator(".card .box").nth(3).wait_for()
    assert "face 2 of 2" in tab.locator(".card >> nth=0").inner_text()
    frame, own = (tab.locator(f".card >> nth=0 >> {each}").bounding_box() for each in
                  (".framed img", ".box.own"))  # fmt: skip
    assert frame and own
    assert (own["x"] - frame["x"]) / frame["width"] == pytest.approx(0.25, abs=0.01)
    assert own["height"] / frame["height"] == pytest.approx(0.25, abs=0.01)
    assert tab.locator(".card >> nth=0 >> .box.own").inner_text() == "● female 60 %"
    tab.keyboard.press("Space")
    assert CAVEAT in tab.locator("#viewer").inner_text()
    size = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert tab.locator("#viewer .map img").evaluate(size) == [80, 96]
    tab.keyboard.press("m")
    assert tab.locator("#viewer .map").count() == 0  # gone on to the face without a map
    assert tab.locator("#viewer .box.own").inner_text() == "■ male 90 %"
    tab.keyboard.press("Escape")
    # A photograph has one label: two faces have none to give it.
    tab.locator("#export").click()
    assert tab.locator("#save-all").is_disabled()
