"""What 16-bit training costs in accuracy and gives in speed: one command, one table.

python -m benchmarks.precision DATA [--init PTH] [--pictures 900] [--size 224] [--seeds 0 1 2]

Trains the recipe `resnet18` on a part of DATA (a folder with male/ and female/, or a .zip of one)
once in 16 bits and once in float32 for each seed, and validates on another part. Where the kit
itself would take float32, bfloat16 is calculated all the same, and a last line says so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch

from benchmarks.common import machine
from face_gender.data.index import Index
from face_gender.devices import mixed_precision, pick_device
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.loop import EpochReport, train


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--init", default="none", help="none, imagenet or a .pth to start from")
    parser.add_argument("--pictures", type=int, default=900, help="to train on")
    parser.add_argument("--validate", type=int, default=900, help="to validate on")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def sample(data: Path, work: Path, train_on: int, validate_on: int) -> Index:
    """Return a part of the train split and a part of the validation split."""
    index = Index.create(data, work / "index.csv", progress=False)
    table = index.table
    counts = {"train": train_on, "val": validate_on}
    parts = [
        table[table["split"] == split].sample(count, random_state=0)
        for split, count in counts.items()
    ]
    return replace(index, table=pd.concat(parts))


def last(recipe: Recipe, index: Index, work: Path, seed: int, mixed: bool) -> EpochReport:
    """Train and return the last epoch's report."""
    reports = list(train(recipe, index, work, seed=seed, mixed=mixed, progress=False))
    return reports[-1]


def main() -> None:
    """Train all and print."""
    options = parse()
    print(machine())
    side = options.size
    recipe = get_recipe("resnet18", (side, side), init=options.init, epochs=options.epochs)
    takes_16_bits = mixed_precision(pick_device()) is not None
    bfloat16 = patch("face_gender.train.run.mixed_precision", lambda device: torch.bfloat16)
    found: dict[bool, list[EpochReport]] = {True: [], False: []}
    print("| seed | precision | validation accuracy | loss | images/s in training |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, nullcontext() if takes_16_bits else bfloat16:
        work = Path(folder)
        index = sample(options.data, work, options.pictures, options.validate)
        for seed in options.seeds:
            for mixed, reports in found.items():
                report = last(recipe, index, work, seed, mixed)
                reports.append(report)
                name = "16 bits" if mixed else "float32"
                print(
                    f"| {seed} | {name} | {report.val_accuracy:.4f} | {report.val_loss:.4f} | "
                    f"{report.images_per_second:.1f} |",
                    flush=True,
                )
    speeds = {m: statistics.median(r.images_per_second for r in rs) for m, rs in found.items()}
    print(f"16 bits train {speeds[True] / speeds[False]:.2f} times as fast")
    if not takes_16_bits:
        print("The kit takes float32 on this machine; where it takes 16 bits, they are faster.")


if __name__ == "__main__":
    main()
