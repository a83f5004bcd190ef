"""A recipe -> the net to train, its optimiser, its learning rate and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from face_gender import CLASSES
from face_gender.errors import InputError
from face_gender.model.architectures import build_model, freeze, freeze_all_but_head
from face_gender.model.checkpoint import Checkpoint, load_weights, start_from
from face_gender.model.recipes import Recipe
from face_gender.model.weights import shipped_weights


def build_for(recipe: Recipe, last: Checkpoint | None = None) -> tuple[nn.Module, Tensor]:
    """Return the net to train and the hashes (n,) int64 of the pictures its weights have seen.

    ``last``: the epoch to go on from; else the net starts as ``recipe.init`` says. Its random
    weights are drawn from torch's global generator. Raises InputError where the net cannot take
    pictures of the recipe's size, or where the weights to start from are not those of this net.
    """
    imagenet = recipe.init == "imagenet" and last is None
    model = build_model(recipe.arch, len(CLASSES), imagenet=imagenet)
    _try_size(model, recipe)
    seen = torch.empty(0, dtype=torch.int64)
    if last is not None:
        load_weights(model, last.weights, recipe.name)
        seen = last.seen_hashes
    elif recipe.init not in ("imagenet", "none"):
        init = shipped_weights() if recipe.init == "shipped" else recipe.init
        seen = start_from(model, init, recipe.arch)
    if recipe.feature_extract:
        freeze_all_but_head(model)
    elif recipe.init != "none":
        freeze(model, recipe.frozen)
    return model, seen


def _try_size(model: nn.Module, recipe: Recipe) -> None:
    """Raise InputError where the net cannot take pictures of the recipe's size."""
    size = recipe.preprocessing.height, recipe.preprocessing.width
    for fraction in dict.fromkeys((1.0, recipe.size_fraction(0))):
        height, width = _scaled(size, fraction)
        try:
            with torch.inference_mode():
                model.eval()(torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError) as error:
            cure = (
                "choose the size that the net was made for, often 224 x 224."
                if fraction == 1
                else "train it with start_size=1."
            )
            raise InputError(
                f"{recipe.arch} cannot take pictures of {height} x {width} pixels: {cure}"
            ) from error


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimiser of all parameters that are not frozen.

    Raises InputError where all are.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    if not parameters:
        raise InputError(f"{recipe.name} has no layer left to train: freeze fewer (frozen).")
    rate, decay = recipe.learning_rate, recipe.weight_decay
    fused = parameters[0].device.type in ("cpu", "cuda")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=recipe.momentum, weight_decay=decay, fused=fused
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay, amsgrad=recipe.amsgrad, fused=fused)


def make_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR | None:
    """Return what sets the learning rate after each of the ``steps`` of an epoch, or None."""
    if recipe.schedule == "constant":
        return None
    # One more: the rate is also set after the last step.
    # And five at least: of four, the quarter that warms up ends where OneCycleLR divides by zero.
    total = max(5, recipe.epochs * steps + 1)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total, pct_start=0.25, cycle_momentum=False
    )


def loss_of(outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """Return the mean loss per picture of outputs (n, classes).

    ``targets``: labels (n,) int64, or probabilities (n, classes) where a teacher has a say.
    """
    if recipe.loss == "nll":
        return nn.functional.nll_loss(outputs, targets)
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)


def scaled_down(images: Tensor, fraction: float) -> Tensor:
    """Return pictures (n, 3, H, W) with sides of that fraction, for progressive resizing."""
    size = _scaled(images.shape[2:], fraction)
    if size == list(images.shape[2:]) or not len(images):
        return images
    return nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def _scaled(size: Sequence[int], fraction: float) -> list[int]:
    return [max(1, round(side * fraction)) for side in size]
