"""Write a checkpoint as .onnx for --engine: python -m face_gender.export WEIGHTS"""

from __future__ import annotations

from face_gender.console import (
    class_names,
    exit_on_signal,
    exit_with,
    given_path,
    positive,
    print_stderr,
    run_command,
    usage_name,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.export: interrupted, nothing was written.")

import argparse
from collections.abc import Sequence

from face_gender import RECIPE_NAMES
from face_gender.classify.engines import check_libraries, graph_path
from face_gender.export.graph import export

_NAME = "face_gender.export"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def parse(arguments: Sequence[str] | None, name: str = _NAME) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Write the net of a .pth as .onnx, which process.py can run by OpenVINO.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 130 or 143 interrupted",
    )
    add = parser.add_argument
    add("weights", type=given_path, metavar="WEIGHTS", help="a checkpoint (.pth)")
    add(
        "--calibrate",
        type=given_path,
        metavar="DATA",
        help="folder or .zip of pictures like those to be labelled (subfolders too), on which 8 "
        "bits are fitted (default: float32, which is slower)",
    )
    add("--pictures", type=positive, default=300, metavar="N", help="how many (default: 300)")
    add(
        "--output",
        type=given_path,
        metavar="ONNX",
        help="where to write (default: beside WEIGHTS, where process.py looks for it)",
    )
    add("--recipe", choices=RECIPE_NAMES, help="the net of a WEIGHTS that is a plain state_dict")
    add(
        "--classes",
        type=class_names,
        metavar="A,B",
        help="the classes of such a state_dict, in the order of its outputs",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, name: str = _NAME) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    return run_command(name, lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Write the graph and say where it is."""
    check_libraries(_NEEDED)
    output = options.output or graph_path(options.weights)
    export(
        options.weights,
        output,
        options.calibrate,
        options.pictures,
        recipe=options.recipe,
        classes=options.classes,
    )
    print_stderr(f"{output}: {'int8' if options.calibrate else 'float32'}")


if __name__ == "__main__":
    exit_with(main())
