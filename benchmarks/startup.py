"""How long the commands take to start: one command, one table.

python -m benchmarks.startup [--repetitions 7]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.common import alternate, generate, machine, medians, ratios, seconds

ROOT = Path(__file__).parents[1]
IMPORTS = ("torch", "torch, torchvision")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    return parser.parse_args()


def python(*arguments: str) -> float:
    """Return the seconds that a Python process takes, its modules compiled as with a user."""
    command = [sys.executable, *arguments]
    kept = {name: each for name, each in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return seconds(lambda: subprocess.run(command, capture_output=True, check=False, env=kept))


def main() -> None:
    """Measure all in turn and print."""
    options = parse()
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        portraits, others = Path(work) / "portraits", Path(work) / "others"
        portraits.mkdir()
        for path in sorted((ROOT / "samples" / "female").iterdir())[:10]:
            shutil.copy(path, portraits)
        generate(others, 10)
        write = ("--output", str(Path(work) / "r.json"))
        commands = {
            "process.py --help": ("process.py", "--help"),
            "process.py with a wrong option": ("process.py", "--no-such-option"),
            "process.py on a folder that is not there": ("process.py", "no/such/folder"),
            "process.py on ten portraits": ("process.py", str(portraits), *write),
            "process.py on ten pictures without a face": ("process.py", str(others), *write),
            **{f"import {each}": ("-c", f"import {each}") for each in IMPORTS},
        }
        ways: dict[str, Callable[[], float]] = {
            name: partial(python, *arguments) for name, arguments in commands.items()
        }
        alternate(ways, 1)  # files into the system's cache
        found = alternate(ways, options.repetitions)
    times, against = medians(found), ratios(found, "import torch")
    print("| command | seconds | of importing torch |\n|---|---|---|")
    for name, value in times.items():
        print(f"| `{name}` | {value:.2f} | {against[name]:.2f} |")


if __name__ == "__main__":
    main()
