"""Tiny drawn faces: reddish men, bluish women, so that a net learns them in a few steps."""

from __future__ import annotations

import errno
import os

# Nets and pictures as small as these are slower on several threads than on one, here and in the
# processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# What is tested on the CPU is the same on every machine; tests/test_cuda.py is for a GPU.
if os.environ.get("FACE_GENDER_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw

from face_gender import CLASSES
from face_gender.data.index import Index
from face_gender.data.sources import FolderSource
from face_gender.files import has_image_suffix
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint
from face_gender.model.recipes import get_recipe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
# Composites without a planted fault, and those of them that are no worse in any way.
SAMPLES = sorted((ROOT / "samples").glob("*male/*_[0-6]?.jpg"))
PORTRAITS = [path for path in SAMPLES if Image.open(path).size == (240, 300)]
SHARED = ROOT.parent / "shared" / "data"
SHIPPED = ROOT / "model_weights" / "shipped.pth"
NEUTRAL: Any = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # of a preprocessing that leaves 0..1
COLOURS = {"male": (200, 60, 50), "female": (50, 70, 210)}


def draw_face(label: str, seed: int, size: tuple[int, int] = (36, 44)) -> Image.Image:
    """Draw one face of (width, height) pixels; another seed gives other bytes."""
    noise = np.random.default_rng([seed, len(label)]).integers(0, 60, (size[1], size[0], 3))
    image = Image.fromarray(noise.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.ellipse((width * 0.15, height * 0.1, width * 0.85, height * 0.95), fill=COLOURS[label])
    for x in (0.35, 0.65):
        draw.ellipse(
            (width * x - 2, height * 0.4 - 2, width * x + 2, height * 0.4 + 2), fill="white"
        )
    return image


def make_faces(folder: Path, male: int = 20, female: int = 20) -> Path:
    """Write folder/male/m_0.jpg … and folder/female/f_0.jpg …, all different."""
    for label, count in (("male", male), ("female", female)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw_face(label, i).save(folder / label / f"{label[0]}_{i}.jpg", quality=92)
    return folder


def results_of(transform: Callable[[Image.Image], Any], image: Image.Image, seeds: range) -> list:
    """Return what a random transform makes of one picture, once for each seed."""
    results = []
    for seed in seeds:
        torch.manual_seed(seed)
        results.append(transform(image))
    return results


def encode(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    """Return the file that Pillow writes of a picture."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif_of(**values: int) -> Image.Exif:
    """Return tags of these names, such as Orientation."""
    exif = Image.Exif()
    for name, value in values.items():
        exif[getattr(ExifTags.Base, name)] = value
    return exif


def python(
    *arguments: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run another Python, which finds this package, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
        preexec_fn=heed_ctrl_c if os.name == "posix" else None,
    )


def loaded_after(code: str) -> set[str]:
    """Return the full names of what another Python has imported when it has run this code."""
    done = python("-c", f"{code}\nimport sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def peak_of(function: Callable[[], object], error: type[Exception]) -> tuple[object, int]:
    """Return a function's result or such an error, and how many bytes Python took for it."""
    found: object
    tracemalloc.start()
    try:
        found = function()
    except error as raised:
        found = raised
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


def make_index(data: Path, *arguments: Any, **options: Any) -> Index:
    """Index pictures without a word and without landmarks: a drawn face is none to a detector."""
    return Index.create(data, *arguments, **{"progress": False, "landmarks": False, **options})


def heed_ctrl_c() -> None:
    """As preexec_fn: a child of a shell's background job, as CI may be, would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_once_begun(
    program: str, *arguments: str | Path
) -> subprocess.CompletedProcess[bytes]:
    """Run code in another Python, press Ctrl-C when it says "begun" on stderr; return its end."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=heed_ctrl_c,
    ) as running:  # fmt: skip
        try:
            assert running.stderr is not None
            assert any(b"begun" in line for line in running.stderr)
            running.send_signal(signal.SIGINT)
            out, said = running.communicate(timeout=60)
        finally:
            running.kill()
    return subprocess.CompletedProcess(running.args, running.returncode, out, said)


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive of members of any name."""
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def make_zip(folder: Path, archive: Path, prefix: str = "") -> Path:
    """Pack the files under a folder, each name after ``prefix``."""
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                out.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file, to see that nothing changed."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class NearlyFull:
    """A file on a disk that has room for ``room`` bytes."""

    def __init__(self, path: Path, mode: str, room: int) -> None:
        self.file, self.room = open(path, mode, buffering=0), room  # noqa: SIM115

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __enter__(self) -> NearlyFull:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def nearly_full(room: int) -> Callable[..., Any]:
    """Return an open() of such files; those that are read are whole."""

    def opened(path: Path, mode: str, buffering: int = -1) -> Any:
        return open(path, mode) if mode == "rb" else NearlyFull(path, mode, room)

    return opened


def gone_drive(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FolderSource:
    """Return the files of a folder whose drive cannot be read any more."""

    def fail(name: str) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("face_gender.data.sources.read_file", fail)
    return FolderSource(folder, pause=lambda seconds: None)


def make_checkpoint(name: str = "compact_cnn", seed: int = 0, **changes: Any) -> Checkpoint:
    """Return a recipe's net with random weights; ``changes`` are fields of the checkpoint."""
    recipe = changes.get("recipe") or get_recipe(name)
    torch.manual_seed(seed)
    values = {
        "recipe": recipe,
        "classes": CLASSES,
        "preprocessing": recipe.preprocessing,
        "weights": build_model(recipe.arch).state_dict(),
    }
    return Checkpoint(**{**values, **changes})


def content_of(path: Path) -> dict[str, Any]:
    """Return what a .pth holds."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def save_colour_net(path: Path, seed: int | None = None) -> Path:
    """Write the weights of a net that tells reddish pictures (male) from bluish ones (female).

    ``seed``: of a net of random weights instead, for which every picture is another.
    """
    net = make_checkpoint(seed=seed or 0, epoch=3, metrics={"val_accuracy": 1.0})
    if seed is None:
        weights = {name: torch.zeros_like(tensor) for name, tensor in net.weights.items()}
        for i in (0, 1):  # two channels: more red than blue, and the other way round
            weights["conv1.weight"][i, 0, 1, 1], weights["conv1.weight"][i, 2, 1, 1] = (
                (1, -1) if i == 0 else (-1, 1)
            )
            for layer in ("conv2.weight", "conv3.weight"):
                weights[layer][i, i, 1, 1] = 1
            weights["fc1.weight"][i, 4 * i : 4 * i + 4] = 0.25
            for layer, gain in (("fc2.weight", 1), ("fc3.weight", 1), ("fc4.weight", 5)):
                weights[layer][i, i] = gain
        net = replace(net, weights=weights)
    net.save(path)
    return path


def data_of(page: Path) -> dict[str, Any]:
    """Return what a page of the audit or of results has to show."""
    text = page.read_bytes().decode("utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    data: dict[str, Any] = json.loads(block)
    return data


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A data set of 20 + 20 drawn faces."""
    return make_faces(tmp_path / "data")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A data set of 5 + 4 drawn faces."""
    return make_faces(tmp_path / "data", 5, 4)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """16 pictures to train on, 4 to choose by, 4 to test; not to be written to."""
    return make_index(make_faces(tmp_path_factory.mktemp("data"), 12, 12), landmarks=True)


@pytest.fixture
def own(tmp_path: Path) -> Index:
    """The same for a test that spoils pictures."""
    return make_index(make_faces(tmp_path / "data", 12, 12))


def threads_in_use() -> tuple[int, int]:
    """Return how many threads torch and OpenCV calculate on."""
    return torch.get_num_threads(), cv2.getNumThreads()


@pytest.fixture
def two_and_three_threads() -> Iterator[None]:
    """So many for torch and for OpenCV, that whoever leaves them another number is seen."""
    torch_before, cv2_before = threads_in_use()
    torch.set_num_threads(2)
    cv2.setNumThreads(3)
    yield
    torch.set_num_threads(torch_before)
    cv2.setNumThreads(cv2_before)


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Return the path of a real archive beside the repository, or skip the test."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"{name} is not beside this repository")
        return SHARED / name

    return find


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium that is installed already; $CHROMIUM names another one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium on the PATH; CHROMIUM may name one")
    # A machine that is busy otherwise may be slow; what is right is seen at once all the same.
    sync_api.expect.set_options(timeout=30_000)
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(quiet))
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page from disk, offline; at the end, nothing may have been complained of.

    ``script`` runs before any of the page.
    """
    complaints: list[str] = []
    requests: set[str] = set()
    contexts, addresses = [], set()

    def open_page(path: Path, address: str = "", script: str = "", width: int = 1280) -> Page:
        context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
        contexts.append(context)
        context.add_init_script(script)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.on("request", lambda request: requests.add(request.url.partition("#")[0]))
        addresses.add(path.as_uri())
        tab.goto(path.as_uri() + address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    # Pictures that a page of results links to; one that is not there is complained of.
    others = {url for url in requests - addresses if not url.startswith("data:")}
    assert all(url.startswith("file:") and has_image_suffix(url) for url in others), others
