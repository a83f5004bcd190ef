"""The published ways to train, each as one frozen value, chosen by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Literal

from face_gender.data.augmentation import Augmentation, is_number
from face_gender.data.preprocessing import Preprocessing, as_dict, as_tuple
from face_gender.errors import InputError
from face_gender.model.architectures import check_arch, check_size, is_own

_LONGEST_TEXT = 4096  # that of a path on most systems


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run but the data, the seed and the machine.

    ``arch``: a name that `models.build_model` knows. ``init``: "imagenet", "none" (random
    weights) or the path of a .pth to start from. ``frozen``: submodules that keep the weights
    they start with; nothing is frozen when ``init`` is "none", since random layers would stay
    random. ``feature_extract``: train the last layer alone. ``loss``: "nll" for a net that
    answers with log-probabilities. ``label_smoothing``: the share of each target that is spread
    over all classes (Szegedy et al., arXiv:1512.00567). ``distillation``: the share that a
    teacher's answer has in each target (Hinton et al., arXiv:1503.02531), where the index has a
    column ``teacher``, the probability of female. ``schedule``: "one_cycle" (Smith and
    Topin, arXiv:1708.07120) raises the learning rate to its value over the first quarter of all
    steps and lowers it to nearly nothing over the rest. ``best_by``: what the best epoch is
    chosen by on the validation split. ``average``: decay of the exponential moving average of the
    weights, a step (Polyak and Juditsky, 1992), which is what is validated and saved; 0: none.
    ``start_size``: the share of the side of the first epoch's pictures, which grows to 1 over the
    first two thirds of all epochs (progressive resizing, fast.ai), where ``init`` is "none": a net
    that has learnt already knows faces of one size, and would have to learn them anew.
    ``patience``: stop after so many epochs without a better one; None: never.
    Raises ValueError for contradictions, InputError for a net that does not exist.
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
    patience: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        check_arch(self.arch)
        if not self.name or any(sign in self.name for sign in '/\\:*?"<>|') or self.name[0] == ".":
            raise ValueError(f"{self.name!r} cannot be a recipe's name: it names a folder too.")
        if self.optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f"optimizer is 'adam', 'adamw' or 'sgd', not {self.optimizer!r}.")
        for setting in ("epochs", "batch_size"):
            if not isinstance(getattr(self, setting), Integral) or getattr(self, setting) < 1:
                raise ValueError(f"{setting} is a whole number above zero.")
        if not isinstance(self.learning_rate, Real) or self.learning_rate <= 0:
            raise ValueError("learning_rate is a number above zero.")
        if self.patience is not None and self.patience < 1:
            raise ValueError("patience is a number of epochs above zero, or None.")
        if self.loss not in ("cross_entropy", "nll") or (self.loss == "nll") != _log_output(self):
            raise ValueError("loss is 'nll' for dropout_cnn and 'cross_entropy' for all others.")
        if self.schedule not in ("constant", "one_cycle"):
            raise ValueError(f"schedule is 'constant' or 'one_cycle', not {self.schedule!r}.")
        if not 0 <= self.label_smoothing < 1 or (self.label_smoothing and self.loss == "nll"):
            raise ValueError("label_smoothing is from 0 to below 1, and 0 for loss='nll'.")
        if not 0 <= self.average < 1:
            raise ValueError("average is a decay from 0 to below 1.")
        if not 0 < self.start_size <= 1:
            raise ValueError("start_size is a share above 0, to 1.")
        if not 0 <= self.distillation <= 1 or (self.distillation and self.loss == "nll"):
            raise ValueError("distillation is a share from 0 to 1, and 0 for loss='nll'.")
        if self.best_by not in ("val_accuracy", "val_loss"):
            raise ValueError(f"best_by is 'val_accuracy' or 'val_loss', not {self.best_by!r}.")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum belongs to optimizer='sgd'.")
        if self.amsgrad and self.optimizer == "sgd":
            raise ValueError("amsgrad belongs to optimizer='adam' or 'adamw'.")
        if self.init == "imagenet" and is_own(self.arch):
            raise ValueError(
                f"{self.arch} has no ImageNet weights: use init='none' or a .pth file."
            )
        check_size(self.arch, self.preprocessing.height, self.preprocessing.width)
        if self.init == "none" and self.feature_extract:
            raise ValueError("feature_extract needs trained features: init cannot be 'none'.")

    def _check_types(self) -> None:
        """Raise ValueError for what no recipe can be made of: a file's may hold anything."""
        choices = (self.optimizer, self.loss, self.schedule, self.best_by)
        init = os.fspath(self.init) if isinstance(self.init, os.PathLike) else self.init
        for text in (self.name, self.arch, init, *choices, *self.frozen):
            if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
                raise ValueError("names, choices and frozen layers of a recipe are short texts.")
        for setting in (
            "learning_rate",
            "weight_decay",
            "momentum",
            "label_smoothing",
            "distillation",
            "average",
            "start_size",
        ):
            if not is_number(getattr(self, setting)):
                raise ValueError(f"{setting} is a number.")
        for setting in ("amsgrad", "feature_extract"):
            if not isinstance(getattr(self, setting), bool):
                raise ValueError(f"{setting} is True or False.")
        if self.patience is not None and not isinstance(self.patience, Integral):
            raise ValueError("patience is a number of epochs above zero, or None.")

    def size_fraction(self, epoch: int) -> float:
        """Return the fraction of the side that the pictures of an epoch have."""
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


def _log_output(recipe: Recipe) -> bool:
    return recipe.arch == "dropout_cnn"


_PUBLISHED = (
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
)

_OWN = (
    Recipe(
        name="resnet18_tuned",
        arch="resnet18",
        init="none",
        preprocessing=Preprocessing(
            height=96,
            width=96,
            augmentation=Augmentation(
                horizontal_flip=0.5,
                rotation=10,
                zoom=(0.55, 1.6),
                shift=0.08,
                colour=0.3,
                grey=0.1,
                downscale=0.25,
                erasing=0.2,
                reflection=0.4,
                blur=0.15,
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
        epochs=8,
        batch_size=64,
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({each.name: each for each in _PUBLISHED + _OWN})


def get_recipe(name: str, /, size: tuple[int, int] | None = None, **changes: Any) -> Recipe:
    """Return the recipe of that name, with ``changes`` to its fields.

    ``size`` is (height, width) in pixels. A change of ``arch`` alone changes the name with it and
    freezes nothing, since a recipe's frozen layers are those of its own net. Raises
    InputError for a name that is not known and ValueError for a change that contradicts the rest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RECIPES)}."
        raise InputError(f"there is no recipe named {name!r}: {hint}")
    recipe = RECIPES[name]
    known = [each.name for each in fields(Recipe)]
    for change in changes:
        if change not in known:
            near = difflib.get_close_matches(change, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}."
            raise ValueError(f"a recipe has no setting {change!r}: {hint}")
    if changes.get("arch", recipe.arch) != recipe.arch:
        own = changes["arch"] if changes["arch"] not in RECIPES else f"{name}_{changes['arch']}"
        changes = {"name": own, "frozen": (), **changes}
    if size is not None:
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ValueError(f"size is (height, width) in pixels, not {size!r}.")
        preprocessing = changes.get("preprocessing", recipe.preprocessing)
        changes["preprocessing"] = replace(preprocessing, height=size[0], width=size[1])
    return replace(recipe, **changes)
