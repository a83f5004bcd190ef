"""Classify a folder of face pictures: python process.py FOLDER"""

from __future__ import annotations

from face_gender.console import (
    exit_code,
    exit_on_signal,
    exit_with,
    ignore_signals,
    raise_on_first_signal,
    run_command,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.classify: interrupted, nothing was written.")

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from face_gender import RECIPE_NAMES
from face_gender.classify.engines import ENGINES, check_engine
from face_gender.classify.resume import Journal
from face_gender.console import (
    Stderr,
    device,
    not_empty,
    positive,
    print_stderr,
    probability,
)
from face_gender.data.sources import Source, find_images
from face_gender.errors import InputError
from face_gender.files import check_output

if TYPE_CHECKING:
    from face_gender.classify.classifier import Classifier
    from face_gender.classify.results import Prediction, Skipped

KIT = Path(__file__).resolve().parents[2]
OWN_WEIGHTS = KIT / "model_weights" / "best.pth"
SHIPPED_WEIGHTS = KIT / "model_weights" / "shipped.pth"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description="Label every face picture in a folder male or female.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 3 files skipped (with --strict), "
        "130 and 143 interrupted by Ctrl-C and by SIGTERM (what was answered is written)",
    )
    add = parser.add_argument
    add("folder", type=_folder, metavar="FOLDER", help="folder of pictures, or a .zip of one")
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
        help="a checkpoint (default: model_weights/best.pth, else model_weights/shipped.pth)",
    )
    add("--recipe", choices=RECIPE_NAMES, help="the net of a --weights that is a plain state_dict")
    add(
        "--classes",
        type=_classes,
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
        help="answer 'uncertain' where the probability is below P (0 to 1)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on where an interrupted run ended: its answers are in FILE.partial",
    )
    add("--strict", action="store_true", help="exit with 3 when a file was skipped")
    add("--quiet", action="store_true", help="say nothing but errors and skipped files")
    options = parser.parse_args(arguments)
    if (options.recipe is None) != (options.classes is None):
        parser.error("--recipe and --classes go together, with --weights of a plain state_dict")
    if options.recipe and not options.weights:
        parser.error("--recipe and --classes need --weights: the kit's own files know both")
    return options


def main(arguments: Sequence[str] | None = None, name: str = "face_gender.classify") -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    sentence = "interrupted: the same command with --resume goes on."
    return run_command(name, lambda: run(options), sentence)


def run(options: argparse.Namespace) -> int:
    """Check everything that can be checked at once, then classify and write."""
    source, names = find_images(options.folder, options.recursive)
    options.weights = choose_weights(options.weights)
    ending = "csv" if options.format == "csv" else "json"
    options.output = options.output or Path(f"process_results.{ending}")
    check_output(options.output, [options.folder, options.weights])
    journal = Journal(options.output)
    if options.engine != "torch":
        check_engine(options.weights)
    # Imported here: --help and mistakes answer without torch.
    from face_gender.classify.classifier import load_classifier
    from face_gender.classify.results import Skipped

    classifier = load_classifier(
        options.weights, options.recipe, options.classes, options.device, engine=options.engine
    )
    if not options.quiet:
        print_stderr(f"weights: {options.weights} ({classifier.checkpoint.describe()})")
        print_stderr(load_in_words(options, classifier, len(names)))
    open_journal(options, classifier, source, names, journal)
    answers, stop = answer(options, classifier, source, names, journal)
    left = len(names) - len(answers)
    answers += [Skipped(name, reason) for name, reason in source.unlisted]
    return finish(options, classifier, journal, answers, left, stop)


def open_journal(
    options: argparse.Namespace,
    classifier: Classifier,
    source: Source,
    names: list[str],
    journal: Journal,
) -> None:
    """Begin it, or read what an interrupted run left."""
    from face_gender.classify.classifier import origin

    begun = origin(classifier, options.weights)
    if not options.resume:
        journal.begin(begun)
        return
    journal.resume(begun, source, names, len(classifier.checkpoint.classes))
    if not options.quiet:
        count = len(journal.known)
        print_stderr(
            f"{journal.path}: {count} answers" if count else f"{journal.path}: nothing to resume"
        )


def load_in_words(options: argparse.Namespace, classifier: Classifier, count: int) -> str:
    """Say what was chosen: device, precision, threads and batch."""
    from face_gender.classify.classifier import choose_load
    from face_gender.devices import in_bits

    device = classifier.device
    batch, threads = choose_load(device, count, options.batch_size, options.workers)
    how = "by openvino" if classifier.engine else f"in {in_bits(classifier.dtype)}"
    return f"on {device} {how}: {threads} threads, {batch} pictures each"


def answer(
    options: argparse.Namespace,
    classifier: Classifier,
    source: Source,
    names: list[str],
    journal: Journal,
) -> tuple[list[Prediction | Skipped], KeyboardInterrupt | None]:
    """Classify with a progress bar; return the answers, and what interrupted them."""
    from tqdm import tqdm

    from face_gender.classify.classifier import classify
    from face_gender.classify.results import Prediction

    classes = classifier.checkpoint.classes
    answers: list[Prediction | Skipped] = [
        Prediction(name, classes, scores) for name, scores in journal.known.items()
    ]
    stream = classify(classifier, source, names, options.batch_size, options.workers, journal)
    show = {"unit": "img", "disable": options.quiet, "file": Stderr()}
    try:
        raise_on_first_signal()  # from here on, there is something to keep
        with tqdm(total=len(names), initial=len(answers), **show) as bar:
            for each in stream:
                answers.append(each)
                bar.update()
        ignore_signals()  # what is left to do takes a moment
    except KeyboardInterrupt as error:
        with suppress(KeyboardInterrupt):
            stream.throw(error)  # which it does not know of if it was raised between two answers
        return answers, error
    return answers, None


def finish(
    options: argparse.Namespace,
    classifier: Classifier,
    journal: Journal,
    answers: list[Prediction | Skipped],
    left: int,
    stop: KeyboardInterrupt | None,
) -> int:
    """Write what was answered and say so; ``left``: pictures without an answer. Return the code."""
    from face_gender.classify.results import Prediction, Skipped, write_results

    predictions = [each for each in answers if isinstance(each, Prediction)]
    skipped = [each for each in answers if isinstance(each, Skipped)]
    for each in skipped:
        print_stderr(f"skipped: {each.name}: {each.reason}")
    if stop and left and not predictions:
        print_stderr("process.py: interrupted before the first answer, nothing was written.")
        return exit_code(stop)
    if not predictions:
        raise InputError(f"{options.folder} has no picture with an answer: all were skipped.")
    try:
        write_results(
            options.output,
            answers,
            classifier.checkpoint,
            options.format,
            options.threshold,
            options.weights.name,
            left,
        )
    except InputError as error:
        kept = f"{journal.path} keeps the answers for --resume"
        raise InputError(f"{str(error)[:-1]}; {kept}.") from error
    if stop and left:
        done = f"{len(predictions)} of {len(answers) + left} answers are in {options.output}"
        print_stderr(f"process.py: interrupted, {done}: --resume goes on.")
        return exit_code(stop)
    journal.remove()
    if not options.quiet:
        counts = Counter(each.label(options.threshold) for each in predictions)
        labels = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
        print_stderr(f"{options.output}: {labels}, {len(skipped)} skipped")
    return 3 if options.strict and skipped else 0


def choose_weights(given: Path | None) -> Path:
    """Return the file to load. Raises InputError where there is none."""
    candidates = [given] if given else [OWN_WEIGHTS, SHIPPED_WEIGHTS]
    for path in candidates:
        if path.exists():
            return path
    hint = "give the path of a .pth file" if given else "train with train.ipynb, or use --weights"
    raise InputError(f"{candidates[-1]} does not exist: {hint}.")


def _folder(text: str) -> Path:
    return Path(not_empty(text))  # Path("") would be the working directory


def _classes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise argparse.ArgumentTypeError("must be different names, such as female,male")
    return names


if __name__ == "__main__":
    exit_with(main())
