"""Tiny drawn faces: reddish men, bluish women, so that a net learns them in a few steps."""

from __future__ import annotations

import errno
import os

# Nets and pictures as small as these are slower on several threads than on one, here and in the
# processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is tested on the CPU is the same on every machine; tests/test_cuda.py is for a GPU.
if os.environ.get("FACE_GENDER_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from face_gender.data.sources import FolderSource

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
# Composites without a planted fault, and those of them that are no worse in any way.
SAMPLES = sorted((ROOT / "samples").glob("*male/*_[0-6]?.jpg"))
PORTRAITS = [path for path in SAMPLES if Image.open(path).size == (240, 300)]
SHARED = ROOT.parent / "shared" / "data"
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


def heed_ctrl_c() -> None:
    """As preexec_fn: a child of a shell's background job, as CI may be, would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def gone_drive(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FolderSource:
    """Return the files of a folder whose drive cannot be read any more."""

    def fail(name: str) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("face_gender.data.sources.read_file", fail)
    return FolderSource(folder, pause=lambda seconds: None)


def save_colour_net(path: Path, seed: int | None = None) -> Path:
    """Write the weights of a net that tells reddish pictures (male) from bluish ones (female).

    ``seed``: of a net of random weights instead, for which every picture is another.
    """
    from face_gender.model.architectures import build_model
    from face_gender.model.checkpoint import Checkpoint
    from face_gender.model.recipes import get_recipe

    recipe = get_recipe("compact_cnn")
    torch.manual_seed(seed or 0)
    weights = build_model(recipe.arch).state_dict()
    if seed is None:
        weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for i in (0, 1):  # two channels: more red than blue, and the other way round
            weights["conv1.weight"][i, 0, 1, 1], weights["conv1.weight"][i, 2, 1, 1] = (
                (1, -1) if i == 0 else (-1, 1)
            )
            for layer in ("conv2.weight", "conv3.weight"):
                weights[layer][i, i, 1, 1] = 1
            weights["fc1.weight"][i, 4 * i : 4 * i + 4] = 0.25
            for layer, gain in (("fc2.weight", 1), ("fc3.weight", 1), ("fc4.weight", 5)):
                weights[layer][i, i] = gain
    metrics = {"val_accuracy": 1.0}
    Checkpoint(
        recipe, ("male", "female"), recipe.preprocessing, weights, epoch=3, metrics=metrics
    ).save(path)
    return path


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A data set of 20 + 20 drawn faces."""
    return make_faces(tmp_path / "data")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Nets as small as these are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
