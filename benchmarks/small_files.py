"""Many small files: one command, one table.

python -m benchmarks.small_files WORK [--pictures 100000]

Uses the JPEGs of about 20 KB in WORK/data/male and WORK/data/female and the archive WORK/data.zip,
and generates what is not there. States the seconds that
data_split.py takes for both, whole process, beside those of a parallel sha256sum of the same files,
taken in turns; then, for both, how long a loader takes to start, how many pictures it reads a
second at the start and at the end of an epoch, and the memory of loader and workers (the sum of
their proportional set sizes). Files are in the system's cache, as far as it holds them. Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks import common
from face_gender.data.dataset import FaceDataset, make_loader
from face_gender.data.index import Index
from face_gender.data.sources import open_source
from face_gender.files import cpu_count
from face_gender.model.recipes import get_recipe

REPETITIONS = 3
PART = 10_000  # pictures at the start and the end of an epoch
BATCH = 100
RECIPE = "resnet18"
SUMS = "find {}/ -name '*.jpg' -print0 | xargs -0 -P {} -n 500 sha256sum > /dev/null"


class Epoch(NamedTuple):
    """Seconds until a loader stood and gave its first batch, pictures a second, memory in MiB."""

    ready: float
    first_batch: float
    first_speed: float
    last_speed: float
    first_memory: float
    last_memory: float


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--pictures", type=int, default=100_000)
    return parser.parse_args()


def generate(work: Path, count: int) -> tuple[Path, Path]:
    """Return the folder and the archive, made where they are not there."""
    data, archive = work / "data", work / "data.zip"
    if not data.exists():
        for label in ("male", "female"):
            common.generate(data / label, count // 2, side=300, quality=96)
    if not archive.exists():
        half = archive.with_suffix(".part")
        with zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as out:
            for path in sorted(data.glob("*/*.jpg")):
                out.write(path, path.relative_to(data).as_posix())
        half.replace(archive)
    return data, archive


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def sum_all(data: Path) -> None:
    """Hash the files of a folder, a process of sha256sum on each processor."""
    subprocess.run(SUMS.format(data, cpu_count()), shell=True, check=True)


def split(data: Path) -> None:
    """Index a folder or an archive as a user does."""
    command = [sys.executable, "data_split.py", str(data), "--output", str(index_of(data))]
    subprocess.run([*command, "--force"], check=True, capture_output=True)


def index_of(data: Path) -> Path:
    """Return where the benchmark writes the index of a folder or an archive."""
    return data.with_name(f"small_files_{data.suffix.lstrip('.') or 'folder'}.csv")


def run_splits(folder: Path, archive: Path) -> None:
    """Print the medians of sha256sum and data_split.py, taken in turns after a turn unmeasured."""
    calls: dict[str, Callable[[], object]] = {
        "sha256sum, folder": lambda: sum_all(folder),
        "data_split.py, folder": lambda: split(folder),
        "data_split.py, .zip": lambda: split(archive),
    }
    turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(REPETITIONS + 1)]
    medians = {name: statistics.median(turn[name] for turn in turns[1:]) for name in calls}
    base = medians["sha256sum, folder"]
    for name, median in medians.items():
        each = ", ".join(f"{turn[name]:.2f}" for turn in turns[1:])
        print(f"{name:<22} {median:>7.2f} s  {median / base:>5.2f} of sha256sum  ({each})")
    speed = medians["data_split.py, folder"] / medians["data_split.py, .zip"]
    print(f"speed of the .zip: {speed:.2f} of the folder's\n", flush=True)


def memory(pids: list[int]) -> float:
    """Return the proportional set size of processes together, in MiB."""
    sizes = []
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        sizes += [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return sum(sizes) / 1024


def read_epoch(data: Path) -> Epoch:
    """Read all pictures once, in an order drawn, as training does."""
    # This process was spawned, and would spawn its own; a user's forks them.
    multiprocessing.set_start_method("fork", force=True)
    started = time.perf_counter()
    transform = get_recipe(RECIPE).preprocessing.eval_transform()
    index = Index(index_of(data), open_source(data))
    loader = make_loader(FaceDataset(index, None, transform), BATCH, shuffle=True)
    ready = time.perf_counter() - started
    times, counts, sizes = [], [0], []
    for batch in loader:
        times.append(time.perf_counter())
        counts.append(counts[-1] + len(batch.labels))
        total, part = len(loader.dataset), min(PART, len(loader.dataset) // 2)
        if (counts[-2] < part <= counts[-1]) or counts[-1] == total:
            own = multiprocessing.current_process().pid or 0
            pids = [own, *(child.pid or own for child in multiprocessing.active_children())]
            sizes.append(memory(pids))
    reached = next(i for i, count in enumerate(counts[1:]) if count >= part)
    begun = next(i for i, count in enumerate(counts[1:]) if count >= total - part)
    return Epoch(
        ready,
        times[0] - started,
        (counts[reached + 1] - counts[1]) / (times[reached] - times[0]),
        (counts[-1] - counts[begun + 1]) / (times[-1] - times[begun]),
        sizes[0],
        sizes[-1],
    )


def run_epochs(folder: Path, archive: Path) -> None:
    """Print what a loader of each does, in a process of its own each time."""
    print("loader   ready  first batch  first 10,000/s  last 10,000/s  ratio  MiB, then  growth")
    speeds: dict[Path, list[float]] = {folder: [], archive: []}
    for _ in range(REPETITIONS):
        for data in (folder, archive):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                each = pool.submit(read_epoch, data).result()
            speeds[data].append(each.last_speed)
            print(f"{data.suffix or 'folder':<7} {each.ready:>5.2f} s  {each.first_batch:>9.2f} s  "
                  f"{each.first_speed:>14,.0f}  {each.last_speed:>13,.0f}  "
                  f"{each.last_speed / each.first_speed:>5.2f}  "
                  f"{each.first_memory:>4,.0f} {each.last_memory:>4,.0f}  "
                  f"{each.last_memory / each.first_memory - 1:>6.1%}", flush=True)  # fmt: skip
    speed = statistics.median(speeds[archive]) / statistics.median(speeds[folder])
    print(f"speed of the .zip: {speed:.2f} of the folder's")


def main() -> None:
    """Run the benchmark."""
    options = parse()
    folder, archive = generate(options.work, options.pictures)
    count = sum(1 for _ in folder.glob("*/*.jpg"))
    print(f"{platform.processor() or platform.machine()}, {cpu_count()} processors, "
          f"Python {platform.python_version()}, {count:,} pictures")  # fmt: skip
    run_splits(folder, archive)
    run_epochs(folder, archive)


if __name__ == "__main__":
    main()
