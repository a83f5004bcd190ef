"""One step of the optimiser with all that it may need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from face_gender.devices import forward, retry_on_oom
from face_gender.errors import InputError
from face_gender.model.architectures import has_batchnorm
from face_gender.model.recipes import Recipe
from face_gender.train.distributed import World, parallel
from face_gender.train.optim import loss_of, make_optimizer, make_schedule


class Step:
    """A call makes one optimiser step: step(images, targets, total) -> sum of the losses.

    ``model``: on its device. Out of memory, each batch is cut into ``micro_batches`` from there
    on; in float16, gradients are scaled; ``ema_model`` follows the weights where the recipe
    averages them. Raises InputError where a batch is too small.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        precision: torch.dtype | None = None,
        world: World = World(),  # noqa: B008 - a frozen value
        say: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.model, self.precision, self.world = recipe, model, precision, world
        self.say = say
        # BatchNorm has no variance to learn from in a single picture.
        needs_two = recipe.batch_size > 1 and has_batchnorm(model)
        self.smallest = 2 if needs_two else 1
        if needs_two and recipe.batch_size < 2 * world.size:
            raise InputError(
                f"{recipe.arch} has BatchNorm, and a batch of {recipe.batch_size} gives "
                f"{world.size} processes less than two pictures each: use a larger batch_size."
            )
        device = next(model.parameters()).device
        self.net = parallel(model, device) if world.size > 1 else model
        self.optimizer = make_optimizer(recipe, model)
        self.schedule: torch.optim.lr_scheduler.OneCycleLR | None = None
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.micro_batches = 1
        self.ema_model: AveragedModel | None = None
        if recipe.average:
            self.ema_model = average_of(model, recipe.average)

    def plan(self, steps: int) -> None:
        """Let the learning rate follow the recipe's schedule over epochs of so many steps."""
        self.schedule = make_schedule(self.recipe, self.optimizer, steps)

    @property
    def eval_model(self) -> nn.Module:
        """The net that is validated and saved: the trained one, or the average of its weights."""
        return self.ema_model.module if self.ema_model else self.model

    def takes(self, counts: Sequence[int]) -> bool:
        """Tell whether a batch of so many pictures in each process can be trained on."""
        return min(counts) >= 2 if self.smallest == 2 else sum(counts) > 0

    def __call__(self, images: Tensor, targets: Tensor, total: int) -> Tensor:
        """Make a step; return the sum of this process's losses, on the device.

        ``images`` (n, 3, H, W) float32 on the device and their targets, of a batch that has
        ``total`` pictures in all processes together.
        """
        targets = targets.to(images.device, non_blocking=targets.is_pinned())
        backward = partial(self._backward, images, targets, total)
        # The other processes could not follow one that has no memory left.
        smallest = self.smallest if self.world.size == 1 else max(1, len(images))
        try:
            loss, took = retry_on_oom(backward, len(images), self.micro_batches, smallest)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"{self.recipe.arch} has BatchNorm, which cannot learn from one picture as small "
                "as this: use a larger batch_size."
            ) from error
        if took > self.micro_batches:
            self.micro_batches = took
            self.say(f"out of memory: each batch is cut into {took} micro-batches from here on")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # With fewer processes than it began with, a run may make more steps than were planned.
        if self.schedule and self.schedule.last_epoch < self.schedule.total_steps - 1:
            self.schedule.step()
        if self.ema_model:
            self.ema_model.update_parameters(self.model)
        return loss

    def _backward(self, images: Tensor, targets: Tensor, total: int, micro_batches: int) -> Tensor:
        """Set the gradients of the whole batch's mean loss; return the sum of the losses here."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros((), device=images.device)
        rows = images.tensor_split(micro_batches), targets.tensor_split(micro_batches)
        for some, their in zip(*rows, strict=True):
            outputs = forward(self.net, some, self.precision)
            loss = loss_of(outputs, their, self.recipe) if len(their) else outputs.sum()
            # Of gradients, the mean over processes is taken; of losses, that over all pictures.
            weight = len(their) * self.world.size / total
            self.scaler.scale(loss * weight).backward()
            losses += loss.detach() * len(their)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors, without the weights that a checkpoint has."""
        trained = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "scaler": self.scaler.state_dict(),
            "trained": trained if self.ema_model else None,
            "averaged": int(self.ema_model.n_averaged) - 1 if self.ema_model else 0,
            "micro_batches": self.micro_batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, the net having the weights of the checkpoint."""
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        if self.schedule and state["schedule"] is not None:
            self.schedule.load_state_dict(dict(state["schedule"]))
        if state["scaler"]:  # else of a run that calculated otherwise
            self.scaler.load_state_dict(dict(state["scaler"]))
        if self.ema_model:
            self.model.load_state_dict(dict(state["trained"]))
            self.ema_model.n_averaged.fill_(state["averaged"] + 1)
        self.micro_batches = state["micro_batches"]


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a net's weights and running figures.

    The fewer steps are in it, the faster it follows (`update_parameters` adds one).
    """

    @torch.no_grad()
    def follow(averaged: Any, weights: Any, _: object) -> None:
        if averaged[0].is_floating_point():
            steps = int(ema_model.n_averaged)
            torch._foreach_lerp_(averaged, weights, 1 - min(decay, steps / (9 + steps)))
        else:  # counters
            torch._foreach_copy_(averaged, weights)

    ema_model = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    ema_model.update_parameters(model)  # the first update takes the weights as they are
    return ema_model
