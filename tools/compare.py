"""Compare ways to train on one split, with the test split used once for each.

python -m tools.compare run INDEX SHIPPED OUT [--only NAME ...] [--seeds 0 1 2]
python -m tools.compare table OUT

INDEX is what tools.sources wrote. Every run is trained on the same 6,000 pictures of the train
split, chosen on the same 2,000 of val, and then tested on all of test: a comparison that two
processors can make, not the best that each way can reach. SHIPPED: the weights that runs "from the
shipped weights" start from. A run leaves OUT/NAME_SEED.json and .npz; those that are there are not
made again, so that the same command goes on. ``table`` prints the Markdown table of
docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from face_gender import CLASSES
from face_gender.data.augmentation import Augmentation, to_grey
from face_gender.data.index import Index
from face_gender.evaluate.metrics import Evaluation, wilson_interval
from face_gender.evaluate.predict import evaluate
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.loop import train

TRAIN_ROWS, VAL_ROWS = 6_000, 2_000
SOURCES = ("utkface", "celeba64")
SMALL, SMALLER = (96, 96), (64, 64)
FLIPPED = ("resnet18", "resnet18_tuned", "resnet18_tuned_shipped")  # shown with their flip too
ENSEMBLE = ("resnet18", "resnet50", "compact_cnn", "dropout_cnn")


def recipes(shipped: str) -> dict[str, tuple[str, Recipe]]:
    """Return what is compared: name -> (what it is, recipe)."""
    nothing: dict[str, Any] = {"init": "none"}
    plain = get_recipe("resnet18", size=SMALLER, init="none")
    tuned = get_recipe("resnet18_tuned")
    grey = replace(plain.preprocessing, augmentation=Augmentation(grey=1.0))
    found = {
        "compact_cnn": ("`compact_cnn`, as published", get_recipe("compact_cnn")),
        "resnet18": (
            "`resnet18` from nothing at 96 x 96",
            get_recipe("resnet18", size=SMALL, **nothing),
        ),
        "resnet18_shipped": (
            "`resnet18` from the shipped weights at 96 x 96",
            get_recipe("resnet18", size=SMALL, init=shipped),
        ),
        "resnet18_tuned": ("`resnet18_tuned` from nothing", tuned),
        "resnet18_tuned_shipped": (
            "`resnet18_tuned` from the shipped weights, rate 3e-4",
            replace(tuned, init=shipped, learning_rate=3e-4),
        ),
        "features_shipped": (
            "feature extraction: `resnet18`, the last layer of the shipped weights alone",
            get_recipe("resnet18", size=SMALL, init=shipped, feature_extract=True),
        ),
        "adamw_64": ("`resnet18` from nothing at 64 x 64: AdamW, batch 100", plain),
        "sgd_64": (
            "the same with SGD, rate 0.02, momentum 0.9",
            replace(plain, optimizer="sgd", momentum=0.9, amsgrad=False, learning_rate=0.02),
        ),
        **{
            f"batch_{size}_64": (f"AdamW, batch {size}", replace(plain, batch_size=size))
            for size in (32, 16, 8)
        },
        "grey_64": (
            "AdamW, batch 100, trained and tested on grey, chosen on colour",
            replace(plain, preprocessing=grey),
        ),
        "resnet50": (
            "`resnet50` from nothing at 96 x 96",
            get_recipe("resnet50", size=SMALL, **nothing),
        ),
        "dropout_cnn": ("`dropout_cnn`, as published", get_recipe("dropout_cnn")),
    }
    return {name: (words, replace(recipe, name=name)) for name, (words, recipe) in found.items()}


def rows_to_compare(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to train and to choose on, the same for every run."""
    train_rows = table[table["split"] == "train"].sample(TRAIN_ROWS, random_state=0)
    val_rows = table[table["split"] == "val"].sample(VAL_ROWS, random_state=0)
    return pd.concat([train_rows, val_rows]).sort_index()


def in_grey(images: Tensor) -> Tensor:
    """Return the pictures with their grey value in each channel."""
    return to_grey(images).expand_as(images)


def run(name: str, recipe: Recipe, seed: int, index: Path, out: Path) -> None:
    """Train and test once; leave the figures and the answers."""
    opened = Index.open(index)
    chosen = replace(opened, table=rows_to_compare(opened.table))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        reports = list(train(recipe, chosen, scratch, seed=seed, progress=False))
        minutes = (time.perf_counter() - started) / 60
        best = max(report.epoch for report in reports if report.is_best)
        found = {
            flip: evaluate(
                Path(scratch) / "best.pth", opened, flip=flip, progress=False,
                change=in_grey if name.startswith("grey") else None,
            )
            for flip in (False, True)
        }  # fmt: skip
    np.savez(
        out / f"{name}_{seed}.npz",
        paths=found[False].paths,
        labels=found[False].labels,
        plain=found[False].probabilities,
        flip=found[True].probabilities,
    )
    figures = {
        "epochs": len(reports),
        "best_epoch": best,
        "val_accuracy": reports[best].val_accuracy,
        "minutes": round(minutes, 1),
    }
    (out / f"{name}_{seed}.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(name, seed, figures, flush=True)


def answers(out: Path, name: str, seed: int, kind: str = "plain") -> Evaluation | None:
    """Return what a run answered, None where it has not been made."""
    path = out / f"{name}_{seed}.npz"
    if not path.exists():
        return None
    found = np.load(path)
    return Evaluation(CLASSES, found["paths"], found["labels"], found[kind], 0.0)


def ensemble(out: Path, seed: int) -> Evaluation | None:
    """Return the mean answer of the four published ways, None where one is missing."""
    members = [answers(out, name, seed) for name in ENSEMBLE]
    if any(member is None for member in members):
        return None
    known = [member for member in members if member is not None]
    mean = np.mean([member.probabilities for member in known], axis=0)
    return replace(known[0], probabilities=mean)


def cells(found: list[Evaluation]) -> list[str]:
    """Return one source's cells: accuracy over the seeds, and recalls."""
    right = [int((each.predictions == each.labels).sum()) for each in found]
    total = len(found[0].labels)
    low, high = wilson_interval(round(float(np.mean(right))), total)
    accuracies = [f"{each / total:.4f}" for each in sorted(right)]
    recall = " / ".join(f"{np.mean([each.recall[name] for each in found]):.3f}" for name in CLASSES)
    return [
        f"{np.mean(right) / total:.4f} ({low:.3f} to {high:.3f})",
        f"{accuracies[0]} to {accuracies[-1]}" if len(found) > 1 else "one seed",
        recall,
    ]


def row(words: str, found: list[Evaluation], minutes: str) -> str:
    """Return one row of the table."""
    line = [words]
    for source in SOURCES:
        part = []
        for each in found:
            part.append(each.subset(np.char.startswith(each.paths, f"{source}/")))
        line += cells(part)
    return f"| {' | '.join([*line, minutes])} |"


def print_table(out: Path) -> None:
    """Print what has been run so far."""
    columns = ["way to train"]
    for source in SOURCES:
        columns += [f"{source} test (95 %)", "lowest to highest seed", "recall male / female"]
    print(f"| {' | '.join([*columns, 'minutes'])} |\n|{'---|' * (len(columns) + 1)}")
    for name, (words, _) in recipes("shipped.pth").items():
        for kind, more in (("plain", ""), ("flip", ", test-time flip")):
            found = [each for s in range(9) if (each := answers(out, name, s, kind)) is not None]
            if found and (kind == "plain" or name in FLIPPED):
                files = [out / f"{name}_{s}.json" for s in range(9)]
                spent = [
                    json.loads(file.read_text(encoding="utf-8"))["minutes"]
                    for file in files
                    if file.exists()
                ]
                print(row(words + more, found, f"{np.mean(spent):.1f}"))
    mixed = [each for seed in range(9) if (each := ensemble(out, seed)) is not None]
    if mixed:
        print(row("mean of the four published", mixed, ""))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("index", type=Path)
    running.add_argument("shipped")
    running.add_argument("out", type=Path)
    running.add_argument("--only", nargs="+")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    commands.add_parser("table").add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        print_table(options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name, (_, recipe) in recipes(options.shipped).items():
            wanted = options.only is None or name in options.only
            if wanted and not (options.out / f"{name}_{seed}.json").exists():
                run(name, recipe, seed, options.index, options.out)


if __name__ == "__main__":
    main()
