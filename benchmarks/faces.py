"""What finding and aligning faces costs: python -m benchmarks.faces [FOLDER]

1. Crops: the same pictures with faces found and aligned, and taken whole, in turns. FOLDER: tight
   crops (default: the sample composites, over and over).
2. Photographs of 1 to 12 megapixels, the samples pasted into noise: the kit, and a picture at a
   time decoded whole, its face found, cut out and classified by the same nets in float32.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import alternate, machine, medians, rate
from face_gender.classify.classifier import Classifier, classify, load_classifier
from face_gender.faces.detector import load_detector
from face_gender.model.weights import shipped_weights

SAMPLES = sorted((Path(__file__).resolve().parent.parent / "samples").glob("*male/*_[0-6]?.jpg"))
SIZES = ((1200, 900), (2000, 1500), (2600, 2000), (4000, 3000))


def photographs(folder: Path, count: int) -> list[str]:
    """Write photographs of 1 to 12 megapixels with a face of a fifth to half of their height."""
    r = np.random.default_rng(0)
    names = []
    for i in range(count):
        width, height = SIZES[i % len(SIZES)]
        noise = Image.fromarray(r.integers(60, 200, (height // 40, width // 40, 3), np.uint8))
        photo = noise.resize((width, height), Image.Resampling.BICUBIC)
        tall = int(height * r.uniform(0.25, 0.6))
        face = Image.open(SAMPLES[i % len(SAMPLES)]).convert("RGB").resize((tall * 4 // 5, tall))
        photo.paste(face, (int(r.uniform(0, width - face.width)), int(r.uniform(0, height - tall))))
        path = folder / f"{i}.jpg"
        photo.save(path, quality=90)
        names.append(str(path))
    return names


def one_at_a_time(net: Classifier, names: list[str]) -> None:
    """Decode each photograph whole, find its face in it, and classify that."""
    detector = load_detector()
    preprocessing = net.checkpoint.preprocessing
    for name in names:
        pixels = np.asarray(Image.open(io.BytesIO(Path(name).read_bytes())).convert("RGB"))
        faces = detector.detect(pixels)
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        net.probabilities(preprocessing.prepare(tensor, faces[0] if faces else None)[None])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--photographs", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    weights = shipped_weights()
    found = sorted(options.folder.rglob("*.jpg")) if options.folder else SAMPLES
    crops = [str(path) for path in itertools.islice(itertools.cycle(found), options.pictures)]
    aligned, whole = load_classifier(weights), load_classifier(weights, align="never")

    def classified(net: Classifier, names: list[str]) -> float:
        return rate(len(names), lambda: list(classify(net, None, names)))

    ways = {
        "aligned": lambda: classified(aligned, crops),
        "whole": lambda: classified(whole, crops),
    }
    speed = medians(alternate(ways, options.repetitions))
    print(f"crops: {speed['aligned']:.0f} and {speed['whole']:.0f} pictures a second, "
          f"ratio {speed['aligned'] / speed['whole']:.2f}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        names = photographs(Path(folder), options.photographs)
        single = load_classifier(weights, mixed=False)
        ways = {
            "kit": lambda: classified(aligned, names),
            "one at a time": lambda: rate(len(names), lambda: one_at_a_time(single, names)),
        }
        speed = medians(alternate(ways, options.repetitions))
    print(f"photographs: {speed['kit']:.1f} and {speed['one at a time']:.1f} pictures a second, "
          f"ratio {speed['kit'] / speed['one at a time']:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
