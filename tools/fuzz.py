"""Mutated inputs: each ends in a result or in the one documented exception.

python tools/fuzz.py [--target all] [--inputs 100000] [--seed 0] [--seconds 0]

Seeds are drawn on the spot: every picture format and mode that the kit reads, indexes of the
newer and older forms, archives of every compression, checkpoints and state_dicts of every file
format. Each input is one of them, changed once to six times: bits, bytes, cuts, splices, swapped
blocks, numbers; or changed in its structure (an archive's directory, a pickle's fields) and
written anew. It must end in a result or in exactly the exception that the function names:

- image: `decode_image` and `decode_pixels`, same pixels or same reason; UnreadableImage
- index: `read_index`, and `Index.create` of it as an older form; InputError
- zip: `open_source`, names, every `read`; `find_images`; `Index.create` of it; InputError, and
  OSError for reading a member
- checkpoint: `load_checkpoint`, `build`, and one picture through the net; InputError

Inputs run in child processes of limited memory (RLIMIT_AS). One that takes longer than --limit
seconds, kills its process or raises anything else is a failure and is kept under --failures.
tools/fuzz_coverage.py drives the same targets by coverage.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.fuzz_targets import TARGETS, Target, seed_files

# What each target's share of the inputs is.
_SHARES = {"image": 0.5, "index": 0.2, "zip": 0.15, "checkpoint": 0.15}
_START = "spawn"  # each child is a clean process, whatever ran before
_TO_START = 300.0  # seconds: to import torch on a busy machine


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Mutate inputs and watch what becomes of them.")
    add = parser.add_argument
    add("--target", choices=(*TARGETS, "all"), default="all")
    add("--inputs", type=int, default=100_000, help="of all targets together (default: 100000)")
    add("--seed", type=int, default=0, help="of the mutations (default: 0)")
    add("--seconds", type=float, default=0, help="stop each target after so many (default: never)")
    add("--limit", type=float, default=20, help="seconds for one input (default: 20)")
    add("--memory", type=float, default=8, help="GiB of addresses of a child (default: 8)")
    add("--again", type=Path, metavar="FILE", help="do a kept input in this process")
    add("--failures", type=Path, default=Path("fuzz_failures"), help="where failing inputs go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets; return 1 where anything failed."""
    options = parse(arguments)
    if options.again:
        faulthandler.enable()
        name = next(name for name in TARGETS if options.again.name.startswith(name))
        with tempfile.TemporaryDirectory() as folder:
            print(TARGETS[name](Path(folder)).check(options.again.read_bytes()))
        return 0
    failed = 0
    for name in TARGETS if options.target == "all" else [options.target]:
        share = _SHARES[name] if options.target == "all" else 1
        failed += run_target(name, round(options.inputs * share), options)
    return 1 if failed else 0


def run_target(name: str, inputs: int, options: argparse.Namespace) -> int:
    """Run one target, print what became of its inputs, and return how many failed."""
    outcomes: Counter[str] = Counter()
    started = time.perf_counter()
    done = 0
    while done < inputs and not (
        options.seconds and time.perf_counter() - started > options.seconds
    ):
        done = _watch(name, range(done, inputs), options, outcomes, started)
    failed = sum(count for outcome, count in outcomes.items() if outcome.startswith("FAILURE"))
    seconds = time.perf_counter() - started
    print(f"{name}: {done:,} inputs, seed {options.seed}, {seconds:.0f} s, {failed} failures")
    for outcome, count in outcomes.most_common():
        print(f"  {count:>8,}  {outcome}")
    sys.stdout.flush()
    return failed


def _watch(
    name: str, numbers: range, options: argparse.Namespace, outcomes: Counter[str], started: float
) -> int:
    """Let one child work until it is done, dies or hangs; return the next number to do."""
    context: Any = multiprocessing.get_context(_START)
    here, there = context.Pipe()
    arguments = (name, numbers, options.seed, options.memory, there)
    child = context.Process(target=_work, args=arguments, daemon=True)
    child.start()
    there.close()
    current, patience = numbers.start, _TO_START
    try:
        while here.poll(patience):
            outcome = here.recv()
            if outcome.startswith("FAILURE "):
                _keep(name, current, options, outcome.removeprefix("FAILURE "), outcomes)
            elif outcome:
                outcomes[outcome] += 1
            current += bool(outcome)
            late = options.seconds and time.perf_counter() - started > options.seconds
            if late or current == numbers.stop:
                return current
            patience = options.limit
        _keep(name, current, options, f"took over {options.limit:g} s", outcomes)
    except EOFError:
        child.join()
        _keep(name, current, options, f"killed the process ({child.exitcode})", outcomes)
    finally:
        child.kill()
        child.join()
    return current + 1


def _work(name: str, numbers: range, seed: int, memory: float, pipe: Connection) -> None:
    """Do the inputs of these numbers and say what became of each, after an empty word."""
    # Decoders write to the descriptor itself what they think of a file.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        seeds = seed_files(name)
        _limit_memory(memory)
        pipe.send("")
        for number in numbers:
            data = target.mutate(random.Random(f"{seed} {name} {number}"), seeds)
            pipe.send(attempt(target, data))


def attempt(target: Target, data: bytes) -> str:
    """Return what became of one input; FAILURE and the traceback for what must not be."""
    try:
        return target.check(data)
    except Exception:
        return f"FAILURE {traceback.format_exc()}"


def _limit_memory(gibibytes: float) -> None:
    with suppress(ImportError, ValueError):  # Windows has no such limit
        import resource

        size = int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _keep(
    name: str, number: int, options: argparse.Namespace, text: str, outcomes: Counter[str]
) -> None:
    """Write a failing input and what it led to, to be tried again."""
    options.failures.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name](options.failures)
    data = target.mutate(random.Random(f"{options.seed} {name} {number}"), seed_files(name))
    place = options.failures / f"{name}_{options.seed}_{number}"
    place.with_suffix(target.suffix).write_bytes(data)
    place.with_suffix(".txt").write_text(text, encoding="utf-8")
    last = text.strip().splitlines()[-1][:150]
    outcomes[f"FAILURE {last}"] += 1
    print(f"FAILURE {place}: {last}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
