"""Which device runs the net, and in which precision."""

from __future__ import annotations

import torch

from face_gender.files import InputError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" takes cuda, else mps, else cpu.

    Raises InputError for a name that is not known or a device that is not there.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} is not there on this machine: use 'auto'.") from error
    return device


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that the hardware calculates in faster, None where there is none."""
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return None


def _cpu_has_bfloat16() -> bool:
    # torch names no public test; where a release lacks these, the answer is float32.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
