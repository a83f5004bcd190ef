"""Make the index of a data set: python data_split.py DATA"""

from __future__ import annotations

from face_gender.console import (
    exit_on_signal,
    exit_with,
    given_path,
    print_stderr,
    print_stdout,
    raise_on_first_signal,
    run_command,
    usage_name,
    warnings_as_lines,
    without_library_messages,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.data: interrupted, nothing was written.")

import argparse
from collections.abc import Sequence


def parse(arguments: Sequence[str] | None, name: str = "face_gender.data") -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Index the pictures in male/ and female/ and split them once into train, "
        "val and test.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 130 or 143 interrupted",
    )
    parser.add_argument(
        "data",
        type=given_path,
        metavar="DATA",
        help="folder that holds male/ and female/ (or men/ and women/), its .zip archive, or a "
        "CSV of the paths and labels of the pictures beside it",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="CSV",
        help="where to write (default: index.csv inside a folder, beside a .zip or CSV)",
    )
    parser.add_argument(
        "--ratios",
        type=float,
        nargs=3,
        default=(70, 15, 15),
        metavar=("TRAIN", "VAL", "TEST"),
        help="percentages, or fractions of 1 (default: 70 15 15)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.add_argument(
        "--groups",
        type=given_path,
        metavar="CSV",
        help="columns path,group: pictures of one group (a person) stay in one split",
    )
    parser.add_argument(
        "--align",
        choices=("auto", "never"),
        default="auto",
        help="auto: find the face of each picture and keep its landmarks, if OpenCV is installed; "
        "never: look for no faces (default: auto)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing CSV")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, name: str = "face_gender.data") -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    return run_command(name, lambda: run(options))


@without_library_messages()
def run(options: argparse.Namespace) -> None:
    """Write the index and say what is in it and what was left out."""
    # Imported late: --help and mistakes answer without pandas.
    from face_gender.data.index import Index
    from face_gender.data.scan import taken_in_words

    raise_on_first_signal()  # from here on, there are files to put away
    with warnings_as_lines():
        index = Index.create(
            options.data,
            options.output,
            options.ratios,
            options.seed,
            options.groups,
            options.force,
            landmarks=None if options.align == "auto" else False,
        )
    assert index.report is not None
    for path, reason in index.report.unreadable:
        print_stderr(f"left out: {path}: {reason}")
    for paths in index.report.contradictions:
        print_stderr(f"left out, same bytes under both labels: {', '.join(paths)}")
    print_stdout(index.summary())
    label_of = dict(zip(index.table["path"], index.table["label"], strict=True))
    if note := taken_in_words(label_of, index.source):
        print_stdout(note)


if __name__ == "__main__":
    exit_with(main())
