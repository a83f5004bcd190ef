"""The deletion check: does hiding what a map marks cost more confidence than hiding else?

python -m tools.explanations model_weights/shipped.pth officials.zip
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from face_gender.data.images import load_pixels
from face_gender.data.landmarks import prepared
from face_gender.data.preprocessing import Preprocessing, stack
from face_gender.data.sources import find_images
from face_gender.faces.detector import load_detector
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.explain import explain

FRACTIONS = (0.05, 0.1, 0.2, 0.3)


def choose(data: Path, preprocessing: Preprocessing, count: int, seed: int) -> Tensor:
    """Return ``count`` pictures of each folder as the net is given them."""
    source, names = find_images(data, recursive=True)
    by_folder: dict[str, list[str]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(names)):
        by_folder[names[i].rpartition("/")[0]].append(names[i])
    chosen = [name for folder in sorted(by_folder) for name in by_folder[folder][:count]]
    detector = load_detector() if preprocessing.aligns else None
    pixels = [prepared(preprocessing, load_pixels(name, source), detector) for name in chosen]
    return preprocessing.normalized(stack(pixels))


def rankings(model: nn.Module, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Return by name what decides which pixels are hidden, the highest first: (n, H, W)."""
    count, _, height, width = images.shape
    random = torch.Generator().manual_seed(seed)
    maps = explain(model, images)
    steps = torch.rand(count, 2, generator=random) / 2 + 0.25
    steps = (steps * torch.tensor([height, width])).long()
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    blobs = torch.rand(count, 1, 5, 5, generator=random)
    return {
        "what the map marks": maps,
        "the same shape, elsewhere": torch.stack(
            [
                each.roll(tuple(step), (0, 1))
                for each, step in zip(maps, steps.tolist(), strict=True)
            ]
        ),
        "random blobs": nn.functional.interpolate(blobs, (height, width), mode="bicubic")[:, 0],
        "the middle": -(y**2 + x**2).expand(count, -1, -1),
    }


@torch.inference_mode()
def lost_confidence(model: nn.Module, images: Tensor, ranks: Tensor, fraction: float) -> Tensor:
    """Return (n,) by how much the highest probability falls when the first pixels are hidden.

    Each gets the mean colour of its picture.
    """
    flat = ranks.flatten(1)
    order = flat.topk(round(fraction * flat.shape[1]), 1).indices
    hidden = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
    mean = images.mean((2, 3), keepdim=True)
    without = torch.where(hidden.view(len(images), 1, *images.shape[2:]), mean, images)
    before, after = model(images).softmax(1), model(without).softmax(1)
    highest = before.argmax(1, keepdim=True)
    return (before - after).gather(1, highest)[:, 0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: mean loss of confidence, and half its 95 % interval, by fraction hidden."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path, help="folder or archive of pictures")
    parser.add_argument("--count", type=int, default=50, help="pictures of each folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    checkpoint = load_checkpoint(options.weights)
    model = checkpoint.build()[0].eval().requires_grad_(False)
    images = choose(options.data, checkpoint.preprocessing, options.count, options.seed)
    print(f"{len(images)} pictures | " + " | ".join(f"{each:.0%} hidden" for each in FRACTIONS))
    for name, ranks in rankings(model, images, options.seed).items():
        lost = [lost_confidence(model, images, ranks, each) for each in FRACTIONS]
        ends = [1.96 * float(each.std()) / len(images) ** 0.5 for each in lost]
        cells = [f"{float(a.mean()):.3f} ± {b:.3f}" for a, b in zip(lost, ends, strict=True)]
        print(f"{name} | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
