"""How fast an epoch is, beside what the machine allows and beside the plain float32 loop.

python -m benchmarks.training [--data FOLDER] [--recipe resnet18] [--init none] [--pictures 1000]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.common import alternate, index_of, machine, medians, options_of, pictures, rate
from benchmarks.decoding import UsualDataset, bare_decoding, float_pipeline
from face_gender.data.dataset import Batch, FaceLoader, Failure
from face_gender.devices import in_bits
from face_gender.files import cpu_count
from face_gender.model.architectures import build_model
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.loop import train_epoch
from face_gender.train.optim import loss_of
from face_gender.train.run import Run


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = options_of(__doc__, pictures=1_000, repetitions=3)
    parser.add_argument("--recipe", default="resnet18")
    parser.add_argument("--init", help="none, imagenet or a .pth (default: the recipe's, or none)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--plain-pictures", type=int, default=200, help="for the plain loop")
    return parser.parse_args()


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe with the changes asked for."""
    changes: dict[str, Any] = {"init": options.init or "none"}
    if options.batch_size:
        changes["batch_size"] = options.batch_size
    # Pictures in memory have one size.
    return get_recipe(options.recipe, options.size, start_size=1.0, **changes)


class InMemory:
    """As many batches as a loader has, of random pixels that are there already."""

    def __init__(self, loader: FaceLoader) -> None:
        self.batch_sampler, self.dataset = loader.batch_sampler, loader.dataset
        size = self.dataset.transform.preprocessing
        shape = (self.batch_sampler.batch_size, size.height, size.width, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
        positions = torch.arange(len(images))
        labels = positions % 2
        if torch.cuda.is_available():  # as a loader's batches are
            images, labels, positions = (x.pin_memory() for x in (images, labels, positions))
        self.batch = Batch(images, labels, positions, [])

    def leave_out(self, failures: Sequence[Failure]) -> None:
        """Leave nothing out."""

    def __iter__(self) -> Iterator[Batch]:
        for positions in self.batch_sampler:
            images, labels, places, _ = self.batch
            count = len(positions)
            yield Batch(images[:count], labels[:count], places[:count], [])


def epoch(run: Run, loader: Any) -> Callable[[], float]:
    """Return what trains once on what the loader gives, in images a second."""

    def measure() -> float:
        run.train_loader = loader
        return train_epoch(run)[1]

    return measure


def plain_loop(recipe: Recipe, paths: list[Path]) -> Callable[[], object]:
    """Return one epoch as the published notebooks write it: Pillow, float32, torch's defaults."""
    model = build_model(recipe.arch).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    data = UsualDataset(paths, float_pipeline(recipe.preprocessing))
    loader = DataLoader(data, recipe.batch_size, num_workers=cpu_count())

    def run() -> None:
        for images in loader:
            labels = torch.arange(len(images)) % 2
            loss = loss_of(model(images), labels, recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return run


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory() as work:
        measure(options, Path(work))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Measure all ways in turn and print one table."""
    print(machine())
    recipe = recipe_of(options)
    paths = pictures(options.data, options.pictures, work)
    run = Run(recipe, index_of(paths), work, progress=False)
    few = paths[: options.plain_pictures]
    plain = plain_loop(recipe, few)
    print(
        f"{recipe.name}, {recipe.preprocessing.height} x {recipe.preprocessing.width}, batches of "
        f"{recipe.batch_size}, {in_bits(run.step.precision)}"
    )
    ways: dict[str, Callable[[], float]] = {
        "an epoch": epoch(run, run.train_loader),
        "tensors in memory": epoch(run, InMemory(run.train_loader)),
        "decoding alone": bare_decoding(paths, recipe.preprocessing),
        "plain float32 loop": lambda: rate(len(few), plain),
    }
    alternate(ways, 1)  # memory is taken, kernels are compiled
    found = alternate(ways, options.repetitions)
    report(medians(found))


def report(speed: dict[str, float]) -> None:
    """Print the table."""
    own = speed["an epoch"]
    bound = 1 / (1 / speed["decoding alone"] + 1 / speed["tensors in memory"])
    print("| way | images/s | an epoch is faster by |\n|---|---|---|")
    for name, value in {**speed, "bound of decoding and net": bound}.items():
        print(f"| {name} | {value:,.1f} | {own / value:.2f} |")
    print(f"an epoch takes {speed['tensors in memory'] / own:.3f} of one on tensors in memory")
    print(f"the net waits for data {max(0, 1 - own / speed['tensors in memory']):.1%} of the time")


if __name__ == "__main__":
    main()
