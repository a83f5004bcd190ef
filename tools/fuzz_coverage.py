"""The targets of tools/fuzz.py, driven by coverage of Python code: atheris (libFuzzer).

pip install atheris   (Linux, for the Python releases that it has wheels of; the kit needs it not)
python tools/fuzz_coverage.py image -max_total_time=240 [any option of libFuzzer]

The kit's own modules and those of Pillow, zipfile and pickletools are instrumented. libFuzzer keeps
what reaches new code in a corpus in memory, and stops at the first failure, whose input it writes
to crash-… in the working directory. Its own timer is put off: it is SIGALRM, which ended the
process once torch was at work. Put `timeout` before the command instead.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_INSTRUMENTED = ["face_gender", "PIL", "zipfile", "pickletools"]

with atheris.instrument_imports(include=_INSTRUMENTED):
    from tools.fuzz_targets import TARGETS, seed_files


def main() -> None:
    """Run one target until libFuzzer's options say that it is enough."""
    name, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    (folder / "corpus").mkdir()
    (folder / "work").mkdir()
    for i, seed in enumerate(seed_files(name)):
        (folder / "corpus" / str(i)).write_bytes(seed)
    target = TARGETS[name](folder / "work")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        """Change the input by its structure as often as libFuzzer changes its bytes."""
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return target.mutate(rng, [data])[:most]

    limits = ["-timeout=100000", "-rss_limit_mb=6000", "-max_len=2000000", "-close_fd_mask=2"]
    arguments = [sys.argv[0], *limits, *options, os.fspath(folder / "corpus")]
    atheris.Setup(arguments, target.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
