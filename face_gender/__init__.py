"""Train and run a classifier that tells male from female face pictures.

``face_gender.load().classify("folder")`` returns a table of predictions. Importing the package does
no work and pulls in no library: torch is imported at `load`. Everything else is in the packages
``data``, ``model``, ``train``, ``evaluate``, ``classify``, ``export`` and ``audit``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from face_gender.classify.classifier import Align, Classifier, Faces
    from face_gender.classify.engines import Engine

__version__ = "0.1.0"

# The one place that numbers the classes: label 0 is male, 1 is female.
CLASSES = ("male", "female")

# Here, so that a command line can be checked without importing torch.
RECIPE_NAMES = ("resnet18", "resnet50", "compact_cnn", "dropout_cnn", "resnet18_tuned")


def load(
    weights: str | os.PathLike[str] | None = None,
    device: str = "auto",
    *,
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    engine: Engine = "torch",
    align: Align = "auto",
    faces: Faces = "one",
) -> Classifier:
    """Return a classifier, whose method ``classify`` takes pictures and returns a table.

    ``weights``: a checkpoint (None: your own ``model_weights/best.pth``, else the shipped weights,
    see `model.weights.default_weights`), or a plain state_dict with the ``recipe`` and the
    ``classes`` that belong to it. ``device``: auto, cpu, cuda, cuda:1 or mps. ``engine``
    "openvino": the graph that `face_gender.export` wrote beside the weights runs the net, on the
    CPU. ``align`` "never": whole pictures are classified, without looking for faces. ``faces``
    "all": every face gets a row of the table. Raises `errors.InputError`, in one sentence, where
    one of these is not there or damaged.
    """
    from pathlib import Path

    from face_gender.classify.classifier import load_classifier
    from face_gender.model.weights import find_weights

    path = find_weights(Path(weights) if weights is not None else None)
    return load_classifier(path, recipe, classes, device, engine=engine, align=align, faces=faces)
