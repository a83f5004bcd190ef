"""Training and classification are killed again and again, and nothing that was written is lost.

By hand: FAULTS=100 python -m pytest tests/fuzz -m slow -k killed -s
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, SAMPLES, heed_ctrl_c

from face_gender.data.__main__ import main as data_split
from face_gender.model.checkpoint import load_checkpoint

_KILLS = int(os.environ.get("FAULTS", 6))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a child may end with after each: killed, or in its own words; or complete all the same.
CODES = {signal.SIGKILL: {-9, 0}, signal.SIGTERM: {143, -15, 0}, signal.SIGINT: {130, -2, 0}}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="other signals there"),
    pytest.mark.filterwarnings("ignore"),
]


class Case(NamedTuple):
    """A command, what it writes in the end, and what is wrong with what it has written so far."""

    module: str
    arguments: Callable[[Path], list[str]]
    final: Callable[[Path], dict[str, object]]
    faults: Callable[[Path, Path], Iterator[str]]


def training(data: Path) -> Case:
    def arguments(out: Path) -> list[str]:
        options = ["--recipe", "dropout_cnn", "--epochs", "4", "--batch-size", "8", "--quiet"]
        return [str(data / "index.csv"), *options, "--output", str(out)]

    def final(out: Path) -> dict[str, object]:
        return {path.name: path.read_bytes() for path in out.rglob("epoch_*.pth")}

    def faults(out: Path, reference: Path) -> Iterator[str]:
        good = final(reference)
        for path in (each for each in out.rglob("*.pth") if not each.name.startswith(".")):
            load_checkpoint(path)
            if path.name in good and path.read_bytes() != good[path.name]:
                yield f"{path.name} is no epoch of the undisturbed run"

    return Case("face_gender.train", arguments, final, faults)


def classification(data: Path) -> Case:
    def arguments(out: Path) -> list[str]:
        weights = ROOT / "model_weights" / "shipped.pth"
        options = ["--weights", str(weights), "--quiet", "--recursive", "--batch-size", "4"]
        return [str(data), *options, "--output", str(out / "results.json")]

    def final(out: Path) -> dict[str, object]:
        path = out / "results.json"
        found: dict[str, object] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return found

    def faults(out: Path, reference: Path) -> Iterator[str]:
        for name, label in final(out).items():
            if final(reference).get(name) != label:
                yield f"{name} has a label of no undisturbed run"

    return Case("face_gender.classify", arguments, final, faults)


def start(case: Case, out: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", case.module, *case.arguments(out), *more]
    with open(log, "wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, preexec_fn=heed_ctrl_c)


@pytest.mark.parametrize("make", [training, classification])
def test_a_command_that_is_killed_again_and_again_loses_nothing(
    make: Callable[[Path], Case], tmp_path: Path
) -> None:
    """Half of the kills come at a random moment, half at the sight of a file in writing."""
    chance, kills, log = random.Random(0), Counter[str](), tmp_path / "log"
    data, reference = tmp_path / "data", tmp_path / "reference"
    for path in SAMPLES[::5]:
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / path.parent.name)
    assert data_split([str(data)]) == 0
    reference.mkdir()
    case = make(data)
    begun = time.monotonic()
    child = start(case, reference, log)
    assert child.wait() == 0, log.read_text()
    duration = time.monotonic() - begun
    for attempt in itertools.count():  # a run may be complete before it is killed
        if kills.total() >= _KILLS:
            break
        out, code = tmp_path / f"out_{attempt}", None
        out.mkdir()
        while code is None:
            child, sign = start(case, out, log, "--resume"), chance.choice(SIGNALS)
            end, at_write = chance.uniform(0, duration), chance.random() < 0.5
            end += time.monotonic()
            while (code := child.poll()) is None and (
                any(out.rglob(".*.tmp")) < at_write or time.monotonic() < end
            ):
                time.sleep(0.001)
            if code is None:
                child.send_signal(sign)
                kills[f"{sign.name} {'while writing' if at_write else 'at random'}"] += 1
                assert child.wait() in CODES[sign], log.read_text()
                assert "Traceback" not in log.read_text(errors="replace"), log.read_text()
                assert not list(case.faults(out, reference))
        assert code == 0, log.read_text()
        assert case.final(out) == case.final(reference)
    print(case.module, dict(kills))
