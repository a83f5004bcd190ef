"""Mutated inputs: each ends in a result or in the one documented exception.

A few by default; a hundred thousand of other seeds by hand:
FUZZ_INPUTS=100000 FUZZ_SEED=1 python -m pytest tests/fuzz -m slow -k zip -s
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from targets import TARGETS

_INPUTS, _SEED = int(os.environ.get("FUZZ_INPUTS", 5_000)), os.environ.get("FUZZ_SEED", "0")
_FEW = {"image": 250, "index": 15, "zip": 15, "checkpoint": 15}
_HANGS = 60  # seconds for one input
_MEMORY = 8 * 2**30  # bytes of addresses, beyond those of the libraries


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    """Let an input that asks for gigabytes fail, and one that hangs end the run."""
    if sys.platform != "linux":
        yield
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, before[1]))
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, before)


def feed(name: str, inputs: int, folder: Path) -> Counter[str]:
    """Check the seeds of a target and so many changed ones; return what became of them."""
    target = TARGETS[name]
    seeds = target.seeds()
    outcomes: Counter[str] = Counter(target.check(seed, folder) for seed in seeds)
    for number in range(inputs):
        data = target.mutate(random.Random(f"{_SEED} {name} {number}"), seeds)
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        try:
            outcomes[target.check(data, folder)] += 1
        except Exception as error:
            kept = Path(f"fuzz_failure_{name}_{_SEED}_{number}")
            kept.write_bytes(data)
            raise AssertionError(f"{kept}: {type(error).__name__}: {error}") from error
    return outcomes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_some_changed_inputs_end_as_documented(name: str, tmp_path: Path) -> None:
    outcomes = feed(name, _FEW[name], tmp_path)
    assert len(outcomes) > 1  # some are read, and some are refused, or nothing is tested


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_many_changed_inputs_end_as_documented(name: str, tmp_path: Path) -> None:
    outcomes = feed(name, _INPUTS, tmp_path)
    for outcome, count in outcomes.most_common():
        print(f"{count:>8,}  {name}: {outcome}")


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_those_of_their_number(name: str) -> None:
    target = TARGETS[name]
    first, again = (target.mutate(random.Random("3 x 5"), target.seeds()) for _ in range(2))
    assert first == again
