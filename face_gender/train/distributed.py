"""Several processes that train one net, as torchrun starts them: who they are, what they share.

Each takes its part of every batch. What a layer takes from the batch as a whole, BatchNorm's mean
and variance and Dropout's random numbers, it takes from all parts, so that any number of
processes calculates what one would."""

from __future__ import annotations

import atexit
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from face_gender.devices import pick_device
from face_gender.errors import InputError
from face_gender.files import cpu_count

_Value = TypeVar("_Value")

_PATIENCE = 1800.0  # seconds that processes wait for each other, as torch has it


@dataclass(frozen=True)
class World:
    """This process among those that train together; by default it is alone.

    ``rank``: 0 to ``size`` - 1; rank 0 alone writes files and shows progress. ``local_rank`` and
    ``local_size``: the same on this machine. ``job``: what the processes of one launch, its
    restarts too, have in common, "" for a process that torchrun did not start.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    job: str = ""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    @property
    def processors(self) -> int:
        """How many of the machine's processors are this process's share."""
        return max(1, cpu_count() // self.local_size)

    def gathered(self, value: _Value) -> list[_Value]:
        """Return the value that each process gives, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: _Value) -> _Value:
        """Return what rank 0 gives."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def counts(self, count: int, device: torch.device) -> list[int]:
        """Return a small number that each process gives, faster than `gathered`."""
        if self.size == 1:
            return [count]
        every = torch.zeros(self.size, dtype=torch.int64, device=device)
        every[self.rank] = count
        return [int(each) for each in self.total(every).tolist()]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values


def join(device: str = "auto") -> tuple[World, torch.device]:
    """Join the processes that torchrun started, if it did; return this one and its device.

    On CUDA each process of a machine takes the GPU of its local rank. Raises InputError where
    there are more processes than GPUs, or for a device that is not there.
    """
    if not dist.is_torchelastic_launched():
        return World(), pick_device(device)
    number = {name: int(os.environ[name.upper()])
              for name in ("rank", "world_size", "local_rank", "local_world_size")}  # fmt: skip
    size, local_size = number["world_size"], number["local_world_size"]
    world = World(number["rank"], size, number["local_rank"], local_size, _job())
    chosen = pick_device(device)
    if size == 1:
        return world, chosen
    if chosen.type == "mps":
        if device != "auto":
            raise InputError("several processes cannot share mps: use --device cpu.")
        chosen = torch.device("cpu")
    if chosen.type == "cuda":
        if chosen.index is not None or local_size > torch.cuda.device_count():
            raise InputError(
                f"{local_size} processes share {torch.cuda.device_count()} GPUs here: start one "
                "process for each GPU, with --device cuda or auto."
            )
        chosen = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(chosen)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own, where nobody has chosen
        torch.set_num_threads(world.processors)
    if not dist.is_initialized():
        store, rank, _ = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_own_part(store, rank, size), rank=rank, world_size=size
        )
        # Not sooner: processes that leave and join again meet those that have not left yet.
        atexit.register(dist.destroy_process_group)
    return world, chosen


def _own_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a part of the processes' store that nothing of an earlier attempt stands in.

    torchrun keeps one store over its restarts, and gloo would connect to addresses of processes
    that are gone (pytorch issue 167288). Nothing tells attempts apart on all machines, so rank 0
    draws a name for the part and hands it to whoever asks by a name of its own.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"hello/{rank}", own)
        name = store.get(f"welcome/{own}").decode()
        store.set(f"ready/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    missing, limit = set(range(1, size)), time.monotonic() + _PATIENCE
    while missing:
        for each in sorted(missing):
            if store.check([f"ready/{own}/{each}"]):
                missing.remove(each)
            elif store.check([f"hello/{each}"]):  # perhaps of one that is gone: ask again
                store.set(f"welcome/{store.get(f'hello/{each}').decode()}", own)
        if time.monotonic() > limit:
            raise InputError(f"{len(missing)} of {size} processes did not come: start all again.")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


def _job() -> str:
    """Name what torchrun started: by its --rdzv-id or, where it has none, by its process."""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else f"{platform.node()}:{os.getppid()}"


class Share:
    """Which rows of a batch are this process's: ``start`` to ``start + count`` of ``total``."""

    def __init__(self) -> None:
        self.start = 0
        self.total = 0

    def set(self, counts: list[int], rank: int) -> None:
        """Take the rows behind those of the ranks before."""
        self.start, self.total = sum(counts[:rank]), sum(counts)


def as_one_batch(model: nn.Module, share: Share, device: torch.device) -> nn.Module:
    """Let the layers of a model treat the parts of a batch as the one batch that they are.

    The names in its state_dict stay as they are. Frozen layers, being in eval mode, take nothing
    from a batch. Other layers that draw random numbers (stochastic depth) draw other ones than
    a single process would.
    """
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _WholeBatchNorm
        elif type(module) is nn.Dropout:
            module.__class__ = _WholeDropout
            module.share = share  # type: ignore[assignment]
    return model


@contextmanager
def as_input_error() -> Iterator[None]:
    """Turn what a process is told when another of them ends into an InputError."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "Gloo", "NCCL", "Connection", "peer", "timeout")
        several = os.environ.get("WORLD_SIZE", "1") != "1" and dist.is_torchelastic_launched()
        if not several or not any(word in str(error) for word in words):
            raise
        raise InputError(
            "this process ended because another one of the same training did: start them again "
            "with --resume."
        ) from error


def wrapped(model: nn.Module) -> nn.parallel.DistributedDataParallel:
    """Return the model with gradients averaged over all processes; rank 0's weights go to all."""
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


class _WholeBatchNorm(nn.BatchNorm2d):
    """BatchNorm with mean and variance of the batch over all processes (Ioffe and Szegedy 2015).

    torch's SyncBatchNorm runs on GPUs alone.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, variance, count = _moments(images.detach(), self.running_mean)
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), share)
        normal: Tensor = _Normalized.apply(
            images, self.weight, self.bias, mean, variance, count, self.eps
        )
        return normal


@torch.no_grad()
def _moments(images: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance (C,) of the channels, and the number of values in each (1,).

    ``shift``: about the mean; sums of differences from it lose no digits when subtracted.
    """
    count = shift.new_full((1,), images.numel() / images.shape[1])
    first = second = torch.zeros_like(shift)
    if len(images):
        # For the moments alone: the kernel is ten times as fast as var_mean on a CPU.
        tiny = torch.finfo(shift.dtype).tiny
        one = torch.ones_like(shift)  # which has the moments in float32 for images of 16 bits
        _, mean, scale = torch.ops.aten._native_batch_norm_legit.no_stats(
            images, one, one, True, 0.0, tiny
        )
        first = mean - shift
        second = (scale.square().reciprocal() - tiny) + first.square()
    total = torch.cat([first * count, second * count, count])
    dist.all_reduce(total)
    first, second = total[:-1].div(total[-1]).chunk(2)
    return shift + first, (second - first.square()).clamp_min(0), total[-1:]


class _Normalized(torch.autograd.Function):
    """(images - mean) / deviation * weight + bias, where mean and deviation are the images' own."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, *given: Any) -> Tensor:
        weight, bias, mean, variance, count, eps = given
        ctx.save_for_backward(images, weight, mean, variance, count)
        ctx.eps = eps
        return nn.functional.batch_norm(images, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, variance, count = ctx.saved_tensors
        given = gradients[0]
        result = torch.zeros_like(images)
        own = torch.zeros_like(mean).repeat(2)
        if len(images):
            result, *sums = torch.ops.aten.native_batch_norm_backward(
                given, images, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
            )
            own = torch.cat(sums)
        every = own.clone()
        dist.all_reduce(every)
        # What the images change through mean and deviation: a line in each channel.
        by_scale, by_shift = every.div(count).chunk(2)
        scale = (variance + ctx.eps).rsqrt()
        factor = weight * scale
        slope = factor * scale * by_scale
        offset = factor * by_shift - slope * mean
        result = torch.addcmul(
            result - _per_channel(offset, result), images, _per_channel(slope, result), value=-1
        )
        for_weight, for_bias = own.chunk(2)
        return result, for_weight, for_bias, None, None, None, None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None]


class _WholeDropout(nn.Dropout):
    """Dropout with this process's rows of what is drawn for the whole batch."""

    share: Share

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        shape = (self.share.total, *values.shape[1:])
        kept = torch.empty(shape, dtype=values.dtype, device=values.device).bernoulli_(1 - self.p)
        own = kept[self.share.start : self.share.start + len(values)]
        return values * own.div_(1 - self.p) if self.p < 1 else values * 0
