"""Classify more pictures than one machine holds: python -m examples.ray.classify INPUT OUTPUT

Ray Data hands the names out, replaces workers that are lost and writes the parquet files. A run
that is given again goes on with the pictures whose paths are not in OUTPUT yet.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_gender.classify.options import add_threshold
from face_gender.console import not_empty, positive, print_stderr, run_command
from face_gender.errors import InputError, first_line
from face_gender.files import MAX_BYTES, has_image_suffix
from face_gender.model.weights import find_weights

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSelector, FileSystem, FileType
except ImportError as error:
    sys.exit(f"{first_line(error)}: pip install -r requirements-scale.txt.")
if TYPE_CHECKING:
    import ray.data

NAME = "examples.ray.classify"
BLOCK = 1000  # pictures of a task, all of which a lost worker costs, and of one output file
BATCH = 256  # of these, pictures that the net's worker holds at a time


class FaceClassifier:
    """Adds predictions to rows with a column ``path`` or ``bytes``, for Ray's ``map_batches``.

    The net is loaded once in each worker, which must be able to read ``weights`` (None: as
    `face_gender.load` chooses). ``filesystem`` is where paths are read.
    """

    def __init__(
        self,
        weights: Path | None,
        filesystem: FileSystem,
        threshold: float = 0.0,
        device: str = "cpu",
        threads: int = 4,
    ) -> None:
        from face_gender.classify.classifier import load_classifier

        self.net = load_classifier(find_weights(weights), device=device)
        self.filesystem, self.threshold, self.threads = filesystem, threshold, threads

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return ``path, label, confidence``, a column for each class, and ``error``."""
        from face_gender.classify.classifier import classify
        from face_gender.classify.results import Prediction

        places = [str(row) for row in range(len(batch))]
        source = Rows(batch, self.filesystem)
        rows: list[dict[str, Any]] = []
        for result in classify(self.net, source, places, workers=self.threads):
            if isinstance(result, Prediction):
                label = {"label": result.label(self.threshold), "confidence": result.confidence}
                rows.append(label | result.probabilities)
            else:
                rows.append({"error": result.reason})
        types = [("label", pa.string()), ("confidence", pa.float32())]
        types += [(name, pa.float32()) for name in self.net.checkpoint.classes]
        table = pa.Table.from_pylist(rows, pa.schema([*types, ("error", pa.string())]))
        return table.add_column(0, "path", batch["path"].cast(pa.string()))


class Rows:
    """What `classify` reads from: the pictures of a batch by the number of their row."""

    def __init__(self, batch: pa.Table, filesystem: FileSystem) -> None:
        self.column = batch["bytes" if "bytes" in batch.column_names else "path"]
        self.filesystem = filesystem

    def read(self, row: str) -> bytes:
        """Return the bytes of one picture. Raises OSError."""
        cell = self.column[int(row)].as_py()
        if isinstance(cell, bytes):
            return cell
        try:
            with self.filesystem.open_input_file(cell) as file:
                if file.size() > MAX_BYTES:
                    raise OSError("too large for a picture")
                data: bytes = file.read()
                return data
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise OSError(first_line(error)) from error


def located(text: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or URI, and its name there. Raises InputError."""
    try:
        filesystem, path = FileSystem.from_uri(text if "://" in text else os.path.abspath(text))
        return filesystem, path
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{text} cannot be opened ({first_line(error)}): check it.") from error


def check_apart(first: str, second: str) -> None:
    """Raise InputError where one lies in the other: a run would read what another has written."""
    (one, path), (two, other) = located(first), located(second)
    a, b = (f"{each.rstrip('/')}/" for each in (path, other))
    if one == two and (a.startswith(b) or b.startswith(a)):
        raise InputError(f"{first} and {second} lie in one another: name another OUTPUT.")


def files_in(text: str, ending: str = "") -> tuple[FileSystem, list[str]]:
    """Return the visible files in a folder that is named so, and those in its subfolders."""
    filesystem, path = located(text)
    if filesystem.get_file_info(path).type == FileType.File:
        return filesystem, [path]
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    try:
        names = [each.path for each in found if each.is_file]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{text} holds a name that is not UTF-8 ({error.object!r}): rename the file."
        ) from error
    visible = [name for name in names if "/." not in name[len(path) :]]
    return filesystem, sorted(name for name in visible if name.endswith(ending))


def pictures(text: str) -> tuple[FileSystem, ray.data.Dataset]:
    """Return their file system, and a data set with a column ``path``.

    It is read from parquet files, which may have ``bytes`` too, or made of the names of pictures
    in a folder. Raises InputError where there are none.
    """
    import ray.data

    filesystem, names = files_in(text)
    if tables := [name for name in names if name.endswith(".parquet")]:
        rows = ray.data.read_parquet(tables, filesystem=filesystem)
        if "path" not in rows.columns():
            raise InputError(f"{tables[0]} has no column path: rename or add one.")
        return filesystem, rows
    names = [name for name in names if has_image_suffix(name)]
    if not names:
        raise InputError(f"{text} holds no pictures and no .parquet: give a folder that does.")
    blocks = [pa.table({"path": names[i : i + BLOCK]}) for i in range(0, len(names), BLOCK)]
    return filesystem, ray.data.from_arrow(blocks)


def paths_done(output: str) -> pa.Array:
    """Return the paths that OUTPUT holds. Raises InputError for a file that is cut short."""
    filesystem, names = files_in(output, ".parquet")
    done: list[pa.Array] = []
    for name in names:
        try:
            if "path" not in pq.read_schema(name, filesystem=filesystem).names:
                raise InputError(f"{name} was not written by this command: name another OUTPUT.")
            table = pq.read_table(name, columns=["path"], filesystem=filesystem)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{name} is not whole, as a run that is killed may leave it: remove it, then the "
                "same command goes on."
            ) from error
        done += table["path"].cast(pa.string()).chunks
    return pa.chunked_array(done, pa.string()).combine_chunks()


def run(options: argparse.Namespace) -> None:
    """Classify what is not in OUTPUT yet. Raises InputError for all that goes wrong."""
    check_apart(options.input, options.output)
    options.weights = find_weights(options.weights).absolute()  # here: one file for all machines
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    try:
        import ray  # here: it takes seconds
    except ImportError as error:
        raise InputError(f"{first_line(error)}: pip install -r requirements-scale.txt.") from error

    try:
        ray.init(
            options.address,
            ignore_reinit_error=True,
            log_to_driver=False,
            include_dashboard=None if options.address else False,
        )
    except Exception as error:  # Ray's own is a plain one
        raise InputError(
            f"no Ray cluster at {options.address or 'this machine'} ({first_line(error)}): start "
            "one with 'ray start --head', or check --address."
        ) from error
    try:
        classify_missing(options)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error.__cause__ or error
        raise InputError(
            f"a worker failed ({first_line(cause)}): the same command goes on with what is missing."
        ) from error


def classify_missing(options: argparse.Namespace) -> None:
    """Write the predictions for the pictures of INPUT whose paths are not in OUTPUT."""
    filesystem, rows = pictures(options.input)
    done = paths_done(options.output)
    print_stderr(f"{options.output}: {len(done):,} pictures are there already")
    rows = rows.map_batches(
        lambda batch: batch.filter(pc.invert(pc.is_in(batch["path"], value_set=done))),
        batch_format="pyarrow",
        batch_size=None,
    )
    rows = rows.map_batches(
        FaceClassifier,
        fn_constructor_args=(options.weights, filesystem, options.threshold),
        fn_constructor_kwargs={"device": "cuda" if options.gpus else "cpu"},
        batch_format="pyarrow",
        batch_size=BATCH,
        # From one worker on: one that waits for a machine that is gone must not hold up the rest.
        concurrency=(1, options.workers),
        num_gpus=options.gpus,
    )
    target, path = located(options.output)
    rows.write_parquet(path, filesystem=target)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}",
        description="Label face pictures on the machines of a Ray cluster, into parquet files.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 130 interrupted by Ctrl-C: the "
        "same command goes on with what is missing",
    )
    add = parser.add_argument
    place = "a path that all machines have, or a URI such as s3://bucket/folder"
    add("input", type=not_empty, metavar="INPUT", help=place)
    add("output", type=not_empty, metavar="OUTPUT", help=place)
    add("--weights", type=Path, metavar="PTH", help="a checkpoint that all machines have")
    add("--address", help="of a Ray cluster (default: this machine alone)")
    add("--workers", type=positive, default=1, metavar="N", help="most at a time (default: 1)")
    add("--gpus", type=float, default=0, metavar="N", help="of each worker (default: 0)")
    add_threshold(add)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    sentence = "interrupted; the same command goes on with what is missing."
    return run_command(NAME, lambda: run(options), sentence)


if __name__ == "__main__":
    sys.exit(main())
