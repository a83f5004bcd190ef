"""Write the weights that process.py finds by default: python -m tools.ship WEIGHTS INDEX

model_weights/shipped.pth: WEIGHTS with its numbers in float16, and how many answers on the
validation split of INDEX that changes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from face_gender.data.index import Index
from face_gender.errors import InputError
from face_gender.evaluate.predict import evaluate
from face_gender.model.checkpoint import load_checkpoint

SHIPPED = Path(__file__).resolve().parent.parent / "model_weights" / "shipped.pth"


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("index", type=Path)
    options = parser.parse_args()
    try:
        index = Index.open(options.index)
        load_checkpoint(options.weights).save(SHIPPED, dtype=torch.float16)
        before, after = (
            evaluate(path, index, "val", allow_seen=True).predictions
            for path in (options.weights, SHIPPED)
        )
    except (InputError, OSError) as error:
        print(f"ship.py: {error}", file=sys.stderr)
        return 1
    print(f"{SHIPPED.name}: {(before != after).sum()} of {len(before)} answers changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
