"""What the benchmarks share: options, the machine in words, paired repetitions, pictures."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image

from face_gender.data.index import Index
from face_gender.data.sources import FolderSource
from face_gender.devices import in_bits, mixed_precision
from face_gender.files import cpu_count


def options_of(doc: str, pictures: int, repetitions: int) -> argparse.ArgumentParser:
    """Return a parser that knows what most benchmarks take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JPEG files (default: generated)")
    parser.add_argument("--pictures", type=int, default=pictures)
    parser.add_argument("--repetitions", type=int, default=repetitions)
    return parser


def machine() -> str:
    """Return processor, cores, the precision that the kit takes and versions in a line."""
    name = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":")[1].strip() for line in file if "model name" in line), name)
    precision = in_bits(mixed_precision(torch.device("cpu")))
    words = [
        f"{name}, {cpu_count()} cores, {precision}",
        f"Python {platform.python_version()}, torch {torch.__version__}",
        f"torchvision {torchvision.__version__}",
    ]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def rate(count: int, work: Callable[[], object]) -> float:
    """Return ``count`` by the seconds that the work takes."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes."""
    return 1 / rate(1, work)


def alternate(ways: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Measure each way in turn, so that a machine that slows down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            found[name].append(way())
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each way."""
    return {name: statistics.median(values) for name, values in found.items()}


def ratios(found: Mapping[str, Sequence[float]], base: str) -> dict[str, float]:
    """Return the median over the turns of what each way is by one of them, in the same turn."""
    return {
        name: statistics.median(a / b for a, b in zip(values, found[base], strict=True))
        for name, values in found.items()
    }


def memory_of(pid: int) -> float:
    """Return the proportional set size, in MiB, of a process and all that it started (Linux)."""
    total, waiting = 0, [pid]
    while waiting:
        home = Path("/proc", str(waiting.pop()))
        with suppress(OSError):  # it may end at any time
            for line in (home / "smaps_rollup").read_text(encoding="ascii").splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
            for children in home.glob("task/*/children"):
                waiting += map(int, children.read_text(encoding="ascii").split())
    return total / 1024


def generate(folder: Path, count: int, side: int = 200, quality: int = 90) -> list[Path]:
    """Write JPEG files that look like noise at all scales, unless they are there; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06}.jpg" for i in range(count)]
    missing = [path for path in paths if not path.exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_draw, side=side, quality=quality), missing, chunksize=100))
    return paths


def _draw(path: Path, side: int, quality: int) -> None:
    rng = np.random.default_rng([*path.parent.name.encode(), int(path.stem)])  # no copies
    layers = []
    for cells in (4, 8, 16, 32, 64):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        scaled = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        layers.append(np.asarray(scaled, dtype=np.float32) * (8 / cells))
    mixed = sum(layers) / sum(8 / cells for cells in (4, 8, 16, 32, 64))
    Image.fromarray(np.asarray(mixed).clip(0, 255).astype(np.uint8)).save(path, quality=quality)


def index_of(paths: Sequence[Path]) -> Index:
    """Return an index of pictures with every second label, all but the first four to train on."""
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(folder).as_posix() for path in paths]
    table = pd.DataFrame({"path": names, "label": [i % 2 for i in range(len(names))]})
    table["split"] = ["val" if i < 4 else "train" for i in range(len(names))]
    return Index(table, FolderSource(folder))


def pictures(folder: Path | None, count: int, work: Path) -> list[Path]:
    """Return that many JPEG files of a folder and those below it, or generated ones."""
    if folder is None:
        return generate(work / "generated", count)
    names = (Path(parent) / name for parent, _, files in os.walk(folder) for name in files)
    found = sorted(path for path in names if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise SystemExit(f"{folder} holds no JPEG files.")
    return found[:count]
