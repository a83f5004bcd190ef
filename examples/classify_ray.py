"""Classify more pictures than a machine holds: python examples/classify_ray.py INPUT OUTPUT

The input is cut into parts. A part is classified by one worker and written under its own name at
once: whichever worker dies and whatever is done twice, each part stands there once, whole. A run
that was stopped goes on with the parts that are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))  # a script finds its own folder there, not the kit's

from face_gender.classify.__main__ import choose_weights  # noqa: E402
from face_gender.console import (  # noqa: E402  # noqa: E402
    Stderr,
    error_message,
    exit_code,
    not_empty,
    positive,
    print_stderr,
    probability,
    raise_on_sigterm,
)
from face_gender.errors import InputError
from face_gender.files import read_file  # noqa: E402

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

    from face_gender.parts import Place, Plan

NAME = "classify_ray.py"
BLOCKS = 10_000  # of parts, at most: Ray keeps account of each


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Label face pictures on the machines of a Ray cluster, into parquet files.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage, 130 interrupted",
    )
    add = parser.add_argument
    add(
        "input",
        type=not_empty,
        metavar="INPUT",
        help="folder of pictures, or a .parquet or folder of these with a column path or bytes: "
        "a path that all machines have, or a URI such as s3://bucket/folder",
    )
    add(
        "output",
        type=not_empty,
        metavar="OUTPUT",
        help="folder or URI, to write parquet files into",
    )
    add(
        "--weights",
        type=Path,
        metavar="PTH",
        help="a checkpoint (default: model_weights/best.pth, else model_weights/shipped.pth)",
    )
    add("--recursive", action="store_true", help="subfolders of INPUT too")
    add(
        "--data",
        type=not_empty,
        metavar="DIR",
        help="what relative paths in a parquet are relative to (default: its folder)",
    )
    add("--address", help="of a Ray cluster (default: this machine alone)")
    add("--workers", type=positive, metavar="N", help="at most so many (default: all that fit)")
    add("--cpus", type=positive, default=1, metavar="N", help="of each worker (default: 1)")
    add("--gpus", type=positive, default=0, metavar="N", help="of each worker (default: 0)")
    add(
        "--part-size",
        type=positive,
        default=1000,
        metavar="N",
        help="pictures in a part, of a folder or of paths (default: 1000); a part of bytes is a "
        "row group",
    )
    add("--batch-size", type=positive, default=256, metavar="N", help="rows at a time")
    add(
        "--threshold",
        type=probability,
        default=0.0,
        metavar="P",
        help="answer 'uncertain' where the probability is below P (0 to 1)",
    )
    add("--quiet", action="store_true", help="say nothing but errors")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    try:
        check_libraries()
        run(options)
    except (InputError, OSError) as error:
        print_stderr(f"{NAME}: {error_message(error)}")
        return 1
    except KeyboardInterrupt as error:
        print_stderr(
            f"{NAME}: interrupted; the same command goes on with the parts that are missing."
        )
        return exit_code(error)
    return 0


def check_libraries() -> None:
    """Raise InputError where ray or pyarrow is not installed."""
    missing = [name for name in ("ray", "pyarrow") if find_spec(name) is None]
    if missing:
        raise InputError(f"{' and '.join(missing)} missing: pip install -r requirements-scale.txt.")


def run(options: argparse.Namespace) -> None:
    """Plan the parts, or take up an earlier plan, and classify those that are not there yet."""
    # Imported here: --help and mistakes answer without torch.
    from face_gender.model.checkpoint import load_checkpoint
    from face_gender.parts import Place, answers_schema, finish, folder_of, make_plan

    raise_on_sigterm()
    path = choose_weights(options.weights)
    checkpoint, weights = load_checkpoint(path), read_file(path)
    source, output = Place.named(options.input), Place.named(options.output)
    settings = {
        "input": options.input,
        "recursive": options.recursive,
        "data": options.data,
        "part_size": options.part_size,
        "threshold": options.threshold,
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    plan = make_plan(source, output, options.recursive, settings)
    missing = plan.missing(output)
    if not options.quiet:
        print_stderr(f"weights: {path} ({checkpoint.describe()})")
        print_stderr(f"{len(plan.table):,} parts, of which {len(missing):,} are to be done")
    if missing:
        arguments = {
            "source": plan.source,
            "base": Place.named(options.data) if options.data else folder_of(source),
            "output": output,
            "schema": answers_schema(checkpoint.classes),
            "batch_size": options.batch_size,
            "device": "cuda" if options.gpus else "cpu",
            "threads": options.cpus,
            "threshold": options.threshold,
        }
        with cluster(options.address):
            classify(plan, missing, weights, arguments, options)
    finish(plan, output)
    if not options.quiet:
        print_stderr(f"{options.output}: {plan.pictures:,} pictures in {len(plan.table):,} files")


class ClassifyPart:
    """A worker of Ray Data's: takes rows that name a part each, and writes the part's answers."""

    def __init__(
        self,
        weights: ray.ObjectRef[bytes],
        source: Place,
        base: Place,
        output: Place,
        schema: pa.Schema,
        batch_size: int,
        **options: Any,
    ) -> None:
        import ray

        from face_gender.scale import FaceClassifier

        self.source, self.output = source, output
        self.schema, self.batch_size = schema, batch_size
        with tempfile.TemporaryDirectory() as folder:  # the driver's file need not be on this node
            path = Path(folder) / "weights.pth"
            path.write_bytes(ray.get(weights))
            self.classifier = FaceClassifier(path, base.picture, **options)
            self.classifier.load()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return, for each part, its pictures, those that could not be read, and what went wrong.

        A sentence for the user travels as a row: an exception would arrive as a page.
        """
        rows = [
            self.classify(int(part), str(file), int(group))
            for part, file, group in zip(
                batch["part"], batch["file"], batch["row_group"], strict=True
            )
        ]
        return {name: [row[name] for row in rows] for name in ("pictures", "errors", "fault")}

    def classify(self, part: int, file: str, row_group: int) -> dict[str, Any]:
        """Write the answers of one part."""
        from face_gender.parts import rows_of_part, write_answers

        try:
            rows = rows_of_part(self.source, file, row_group, self.batch_size)
            answers = [self.classifier(batch) for batch in rows]
            write_answers(self.output, part, answers, self.schema)
        except InputError as error:
            return {"pictures": 0, "errors": 0, "fault": str(error)}
        errors = [each is not None for batch in answers for each in batch["error"]]
        return {"pictures": len(errors), "errors": sum(errors), "fault": ""}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one of this machine, quietly; leave it at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what Ray mends by itself
    import ray

    logging.disable(logging.ERROR)  # likewise
    if address:
        check_reachable(address)
    try:
        ray.init(
            address or "local",
            # Nodes need what requirements-scale.txt brings; the kit itself travels.
            runtime_env={"py_modules": [str(KIT / "face_gender")]},
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster could be had at {address or 'this machine'} ({first_line(error)}): "
            "start one with 'ray start --head', or check the address."
        ) from error
    raise_on_sigterm()  # which Ray has taken over
    try:
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raise InputError where nobody listens at HOST:PORT: Ray itself would ask for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}): start one with 'ray start --head', or "
            "check the address."
        ) from error


def classify(
    plan: Plan,
    missing: Sequence[int],
    weights: bytes,
    arguments: Mapping[str, Any],
    options: argparse.Namespace,
) -> None:
    """Let the cluster classify these parts. Raises InputError where a worker fails for good."""
    import ray
    from tqdm import tqdm

    ray.data.DataContext.get_current().enable_progress_bars = False
    workers = options.workers or workers_that_fit(options)
    parts = ray.data.from_arrow(plan.jobs(missing, BLOCKS)).map_batches(
        ClassifyPart,
        batch_size=1,
        # A worker that waits for a machine that is gone must not keep those that are there from
        # ending: the pool may shrink.
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=min(workers, len(missing)),
            max_size=min(workers, len(missing)),
            max_tasks_in_flight_per_actor=2,
        ),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
        fn_constructor_kwargs={**arguments, "weights": ray.put(weights)},
    )
    total = sum(plan.table["rows"].take(missing).to_pylist())
    errors = 0
    try:
        with tqdm(total=total, unit="img", disable=options.quiet, file=Stderr()) as bar:
            for done in parts.iter_rows():
                if done["fault"]:
                    raise InputError(done["fault"])
                bar.update(done["pictures"])
                errors += done["errors"]
    except ray.exceptions.RayError as error:
        raise InputError(
            f"a worker failed ({first_line(error)}): the same command goes on with what is missing."
        ) from error
    if errors and not options.quiet:
        print_stderr(f"{errors:,} pictures could not be read: column error has the reasons")


def workers_that_fit(options: argparse.Namespace) -> int:
    """Return how many workers the cluster has room for. Raises InputError for none."""
    import ray

    found = ray.cluster_resources()
    fits = int(found.get("CPU", 0) // options.cpus)
    if options.gpus:
        fits = min(fits, int(found.get("GPU", 0) // options.gpus))
    if not fits:
        raise InputError(
            f"no worker of {options.cpus} processors and {options.gpus} GPUs fits into the cluster "
            f"of {found.get('CPU', 0):.0f} and {found.get('GPU', 0):.0f}: ask for fewer."
        )
    return fits


def first_line(error: BaseException) -> str:
    """Return the gist of an error: Ray's own messages are a traceback each."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0].rstrip(".:")


if __name__ == "__main__":
    sys.exit(main())
