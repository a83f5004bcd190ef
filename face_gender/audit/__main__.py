"""Find what is wrong with a data set: python -m face_gender.audit DATA"""

from __future__ import annotations

from face_gender.console import (
    exit_on_signal,
    exit_with,
    given_path,
    print_stdout,
    raise_on_first_signal,
    run_command,
    usage_name,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.audit: interrupted, nothing was written.")

import argparse
from collections.abc import Sequence
from pathlib import Path

from face_gender import RECIPE_NAMES
from face_gender.errors import InputError, first_line

_NAME = "face_gender.audit"
_NEEDED = ("cleanlab", "cleanvision", "faiss", "scipy", "sklearn")


def parse(arguments: Sequence[str] | None, name: str = _NAME) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Find duplicates, wrong labels, pictures of no face and bad pictures.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 130 or 143 interrupted",
    )
    add = parser.add_argument
    add(
        "data",
        type=given_path,
        metavar="INDEX_OR_DATA",
        help="an index (CSV), a folder that holds male/ and female/, or a .zip of one",
    )
    add(
        "--weights",
        type=given_path,
        action="append",
        default=[],
        metavar="PTH",
        help="a checkpoint in whose embeddings pictures are judged; may be given several times "
        "(default: model_weights/shipped.pth)",
    )
    add(
        "--recipe",
        choices=RECIPE_NAMES,
        help="train this recipe in folds on the data itself and judge labels by these nets instead",
    )
    add("--output", type=given_path, default=Path("audit"), metavar="DIR", help="default: audit/")
    add(
        "--data",
        type=given_path,
        dest="pictures",
        metavar="DATA",
        help="where an index's pictures lie (default: beside the index)",
    )
    add(
        "--apply",
        action="store_true",
        help="write index_clean.csv, without the pictures of findings of at least --score",
    )
    add(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="least score for which --apply leaves a picture out, above 0, to 1 (default: 0.5)",
    )
    add("--folds", type=int, default=5, metavar="K", help="default: 5")
    add("--seed", type=int, default=0, help="of folds and split (default: 0)")
    add("--jobs", type=int, metavar="N", help="processors to use (default: all)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, name: str = _NAME) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    sentence = "interrupted; the same command goes on after the last finished stage."
    return run_command(name, lambda: run(options), sentence)


def run(options: argparse.Namespace) -> None:
    """Audit the data set and print what was found. Raises InputError for a missing library."""
    try:
        # Imported late: --help and mistakes answer without torch.
        from face_gender.audit.run import audit

        raise_on_first_signal()  # from here on, there are files to put away
        report = audit(
            options.data,
            options.output,
            options.weights,
            data=options.pictures,
            recipe=options.recipe,
            apply=options.apply,
            score=options.score,
            folds=options.folds,
            seed=options.seed,
            jobs=options.jobs,
        )
    except ImportError as error:
        name = (error.name or "").split(".")[0]
        if name not in _NEEDED:
            raise
        raise InputError(
            f"{name} cannot be used ({first_line(error)}): pip install -r requirements-audit.txt"
        ) from error
    print_stdout(report.summary())


if __name__ == "__main__":
    exit_with(main())
