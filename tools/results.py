"""Reproduce the figures of docs/results.md.

python -m tools.results train RECIPE INDEX DATA [--init none] [--size 96 96] [--epochs 10]
    [--learning-rate 0.001]
python -m tools.results test WEIGHTS INDEX DATA
python -m tools.results score RESULTS
python -m tools.results ship WEIGHTS INDEX DATA

``train`` writes one line of JSON an epoch to OUT/RECIPE.jsonl; ``test`` prints the figures on the
test split; ``score`` compares what process.py --recursive wrote with the folders male/ and female/
that its names lie in; ``ship`` writes model_weights/shipped.pth with weights in float16, and says
how many answers on the validation split that changes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from face_gender import CLASSES
from face_gender.checkpoint import load_checkpoint
from face_gender.evaluation import evaluate
from face_gender.files import InputError
from face_gender.metrics import recall_per_class, wilson_interval
from face_gender.recipes import get_recipe
from face_gender.training import train


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("recipe")
    training.add_argument("--init")
    training.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    training.add_argument("--epochs", type=int)
    training.add_argument("--learning-rate", type=float)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--workers", type=int)
    training.add_argument("--out", type=Path, default=Path("model_weights"))
    testing = commands.add_parser("test")
    testing.add_argument("weights", type=Path)
    scoring = commands.add_parser("score")
    scoring.add_argument("results", type=Path)
    shipping = commands.add_parser("ship")
    shipping.add_argument("weights", type=Path)
    for command in (training, testing, shipping):
        command.add_argument("index", type=Path)
        command.add_argument("data", type=Path)
    return parser.parse_args()


def run_training(options: argparse.Namespace) -> None:
    """Train and write a line an epoch."""
    changes: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("init", "size", "epochs", "learning_rate")
        if getattr(options, name) is not None
    }
    recipe = get_recipe(options.recipe, **changes)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with open(options.out / f"{recipe.name}.jsonl", "a", encoding="utf-8") as log:
        for report in train(
            recipe,
            options.index,
            options.data,
            options.out,
            seed=options.seed,
            workers=options.workers,
            progress=False,
        ):
            line = {**asdict(report), "checkpoint": report.checkpoint.name, "seed": options.seed}
            line["minutes"] = round((time.time() - started) / 60, 2)
            print(json.dumps(line), file=log, flush=True)


def run_test(options: argparse.Namespace) -> None:
    """Print the figures of one evaluation."""
    result = evaluate(options.weights, options.index, options.data)
    print(result.summary())
    print(result.confusion)


def run_score(options: argparse.Namespace) -> None:
    """Print accuracy, interval and recall of a flat process_results.json."""
    answers = json.loads(options.results.read_text(encoding="utf-8"))
    confusion = np.zeros((2, 2), dtype=np.int64)
    for name, answer in answers.items():
        label = "female" if "female" in Path(name).parts else "male"
        confusion[CLASSES.index(label), CLASSES.index(answer)] += 1
    right, total = int(confusion.trace()), int(confusion.sum())
    low, high = wilson_interval(right, total)
    print(f"accuracy {right / total:.4f} (95 % interval {low:.4f} to {high:.4f}, n = {total})")
    print(recall_per_class(confusion, CLASSES))


def run_ship(options: argparse.Namespace) -> None:
    """Write the weights that process.py finds by default."""
    shipped = Path(__file__).resolve().parent.parent / "model_weights" / "shipped.pth"
    load_checkpoint(options.weights).save(shipped, dtype=torch.float16)
    before, after = (
        evaluate(path, options.index, options.data, "val", allow_seen=True).predictions
        for path in (options.weights, shipped)
    )
    print(f"{shipped.name}: {(before != after).sum()} of {len(before)} answers changed")


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    try:
        commands = {"train": run_training, "test": run_test, "score": run_score, "ship": run_ship}
        commands[options.command](options)
    except (InputError, OSError, ValueError) as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
