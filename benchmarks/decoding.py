"""How fast the loader is, beside bare decoding and beside the usual pipelines.

python -m benchmarks.decoding [--data FOLDER] [--size 224] [--pictures 4000]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.common import alternate, index_of, machine, medians, options_of, pictures, rate
from face_gender.data.dataset import Batch, FaceDataset, make_loader, to_input
from face_gender.data.preprocessing import Preprocessing
from face_gender.devices import keep_freed_memory
from face_gender.files import cpu_count

BATCH = 64


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = options_of(__doc__, pictures=4_000, repetitions=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--usual-pictures", type=int, default=1_000, help="for the usual ways")
    return parser.parse_args()


def float_pipeline(preprocessing: Preprocessing) -> v2.Transform:
    """Return the usual transform: Pillow -> float -> torchvision's v2."""
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*to_float, _resize(preprocessing), _normalize(preprocessing)])


def pillow_pipeline(preprocessing: Preprocessing) -> v2.Transform:
    """Return the other usual one, which resizes by Pillow."""
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([_resize(preprocessing), *to_float, _normalize(preprocessing)])


def _resize(preprocessing: Preprocessing) -> v2.Transform:
    return v2.Resize([preprocessing.height, preprocessing.width], antialias=True)


def _normalize(preprocessing: Preprocessing) -> v2.Transform:
    return v2.Normalize(list(preprocessing.mean), list(preprocessing.std))


class UsualDataset(Dataset[Tensor]):
    """Files opened with Pillow and transformed one at a time."""

    def __init__(self, paths: list[Path], transform: v2.Transform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        tensor: Tensor = self.transform(Image.open(self.paths[i]).convert("RGB"))
        return tensor


def bare_decoding(paths: list[Path], preprocessing: Preprocessing) -> Callable[[], float]:
    """Return what measures decoding and resizing alone, of bytes in memory, on all cores."""
    data = [path.read_bytes() for path in paths]
    size = [preprocessing.height, preprocessing.width]

    def measure() -> float:
        context, count = get_context("fork"), cpu_count()
        barrier, times = context.Barrier(count), context.Queue()
        parts = [data[i::count] for i in range(count)]
        processes = [
            context.Process(target=_decode, args=(part, size, barrier, times)) for part in parts
        ]
        for process in processes:
            process.start()
        slowest = max(times.get() for _ in processes)
        for process in processes:
            process.join()
        return len(data) / float(slowest)

    return measure


def _decode(part: list[bytes], size: list[int], barrier: Any, times: Any) -> None:
    torch.set_num_threads(1)
    encoded = [np.frombuffer(each, np.uint8) for each in part]

    def decode() -> None:
        for each in encoded:
            pixels = torch.from_numpy(cv2.imdecode(each, cv2.IMREAD_COLOR_RGB)).permute(2, 0, 1)
            v2.functional.resize(pixels, size, antialias=True)

    barrier.wait()
    times.put(1 / rate(1, decode))


def main() -> None:
    """Measure all ways in turn and print one table."""
    options = parse()
    keep_freed_memory()
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        paths = pictures(options.data, options.pictures, Path(work))
        report(options, paths)


def report(options: argparse.Namespace, paths: list[Path]) -> None:
    """Measure and print."""
    preprocessing = Preprocessing(height=options.size, width=options.size)
    transform = preprocessing.eval_transform()
    dataset = FaceDataset(index_of(paths), None, transform)
    few = paths[: options.usual_pictures]
    workers = cpu_count()
    loaders = {"processes": make_loader(dataset, BATCH, workers=workers),
               "threads": make_loader(dataset, BATCH, workers=0)}  # fmt: skip
    usual = {name: DataLoader(UsualDataset(few, pipeline(preprocessing)), BATCH,
                              num_workers=workers, persistent_workers=True)
             for name, pipeline in (("Pillow, float, v2", float_pipeline),
                                    ("Pillow resized, v2", pillow_pipeline))}  # fmt: skip
    ways: dict[str, Callable[[], float]] = {
        "bare decoding and resizing": bare_decoding(paths, preprocessing)
    }
    for name, loader in loaders.items():
        ways[f"the loader, {name}, pixels"] = partial(speed_of, loader.__iter__, len(paths))
        ways[f"the loader, {name}, normalised"] = partial(
            speed_of,
            partial(map, partial(to_input, transform=transform), loader),
            len(paths),
        )
    for name, each in usual.items():
        ways[f"{name}, normalised"] = partial(speed_of, each.__iter__, len(few))
    alternate(ways, 1)  # workers start
    speed = medians(alternate(ways, options.repetitions))
    print(f"{len(paths)} pictures to {options.size} x {options.size}, {workers} workers")
    print("| way | images/s | of bare | of Pillow, float, v2 |\n|---|---|---|---|")
    bare, slow = speed["bare decoding and resizing"], speed["Pillow, float, v2, normalised"]
    for name, value in speed.items():
        print(f"| {name} | {value:,.0f} | {value / bare:.2f} | {value / slow:.1f} |")


def speed_of(batches: Callable[[], Any], count: int) -> float:
    """Return the pictures a second that an iterator gives: batches, or tensors (n, 3, H, W)."""

    def read() -> None:
        given = sum(len(each.images if isinstance(each, Batch) else each) for each in batches())
        if given != count:
            raise SystemExit(f"{count - given} of {count} pictures could not be read.")

    return rate(count, read)


if __name__ == "__main__":
    main()
