"""Kill training and classification again and again, and count what was lost: docs/reliability.md.

    python tools/faults.py --kills 300

Each command runs in a child that is sent SIGKILL, SIGTERM or SIGINT, half of the time at a random
moment and half of the time while a file is being written, and is started again with --resume until
it is complete. After every kill all files under their final names are read. At the end they are
compared, byte by byte, with those of a run that nobody disturbed. With --disk (as root, on Linux)
the same commands write to a file system of a few MB that fills up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import face_gender.classify.classifier  # noqa: E402 - what a child would import
import face_gender.train.loop  # noqa: E402, F401
from face_gender.data.index import Index  # noqa: E402
from face_gender.model.checkpoint import load_checkpoint  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a child may end with after each: killed, or in its own words.
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}


@dataclass
class Tally:
    """What happened, and all that should not have."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.wrong.append(what)
            print(f"WRONG: {what}", flush=True)


def start(command: Callable[[Sequence[str]], None], arguments: Sequence[str], log: Path) -> int:
    """Run a command in a forked child, its libraries already imported; return the process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1) for i in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}\n".encode())
    finally:
        os._exit(code)
    return 0


def ended(child: int) -> int | None:
    """Return a child's exit code, None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def kill(child: int, folder: Path, seconds: float, sign: signal.Signals) -> int | None:
    """Send a signal after a time, or (``seconds`` < 0) at the first sight of a file in writing.

    Return the exit code where the child was quicker, None where it was killed.
    """
    begun, limit = time.monotonic(), 120.0
    while time.monotonic() - begun < (seconds if seconds >= 0 else limit):
        code = ended(child)
        if code is not None:
            return code
        if seconds < 0 and time.monotonic() - begun > -seconds and any(folder.rglob(".*.tmp")):
            break
        time.sleep(0 if seconds < 0 else 0.001)
    os.kill(child, sign)
    return None


def wait(child: int) -> int:
    """Wait for a child, for two minutes at most."""
    begun = time.monotonic()
    while time.monotonic() - begun < 120:
        code = ended(child)
        if code is not None:
            return code
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -99


def run_train(arguments: Sequence[str]) -> None:
    """Do what ``python -m face_gender.train`` does."""
    sys.argv = ["train.py", *arguments]
    runpy.run_module("face_gender.train", run_name="__main__")


def run_process(arguments: Sequence[str]) -> None:
    """Do what ``python process.py`` does."""
    sys.argv = ["process.py", *arguments]
    runpy.run_path(str(ROOT / "process.py"), run_name="__main__")


@dataclass
class Case:
    """A command, where it writes, and what must hold of what it has written so far."""

    name: str
    command: Callable[[Sequence[str]], None]
    arguments: Callable[[Path], list[str]]
    check: Callable[[Path, Path], Iterator[str]]
    final: Callable[[Path], dict[str, bytes]]


def training(index: Path) -> Case:
    """Four epochs of a net with dropout, on some of the sample portraits."""

    def arguments(out: Path) -> list[str]:
        options = ["--recipe", "dropout_cnn", "--epochs", "4", "--batch-size", "8", "--quiet"]
        return [str(index), *options, "--output", str(out)]

    def final(out: Path) -> dict[str, bytes]:
        names = [*out.rglob("epoch_*.pth"), *out.rglob("best.pth")]
        content = {str(path.relative_to(out)): path.read_bytes() for path in names}
        history = (out / "dropout_cnn" / "history.csv").read_text(encoding="utf-8")
        content["history.csv"] = "\n".join(figures(history)).encode()
        return content

    def check(out: Path, reference: Path) -> Iterator[str]:
        good = {path.read_bytes() for path in reference.rglob("epoch_*.pth")}
        for path in out.rglob("*.pth"):
            if path.name.startswith("."):
                continue
            try:
                load_checkpoint(path)
            except Exception as error:
                yield f"{path.name} cannot be read: {error}"
            if path.name != "last.pth" and path.read_bytes() not in good:
                yield f"{path.name} is no epoch of the undisturbed run"
        history = out / "dropout_cnn" / "history.csv"
        if history.exists():
            whole = figures((reference / "dropout_cnn" / "history.csv").read_text("utf-8"))
            rows = figures(history.read_text(encoding="utf-8"))
            if rows != whole[: len(rows)]:
                yield "history.csv differs"

    return Case("training", run_train, arguments, check, final)


def figures(history: str) -> list[str]:
    """Return the lines of a history.csv without the columns that are times."""
    return [",".join(line.split(",")[:6]) for line in history.splitlines()]


def classification(folder: Path, weights: Path) -> Case:
    """All pictures of a folder by the dropout net."""

    def arguments(out: Path) -> list[str]:
        options = ["--weights", str(weights), "--quiet", "--format", "full", "--batch-size", "4"]
        return [str(folder), *options, "--output", str(out / "results.json")]

    def labels(path: Path) -> dict[str, str]:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        return {name: details["label"] for name, details in results.items()}

    def final(out: Path) -> dict[str, bytes]:
        # A probability may differ in its sixth digit: it hangs on the pictures beside it.
        return {path.name: json.dumps(labels(path)).encode() for path in out.iterdir()}

    def check(out: Path, reference: Path) -> Iterator[str]:
        path = out / "results.json"
        if not path.exists():
            return
        try:
            found = labels(path)
        except ValueError as error:
            yield f"results.json cannot be read: {error}"
            return
        if not found.items() <= labels(reference / "results.json").items():
            yield "results.json holds a label of no undisturbed run"

    return Case("classification", run_process, arguments, check, final)


def torment(case: Case, kills: int, work: Path, chance: random.Random, tally: Tally) -> None:
    """Kill a command until there were so many kills, whole run after whole run."""
    reference, log = work / f"{case.name}_reference", work / f"{case.name}.log"
    reference.mkdir()
    begun = time.monotonic()
    code: int | None = wait(start(case.command, case.arguments(reference), log))
    duration = time.monotonic() - begun
    tally.expect(code == 0, f"{case.name} undisturbed ended with {code}: {log.read_text()}")
    expected = case.final(reference)
    done = 0
    while done < kills:
        out = work / f"{case.name}_{tally.runs}"
        out.mkdir()
        tally.runs += 1
        code = None
        while code is None:
            child = start(case.command, [*case.arguments(out), "--resume"], log)
            sign = chance.choice(SIGNALS)
            moment = chance.uniform(0, duration)
            at_write = chance.random() < 0.5
            code = kill(child, out, -moment if at_write else moment, sign)
            if code is None:
                done += 1
                how = "while writing" if at_write else "at random"
                tally.kills[f"{case.name}, {sign.name} {how}"] += 1
                judge(case, wait(child), sign, log, out, reference, tally)
        tally.expect(code == 0, f"{case.name} ended with {code}: {log.read_text()}")
        found = case.final(out)
        wrong = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        tally.expect(not wrong, f"{case.name}: {', '.join(wrong)} differ at the end")
        print(f"{case.name}: {done} kills, {tally.runs} runs", flush=True)
        shutil.rmtree(out)


def judge(
    case: Case, code: int, sign: signal.Signals, log: Path, out: Path, reference: Path, tally: Tally
) -> None:
    """Hold what a killed command left against what it should have."""
    text = log.read_text(encoding="utf-8", errors="replace")
    # A run that was complete when the signal came ends as it would have.
    tally.expect(code in CODES[sign] | {0}, f"{case.name}, {sign.name}: exit {code}: {text}")
    tally.expect("Traceback" not in text, f"{case.name}, {sign.name}: {text}")
    if code in (130, 143):
        tally.expect(text.count("interrupted") == 1, f"{case.name}, {sign.name} said: {text!r}")
    for fault in case.check(out, reference):
        tally.expect(False, f"{case.name}, {sign.name}: {fault}")


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a file system of a size; yield what makes it another size."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}", place], check=True
        ).check_returncode()
    finally:
        subprocess.run(["umount", place], check=True)


def fill(case: Case, sizes: Sequence[str], work: Path, tally: Tally) -> None:
    """Run a command on file systems that are too small, then enlarge each and go on."""
    reference, log = work / f"{case.name}_reference", work / f"{case.name}.log"
    expected = case.final(reference)
    for size in sizes:
        with small_disk(work / "disk", size) as enlarge:
            out = work / "disk"
            code = wait(start(case.command, case.arguments(out), log))
            text = log.read_text(encoding="utf-8", errors="replace")
            tally.kills[f"{case.name}, full disk"] += code != 0
            tally.expect(code in (0, 1), f"{case.name} on {size}: exit {code}: {text}")
            tally.expect("Traceback" not in text, f"{case.name} on {size}: {text}")
            if code:
                words = "cannot be written (No space left on device)"
                tally.expect(words in text, f"{case.name} on {size} said: {text!r}")
            for fault in case.check(out, reference):
                tally.expect(False, f"{case.name} on {size}: {fault}")
            enlarge("200m")
            code = wait(start(case.command, [*case.arguments(out), "--resume"], log))
            tally.expect(code == 0, f"{case.name} on {size}, enlarged: {code}: {log.read_text()}")
            tally.expect(case.final(out) == expected, f"{case.name} on {size} differs at the end")
        (work / "disk").rmdir()


def main() -> int:
    """Run all and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="half of them in each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", action="store_true", help="fill small file systems too")
    parser.add_argument("--only", choices=("training", "classification"))
    options = parser.parse_args()
    chance, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = work / "faces"
        shutil.copytree(ROOT / "samples", data)
        few = work / "few"
        for path in sorted(data.rglob("*.jpg"))[::5]:
            (few / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, few / path.parent.name)
        Index.create(few, progress=False)
        cases = [
            training(few / "index.csv"),
            classification(portraits(data, work / "pictures"), ROOT / "model_weights/shipped.pth"),
        ]
        for case in cases:
            if options.only in (None, case.name):
                torment(case, options.kills // 2, work, chance, tally)
                if options.disk:
                    sizes = ("1m", "2m", "3m", "5m", "8m", "12m", "15m", "20m", "25m", "30m")
                    small = ("4k", "8k", "12k", "16k", "24k", "32k", "48k", "64k", "96k", "128k")
                    fill(case, sizes if case.name == "training" else small, work, tally)
    for what, count in sorted(tally.kills.items()):
        print(f"{count:6d}  {what}")
    print(f"{sum(tally.kills.values())} faults in {tally.runs} runs, {len(tally.wrong)} wrong")
    return 1 if tally.wrong else 0


def portraits(data: Path, out: Path) -> Path:
    """Copy the portraits into one flat folder, several times, so that it takes a while."""
    out.mkdir()
    for i in range(5):
        for path in sorted(data.rglob("*.jpg")):
            shutil.copy(path, out / f"{i}_{path.parent.name}_{path.name}")
    return out


if __name__ == "__main__":
    sys.exit(main())
