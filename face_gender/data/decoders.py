"""torchvision's decoders of JPEG and PNG files, where its import has been asked for.

They are twice as fast as Pillow, to the same pixels, but importing torchvision takes as long as
importing torch: few pictures are read sooner without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# So many pictures (200 x 200) Pillow decodes in the time in which it would have decoded half of
# them while torchvision was imported: 2.7 s, at 0.5 ms more for each (benchmarks/decoding.py).
_WORTH_IMPORT = 5_000

_found: dict[str, Callable[..., Tensor] | None] = {}


def load_decoders(pictures: int | None = None, threads: int = 1) -> None:
    """Load torchvision's decoders of JPEG and PNG, to be used from here on, where it has them.

    With a number of ``pictures``, to be read by so many ``threads``: only where that saves time.
    To be called before these threads start: two that import at a time may wait for each other.
    """
    is_free = "torchvision.io" in sys.modules
    if is_free or pictures is None or pictures >= _WORTH_IMPORT * threads:
        for name in ("decode_jpeg", "decode_png"):
            load_decoder(name)


def load_decoder(name: str) -> Callable[..., Tensor] | None:
    """Import torchvision and return one of its decoders, None where it has none.

    The operator and not the function around it, which warns at every call that a future release
    of torchvision will be without.
    """
    if name not in _found:
        try:
            import torch
            import torchvision.io  # noqa: F401 - registers it

            _found[name] = getattr(torch.ops.image, name).default
        except (ImportError, AttributeError, RuntimeError):
            _found[name] = None
    return _found[name]


def jpeg_decoder() -> Callable[..., Tensor] | None:
    """Return torchvision's decoder of JPEG files, None before `load_decoders` loads it."""
    return _found.get("decode_jpeg")
