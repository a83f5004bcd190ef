"""The peak of memory of process.py for few and for many pictures: one command, one table.

python -m benchmarks.memory FOLDER [--pictures 500 5000 50000]

FOLDER holds JPEG files, also in folders below it; so many of them are linked into a folder of
their own. Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import machine, pictures


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--pictures", type=int, nargs="+", default=[500, 5_000, 50_000])
    return parser.parse_args()


def peak(folder: Path, output: Path) -> float:
    """Return the largest resident memory of process.py on a folder, in MiB."""
    command = [sys.executable, "process.py", str(folder), "--output", str(output), "--quiet"]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"process.py ended with status {status}.")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measure and print."""
    options = parse()
    print(machine())
    print("| pictures | peak, MiB | of the first |\n|---|---|---|")
    first = 0.0
    for count in options.pictures:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "linked"
            folder.mkdir()
            for i, path in enumerate(pictures(options.folder, count, Path(work))):
                (folder / f"{i:06}.jpg").symlink_to(path.absolute())
            found = peak(folder, Path(work) / "r.json")
        first = first or found
        print(f"| {count:,} | {found:,.0f} | {found / first:.3f} |", flush=True)


if __name__ == "__main__":
    main()
