"""How time and memory grow with the number of pictures: one command each, one table each.

python -m benchmarks.growth curve WORK [--counts 1000 10000 100000] [--plot docs/growth.png]
python -m benchmarks.growth split WORK [--pictures 100000]
python -m benchmarks.growth epoch WORK [--pictures 100000]
python -m benchmarks.growth ray FOLDER [--pictures 3000]

``curve`` runs data_split.py, an epoch of compact_cnn, process.py with that net, and the same with
the results page, whole processes, on so many generated JPEGs of about 20 KB; seconds and peak
memory (of the largest process) go into WORK/growth.csv as they come, and all that it holds into one
plot. ``split`` times data_split.py, whole process, on such a folder and on an archive of it, which
it writes into WORK. ``epoch`` reads both as training does: how long until the first batch, and at
the start and the end of an epoch pictures a second and the memory of the process and its workers
(proportional set size; Linux). ``ray`` is the rate of examples/ray with 1 and 2 workers beside
process.py with as many threads, by the time that more pictures take, so that the start of either
is not in it.
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

import pandas as pd

from benchmarks.common import (
    alternate,
    generate,
    machine,
    medians,
    memory_of,
    pictures,
    seconds,
)
from face_gender.data.dataset import FaceDataset, make_loader
from face_gender.data.index import Index
from face_gender.model.recipes import get_recipe

PART = 10_000  # pictures at the start and the end of an epoch
BATCH = 100


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, count in (
        ("curve", 0), ("split", 100_000), ("epoch", 100_000), ("ray", 3_000),
    ):  # fmt: skip
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--pictures", type=int, default=count)
        command.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000])
        command.add_argument("--plot", type=Path, default=Path("docs/growth.png"))
        command.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def numbered(work: Path, count: int) -> Path:
    """Return a data set of so many files: 500 generated pictures, each file with other bytes."""
    drawn = [path.read_bytes() for path in generate(work / "drawn", 500, side=300, quality=96)]
    data = work / f"data_{count}"
    for label in () if data.exists() else ("male", "female"):
        (data / label).mkdir(parents=True)
        for i in range(count // 2):
            comment = b"\xff\xfe\x00\x12" + f"{label[0]}{i:015}".encode()
            jpeg = drawn[i % len(drawn)]
            (data / label / f"{i:06}.jpg").write_bytes(jpeg[:2] + comment + jpeg[2:])
    return data


# Started by a small process: Linux counts the memory of the one that forks as the new one's peak.
LAUNCH = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(status, time.perf_counter() - started, usage.ru_maxrss)
"""


def run_whole(*arguments: object) -> tuple[float, float]:
    """Run a command of the kit; return its seconds and the peak of its memory in MiB."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH, *command], check=True, capture_output=True, text=True
    )
    status, taken, peak = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{command[1:]} ended with status {status}.")
    return float(taken), int(peak) / (2**20 if sys.platform == "darwin" else 2**10)


def run_curve(options: argparse.Namespace) -> None:
    """Write a row for each command and number of pictures, then the plot of all rows."""
    work, table = options.folder, options.folder / "growth.csv"
    work.mkdir(parents=True, exist_ok=True)
    if not table.exists():
        table.write_text("command,pictures,seconds,peak_mib\n", encoding="utf-8")
    index, nets, result = (work / name for name in ("index.csv", "nets", "r.json"))
    for count in options.counts:
        data = numbered(work, count)
        net = ("--weights", nets / "compact_cnn" / "epoch_0.pth", "--recursive", "--output", result)
        commands = {
            "data_split.py": (
                "data_split.py", data, "--output", index, "--force", "--align", "never",
            ),
            "an epoch of compact_cnn": (
                "-m", "face_gender.train", index, "--data", data, "--recipe", "compact_cnn",
                "--epochs", 1, "--output", nets, "--device", "cpu", "--quiet",
            ),
            "process.py": ("process.py", data, *net, "--device", "cpu"),
            "process.py --html": (
                "process.py", data, *net, "--device", "cpu", "--html", work / "r.html",
            ),
        }  # fmt: skip
        for name, command in commands.items():
            seconds_, peak = run_whole(*command)
            row = f"{name},{count},{seconds_:.2f},{peak:.0f}"
            with open(table, "a", encoding="utf-8") as file:
                file.write(row + "\n")
            print(row, flush=True)
    plot(table, options.plot)


def plot(table: Path, output: Path) -> None:
    """Draw seconds and memory by the number of pictures, of each command the last measured."""
    from matplotlib.figure import Figure

    rows = pd.read_csv(table).drop_duplicates(["command", "pictures"], keep="last")
    figure = Figure(figsize=(9, 4), layout="constrained")
    names = {"seconds": "time, s", "peak_mib": "peak memory, MiB"}
    for axes, (column, title) in zip(figure.subplots(1, 2), names.items(), strict=True):
        by_command = rows.sort_values("pictures").groupby("command", sort=False)
        for marker, (command, each) in zip("os^D", by_command, strict=False):
            axes.plot(each["pictures"], each[column], marker=marker, label=command)
        axes.set(xscale="log", yscale="log", xlabel="pictures", ylabel=title)
        axes.set_ylim(bottom=1 if column == "seconds" else 100)
        axes.grid(visible=True, which="major", alpha=0.3)
    least, most = rows["pictures"].min(), rows["pictures"].max()
    first = figure.axes[0]
    base = rows.loc[rows["pictures"] == most, "seconds"].max()
    first.plot([least, most], [base * least / most, base], ":", color="gray", label="in proportion")
    first.legend(fontsize="small")
    figure.savefig(output, dpi=120)


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
    """Index a folder or an archive by the command, without looking for faces; return the index."""
    index = data.with_name(f"growth_{data.suffix.lstrip('.') or 'folder'}.csv")
    command = ["data_split.py", str(data), "--output", str(index), "--force", "--align", "never"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
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
            sizes.append(memory_of(os.getpid()))
    sizes.append(memory_of(os.getpid()))
    part = min(PART // BATCH, len(counts) // 2)
    if not part:
        raise SystemExit(f"--pictures {sum(counts)} are one batch: give {2 * BATCH} or more.")
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
    commands = {"curve": run_curve, "split": run_split, "epoch": run_epoch, "ray": run_ray}
    commands[options.command](options)


if __name__ == "__main__":
    main()
