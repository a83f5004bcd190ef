"""Fine-tune weights on aligned faces of several sources: python -m tools.pretrain INDEX OUT

INDEX is what `tools.sources` writes: besides the columns of an index, ``source``, ``age`` in years,
``teacher``, the probability of female, and ``known``, "no" where the label is the teacher's.
``--teachers``: what `tools.teachers` wrote; its probabilities stand for those of the index, and
the net also learns to tell the teachers' numbers by a layer of its own, which is not kept.
Landmarks are found where the index has none. Training is done by steps; every 200 of them are kept
in OUT.partial, from which the same command goes on, also with more ``--steps``. OUT has the
averaged weights, in float16, with the temperature of the validation split; the output of female is
raised until its recall there, the mean of sources, is no lower than that of male. ``--without``
leaves out what the teachers say, that rare rows are drawn more often, hidden backgrounds,
photometric changes, whole frames, or jitter.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional

from face_gender import CLASSES
from face_gender.console import progress_bar, run_command
from face_gender.data.images import load_image
from face_gender.data.index import Index
from face_gender.data.landmarks import coordinates_of
from face_gender.errors import InputError
from face_gender.evaluate.metrics import fit_temperature
from face_gender.faces.alignment import similarity, template
from face_gender.files import sha256_of, write_atomically
from face_gender.model.architectures import build_model, with_mirror
from face_gender.model.checkpoint import Checkpoint, hash64, start_from
from face_gender.model.recipes import get_recipe
from face_gender.model.resnet import ResNet
from face_gender.train.step import average_of

RECIPE = get_recipe("resnet18_tuned")
SIZE = RECIPE.preprocessing.height
FROZEN = ("conv1", "bn1", "layer1")
SQUEEZED = {"celeba64": (131, 160)}  # width and height that give these their true shape
BANDS = (0, 4, 13, 20, 30, 45, 60, 70)

# Parts of the training that --without leaves out.
PARTS = ("teachers", "balance", "background", "photometric", "frames", "jitter")

Picture = npt.NDArray[Any]  # uint8 (H, W, 3)


class Student(nn.Module):
    """A ResNet with a second head, which tells the teachers' numbers from the same features."""

    def __init__(self, net: ResNet, numbers: int) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Linear(net.fc.in_features, numbers) if numbers else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (n, classes) and numbers (n, numbers) for images (n, 3, H, W)."""
        features = self.net.features(images)
        return self.net.fc(features), self.head(features)


class Numbers:
    """The teachers' numbers of each row; NaN where they said none."""

    def __init__(self, path: Path | None, table: pd.DataFrame) -> None:
        self.female = pd.to_numeric(table["teacher"]).to_numpy(np.float64, copy=True)
        self.values = np.zeros((len(table), 0), np.float32)
        if path is None:
            return
        with np.load(path) as said:
            place = pd.Series(np.arange(len(said["path"])), said["path"]).reindex(table["path"])
            is_there = place.notna().to_numpy()
            rows = place[is_there].to_numpy(int)
            self.values = np.full((len(table), said["numbers"].shape[1]), np.nan, np.float32)
            self.values[is_there] = said["numbers"][rows]
            self.female[is_there] = np.where(
                np.isfinite(said["female"][rows]), said["female"][rows], self.female[is_there]
            )

    def loss(self, told: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return 1 - the mean cosine between what is told, (n, numbers), and the teachers'."""
        wanted = torch.from_numpy(self.values[rows])
        is_there = wanted.isfinite().all(1)
        if not self.values.shape[1] or not is_there.any():
            return torch.zeros(())
        distance: Tensor = 1 - functional.cosine_similarity(told[is_there], wanted[is_there])
        return distance.mean()


def targets(table: pd.DataFrame, teacher: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the probability of female to learn, (n,): of the label and the teacher.

    The teacher counts 0.7, on children and people over 65 0.4; where it contradicts a label
    of the ages between with certainty, it stands alone.
    """
    label = table["label"].to_numpy(float)
    age = pd.to_numeric(table["age"], errors="coerce").to_numpy(float)
    is_between = ~((age < 13) | (age > 65))  # also where no age is known
    share = np.where(is_between, 0.7, 0.4)
    share[(table["known"] == "no") | ((np.abs(teacher - label) > 0.95) & is_between)] = 1
    return (share * teacher + (1 - share) * label).clip(0.02, 0.98).astype(np.float32)


def weights_of(table: pd.DataFrame, wanted: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return how often each row is drawn: rare sources, labels and ages more than their number."""
    ages = pd.to_numeric(table["age"], errors="coerce").fillna(-1)
    keys = pd.Series(
        list(zip(table["source"], wanted > 0.5, np.digitize(ages, BANDS), strict=True))
    )
    frequency = keys.map(keys.value_counts()).to_numpy(float) ** -0.55
    return frequency / frequency.sum()


def learnt(
    table: pd.DataFrame, teacher: npt.NDArray[np.float64], without: Sequence[str] = ()
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return what each row teaches and how often it is drawn, (n,) each; 0 outside training."""
    if "teachers" in without:
        label = table["label"].to_numpy(np.float32).clip(0.02, 0.98)
        wanted = np.where(table["known"] == "yes", label, np.float32(np.nan))
    else:
        wanted = targets(table, teacher)
    rows = np.flatnonzero((table["split"] == "train") & np.isfinite(wanted))
    frequency = np.zeros(len(table))
    weights = weights_of(table.iloc[rows], wanted[rows])
    frequency[rows] = 1 / len(rows) if "balance" in without else weights
    return wanted, frequency


class Faces:
    """The pictures of an index as a net sees them: changed at random for training, or aligned."""

    def __init__(self, index: Index, seed: int, without: Sequence[str] = ()) -> None:
        self.table, self.source, self.seed = index.table, index.source, seed
        self.without = without
        self.paths = self.table["path"].to_numpy(str)
        self.sources = self.table["source"].to_numpy(str)
        self.boxes, points = np.split(coordinates_of(self.table), [4], axis=1)
        self.points = points.reshape(-1, 5, 2)
        self.template = template((SIZE, SIZE), RECIPE.preprocessing.margin)

    def read(self, row: int, r: np.random.Generator | None = None) -> Picture:
        """Return a picture, uint8 (H, W, 3), in its true shape; with ``r``, half of them as is."""
        image = load_image(self.paths[row], self.source)
        size = SQUEEZED.get(self.sources[row])
        if r is not None and r.random() < 0.5:
            size = None
        return np.asarray(image.resize(size) if size else image)

    def aligned(self, row: int, r: np.random.Generator | None = None) -> Picture:
        """Return the face, turned to the template; with ``r``, not quite."""
        picture = self.read(row, r)
        points = self.points[row] * np.array([picture.shape[1], picture.shape[0]], np.float64)
        if not np.isfinite(points).all():
            return cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        if r is None or "jitter" in self.without:
            return warp(picture, similarity(points, self.template))
        eyes = np.linalg.norm(points[0] - points[1])
        points += r.normal(0, 0.04 * eyes * r.random(), points.shape)  # as detectors differ
        return warp(picture, jitter(r) @ similarity(points, self.template))

    def whole(self, row: int, r: np.random.Generator) -> Picture:
        """Return the frame, as where no face is found; in half of all cases another frame."""
        picture = self.read(row, r)
        if r.random() < 0.5:
            return cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        height, width = picture.shape[:2]
        wide, tall = np.array((width, height)) / math.exp(r.uniform(-0.35, 0.3))
        x = (width - wide) / 2 + r.normal(0, 0.04) * width
        y = (height - tall) / 2 + r.normal(0, 0.04) * height
        matrix = np.array(
            [[SIZE / wide, 0, -x * SIZE / wide], [0, SIZE / tall, -y * SIZE / tall], [0, 0, 1]]
        )
        return warp(picture, matrix)

    def batch(self, step: int, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return rows as a net takes them in training, (n, 3, SIZE, SIZE) float32."""
        r = np.random.default_rng([self.seed, step, 1])
        made: list[Picture] = []
        for row in rows:
            if r.random() < 0.11 and "frames" not in self.without:
                picture = self.whole(row, r)
            else:
                picture = self.aligned(row, r)
                if r.random() < 0.3 and "background" not in self.without:
                    picture = hide_background(picture, r, made[-1] if made else picture)
            if "photometric" not in self.without:
                picture = photometric(picture, r)
            made.append(picture[:, ::-1] if r.random() < 0.5 else picture)
        return as_input(np.stack(made))


def as_input(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """Return (n, SIZE, SIZE, 3) uint8 as a net takes it."""
    return RECIPE.preprocessing.normalized(torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2))


def warp(picture: Picture, matrix: npt.NDArray[np.float64], side: int = SIZE) -> Picture:
    """Return the part that a (3, 3) map brings to (side, side), antialiased."""
    factor = 1 / math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if factor > 1:
        height, width = picture.shape[:2]
        size = max(1, round(width / factor)), max(1, round(height / factor))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.diag([width / size[0], height / size[1], 1.0])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ matrix @ half  # OpenCV counts from a pixel's centre
    return cv2.warpAffine(picture, matrix[:2], (side, side), borderMode=cv2.BORDER_REPLICATE)


def jitter(r: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a random turn, scale, shear and shift about the middle, (3, 3)."""
    angle = math.radians(r.normal(0, 6) if r.random() < 0.85 else r.uniform(-25, 25))
    scale = math.exp(r.normal(0, 0.06) if r.random() < 0.8 else r.uniform(-0.3, 0.25))
    linear = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    if r.random() < 0.3:
        linear = linear @ np.array([[math.exp(r.normal(0, 0.04)), r.normal(0, 0.03)], [0, 1]])
    matrix, middle = np.eye(3), np.full(2, SIZE / 2)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle - linear @ middle + r.normal(0, 0.025 * SIZE, 2)
    return matrix


def hide_background(picture: Picture, r: np.random.Generator, other: Picture) -> Picture:
    """Replace what lies outside the face's ellipse by a colour, blots, blur or another picture."""
    unit = 1 + 2 * RECIPE.preprocessing.margin
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    centre = 0.5 + r.normal(0, 0.02), 0.53 + r.normal(0, 0.02)
    axes = r.uniform(0.40, 0.52) / unit, r.uniform(0.50, 0.64) / unit
    outside = ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 - 1
    mask = (outside.clip(0, 0.35) / 0.35)[..., None]
    kind = r.random()
    if kind < 0.3:
        background: Any = r.integers(0, 256, 3)
    elif kind < 0.5:
        blots = r.integers(0, 256, (*r.integers(2, 13, 2), 3)).astype(np.uint8)
        background = cv2.resize(blots, (SIZE, SIZE))
    else:
        background = cv2.GaussianBlur(picture, (0, 0), SIZE * 0.12) if kind < 0.7 else other
    return (picture * (1 - mask) + background * mask).astype(np.uint8)


def photometric(picture: Picture, r: np.random.Generator) -> Picture:
    """Return a picture blurred, dyed, darkened, noisy, packed or partly covered at random."""
    if r.random() < 0.22:
        side = int(math.exp(r.uniform(math.log(18), math.log(70))))
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    elif r.random() < 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), r.uniform(0.4, 1.8))
    values: Picture = picture.astype(np.float32)
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    if r.random() < 0.8:
        values *= math.exp(r.normal(0, 0.22))
        mean = values.mean()
        values = (values - mean) * math.exp(r.normal(0, 0.2)) + mean
        grey = (values @ luma)[..., None]
        values = grey + (values - grey) * (
            r.uniform(0, 2) if r.random() < 0.5 else 1 + r.normal(0, 0.2)
        )
        values *= np.exp(r.normal(0, 0.06, 3)).astype(np.float32)
    if r.random() < 0.12:
        values[:] = (values @ luma)[..., None]
    if r.random() < 0.12:
        values = 255 * (values / 255).clip(0, 1) ** math.exp(r.uniform(-0.5, 0.8))
    if r.random() < 0.12:
        values = values + r.normal(0, r.uniform(3, 14), values.shape)
    picture = values.clip(0, 255).astype(np.uint8)
    if r.random() < 0.2:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(r.integers(18, 70))]
        packed: Any = cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_COLOR)
        picture = packed
    if r.random() < 0.18:
        tall, wide = r.integers(SIZE // 10, SIZE // 3, 2)
        top, left = r.integers(0, SIZE - tall), r.integers(0, SIZE - wide)
        picture[top : top + tall, left : left + wide] = r.integers(0, 256, 3)
    return picture


def shift_for_equal_recalls(
    logs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], sources: npt.NDArray[np.str_]
) -> float:
    """Return the least of 0, 0.1 … 1 by which to raise female, for as high a recall as male's.

    ``logs`` (n, 2) log-probabilities, ``labels`` (n,), ``sources`` (n,), which count alike.
    """
    for shift in np.arange(10) / 10:
        correct = pd.Series((logs + np.array([0, shift])).argmax(1) == labels)
        recalls = correct.groupby([labels, sources]).mean().groupby(level=0).mean()
        if recalls[1] >= recalls[0]:
            return float(shift)
    return 1.0


@torch.no_grad()
def validated(model: nn.Module, faces: Faces, rows: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Return log-probabilities (n, 2) and labels (n,) of aligned faces, predicted as in use."""
    parts = (rows[i : i + 50] for i in range(0, len(rows), 50))
    batches = (as_input(np.stack([faces.aligned(row) for row in part])) for part in parts)
    outputs = [with_mirror(model.eval(), batch, RECIPE.mirror_within) for batch in batches]
    logs = torch.cat(outputs).double().log_softmax(1).numpy()
    return logs, faces.table["label"].to_numpy(np.int64)[rows]


def train(faces: Faces, options: argparse.Namespace, model: Student, numbers: Numbers) -> nn.Module:
    """Train by steps, going on where OUT.partial says, and return the averaged net."""
    wanted, frequency = learnt(faces.table, numbers.female, options.without)
    for name in FROZEN:
        model.net.get_submodule(name).requires_grad_(False)
    average = average_of(model, 0.998)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW([
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": 0.05},
        {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0},
    ])  # fmt: skip
    state: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}
    beside, step = options.out.with_name(f"{options.out.name}.partial"), 0
    begun = {name: str(each) for name, each in vars(options).items()}
    begun |= {"index": sha256_of(options.index), "out": "", "steps": ""}  # which may be more
    if beside.exists():
        kept = torch.load(beside, weights_only=True)
        if kept.pop("begun", None) != begun:
            raise InputError(
                f"{beside} was begun with other options or another index: give those, or remove it."
            )
        step = kept.pop("step")
        for name, each in kept.items():
            state[name].load_state_dict(each)

    def drawn(number: int) -> tuple[npt.NDArray[np.int64], Tensor]:
        r = np.random.default_rng([options.seed, number])
        chosen = r.choice(len(frequency), options.batch_size, p=frequency)
        return chosen, faces.batch(number, chosen)

    with (
        ThreadPoolExecutor(1) as pool,
        progress_bar(options.steps, "steps", "step", initial=step) as bar,
    ):
        ahead = pool.submit(drawn, step)
        while step < options.steps:
            chosen, images = ahead.result()
            ahead = pool.submit(drawn, step + 1)
            done = step / options.steps
            rise = min(1.0, done / 0.08)
            fall = 0.5 * (1 + math.cos(math.pi * max(0.0, done - 0.08) / 0.92))
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * rise * (fall + 1e-3)
            model.train()
            for name in FROZEN:
                model.net.get_submodule(name).eval()
            female = torch.from_numpy(wanted[chosen])
            outputs, told = model(images)
            loss = functional.cross_entropy(outputs, torch.stack([1 - female, female], 1))
            loss = loss + options.numbers * (distance := numbers.loss(told, chosen))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 2.0)
            optimizer.step()
            average.update_parameters(model)
            step += 1
            bar.set_postfix(
                loss=f"{loss.item():.3f}", numbers=f"{distance.item():.3f}", refresh=False
            )
            bar.update()
            if step % 200 == 0 or step == options.steps:
                content: dict[str, Any] = {name: each.state_dict() for name, each in state.items()}
                content |= {"step": step, "begun": begun}
                write_atomically(beside, partial(torch.save, content))
    student = average.module
    assert isinstance(student, Student)
    return student.net


def run(options: argparse.Namespace) -> None:
    """Train, and write the weights."""
    index = Index.open(options.index).with_landmarks()
    torch.manual_seed(options.seed)
    model = build_model(RECIPE.arch, len(CLASSES)).to(memory_format=torch.channels_last)
    seen = start_from(model, options.init, RECIPE.arch)
    faces = Faces(index, options.seed, options.without)
    numbers = Numbers(options.teachers, index.table)
    assert isinstance(model, ResNet)
    student = Student(model, numbers.values.shape[1])
    best = train(faces, options, student, numbers)
    own = index.table
    rows = np.flatnonzero((own["split"] == "val") & (own["known"] == "yes"))
    logs, labels = validated(best, faces, rows)
    shift = shift_for_equal_recalls(logs, labels, faces.sources[rows])
    with torch.no_grad():
        best.get_submodule("fc").bias[CLASSES.index("female")] += shift  # type: ignore[index,operator]
    logs = log_softmax(logs + np.array([0, shift]), axis=1)
    correct = logs.argmax(1) == labels
    used = hash64(own["sha256"][own["split"].isin(["train", "val"])])
    Checkpoint(
        RECIPE,
        CLASSES,
        RECIPE.preprocessing,
        best.state_dict(),
        metrics={"val_accuracy": float(correct.mean())},
        temperature=fit_temperature(logs, labels),
        seen_hashes=torch.unique(torch.cat([seen, used])),
    ).save(options.out, dtype=torch.float16)
    for source, mean in pd.Series(correct).groupby(faces.sources[rows]).mean().items():
        print(f"{source}: validation accuracy {mean:.4f}")


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("index", type=Path)
    add("out", type=Path)
    add("--init", default="model_weights/shipped.pth", help="a .pth to start from")
    add("--teachers", type=Path, help="what tools.teachers wrote")
    add("--numbers", type=float, default=0.5, help="weight of the teachers' numbers in the loss")
    add("--without", nargs="+", choices=PARTS, default=(), help="to see what each part gives")
    add("--steps", type=int, default=1200)
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=6e-4)
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    return run_command("pretrain", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
