"""What torch.compile gives in training on this device, and after how many epochs it pays.

python -m benchmarks.compiled [--recipe compact_cnn] [--pictures 4000] [--repetitions 5]

Steps of forward, loss, backward and optimizer on random pictures in memory, in the precision that
training takes here, alternately by the plain net and by the compiled one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.common import alternate, machine, medians, rate, ratios, seconds
from face_gender.devices import mixed_precision, pick_device
from face_gender.model.architectures import build_model
from face_gender.model.recipes import get_recipe


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="compact_cnn")
    parser.add_argument("--pictures", type=int, default=4_000, help="of the epoch reckoned with")
    parser.add_argument("--steps", type=int, default=8, help="of a repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


def stepper(
    model: Callable[..., torch.Tensor], net: nn.Module, images: torch.Tensor
) -> Callable[[], None]:
    """Return what makes one step on these images (n, 3, H, W)."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    labels = torch.arange(len(images), device=images.device) % 2
    kind = mixed_precision(images.device)

    def step() -> None:
        with torch.autocast(images.device.type, kind, enabled=kind is not None):
            loss = functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def main() -> None:
    """Measure and print."""
    options = parse()
    print(machine())
    recipe, device = get_recipe(options.recipe, init="none"), pick_device("auto")
    size = recipe.preprocessing
    images = torch.randn(recipe.batch_size, 3, size.height, size.width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    steps: dict[str, Callable[[], None]] = {}
    for name in ("plain", "compiled"):
        net = build_model(recipe.arch).train().to(memory_format=torch.channels_last).to(device)
        model = torch.compile(net) if name == "compiled" else net
        steps[name] = stepper(model, net, images)
    first = {name: seconds(step) for name, step in steps.items()}

    def measured(step: Callable[[], None]) -> Callable[[], float]:
        count = options.steps * len(images)

        def run() -> None:
            for _ in range(options.steps):
                step()

        return lambda: rate(count, run)

    found = alternate({name: measured(step) for name, step in steps.items()}, options.repetitions)
    speed, gain = medians(found), ratios(found, "plain")["compiled"]
    print(f"{recipe.name}, batches of {len(images)}: {gain:.2f} of the plain net's speed")
    epoch = {name: options.pictures / value for name, value in speed.items()}
    saved, extra = epoch["plain"] - epoch["compiled"], first["compiled"] - first["plain"]
    pays = (
        f"after {extra / saved:.1f} epochs of {options.pictures:,} pictures"
        if saved > 0
        else "never"
    )
    print(f"compiling takes {extra:.0f} s, which pays {pays}")


if __name__ == "__main__":
    main()
