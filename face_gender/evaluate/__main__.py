"""Evaluate from the shell: python -m face_gender.evaluate WEIGHTS INDEX"""

from __future__ import annotations

from face_gender.console import (
    device,
    exit_on_signal,
    exit_with,
    first_imports,
    given_path,
    ignore_signals,
    not_empty,
    positive,
    print_stderr,
    print_stdout,
    run_command,
    usage_name,
    warnings_as_lines,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.evaluate: interrupted, nothing was written.")

import argparse
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_gender.data.base_source import without_resume
from face_gender.errors import InputError, UnreadablePictureWarning, printable
from face_gender.files import check_output, is_same_file, make_folder, sha256_of, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from face_gender.data.index import Index
    from face_gender.evaluate.report import Report
    from face_gender.model.checkpoint import Checkpoint


_NAME = "face_gender.evaluate"
_TABLES = ("figures.json", "predictions.csv")
_FIGURES = (
    "confusion_matrix.png", "reliability.png", "coverage.png", "mistakes.png",
    "mistakes_explained.png",
)  # fmt: skip
_ROBUSTNESS = "robustness.png"


def parse(arguments: Sequence[str] | None, name: str = _NAME) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Measure a model on the pictures of an index, with intervals, tables and "
        "figures.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 130 or 143 interrupted",
    )
    add = parser.add_argument
    add("weights", type=given_path, metavar="WEIGHTS", help="a checkpoint (.pth)")
    add("index", type=given_path, metavar="INDEX", help="the CSV that data_split.py wrote")
    add(
        "--data",
        type=given_path,
        metavar="DATA",
        help="where the pictures lie (default: beside INDEX)",
    )
    add(
        "--split",
        choices=("train", "val", "test", "all"),
        default="test",
        help="the rows of INDEX to predict; all needs no column split (default: test)",
    )
    add(
        "--output",
        type=given_path,
        default=Path("evaluation"),
        metavar="FOLDER",
        help="where to write (default: evaluation)",
    )
    add(
        "--by",
        type=not_empty,
        nargs="+",
        metavar="COLUMN",
        help="columns of INDEX; the figures are repeated for each of their values (default: its "
        "further columns of 2 to 20 values)",
    )
    add("--flip", action="store_true", help="predict the mean of each picture and its mirror image")
    add(
        "--robustness",
        action="store_true",
        help="predict again with pictures framed otherwise, blurred and scaled down (slow)",
    )
    add(
        "--allow-seen",
        action="store_true",
        help="also evaluate on pictures that the model was trained or chosen on",
    )
    add("--batch-size", type=positive, default=64, metavar="N", help="pictures (default: 64)")
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--quiet", action="store_true", help="say nothing but errors and files left out")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, name: str = _NAME) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    sentence = "interrupted before all was written: give the command again."
    return run_command(name, lambda: run(options), sentence)


@without_resume()
def run(options: argparse.Namespace) -> None:
    """Evaluate, print the figures and write them. Raises InputError for all that is wrong."""
    # Imported late: --help and mistakes answer without torch.
    with first_imports():
        from face_gender.data.index import Index
        from face_gender.model.checkpoint import read_checkpoint

    known = _digests(options)  # before any of them is read
    checkpoint = read_checkpoint(options.weights)
    index = Index.open(options.index, options.data)
    rows = index.split(None if options.split == "all" else options.split)
    columns = _columns(options, rows.table)
    _check_folder(options, index)
    with warnings_as_lines():
        warnings.simplefilter("ignore", UnreadablePictureWarning)  # they are told below
        report = _evaluate(options, known, checkpoint, rows, columns)
    for given, digest in _digests(options).items():
        if digest != known[given]:
            raise InputError(f"{given} was replaced while it was in use: give the command again.")
    for path, reason in report.result.skipped:
        print_stderr(f"left out: {path}: {reason}")
    drawn = _drawn(report, rows, checkpoint)
    ignore_signals()  # what is left to do takes a moment
    _write(options.output, report, drawn)
    if not options.quiet:
        written = f"written into {options.output}: {', '.join((*_TABLES, *drawn))}"
        print_stdout("\n".join(map(printable, (*report.lines(), "", written))))


def _digests(options: argparse.Namespace) -> dict[Path, str]:
    """Return the sha256 of what is read, "" where it is no file, which its reader will tell."""
    given = (options.weights, options.index)
    return {path: sha256_of(path) if path.is_file() else "" for path in given}


def _columns(options: argparse.Namespace, rows: pd.DataFrame) -> list[str]:
    """Return the columns to slice by. Raises InputError for one missing or of too many values."""
    from face_gender.evaluate.report import check_few_values, columns_to_slice

    if options.by is None:
        return columns_to_slice(rows)
    for name in options.by:
        if name not in rows:
            raise InputError(
                f"{options.index} has no column {name!r} for --by: it has {', '.join(rows)}."
            )
        check_few_values(rows, name)
    return list(dict.fromkeys(options.by))


def _check_folder(options: argparse.Namespace, index: Index) -> None:
    """Make the folder. Raises InputError where a file to write is one that is read."""
    make_folder(options.output)
    source = index.source
    for name in _TABLES:
        check_output(options.output / name, [options.index, options.weights, source.path])
    figures = {*_FIGURES, _ROBUSTNESS}
    for path in index.table["path"]:
        name = path.rsplit("/", 1)[-1]
        if name in figures and is_same_file(options.output / name, source.path / path):
            own = options.output / name
            raise InputError(f"{own} is a picture of the index: name another --output.")


def _evaluate(
    options: argparse.Namespace,
    digests: dict[Path, str],
    checkpoint: Checkpoint,
    rows: Index,
    columns: Sequence[str],
) -> Report:
    from face_gender.evaluate.predict import evaluate
    from face_gender.evaluate.report import Report, by_condition, by_value
    from face_gender.evaluate.robustness import AS_GIVEN, evaluate_conditions
    from face_gender.model.checkpoint import versions

    how: dict[str, Any] = {
        "allow_seen": options.allow_seen,
        "flip": options.flip,
        "device": options.device,
        "batch_size": options.batch_size,
        "progress": not options.quiet,
    }
    if options.robustness:
        tried = evaluate_conditions(options.weights, rows, None, **how)
        result = tried[AS_GIVEN]
    else:
        # By its path, which a leak is told with.
        tried, result = {}, evaluate(options.weights, rows, None, **how)
    facts = {
        "weights": options.weights.name,
        "weights_sha256": digests[options.weights],
        "index": options.index.name,
        "index_sha256": digests[options.index],
        "split": options.split,
        "flip": options.flip,
        "temperature": checkpoint.temperature,
        "versions": versions(),
    }
    return Report(
        facts,
        result,
        seen=rows.count_seen(checkpoint.seen_hashes) if options.allow_seen else 0,
        slices={column: by_value(result, rows.table, column) for column in columns},
        robustness=by_condition(tried, rows.table),
    )


def _drawn(report: Report, rows: Index, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return each figure as the bytes of a PNG, by the name of its file."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells where its cache lies
    from face_gender import plots

    plots.draw_for_files()
    figures = [
        plots.confusion_matrix(report.result),
        plots.reliability(report.result),
        plots.coverage(report.result),
        plots.mistakes(report.result, rows.source, most=18, columns=6),
        plots.explained_mistakes(report.result, rows, checkpoint),
    ]
    drawn = dict(zip(_FIGURES, figures, strict=True))
    if report.robustness:
        drawn[_ROBUSTNESS] = plots.robustness(report.robustness)
    return {name: plots.as_png(figure) for name, figure in drawn.items()}


def _write(folder: Path, report: Report, drawn: Mapping[str, bytes]) -> None:
    """Write all files, each atomically."""
    from face_gender.data.tables import write_index
    from face_gender.evaluate.report import predictions

    for name, data in drawn.items():
        write_atomically(folder / name, methodcaller("write", data))
    write_index(predictions(report.result), folder / "predictions.csv")
    text = json.dumps(report.figures(), indent=2, ensure_ascii=False, allow_nan=False)
    # A name that is not UTF-8 is escaped as JSON does it.
    data = f"{text}\n".encode("utf-8", "backslashreplace")
    write_atomically(folder / "figures.json", methodcaller("write", data))


if __name__ == "__main__":
    exit_with(main())
