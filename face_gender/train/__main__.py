"""Train from the shell: python -m face_gender.train INDEX --recipe NAME"""

from __future__ import annotations

import argparse
import math
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_gender import RECIPE_NAMES
from face_gender.console import (
    device,
    exit_on_signal,
    exit_with,
    first_imports,
    given_path,
    positive,
    print_stdout,
    raise_on_first_signal,
    run_command,
    usage_name,
    warnings_as_lines,
)
from face_gender.errors import InputError

if TYPE_CHECKING:
    from face_gender.model.recipes import Recipe
    from face_gender.train.run import EpochReport


if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.train: interrupted, nothing was begun.")

_NAME = "face_gender.train"
# The options that are settings of the recipe.
_CHANGES = ("epochs", "batch_size", "learning_rate", "init")


def parse(arguments: Sequence[str] | None, name: str = _NAME) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Train a recipe on the pictures of an index, as the notebook does. "
        "torchrun starts it in several processes.",
        epilog="exit codes: 0 trained, 1 could not run, 2 usage, 130 or 143 interrupted",
    )
    add = parser.add_argument
    add("index", type=given_path, metavar="INDEX", help="the CSV that data_split.py wrote")
    add("--recipe", required=True, choices=RECIPE_NAMES, help="the way to train")
    add(
        "--data",
        type=given_path,
        metavar="DATA",
        help="where the pictures lie (default: beside INDEX)",
    )
    add(
        "--output",
        type=given_path,
        default=Path("model_weights"),
        metavar="DIR",
        help="for DIR/<recipe>/epoch_0.pth and so on, and DIR/best.pth (default: model_weights)",
    )
    add(
        "--init",
        metavar="PTH",
        help="start a new run from these weights: a .pth, shipped, imagenet, or none (default: the "
        "recipe's)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on after the last complete epoch in --output; where there is none, begin",
    )
    add("--epochs", type=positive, metavar="N", help="how many (default: the recipe's)")
    add("--batch-size", type=positive, metavar="N", help="pictures a step (default: the recipe's)")
    add("--learning-rate", type=_rate, metavar="R", help="the largest (default: the recipe's)")
    add("--size", type=_size, metavar="HxW", help="of the net's input, such as 96x96")
    add("--seed", type=int, default=0, metavar="N", help="of random numbers (default: 0)")
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--workers", type=_count, metavar="N", help="processes that read (default: none on a CPU)")
    add("--float32", action="store_true", help="never calculate in 16 bits (again with --resume)")
    add("--quiet", action="store_true", help="say nothing but errors and files left out")
    options = parser.parse_args(arguments)
    if options.resume and options.init:
        parser.error(
            "--init starts a new run from weights and --resume goes on with an old one: "
            "give one of them"
        )
    return options


def main(arguments: Sequence[str] | None = None, name: str = _NAME) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    rank = os.environ.get("RANK", "0")
    name = name if rank == "0" else f"{name} (process {rank})"
    sentence = "interrupted; what is complete is kept, and --resume goes on from it."
    return run_command(name, lambda: run(options), sentence)


def run(options: argparse.Namespace) -> int:
    """Train and show a line for each epoch."""
    # Imported late: --help and mistakes answer without torch.
    with first_imports():
        from face_gender.data.index import Index
        from face_gender.train.loop import train

    raise_on_first_signal()  # from here on, a training may be there to go on with
    with warnings_as_lines():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # --workers is the user's
        for report in train(
            choose_recipe(options),
            Index.open(options.index, options.data),
            options.output,
            seed=options.seed,
            device=options.device,
            workers=options.workers,
            mixed=not options.float32,
            resume=options.resume,
            progress=not options.quiet,
        ):
            if not options.quiet and os.environ.get("RANK", "0") == "0":
                print_stdout(in_a_line(report))
    return 0


def choose_recipe(options: argparse.Namespace) -> Recipe | str:
    """Return the recipe with what the options change, on --resume that of the earlier run.

    Its name alone where nothing is changed: `train` then takes it from where it belongs. Raises
    InputError for a change that contradicts the rest of the recipe.
    """
    from face_gender.model.recipes import get_recipe
    from face_gender.train.run_folder import RunFolder

    given = {name: getattr(options, name) for name in _CHANGES}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not changes and not options.size:
        return str(options.recipe)
    found = RunFolder(options.output, options.recipe).load() if options.resume else None
    recipe = found[0].recipe if found else get_recipe(options.recipe)
    try:
        if options.size:
            height, width = options.size
            changes["preprocessing"] = replace(recipe.preprocessing, height=height, width=width)
        return replace(recipe, **changes)
    except ValueError as error:
        raise InputError(str(error)) from error


def in_a_line(report: EpochReport) -> str:
    """Return an epoch's figures as text."""
    recall = ", ".join(f"{name} {value:.4f}" for name, value in report.val_recall.items())
    return (
        f"epoch {report.epoch}: train loss {report.train_loss:.4f}, val loss "
        f"{report.val_loss:.4f}, val accuracy {report.val_accuracy:.4f} (recall {recall}), "
        f"{report.seconds:.1f} s{', best so far' if report.is_best else ''}"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text}")
    return int(text)


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be height x width such as 96x96, not {text}")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    exit_with(main())
