"""How fast classify_ray.py is with 1 and 2 workers, beside process.py with as many threads.

python -m benchmarks.scale --data FOLDER [--weights PTH]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import alternate, machine, pictures, rate
from face_gender.classify.classifier import Classifier, classify, load_classifier

KIT = Path(__file__).resolve().parent.parent


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JPEG files (default: generated)")
    parser.add_argument("--weights", type=Path, default=KIT / "model_weights" / "shipped.pth")
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--part-size", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


def by_ray(names: Path, options: argparse.Namespace, workers: int) -> Callable[[], float]:
    """Return what measures the command by the times at which its parts were written.

    From the first part to the last, so that starting Ray and loading the net, which a long run
    does once, are not in it.
    """

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out"
            subprocess.run(
                [sys.executable, "examples/classify_ray.py", str(names), str(output), "--quiet",
                 "--workers", str(workers), "--part-size", str(options.part_size),
                 "--weights", str(options.weights)],
                cwd=KIT, check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            times = sorted(path.stat().st_mtime for path in output.glob("part-*.parquet"))
        # The workers' first parts end together: what counts begins with the last of these.
        counted = times[workers - 1 :]
        return (len(counted) - 1) * options.part_size / (counted[-1] - counted[0])

    return measure


def told(name: str, way: Callable[[], float]) -> Callable[[], float]:
    """Return what measures and says so, as a run takes minutes."""

    def measure() -> float:
        found = way()
        print(f"  {name}: {found:,.0f} images/s", flush=True)
        return found

    return measure


def by_process(net: Classifier, names: list[str], threads: int) -> Callable[[], float]:
    """Return what measures process.py's own path, without its start."""
    return lambda: rate(len(names), lambda: list(classify(net, None, names, workers=threads)))


def main() -> None:
    """Measure in turns and print the table and the ratios of each round."""
    options = parse()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            str(path.absolute()) for path in pictures(options.data, options.pictures, Path(folder))
        ]
        names = Path(folder) / "names.parquet"
        pq.write_table(pa.table({"path": paths}), names)
        net = load_classifier(options.weights)
        ways = {
            f"{kind}, {count}": told(f"{kind}, {count}", way(count))
            for (kind, way), count in itertools.product(
                (
                    ("classify_ray.py", lambda count: by_ray(names, options, count)),
                    ("process.py", lambda count: by_process(net, paths, count)),
                ),
                (1, 2),
            )
        }
        found = alternate(ways, options.repetitions)
    print(f"{len(paths)} pictures, {options.repetitions} rounds")
    print("| way, workers | images/s, median | lowest | highest |\n|---|---|---|---|")
    for name, values in found.items():
        figures = (statistics.median(values), min(values), max(values))
        print(f"| {name} | {' | '.join(f'{each:,.0f}' for each in figures)} |")
    for above, below in (
        ("classify_ray.py, 2", "classify_ray.py, 1"),
        ("process.py, 2", "process.py, 1"),
        ("classify_ray.py, 1", "process.py, 1"),
        ("classify_ray.py, 2", "process.py, 2"),
    ):
        ratios = [a / b for a, b in zip(found[above], found[below], strict=True)]
        words = ", ".join(f"{each:.2f}" for each in ratios)
        print(f"{above} / {below}: {statistics.median(ratios):.2f} ({words})")


if __name__ == "__main__":
    main()
