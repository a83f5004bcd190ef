"""Seeds, mutations and checks of what test_fuzz.py feeds.

Each input is a seed, changed once to six times: bits, bytes, cuts, splices, swapped blocks,
numbers; or in its structure (an archive's directory, a pickle's fields). It must end in a result or
in exactly the exception that the function names.
"""

from __future__ import annotations

import io
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import draw_face, make_faces
from PIL import Image

from face_gender import CLASSES
from face_gender.data.__main__ import main as data_split
from face_gender.data.images import UnreadableImage, decode_image, decode_pixels
from face_gender.data.sources import find_images, open_source
from face_gender.data.tables import read_index
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, load_checkpoint
from face_gender.model.recipes import get_recipe

_WHEN = (2024, 1, 2, 3, 4, 6)  # the same seeds whenever they are made
_INTERESTING = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)

Seeds = Sequence[bytes]


class Target(NamedTuple):
    """One kind of input: what it starts from, how it is changed, and what becomes of it.

    ``check`` returns it in words, and raises for what must not become of an input.
    """

    seeds: Callable[[], Seeds]
    mutate: Callable[[random.Random, Seeds], bytes]
    check: Callable[[bytes, Path], str]


def change(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return bytes changed in one to six places, mostly near the ends, where structure lies."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = _place(len(changed), rng)
        kind = rng.randrange(9)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 1] = rng.randbytes(1)
        elif kind == 2:
            changed[at : at + rng.choice((1, 2, 4, 16, 100))] = b""
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 4:
            changed = changed[:at] if rng.random() < 0.5 else changed[at:]
        elif kind == 5:
            other = rng.choice(seeds)
            start = _place(len(other), rng)
            changed[at:] = other[start:]
        elif kind == 6:
            width = rng.choice((1, 4, 16, 64))
            other_at = _place(len(changed), rng)
            block = changed[at : at + width]
            changed[at : at + width] = changed[other_at : other_at + width]
            changed[other_at : other_at + width] = block
        elif kind == 7:
            form = rng.choice(("<H", ">H", "<I", ">I", "<Q", "B"))
            limit = 256 ** struct.calcsize(form)
            number = struct.pack(form, rng.choice(_INTERESTING) % limit)
            changed[at : at + len(number)] = number
        else:
            changed[at:at] = changed[at : at + rng.choice((8, 64, 512))] * rng.choice((1, 2, 50))
    return bytes(changed)


def _place(length: int, rng: random.Random) -> int:
    near = min(length, rng.choice((64, 512, 4096, length)))
    at = rng.randrange(near + 1)
    return at if rng.random() < 0.6 else length - at


# --- pictures: both decoders agree, or raise UnreadableImage --------------------------------------


def mutate_image(rng: random.Random, seeds: Seeds) -> bytes:
    """Return a changed picture; of a PNG, often one whose checksums are right again."""
    changed = change(rng.choice(seeds), rng, seeds)
    return _with_checksums(changed) if rng.random() < 0.7 else changed


def check_image(data: bytes, folder: Path) -> str:
    expected, found = (_decoded(decode, data) for decode in (decode_image, decode_pixels))
    if isinstance(expected, str) or isinstance(found, str):
        assert isinstance(expected, str) and isinstance(found, str), (expected, found)
        return f"UnreadableImage, {re.split('[:,(]', expected)[0]}"
    assert np.array_equal(np.asarray(expected), found.permute(1, 2, 0).numpy()), "other pixels"
    return "picture"


def _decoded(decode: Callable[[bytes, str], Any], data: bytes) -> Any:
    try:
        return decode(data, "input")
    except UnreadableImage as error:
        assert error.path == "input" and error.reason and "\n" not in error.reason
        return error.reason


def _with_checksums(data: bytes) -> bytes:
    """Return a PNG with the checksum that each chunk should have; others as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


# --- lists: a table, or InputError ----------------------------------------------------------------


def mutate_index(rng: random.Random, seeds: Seeds) -> bytes:
    """Return a changed CSV: bytes, or cells put elsewhere."""
    seed = rng.choice(seeds)
    if rng.random() < 0.5:
        return change(seed, rng, seeds)
    rows = [row.split(b",") for row in seed.split(b"\n")]
    for _ in range(rng.randint(1, 5)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(_CELLS)
    return b"\n".join(b",".join(row) for row in rows)


def check_index(data: bytes, folder: Path) -> str:
    if not (folder / "male").exists():
        make_faces(folder, 4, 4)
    (folder / "given.csv").write_bytes(data)
    try:
        outcome = f"index of {len(read_index(folder / 'given.csv').columns)} columns"
    except InputError as error:
        outcome = _sentence(str(error))
    return f"{outcome}, {_split(folder / 'given.csv')}"


def _split(data: Path) -> str:
    """Make an index with the command, which ends in a sentence where it cannot."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = data_split([str(data), "--output", str(data.with_suffix(".new")), "--force"])
    if code:
        return _sentence(err.getvalue().splitlines()[-1])
    assert read_index(data.with_suffix(".new"))["split"].any()
    return "new index"


_CELLS = (
    b"", b"0", b"1", b"2", b"male", b"MALE", b"-1", b"nan", b"1e9", b"0" * 9999, b"\xff\xfe", b"\0",
    b'"', b'"a\nb"', b"../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"C:\\x.jpg", b"male",
    b"male/m_0.jpg", b"..\\x.jpg", b"x" * 300 + b".jpg", b"\x1b[31m.jpg", b"train", b"test",
    b"path", b"label", b"split", b"group", b"\xef\xbb\xbf", "мужчина.jpg".encode(),
    b"." * 5000, b"\r", b"~",
)  # fmt: skip


# --- archives: listed, read and indexed, or InputError, a member by OSError -----------------------


def mutate_zip(rng: random.Random, seeds: Seeds) -> bytes:
    """Return a changed archive; often with a number of its directory changed alone."""
    data = bytearray(rng.choice(seeds))
    marks = [at for mark in _MARKS for at in _find_all(data, mark)]
    if not marks or rng.random() > 0.6:
        return change(bytes(data), rng, seeds)
    for _ in range(rng.randint(1, 4)):
        at = rng.choice(marks) + rng.randrange(4, 46)
        form = rng.choice(("<H", "<I", "<Q", "B"))
        value = rng.choice((*_INTERESTING, len(data), len(data) - 22, rng.randrange(2**16)))
        packed = struct.pack(form, value % 256 ** struct.calcsize(form))
        data[at : at + len(packed)] = packed
    return bytes(data)


def check_zip(data: bytes, folder: Path) -> str:
    path = folder / "given.zip"
    path.write_bytes(data)
    outcomes = set()
    try:
        source = open_source(path)
        for name in list(source.names())[:50]:
            try:
                source.read(name)
                outcomes.add("read")
            except OSError:
                outcomes.add("OSError")
        find_images(path)
    except InputError as error:
        outcomes.add(_sentence(str(error)))
    return ", ".join(sorted(outcomes | {_split(path)}))


_MARKS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")


def _find_all(data: bytes | bytearray, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


# --- checkpoints: a net that can be built, or InputError -----------------------------------------


def mutate_checkpoint(rng: random.Random, seeds: Seeds) -> bytes:
    """Return a changed file: bytes, its pickle alone, or its content with odd values."""
    kind = rng.random()
    seed = rng.choice(seeds)
    if kind < 0.25:
        return change(seed, rng, seeds)
    if kind < 0.65 and seed.startswith(b"PK"):
        return _with_other_pickle(seed, rng)
    return _saved(_with_odd_values(_own_content(), rng), rng.random() < 0.8)


def check_checkpoint(data: bytes, folder: Path) -> str:
    path = folder / "given.pth"
    path.write_bytes(data)
    named: dict[str, Any]
    for named in ({}, {"recipe": "compact_cnn", "classes": ("female", "male")}):
        try:
            checkpoint = load_checkpoint(path, **named)
            checkpoint.describe()
            checkpoint.build()
            return "net"
        except InputError as error:
            outcome = _sentence(str(error))
    return outcome


def _with_other_pickle(data: bytes, rng: random.Random) -> bytes:
    """Return a zip-format .pth whose pickle, or another small member, is changed."""
    out = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", method) as new,
    ):
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(".pkl") or (len(content) < 64 and rng.random() < 0.1):
                content = change(content, rng, [content])
            new.writestr(zipfile.ZipInfo(info.filename, _WHEN), content, method)
    return out.getvalue()


def _with_odd_values(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return content with one to three of its values, or keys, replaced."""
    for _ in range(rng.randint(1, 3)):
        place: Any = content
        while True:
            key = rng.choice(list(place))
            deeper = place[key]
            if not isinstance(deeper, dict) or not deeper or rng.random() < 0.2:
                break
            place = deeper
        if rng.random() < 0.15:
            del place[key]
            if not place:
                place["x"] = 1
        elif rng.random() < 0.1:
            place[rng.choice(("x", 1, None, ("a", 1), "module.x"))] = rng.choice(_odd())
        else:
            place[key] = rng.choice(_odd())
    return content


class _Overlaid:
    """Is pickled as a dict that carries attributes under the names of its own methods."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"get": 5, "items": "x", "keys": 1}, None, iter([("a", 1)])


@cache
def _odd() -> tuple[Any, ...]:
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep, deep]  # written once, and 2^60 lists to whoever walks it
    table = _Overlaid()
    tensors = (
        torch.zeros(0), torch.zeros(2), torch.zeros(2, 2), torch.tensor(1.0), torch.tensor(True),
        torch.zeros(1).expand(10**12), torch.zeros(1, dtype=torch.int64).expand(10**12),
        torch.zeros(1).expand(32, 3, 3, 3), torch.zeros(32, 3, 3, 3, dtype=torch.complex64),
        torch.full((32, 3, 3, 3), float("nan")), torch.zeros(32, 3, 3, 3, dtype=torch.int32),
        torch.zeros(32, 3, 3, 3).to_sparse(), torch.zeros(32, device="meta"),
        torch.quantize_per_tensor(torch.zeros(32), 0.1, 0, torch.qint8),
        torch.zeros(32, 3, 3, 3, dtype=torch.float8_e4m3fn), torch.zeros(32, dtype=torch.uint16),
        torch.nn.Parameter(torch.zeros(32)), torch.zeros(32, 3, 3, 3, dtype=torch.float64),
        torch.arange(3), torch.tensor([3, 1, 2**62]),
    )  # fmt: skip
    plain: tuple[Any, ...] = (
        None, True, False, 0, 1, 2, -1, 0.5, -0.0, float("nan"), float("inf"), 10**9, 2**63,
        10**400, "", "x", "resnet18", "compact_cnn", "x" * 10**6, "../x",
        "\n\x1b[2J", "\ud800", "none", [], (), {}, [1], ["male"], ["male", "male"], ["male", 3],
        ["a"] * 10**4, [float("nan")] * 3,
        [0.5, 0.5], [[1], [2]], {"a": 1}, {1: 2}, {"a": {"b": {}}}, [deep], deep, {"d": deep},
        table, [str(i) for i in range(3000)], 1j, b"bytes", {1, 2}, bytearray(9), OrderedDict(a=2),
    )  # fmt: skip
    return plain + tensors


def _sentence(text: str) -> str:
    """Return "InputError", having seen that its message is one line of bearable length."""
    assert "\n" not in text and "\x1b" not in text and len(text) < 2000, text
    assert text.endswith((".", "?")), text
    assert not re.search("memoryerror|bad_alloc|enough memory", text.lower()), text
    return "InputError"


def _images() -> list[bytes]:
    rgb = draw_face("male", 0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    sixteen = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    floating = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.float32) / 255)
    grey, palette, alpha = rgb.convert("L"), rgb.convert("P"), rgb.convert("RGBA")
    palette.info["transparency"] = 3
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True}), (grey, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"exif": exif, "subsampling": 0}), (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "JPEG", {"restart_marker_blocks": 1, "comment": b"words", "dpi": (72, 72)}),
        (rgb, "JPEG", {"icc_profile": bytes(300)}), (rgb, "MPO", {"save_all": True}),
        *((each, "PNG", {}) for each in (
            rgb, grey, alpha, palette, rgb.convert("1"), rgb.convert("LA"), sixteen)),
        (rgb, "PNG", {"exif": exif, "icc_profile": bytes(300)}),
        (rgb, "PNG", {"save_all": True, "append_images": [draw_face("male", 1)]}),
        (rgb, "GIF", {}), (palette, "GIF", {"save_all": True, "append_images": [palette]}),
        (rgb, "WEBP", {}), (alpha, "WEBP", {"lossless": True, "exif": exif}),
        (rgb, "WEBP", {"save_all": True, "append_images": [draw_face("male", 1)]}),
        *((each, "TIFF", {}) for each in (
            rgb, grey, alpha, palette, rgb.convert("1"), sixteen, floating, rgb.convert("CMYK"))),
        *((rgb, "TIFF", {"compression": name}) for name in (
            "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}), (rgb, "TIFF", {"big_tiff": True}),
        (rgb, "BMP", {}), (palette, "BMP", {}), (rgb.convert("1"), "BMP", {}), (rgb, "DIB", {}),
        (rgb, "PPM", {}), (grey, "PPM", {}), (rgb.convert("1"), "PPM", {}), (sixteen, "PPM", {}),
    ]  # fmt: skip
    if "AVIF" in Image.SAVE:
        kinds.append((rgb, "AVIF", {}))
    return [_encoded(*kind) for kind in kinds] + [b"P3 2 2 255 " + b"9 8 7 " * 4, b"GIF89a"]


def _encoded(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _indexes() -> list[bytes]:
    names = [f"{label}/{label[0]}_{i}.jpg" for label in CLASSES for i in range(4)]
    splits = ("train", "val", "test", "train")
    new = [f"{n},{i // 4},{splits[i % 4]},{i:064x},g{i}" for i, n in enumerate(names)]
    old = [f"{n},{i // 4}" for i, n in enumerate(names)]
    words = [f'"{n}",{CLASSES[i // 4]}' for i, n in enumerate(names)]
    texts = ["\n".join(["path,label,split,sha256,group", *new, ""])]
    texts += ["\n".join(["path,label", *old]), "\r\n".join(["image_name,class", *words, ""])]
    return [*(text.encode() for text in texts), b"\xef\xbb\xbf" + texts[1].encode()]


def _zips() -> list[bytes]:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    archives = [_zip(method) for method in methods]
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as out:
        out.writestr(zipfile.ZipInfo("male/inner.jpg", _WHEN), archives[1])
        out.writestr(zipfile.ZipInfo("../up.jpg", _WHEN), b"x")
        out.writestr(zipfile.ZipInfo("/abs.jpg", _WHEN), b"x")
    encrypted = bytearray(archives[0])
    for at in _find_all(encrypted, b"PK\1\2"):
        encrypted[at + 8] |= 1
    return [*archives, _zip(methods[1], large=True), nested.getvalue(), bytes(encrypted)]


def _zip(method: int, large: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for label in CLASSES:
            for i in range(4):
                info = zipfile.ZipInfo(f"faces/{label}/{label[0]}_{i}.jpg", _WHEN)
                info.compress_type = method
                with archive.open(info, "w", force_zip64=large) as member:
                    member.write(_encoded(draw_face(label, i), "JPEG", {}))
        archive.comment = b"words"
    return out.getvalue()


@cache
def _net(recipe: str) -> Checkpoint:
    torch.manual_seed(0)
    chosen = get_recipe(recipe)
    weights = build_model(chosen.arch).half().state_dict()
    hashes = torch.arange(9)
    return Checkpoint(
        chosen, CLASSES, chosen.preprocessing, weights, 3, {"val_accuracy": 0.5}, hashes
    )


@cache
def _own_bytes() -> bytes:
    checkpoint = _net("compact_cnn")
    content = {
        "format": 1,
        "recipe": checkpoint.recipe.to_dict(),
        "classes": list(checkpoint.classes),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "epoch": checkpoint.epoch,
        "metrics": checkpoint.metrics,
        "temperature": checkpoint.temperature,
        "seen": checkpoint.seen_hashes,
        "versions": {"torch": "2"},
        "weights": checkpoint.weights,
    }
    return _saved(content)


def _own_content() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(_own_bytes()), weights_only=True)
    return content


def _saved(content: object, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    try:
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
    except (RuntimeError, NotImplementedError, UnicodeError, RecursionError):
        torch.save({"weights": 1, "recipe": 2}, out)  # what torch cannot save, nobody sends
    return out.getvalue()


def _checkpoints() -> list[bytes]:
    net = _net("compact_cnn")
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    return [
        _own_bytes(),
        _saved(_own_content(), zipped=False),
        _saved(net.weights),
        _saved({"state_dict": net.weights, "epoch": 3}, zipped=False),
        _saved({f"module.{k}": torch.nn.Parameter(v.float()) for k, v in net.weights.items()}),
        _saved(_net("dropout_cnn").weights),
        _saved(torch.nn.Linear(2, 2)),
        script.getvalue(),
        pickle.dumps({"weights": [1.0]}),
    ]


TARGETS = {
    "image": Target(cache(_images), mutate_image, check_image),
    "index": Target(cache(_indexes), mutate_index, check_index),
    "zip": Target(cache(_zips), mutate_zip, check_zip),
    "checkpoint": Target(cache(_checkpoints), mutate_checkpoint, check_checkpoint),
}
