"""One .pth that holds everything a prediction needs, as plain data."""

from __future__ import annotations

import io
import itertools
import json
import os
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor, nn

import face_gender
from face_gender import CLASSES
from face_gender.data.preprocessing import FaceTransform, Preprocessing, as_dict, as_tuple
from face_gender.errors import InputError, excerpt, first_line
from face_gender.files import check_class_names, write_atomically
from face_gender.model.architectures import build_empty, build_model, head_name
from face_gender.model.recipes import RECIPES, Recipe, get_recipe
from face_gender.model.safe_load import read_content
from face_gender.model.state_dict import (
    check_tensor,
    check_tensors,
    find_tensors,
    load_weights,
    rename,
)

FORMAT = 1
_MOST_CLASSES = 1_000
_LONGEST_NAME = 100  # of a class
_LAST_EPOCH = 10**9
_TEMPERATURES = (0.01, 100.0)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a checkpoint's figures depend on."""
    return {
        "face_gender": face_gender.__version__,
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Checkpoint:
    """A trained net, with all that is needed to rebuild it and to judge it.

    ``classes``: names in the order of the net's outputs; ``epoch``: 0-based, None where it is
    not known; ``metrics``: figures on the validation split; ``seen_hashes``: (n,) int64, sorted,
    the first 64 bits of the sha256 of every picture that it was trained or chosen on;
    ``weights``: the state_dict; ``temperature``: probabilities are softmax(outputs / temperature),
    0.01..100, fitted on the validation split (`metrics.fit_temperature`).
    """

    recipe: Recipe
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: Mapping[str, Tensor]
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seen_hashes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    versions: Mapping[str, str] = field(default_factory=versions)
    temperature: float = 1.0

    def save(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the file atomically; ``dtype`` (float16) halves the size of the weights.

        ``training``: plain data beside it, which no prediction needs.
        """
        weights = {
            name: tensor.detach().cpu().to(dtype)
            if dtype is not None and tensor.is_floating_point()
            else tensor.detach().cpu()
            for name, tensor in self.weights.items()
        }
        described = {
            "format": FORMAT,
            "recipe": self.recipe.to_dict(),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "epoch": self.epoch,
            "metrics": self.metrics,
            "temperature": self.temperature,
            "versions": self.versions,
        }
        content = {
            # Through JSON: pickle writes whether two strings are one object, and a file is to
            # depend on what it holds alone.
            **plain(described),
            "seen": self.seen_hashes,
            "weights": weights,
            **({"training": training} if training else {}),
        }
        # Through memory: torch turns a full disk into a RuntimeError of its own wording.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))

    def build(self) -> tuple[nn.Module, FaceTransform]:
        """Return the net, on the CPU in eval mode and float32, and the transform it takes.

        Raises InputError where the weights do not fit the recipe's net and the classes.
        """
        name = f"{self.recipe.name} with {len(self.classes)} classes"
        model = build_empty(self.recipe.arch, len(self.classes))
        load_weights(model, self.weights, name, assign=True)
        if any(each.is_meta for each in itertools.chain(model.parameters(), model.buffers())):
            # The file lacks counters.
            model = build_model(self.recipe.arch, len(self.classes))
            load_weights(model, self.weights, name)
        return model.eval(), self.preprocessing.eval_transform()

    def describe(self) -> str:
        """Return recipe, epoch and validation accuracy in a few words."""
        words = [self.recipe.name]
        if self.epoch is not None:
            words.append(f"epoch {self.epoch}")
        if "val_accuracy" in self.metrics:
            words.append(f"validation accuracy {self.metrics['val_accuracy']:.4f}")
        return ", ".join(words)


def load_checkpoint(
    path: str | os.PathLike[str],
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
) -> Checkpoint:
    """Read a checkpoint of this kit, or a plain state_dict with its ``recipe`` and ``classes``.

    A checkpoint knows both by itself; naming others than its own is refused. A state_dict may be
    wrapped in dicts and its names in prefixes (`state_dict.find_tensors`, `rename`); one with a
    single output, whose sigmoid is the probability of class 1, takes two classes. No code in the
    file is ever run (``weights_only``). Raises InputError, in one sentence, for all that is wrong.
    """
    path = Path(path)
    weights = read_weights(path)
    if isinstance(weights, Checkpoint):
        _check_claims(weights, path, recipe, classes)
        return weights
    if recipe is None or classes is None:
        raise InputError(
            f"{path} is a plain state_dict, which knows neither its net nor its classes: "
            f"add --recipe (one of {', '.join(RECIPES)}) and --classes (such as female,male)."
        )
    if len(set(classes)) < len(classes):
        raise InputError(f"the classes {','.join(classes)} name one twice: give each its own name.")
    if len(classes) < 2:
        raise InputError(
            f"{path} cannot tell apart the one class {','.join(classes)}: name two with --classes, "
            "of a single output (a sigmoid) the one for 0 first."
        )
    check_class_names(classes)
    known = get_recipe(recipe)
    model = build_empty(known.arch, len(classes))
    try:
        load_weights(model, weights, f"{recipe} with {len(classes)} classes", assign=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    kept = {key: each for key, each in model.state_dict().items() if not each.is_meta}
    return Checkpoint(known, tuple(classes), known.preprocessing, kept, versions={})


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a .pth that says what it has seen. Raises InputError for all else that is wrong."""
    found = read_weights(path)
    if isinstance(found, Checkpoint):
        return found
    raise InputError(
        f"{os.fspath(path)} is a plain state_dict, which does not say what it has seen: name a "
        "checkpoint of this kit."
    )


def read_weights(path: str | os.PathLike[str]) -> Checkpoint | dict[str, Tensor]:
    """Read a .pth or .safetensors: a checkpoint of this kit, or the plain state_dict in it."""
    path = Path(path)
    content = read_content(path)
    if {"format", "weights", "recipe"} <= content.keys():
        return parse_content(content, path)
    return find_tensors(content, path)


def start_from(model: nn.Module, path: str | os.PathLike[str], name: str) -> Tensor:
    """Load the weights of any such file into a net that is to be trained for `CLASSES`.

    A last layer of another number of outputs stays new, with a warning. ``name``: of the net, for
    sentences. Returns the hashes, (n,) int64, of the pictures that the weights have seen, as far
    as the file knows them. Raises InputError.
    """
    found = read_weights(path)
    known = found if isinstance(found, Checkpoint) else None
    try:
        weights = rename(found.weights if isinstance(found, Checkpoint) else found, model)
        own, head = model.state_dict(), head_name(model)
        for key in (f"{head}.weight", f"{head}.bias"):
            if key in weights and key in own and weights[key].shape != own[key].shape:
                warnings.warn(f"{path}: {key} is for other classes, it starts anew", stacklevel=2)
                weights[key] = own[key]
            elif key in weights and known and sorted(known.classes) == sorted(CLASSES):
                weights[key] = weights[key][[known.classes.index(each) for each in CLASSES]]
        load_weights(model, weights, name)
        if not all(bool(each.isfinite().all()) for each in weights.values()):
            raise InputError("weights in it are no numbers, it is damaged: name another file.")
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error
    return known.seen_hashes if known else torch.empty(0, dtype=torch.int64)


def as_int64(sha256: str) -> int:
    """Return the first 64 bits of a hexadecimal sha256, signed."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "big", signed=True)


def hash64(sha256: Iterable[str]) -> Tensor:
    """Return the first 64 bits of each hexadecimal sha256 as sorted, distinct int64 (n,)."""
    return torch.tensor(sorted({as_int64(each) for each in sha256}), dtype=torch.int64)


def parse_content(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """Return the checkpoint that a file of this kit holds. Raises InputError for another's."""
    version = content.get("format")
    if type(version) is not int or version != FORMAT:
        raise InputError(
            f"{path} has format {excerpt(version)} and this version reads {FORMAT}: "
            "use the version of face_gender that wrote it."
        )
    try:
        recipe, preprocessing = as_dict(content["recipe"]), as_dict(content["preprocessing"])
        parts: dict[str, Any] = {
            "recipe": Recipe.from_dict(recipe),
            "classes": _classes(content["classes"]),
            "preprocessing": Preprocessing.from_dict(preprocessing),
            "epoch": _epoch(content["epoch"]),
            "metrics": _metrics(content["metrics"]),
            # Files of earlier versions lack it.
            "temperature": _temperature(content.get("temperature", 1.0)),
            "seen_hashes": _hashes(content["seen"]),
            "versions": as_dict(content["versions"]),
            "weights": as_dict(content["weights"]),
        }
    except _MALFORMED as error:
        raise InputError(
            f"{path} is not a whole checkpoint ({first_line(error)}): copy or train it again."
        ) from error
    pairs = parts["weights"].items()
    if not pairs or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs):
        raise InputError(f"{path} holds no weights: copy or train it again.")
    check_tensors(parts["weights"], path)
    return Checkpoint(**parts)


_MALFORMED = (InputError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


def _classes(value: Any) -> tuple[str, ...]:
    names = as_tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("classes are no names")
    if not 1 <= len(set(names)) == len(names) <= _MOST_CLASSES:
        raise ValueError(f"classes are 1 to {_MOST_CLASSES:,} different names")
    if not all(0 < len(name) <= _LONGEST_NAME for name in names):
        raise ValueError(f"the name of a class has 1 to {_LONGEST_NAME} characters")
    check_class_names(names)
    return names


def _epoch(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value <= _LAST_EPOCH):
        raise ValueError("epoch is no whole number")
    return value


def _metrics(value: Any) -> dict[str, float]:
    metrics = as_dict(value)
    if not all(isinstance(k, str) and isinstance(v, Real) for k, v in metrics.items()):
        raise TypeError("metrics are no numbers by name")
    return {name: float(figure) for name, figure in metrics.items()}


def _temperature(value: Any) -> float:
    low, high = _TEMPERATURES
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"temperature is no number from {low:g} to {high:g}")
    return float(value)


def _hashes(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 1:
        raise TypeError("seen is no tensor of hashes")
    check_tensor(value)
    return value


def _check_claims(
    checkpoint: Checkpoint, path: Path, recipe: str | None, classes: Sequence[str] | None
) -> None:
    if recipe is not None and recipe != checkpoint.recipe.name:
        raise InputError(
            f"{path} was trained with recipe {checkpoint.recipe.name}, not {recipe}: "
            "leave --recipe out, the file knows it."
        )
    if classes is not None and tuple(classes) != checkpoint.classes:
        raise InputError(
            f"{path} has the classes {','.join(checkpoint.classes)}, not {','.join(classes)}: "
            "leave --classes out, the file knows them."
        )


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same data as JSON has it: lists for tuples, no NumPy scalars and no Paths."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=_as_json))
    return found


def _as_json(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else os.fspath(value)
