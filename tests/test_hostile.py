"""Input that means harm, or is merely odd: a sentence or a skipped file, never a hang or a leak.

Through the commands as users meet them; tests of the functions themselves lie beside each.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import re
import shutil
import socket
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    content_of,
    draw_face,
    encode,
    make_checkpoint,
    make_faces,
    make_index,
    peak_of,
    python,
    snapshot,
    zip_of,
)
from PIL import Image
from sentences import one_sentence, sentence
from writers import announcing_png, chunk, png, tiff

import face_gender.classify.__main__ as process
import face_gender.data.__main__ as data_split
from face_gender import CLASSES
from face_gender.classify.classifier import classify, load_classifier
from face_gender.data import jpeg
from face_gender.data.dataset import FaceDataset
from face_gender.data.images import UnreadableImage, decode_image, decode_pixels
from face_gender.data.sources import FolderSource, find_images
from face_gender.data.tables import read_index
from face_gender.errors import InputError
from face_gender.export import __main__ as export
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import load_checkpoint, read_weights, start_from
from face_gender.model.recipes import get_recipe
from face_gender.train.loop import train

Capture = pytest.CaptureFixture[str]
ON_UNIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names, no devices")
_HANGS = 150  # seconds after which a test would never end


@pytest.fixture(autouse=True)
def _never_hang() -> Iterator[None]:
    """End the whole run where a test hangs: a thread that waits for a pipe ends by nothing else."""
    faulthandler.dump_traceback_later(_HANGS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    make_checkpoint(seed=1, epoch=2, metrics={"val_accuracy": 0.5}).save(path)
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(main: Callable[..., int], *arguments: str | Path) -> int:
    names = {process.main: ["process.py"], data_split.main: ["data_split.py"]}
    return main([str(each) for each in arguments], *names.get(main, []))


# --- archives whose members would lie elsewhere ---------------------------------------------------


FACE = encode(draw_face("male", 0))
OUTSIDE = ("../up.jpg", "/absolute.jpg", "in/../../deep.jpg", "..\\windows.jpg")


def test_members_that_lead_out_are_skipped_by_name_and_nothing_is_unpacked(
    work: Path, weights: Path, capsys: Capture
) -> None:
    names = ["good.jpg", "in/also.jpg", *OUTSIDE]
    archive = zip_of(work.parent / "faces.zip", dict.fromkeys(names, FACE))
    before = snapshot(work.parent)
    options = ("--recursive", "--format", "full", "--quiet", "--weights", weights)
    assert run(process.main, archive, *options) == 0
    written = json.loads((work / "process_results.json").read_text())
    assert written["results"].keys() == {"good.jpg", "in/also.jpg"}
    outside = {name.replace("\\", "/") for name in OUTSIDE}
    assert written["skipped"] == dict.fromkeys(outside, "its name leads out of the archive")
    assert capsys.readouterr().err.count("skipped: ") == 4
    (work / "process_results.json").unlink()
    assert snapshot(work.parent) == before


def test_members_that_lead_out_are_no_rows_of_an_index(tmp_path: Path, capsys: Capture) -> None:
    members = {
        f"{label}/{i}.jpg": encode(draw_face(label, i)) for label in CLASSES for i in range(3)
    }
    members |= {
        "male/../../up.jpg": encode(draw_face("male", 9)),
        "/male/root.jpg": encode(draw_face("male", 8)),
    }
    archive = zip_of(tmp_path / "faces.zip", members)
    assert run(data_split.main, archive) == 0
    assert set(read_index(tmp_path / "index.csv")["path"]) == set(list(members)[:6])
    err = capsys.readouterr().err
    assert "left out: male/../../up.jpg: its name leads out of the archive" in err
    assert "left out: /male/root.jpg: its name leads out of the archive" in err


def test_an_archive_of_such_members_alone_is_one_sentence(work: Path, capsys: Capture) -> None:
    archive = zip_of(work.parent / "faces.zip", dict.fromkeys(OUTSIDE, b"x"))
    assert run(process.main, archive, "--recursive") == 1
    assert "no pictures" in one_sentence(capsys.readouterr().err, "process.py")


# --- indexes that lead out ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../secret.jpg", "male/../../secret.jpg", "/etc/passwd"])
def test_an_index_that_leads_out_is_refused_wherever_it_is_read(
    path: str, tmp_path: Path, capsys: Capture
) -> None:
    data = make_faces(tmp_path / "data", 4, 4)
    draw_face("male", 99).save(tmp_path / "secret.jpg")
    make_index(data)
    index = data / "index.csv"
    with open(index, "a") as file:
        file.write(f"{path},0,train,{'0' * 64}\n")
    for read in (
        lambda: read_index(index),
        lambda: FaceDataset(index, "train", data=data),
        lambda: next(train("compact_cnn", index, tmp_path / "out", data=data, progress=False)),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert path in sentence(caught) and "leads out" in sentence(caught)
    # As an older form, and as what groups pictures.
    assert run(data_split.main, index, "--output", tmp_path / "new.csv") == 1
    assert "leads out" in one_sentence(capsys.readouterr().err, "data_split.py")
    with pytest.raises(OSError, match="leads out of the folder"):
        FolderSource(data).read(path)


# --- bombs ----------------------------------------------------------------------------------------


def test_an_archive_in_an_archive_is_no_picture(work: Path, weights: Path, capsys: Capture) -> None:
    inner = zip_of(work.parent / "inner.zip", {"a.jpg": FACE}).read_bytes()
    archive = zip_of(work.parent / "a.zip", {"inner.jpg": inner, "inner.zip": inner})
    assert run(process.main, archive, "--quiet", "--weights", weights) == 1
    assert "not an image" in capsys.readouterr().err


BLACK = [[0] * 8] * 8
ZEROS = zlib.compress(bytes(2**27), 9)
BOMBS = {
    "zTXt": png(BLACK, 0, 8, chunk(b"zTXt", b"key\0\0" + ZEROS)),
    "iTXt": png(BLACK, 0, 8, chunk(b"iTXt", b"key\0\1\0en\0key\0" + ZEROS)),
    "iCCP": png(BLACK, 0, 8, chunk(b"iCCP", b"name\0\0" + ZEROS)),
    "size": announcing_png(60_000, 60_000),
    "line": announcing_png(2**31 - 1, 1),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
    "bmp": b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, *(0,) * 6),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_a_picture_takes_no_memory(name: str) -> None:
    for decode in (decode_image, decode_pixels):
        decode(png(BLACK, 0, 8), "warm")  # what is imported once is not the bomb's
        found, peak = peak_of(partial(decode, BOMBS[name], "a.png"), UnreadableImage)
        if name in ("zTXt", "iTXt", "iCCP"):  # the pixels are whole, the chunk is left where it is
            assert sorted(np.shape(found))[-2:] == [8, 8]
        else:
            assert re.search("bomb|damaged|not an image", str(found))
            assert isinstance(found, UnreadableImage)
        assert peak < 2**25


def test_scans_without_end_are_a_bomb() -> None:
    """A progressive JPEG may go over its pixels as often as it likes, 20 bytes each time."""
    data = encode(Image.new("L", (64, 64), 90), progressive=True)
    last = data.rindex(b"\xff\xda")
    frame = data.index(b"\xff\xc2") + 5
    large = data[:frame] + struct.pack(">HH", 9_000, 9_000) + data[frame + 4 :]
    bomb = large[:-2] + large[last:-2] * 2_000 + b"\xff\xd9"
    for decode in (decode_image, decode_pixels):
        with pytest.raises(UnreadableImage, match="bomb"):
            decode(bomb, "a.jpg")
    small = data[:-2] + data[last:-2] * 50 + b"\xff\xd9"
    assert decode_image(small, "a.jpg").size == (64, 64)


MANY = 1 << 18
TOO_MUCH = {
    "chunks": png(BLACK, 0, 8, chunk(b"IDAT", b"") * MANY),
    "segments": b"\xff\xd8" + b"\xff\xdb\0\x02" * MANY,
    "values": tiff(np.zeros((8, 8), np.uint8), 1, 8, tags={339: [1] * 4}).replace(
        struct.pack("<HHI", 339, 3, 4), struct.pack("<HHI", 339, 3, MANY)
    )
    + b"\x01\x01" * MANY,
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_header_of_ever_so_many_parts_takes_little_memory(name: str) -> None:
    decode_image(png(BLACK, 0, 8), "warm")
    data = TOO_MUCH[name]
    found, peak = peak_of(partial(decode_image, data, "a.png"), UnreadableImage)
    assert isinstance(found, UnreadableImage) or found.size == (8, 8)  # type: ignore[attr-defined]
    assert peak < 4 * len(data) + 2**21


def test_a_scan_has_four_components_at_most() -> None:
    """Else a header of 64 KB could name 8 million coefficients, one after another."""
    data = encode(Image.new("RGB", (8, 8)), progressive=True)
    header = jpeg.read_header(data)
    assert header is not None
    names = b"".join(bytes([name, 0]) for name in range(3, 40))
    scan = struct.pack(">H", len(names) + 6) + bytes([37]) + names + b"\0\x3f\0"
    wide = data[: header.scans] + (b"\xff\xda" + scan) * 2 + b"\0"
    assert jpeg.find_end(data, header) == (len(data) - 2, True)
    assert jpeg.find_end(wide, header._replace(components=5))[1] is False


# --- folders of other things than files -----------------------------------------------------------


ODD_NAMES = (
    "new\nline.jpg", "escape\x1b[2J\x1b]0;title\x07.jpg", "tab\t.jpg", "\u202egpj.exe.jpg",
    "y" * 250 + ".jpg", "\u2028line.jpg", "-rf.jpg", "$(touch x).jpg", "caf\u00e9 \U0001f600.jpg",
)  # fmt: skip


def hostile(folder: Path) -> dict[str, str]:
    """Put into a folder what is no picture; return each one's name and a word of its reason."""
    os.mkfifo(folder / "pipe.jpg")
    # A path of 108 bytes at most: made here, moved there.
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")
        shutil.move(f"{short}/s", folder / "socket.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "one.jpg").symlink_to("two.jpg")
    (folder / "two.jpg").symlink_to("one.jpg")
    (folder / "parent").symlink_to("..")
    (folder / "here").symlink_to(".")
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("words")
    (folder / "bomb.png").write_bytes(BOMBS["size"])
    (folder / "chunk.png").write_bytes(BOMBS["zTXt"])
    (folder / "damaged.jpg").write_bytes(FACE[:300])
    reasons = dict.fromkeys(("pipe.jpg", "socket.jpg", "zero.jpg"), "not a regular file")
    reasons |= dict.fromkeys(("itself.jpg", "one.jpg", "two.jpg", "dangling.jpg"), "cannot be read")
    reasons |= {"empty.jpg": "empty", "words.jpg": "not an image", "bomb.png": "bomb"}
    reasons |= {"chunk.png": "", "damaged.jpg": "damaged"}
    with suppress(OSError):  # takes rights that few have
        os.mknod(folder / "device.jpg", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        reasons["device.jpg"] = "not a regular file"
    return reasons


def odd_names(folder: Path) -> set[str]:
    """Put pictures of odd names into a folder and return these as Python spells them."""
    names = {*ODD_NAMES, os.fsdecode(b"b\xe9\xff.jpg")}
    for i, name in enumerate(sorted(names)):
        draw_face("male", i).save(folder / "x.jpg")
        (folder / "x.jpg").rename(folder / name)
    return names


@ON_UNIX
def test_a_folder_of_everything_is_labelled_and_skipped_by_name(
    work: Path, weights: Path, capsys: Capture
) -> None:
    folder = work.parent / "pictures"
    folder.mkdir()
    names, reasons = odd_names(folder), hostile(folder)
    options = ("--recursive", "--format", "full", "--weights", weights)
    assert run(process.main, folder, *options) == 0
    text = (work / "process_results.json").read_bytes().decode("utf-8")
    written = json.loads(text)
    assert names <= written["results"].keys() <= names | {"chunk.png"}
    found = written["skipped"]
    assert reasons.keys() - {"chunk.png"} <= found.keys() <= reasons.keys()
    assert all(reasons[name] in found[name] for name in found)
    err = capsys.readouterr().err
    assert err.count("skipped: ") == len(found)
    assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u202e]", err)


@ON_UNIX
def test_names_that_would_move_the_terminal_are_shown_escaped(
    work: Path, weights: Path, capsys: Capture
) -> None:
    folder = work.parent / "pictures"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(FACE)
    (folder / "a\n\x1b[2Jskipped: b.jpg").write_text("words")
    assert run(process.main, folder, "--quiet", "--weights", weights) == 0
    assert capsys.readouterr().err == (
        "skipped: a\\n\\x1b[2Jskipped: b.jpg: not an image, or of a format that is not known\n"
    )
    assert run(process.main, folder / "no\x1b[2J\nwhere") == 1
    assert "no\\x1b[2J\\nwhere" in one_sentence(capsys.readouterr().err, "process.py")
    # Written for machines, it is the name itself.
    assert list(json.loads(Path("process_results.json").read_text())) == ["good.jpg"]


@ON_UNIX
def test_folders_that_would_move_the_terminal_are_shown_escaped(
    tmp_path: Path, capsys: Capture
) -> None:
    data = make_faces(tmp_path / "data", 3, 3)
    (data / "x\x1b[2J\ny").mkdir()
    (data / "x\x1b[2J\ny" / "a.jpg").write_bytes(FACE)
    assert run(data_split.main, data) == 0
    said = capsys.readouterr()
    assert r"in other folders (x\x1b[2J\ny/)" in said.out
    assert "\x1b" not in said.out + said.err


@ON_UNIX
def test_the_commands_themselves_never_hang_on_such_folders(tmp_path: Path, weights: Path) -> None:
    data = make_faces(tmp_path / "data", 4, 4)
    names, reasons = odd_names(data / "male"), hostile(data / "female")
    (data / "female" / "parent").unlink()  # by which the men would be women too
    for command, arguments in (
        ("data_split.py", []),
        ("process.py", ["--recursive", "--weights", str(weights)]),
    ):
        done = python(ROOT / command, data, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "\x1b[2J" not in done.stdout + done.stderr
        assert all(name in done.stderr for name in reasons if name != "chunk.png")
    rows = set(read_index(data / "index.csv")["path"])
    assert {f"male/{name}" for name in names} <= rows
    assert not [row for row in rows if Path(row).name in reasons.keys() - {"chunk.png"}]
    labels = json.loads((tmp_path / "process_results.json").read_text())
    assert len(labels) >= 8 + len(names)


@ON_UNIX
def test_training_leaves_out_what_became_a_pipe(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 8, 8)
    table = make_index(data).table
    name = table[table["split"] == "train"]["path"].iloc[0]
    (data / name).unlink()
    os.mkfifo(data / name)
    recipe = get_recipe("compact_cnn", epochs=1, batch_size=8)
    with pytest.warns(UserWarning, match="not a regular file"):
        reports = list(
            train(recipe, data / "index.csv", tmp_path / "o", data=data, workers=0, progress=False)
        )
    assert len(reports) == 1


NO_FILES = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "empty": Path.touch,
    "text": lambda path: path.write_text("words and more words\n" * 9),
    "loop": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


@ON_UNIX
@pytest.mark.parametrize("suffix", ["", ".zip"])
@pytest.mark.parametrize("kind", ["pipe", "device", "empty", "text", "loop"])
def test_a_folder_argument_that_is_none_is_one_sentence(
    kind: str, suffix: str, work: Path, weights: Path, capsys: Capture
) -> None:
    given = work.parent / f"given{suffix}"
    NO_FILES[kind](given)
    assert run(process.main, given, "--weights", weights) == 1
    assert str(given) in one_sentence(capsys.readouterr().err, "process.py")
    assert run(data_split.main, given) == 1
    assert str(given) in one_sentence(capsys.readouterr().err, "data_split.py")
    assert list(work.iterdir()) == []


@ON_UNIX
def test_a_socket_is_no_folder(work: Path, capsys: Capture) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.zip")
        assert run(process.main, "s.zip") == 1
    assert "neither a folder" in one_sentence(capsys.readouterr().err, "process.py")


@ON_UNIX
@pytest.mark.parametrize("kind", NO_FILES)
def test_weights_that_are_none_are_one_sentence(kind: str, work: Path, capsys: Capture) -> None:
    pictures = work.parent / "pictures"
    pictures.mkdir()
    (pictures / "a.jpg").write_bytes(FACE)
    given = work.parent / "given.pth"
    NO_FILES[kind](given)
    assert run(process.main, pictures, "--weights", given) == 1
    assert str(given) in one_sentence(capsys.readouterr().err, "process.py")
    assert run(export.main, given) == 1
    assert str(given) in one_sentence(capsys.readouterr().err, "face_gender.export")
    with pytest.raises(InputError) as caught:
        read_weights(given)
    assert str(given) in sentence(caught)


@ON_UNIX
@pytest.mark.parametrize("kind", NO_FILES)
def test_an_index_that_is_none_is_one_sentence(kind: str, tmp_path: Path, capsys: Capture) -> None:
    given = tmp_path / "given.csv"
    NO_FILES[kind](given)
    with pytest.raises(InputError) as caught:
        read_index(given)
    assert str(given) in sentence(caught)
    data = make_faces(tmp_path / "data", 3, 3)
    assert run(data_split.main, data, "--groups", given) == 1
    assert str(given) in one_sentence(capsys.readouterr().err, "data_split.py")
    assert not (data / "index.csv").exists()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users")
def test_a_folder_without_permission_is_one_sentence(weights: Path) -> None:
    """Run as a user without rights where this one has all of them."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        data = make_faces(root / "data", 4, 4)
        make_faces(root / "data" / "male" / "locked", 1, 1)
        make_faces(root / "warm", 4, 4)
        (root / "closed").mkdir()
        root.chmod(0o777)
        data.chmod(0o777)
        (data / "male" / "locked").chmod(0)
        (data / "male" / "m_0.jpg").chmod(0)
        (root / "closed").chmod(0)
        shutil.copy(weights, root / "net.pth")
        script = (
            "import os, sys\n"
            "from functools import partial\n"
            "from types import SimpleNamespace\n"
            "from face_gender.classify import __main__ as classify\n"
            "from face_gender.data import __main__ as data\n"
            "process = SimpleNamespace(main=partial(classify.main, name='process.py'))\n"
            "data_split = SimpleNamespace(main=partial(data.main, name='data_split.py'))\n"
            # Whoever has no rights may not be let into the libraries' folder later on.
            "data_split.main(['warm'])\n"
            "process.main(['warm', '--recursive', '--quiet', '--output', 'warm.json',\n"
            "  '--weights', sys.argv[1]])\n"
            "if os.geteuid() == 0: os.seteuid(65534)\n"
            "print(data_split.main(['data']), data_split.main(['closed']),\n"
            "  process.main(['data', '--recursive', '--quiet', '--weights', sys.argv[1]]),\n"
            "  process.main(['closed', '--weights', sys.argv[1]]))\n"
        )
        done = python("-c", script, root / "net.pth", cwd=root)
        (data / "male" / "locked").chmod(0o700)
        (root / "closed").chmod(0o700)
        assert done.stdout.split()[-4:] == ["0", "1", "0", "1"], done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if "it/s" not in line]
        for line in (
            "left out: male/locked/: cannot be listed (Permission denied)",
            "left out: male/m_0.jpg: cannot be read (Permission denied)",
            "skipped: male/m_0.jpg: cannot be read (Permission denied)",
            "skipped: male/locked/: cannot be listed (Permission denied)",
            "process.py: closed cannot be listed (Permission denied): check its permissions.",
        ):
            assert line in lines
        assert any(line.startswith("data_split.py: closed/index.csv: Perm") for line in lines)
        labels = json.loads((root / "process_results.json").read_text())
        assert len(labels) == 7


@ON_UNIX
def test_a_graph_that_is_a_pipe_is_none(work: Path, weights: Path, capsys: Capture) -> None:
    pytest.importorskip("openvino")
    pictures = make_faces(work.parent / "pictures", 1, 1)
    path = Path(shutil.copy(weights, work.parent / "net.pth"))
    os.mkfifo(path.with_suffix(".onnx"))
    options = ("--recursive", "--weights", path, "--engine", "openvino")
    assert run(process.main, pictures, *options) == 1
    assert "net.onnx does not exist" in one_sentence(capsys.readouterr().err, "process.py")


# --- files that change ----------------------------------------------------------------------------


@ON_UNIX
def test_files_that_change_between_listing_and_reading_are_skipped_by_name(
    tmp_path: Path, weights: Path
) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(encode(draw_face("male", i)))
    source, names = find_images(tmp_path)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").unlink()
    os.mkfifo(tmp_path / "2.jpg")
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "3.jpg").mkdir()
    (tmp_path / "4.jpg").write_bytes(FACE[:500])
    answers = list(classify(load_classifier(weights, device="cpu"), source, names, workers=2))
    reasons = [getattr(answer, "reason", "") for answer in answers]
    assert reasons[0] == ""
    assert "No such file" in reasons[1]
    assert "not a regular file" in reasons[2] and "not a regular file" in reasons[3]
    assert "damaged" in reasons[4]


# --- checkpoints that mean harm -------------------------------------------------------------------


class Payload:
    """Leaves a file behind where a loader runs the code of its pickle."""

    def __init__(self, target: Path, way: str) -> None:
        self.target, self.way = target, way

    def __reduce__(self) -> tuple[Any, ...]:
        if self.way == "system":
            return os.system, (f'echo owned > "{self.target}"',)
        return eval, (f"open({str(self.target)!r}, 'w').write('owned')",)


def raw_pickle(path: Path, evil: Payload, good: Path) -> None:
    path.write_bytes(pickle.dumps(evil, protocol=2))


def replaced_pickle(path: Path, evil: Payload, good: Path) -> None:
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            data = pickle.dumps(evil, protocol=2) if is_pickle else old.read(info)
            new.writestr(info.filename, data)


def legacy_format(path: Path, evil: Payload, good: Path) -> None:
    content = {**content_of(good), "extra": evil}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def nested_field(path: Path, evil: Payload, good: Path) -> None:
    content = content_of(good)
    content["metrics"] = {**content["metrics"], "val_loss": evil}
    torch.save(content, path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("form", "way"),
    [(raw_pickle, "system"), (replaced_pickle, "write"), (legacy_format, "system"),
     (nested_field, "write")],
)  # fmt: skip
def test_a_malicious_checkpoint_is_refused_by_everything_that_reads_one(
    form: Callable[..., None], way: str, work: Path, weights: Path, capsys: Capture
) -> None:
    target, path = work.parent / "owned", work.parent / "evil.pth"
    form(path, Payload(target, way), weights)
    pictures = make_faces(work.parent / "data", 1, 1)
    readers = (read_weights, load_checkpoint, lambda p: start_from(build_model("resnet18"), p, "r"))
    for read in readers:
        with pytest.raises(InputError) as caught:
            read(path)
        assert "never run" in sentence(caught)
    assert run(process.main, pictures, "--recursive", "--weights", path) == 1
    assert "never run" in one_sentence(capsys.readouterr().err, "process.py")
    assert run(export.main, path) == 1
    assert "never run" in one_sentence(capsys.readouterr().err, "face_gender.export")
    assert not target.exists()
    # Or this would prove nothing: where it is let, the payload does what it says.
    if form is raw_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.read_text().strip() == "owned"


def rewritten(path: Path, method: int, change: Callable[[str, bytes], bytes]) -> None:
    """Write a .pth anew, its members packed by a method and changed."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in members.items():
            new.writestr(name, change(name, data))


def test_a_checkpoint_that_unpacks_to_gigabytes_is_a_bomb(tmp_path: Path, weights: Path) -> None:
    path = shutil.copy(weights, tmp_path / "bomb.pth")
    rewritten(
        path, zipfile.ZIP_DEFLATED, lambda name, data: bytes(2**27) if "data/0" in name else data
    )
    assert path.stat().st_size < 5_000_000
    error, peak = peak_of(lambda: read_weights(path), InputError)
    assert "decompression bomb" in str(error)
    assert peak < 2**25


def test_a_checkpoint_that_asks_for_memory_alone_is_refused(tmp_path: Path, weights: Path) -> None:
    """torch lets a pickle make a bytearray of any length."""
    path = shutil.copy(weights, tmp_path / "bomb.pth")
    ask = b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 2**31 - 1) + b"\x85R."
    rewritten(path, zipfile.ZIP_STORED, lambda n, data: ask if n.endswith("data.pkl") else data)
    error, peak = peak_of(lambda: read_weights(path), InputError)
    assert "builtins.bytearray" in str(error)
    assert peak < 2**25


def deep() -> list[Any]:
    """60 lists, and 2^60 to whoever walks them all."""
    lists: list[Any] = []
    for _ in range(60):
        lists = [lists, lists]
    return lists


class Overlaid:
    """Is loaded as a dict that carries attributes under the names of a dict's methods."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"get": 5, "items": "x", "keys": 1}, None, iter([("a", 1)])


HUGE = torch.zeros(1).expand(10**12)
ODD_FIELDS: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "format": (("format",), (2, 0, None, "1", 1.5, [1], deep(), torch.ones(3), 10**400, True)),
    "classes": (
        ("classes",),
        ([], ["male", "male"], ["male", 3], ["", "male"], "male", deep(), {"male": 1},
         ["male", "../x"], ["a\0b", "y"], ["x" * 1000, "y"], [str(i) for i in range(2000)], HUGE),
    ),
    "epoch": (("epoch",), ("three", 1.5, -1, 10**400, [1], torch.tensor(1), True, deep())),
    "metrics": (
        ("metrics",),
        ({"val_accuracy": "x"}, {"val_accuracy": {"a": 1}}, {1: 2.0}, {"a": 10**400}, [1], deep(),
         {"a": torch.ones(3)}, HUGE),
    ),
    "temperature": (
        ("temperature",),
        (0, 0.0, -1.0, 1e-9, 0.0099, 100.1, 1e300, float("nan"), float("inf"), 10**400, "1", None,
         True, [1.0], torch.tensor(1.0), torch.ones(3), 1j, deep(), HUGE),
    ),
    "seen": (("seen",), (torch.zeros(3), HUGE, torch.zeros(2, 2).long(), [1],
                         torch.zeros(1).long().expand(10**12))),
    "versions": (("versions",), (None, deep(), "torch", 3)),
    "recipe": (("recipe",), (None, {}, deep(), Overlaid(), HUGE, "compact_cnn")),
    "recipe name": (("recipe", "name"), (["x"], 3, "../x", "", "x" * 10**5, deep(), None)),
    "arch": (("recipe", "arch"), (3, "none such", "x" * 10**5, deep(), HUGE)),
    "epochs": (("recipe", "epochs"), (0, -1, "x", 1.5, float("nan"), HUGE)),
    "learning rate": (("recipe", "learning_rate"), (float("nan"), "x", 1j, -1, 10**400)),
    "decay": (("recipe", "weight_decay"), (float("inf"), "x", None, deep())),
    "frozen": (("recipe", "frozen"), ([3], 3, [deep()], HUGE)),
    "size": (
        ("preprocessing", "height"),
        (0, -5, 10**9, 2**63, 96.5, float("nan"), "96", None, [96], torch.tensor(96), deep()),
    ),
    "mean": (("preprocessing", "mean"), ([1], [float("nan")] * 3, "abc", [[1], [2], [3]], HUGE)),
    "std": (("preprocessing", "std"), ([0, 1, 1], [-1, 1, 1], [float("inf")] * 3, 3, deep())),
    "resize": (("preprocessing", "resize"), ("fold", 3, deep(), HUGE)),
    "turn": (("preprocessing", "augmentation"), (3, {"rotation": "x"}, {"zoom": 3}, {"none": 1},
                                                 {"erasing": deep()}, HUGE)),
}  # fmt: skip


@pytest.mark.parametrize("field", ODD_FIELDS)
def test_a_field_that_holds_anything_is_one_sentence(
    field: str, tmp_path: Path, weights: Path
) -> None:
    place, values = ODD_FIELDS[field]
    path = tmp_path / "odd.pth"
    for value in values:
        content: Any = content_of(weights)
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        torch.save(content, path)
        with pytest.raises(InputError) as caught:
            load_checkpoint(path).build()
        assert str(path) in sentence(caught)
        assert len(sentence(caught)) < 600


SHAPE = (32, 3, 3, 3)
ODD_WEIGHTS: dict[str, tuple[Callable[[], Any], str]] = {
    "complex": (lambda: torch.zeros(SHAPE, dtype=torch.complex64), "no plain weight"),
    "whole numbers": (lambda: torch.zeros(SHAPE, dtype=torch.int32), "should hold fractions"),
    "truth": (lambda: torch.zeros(SHAPE, dtype=torch.bool), "no plain weight"),
    "8 bits": (lambda: torch.zeros(SHAPE, dtype=torch.float8_e4m3fn), "save model"),
    "sparse": (lambda: torch.zeros(SHAPE).to_sparse(), "never run"),
    "nowhere": (lambda: torch.zeros(SHAPE, device="meta"), "never run"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.zeros(SHAPE), 0.1, 0, torch.qint8),
        "never run",
    ),
    "expanded": (lambda: torch.zeros(1, 1, 1, 1).expand(SHAPE), "fewer are in the file"),
    "expanded without end": (lambda: HUGE, "fewer are in the file"),
    "another shape": (lambda: torch.zeros(32, 3, 5, 5), "(32, 3, 5, 5) and should be"),
    "no shape": (lambda: torch.tensor(1.0), "() and should be"),
    "nothing": (lambda: torch.zeros(0), "(0,) and should be"),
    "a list": (lambda: [1.0], "no "),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ODD_WEIGHTS)
@pytest.mark.parametrize("plain", [False, True])
def test_a_weight_that_is_none_is_one_sentence(
    kind: str, plain: bool, tmp_path: Path, weights: Path
) -> None:
    make, words = ODD_WEIGHTS[kind]
    content = content_of(weights)
    content["weights"]["conv1.weight"] = make()
    torch.save(content["weights"] if plain else content, tmp_path / "odd.pth")
    claims = {"recipe": "compact_cnn", "classes": CLASSES} if plain else {}
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "odd.pth", **claims).build()  # type: ignore[arg-type]
    assert words in sentence(caught)


def test_a_size_that_the_net_cannot_take_is_one_sentence(work: Path, capsys: Capture) -> None:
    """Only its forward says so."""
    recipe = get_recipe("resnet50", arch="squeezenet1_1", init="none", size=(4, 4))
    path = work.parent / "small.pth"
    make_checkpoint(recipe=recipe).save(path)
    pictures = make_faces(work.parent / "pictures", 1, 1)
    assert run(process.main, pictures, "--recursive", "--quiet", "--weights", path) == 1
    found = one_sentence(capsys.readouterr().err, "process.py")
    assert "cannot run on pictures of 4 x 4 pixels" in found


def test_a_file_of_optimiser_state_and_parameters_still_opens(tmp_path: Path) -> None:
    """What is refused must not be what training scripts elsewhere save."""
    net = build_model("compact_cnn")
    optimizer = torch.optim.AdamW(net.parameters())
    content = {
        "state_dict": OrderedDict((k, torch.nn.Parameter(v)) for k, v in net.state_dict().items()),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "history": [1, 2.5, None, True, ("a", {"b": []})],
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        found = load_checkpoint(tmp_path / "a.pth", "compact_cnn", CLASSES).weights
        assert all(torch.equal(found[name], weight) for name, weight in net.state_dict().items())


def test_weights_whose_bytes_have_changed_are_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    make_checkpoint().save(path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda each: each.file_size)
    middle = largest.header_offset + 200 + largest.file_size // 2
    data[middle : middle + 64] = bytes(each ^ 0xFF for each in data[middle : middle + 64])
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a whole") as caught:
        load_checkpoint(path)
    sentence(caught)
