"""Classify a folder of face pictures: python process.py FOLDER"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from face_gender import RECIPE_NAMES
from face_gender.files import InputError, Source, check_writable, find_images

if TYPE_CHECKING:
    from face_gender.inference import Classifier, Prediction, Skipped

KIT = Path(__file__).resolve().parent
OWN_WEIGHTS = KIT / "model_weights" / "best.pth"
SHIPPED_WEIGHTS = KIT / "model_weights" / "shipped.pth"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description="Label every face picture in a folder male or female.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 3 files skipped (with --strict)",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder of pictures, or a .zip of one")
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
    add("--batch-size", type=_positive, default=32, metavar="N", help="pictures at a time (32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--workers", type=_positive, metavar="N", help="threads that read pictures")
    add(
        "--threshold",
        type=_probability,
        default=0.0,
        metavar="P",
        help="answer 'uncertain' where the probability is below P (0 to 1)",
    )
    add("--strict", action="store_true", help="exit with 3 when a file was skipped")
    add("--quiet", action="store_true", help="say nothing but errors and skipped files")
    options = parser.parse_args(arguments)
    if (options.recipe is None) != (options.classes is None):
        parser.error("--recipe and --classes go together, with --weights of a plain state_dict")
    if options.recipe and not options.weights:
        parser.error("--recipe and --classes need --weights: the kit's own files know both")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    try:
        return run(options)
    except InputError as error:
        print(f"process.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("process.py: interrupted, nothing was written.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Check everything that can be checked at once, then classify and write."""
    source, names = find_images(options.folder, options.recursive)
    weights = choose_weights(options.weights)
    output = options.output or Path(
        f"process_results.{'csv' if options.format == 'csv' else 'json'}"
    )
    check_writable(output)
    # Imported here: --help and mistakes answer without torch.
    from face_gender.inference import Prediction, Skipped, load_classifier, write_results

    classifier = load_classifier(weights, options.recipe, options.classes, options.device)
    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr))
    say(f"weights: {weights} ({classifier.checkpoint.describe()})")
    answers = answer(options, classifier, source, names)
    skipped = sum(isinstance(each, Skipped) for each in answers)
    if skipped == len(answers):
        raise InputError(f"{options.folder} holds no readable image: all {skipped} were skipped.")
    write_results(
        output, answers, classifier.checkpoint, options.format, options.threshold, weights.name
    )
    labels = Counter(
        each.label(options.threshold) for each in answers if isinstance(each, Prediction)
    )
    counts = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
    say(f"{output}: {counts}, {skipped} skipped")
    return 3 if options.strict and skipped else 0


def answer(
    options: argparse.Namespace, classifier: Classifier, source: Source, names: list[str]
) -> list[Prediction | Skipped]:
    """Classify with a progress bar, naming each skipped file as it comes."""
    from tqdm import tqdm

    from face_gender.inference import Skipped, classify

    found: list[Prediction | Skipped] = []
    stream = classify(classifier, source, names, options.batch_size, options.workers)
    with tqdm(stream, total=len(names), unit="img", disable=options.quiet) as bar:
        for each in bar:
            found.append(each)
            if isinstance(each, Skipped):
                bar.write(f"skipped: {each.name}: {each.reason}", file=sys.stderr)
    return found


def choose_weights(given: Path | None) -> Path:
    """Return the file to load. Raises InputError where there is none."""
    candidates = [given] if given else [OWN_WEIGHTS, SHIPPED_WEIGHTS]
    for path in candidates:
        if path.is_file():
            return path
    hint = "give the path of a .pth file" if given else "train with train.ipynb, or use --weights"
    raise InputError(f"{candidates[-1]} does not exist: {hint}.")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def _probability(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return number


def _classes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise argparse.ArgumentTypeError("must be different names, such as female,male")
    return names


if __name__ == "__main__":
    sys.exit(main())
