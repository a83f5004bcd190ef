"""The published ways to train, each as one frozen value, chosen by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal

from face_gender.data.augmentation import Augmentation, is_number
from face_gender.data.preprocessing import Preprocessing, as_dict, as_tuple
from face_gender.errors import InputError, excerpt
from face_gender.model.architectures import check_arch, check_size, is_own

_LONGEST_TEXT = 4096  # that of a path on most systems
_CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "loss": ("cross_entropy", "nll"),
    "schedule": ("constant", "one_cycle"),
    "best_by": ("val_accuracy", "val_loss"),
}
# Every number of a recipe: whether a value will do, and the words for one that does.
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda value: value > 0, "a number above zero"),
    "weight_decay": (lambda value: value >= 0, "a number from zero up"),
    "momentum": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a fraction from 0 to below 1"),
    "distillation": (lambda value: 0 <= value <= 1, "a fraction from 0 to 1"),
    "average": (lambda value: 0 <= value < 1, "a decay from 0 to below 1"),
    "start_size": (lambda value: 0 < value <= 1, "a fraction above 0, to 1"),
    "mirror_within": (lambda value: 0 <= value <= 1, "a difference from 0 to 1"),
}
_COUNTS = ("epochs", "batch_size")
_SWITCHES = ("amsgrad", "feature_extract")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run but the data, the seed and the machine.

    - ``arch``: a name that `architectures.build_model` knows.
    - ``init``: "imagenet", "none" (random weights), "shipped" (those that come with the kit) or
      the path of a .pth to start from.
    - ``frozen``: submodules that keep the weights they start with; nothing is frozen when ``init``
      is "none", since random layers would stay random.
    - ``feature_extract``: train the last layer alone.
    - ``loss``: "nll" for a net whose outputs are log-probabilities.
    - ``label_smoothing``: the fraction of each target that is spread over all classes (Szegedy et
      al., arXiv:1512.00567).
    - ``distillation``: the fraction of each target that is a teacher's prediction (Hinton et al.,
      arXiv:1503.02531), where the index has a column ``teacher``, the probability of female.
    - ``schedule``: "one_cycle" (Smith and Topin, arXiv:1708.07120) raises the learning rate to its
      value over the first quarter of all steps and lowers it to nearly nothing over the rest.
    - ``best_by``: the figure on the validation split that the best epoch is chosen by.
    - ``average``: decay of the exponential moving average of the weights, a step (Polyak and
      Juditsky, 1992), which is validated and saved in their place; 0: none.
    - ``start_size``: the first epoch's pictures have this fraction of the side, which grows to 1
      over the first two thirds of all epochs (progressive resizing, fast.ai), where ``init`` is
      "none": a net that has learnt already knows faces of one size and would learn them anew.
    - ``mirror_within``: in use and validation, pictures whose two likeliest classes are less
      apart are predicted from their mirror image too (`architectures.with_mirror`); 0: none.
    - ``patience``: stop after so many epochs without a better one; None: never.

    Raises ValueError for values that no run can use and for contradictions, InputError for a net
    that does not exist.
    """

    name: str
    arch: str
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: float
    epochs: int
    batch_size: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    weight_decay: float = 0.0
    momentum: float = 0.0
    amsgrad: bool = False
    init: str = "imagenet"
    frozen: tuple[str, ...] = ()
    feature_extract: bool = False
    loss: Literal["cross_entropy", "nll"] = "cross_entropy"
    label_smoothing: float = 0.0
    distillation: float = 0.0
    schedule: Literal["constant", "one_cycle"] = "constant"
    best_by: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    average: float = 0.0
    start_size: float = 1.0
    mirror_within: float = 0.0
    patience: int | None = None

    def __post_init__(self) -> None:
        self._check_values()
        check_arch(self.arch)
        for contradiction, sentence in self._contradictions():
            if contradiction:
                raise ValueError(sentence)
        check_size(self.arch, self.preprocessing.height, self.preprocessing.width)

    def _check_values(self) -> None:
        """Raise ValueError for a setting that is impossible by itself: a file may hold anything."""
        init = os.fspath(self.init) if isinstance(self.init, os.PathLike) else self.init
        for text in (self.name, self.arch, init, *self.frozen):
            if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
                raise ValueError("names and frozen layers of a recipe are short texts.")
        if not self.name or any(sign in self.name for sign in '/\\:*?"<>|') or self.name[0] == ".":
            raise ValueError(f"{self.name!r} cannot be a recipe's name: it names a folder too.")
        for setting, choices in _CHOICES.items():
            value = getattr(self, setting)
            if not isinstance(value, str) or value not in choices:
                listed = " or ".join(map(repr, choices))
                raise ValueError(f"{setting} is {listed}, not {excerpt(value)!r}.")
        for setting, (will_do, words) in _NUMBERS.items():
            value = getattr(self, setting)
            if not is_number(value) or not will_do(value):
                raise ValueError(f"{setting} is {words}.")
        for setting in _COUNTS:
            if not _is_count(getattr(self, setting)):
                raise ValueError(f"{setting} is a whole number above zero.")
        for setting in _SWITCHES:
            if not isinstance(getattr(self, setting), bool):
                raise ValueError(f"{setting} is True or False.")
        if self.patience is not None and not _is_count(self.patience):
            raise ValueError("patience is a number of epochs above zero, or None.")

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """Yield, for settings that exclude each other, whether they do here, and the sentence."""
        nll, sgd = self.loss == "nll", self.optimizer == "sgd"
        yield (
            nll != (self.arch == "dropout_cnn"),
            "loss is 'nll' for dropout_cnn and 'cross_entropy' for all others.",
        )
        yield nll and self.label_smoothing > 0, "label_smoothing is 0 for loss='nll'."
        yield nll and self.distillation > 0, "distillation is 0 for loss='nll'."
        yield self.momentum > 0 and not sgd, "momentum belongs to optimizer='sgd'."
        yield self.amsgrad and sgd, "amsgrad belongs to optimizer='adam' or 'adamw'."
        yield (
            self.init == "imagenet" and is_own(self.arch),
            f"{self.arch} has no ImageNet weights: use init='none' or a .pth file.",
        )
        yield (
            self.init == "none" and self.feature_extract,
            "feature_extract needs trained features: init cannot be 'none'.",
        )

    def size_fraction(self, epoch: int) -> float:
        """Return the fraction of the side that the pictures of an epoch have (0-based)."""
        if self.init != "none" or epoch == self.epochs - 1:
            return 1.0
        grown = min(1.0, epoch / (self.epochs * 2 / 3))
        return self.start_size + (1 - self.start_size) * grown

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from plain data. Raises TypeError, KeyError or ValueError."""
        values = as_dict(values)
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        values["frozen"] = as_tuple(values["frozen"])
        return cls(**values)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and value > 0  # type: ignore[operator]


_ALL = (
    Recipe(
        name="resnet18",
        arch="resnet18",
        frozen=("conv1", "bn1", "layer1"),
        optimizer="adamw",
        amsgrad=True,
        learning_rate=1e-3,
        weight_decay=0.01,
        epochs=6,
        batch_size=100,
    ),
    Recipe(
        name="resnet50",
        arch="resnet50",
        optimizer="sgd",
        momentum=0.9,
        learning_rate=1e-3,
        epochs=3,
        batch_size=16,
    ),
    Recipe(
        name="compact_cnn",
        arch="compact_cnn",
        init="none",
        preprocessing=Preprocessing(height=100, width=80, mean=(0.5,) * 3, std=(0.5,) * 3),
        optimizer="adam",
        learning_rate=3e-4,
        epochs=15,
        batch_size=64,
    ),
    Recipe(
        name="dropout_cnn",
        arch="dropout_cnn",
        init="none",
        preprocessing=Preprocessing(
            height=128, width=128, augmentation=Augmentation(horizontal_flip=0.5, rotation=15)
        ),
        loss="nll",
        optimizer="adam",
        learning_rate=2e-4,
        epochs=100,
        batch_size=64,  # the publication names none
        best_by="val_loss",
        patience=10,
    ),
    Recipe(
        name="resnet18_tuned",
        arch="resnet18",
        init="none",
        preprocessing=Preprocessing(
            height=96,
            width=96,
            align="landmarks",
            augmentation=Augmentation(
                horizontal_flip=0.5,
                rotation=15,
                zoom=(0.8, 1.25),
                shift=0.06,
                colour=0.4,
                grey=0.12,
                downscale=0.25,
                erasing=0.2,
                reflection=0.6,
                blur=0.15,
                background=0.2,
            ),
        ),
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=0.05,
        schedule="one_cycle",
        label_smoothing=0.05,
        distillation=0.7,
        average=0.998,
        start_size=0.6,
        mirror_within=0.5,
        epochs=8,
        batch_size=64,
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({each.name: each for each in _ALL})


def get_recipe(name: str, /, size: tuple[int, int] | None = None, **changes: Any) -> Recipe:
    """Return the recipe of that name, with ``changes`` to its fields.

    ``size`` is (height, width) in pixels. A change of ``arch`` alone changes the name with it and
    freezes nothing, since a recipe's frozen layers are those of its own net. Raises
    InputError for a name that is not known and ValueError for a change that contradicts the rest.
    """
    if name not in RECIPES:
        hint = _nearest(name, list(RECIPES), "choose one of")
        raise InputError(f"there is no recipe named {name!r}: {hint}")
    recipe = RECIPES[name]
    known = [each.name for each in fields(Recipe)]
    if unknown := next((change for change in changes if change not in known), None):
        hint = _nearest(unknown, known, "choose from")
        raise ValueError(f"a recipe has no setting {unknown!r}: {hint}")
    if changes.get("arch", recipe.arch) != recipe.arch:
        own = changes["arch"] if changes["arch"] not in RECIPES else f"{name}_{changes['arch']}"
        changes = {"name": own, "frozen": (), **changes}
    if size is not None:
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ValueError(f"size is (height, width) in pixels, not {size!r}.")
        preprocessing = changes.get("preprocessing", recipe.preprocessing)
        changes["preprocessing"] = replace(preprocessing, height=size[0], width=size[1])
    return replace(recipe, **changes)


def _nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(known)}."
