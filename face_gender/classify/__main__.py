"""Classify face pictures: python process.py FOLDER"""

from __future__ import annotations

from face_gender.console import (
    exit_code,
    exit_on_signal,
    exit_with,
    ignore_signals,
    raise_on_first_signal,
    run_command,
    usage_name,
    without_library_messages,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.classify: interrupted, nothing was written.")

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from face_gender import RECIPE_NAMES
from face_gender.classify.engines import ENGINES, check_engine
from face_gender.classify.resume import keep_results, partial_path, read_partial, remove_partial
from face_gender.console import (
    Stderr,
    class_names,
    device,
    not_empty,
    positive,
    print_stderr,
    probability,
)
from face_gender.data.sources import Source, find_images, passed_over_in_words
from face_gender.errors import InputError
from face_gender.files import check_output, make_folder
from face_gender.model.weights import find_weights

if TYPE_CHECKING:
    from face_gender.classify.classifier import Classifier
    from face_gender.classify.results import Result

_NAME = "face_gender.classify"
_CROP_SIZE = 224  # pixels


def parse(arguments: Sequence[str] | None, name: str = _NAME) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Label every face picture male or female.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 3 files skipped (with --strict), "
        "130 and 143 interrupted by Ctrl-C and by SIGTERM (what was predicted is written)",
    )
    add = parser.add_argument
    add(
        "pictures",
        type=_path,
        nargs="+",
        metavar="FOLDER",
        help="folder of pictures, a .zip of one, or a picture; several may be given",
    )
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: process_results.json, or .csv, in the working directory)",
    )
    add(
        "--weights",
        type=Path,
        metavar="PTH",
        help="a checkpoint (default: model_weights/best.pth, else the shipped weights)",
    )
    add("--recipe", choices=RECIPE_NAMES, help="the net of a --weights that is a plain state_dict")
    add(
        "--classes",
        type=class_names,
        metavar="A,B",
        help="the classes of such a state_dict, in the order of its outputs",
    )
    add(
        "--format",
        choices=("flat", "full", "csv"),
        default="flat",
        help="labels alone, with probabilities and skipped files, or a table (default: flat)",
    )
    add("--recursive", action="store_true", help="subfolders too; names are relative paths")
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
    add("--crops", type=Path, metavar="DIR", help="also write the aligned faces, a folder a label")
    add("--batch-size", type=positive, metavar="N", help="pictures at a time (default: chosen)")
    add(
        "--device",
        type=device,
        default="auto",
        help="auto, cpu, cuda, cuda:1, mps (default: auto)",
    )
    add(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="what runs the net: openvino is faster on a CPU and takes the .onnx beside the "
        "weights, which python -m face_gender.export writes (default: torch)",
    )
    add("--workers", type=positive, metavar="N", help="threads (default: all processors)")
    add(
        "--threshold",
        type=probability,
        default=0.0,
        metavar="P",
        help="label 'uncertain' where the probability is below P (0 to 1)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on where an interrupted run ended: its predictions are in FILE.partial",
    )
    add("--strict", action="store_true", help="exit with 3 when a file was skipped")
    add("--quiet", action="store_true", help="say nothing but errors and skipped files")
    options = parser.parse_args(arguments)
    if options.align == "never" and (options.faces == "all" or options.crops):
        parser.error("--faces all and --crops need faces to be found: leave --align never out")
    if (options.recipe is None) != (options.classes is None):
        parser.error("--recipe and --classes go together, with --weights of a plain state_dict")
    if options.recipe and not options.weights:
        parser.error("--recipe and --classes need --weights: the kit's own files know both")
    return options


def main(arguments: Sequence[str] | None = None, name: str = _NAME) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    sentence = "interrupted: the same command with --resume goes on."
    return run_command(name, lambda: run(options, name), sentence)


def run(options: argparse.Namespace, name: str) -> int:
    """Check everything that can be checked at once, then classify and report."""
    source, names = find_images(options.pictures, options.recursive)
    options.weights = find_weights(options.weights)
    ending = "csv" if options.format == "csv" else "json"
    options.output = options.output or Path(f"process_results.{ending}")
    check_output(options.output, [*options.pictures, options.weights])
    if options.crops:
        check_crops(options)
    partial = partial_path(options.output)
    if options.engine != "torch":
        check_engine(options.weights)
    # Imported here: --help and mistakes are answered without torch.
    from face_gender.classify.classifier import load_classifier

    classifier = load_classifier(
        options.weights,
        options.recipe,
        options.classes,
        options.device,
        engine=options.engine,
        align=options.align,
        faces=options.faces,
        crop_size=_CROP_SIZE if options.crops else 0,
    )
    outcome = classify_folder(options, classifier, source, names, partial)
    return report(options, classifier, source, outcome, partial, name)


@dataclass(frozen=True)
class Outcome:
    """What became of the pictures: ``left`` of them have no result, as ``stop`` came first."""

    results: list[Result]
    left: int
    stop: KeyboardInterrupt | None


def classify_folder(
    options: argparse.Namespace,
    classifier: Classifier,
    source: Source,
    names: list[str],
    partial: Path,
) -> Outcome:
    """Classify with a progress bar, keeping each prediction in ``partial`` as it comes."""
    from tqdm import tqdm

    from face_gender.classify.classifier import choose_load, classify, origin
    from face_gender.classify.results import Skipped

    load = choose_load(classifier.device, len(names), options.batch_size, options.workers)
    announce(options, classifier, load)
    by = origin(classifier, options.weights)
    known = read_partial(partial, by, source, names) if options.resume else {}
    if options.resume and not options.quiet:
        found = f"{len(known)} predictions" if known else "nothing to resume"
        print_stderr(f"{partial}: {found}")
    stream = keep_results(
        partial, by, source, names, known, lambda rest: classify(classifier, source, rest, *load)
    )
    results: list[Result] = []
    stop = None
    try:
        raise_on_first_signal()  # from here on, there is something to keep
        show = {"unit": "img", "disable": options.quiet, "file": Stderr()}
        with without_library_messages(), tqdm(total=len(names), **show) as bar:
            for result in stream:
                results.append(keep_crops(options, result))
                bar.update()
        ignore_signals()  # what is left to do takes a moment
    except KeyboardInterrupt as error:
        stop = error
        with suppress(KeyboardInterrupt):
            stream.throw(error)  # which it does not know of if it was raised between two results
    left = len(names) - len(results)
    return Outcome(results + [Skipped(*each) for each in source.unlisted], left, stop)


def check_crops(options: argparse.Namespace) -> None:
    """Make the folder of ``--crops``. Raises InputError for one among the pictures themselves."""
    make_folder(options.crops, "--crops")
    for given in options.pictures:
        if given.is_dir() and options.crops.resolve().is_relative_to(given.resolve()):
            raise InputError(
                f"{options.crops} lies in {given}, whose pictures are only read: name a folder "
                "elsewhere with --crops."
            )


def keep_crops(options: argparse.Namespace, result: Result) -> Result:
    """Write the faces of a result where ``--crops`` says; return it without their pixels."""
    from face_gender.classify.crops import without_crops, write_crops

    if not options.crops:
        return result
    write_crops(options.crops, result, options.threshold)
    return without_crops(result)


def announce(options: argparse.Namespace, classifier: Classifier, load: tuple[int, int]) -> None:
    """Say what was chosen: weights, device, precision, threads and batch."""
    from face_gender.devices import in_bits

    if options.quiet:
        return
    print_stderr(f"weights: {options.weights} ({classifier.checkpoint.describe()})")
    how = "by openvino" if classifier.engine else f"in {in_bits(classifier.dtype)}"
    batch, threads = load
    print_stderr(f"on {classifier.device} {how}: {threads} threads, {batch} pictures each")


def report(
    options: argparse.Namespace,
    classifier: Classifier,
    source: Source,
    outcome: Outcome,
    partial: Path,
    name: str,
) -> int:
    """Write what was predicted and say so; return the exit code."""
    from face_gender.classify.results import Prediction, Skipped, write_results

    results, left = outcome.results, outcome.left
    predictions = [each for each in results if isinstance(each, Prediction)]
    skipped = [each for each in results if isinstance(each, Skipped)]
    for each in skipped:
        print_stderr(f"skipped: {each.name}: {each.reason}")
    interrupted = outcome.stop if left else None
    if interrupted and not predictions:
        print_stderr(f"{name}: interrupted before the first prediction, nothing was written.")
        return exit_code(interrupted)
    if not predictions:
        given = ", ".join(str(path) for path in options.pictures[:3])
        raise InputError(f"{given}: no picture can be read, all were skipped.")
    form, threshold, weights = options.format, options.threshold, options.weights.name
    try:
        write_results(
            options.output,
            results,
            classifier.checkpoint,
            form,
            threshold,
            weights,
            left,
            options.faces == "all",
        )
    except InputError as error:
        kept = f"{partial} keeps the predictions for --resume"
        raise InputError(f"{str(error)[:-1]}; {kept}.") from error
    if interrupted:
        done = f"{len(predictions)} of {len(results) + left} predictions are in {options.output}"
        print_stderr(f"{name}: interrupted, {done}: --resume goes on.")
        return exit_code(interrupted)
    remove_partial(partial)
    if not options.quiet:
        every = [face for each in predictions for face in each.faces]
        counted = every if options.faces == "all" else predictions
        counts = Counter(each.label(threshold) for each in counted)
        labels = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
        print_stderr(f"{options.output}: {labels}, {len(skipped)} skipped")
        if passed_over := passed_over_in_words(source.passed_over):
            print_stderr(passed_over)
    return 3 if options.strict and skipped else 0


def _path(text: str) -> Path:
    return Path(not_empty(text))  # Path("") would be the working directory


if __name__ == "__main__":
    exit_with(main())
