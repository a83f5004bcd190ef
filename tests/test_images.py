"""Every picture becomes upright RGB; everything else becomes one exception with its reason."""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import encode, exif_of, make_zip, python
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from writers import announcing_png, segment

from face_gender.data import images, memory
from face_gender.data.images import (
    MAX_PIXELS,
    UnreadableImage,
    UnreadFile,
    decode_image,
    decode_pixels,
    load_image,
    load_pixels,
)
from face_gender.data.sources import FolderSource, open_source

SIZE = (12, 7)
GREY = (100, 100, 100)
WHITE = (255, 255, 255)
TEAL = (20, 140, 160)


def plain(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, SIZE, colour)


def palette(**info: Any) -> Image.Image:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, *TEAL])
    image.info.update(info)
    return image


def stored_mode(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode


def assert_is(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 0) -> None:
    assert (image.mode, image.size) == ("RGB", SIZE)
    difference = np.abs(np.asarray(image).astype(int) - colour)
    assert difference.max() <= tolerance


@pytest.mark.parametrize(
    ("image", "form", "mode", "colour"),
    [
        (plain("L", 100), "JPEG", "L", GREY),
        (plain("L", 100), "GIF", None, GREY),
        (plain("L", 100), "WEBP", "RGB", GREY),
        (palette(), "GIF", "P", TEAL),
        (palette(transparency=1), "PNG", "P", WHITE),
        (palette(transparency=1), "GIF", "P", WHITE),
        (palette(transparency=b"\xff\x00"), "PNG", "P", WHITE),
        (plain("I;16", 100 * 257), "PNG", None, GREY),
        (plain("I;16", 100 * 257), "TIFF", "I;16", GREY),
        (plain("I;16B", 100 * 257), "TIFF", "I;16B", GREY),
        (plain("I", 100 * 257), "TIFF", "I", GREY),
        (plain("I", 100), "TIFF", "I", GREY),
        (plain("I", -5), "TIFF", "I", (0, 0, 0)),
        (plain("F", 100.0), "TIFF", "F", GREY),
        (plain("F", 100 / 255), "TIFF", "F", GREY),
        (plain("F", float("nan")), "TIFF", "F", (0, 0, 0)),
        (plain("F", float("inf")), "TIFF", "F", WHITE),
        (plain("RGB", TEAL), "JPEG", "RGB", TEAL),
        (plain("RGB", TEAL), "WEBP", "RGB", TEAL),
        (plain("RGBA", (*TEAL, 0)), "WEBP", "RGBA", WHITE),
        (plain("CMYK", (0, 0, 0, 155)), "JPEG", "CMYK", GREY),
        (plain("CMYK", (0, 0, 0, 155)), "TIFF", "CMYK", GREY),
    ],
)
def test_every_mode_and_format_becomes_rgb_of_its_colours(
    image: Image.Image, form: str, mode: str | None, colour: tuple[int, int, int]
) -> None:
    data = encode(image, form)
    assert mode is None or stored_mode(data) == mode
    assert_is(decode_image(data, "x"), colour, tolerance=3 if form in ("JPEG", "WEBP") else 1)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_taken(form: str) -> None:
    data = encode(plain("RGB", TEAL), form, save_all=True, append_images=[plain("RGB", "red")] * 2)
    assert_is(decode_image(data, "x"), TEAL, tolerance=3)


def test_suffix_does_not_matter_where_the_content_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "gif.jpg").write_bytes(encode(palette(), "GIF"))
    assert_is(load_image(tmp_path / "gif.jpg"), TEAL)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "NW"), (2, "NE"), (3, "SE"), (4, "SW"), (5, "NW"), (6, "NE"), (7, "SE"), (8, "SW")],
)
def test_exif_orientation_puts_the_first_corner_where_it_belongs(
    orientation: int, corner: str, form: str
) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24] = 255
    exif = exif_of(Orientation=orientation)
    image = decode_image(encode(Image.fromarray(pixels), form, exif=exif), "x")
    assert image.size == ((48, 32) if orientation < 5 else (32, 48))
    at = {"N": 0.25, "S": 0.75, "W": 0.25, "E": 0.75}
    for vertical in "NS":
        for horizontal in "WE":
            point = (int(image.width * at[horizontal]), int(image.height * at[vertical]))
            value = image.getpixel(point)
            assert isinstance(value, tuple)
            assert (value[0] > 200) is (vertical + horizontal == corner)


def test_upright_picture_carries_no_orientation_that_would_turn_it_again() -> None:
    data = encode(plain("RGB", TEAL), exif=exif_of(Orientation=6))
    image = decode_image(data, "x")
    assert image.size == SIZE[::-1]
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
def test_malformed_exif_leaves_the_pixels_as_they_are(exif: bytes) -> None:
    assert_is(decode_image(encode(plain("RGB", TEAL), "JPEG", exif=exif), "x"), TEAL, 3)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_file_is_unreadable(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 3)).astype(np.uint8)
    data = encode(Image.fromarray(noise), form)
    assert decode_image(data, "x").size == (50, 60)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data[: int(len(data) * share)], "half.jpg")
    assert caught.value.path == "half.jpg"
    assert caught.value.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is no picture", "not an image"),
        ("текст".encode(), "not an image"),
        (bytes(1000), "not an image"),
        (b"\xff\xd8\xff", "a JPEG without pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"PK\x05\x06" + bytes(18), "not an image"),
    ],
)
def test_what_is_no_picture_says_so(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(UnreadableImage) as caught:
        load_image(tmp_path / "a.jpg")
    assert caught.value.path == str(tmp_path / "a.jpg")
    assert reason in caught.value.reason
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"


def test_missing_file_and_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UnreadableImage, match="cannot be read"):
            load_image(path)


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 5000 + ".jpg", "", "."])
def test_a_name_that_no_file_has_is_unreadable(name: str, tmp_path: Path) -> None:
    for source in (None, FolderSource(tmp_path)):
        with pytest.raises(UnreadableImage):
            load_image(name, source)


def test_damaged_member_of_an_archive_is_unreadable(faces: Path, tmp_path: Path) -> None:
    archive = make_zip(faces, tmp_path / "faces.zip")
    content = (faces / "male" / "m_3.jpg").read_bytes()
    archive.write_bytes(archive.read_bytes().replace(content, content[:-9] + bytes(9)))
    with pytest.raises(
        UnreadableImage, match=r"male/m_3\.jpg: cannot be read .damaged in the archive"
    ):
        load_image("male/m_3.jpg", open_source(archive))


def test_unreadable_image_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("мужчины/a b.jpg", "empty file")))
    assert isinstance(error, UnreadableImage)
    assert (error.path, error.reason) == ("мужчины/a b.jpg", "empty file")
    assert str(error) == "мужчины/a b.jpg: empty file"


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000)])
def test_a_line_of_pixels_is_a_bomb(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size).save(tmp_path / "line.png")
    with pytest.raises(UnreadableImage, match="on a side"):
        load_image(tmp_path / "line.png")


@pytest.mark.parametrize(
    ("start", "module", "cure"),
    [
        (b"\0\0\0\x18ftypheic", "pillow_heif", "pip install -r requirements-heic.txt"),
        (b"\0\0\0\x18ftypmif1", "pillow_heif", "pip install -r requirements-heic.txt"),
        (b"\xff\x0a", "pillow_jxl", "pip install pillow-jxl-plugin"),
    ],
)
def test_a_format_without_its_plugin_says_what_to_install(
    start: bytes, module: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UnreadableImage, match=cure):
        decode_image(start + bytes(50), "a.heic")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic_is_read_upright_where_its_plugin_is_installed(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs requirements-heic.txt")
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255
    out = io.BytesIO()
    exif = exif_of(Orientation=orientation).tobytes()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(out, exif=exif, quality=90)
    image = np.asarray(decode_image(out.getvalue(), "a.heic"))
    first = {1: image[:, :20], 3: image[:, 44:], 6: image[:20]}[orientation]
    assert image.shape[:2] == ((64, 32) if orientation == 6 else (32, 64))
    assert first.min() > 240 and image.mean() < 140


def with_brand(data: bytes, brand: bytes) -> bytes:
    """The same file, whose major brand tells nothing of what is inside."""
    return data[:8] + brand + data[12:]


@pytest.mark.parametrize("brand", [b"mif1", b"msf1"])
def test_heic_of_a_brand_that_avif_may_have_too_is_read(brand: bytes) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs requirements-heic.txt")
    out = io.BytesIO()
    pillow_heif.from_pillow(coloured(64, 32)).save(out, quality=90)
    data = with_brand(out.getvalue(), brand)
    assert decode_image(data, "a.heic").size == (64, 32)
    with pytest.raises(UnreadableImage, match="damaged: "):
        decode_image(data[:90], "a.heic")


def test_avif_of_a_brand_that_heic_may_have_too_needs_no_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow writes no AVIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    data = with_brand(encode(coloured(64, 32), "AVIF"), b"mif1")
    assert decode_image(data, "a.avif").size == (64, 32)


@pytest.mark.parametrize(
    ("top", "expected"), [(1.0, 255), (1.01, 255), (255.0, 255), (65535.0, 255)]
)
def test_float_grey_keeps_white_white(top: float, expected: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "f.tif")
    loaded = np.asarray(load_image(tmp_path / "f.tif"))
    assert loaded.max() == expected
    assert 100 < loaded.mean() < 150


# Pixels as a tensor: most JPEG files by another decoder, and always the same values


def outcome(decode: Callable[[bytes, str], Any], data: bytes) -> npt.NDArray[np.uint8] | str:
    """Return the pixels (H, W, 3) that a decoder makes of a file, else its reason."""
    try:
        found = decode(data, "x")
    except UnreadableImage as error:
        assert error.path == "x"
        return error.reason
    if isinstance(found, Image.Image):
        return np.asarray(found)
    assert found.dtype == torch.uint8 and found.shape[0] == 3
    pixels: npt.NDArray[np.uint8] = found.permute(1, 2, 0).numpy()
    return pixels


def assert_same(data: bytes) -> npt.NDArray[np.uint8] | str:
    """See that both decoders make the same of a file; return it."""
    pixels, expected = outcome(decode_pixels, data), outcome(decode_image, data)
    if isinstance(pixels, str) or isinstance(expected, str):
        reasons = [each if isinstance(each, str) else "a picture" for each in (pixels, expected)]
        assert reasons[0] == reasons[1]
    else:
        assert pixels.shape == expected.shape
        assert np.array_equal(pixels, expected)
    return expected


def coloured(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft spots of all colours, which every way of rounding would change somewhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3 + 2, width // 3 + 2, 3))
    small = Image.fromarray(noise.astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the (marker, bytes) of a JPEG's header up to its first scan, and what follows."""
    place, found = 2, []
    while True:
        length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        found.append((data[place + 1], data[place : place + length]))
        place += length
        if found[-1][0] == 0xDA:
            return found, data[place:]


def with_bytes(data: bytes, content: bytes, before: int = -1) -> bytes:
    """Put bytes in front of the first segment of a kind, by default of all."""
    header, rest = segments(data)
    at = next((i for i, (kind, _) in enumerate(header) if kind == before), 0)
    parts = [each for _, each in header]
    return b"\xff\xd8" + b"".join([*parts[:at], content, *parts[at:]]) + rest


def with_segment(data: bytes, marker: int, content: bytes, before: int = -1) -> bytes:
    return with_bytes(data, segment(marker, content), before)


def thumbnail_turned(orientation: int) -> bytes:
    """An EXIF block that turns its thumbnail and says nothing of the picture."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    picture = struct.pack("<H", 1) + struct.pack("<HHI4s", 0x0110, 2, 4, b"cam\0")
    first = picture + struct.pack("<I", 8 + len(picture) + 4)
    second = struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + encode(coloured(8, 6), "JPEG")


PLAIN = encode(coloured(61, 47), "JPEG", quality=90)
XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation="6"></rdf>'
JPEGS = {
    "plain": PLAIN,
    "grey": encode(coloured(61, 47).convert("L"), "JPEG"),
    "cmyk": encode(coloured(61, 47).convert("CMYK"), "JPEG"),
    "rgb inside": encode(coloured(61, 47), "JPEG", keep_rgb=True),
    "4:4:4": encode(coloured(61, 47), "JPEG", subsampling=0),
    "4:2:2": encode(coloured(61, 47), "JPEG", subsampling=1),
    "4:2:0": encode(coloured(61, 47), "JPEG", subsampling=2),
    "progressive": encode(coloured(61, 47), "JPEG", progressive=True),
    "progressive grey": encode(coloured(61, 47).convert("L"), "JPEG", progressive=True),
    "worst": encode(coloured(61, 47), "JPEG", quality=1),
    "best": encode(coloured(61, 47), "JPEG", quality=100, subsampling=0),
    "optimised": encode(coloured(61, 47), "JPEG", optimize=True),
    "restarts": encode(coloured(61, 47), "JPEG", restart_marker_blocks=1),
    "one pixel": encode(coloured(1, 1), "JPEG"),
    "a line": encode(coloured(1, 300), "JPEG"),
    "comment": encode(coloured(61, 47), "JPEG", comment=b"made by hand"),
    "two comments": with_segment(with_segment(PLAIN, 0xFE, b""), 0xFE, b"\xff\xd9 \xff\xc0"),
    "profile": encode(coloured(61, 47), "JPEG", icc_profile=b"profile" * 50),
    "resolution": encode(coloured(61, 47), "JPEG", dpi=(300, 300)),
    "exif of a camera": encode(coloured(61, 47), "JPEG", exif=exif_of(Make=7)),
    "exif turned twice": with_segment(
        encode(coloured(61, 47), "JPEG", exif=exif_of(Orientation=6)), 0xE1, b"Exif\0\0MM"
    ),
    "thumbnail": with_segment(PLAIN, 0xE1, thumbnail_turned(1)),
    "thumbnail turned": with_segment(PLAIN, 0xE1, thumbnail_turned(6)),
    "xmp": with_segment(PLAIN, 0xE1, XMP.replace(b"6", b"1")),
    "xmp turned": with_segment(PLAIN, 0xE1, XMP),
    "exif after the frame": with_segment(
        PLAIN, 0xE1, b"Exif\0\0" + exif_of(Orientation=6).tobytes()[6:], before=0xDA
    ),
    "adobe, unknown": with_segment(PLAIN, 0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "adobe, ycc": with_segment(PLAIN, 0xEE, b"Adobe\0\x64\0\0\0\0\x01"),
    "adobe, nonsense": with_segment(PLAIN, 0xEE, b"Adobe\0\x64\0\0\0\0\x09"),
    "without Huffman tables": PLAIN.replace(b"\xff\xc4", b"\xff\xfe"),  # libjpeg knows the usual
    "without JFIF": b"\xff\xd8" + PLAIN[20:],
    "without JFIF, adobe rgb": with_segment(
        b"\xff\xd8" + PLAIN[20:], 0xEE, b"Adobe\0\x64\0\0\0\0\0"
    ),
    "trailing bytes": PLAIN + b"\0" * 9,
    "trailing text": PLAIN + b"appended by a camera",
    "trailing picture": PLAIN + encode(coloured(9, 9, 1), "JPEG"),
    "no end": PLAIN[:-2],
    "filled markers": PLAIN[:20] + b"\xff\xff" + PLAIN[20:],
    "several pictures": encode(
        coloured(61, 47), "MPO", save_all=True, append_images=[coloured(30, 20, 1)]
    ),
    "no end, trailing text": PLAIN[:-2] + b"appended by a camera",
    "no end, trailing picture": PLAIN[:-2] + encode(coloured(9, 9, 1), "JPEG"),
    "half an end": PLAIN[:-1],
    "zeros in place of the end": PLAIN[:-2] + bytes(999),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on odd metadata
@pytest.mark.parametrize("name", JPEGS)
def test_pixels_of_a_jpeg_are_those_of_the_picture(name: str) -> None:
    pixels = assert_same(JPEGS[name])
    assert not isinstance(pixels, str)
    if "end" in name or "trailing" in name:
        assert np.array_equal(pixels, outcome(decode_image, PLAIN))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", range(10))
def test_pixels_of_a_jpeg_stand_upright(orientation: int, progressive: bool) -> None:
    exif = exif_of(Orientation=orientation)
    pixels = assert_same(
        encode(coloured(40, 24), "JPEG", exif=exif, progressive=progressive, quality=95)
    )
    assert not isinstance(pixels, str)
    assert pixels.shape[:2] == ((40, 24) if orientation in (5, 6, 7, 8) else (24, 40))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    seed=st.integers(0, 9),
)
def test_pixels_of_any_jpeg_are_those_of_the_picture(
    size: tuple[int, int],
    quality: int,
    subsampling: int,
    progressive: bool,
    mode: str,
    seed: int,
) -> None:
    assert_same(
        encode(
            coloured(*size, seed).convert(mode),
            "JPEG",
            quality=quality,
            subsampling=subsampling,
            progressive=progressive,
        )
    )


@pytest.mark.parametrize("data", [JPEGS["plain"], JPEGS["grey"], JPEGS["cmyk"]])
def test_pixels_are_channels_last_in_memory(data: bytes) -> None:
    """So that to resize them copies nothing first."""
    pixels = decode_pixels(data, "x")
    assert pixels.shape == (3, 47, 61)
    assert pixels.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize(
    "name", ["plain", "grey", "progressive", "4:2:0", "exif of a camera", "thumbnail turned", "xmp"]
)
def test_a_plain_jpeg_is_decoded_without_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("Pillow was asked")

    monkeypatch.setattr(images, "decode_image", never)
    assert decode_pixels(JPEGS[name], "x").shape == (3, 47, 61)


BOGUS_SCAN = b"\xff\xda\0\x08\x01\x63\0\0\x3f\0"


@pytest.mark.parametrize("place", [-2, -200])
def test_a_scan_that_no_header_announces_is_judged_alike(place: int) -> None:
    """OpenCV's decoder says nothing of it where all rows are there."""
    assert_same(PLAIN[:place] + BOGUS_SCAN + PLAIN[place:])


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xdc\0\4\0\x2f"])
def test_both_decoders_end_at_a_marker_between_scans(marker: bytes) -> None:
    data = JPEGS["progressive"]
    last = data.rindex(b"\xff\xda")
    assert_same(data[:last] + marker + data[last:])


TALL = coloured(60, 400)


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}, {"optimize": True}])
@pytest.mark.parametrize("behind", [b"", b"\xff\xd9", bytes(2_000), b"a camera's \xff\xda\xff\xd8"])
def test_a_jpeg_without_some_rows_is_refused_with_the_share_that_is_there(
    behind: bytes, options: dict[str, Any]
) -> None:
    data = encode(TALL, "JPEG", **options)
    start = data.index(b"\xff\xda")
    for share in (0.05, 0.3, 0.63, 0.9):
        cut = data[: start + int(share * (len(data) - start))]
        reason = str(assert_same(cut + behind))
        found = re.fullmatch(r"truncated: (\d+) % of its rows are there", reason)
        assert found and abs(int(found[1]) - 100 * share) <= 8, reason
    if not behind:
        assert "truncated" in str(assert_same(data[:-8]))


def test_a_progressive_jpeg_is_whole_once_it_has_all_coefficients() -> None:
    """Viewers show it, less sharp, when the scans that refine them are missing."""
    data = encode(TALL, "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", data)]
    for cut in (scans[0] + 99, scans[1] + 99, scans[3]):
        assert str(assert_same(data[:cut])).startswith("truncated: ")
    whole = assert_same(data)
    for cut in (scans[6], scans[-1], scans[-1] + 99, len(data) - 2):
        pixels = assert_same(data[:cut])
        assert not isinstance(pixels, str) and not isinstance(whole, str)
        assert np.abs(pixels.astype(int) - whole).mean() < 20


def test_grey_pixels_at_the_end_are_not_taken_for_missing_ones() -> None:
    for mode, grey in (("RGB", (128, 128, 128)), ("L", 128), ("CMYK", (128, 128, 128, 128))):
        assert not isinstance(assert_same(encode(Image.new(mode, (40, 40), grey), "JPEG")), str)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_a_jpeg_cut_off_in_its_header_has_no_pixels(share: float) -> None:
    data = encode(coloured(60, 50), "JPEG", exif=exif_of(Make=1))
    assert isinstance(assert_same(data[: int(len(data) * share)]), str)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"\xff\xdb", b"\xff\xfe"),  # no quantisation
        lambda data: data.replace(b"\xff\xda", b"\xff\xfe"),  # no scan
        lambda data: data.replace(b"\xff\xc0", b"\xff\xc3"),  # lossless
        lambda data: data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),  # 12 bits
        lambda data: data[:2] + b"\xff\xd9",
        lambda data: data[:2] + data[2:60] * 3 + b"\xff\xd9",
    ],
)
def test_a_damaged_jpeg_has_no_pixels_for_the_reason_that_it_is_no_picture(
    damage: Callable[[bytes], bytes],
) -> None:
    damaged = damage(PLAIN)
    assert damaged != PLAIN
    assert isinstance(assert_same(damaged), str)


MUTATED = [
    encode(coloured(21, 17), "JPEG", **options)
    for options in (
        {},
        {"progressive": True},
        {"subsampling": 0, "quality": 30},
        {"exif": exif_of(Orientation=6, Make=3)},
        {"restart_marker_blocks": 1, "comment": b"comment"},
    )
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on odd metadata
@settings(max_examples=200, deadline=None)
@given(
    data=st.sampled_from(MUTATED),
    changes=st.lists(
        st.tuples(st.floats(0, 0.999), st.integers(0, 255), st.sampled_from(["set", "cut", "put"])),
        min_size=1,
        max_size=6,
    ),
    ended=st.booleans(),
)
@example(data=MUTATED[0], changes=[(0.5, 0, "cut")], ended=True)
@example(data=MUTATED[1], changes=[(0.7, 0xFF, "put")], ended=True)
@example(data=MUTATED[4], changes=[(0.9716927568309739, 1, "set")], ended=False)
def test_damaged_bytes_have_the_same_pixels_or_the_same_reason(
    data: bytes, changes: list[tuple[float, int, str]], ended: bool
) -> None:
    damaged = bytearray(data)
    for share, value, change in changes:
        at = int(share * len(damaged))
        end = {"set": at + 1, "cut": at + 1 + value % 16, "put": at}[change]
        damaged[at:end] = b"" if change == "cut" else bytes([value])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1_000_000)
        assert_same(bytes(damaged) + (b"\xff\xd9" if ended else b""))


def announced(height: int, width: int) -> bytes:
    """A whole JPEG whose header says that it is of that size."""
    at = PLAIN.index(b"\xff\xc0") + 5
    return PLAIN[:at] + struct.pack(">HH", height, width) + PLAIN[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [announcing_png(9460, 9460), announcing_png(MAX_PIXELS + 1, 1), announced(65_535, 65_535),
     announced(20_000, 20_000), announced(65_535, 5_000)],
)  # fmt: skip
def test_a_bomb_is_refused_by_its_declared_size_and_not_decoded(data: bytes) -> None:
    for decode in (decode_image, decode_pixels):
        with pytest.raises(UnreadableImage, match="bomb") as caught:
            decode(data, "bomb.jpg")
        assert caught.value.path == "bomb.jpg"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP"])
def test_a_picture_above_the_limit_is_returned_at_a_half(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(coloured(61, 47), form)
    monkeypatch.setattr(images, "MAX_PIXELS", 61 * 47)
    assert np.shape(assert_same(data)) == (47, 61, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 61 * 47 - 1)
    assert np.shape(assert_same(data)) == (24, 31, 3)


def test_a_jpeg_is_decoded_at_the_least_scale_that_keeps_its_shorter_side() -> None:
    data = encode(coloured(400, 260), "JPEG")
    for least, shape in ((300, (260, 400)), (131, (260, 400)), (130, (130, 200)), (65, (65, 100))):
        pixels = decode_pixels(data, "x", at_least=least)
        assert pixels.shape == (3, *shape)
        image = np.asarray(decode_image(data, "x", at_least=least))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image)
    assert decode_image(data, "x", at_least=1).size == (50, 33)
    turned = encode(coloured(400, 260), "JPEG", exif=exif_of(Orientation=6))
    assert decode_image(turned, "x", at_least=130).size == (130, 200)
    png = encode(coloured(400, 260), "PNG")
    assert decode_image(png, "x", at_least=1).size == (400, 260)


def test_threads_share_the_memory_for_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture takes more than all of it, and is decoded all the same, alone."""
    most, lock, taken = 40 * 61 * 47, threading.Lock(), [0]
    monkeypatch.setattr(memory, "MOST_MEMORY", most)

    @contextmanager
    def counted(cost: int) -> Iterator[None]:
        with memory.reserve(cost):
            with lock:
                taken.append(taken[-1] + min(cost, most))
            yield
            with lock:
                taken.append(taken[-1] - min(cost, most))

    monkeypatch.setattr(images, "reserve", counted)
    large, small = encode(coloured(200, 200), "PNG"), JPEGS["plain"]
    with ThreadPoolExecutor(6) as pool:
        sizes = list(pool.map(lambda data: decode_pixels(data, "x").shape, [large, small] * 20))
    assert sizes == [(3, 200, 200), (3, 47, 61)] * 20
    assert (max(taken), taken[-1]) == (most, 0)


PEAK = """
import resource, sys, threading
from face_gender.data.images import load_pixels
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
load_pixels(sys.argv[2])
before = peak()
least = int(sys.argv[3]) or None
shapes = []
threads = [
    threading.Thread(target=lambda: shapes.append(load_pixels(sys.argv[1], at_least=least).shape))
    for _ in range(4)
]
for each in threads: each.start()
for each in threads: each.join()
print(*{tuple(each) for each in shapes}, len(shapes), round(peak() - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "least", "shape", "most"),
    [
        ((12_000, 9_000), 96, "(3, 1125, 1500)", 200),
        ((16_320, 12_240), 96, "(3, 1530, 2040)", 300),
        ((16_320, 12_240), 0, "(3, 6120, 8160)", 1_600),
        ((9_450, 9_450), 0, "(3, 9450, 9450)", 2_000),
    ],
)
def test_photographs_of_many_megapixels_are_read_in_little_memory(
    size: tuple[int, int], least: int, shape: str, most: int, tmp_path: Path
) -> None:
    coloured(300, 300).resize(size, Image.Resampling.BILINEAR).save(tmp_path / "a.jpg")
    coloured(30, 30).save(tmp_path / "small.jpg")
    done = python("-c", PEAK, tmp_path / "a.jpg", tmp_path / "small.jpg", str(least))
    assert done.stdout.startswith(f"{shape} 4 ")
    assert int(done.stdout.split()[-1]) < most


@pytest.mark.parametrize("size", [(0, 61), (47, 0), (0, 0)])
def test_a_jpeg_that_announces_no_pixels_has_none(size: tuple[int, int]) -> None:
    assert isinstance(assert_same(announced(*size)), str)


def test_pixels_are_read_from_a_path_a_folder_and_an_archive(faces: Path, tmp_path: Path) -> None:
    name = "male/m_3.jpg"
    archive = make_zip(faces, tmp_path / "faces.zip")
    expected = load_image(faces / name)
    assert expected.size == (36, 44)
    for given_ in (
        (str(faces / name), None), (name, open_source(faces)), (name, open_source(archive)),
    ):  # fmt: skip
        assert load_image(*given_) == expected
        pixels = load_pixels(*given_).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, np.asarray(expected))
    with pytest.raises(UnreadableImage, match="cannot be read") as caught:
        load_pixels(faces / "none.jpg")
    assert caught.value.path == str(faces / "none.jpg")


def test_a_picture_that_no_memory_is_left_for_may_be_one_another_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images.jpeg, "read_header", full)
    with pytest.raises(UnreadFile, match="no memory"):
        decode_image(encode(Image.new("RGB", (9, 9))), "a.jpg")


@pytest.mark.real
@pytest.mark.parametrize("name", ["officials.zip", "scut_dev.zip", "utkface.zip", "celeba64.zip"])
def test_pixels_of_real_pictures_are_those_of_the_pictures(
    name: str, shared: Callable[[str], Path]
) -> None:
    with zipfile.ZipFile(shared(name)) as archive:
        names = [each for each in archive.namelist() if each.endswith(".jpg")]
        for each in names[:: max(1, len(names) // 60)]:
            assert not isinstance(assert_same(archive.read(each)), str), each
