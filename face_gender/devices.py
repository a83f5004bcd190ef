"""Which device runs the net, and in which precision."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from face_gender.errors import InputError, first_line, is_out_of_memory

_Result = TypeVar("_Result")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" takes cuda, else mps, else cpu.

    Of these, one that this torch cannot calculate on, such as an old GPU, is warned of and left.
    Raises InputError for a name that is not known, or a device that is not there or full.
    """
    if name == "auto":
        found = ["cuda"] if torch.cuda.is_available() else []
        found += ["mps"] if torch.backends.mps.is_available() else []
        for each in found:
            try:
                return _usable(each)
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                warnings.warn(f"{each} cannot be used here ({first_line(error)})", stacklevel=2)
        name = "cpu"
    try:
        return _usable(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} is not there on this machine, or not for this torch: use 'auto'."
        ) from error


def _usable(name: str) -> torch.device:
    """Return the device, which has calculated. Raises InputError where it is full."""
    device = torch.device(name)
    try:
        torch.ones(1, device=device).item()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"device {name!r} has no memory left: end what else runs there, or use 'cpu'."
        ) from error
    return device


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that the hardware calculates in faster, None where there is none."""
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    if device.type == "cpu" and _cpu_is_faster_in_bfloat16():
        return torch.bfloat16
    return None


def _cpu_is_faster_in_bfloat16() -> bool:
    """Tell whether nets are faster in bfloat16 than in float32 on this CPU.

    With AMX they are, and with avx512_bf16 of AMD. With that of Intel and no AMX, they have 0.7 to
    0.8 of the speed of float32 (docs/performance.md).
    """
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    # Where a release of torch does not tell, the answer is float32.
    is_amd = str(able.get("cpu_name", "")).startswith("AMD")
    return bool(able.get("amx_bf16") or (is_amd and able.get("avx512_bf16")))


def in_bits(precision: torch.dtype | None) -> str:
    """Return the name of a precision, such as bfloat16; None is float32."""
    return str(precision or torch.float32).removeprefix("torch.")


def forward(model: nn.Module, images: Tensor, precision: torch.dtype | None) -> Tensor:
    """Return the outputs (n, classes) float32 of images (n, 3, H, W), computed in ``precision``."""
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        outputs: Tensor = model(images)
    return outputs.float()


def halving_on_oom(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Return what a function makes of a batch (n, …): of its halves where memory is too small.

    Raises InputError where a single row does not fit.
    """

    def in_micro_batches(count: int) -> Tensor:
        return torch.cat([function(rows) for rows in batch.tensor_split(count)])

    return retry_on_oom(in_micro_batches, len(batch))[0]


def retry_on_oom(
    function: Callable[[int], _Result], rows: int, micro_batches: int = 1, smallest: int = 1
) -> tuple[_Result, int]:
    """Call ``function(micro_batches)``, with twice as many each time that memory is too small.

    ``rows``: of the whole batch; ``smallest``: how many a micro-batch needs. Returns the result
    and the number that it took. Raises InputError where there are no rows to spare.
    """
    micro_batches = max(1, min(micro_batches, rows // smallest))
    while True:
        try:
            return function(micro_batches), micro_batches
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, which keeps alive what does not fit.
        if rows < 2 * smallest * micro_batches:
            raise InputError(
                f"memory is too small for {math.ceil(rows / micro_batches)} of these pictures at "
                "once: use smaller pictures, a smaller batch or another device (--device cpu)."
            )
        micro_batches *= 2
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the system.

    A batch's tensors are tens of MB. glibc asks the system for each and gives it back; to be
    given it anew, page by page, can cost more than the calculation that fills it. Does nothing
    where the C library is another.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
