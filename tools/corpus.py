"""Read every file of a folder as the kit does, and compare with a second decoder.

python -m tools.corpus FOLDER [--batch 200] [--timeout 600] [--output answers.jsonl]

Processes of their own read the files, a batch each, so that one that crashes, hangs or takes all
memory is named and ends no more than itself. Printed are: how many files were read, how many were
refused for which reason, which of these the second decoder reads, which pictures it shows otherwise
(by over 4 levels of 255 in the mean), the slowest files, and the largest memory of a process. The
second decoder is libvips (`pip install "pyvips[binary]"`).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from face_gender.data.images import UnreadableImage, load_image

MOST_DIFFERENCE = 4.0
Answer = dict[str, Any]  # name, reason ("" where it was read), seconds, second, difference


def second_pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Decode a file by libvips, (H, W, 3), upright, transparency over white."""
    image = pyvips.Image.new_from_file(str(path)).autorot().colourspace("srgb")
    image = image.flatten(background=255) if image.hasalpha() else image
    values = image.cast("uchar").numpy().reshape(image.height, image.width, -1)
    return np.asarray(np.broadcast_to(values[..., :3], (*values.shape[:2], 3)), np.uint8)


def answer_of(path: Path) -> Answer:
    """Read one file by both decoders."""
    began = time.perf_counter()
    pixels: npt.NDArray[np.uint8] | None = None
    answer: Answer = {"name": str(path), "reason": "", "second": "", "difference": None}
    try:
        pixels = np.asarray(load_image(path))
    except UnreadableImage as error:
        answer["reason"] = error.reason
    answer["seconds"] = round(time.perf_counter() - began, 3)
    try:
        other = second_pixels(path)
    except Exception as error:  # whatever it raises, it does not read this file
        answer["second"] = type(error).__name__
        return answer
    if pixels is not None and pixels.shape == other.shape:
        answer["difference"] = float(np.abs(pixels.astype(np.int16) - other).mean())
    elif pixels is not None:
        answer["difference"] = float("inf")
    return answer


def answer_batch() -> None:
    """In a process of its own: answer the files named on stdin, a line each, then the memory."""
    for name in json.load(sys.stdin):
        print(json.dumps(answer_of(Path(name))), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def answers(paths: list[Path], batch: int, timeout: float) -> Iterator[Answer | int]:
    """Yield the answer to every file, and the memory in MB of each process that came to its end."""
    while paths:
        names = json.dumps([str(path) for path in paths[:batch]])
        command = [sys.executable, "-m", "tools.corpus", "--stdin"]
        try:
            done = subprocess.run(
                command, input=names, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, timeout=timeout, check=False,
            )  # fmt: skip
            out, end = done.stdout, f"the process ended with code {done.returncode}"
        except subprocess.TimeoutExpired as error:
            out, end = (error.stdout or b"").decode(), f"no answer within {timeout:g} s"
        lines = [json.loads(line) for line in out.splitlines(True) if line.endswith("\n")]
        yield from lines
        count = sum(isinstance(line, dict) for line in lines)
        if count < len(paths[:batch]):
            yield {"name": str(paths[count]), "reason": end, "seconds": timeout, "second": "?"}
            count += 1
        paths = paths[count:]


def report(found: list[Answer], memory: int) -> str:
    """Return what is printed at the end."""
    read = [each for each in found if not each["reason"]]
    reasons = Counter(re.sub(r"\d[\d,.]*", "N", each["reason"]) for each in found)
    del reasons[""]
    lines = [f"{len(found):,} files: {len(read):,} read, {len(found) - len(read):,} refused"]
    lines += [f"  {count:6,}  {reason}" for reason, count in reasons.most_common()]
    both = [each for each in read if each.get("difference") is not None]
    other = [each for each in both if each["difference"] > MOST_DIFFERENCE]
    lines.append(f"{len(both):,} read by the second decoder too, {len(other):,} shown otherwise")
    lines += [f"  {each['difference']:6.1f}  {each['name']}" for each in other]
    alone = [each for each in found if each["reason"] and not each["second"]]
    lines.append(f"{len(alone):,} read by the second decoder alone")
    lines += [f"  {each['name']}: {each['reason']}" for each in alone]
    slowest = sorted(found, key=lambda each: -each["seconds"])[:3]
    lines.append(f"{sum(each['seconds'] for each in found):,.1f} s in all, the slowest:")
    lines += [f"  {each['seconds']:6.1f} s  {each['name']}" for each in slowest]
    return "\n".join([*lines, f"{memory:,} MB at most in one process"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.corpus")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--batch", type=int, default=200, help="files of one process")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one process")
    parser.add_argument("--output", type=Path, help="write each file's answer here, as JSON lines")
    parser.add_argument("--stdin", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stdin:
        answer_batch()
        return
    if options.folder is None or not options.folder.is_dir():
        parser.error("name a folder")
    paths = sorted(path for path in options.folder.rglob("*") if path.is_file())
    lines = list(answers(paths, options.batch, options.timeout))
    found = [each for each in lines if isinstance(each, dict)]
    memory = max((each for each in lines if isinstance(each, int)), default=0)
    if options.output:
        options.output.write_text("".join(f"{json.dumps(each)}\n" for each in found))
    print(report(found, memory))


if __name__ == "__main__":
    main()
