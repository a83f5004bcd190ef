"""All that a GPU changes, measured and tried once, for a day with a machine that has one.

python -m benchmarks.gpu [--output gpu] [--short] [--device cuda]

Takes less than nine minutes and writes OUTPUT.json and OUTPUT.md after each part, also where one
fails: its row then says why. Pictures are generated, 200 x 200, and read ten times each where speed
is measured, so that what begins counts little. On a GPU, float32 is what torch takes for it there:
its convolutions round to TF32. ``--short``: the same on a few small ones, with any device, to see
that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.classification import bare_model
from benchmarks.common import generate, machine, rate
from benchmarks.training import InMemory
from face_gender.classify.classifier import Classifier, classify, load_classifier
from face_gender.classify.results import Prediction
from face_gender.data.index import Index
from face_gender.devices import in_bits, pick_device
from face_gender.errors import first_line
from face_gender.model.architectures import build_model, to_device
from face_gender.model.checkpoint import Checkpoint
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.model.weights import shipped_weights
from face_gender.train.distributed import parallel
from face_gender.train.loop import train, train_epoch
from face_gender.train.run import Run

MANY = 70_000  # pictures that seconds are given for
ROOM = 3 * 2**30  # bytes that out-of-memory paths are left: less than a batch of 512 takes
TIMES = 10  # that each picture is read where speed is measured
SAMPLES = Path(__file__).resolve().parent.parent / "samples"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every part is given: the pictures, their index, a folder and how much to do."""

    index: Index
    names: list[str]
    folder: Path
    device: str
    short: bool

    def recipe(self, **changes: Any) -> Recipe:
        """Return ResNet18 at 224 x 224, or a smaller net."""
        changes = {"init": "none", "start_size": 1.0, "batch_size": 128, **changes}
        if self.short:
            return get_recipe("compact_cnn", **{**changes, "batch_size": 8})
        return get_recipe("resnet18", (224, 224), **changes)

    def weights(self) -> Path:
        """Return a checkpoint of that net with drawn weights."""
        torch.manual_seed(0)
        recipe, path = self.recipe(), self.folder / "random.pth"
        state = build_model(recipe.arch).state_dict()
        Checkpoint(recipe, ("male", "female"), recipe.preprocessing, state).save(path)
        return path

    def run(self, name: str, mixed: bool = True, times: int = 1, **changes: Any) -> Run:
        """Return a training that has not begun, of each picture so many ``times``."""
        recipe, out = self.recipe(**changes), self.folder / name
        index = replace(self.index, table=pd.concat([self.index.table] * times, ignore_index=True))
        return Run(recipe, index, out, device=self.device, mixed=mixed, progress=False)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def training(work: Work, mixed: bool) -> Figures:
    """Epochs on files and on tensors in memory: the GPU waits for what the first take longer."""
    speed = {}
    with closing(work.run(f"speed_{mixed}", mixed, 1 if work.short else TIMES)) as run:
        files, memory = run.train_loader, InMemory(run.train_loader)
        for name, loader in (("", memory), ("memory", memory), ("files", files), ("files", files)):
            run.train_loader = loader  # type: ignore[assignment]
            speed[name] = train_epoch(run)[1]
    return {
        "precision": in_bits(run.step.precision),
        "images/s": speed["files"],
        "images/s from memory": speed["memory"],
        "fraction that the net waits": max(0.0, 1 - speed["files"] / speed["memory"]),
        f"seconds for {MANY:,} (extrapolated)": MANY / speed["files"],
    }


def classification(work: Work) -> Figures:
    """A folder classified, in 16 bits and in float32, beside the net alone."""
    weights, names = work.weights(), work.names * (1 if work.short else TIMES)
    net, full = (load_classifier(weights, device=work.device, mixed=each) for each in (True, False))
    for each in (net, full):  # the first runs, unmeasured
        list(classify(each, None, work.names))
    own = rate(len(names), lambda: list(classify(net, None, names)))
    alone = bare_model(net, 8 if work.short else 256, 1, 16 if work.short else 4096)
    alone()
    bare = alone()
    return {
        "precision": in_bits(net.dtype),
        "images/s": own,
        "images/s in float32": rate(len(names), lambda: list(classify(full, None, names))),
        "images/s of the net alone": bare,
        "fraction that the net waits": max(0.0, 1 - own / bare),
        f"seconds for {MANY:,} (extrapolated)": MANY / own,
    }


def changes(work: Work) -> Figures:
    """What this device changes in the shipped weights' predictions of the samples, not aligned."""
    weights, names = shipped_weights(), sorted(map(str, SAMPLES.glob("*male/*.jpg")))
    exact = scores(load_classifier(weights, device="cpu", mixed=False, align="never"), names)
    found: Figures = {"pictures": len(exact)}
    for mixed in (True, False):
        net = load_classifier(weights, device=work.device, mixed=mixed, align="never")
        own, bits = scores(net, names), in_bits(net.dtype)
        found |= {
            f"largest change in {bits}": (own - exact).abs().max().item(),
            f"labels changed in {bits}": int((own.argmax(1) != exact.argmax(1)).sum()),
        }
    return found


def scores(net: Classifier, names: list[str]) -> torch.Tensor:
    """Return the probabilities (n, 2) of pictures."""
    found = classify(net, None, names)
    return torch.tensor([each.scores for each in found if isinstance(each, Prediction)])


@contextmanager
def little_memory() -> Iterator[None]:
    """Leave this process ROOM more of the GPU's memory than it holds."""
    torch.cuda.empty_cache()
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    left = (torch.cuda.memory_reserved(device) + ROOM) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, left), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def out_of_memory(work: Work) -> Figures:
    """Batches too large for the memory left: training and classification go on in parts."""
    if not work.device.startswith("cuda"):
        return {"left out": "needs a GPU"}
    run = work.run("oom", batch_size=512)
    net = load_classifier(work.weights(), device=work.device)
    with little_memory():
        loss, speed = train_epoch(run)
        many = net.probabilities(torch.zeros(4_000, 3, 224, 224, dtype=torch.uint8))
    if run.step.micro_batches == 1 or not math.isfinite(loss) or len(many) != 4_000:
        raise RuntimeError(f"{run.step.micro_batches} micro-batches, a loss of {loss}")
    return {"micro-batches": run.step.micro_batches, "train loss": loss, "images/s": speed}


def resume(work: Work) -> Figures:
    """Two epochs at once, and the same with a stop between them."""
    recipe = work.recipe(epochs=2)
    start = partial(train, recipe, work.index, device=work.device, progress=False)
    whole = list(start(work.folder / "whole"))[-1]
    stopped = start(work.folder / "halves")
    next(iter(stopped))
    stopped.close()  # type: ignore[attr-defined]
    (last,) = start(work.folder / "halves", resume=True)
    return {
        "epochs of the second run": 1,
        "val loss": last.val_loss,
        "val loss without a stop": whole.val_loss,
    }


def torchrun(work: Work) -> Figures:
    """One process of torchrun, by nccl on a GPU: DistributedDataParallel with SyncBatchNorm."""
    if work.short:
        return {"left out": "short"}
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    return python(*command, "benchmarks.gpu", "--process", "--device", work.device)


def process(device: str) -> None:
    """Make a step as one of a group of processes and compare it with a plain one."""
    chosen = pick_device(device)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    torch.manual_seed(0)
    plain = to_device(build_model("resnet18"), chosen).train()
    images = torch.randn(8, 3, 64, 64, device=chosen)
    plain(images).logsumexp(1).sum().backward()
    expected = [each.grad.clone() for each in plain.parameters() if each.grad is not None]
    plain.zero_grad()
    parallel(plain, chosen)(images).logsumexp(1).sum().backward()
    found = [each.grad for each in plain.parameters() if each.grad is not None]
    error = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
    largest = max(each.abs().max().item() for each in expected)
    print(f"{torch.distributed.get_backend()}: gradients differ by {error / largest:.1e} at most")
    torch.distributed.destroy_process_group()
    if error > 0.01 * largest:
        raise SystemExit("the gradients of a process group are others.")


def tests(work: Work) -> Figures:
    """The tests of what depends on the device."""
    if work.short:
        return {"left out": "short"}
    found = python("pytest", "-rs", "-p", "no:cacheprovider", "tests/test_cuda.py")
    if "skipped" in found["said"]:
        raise RuntimeError(found["said"])
    return found


def python(*arguments: str) -> Figures:
    """Run a module; return its last line. Raises RuntimeError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FACE_GENDER_GPU": "1"},
    )  # fmt: skip
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {lines[-1]}")
    return {"said": lines[-1]}


PARTS: dict[str, Callable[[Work], Figures]] = {
    "training": partial(training, mixed=True),
    "training in float32": partial(training, mixed=False),
    "classification": classification,
    "changes": changes,
    "out of memory": out_of_memory,
    "resume": resume,
    "torchrun": torchrun,
    "tests": tests,
}


def measure(work: Work, keep: Callable[[dict[str, Figures]], object]) -> dict[str, Figures]:
    """Run every part, and keep what is found; one that fails says why and stops no other."""
    found: dict[str, Figures] = {}
    for name, part in PARTS.items():
        started = time.perf_counter()
        try:
            found[name] = part(work)
        except Exception as error:  # whatever a driver raises
            found[name] = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        found[name]["seconds of this part"] = time.perf_counter() - started
        print(name, found[name], flush=True)
        keep(found)
    return found


def table(title: str, found: dict[str, Figures]) -> str:
    """Return all figures as Markdown."""
    lines = [title, "", "| part | figure | value |", "|---|---|---|"]
    for part, figures in found.items():
        for name, value in figures.items():
            digits = ",.0f" if isinstance(value, float) and value >= 1000 else ".4g"
            shown = format(value, digits) if isinstance(value, float) else str(value)
            lines.append(f"| {part} | {name} | {shown} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write both files; 1 where a part failed."""
    options = parse(arguments)
    if options.process:
        process(options.device)
        return 0
    pick_device(options.device)
    count, side = (24, 40) if options.short else (options.pictures, 200)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for label in ("male", "female"):
            generate(data / label, count // 2, side)
        index = Index.create(data, landmarks=False, progress=False)
        names = sorted(str(path) for path in data.glob("*/*.jpg"))
        work = Work(index, names, Path(folder), options.device, options.short)
        found = measure(work, partial(write, options))
    return int(any("failed" in figures for figures in found.values()))


def write(options: argparse.Namespace, found: dict[str, Figures]) -> None:
    """Write what is found so far."""
    title = machine()
    report = {"machine": title, "short": options.short, "device": options.device, **found}
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    options.output.with_suffix(".md").write_text(table(title, found), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
