"""The kit beside what people would use instead: an epoch, a folder classified, whole photos.

python -m benchmarks.peers DATA --environments FOLDER [--avx2] [--output peers.json]

DATA holds male/ and female/. All ways train torchvision's ResNet18 for one epoch, from the shipped
weights (some of the pictures may be among those that they have seen), on 80 % of the same pictures,
validate on the rest, and classify all of them from a flat folder into a file. Whole photos are
pictures in a grey frame: the kit's process.py beside MTCNN and ResNet18, one photo at a time; they
are counted from the start of the process, others from its first batch on.

Each peer is a script and a list of requirements in benchmarks/peer_scripts, and has an environment
of its own below FOLDER, made where it is not there, with the kit's releases of torch and
torchvision. Rows go into the output as they come; the same command goes on with what is missing
and tries again what failed. Memory is the largest proportional set size of a process and those that
it started, together, looked at once a second (Linux). ``--avx2``: rows under AVX2 alone too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.common import machine, memory_of
from face_gender.devices import mixed_precision
from face_gender.errors import first_line
from face_gender.files import cpu_count, write_atomically
from face_gender.model.checkpoint import load_checkpoint

SCRIPTS = Path(__file__).with_name("peer_scripts")
ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "model_weights" / "shipped.pth"
KIT = "kit"
PEERS = (KIT, "torch", "fastai", "timm", "ultralytics", "hugging_face")
PHOTO_PEERS = (KIT, "deepface_like")
LABELS, SPLITS = ("male", "female"), ("train", "val")
BATCH, RATE = 64, 3e-4
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
SUFFIXES = (".jpg", ".jpeg", ".png")

Row = dict[str, Any]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, metavar="DATA")
    add("--environments", type=Path, required=True, metavar="FOLDER")
    add("--pictures", type=int, default=4_000)
    add("--photos", type=int, default=200)
    add("--sizes", type=int, nargs="+", default=[224, 96])
    add("--peers", default=",".join(dict.fromkeys(PEERS + PHOTO_PEERS)))
    add("--avx2", action="store_true")
    add("--timeout", type=float, default=7_200, help="seconds of one process")
    add("--output", type=Path, default=Path("peers.json"))
    options = parser.parse_args(arguments)
    options.peers = options.peers.split(",")
    if unknown := set(options.peers) - {*PEERS, *PHOTO_PEERS}:
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")
    return options


def lay_out(data: Path, count: int, photos: int, work: Path) -> dict[str, str]:
    """Link so many pictures into folders of every form that is asked for; return the labels.

    ``work``/data/train and val have a folder for each label, ``work``/pictures holds all, and
    ``work``/photos some of them in a larger frame. Names tell nothing: the labels are by name.
    """
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("pictures", "photos", *(f"data/{s}/{n}" for s in SPLITS for n in LABELS)):
        (work / folder).mkdir(parents=True)
    drawn, half = random.Random(0), count // 2
    chosen = []
    for label in LABELS:
        paths = [path for path in (data / label).iterdir() if path.suffix.lower() in SUFFIXES]
        if len(paths) < half:
            raise SystemExit(f"{data / label} holds {len(paths)} pictures, fewer than {half}.")
        chosen += [(path, label) for path in drawn.sample(sorted(paths), half)]
    drawn.shuffle(chosen)
    labels, rows = {}, ["path,label,split"]
    for i, (path, label) in enumerate(chosen):
        name, split = f"{i:05}{path.suffix.lower()}", "val" if i < count // 5 else "train"
        labels[name] = label
        rows.append(f"{split}/{label}/{name},{LABELS.index(label)},{split}")
        for link in (work / "pictures" / name, work / "data" / split / label / name):
            link.symlink_to(path.resolve())
        if i < photos:
            with Image.open(path) as picture:
                photo = Image.new("RGB", (1280, 960), (128, 128, 128))
                place = drawn.randrange(800), drawn.randrange(480)
                photo.paste(picture.convert("RGB").resize((480, 480)), place)
                photo.save(work / "photos" / f"{i:05}.jpg", quality=92)
            labels[f"{i:05}.jpg"] = label
    (work / "data" / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return labels


def write_weights(work: Path) -> None:
    """Write what all begin with, for the kit's order of classes and for that of the alphabet."""
    weights = {name: each.float() for name, each in load_checkpoint(SHIPPED).weights.items()}
    torch.save(weights, work / "kit.pth")
    turned = {name: each.flip(0) for name, each in weights.items() if name.startswith("fc.")}
    torch.save({**weights, **turned}, work / "alphabet.pth")


def environment(peer: str, folder: Path) -> Path:
    """Return the Python of a peer, in an environment made as its lists say where it is not there.

    Raises CalledProcessError where that fails.
    """
    if peer == KIT:
        return Path(sys.executable)
    home = folder.absolute() / peer
    python = home / "bin" / "python"
    listed, alone = SCRIPTS / f"{peer}.txt", SCRIPTS / f"{peer}_alone.txt"
    same = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision")]
    wanted = "\n".join([*same, listed.read_text(), alone.read_text() if alone.exists() else ""])
    mark = home / "installed.txt"
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"{peer}: its environment is made", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    commands = [[sys.executable, "-m", "venv", str(home)], [*pip, "-r", str(listed), *same]]
    if alone.exists():
        commands.append([*pip, "--no-deps", "-r", str(alone)])
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True)
    mark.write_text(wanted)
    return python


def lines_of(script: Path) -> int:
    """Return how many lines between the marks are neither blank nor comments."""
    _, _, rest = script.read_text(encoding="utf-8").partition("# user begins\n")
    lines = [line.strip() for line in rest.partition("# user ends")[0].splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def run(command: list[str], folder: Path, added: dict[str, str], timeout: float) -> Row:
    """Run a script that prints a line of JSON last; return that and the peak of memory.

    Raises RuntimeError with the last line that it said where it fails.
    """
    # What was imported once is to be there, compiled, as on a user's machine.
    kept = {name: each for name, each in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    log, peak, deadline = folder / "log.txt", 0.0, time.monotonic() + timeout
    with open(log, "w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=folder, env={**kept, **added}, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"it took longer than {timeout:g} s")
                peak = max(peak, memory_of(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.strip()] or [""]
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {lines[-1][:300]}")
    found: Row = json.loads(lines[-1])
    return {**found, "peak_mib": peak}


def measure(peer: str, row: Row, settings: Row, options: argparse.Namespace) -> None:
    """Put a peer's figures into its row: of an epoch and a folder, or of whole photos."""
    python, script = environment(peer, options.environments), SCRIPTS / f"{peer}_peer.py"
    row["lines"] = lines_of(script)
    folder, data = Path(settings["work"]) / "run", Path(settings["work"]) / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    photos = row["work"] == "photos"
    begin = data.with_name("kit.pth" if peer == KIT else "alphabet.pth")
    given = {
        "size": row["size"], "bf16": row["precision"] == "bfloat16", "batch": BATCH, "rate": RATE,
        "workers": cpu_count(), "train": str(data / "train"), "val": str(data / "val"),
        "index": str(data / "index.csv"), "init": str(begin), "shipped": str(SHIPPED),
        "pictures": str(data.with_name("photos" if photos else "pictures")),
        "output": str(folder / "answers.json"),
    }  # fmt: skip
    own = {name: str(folder / "settings") for name in ("HF_HOME", "YOLO_CONFIG_DIR")}
    added = {**OFFLINE, **own, **(AVX2 if row["avx2"] else {})}
    if peer == KIT:
        added["PYTHONPATH"] = str(ROOT)
    for mode in ("photos",) if photos else ("train", "classify"):
        count = len(list(Path(given["pictures"]).iterdir()))
        words = json.dumps({**given, "mode": mode, "started": time.time()})
        row[mode] = run([str(python), str(script), words], folder, added, options.timeout)
        seconds = row[mode]["seconds"]
        if photos:  # of which the kit has looked through many before its net is given the first
            seconds += row[mode]["seconds_to_first_batch"]
        row[mode]["pictures_per_second"] = count / seconds
    answers = json.loads(Path(given["output"]).read_text(encoding="utf-8"))
    validation = {path.name for path in Path(given["val"]).glob("*/*")}
    held = [name for name in answers if photos or name in validation]
    row["answered"] = len(answers) / count
    row["right"] = sum(answers[name] == settings["labels"][name] for name in held) / len(held)


def rows_of(options: argparse.Namespace) -> list[tuple[str, str, Row]]:
    """Return key, peer and what is asked for of every row."""
    own = mixed_precision(torch.device("cpu")) == torch.bfloat16
    found = []
    for avx2 in (False, True) if options.avx2 else (False,):
        kinds = [("pictures", size, PEERS) for size in options.sizes]
        photos = [("photos", 96, PHOTO_PEERS)] if options.photos else []
        for work, size, peers in [*kinds, *photos]:
            precision = "bfloat16" if own and not avx2 else "float32"
            row = {"work": work, "size": size, "avx2": avx2, "precision": precision}
            for peer in (each for each in peers if each in options.peers):
                found.append((f"{work} {size} {'avx2' if avx2 else 'own'} {peer}", peer, row))
    return found


def table(rows: dict[str, Row]) -> str:
    """Return all rows as Markdown."""
    lines = []
    for kind, modes in (("pictures", ("train", "classify")), ("photos", ("photos",))):
        each = [f"{mode}: img/s | first batch, s | peak, MiB" for mode in modes]
        fit = ["accuracy"] if kind == "pictures" else []
        head = ["way", "size", "CPU", *each, *fit, "right in the file", "lines"]
        lines += ["", "| " + " | ".join(head) + " |"]
        lines.append("|" + "---|" * (lines[-1].count("|") - 1))
        for key, row in rows.items():
            if row["work"] != kind:
                continue
            cpu = f"{'AVX2' if row['avx2'] else 'its own'}, {row['precision']}"
            cells = [key.split()[-1], str(row["size"]), cpu]
            for mode in modes:
                found = row.get(mode)
                names = ("pictures_per_second", "seconds_to_first_batch", "peak_mib")
                cells += [f"{found[name]:,.1f}" if found else "" for name in names]
            if fit:
                cells.append(f"{row['train']['accuracy']:.3f}" if "train" in row else "")
            right = f"{row['right']:.3f}" if "right" in row else ""
            cells += [row.get("failed", right), str(row.get("lines", ""))]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines[1:]) + "\n"


def save(report: Row, path: Path) -> None:
    """Write all figures so far."""
    text = json.dumps(report, indent=2)
    write_atomically(path, lambda file: file.write(text.encode()))


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing and print all; 1 where a row failed."""
    options = parse(arguments)
    described = {
        "machine": machine(), "data": options.data.resolve().name, "pictures": options.pictures,
        "photos": options.photos,
    }  # fmt: skip
    report: Row = {**described, "rows": {}}
    if options.output.exists():
        report = json.loads(options.output.read_text(encoding="utf-8"))
        if any(report[name] != value for name, value in described.items()):
            raise SystemExit(f"{options.output} is of another machine or other pictures.")
    work = options.environments.absolute() / "work"
    labels = lay_out(options.data, options.pictures, options.photos, work)
    settings = {"work": str(work), "labels": labels}
    write_weights(work)
    for key, peer, row in rows_of(options):
        if "right" in report["rows"].get(key, {}):
            continue
        report["rows"][key] = row = dict(row)
        try:
            measure(peer, row, settings, options)
        except Exception as error:  # whatever a peer does is its row
            said = getattr(error, "stderr", None) or f"{type(error).__name__}: {first_line(error)}"
            row["failed"] = said.strip().splitlines()[-1].replace("|", "/")
        save(report, options.output)
        print(key, row, flush=True)
    print(report["machine"], table(report["rows"]), sep="\n\n")
    return int(any("failed" in row for row in report["rows"].values()))


if __name__ == "__main__":
    sys.exit(main())
