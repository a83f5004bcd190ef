"""How time and memory grow with the number of pictures: one command each, one table each.

python -m benchmarks.growth split WORK [--pictures 100000]
python -m benchmarks.growth epoch WORK [--pictures 100000]
python -m benchmarks.growth memory FOLDER [--counts 500 50000]
python -m benchmarks.growth ray FOLDER [--pictures 3000]

``split`` times data_split.py, whole process, on a folder of generated JPEGs of about 20 KB and on
an archive of them, which it writes into WORK. ``epoch`` reads both as training does: how long until
the first batch, and at the start and the end of an epoch pictures a second and the memory of the
process and its workers (proportional set size; Linux). ``memory`` is the peak of process.py.
``ray`` is the rate of examples/ray with 1 and 2 workers beside process.py with as many threads, by
the time that more pictures take, so that the start of either is not in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.common import alternate, generate, machine, medians, pictures, seconds
from face_gender.data.dataset import FaceDataset, make_loader
from face_gender.data.index import Index
from face_gender.model.recipes import get_recipe

PART = 10_000  # pictures at the start and the end of an epoch
BATCH = 100


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, count in (("split", 100_000), ("epoch", 100_000), ("memory", 0), ("ray", 3_000)):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--pictures", type=int, default=count)
        command.add_argument("--counts", type=int, nargs="+", default=[500, 5_000, 50_000])
        command.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def data_in(work: Path, count: int) -> dict[str, Path]:
    """Return the folder and the archive by name, made where they are not there."""
    data, archive = work / "data", work / "data.zip"
    if not data.exists():
        for label in ("male", "female"):
            generate(data / label, count // 2, side=300, quality=96)
    if not archive.exists():
        half = archive.with_suffix(".part")
        with zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as out:
            for path in sorted(data.glob("*/*.jpg")):
                out.write(path, path.relative_to(data).as_posix())
        half.replace(archive)
    return {"folder": data, ".zip": archive}


def split(data: Path) -> Path:
    """Index a folder or an archive as a user does; return the index."""
    index = data.with_name(f"growth_{data.suffix.lstrip('.') or 'folder'}.csv")
    command = [sys.executable, "data_split.py", str(data), "--output", str(index), "--force"]
    subprocess.run(command, check=True, capture_output=True)
    return index


def run_split(options: argparse.Namespace) -> None:
    """Print the medians, taken in turns after a turn unmeasured."""
    data = data_in(options.folder, options.pictures)
    ways: dict[str, Callable[[], float]] = {
        name: partial(seconds, partial(split, each)) for name, each in data.items()
    }
    alternate(ways, 1)
    print("| data_split.py on | seconds |\n|---|---|")
    for name, value in medians(alternate(ways, options.repetitions)).items():
        print(f"| {name} | {value:.2f} |")


def memory() -> float:
    """Return the proportional set size of this process and its children together, in MiB."""
    pids = [os.getpid(), *(each.pid for each in multiprocessing.active_children())]
    sizes = []
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        sizes += [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return sum(sizes) / 1024


def read_epoch(index: Path, data: Path) -> str:
    """Read all pictures once, in an order drawn, as training does; return a row of the table."""
    started = time.perf_counter()
    transform = get_recipe("resnet18").preprocessing.eval_transform()
    loader = make_loader(FaceDataset(Index.open(index, data), None, transform), BATCH, shuffle=True)
    moments, counts, sizes = [], [], []
    for batch in loader:
        moments.append(time.perf_counter())
        counts.append(len(batch.labels))
        if len(counts) == PART // BATCH:
            sizes.append(memory())
    sizes.append(memory())
    part = min(PART // BATCH, len(counts) // 2)
    first = sum(counts[1 : part + 1]) / (moments[part] - moments[0])
    last = sum(counts[-part:]) / (moments[-1] - moments[-part - 1])
    return (f"{moments[0] - started:.2f} s | {first:,.0f} | {last:,.0f} | {last / first:.2f} | "
            f"{sizes[0]:,.0f} | {sizes[-1]:,.0f}")  # fmt: skip


def run_epoch(options: argparse.Namespace) -> None:
    """Print what a loader of each does, in a process of its own each time."""
    print("| loader over | first batch | first images/s | last | ratio | MiB then | at the end |")
    print("|---|---|---|---|---|---|---|")
    data = data_in(options.folder, options.pictures)
    indexes = {name: split(each) for name, each in data.items()}
    for _ in range(options.repetitions):
        for name, each in data.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(read_epoch, indexes[name], each).result()
            print(f"| {name} | {row} |", flush=True)


def linked(folder: Path, count: int, work: Path) -> Path:
    """Return a folder with links to so many of a folder's JPEG files."""
    target = work / f"linked_{count}"
    target.mkdir()
    for i, path in enumerate(pictures(folder, count, work)):
        (target / f"{i:06}.jpg").symlink_to(path.absolute())
    return target


def run_memory(options: argparse.Namespace) -> None:
    """Print the largest resident memory of process.py on few and on many pictures."""
    print("| pictures | peak, MiB | of the first |\n|---|---|---|")
    first = 0.0
    for count in options.counts:
        with tempfile.TemporaryDirectory() as work:
            folder, output = linked(options.folder, count, Path(work)), str(Path(work) / "r.json")
            command = [sys.executable, "process.py", str(folder), "--output", output, "--quiet"]
            _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
        if status:
            raise SystemExit(f"process.py ended with status {status}.")
        peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        first = first or peak
        print(f"| {count:,} | {peak:,.0f} | {peak / first:.3f} |", flush=True)


def rate_beyond_start(command: list[str], few: Path, many: Path, more: int) -> float:
    """Return the images a second of a command, by the ``more`` pictures that ``many`` has."""
    times = []
    for folder in (few, many):
        with tempfile.TemporaryDirectory() as work:
            arguments = [each.format(folder, Path(work) / "out") for each in command]
            run = partial(subprocess.run, arguments, check=True, capture_output=True)
            times.append(seconds(run))
    return more / (times[1] - times[0])


def run_ray(options: argparse.Namespace) -> None:
    """Print medians of both commands, and what two workers are by one."""
    ways: dict[str, Callable[[], float]] = {}
    start = options.pictures // 5
    with tempfile.TemporaryDirectory() as work:
        few, many = (linked(options.folder, n, Path(work)) for n in (start, options.pictures))
        for count in ("1", "2"):
            for name, command in (
                ("examples.ray", ["-m", "examples.ray.classify", "{}", "{}"]),
                ("process.py", ["process.py", "{}", "--quiet", "--output", "{}"]),
            ):
                whole = [sys.executable, *command, "--workers", count]
                ways[f"{name}, {count}"] = partial(
                    rate_beyond_start, whole, few, many, options.pictures - start
                )
        speed = medians(alternate(ways, options.repetitions))
    print("| way, workers | images/s |\n|---|---|")
    for name, value in speed.items():
        print(f"| {name} | {value:,.0f} |")
    for name in ("examples.ray", "process.py"):
        print(f"{name}, 2 by 1: {speed[f'{name}, 2'] / speed[f'{name}, 1']:.2f}")


def main() -> None:
    """Run the benchmark."""
    options = parse()
    print(machine())
    commands = {"split": run_split, "epoch": run_epoch, "memory": run_memory, "ray": run_ray}
    commands[options.command](options)


if __name__ == "__main__":
    main()
