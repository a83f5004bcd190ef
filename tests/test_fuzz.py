"""The targets of tools/fuzz.py on a few inputs: by its own mutations, and by hypothesis."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools import fuzz
from tools.fuzz_targets import TARGETS, Target, change, seed_files

_FEW = {"image": 250, "index": 60, "zip": 60, "checkpoint": 40}
QUIET = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(name: str, tmp_path: Path) -> Target:
    return TARGETS[name](tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_unchanged_seeds_and_mutated_ones_end_as_documented(name: str, target: Target) -> None:
    seeds = seed_files(name)
    outcomes = {fuzz.attempt(target, seed) for seed in seeds}
    for number in range(_FEW[name]):
        data = target.mutate(random.Random(f"7 {name} {number}"), seeds)
        outcomes.add(fuzz.attempt(target, data))
    assert not [each for each in outcomes if each.startswith("FAILURE")]
    assert not [each for each in outcomes if each.endswith("for lack of memory")]
    assert len(outcomes) > 2  # some are read, and some are refused, or nothing is tested


@pytest.mark.filterwarnings("ignore")
@QUIET
@given(
    which=st.integers(0, 99),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    more=st.binary(max_size=40),
)
def test_any_bytes_changed_in_a_seed_end_as_documented(
    name: str, target: Target, which: int, cut: float, changes: list, more: bytes
) -> None:
    seeds = seed_files(name)
    data = bytearray(seeds[which % len(seeds)])
    for share, value in changes:
        data[int(share * len(data))] = value
    outcome = fuzz.attempt(target, bytes(data[: int(cut * len(data)) or None]) + more)
    assert not outcome.startswith("FAILURE"), outcome


def test_mutations_are_those_of_their_number(name: str, target: Target) -> None:
    seeds = seed_files(name)
    first, again = (target.mutate(random.Random("3 x 5"), seeds) for _ in range(2))
    assert first == again
    assert any(change(seeds[0], random.Random(i), seeds) != seeds[0] for i in range(3))


class Broken:
    """A target that does what must not be."""

    suffix = ".x"

    def __init__(self, folder: Path) -> None:
        self.wait = threading.Event().wait

    def mutate(self, rng: random.Random, seeds: object) -> bytes:
        return rng.choice([b"fine", b"raise", b"kill", b"hang"])

    def check(self, data: bytes) -> str:
        if data == b"raise":
            raise ValueError("not documented")
        if data == b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"hang":
            self.wait()
        return "fine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_what_raises_kills_or_hangs_is_told_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By children that are forked, since a spawned one would not know the broken target."""
    monkeypatch.setitem(TARGETS, "image", Broken)
    monkeypatch.setattr(fuzz, "_START", "fork")
    arguments = ["--target", "image", "--inputs", "8", "--limit", "1", "--memory", "1000"]
    assert fuzz.main([*arguments, "--failures", str(tmp_path / "kept")]) == 1
    told = capsys.readouterr().out
    kept = {path.read_bytes() for path in (tmp_path / "kept").glob("*.x")}
    assert kept == {b"raise", b"kill", b"hang"}
    for words in ("ValueError: not documented", "killed the process (-9)", "took over 1 s", "fine"):
        assert words in told


def test_the_tool_says_how_to_use_it() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert "python tools/fuzz.py" in text and "tools/fuzz_coverage.py" in text
