"""Draw docs/samples.png: sample portraits with the answers of the shipped weights.

python -m tools.readme_picture
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from face_gender import CLASSES
from face_gender.classify.classifier import classify, load_classifier
from face_gender.classify.results import Prediction
from face_gender.console import run_command
from face_gender.data.sources import find_images
from face_gender.plots import predictions_grid

ROOT = Path(__file__).resolve().parent.parent


def draw() -> None:
    """Draw the picture."""
    classifier = load_classifier(ROOT / "model_weights" / "shipped.pth")
    source, names = find_images(ROOT / "samples", recursive=True)
    portraits = [name for name in names if name.split("/")[0] in CLASSES]
    chosen = np.random.default_rng(0).permutation(portraits)[:20].tolist()
    answers = [
        each for each in classify(classifier, source, chosen) if isinstance(each, Prediction)
    ][:16]
    labels = [each.name.split("/")[0] for each in answers]
    figure = predictions_grid(answers, labels, source)
    figure.savefig(ROOT / "docs" / "samples.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_command("readme_picture", draw))
