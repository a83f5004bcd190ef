"""How an audit grows with the number of pictures: one command each, one table each.

python -m benchmarks.audit growth [--pictures 10000 20000 50000 100000]
python -m benchmarks.audit scale WORK [--pictures 100000]

``growth`` searches generated fingerprints for near-duplicates and states how the number of
comparisons grows, beside that of comparing all with all. ``scale`` audits the JPEGs of about 20 KB
that benchmarks.growth writes into WORK, with embeddings that are drawn instead of calculated, and
states seconds by stage and the peak of memory.
"""

from __future__ import annotations

import argparse
import math
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.growth import data_in
from face_gender.audit import duplicates, embeddings
from face_gender.audit.run import audit
from face_gender.audit.stages import Arrays, Stages
from face_gender.files import cpu_count

COPIES = 100  # one picture in so many is an altered copy of another
VIEWS = 6  # of each picture that are compared with all others


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    growth = commands.add_parser("growth")
    growth.add_argument(
        "--pictures", type=int, nargs="+", default=[10_000, 20_000, 50_000, 100_000]
    )
    scale = commands.add_parser("scale")
    scale.add_argument("work", type=Path)
    scale.add_argument("--pictures", type=int, default=100_000)
    return parser.parse_args()


def fields(rng: np.random.Generator, count: int, side: int) -> npt.NDArray[np.float32]:
    """Return random pictures (count, side, side), 0..1, with the 1/f spectrum of photographs."""
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    noise = rng.normal(size=(count, *frequency.shape)) + 1j * rng.normal(
        size=(count, *frequency.shape)
    )
    values = np.fft.irfft2(noise / frequency**1.2, s=(side, side))
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    return ((values - low) / (high - low)).astype(np.float32)


def fingerprints(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return (count, SIDE, SIDE): a shared mean as faces have, and brighter copies at the end."""
    rng = np.random.default_rng(seed)
    side = duplicates.SIDE
    shared = fields(rng, 1, side)
    out = np.empty((count, side, side), dtype=np.uint8)
    originals = count - count // COPIES
    for start in range(0, originals, 2_000):
        part = slice(start, min(start + 2_000, originals))
        own = fields(rng, part.stop - part.start, side)
        out[part] = np.rint(255 * (0.5 * shared + 0.5 * own))
    out[originals:] = np.rint(np.minimum(out[: count - originals] * 1.15, 255))
    return out


def run_growth(options: argparse.Namespace) -> None:
    """Print the work of a search by size, and the exponent between one size and the next.

    Seconds grow faster than comparisons where the descriptors no longer fit into the processor's
    cache; comparisons are the same on any machine.
    """
    print(f"{platform.processor() or platform.machine()}, {cpu_count()} processors")
    print("pictures  comparisons of descriptors  exponent  of all pairs  seconds  copies found")
    before: tuple[int, int] | None = None
    for count in options.pictures:
        prints = fingerprints(count, 0)
        globals_of_faiss: Any = faiss.cvar  # its stubs do not name what it counts
        statistics = globals_of_faiss.hnsw_stats
        statistics.reset()
        started = time.perf_counter()
        pairs = duplicates.near_duplicates(prints, cpu_count())
        seconds = time.perf_counter() - started
        work = int(statistics.ndis)
        found = int((pairs.second - pairs.first == count - count // COPIES).sum())
        exponent = math.log(work / before[1]) / math.log(count / before[0]) if before else math.nan
        print(f"{count:>8,}  {work:>26,}  {exponent:>8.2f}  {work / (VIEWS * count**2):>12.2%}  "
              f"{seconds:>7.1f}  {found} of {count // COPIES}", flush=True)  # fmt: skip
        before = (count, work)


def run_scale(options: argparse.Namespace) -> None:
    """Print seconds by stage of an audit, and the peak of resident memory."""
    data, count = data_in(options.work, options.pictures)["folder"], options.pictures
    seconds: dict[str, float] = {}
    get = Stages.get

    def timed(self: Stages, name: str, key: str, make: Callable[[], Arrays], *more: Any) -> dict:
        started = time.perf_counter()
        found = get(self, name, key, make, *more)
        seconds[name] = time.perf_counter() - started
        return found

    def drawn(_: object, table: pd.DataFrame, *__: object) -> dict[str, npt.NDArray[np.float16]]:
        rng = np.random.default_rng(len(seconds))
        final = rng.normal(size=(len(table), 512)).astype(np.float16)
        final[:, :8] += table["label"].to_numpy()[:, None].astype(np.float16)
        return {"early": rng.normal(size=(len(table), 1024)).astype(np.float16), "final": final}

    Stages.get = timed  # type: ignore[assignment, method-assign]
    embeddings.embed_all = drawn  # type: ignore[assignment]
    started = time.perf_counter()
    report = audit(data, options.work / "audit", apply=True)
    total = time.perf_counter() - started
    seconds["judging and writing"] = total - sum(seconds.values())
    print(report.summary())
    for name, value in seconds.items():
        print(f"{name:<22} {value:>8.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{count:,} pictures: {total / 60:.1f} min beside the embeddings, "
          f"peak {peak:.2f} GiB, {cpu_count()} processors")  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    options = parse()
    {"growth": run_growth, "scale": run_scale}[options.command](options)


if __name__ == "__main__":
    main()
