"""Classify face pictures: python process.py FOLDER"""

from __future__ import annotations

from face_gender.console import (
    exit_code,
    exit_on_signal,
    exit_with,
    first_imports,
    print_stderr,
    progress_bar,
    raise_on_first_signal,
    run_command,
    without_library_messages,
)

if __name__ == "__main__":  # before all imports that take a while
    exit_on_signal("face_gender.classify: interrupted, nothing was written.")

import argparse
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_gender.classify.engines import check_engine
from face_gender.classify.options import parse
from face_gender.classify.resume import (
    begun_by,
    keep_results,
    partial_path,
    read_partial,
    remove_partial,
)
from face_gender.data.sources import Source, find_images, passed_over_in_words
from face_gender.errors import InputError
from face_gender.files import check_output, is_same_file, make_folder
from face_gender.model.weights import find_weights

if TYPE_CHECKING:
    from face_gender.classify.classifier import Classifier
    from face_gender.classify.results import Prediction, Result, Skipped

_NAME = "face_gender.classify"
_CROP_SIZE = 224  # pixels
_NO_FACE = "no face was found"


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
    partial = partial_path(options.output)
    written = [options.output, partial]
    if options.html:
        check_output(options.html, [*options.pictures, options.weights, *written])
        written.append(options.html)
    if options.crops:
        check_crops(options)
        if any(is_same_file(options.crops, each) for each in written):
            raise InputError(f"{options.crops} would be a file too: name another with --crops.")
        make_folder(options.crops, "--crops")
    if options.engine == "openvino":
        check_engine(options.weights)
    begun = begun_by(partial) if options.resume else {}
    try:
        classifier = load(options, source, names, begun)
    except KeyboardInterrupt as error:  # while an 8-bit graph was written
        if options.resume:
            raise
        print_stderr(f"{name}: interrupted, nothing was written.")
        return exit_code(error)
    outcome = classify_folder(options, classifier, source, names, partial)
    return report(options, classifier, source, outcome, partial, name)


def load(
    options: argparse.Namespace, source: Source, names: list[str], begun: Mapping[str, Any]
) -> Classifier:
    """Open the net and its engine; ``begun``: what predicted in a run that is gone on with."""
    # Imported here: --help and mistakes are answered without torch.
    with first_imports():
        from face_gender.classify.classifier import load_classifier
        from face_gender.classify.results import UNCERTAIN

    classifier = load_classifier(
        options.weights,
        options.recipe,
        options.classes,
        options.device,
        engine="openvino" if options.engine == "openvino" else "torch",
        align=options.align,
        faces=options.faces,
        crop_size=_CROP_SIZE if options.crops else 0,
    )
    if options.crops:
        check_crops(options, [*classifier.checkpoint.classes, UNCERTAIN])
    if options.engine != "auto":
        return classifier
    from face_gender.export.auto import with_graph

    say = (lambda _: None) if options.quiet else print_stderr
    with without_library_messages():  # it reads some of the pictures
        return with_graph(classifier, options.weights, source, names, begun, say)


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
    from face_gender.classify.classifier import choose_load, classify, origin
    from face_gender.classify.results import Skipped

    load = choose_load(classifier, len(names), options.batch_size, options.workers)
    announce(options, classifier, load)
    by = origin(classifier, options.weights)
    if options.crops:  # of which those of kept predictions are there already
        by |= {"crops": str(options.crops.resolve()), "threshold": options.threshold}
    known = read_partial(partial, by, source, names) if options.resume else {}
    if options.resume and not options.quiet:
        found = f"{len(known)} predictions" if known else "nothing to resume"
        print_stderr(f"{partial}: {found}")

    def classified(rest: Iterator[str]) -> Generator[Result, None, None]:
        return with_crops(options, classify(classifier, source, rest, *load))

    stream = keep_results(partial, by, source, names, known, classified)
    results: list[Result] = []
    stop = None
    try:
        raise_on_first_signal()  # from here on, there is something to keep
        bar = progress_bar(len(names), "classify", shown=not options.quiet)
        with without_library_messages(), bar:
            for result in stream:
                results.append(result)
                bar.update()
    except KeyboardInterrupt as error:
        stop = error
        with suppress(KeyboardInterrupt):
            stream.throw(error)  # which it does not know of if it was raised between two results
    left = len(names) - len(results)
    return Outcome(results + [Skipped(*each) for each in source.unlisted], left, stop)


def check_crops(options: argparse.Namespace, labels: Iterable[str] = ("",)) -> None:
    """Raise InputError where the crops of a label would lie among the pictures themselves."""
    folders = [options.crops / label for label in labels]
    for given, folder in product(filter(Path.is_dir, options.pictures), folders):
        if folder.resolve().is_relative_to(given.resolve()):
            raise InputError(
                f"{folder} lies in {given}, whose pictures are only read: name a folder "
                "elsewhere with --crops."
            )


def with_crops(
    options: argparse.Namespace, stream: Generator[Result, None, None]
) -> Generator[Result, None, None]:
    """Write the faces of each result where ``--crops`` says; yield it without their pixels."""
    from face_gender.classify.crops import without_crops, write_crops

    with closing(stream):
        for result in stream:
            if options.crops:
                write_crops(options.crops, result, options.threshold)
                result = without_crops(result)
            yield result


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
        raise InputError(f"{given}: no picture can be read, for the reasons above: give others.")
    how = options.format, options.threshold, options.weights.name, left, options.faces == "all"
    try:
        write_results(options.output, results, classifier.checkpoint, *how)
    except InputError as error:
        kept = f"{partial} keeps the predictions for --resume"
        raise InputError(f"{str(error)[:-1]}; {kept}.") from error
    if interrupted:
        done = f"{len(predictions)} of {len(results) + left} predictions are in {options.output}"
        print_stderr(f"{name}: interrupted, {done}: --resume goes on.")
        return exit_code(interrupted)
    if options.html:
        written = f"{options.output} is written, {options.html} is not: --resume makes it"
        try:
            write_html(options, classifier, source, predictions, skipped)
        except KeyboardInterrupt as error:
            print_stderr(f"{name}: interrupted, {written}.")
            return exit_code(error)
        except InputError as error:
            raise InputError(f"{str(error)[:-1]}; {written}.") from error
    remove_partial(partial)
    if not options.quiet:
        summarise(options, source, predictions, len(skipped))
    return 3 if options.strict and skipped else 0


def write_html(
    options: argparse.Namespace,
    classifier: Classifier,
    source: Source,
    predictions: list[Prediction],
    skipped: list[Skipped],
) -> None:
    """Write the page of ``--html``."""
    from face_gender.classify.page import explain_doubtful, write_page
    from face_gender.classify.results import Skipped

    faces = [face for each in predictions for face in (each, *each.others)]
    if options.faces == "all":  # a picture without one has no label
        faces = [face for each in predictions for face in each.faces]
        skipped = skipped + [Skipped(each.name, _NO_FACE) for each in predictions if not each.faces]
    why = explain_doubtful(classifier, source, faces) if options.explain else {}
    with progress_bar(len(predictions), "page", shown=not options.quiet) as bar:
        write_page(
            options.html,
            faces,
            skipped,
            source,
            threshold=options.threshold,
            facts=[("weights", f"{options.weights.name} ({classifier.checkpoint.describe()})")],
            explanations=why,
            workers=options.workers,
            progress=bar.update,
        )


def summarise(
    options: argparse.Namespace, source: Source, predictions: list[Prediction], skipped: int
) -> None:
    """Say how many of each label were written where, and what was passed over."""
    every = [face for each in predictions for face in each.faces]
    counted = every if options.faces == "all" else predictions
    counts = Counter(each.label(options.threshold) for each in counted)
    labels = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    written = f"{options.output}, {options.html}" if options.html else options.output
    print_stderr(f"{written}: {labels}, {skipped} skipped")
    if passed_over := passed_over_in_words(source.passed_over):
        print_stderr(passed_over)


if __name__ == "__main__":
    exit_with(main())
