"""Ask dlib's face-recognition net for the 128 numbers that it finds in each picture of a source.

pip install dlib-bin face_recognition_models
python -m tools.descriptors INDEX SOURCE OUT.npz

The net (dlib_face_recognition_resnet_model_v1, King, 2017, public domain) was trained to tell
people apart on three million pictures, without a label male or female. It takes faces turned and
scaled by five landmarks, which are searched where crops such as UTKFace's have them, without a
detector. CelebA's pictures are aligned already, and at 64 x 64 too small for landmarks: of them it
takes one part, the same of all. OUT: ``names`` (n,) str and ``descriptors`` (n, 128) float32. 20
to 40 pictures a second on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from face_gender.data.images import load_image
from face_gender.data.index import Index
from face_gender.data.tables import read_index
from face_gender.errors import InputError

CHUNK = 32
# Left, top, right and bottom of the face within a tight crop, as shares of its sides.
BOX = (0.12, 0.18, 0.88, 0.95)
# What the net is to see of a source whose pictures are aligned.
ALIGNED = {"celeba64": (0.192, 0.349, 0.816, 0.858)}
CHIP = 150  # pixels a side, what the net takes
_loaded: list[Any] = []


def scaled(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return a box of shares of the sides in pixels of a picture of ``size`` (width, height)."""
    left, top, right, bottom = box
    width, height = size
    return left * width, top * height, right * width, bottom * height


def describe(task: tuple[Path, str, list[str]]) -> npt.NDArray[np.float32]:
    """Return (n, 128) for the pictures of those names."""
    index, source_name, names = task
    if not _loaded:
        import dlib

        found = find_spec("face_recognition_models")
        assert found is not None
        assert found.origin is not None
        models = Path(found.origin).parent / "models"
        landmarks = str(models / "shape_predictor_5_face_landmarks.dat")
        net = str(models / "dlib_face_recognition_resnet_model_v1.dat")
        source = Index.open(index).source
        _loaded.extend(
            (dlib, dlib.shape_predictor(landmarks), dlib.face_recognition_model_v1(net), source)
        )
    dlib, landmarks_of, net_of, source = _loaded
    chips = []
    for name in names:
        picture = load_image(name, source)
        if source_name in ALIGNED:
            box = scaled(ALIGNED[source_name], picture.size)
            chips.append(np.asarray(picture.resize((CHIP, CHIP), Image.Resampling.BICUBIC, box)))
            continue
        pixels = np.asarray(picture)
        face = dlib.rectangle(*map(int, scaled(BOX, picture.size)))
        landmarks = landmarks_of(pixels, face)
        chips.append(dlib.get_face_chip(pixels, landmarks, size=CHIP, padding=0.25))
    return np.array(net_of.compute_face_descriptor(chips), dtype=np.float32)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    if find_spec("dlib") is None or find_spec("face_recognition_models") is None:
        print("descriptors.py: pip install dlib-bin face_recognition_models", file=sys.stderr)
        return 1
    try:
        table = read_index(options.index)
        names = table.loc[table["source"] == options.source, "path"].tolist()
    except InputError as error:
        print(f"descriptors.py: {error}", file=sys.stderr)
        return 1
    tasks = [
        (options.index, options.source, names[i : i + CHUNK]) for i in range(0, len(names), CHUNK)
    ]
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = list(tqdm(pool.imap(describe, tasks), total=len(tasks)))
    np.savez(options.out, names=np.array(names), descriptors=np.concatenate(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
