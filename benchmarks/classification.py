"""How fast a folder is labelled, beside what the machine allows and beside the usual ways.

python -m benchmarks.classification [--data FOLDER] [--weights PTH | --size 224]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.common import alternate, machine, medians, options_of, pictures, rate
from benchmarks.decoding import UsualDataset, bare_decoding, pillow_pipeline
from face_gender.classify.classifier import Classifier, classify, load_classifier
from face_gender.files import cpu_count
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, load_checkpoint
from face_gender.model.recipes import get_recipe
from face_gender.threads import threads_on_one_core_each


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = options_of(__doc__, pictures=5_000, repetitions=5)
    parser.add_argument("--weights", type=Path, help="a checkpoint (default: random weights)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--slow-pictures", type=int, default=300, help="for the slow ways")
    return parser.parse_args()


@torch.inference_mode()
def one_at_a_time(model: nn.Module, data: UsualDataset) -> None:
    """Label as the published scripts do."""
    for i in range(len(data)):
        model(data[i][None]).softmax(1).tolist()


@torch.inference_mode()
def plain_loop(model: nn.Module, data: UsualDataset) -> None:
    """Label through a DataLoader with a worker for each core, in float32."""
    for images in DataLoader(data, batch_size=32, num_workers=cpu_count()):
        model(images).softmax(1).tolist()


def bare_model(
    net: Classifier, batch: int, streams: int, pictures_each: int = 256
) -> Callable[[], float]:
    """Return what measures the net alone on tensors in memory.

    ``streams``: threads that run it side by side on a core each; 1: one that uses all cores.
    """
    preprocessing = net.checkpoint.preprocessing
    images = torch.randn(batch, 3, preprocessing.height, preprocessing.width)
    images = images.to(net.device, net.dtype, memory_format=torch.channels_last)
    rounds = max(1, pictures_each // batch // streams)

    @torch.inference_mode()
    def run(_: int) -> None:
        for _ in range(rounds):
            net.model(images).sum().item()

    def measure() -> float:
        if streams == 1:
            return rate(rounds * batch, lambda: run(0))
        with threads_on_one_core_each(streams) as pool:
            return rate(rounds * batch * streams, lambda: list(pool.map(run, range(streams))))

    return measure


def best_settings(net: Classifier) -> tuple[int, int]:
    """Return the (batch, streams) in which the net alone is fastest."""
    streams = (1, cpu_count()) if net.device.type == "cpu" else (1,)
    batches = (8, 16, 32, 64) if net.device.type == "cpu" else (64, 128, 256)
    ways = {pair: bare_model(net, *pair) for pair in itertools.product(batches, streams)}
    found = alternate({str(pair): way for pair, way in ways.items()}, 3)
    speed = medians(found)
    for name, value in speed.items():
        print(f"  the net alone, (batch, streams) = {name}: {value:,.1f} img/s")
    return max(ways, key=lambda pair: speed[str(pair)])


def checkpoint_of(options: argparse.Namespace, work: Path) -> Path:
    """Return the weights to use, random ones of a ResNet18 if none are named."""
    if options.weights:
        return Path(options.weights)
    recipe = get_recipe("resnet18", init="none", size=(options.size, options.size))
    model = build_model("resnet18")
    path = work / "random.pth"
    Checkpoint(recipe, ("male", "female"), recipe.preprocessing, model.state_dict()).save(path)
    return path


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Measure all ways in turn and print one table."""
    print(machine())
    paths = pictures(options.data, options.pictures, work)
    weights = checkpoint_of(options, work)
    net = load_classifier(weights)
    preprocessing = net.checkpoint.preprocessing
    batch, streams = best_settings(net)
    few = paths[: options.slow_pictures]
    names = [str(path) for path in paths]
    plain, _ = load_checkpoint(weights).build()
    data = UsualDataset(few, pillow_pipeline(preprocessing))
    ways: dict[str, Callable[[], float]] = {
        "decoding alone": bare_decoding(paths, preprocessing),
        "net alone": bare_model(net, batch, streams, 1024),
        "process.py": lambda: rate(len(names), lambda: list(classify(net, None, names))),
        "one at a time": lambda: rate(len(few), lambda: one_at_a_time(plain, data)),
        "plain DataLoader": lambda: rate(len(few), lambda: plain_loop(plain, data)),
    }
    speed = medians(alternate(ways, options.repetitions))
    bound = 1 / (1 / speed["decoding alone"] + 1 / speed["net alone"])
    own = speed["process.py"]
    print(f"{len(paths)} pictures, {preprocessing.height} x {preprocessing.width}, {net.dtype}")
    print("| way | images/s | process.py is faster by |\n|---|---|---|")
    for name, value in {**speed, "bound of the two alone": bound}.items():
        print(f"| {name} | {value:,.1f} | {own / value:.2f} |")


if __name__ == "__main__":
    main()
