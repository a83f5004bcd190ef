"""Every layout of pixels is decoded as it was written and as viewers show it, or refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from conftest import encode
from PIL import Image
from writers import bmp, chunk, packed, png, segment, tiff, tiff_of_jpeg

from face_gender.data.images import UnreadableImage, decode_image, decode_pixels

Values = npt.NDArray[Any]
HEIGHT, WIDTH = 10, 13
RANDOM = np.random.default_rng(0)
COLOURS: Values = RANDOM.random((HEIGHT, WIDTH, 3))
GREY: Values = COLOURS[..., 0]
ALPHA: Values = np.where(RANDOM.random((HEIGHT, WIDTH)) < 0.3, 1, RANDOM.random((HEIGHT, WIDTH)))
SHADES = RANDOM.integers(0, 256, (256, 3))


class Case(NamedTuple):
    """A file and what it shows, 0..1; None: the reason of its refusal says what it is."""

    name: str
    data: bytes
    shown: Values | None
    # Viewers agree about this one: libvips, which has no bitmaps and no PNM, must show it too.
    is_common: bool = True


def levels(values: Values, bits: int) -> Values:
    rounded: Values = np.round(values * (2**bits - 1)).astype(np.uint64)
    return rounded


def over_white(colours: Values, alpha: Values) -> Values:
    alpha = alpha[..., None] if colours.ndim > alpha.ndim else alpha
    laid: Values = colours * alpha + 1 - alpha
    return laid


def stacked(*channels: Values) -> Values:
    return np.concatenate([each[..., None] if each.ndim == 2 else each for each in channels], 2)


def tiffs() -> Iterator[Case]:
    for order in "<>":
        for packing in (1, 8):
            way = f"tiff {order} {packing}"
            yield from grey_tiffs(order, packing, way)
            yield from colour_tiffs(order, packing, way)


def grey_tiffs(order: str, packing: int, way: str) -> Iterator[Case]:
    for photometric in (0, 1):
        for bits in (1, 2, 4, 8, 12, 16, 32):
            data = tiff(levels(GREY, bits), photometric, bits, order, packing=packing)
            exact = levels(GREY, bits) / (2**bits - 1)
            is_read = bits < 12 or bits == 16 or (bits, order) == (12, "<")
            shown = (exact if photometric else 1 - exact) if is_read else None
            yield Case(f"{way} grey {bits} {photometric}", data, shown, bits != 12)
            if bits <= 8 or (bits, order) == (16, "<"):
                reverse = tiff(levels(GREY, bits), photometric, bits, order, tags={266: [2]})
                yield Case(f"{way} bits reversed {bits} {photometric}", reverse, shown)
    for name, values, code in (
        ("float 0..1", GREY.astype("f4"), 3),
        ("float 0..255", (GREY * 255).astype("f4"), 3),
        ("signed 32", (GREY * 255).astype("i4"), 2),
        ("signed 32, values of 16", (GREY * 65_535).astype("i4"), 2),
    ):
        data = tiff(values, 1, 32, order, packing=packing, tags={339: [code]})
        yield Case(f"{way} {name}", data, GREY, "255" in name)
    for bits in (8, 16):
        data = tiff((GREY * 99).astype(f"i{bits // 8}"), 1, bits, order, tags={339: [2]})
        yield Case(f"{way} signed {bits}", data, None)
        for extra in (0, 1, 2):
            stored = GREY * ALPHA if extra == 1 else GREY
            pixels = levels(stacked(stored, ALPHA), bits)
            data = tiff(pixels, 1, bits, order, packing=packing, tags={338: [extra]})
            shown = over_white(GREY, ALPHA) if bits == 8 else None
            yield Case(f"{way} grey and alpha {bits} {extra}", data, shown)
    for bits in (1, 2, 4, 8):
        indices, colours = levels(GREY, bits), SHADES[: 2**bits]
        for scale in (1, 256, 257):
            table = {320: (colours.T * scale).ravel().tolist()}
            data = tiff(indices, 3, bits, order, packing=packing, tags=table)
            shown = colours[indices.astype(int)] / 255
            yield Case(f"{way} palette {bits} of {255 * scale}", data, shown)
    pixels = levels(stacked(GREY, ALPHA), 8)
    data = tiff(
        pixels, 3, 8, order, packing=packing, tags={320: (SHADES.T * 257).ravel(), 338: [2]}
    )
    yield Case(
        f"{way} palette and alpha",
        data,
        over_white(SHADES[pixels[..., 0].astype(int)] / 255, ALPHA),
    )


def colour_tiffs(order: str, packing: int, way: str) -> Iterator[Case]:
    for planes in (1, 2):
        for bits in (4, 8, 12, 16, 32):
            options: dict[str, Any] = {"order": order, "packing": packing, "planes": planes}
            is_read = bits in (8, 16)
            name = f"{way} {bits} planes {planes}"
            data = tiff(levels(COLOURS, bits), 2, bits, **options)
            yield Case(f"{name} rgb", data, COLOURS if is_read else None)
            for extra in ([], [0], [1], [2]):
                stored = COLOURS * ALPHA[..., None] if extra == [1] else COLOURS
                pixels = levels(stacked(stored, ALPHA), bits)
                data = tiff(pixels, 2, bits, tags={338: extra} if extra else {}, **options)
                shown = over_white(COLOURS, ALPHA) if is_read else None
                yield Case(f"{name} rgba {extra}", data, shown)
            empty = levels(stacked(COLOURS, ALPHA * 0), bits)
            data = tiff(empty, 2, bits, **options)
            yield Case(f"{name} alpha left empty", data, COLOURS if is_read else None, False)
            data = tiff(levels(stacked(COLOURS, GREY), bits), 5, bits, **options)
            cmyk = (1 - COLOURS) * (1 - GREY[..., None])
            yield Case(f"{name} cmyk", data, cmyk if is_read else None, False)
        yield Case(f"{way} lab 16 {planes}", tiff(levels(COLOURS, 16), 8, 16, **options), None)
    floats = tiff(COLOURS.astype("f4"), 2, 32, order, tags={339: [3, 3, 3]})
    yield Case(f"{way} float rgb", floats, None)
    full = levels(COLOURS, 8)
    ycc = Image.fromarray(full.astype(np.uint8), "YCbCr").convert("RGB")
    data = tiff(full, 6, 8, order, packing=packing, tags={530: [1, 1]})
    yield Case(f"{way} ycbcr", data, np.asarray(ycc) / 255, False)


def old_jpeg_tiffs() -> Iterator[Case]:
    jpeg = encode(Image.fromarray(levels(COLOURS, 8).astype(np.uint8)), subsampling=0)
    shown = np.asarray(Image.open(BytesIO(jpeg))) / 255
    yield Case("tiff of jpeg", tiff_of_jpeg(jpeg, WIDTH, HEIGHT), shown, False)


def pngs() -> Iterator[Case]:
    for interlaced in (False, True):
        for depth in (1, 2, 4, 8, 16):
            yield from png_depth(depth, interlaced)


def png_depth(depth: int, interlaced: bool) -> Iterator[Case]:
    name, top = f"png {depth} {interlaced}", 2**depth - 1
    grey = levels(GREY, depth)
    key = int(grey[2, 3])
    shown = np.where(grey == key, 1, grey / top)
    for high in (0, 0x5500) if depth < 16 else (0,):  # bits above the depth do not count
        before = chunk(b"tRNS", struct.pack(">H", key | high))
        yield Case(f"{name} grey tRNS {high}", png(grey, 0, depth, before, b"", interlaced), shown)
    yield Case(f"{name} grey", png(grey, 0, depth, interlaced=interlaced), grey / top)
    if depth <= 8:
        colours = SHADES[: 2**depth]
        alpha = RANDOM.integers(0, 256, 2**depth)
        table = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        flat = colours[grey.astype(int)] / 255
        yield Case(f"{name} palette", png(grey, 3, depth, table, b"", interlaced), flat)
        before = table + chunk(b"tRNS", bytes(alpha.tolist()))
        shown = over_white(flat, alpha[grey.astype(int)] / 255)
        yield Case(f"{name} palette tRNS", png(grey, 3, depth, before, b"", interlaced), shown)
        before = table + chunk(b"tRNS", bytes(2**depth + 1))
        yield Case(f"{name} palette tRNS too long", png(grey, 3, depth, before), flat)
    if depth >= 8:
        colours = levels(COLOURS, depth)
        colours[0, 0] = colours[1, 1]
        colours[0, 1] = colours[1, 1] ^ np.uint64(1)  # differs in the last bit alone
        key3 = chunk(b"tRNS", struct.pack(">3H", *map(int, colours[1, 1])))
        same = (colours == colours[1, 1]).all(axis=2, keepdims=True)
        shown = np.where(same, 1, colours / top)
        yield Case(f"{name} rgb tRNS", png(colours, 2, depth, key3, b"", interlaced), shown)
        yield Case(f"{name} rgb", png(colours, 2, depth, interlaced=interlaced), colours / top)
        for kind, stored in ((4, GREY), (6, COLOURS)):
            pixels = levels(stacked(stored, ALPHA), depth)
            shown = over_white(stored, ALPHA)
            yield Case(
                f"{name} alpha {kind}", png(pixels, kind, depth, b"", b"", interlaced), shown
            )


def bitmaps() -> Iterator[Case]:
    full = levels(COLOURS, 8).astype(np.uint8)
    red, green, blue = (full[..., i].astype(np.uint32) for i in range(3))
    for header in (40, 52, 56, 108, 124):
        for top_down in (False, True):
            options: dict[str, Any] = {"header": header, "top_down": top_down}
            name = f"bmp {header} {top_down}"
            rows = [row.tobytes() for row in full[..., ::-1]]
            yield Case(f"{name} 24", bmp(rows, WIDTH, 24, **options), COLOURS)
            for alpha in (0 * ALPHA, ALPHA, 0 * ALPHA + 1):
                a8 = levels(alpha, 8).astype(np.uint32)
                words = a8 << 24 | red << 16 | green << 8 | blue
                rows = [row.tobytes() for row in words.astype("<u4")]
                yield Case(
                    f"{name} 32 {alpha.mean():.1f}", bmp(rows, WIDTH, 32, **options), COLOURS
                )
                masks = [0xFF0000, 0xFF00, 0xFF, 0xFF000000][: 3 + (header >= 56)]
                shown = over_white(COLOURS, alpha) if header >= 56 and alpha.any() else COLOURS
                data = bmp(rows, WIDTH, 32, masks=masks, **options)
                yield Case(f"{name} 32 masks {alpha.mean():.1f}", data, shown)
            for masks in (
                [0x7C00, 0x3E0, 0x1F],
                [0xF800, 0x7E0, 0x1F],
                [0xF00, 0xF0, 0xF],
                [0x3FF00000, 0xFFC00, 0x3FF],
                [0xFF, 0xFF00, 0xFF0000],
            ):
                words, shown = np.zeros((HEIGHT, WIDTH), np.uint32), np.zeros_like(COLOURS)
                for i, mask in enumerate(masks):
                    lowest = mask & -mask
                    values = np.round(COLOURS[..., i] * (mask // lowest))
                    words |= values.astype(np.uint32) * np.uint32(lowest)
                    shown[..., i] = values / (mask // lowest)
                bits = 16 if max(masks) < 2**16 else 32
                rows = [row.tobytes() for row in words.astype(f"<u{bits // 8}")]
                data = bmp(rows, WIDTH, bits, masks=masks, **options)
                yield Case(f"{name} masks {masks[0]:x}", data, shown)


def palette_bitmaps() -> Iterator[Case]:
    for header in (12, 40, 64, 124):
        for bits in (1, 4, 8):
            count = 2**bits
            ramp = np.repeat(np.arange(count)[:, None], 3, axis=1)
            tables = [SHADES[:count], ramp, ramp * 255 // (count - 1), 255 - ramp]
            tables += [] if header == 12 else [ramp[:2] * 255, ramp[:2], SHADES[:2]]
            for i, table in enumerate(tables):
                indices = levels(GREY, 8).astype(int) % len(table)
                data = bmp(
                    packed(indices, bits), WIDTH, bits, header, palette=table.tolist(),
                    colours=len(table) % count,
                )  # fmt: skip
                yield Case(f"bmp {header} palette {bits} {i}", data, table[indices] / 255)
    indices = levels(GREY, 8).astype(int)
    runs = [b"".join(bytes([1, each]) for each in row) + b"\0\0" for row in indices.tolist()]
    body = b"".join(runs[::-1]) + b"\0\1"
    data = bmp([body + bytes(-len(body) % 4)], WIDTH, 8, palette=SHADES.tolist(), compression=1)
    data = data[:22] + struct.pack("<i", HEIGHT) + data[26:]
    yield Case("bmp runs", data, SHADES[indices] / 255)


def maps() -> Iterator[Case]:
    for top in (1, 15, 100, 255, 1023, 4095, 65_535):
        for brightest in (1, 0.003):
            values = np.round(COLOURS * brightest * top).astype(int)
            for kind, pixels in ((5, values[..., 0]), (6, values)):
                size = f"{WIDTH} {HEIGHT}\n{top}\n"
                stored = pixels.astype(">u2" if top > 255 else "u1").tobytes()
                text = " ".join(map(str, pixels.ravel()))
                name = f"pnm {kind} {top} {brightest}"
                yield Case(name, f"P{kind}\n{size}".encode() + stored, pixels / top)
                yield Case(f"{name} text", f"P{kind - 3}\n{size}{text}".encode(), pixels / top)


TIFFS = [*tiffs(), *old_jpeg_tiffs()]
PNGS = [*pngs()]
OTHERS = [*bitmaps(), *palette_bitmaps(), *maps()]


def shown_by_us(data: bytes) -> Values:
    return np.asarray(decode_image(data, "x")).astype(int)


def as_bytes(shown: Values) -> Values:
    values: Values = np.round(np.clip(shown, 0, 1) * 255).astype(int)
    return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values


@pytest.mark.parametrize("case", [*TIFFS, *PNGS, *OTHERS], ids=lambda case: case.name)
def test_pixels_are_those_written_or_the_reason_says_what_is_not_decoded(case: Case) -> None:
    if case.shown is None:
        with pytest.raises(UnreadableImage, match=r"^x: (TIFF of \d x \d+ bits|values of up to)"):
            decode_image(case.data, "x")
    else:
        assert np.abs(shown_by_us(case.data) - as_bytes(case.shown)).max() <= 3
        pixels = decode_pixels(case.data, "x").permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, shown_by_us(case.data))


def test_a_second_decoder_shows_the_same() -> None:
    pyvips = pytest.importorskip("pyvips", reason="needs requirements-dev.txt")
    different = []
    for case in [*TIFFS, *PNGS]:
        if case.is_common and case.shown is not None:
            image = pyvips.Image.new_from_buffer(case.data, "").colourspace("srgb")
            image = image.flatten(background=255) if image.hasalpha() else image
            values = image.cast("uchar").numpy().reshape(HEIGHT, WIDTH, -1)
            if np.abs(values.astype(int) - shown_by_us(case.data)).max() > 3:
                different.append(case.name)
    assert different == []


PLAIN = Image.fromarray(np.repeat(levels(COLOURS, 8).astype(np.uint8), 3, axis=0))


# A frame that does not cover its canvas, indices 0..3 in codes of 3 bits between clear and end.
GIF = (
    b"GIF89a\4\0\3\0\x81\2\0" + SHADES[:4].astype(np.uint8).tobytes()
    + b",\1\0\1\0\2\0\1\0\0\2\2\x4c\x0a\0;"
)  # fmt: skip


def test_what_a_gifs_first_frame_leaves_free_is_white() -> None:
    shown = shown_by_us(GIF)
    assert shown.shape == (3, 4, 3)
    assert np.array_equal(shown[1, 1:3], SHADES[[1, 1]])
    shown[1, 1:3] = 255
    assert (shown == 255).all()


MEGABYTES = zlib.compress(bytes(3 * 2**20))
NOISE = RANDOM.integers(0, 256, 3 * 2**20).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"iCCP", b"name\0\0" + MEGABYTES),
        (b"iCCP", b"name\0\5" + MEGABYTES),
        (b"iCCP", b"name"),
        (b"zTXt", b"key\0\0" + MEGABYTES),
        (b"iTXt", b"key\0\1\0\0\0" + MEGABYTES),
        (b"iTXt", NOISE),
        (b"tEXt", NOISE),
        (b"pHYs", b"\0\0"),
        *((kind, b"") for kind in (b"sRGB", b"gAMA", b"tIME", b"eXIf", b"acTL", b"fcTL", b"abCd")),
    ],
)
def test_metadata_of_a_png_do_not_decide_over_its_pixels(kind: bytes, content: bytes) -> None:
    odd, pixels = chunk(kind, content), levels(COLOURS, 8)
    wrong_sum = odd[:-1] + bytes([odd[-1] ^ 1])
    for each in (odd, wrong_sum, odd * 3):
        assert np.array_equal(shown_by_us(png(pixels, 2, 8, each)), pixels)
        assert np.array_equal(shown_by_us(png(pixels, 2, 8, b"", each)), pixels)


def test_a_png_without_its_last_chunks_is_whole_and_one_without_rows_is_not() -> None:
    pixels = levels(COLOURS, 8)
    data = png(pixels, 2, 8)
    for lost in (2, 4, 12, 14, 16, 20):  # of IEND, then the checksums of the pixels
        assert np.array_equal(shown_by_us(data[:-lost]), pixels)
    fine = levels(COLOURS, 16)
    clear = png(fine, 2, 16, chunk(b"tRNS", fine[0, 0].astype(">u2").tobytes()))
    for lost in (2, 3, 4, 7, 11, 12):  # of IEND
        assert np.array_equal(shown_by_us(clear[:-lost]), shown_by_us(clear))
    with pytest.raises(UnreadableImage, match="damaged: a PNG of 48 bits whose"):
        decode_image(clear[:-14], "x")
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: len(data) // 2], "x")


@pytest.mark.parametrize(
    "odd",
    [
        segment(0xE1, NOISE[:65_533]) * 40,
        segment(0xFE, NOISE[:65_533]) * 40,
        segment(0xE0, b"JFIF"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0" + NOISE[:99]),
        segment(0xED, b"Photoshop 3.0\x008BIM"),
        segment(0xEE, b"Adobe"),
        b"\xff\x01",
        b"\xff\xd0",
        b"\xff\xff",
        b"junk",
    ],
)
def test_metadata_of_a_jpeg_do_not_decide_over_its_pixels(odd: bytes) -> None:
    data = encode(PLAIN)
    expected = shown_by_us(data)
    for at in (20,) if odd == b"junk" else (2, 20):
        changed = data[:at] + odd + data[at:]
        assert np.array_equal(shown_by_us(changed), expected)
        assert np.array_equal(decode_pixels(changed, "x").permute(1, 2, 0).numpy(), expected)


def test_metadata_of_a_tiff_do_not_decide_over_its_pixels() -> None:
    pixels = levels(COLOURS, 8)
    odd = {270: [1], 282: [7], 296: [999], 305: [0], 700: [5], 33_432: [1, 2, 3], 34_665: [65_535]}
    assert np.array_equal(shown_by_us(tiff(pixels, 2, 8, tags=odd)), pixels)


XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_in_xmp_is_not_followed(form: str) -> None:
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    if form == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        data = png(levels(COLOURS, 8), 2, 8, chunk(b"iTXt", text))
    else:
        data = (
            encode(PLAIN, form, xmp=XMP)
            if form != "TIFF"
            else encode(PLAIN, form, tiffinfo={700: XMP})
        )
    assert XMP in data
    assert decode_image(data, "x").width == WIDTH
