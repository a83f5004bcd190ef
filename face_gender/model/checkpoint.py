"""One .pth that holds everything a prediction needs, as plain data."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn

import face_gender
from face_gender.data.preprocessing import FaceTransform, Preprocessing, as_dict, as_tuple
from face_gender.errors import InputError, excerpt
from face_gender.files import write_atomically
from face_gender.model.architectures import build_model
from face_gender.model.recipes import RECIPES, Recipe, get_recipe
from face_gender.model.safe_load import check_pth

FORMAT = 1
_MOST_CLASSES = 1_000
_LONGEST_NAME = 100  # of a class
_LAST_EPOCH = 10**9
_TEMPERATURES = (0.01, 100.0)
# What a net's weights and counters are of. Others cannot be turned into float32, or mean others.
_DTYPES = frozenset((
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
))  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of what a checkpoint's figures depend on."""
    return {
        "face_gender": face_gender.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Checkpoint:
    """A trained net, with all that is needed to rebuild it and to judge it.

    ``classes``: names in the order of the net's outputs; ``epoch``: 0-based, None where it is
    not known; ``metrics``: figures on the validation split; ``seen``: (n,) int64, sorted, the
    first 64 bits of the sha256 of every picture that it was trained or chosen on;
    ``weights``: the state_dict; ``temperature``: probabilities are softmax(outputs / temperature),
    0.01..100, fitted on the validation split (`metrics.fit_temperature`).
    """

    recipe: Recipe
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: Mapping[str, Tensor]
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seen: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
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
            **json.loads(json.dumps(_plain(described))),
            "seen": self.seen,
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
        try:
            # Without memory: to draw first weights that are replaced at once takes as long as to
            # label a small folder.
            with torch.device("meta"):
                model = build_model(self.recipe.arch, len(self.classes))
            load_weights(model, self.weights, name, assign=True)
        except NotImplementedError:  # a net that calculates while it is built
            model = None
        tensors = itertools.chain(model.parameters(), model.buffers()) if model else ()
        if model is None or any(each.is_meta for each in tensors):  # what the file lacks
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

    A checkpoint knows both by itself; naming others than its own is refused. No code in the file
    is ever run (``weights_only``). Raises InputError, in one sentence, for all that is wrong.
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
    known = get_recipe(recipe)
    return Checkpoint(known, tuple(classes), known.preprocessing, weights, versions={})


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
    """Read a .pth: a checkpoint of this kit, or the plain state_dict that it is instead."""
    path = Path(path)
    content = read_content(path)
    if "weights" in content and "recipe" in content:
        return parse_content(content, path)
    return _state_dict(content, path)


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], name: str, assign: bool = False
) -> None:
    """Copy a state_dict into a model, all of it. Raises InputError where the two differ.

    ``assign``: the model has no memory yet; it gets a copy, in float32.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    # Files older than PyTorch 0.4.1 lack this counter, which no prediction uses.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        example = f"no {missing[0]}" if missing else f"{unexpected[0]}, which the net has not"
        raise InputError(
            f"these weights are not those of {name} (they have {example}): "
            "name the recipe that they were trained with."
        )
    for key, tensor in weights.items():
        if own[key].shape != tensor.shape:
            raise InputError(
                f"these weights are not those of {name}: {key} is {tuple(tensor.shape)} "
                f"and should be {tuple(own[key].shape)}: name their own recipe and classes."
            )
        if own[key].is_floating_point() and not tensor.is_floating_point():
            raise InputError(
                f"these weights are not those of {name}: {key} holds whole numbers "
                f"({tensor.dtype}) and should hold fractions: save model.state_dict() instead."
            )
    if assign:
        weights = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in weights.items()}
    model.load_state_dict(dict(weights), strict=False, assign=assign)


def as_int64(sha256: str) -> int:
    """Return the first 64 bits of a hexadecimal sha256, signed."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "big", signed=True)


def hash64(sha256: Iterable[str]) -> Tensor:
    """Return the first 64 bits of each hexadecimal sha256 as sorted, distinct int64."""
    return torch.tensor(sorted({as_int64(each) for each in sha256}), dtype=torch.int64)


def read_content(path: Path) -> dict[str, Any]:
    """Return the plain data and tensors of a .pth, on the CPU. Raises InputError."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the path of a .pth file.")
    try:
        check_pth(path)
        with warnings.catch_warnings():
            # A TorchScript file is refused below, in words of our own.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give the path of a .pth file.") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights (a whole pickled model, or no weights at all), and "
            "code in it is never run: save model.state_dict() instead."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): give the path of a .pth file."
        ) from error
    except InputError:
        raise
    except Exception as error:  # a damaged file raises anything, in paragraphs of torch's own
        raise InputError(
            f"{path} is not a whole .pth file (cut short, damaged, or something else under that "
            "name): copy or train it again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds no weights but a {type(content).__name__}: give a .pth file."
        )
    return as_dict(content)


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
            # Which files of earlier versions lack.
            "temperature": _temperature(content.get("temperature", 1.0)),
            "seen": _hashes(content["seen"]),
            "versions": as_dict(content["versions"]),
        }
        weights = as_dict(content["weights"])
    except _MALFORMED as error:
        raise InputError(
            f"{path} is not a whole checkpoint ({_first_line(error)}): copy or train it again."
        ) from error
    return Checkpoint(weights=_state_dict(weights, path), **parts)


_MALFORMED = (InputError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


def _classes(value: Any) -> tuple[str, ...]:
    names = as_tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("classes are no names")
    if not 1 <= len(set(names)) == len(names) <= _MOST_CLASSES:
        raise ValueError(f"classes are 1 to {_MOST_CLASSES:,} different names")
    if not all(0 < len(name) <= _LONGEST_NAME for name in names):
        raise ValueError(f"the name of a class has 1 to {_LONGEST_NAME} characters")
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
    _check_tensor(value)
    return value


def _check_tensor(tensor: Tensor) -> None:
    """Raise TypeError or ValueError for what is not simply numbers, each of them in the file."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        raise TypeError(f"{tensor.dtype}, {tensor.layout}, on {tensor.device}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{tensor.numel():,} values, and fewer are in the file")


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


def _state_dict(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors, also from under the names that other training scripts put them."""
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(name), dict):
            content = as_dict(content[name])
    pairs = content.items()
    if not pairs or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs):
        raise InputError(f"{path} holds no weights: save model.state_dict().")
    for name, tensor in pairs:
        try:
            _check_tensor(tensor)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path}: {excerpt(name)} is no plain weight ({error}): "
                "save model.state_dict() of a net in float32."
            ) from error
    return {name.removeprefix("module."): tensor for name, tensor in pairs}


def _plain(value: Any) -> Any:
    """Return the same data without numpy scalars and Paths, which weights_only would refuse."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each) for each in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return excerpt(lines[0]).rstrip(".:?")
