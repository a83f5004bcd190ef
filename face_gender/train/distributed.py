"""Several processes that train one net, as torchrun starts them: who they are, what they share.

Each takes its shard of every batch. Any number of processes calculates the losses that one would
where no layer of the net has BatchNorm or Dropout."""

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
from face_gender.errors import InputError, is_out_of_memory
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
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    @property
    def processors(self) -> int:
        """How many of the machine's processors are this process's share."""
        return max(1, cpu_count() // self.local_size)

    def all_gather(self, value: _Value) -> list[_Value]:
        """Return the value that each process gives, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: _Value) -> _Value:
        """Return what rank 0 gives."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def all_counts(self, count: int, device: torch.device) -> list[int]:
        """Return a small number that each process gives, faster than `all_gather`."""
        if self.size == 1:
            return [count]
        every = torch.zeros(self.size, dtype=torch.int64, device=device)
        every[self.rank] = count
        return [int(each) for each in self.all_reduce(every).tolist()]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all processes rank 0's running figures, which each made of its own shards."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def join(device: str = "auto") -> tuple[World, torch.device]:
    """Join the processes that torchrun started, if it did; return this one and its device.

    On CUDA each process of a machine takes the GPU of its local rank. Raises InputError where
    there are more processes than GPUs, or for a device that is not there.
    """
    # A build of torch can come without, as ROCm's for Windows.
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return World(), pick_device(device)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"RANK and the like are not as torchrun sets them ({error}): start with torchrun."
        ) from error
    world = World(rank, size, local_rank, local_size, _job())
    # A driver too old for this torch counts GPUs that are not available.
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if size > 1 and device in ("auto", "cuda") and local_rank < gpus:
        torch.cuda.set_device(local_rank)  # first, or each process would try GPU 0
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
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own, where nobody has chosen
        torch.set_num_threads(world.processors)
    if not dist.is_initialized():
        store, rank, _ = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_store_of_attempt(store, rank, size), rank=rank, world_size=size
        )
        # Not sooner: processes that leave and join again meet those that have not left yet.
        atexit.register(dist.destroy_process_group)
    return world, chosen


def _store_of_attempt(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a part of the processes' store that is empty at the start of each attempt.

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


@contextmanager
def as_input_error() -> Iterator[None]:
    """Turn two errors into an InputError: no memory left, and a peer that has ended."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise InputError(
                "memory is too small for this training: use a smaller batch_size (--batch-size) "
                "or another device (--device cpu)."
            ) from error
        words = ("gloo", "Gloo", "NCCL", "Connection", "peer", "timeout")
        several = os.environ.get("WORLD_SIZE", "1") != "1" and dist.is_torchelastic_launched()
        if not several or not any(word in str(error) for word in words):
            raise
        raise InputError(
            "this process ended because another one of the same training did: start them again "
            "with --resume."
        ) from error


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model whose gradients are averaged over all processes; rank 0's weights go to all.

    On CUDA, BatchNorm takes mean and variance of the whole batch; on a CPU, where torch has no
    such layer, of each process's shard.
    """
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model)
