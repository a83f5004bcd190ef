"""Every picture becomes upright RGB; everything else becomes one exception with its reason."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_face, make_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from face_gender import images
from face_gender.files import open_source
from face_gender.images import MAX_PIXELS, UnreadableImage, decode_image, load_image

SIZE = (12, 7)
GREY = (100, 100, 100)
WHITE = (255, 255, 255)
TEAL = (20, 140, 160)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


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
        (plain("1", 1), "PNG", "1", WHITE),
        (plain("1", 0), "TIFF", "1", (0, 0, 0)),
        (plain("1", 1), "BMP", "1", WHITE),
        (plain("1", 1), "PPM", "1", WHITE),
        (plain("L", 100), "PNG", "L", GREY),
        (plain("L", 100), "JPEG", "L", GREY),
        (plain("L", 100), "GIF", None, GREY),
        (plain("L", 100), "BMP", "L", GREY),
        (plain("L", 100), "TIFF", "L", GREY),
        (plain("L", 100), "WEBP", "RGB", GREY),
        (plain("LA", (100, 255)), "PNG", "LA", GREY),
        (plain("LA", (100, 0)), "PNG", "LA", WHITE),
        (plain("LA", (100, 255)), "TIFF", "LA", GREY),
        (palette(), "PNG", "P", TEAL),
        (palette(), "GIF", "P", TEAL),
        (palette(), "BMP", "P", TEAL),
        (palette(), "TIFF", "P", TEAL),
        (palette(transparency=1), "PNG", "P", WHITE),
        (palette(transparency=1), "GIF", "P", WHITE),
        (palette(transparency=0), "PNG", "P", TEAL),
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
        (plain("RGB", TEAL), "PNG", "RGB", TEAL),
        (plain("RGB", TEAL), "JPEG", "RGB", TEAL),
        (plain("RGB", TEAL), "BMP", "RGB", TEAL),
        (plain("RGB", TEAL), "TIFF", "RGB", TEAL),
        (plain("RGB", TEAL), "WEBP", "RGB", TEAL),
        (plain("RGB", TEAL), "PPM", "RGB", TEAL),
        (plain("RGBA", (*TEAL, 255)), "PNG", "RGBA", TEAL),
        (plain("RGBA", (*TEAL, 0)), "PNG", "RGBA", WHITE),
        (plain("RGBA", (0, 0, 0, 155)), "PNG", "RGBA", GREY),
        (plain("RGBA", (0, 0, 0, 155)), "TIFF", "RGBA", GREY),
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


@pytest.mark.parametrize(("mode", "key"), [("RGB", TEAL), ("L", 100), ("1", 0)])
def test_png_with_a_transparent_colour_is_laid_over_white(mode: str, key: Any) -> None:
    data = encode(plain(mode, key), "PNG", transparency=key)
    assert stored_mode(data) == mode
    assert_is(decode_image(data, "x"), WHITE)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256)
    grey = np.asarray(decode_image(encode(Image.fromarray(ramp), form), "x"))[0, :, 0]
    assert np.abs(grey.astype(int) - np.arange(256)).max() <= 1


def test_dark_sixteen_bit_picture_stays_dark() -> None:
    data = encode(plain("I;16", 200), "TIFF")
    assert_is(decode_image(data, "x"), (1, 1, 1))


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
    exif = Image.Exif()
    exif[0x0112] = orientation
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
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encode(plain("RGB", TEAL), "JPEG", exif=exif), "x")
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
        (b"\xff\xd8\xff", "not an image"),
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


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def declared_png(width: int, height: int) -> bytes:
    """A file of some 60 bytes that says it is a picture of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (9460, 9460), (MAX_PIXELS + 1, 1)])
def test_decompression_bomb_is_refused_by_its_declared_size(width: int, height: int) -> None:
    assert width * height > MAX_PIXELS
    with pytest.raises(UnreadableImage, match="bomb") as caught:
        decode_image(declared_png(width, height), "bomb.png")
    assert caught.value.path == "bomb.png"


def test_limit_of_pixels_is_the_last_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(plain("RGB", TEAL), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", SIZE[0] * SIZE[1])
    assert_is(decode_image(data, "x"), TEAL)
    monkeypatch.setattr(images, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(UnreadableImage, match="bomb"):
        decode_image(data, "x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on odd metadata
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_bytes_give_a_picture_or_unreadable_image_and_nothing_else(
    form: str, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(encode(draw_face("male", 0, (16, 18)), form))
    for share, value in flips:
        data[int(share * len(data))] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1_000_000)
        try:
            assert decode_image(bytes(data), "x").mode == "RGB"
        except UnreadableImage as error:
            assert error.path == "x" and error.reason and "\n" not in error.reason


def test_missing_file_and_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UnreadableImage, match="cannot be read"):
            load_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipe_is_unreadable_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


def test_path_folder_and_archive_give_the_same_pixels(faces: Path, tmp_path: Path) -> None:
    name = "male/m_3.jpg"
    archive = make_zip(faces, tmp_path / "faces.zip")
    pictures = [
        load_image(faces / name),
        load_image(str(faces / name)),
        load_image(name, open_source(faces)),
        load_image(name, open_source(archive)),
    ]
    assert pictures[0].size == (36, 44)
    assert all(picture == pictures[0] for picture in pictures[1:])


def test_damaged_member_of_an_archive_is_unreadable(faces: Path, tmp_path: Path) -> None:
    archive = make_zip(faces, tmp_path / "faces.zip")
    content = (faces / "male" / "m_3.jpg").read_bytes()
    archive.write_bytes(archive.read_bytes().replace(content, content[:-9] + bytes(9)))
    with pytest.raises(UnreadableImage, match=r"male/m_3\.jpg: cannot be read .*CRC"):
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


def test_heic_says_what_to_do() -> None:
    with pytest.raises(UnreadableImage, match="save it as JPEG"):
        decode_image(b"\x00\x00\x00\x18ftypheic" + b"\x00" * 50, "a.heic")


@pytest.mark.parametrize(
    ("top", "expected"), [(1.0, 255), (1.01, 255), (255.0, 255), (65535.0, 255)]
)
def test_float_grey_keeps_white_white(top: float, expected: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "f.tif")
    loaded = np.asarray(load_image(tmp_path / "f.tif"))
    assert loaded.max() == expected
    assert 100 < loaded.mean() < 150
