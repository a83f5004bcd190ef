"""Train ResNet18 on more than the label: what a face-recognition net sees, age and race too.

python -m tools.pretrain INDEX OUT DESCRIPTORS... [--epochs 20] [--size 64 64] [--init WEIGHTS]

INDEX has a column ``teacher``; DESCRIPTORS are .npz files of ``names`` (n,) and ``descriptors``
(n, 128). On the train split alone,
with the recipe's own augmentation, one net answers four questions at once: male or female (0.7 of
the teacher's answer and 0.3 of the label, Hinton et al., arXiv:1503.02531, and label smoothing
0.05), the 128 numbers that dlib's face-recognition net finds in the picture (mean squared error,
each scaled to unit variance; Romero et al., arXiv:1412.6550, distil features in this way), the age
(smooth L1, in standard deviations) and the race as labelled. OUT keeps the first answer alone, with
the temperature that fits it on the validation split: a checkpoint. OUT.partial holds the state
after each epoch, from which the same command goes on.

Men are most of the older people in both sources, and women of the younger. So that a face is not
called a man's because it looks old, the pictures weigh so that in each band of ages of a source the
two labels count the same. Where the age is not known, it is what ridge regression on the
descriptors says.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from face_gender import CLASSES
from face_gender.data.dataset import FaceDataset, make_loader, soft_labels, to_input
from face_gender.data.index import Index
from face_gender.devices import forward, keep_freed_memory, mixed_precision
from face_gender.errors import InputError
from face_gender.evaluate.metrics import fit_temperature
from face_gender.evaluate.predict import predict
from face_gender.evaluate.report import by_value
from face_gender.model.architectures import build_model, to_device
from face_gender.model.checkpoint import Checkpoint, hash64
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.optim import build_for, make_optimizer, make_schedule
from face_gender.train.step import average_of
from tools.sources import BANDS, RACES

FloatArray = npt.NDArray[np.floating[Any]]

DESCRIPTORS = 128
HEAVIEST = 3.0  # what a picture may weigh for the balance of its band
WEIGHTS = {"label": 1.0, "descriptor": 1.0, "age": 0.3, "race": 0.3}


def read_descriptors(paths: list[Path]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the descriptor (128,) of every picture by name."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for path in paths:
        part = np.load(path)
        found.update(zip(map(str, part["names"]), part["descriptors"], strict=True))
    return found


def with_guesses(ages: FloatArray, descriptors: FloatArray) -> FloatArray:
    """Return ``ages`` (n,) in years, those that are NaN guessed from the descriptors (n, 128)."""
    known = ~np.isnan(ages)
    described = ~np.isnan(descriptors[:, 0])
    both = known & described
    ridge = Ridge(1.0).fit(descriptors[both], np.log(ages[both]))
    found = ages.copy()
    found[~known & described] = np.exp(ridge.predict(descriptors[~known & described]))
    return found


def balance(rows: pd.DataFrame, ages: FloatArray) -> FloatArray:
    """Return a weight (n,) for each row, under which both labels count the same at every age.

    The mean is about 1; none is above HEAVIEST, and rows whose age is NaN make a band of their own.
    """
    # NumPy sorts NaN behind all numbers, which is the oldest band.
    band = np.where(np.isnan(ages), -1, np.digitize(ages, list(BANDS)))
    bands = pd.DataFrame({"source": rows["source"].to_numpy(), "band": band})
    bands["label"] = rows["label"].to_numpy()
    of_band = bands.groupby(["source", "band"])["label"].transform("size")
    of_label = bands.groupby(["source", "band", "label"])["label"].transform("size")
    return (of_band / (2 * of_label)).clip(upper=HEAVIEST).to_numpy(dtype=float)


class Targets:
    """What the net is to answer to the picture at each position; NaN or -1 where not known."""

    def __init__(self, rows: pd.DataFrame, descriptors: list[Path], recipe: Recipe) -> None:
        found = read_descriptors(descriptors)
        unknown = np.full(DESCRIPTORS, np.nan)
        values = np.array([found.get(path, unknown) for path in rows["path"]])
        scaled = (values - np.nanmean(values, 0)) / np.nanstd(values, 0)
        self.descriptor = torch.tensor(scaled, dtype=torch.float32)
        ages = np.array(
            [
                float(Path(path).name.split("_")[0]) if source == "utkface" else np.nan
                for path, source in zip(rows["path"], rows["source"], strict=True)
            ]
        )
        self.weight = torch.tensor(balance(rows, with_guesses(ages, scaled)), dtype=torch.float32)
        age = torch.tensor(ages, dtype=torch.float32)
        self.age = (age - age.nanmean()) / age[~age.isnan()].std()
        self.race = torch.tensor([RACES.index(r) if r in RACES else -1 for r in rows["race"]])
        label = soft_labels(rows, recipe.distillation)
        if label is None:
            raise InputError(
                "the index has no column teacher: add a teacher's probability of female."
            )
        self.label, self.smoothing = label, recipe.label_smoothing

    def losses(self, outputs: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of each question over those pictures whose answer is known."""
        label, age, race, descriptor = outputs.split([2, 1, len(RACES), DESCRIPTORS], 1)
        known = ~self.age[positions].isnan()
        described = ~self.descriptor[positions][:, 0].isnan()
        positions_described = positions[described]
        functional = nn.functional
        weight = self.weight[positions]
        each = functional.cross_entropy(
            label, self.label[positions], label_smoothing=self.smoothing, reduction="none"
        )
        return {
            "label": (each * weight).sum() / weight.sum(),
            "descriptor": functional.mse_loss(
                descriptor[described], self.descriptor[positions_described], reduction="sum"
            ) / (DESCRIPTORS * max(1, len(positions_described))),
            "age": functional.smooth_l1_loss(
                age[known, 0], self.age[positions[known]], reduction="sum"
            ) / max(1, int(known.sum())),
            "race": functional.cross_entropy(
                race, self.race[positions], ignore_index=-1, reduction="sum"
            ) / max(1, int((self.race[positions] >= 0).sum())),
        }  # fmt: skip


class Pretraining:
    """The net, what trains it, and what is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.recipe = get_recipe(
            "resnet18_tuned",
            size=options.size,
            epochs=options.epochs,
            init=options.init,
            learning_rate=options.learning_rate,
            start_size=1.0,
        )
        preprocessing = self.recipe.preprocessing
        index = Index.open(options.index)
        rows, val = index.split("train"), index.split("val")
        self.targets = Targets(rows.table, options.descriptors, self.recipe)
        used = hash64([*rows.hashes(), *val.hashes()])
        device = torch.device("cpu")
        self.seed, self.transform = options.seed, preprocessing.train_transform()
        size = self.recipe.batch_size
        self.train_loader = make_loader(
            FaceDataset(rows, None, self.transform), size, shuffle=True, seed=self.seed
        )
        self.val_rows = val.table
        self.val_loader = make_loader(FaceDataset(val, None, preprocessing.eval_transform()), size)
        net, seen = build_for(self.recipe)
        self.seen = torch.unique(torch.cat([seen, used]))
        net.fc = nn.Linear(512, 2 + 1 + len(RACES) + DESCRIPTORS)
        self.net = to_device(net, device)
        self.ema_model = average_of(self.net, self.recipe.average)
        self.epoch = 0
        self.temperature = 1.0
        self.metrics: dict[str, float] = {}
        self.precision = mixed_precision(device)
        self.optimizer = make_optimizer(self.recipe, self.net)
        schedule = make_schedule(self.recipe, self.optimizer, len(self.train_loader))
        assert schedule is not None  # of this recipe, one cycle
        self.schedule = schedule

    def train_epoch(self) -> dict[str, float]:
        """Train once through the split; return the mean of each loss."""
        self.net.train()
        self.train_loader.batch_sampler.epoch = self.epoch
        sums, batches = dict.fromkeys(WEIGHTS, 0.0), 0
        for batch in self.train_loader:
            if len(batch.labels) < 2:
                continue
            images = to_input(batch, self.transform, "cpu", self.seed, self.epoch)
            outputs = forward(self.net, images, self.precision)
            losses = self.targets.losses(outputs, batch.positions)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum().backward()
            self.optimizer.step()
            self.schedule.step()
            self.ema_model.update_parameters(self.net)
            batches += 1
            for name, loss in losses.items():
                sums[name] += float(loss.detach())
        return {name: round(total / batches, 4) for name, total in sums.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights with the answer male or female alone."""
        weights = dict(self.ema_model.module.state_dict())
        weights["fc.weight"], weights["fc.bias"] = weights["fc.weight"][:2], weights["fc.bias"][:2]
        return weights

    def validate(self) -> dict[str, float]:
        """Return the accuracy of male or female on each source of the validation split."""
        net = build_model("resnet18", len(CLASSES), imagenet=False)
        net.load_state_dict(self.weights())
        net = to_device(net, torch.device("cpu"))
        (result,) = predict(net, self.val_loader, CLASSES, precision=self.precision)
        self.temperature = fit_temperature(result.log_probabilities, result.labels)
        recalls = {f"val_recall_{name}": recall for name, recall in result.recall.items()}
        self.metrics = {"val_accuracy": result.accuracy, **recalls}
        parts = by_value(result, self.val_rows, "source")
        found = {name: part.accuracy for name, part in parts.items()}
        return {name: round(value, 4) for name, value in {**found, **self.metrics}.items()}

    def state(self) -> dict[str, object]:
        """Return what `go_on` takes."""
        parts = (self.net, self.ema_model, self.optimizer, self.schedule)
        return {
            "parts": [part.state_dict() for part in parts],
            "epoch": self.epoch,
            "temperature": self.temperature,
            "metrics": self.metrics,
        }

    def go_on(self, path: Path) -> None:
        """Be what the state at ``path`` was."""
        state = torch.load(path, weights_only=True)
        net, average, optimizer, schedule = state["parts"]
        self.net.load_state_dict(net)
        self.ema_model.load_state_dict(average)
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(schedule)
        self.epoch = state["epoch"]
        self.temperature, self.metrics = state["temperature"], state["metrics"]

    def checkpoint(self) -> Checkpoint:
        """Return the averaged net with the answer male or female alone."""
        return Checkpoint(
            recipe=replace(self.recipe, epochs=max(1, self.epoch)),
            classes=CLASSES,
            preprocessing=self.recipe.preprocessing,
            weights=self.weights(),
            seen_hashes=self.seen,
            epoch=max(0, self.epoch - 1),
            temperature=self.temperature,
            metrics=self.metrics,
        )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("descriptors", type=Path, nargs="+")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--init", default="none")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()
    pretraining = Pretraining(options)
    partial = options.out.with_name(f"{options.out.name}.partial")
    if partial.exists():
        pretraining.go_on(partial)
    while pretraining.epoch < options.epochs:
        started = time.perf_counter()
        losses = pretraining.train_epoch()
        pretraining.epoch += 1
        seconds = round(time.perf_counter() - started)
        print(pretraining.epoch, losses, pretraining.validate(), seconds, "s", flush=True)
        torch.save(pretraining.state(), partial)
    pretraining.checkpoint().save(options.out)
    partial.unlink()


if __name__ == "__main__":
    main()
