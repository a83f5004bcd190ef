"""The options of `process.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from face_gender import RECIPE_NAMES
from face_gender.console import (
    class_names,
    device,
    given_path,
    positive,
    probability,
    usage_name,
)


def parse(arguments: Sequence[str] | None, name: str) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Label every face picture male or female.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 3 files skipped (with --strict), "
        "130 and 143 interrupted by Ctrl-C and by SIGTERM (what was predicted is "
        "written, or kept for --resume)",
    )
    parser.add_argument(
        "pictures",
        type=given_path,
        nargs="+",
        metavar="FOLDER",
        help="folder of pictures, a .zip of one, or a picture; several may be given",
    )
    _add_results(parser.add_argument)
    _add_faces(parser.add_argument)
    _add_net(parser.add_argument)
    _add_behaviour(parser.add_argument)
    options = parser.parse_args(arguments)
    if options.align == "never" and (options.faces == "all" or options.crops):
        parser.error("--faces all and --crops need faces to be found: leave --align never out")
    if options.explain and not options.html:
        parser.error("--explain draws on the page of --html: name one")
    if (options.recipe is None) != (options.classes is None):
        parser.error("--recipe and --classes go together, with --weights of a plain state_dict")
    if options.recipe and not options.weights:
        parser.error("--recipe and --classes need --weights: the kit's own files know both")
    return options


def _add_results(add: Callable[..., object]) -> None:
    add(
        "--output",
        type=given_path,
        metavar="FILE",
        help="where to write (default: process_results.json, or .csv, in the working directory)",
    )
    add(
        "--format",
        choices=("flat", "full", "csv"),
        default="flat",
        help="labels alone, with probabilities and skipped files, or a table (default: flat)",
    )
    add(
        "--html",
        type=given_path,
        metavar="FILE",
        help="also write a page to look through the predictions and correct them",
    )
    add(
        "--explain",
        action="store_true",
        help="on that page, mark the parts that spoke for the label in the 200 least certain faces",
    )
    add(
        "--crops",
        type=given_path,
        metavar="DIR",
        help="also write the aligned faces, into a folder for each label",
    )
    add_threshold(add)


def add_threshold(add: Callable[..., object]) -> None:
    """Add the option that asks for a least probability."""
    add(
        "--threshold",
        type=probability,
        default=0.0,
        metavar="P",
        help="label 'uncertain' where the probability is below P (0 to 1)",
    )


def _add_faces(add: Callable[..., object]) -> None:
    add(
        "--faces",
        choices=("one", "all"),
        default="one",
        help="label the most prominent face of a picture, or every one (default: one)",
    )
    add(
        "--align",
        choices=("auto", "never"),
        default="auto",
        help="never: label whole pictures, without looking for faces (default: auto)",
    )
    add("--recursive", action="store_true", help="subfolders too; names are relative paths")


def _add_net(add: Callable[..., object]) -> None:
    add(
        "--weights",
        type=given_path,
        metavar="PTH",
        help="a checkpoint (default: model_weights/best.pth, else the shipped weights)",
    )
    add("--recipe", choices=RECIPE_NAMES, help="the net of a --weights that is a plain state_dict")
    add(
        "--classes",
        type=class_names,
        metavar="A,B",
        help="the classes of such a state_dict, in the order of its outputs, such as female,male",
    )
    add(
        "--device",
        type=device,
        default="auto",
        help="auto, cpu, cuda, cuda:1, mps (default: auto)",
    )
    add(
        "--engine",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="what runs the net: openvino takes the .onnx beside the weights, which python -m "
        "face_gender.export writes; auto runs many pictures in 8 bits by openvino where it is "
        "installed and that is faster, else torch (default: auto)",
    )
    add(
        "--batch-size",
        type=positive,
        metavar="N",
        help="most pictures that a thread takes at a time (default: by device and engine)",
    )
    add(
        "--workers",
        type=positive,
        metavar="N",
        help="threads that read pictures and, on a CPU, run the net (default: one for each "
        "processor)",
    )


def _add_behaviour(add: Callable[..., object]) -> None:
    add(
        "--resume",
        action="store_true",
        help="go on where an interrupted run ended: its predictions are in FILE.partial",
    )
    add("--strict", action="store_true", help="exit with 3 when a file was skipped")
    add("--quiet", action="store_true", help="say nothing but errors and skipped files")
