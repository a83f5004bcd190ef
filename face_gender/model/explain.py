"""Maps of where a net looked: which parts of a picture spoke for a class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from face_gender.data.augmentation import to_grey
from face_gender.data.preprocessing import Preprocessing
from face_gender.model.architectures import head_name

# To stand wherever a map is shown.
CAVEAT = (
    "Orange parts spoke most for the prediction (hiding them lowers its confidence more than "
    "hiding others); a map is coarse, and tells neither why they count nor whether the prediction "
    "is right."
)

# Cells of a map's shorter side, at least. The last map of a net for small pictures has 3: hiding
# what that marks does no more than hiding any other part (docs/explanations.md).
_CELLS = 10
# Seen on grey by the colour-blind too (Okabe and Ito's orange, a little brighter).
_ORANGE, _OPAQUE = (255.0, 160.0, 0.0), 0.8


def explain(model: nn.Module, images: Tensor, classes: Tensor | int | None = None) -> Tensor:
    """Return what spoke for a class where, float32 (n, H, W) on the CPU, 0..1, 1 the most.

    ``model``: in eval mode. ``images``: (n, 3, H, W), normalised, as the model takes them.
    ``classes``: (n,) int64 or one number, the outputs to explain; None: the highest. LayerCAM
    (Jiang et al., 2021, doi:10.1109/TIP.2021.3089943) on the last map of at least 10 x 10 cells:
    its values, where their gradient is positive, times that gradient, summed over the channels. A
    picture that nothing speaks for gets zeros.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = images.clone().requires_grad_()
        with _last_map(model, images) as found:
            outputs = model(images)
        chosen = outputs.argmax(1) if classes is None else torch.as_tensor(classes)
        chosen = chosen.to(outputs.device).expand(len(images))
        own = outputs.gather(1, chosen[:, None])
        (gradient,) = torch.autograd.grad(own.sum(), found[-1])
    maps = (gradient.float().relu() * found[-1].detach().float()).sum(1, keepdim=True).relu()
    maps = nn.functional.interpolate(maps, size=images.shape[2:], mode="bilinear")[:, 0]
    top = maps.amax((1, 2), keepdim=True)
    return (maps / top.where(top > 0, 1)).cpu()


def overlays(
    model: nn.Module,
    preprocessing: Preprocessing,
    pixels: Tensor,
    classes: Tensor | int | None = None,
) -> npt.NDArray[np.uint8]:
    """Return pictures in grey, in orange what spoke for a class: uint8 (n, H, W, 3).

    ``pixels``: (n, 3, H, W) uint8, resized, as a net sees them; ``classes`` as of `explain`.
    """
    weight = next(model.parameters())
    images = preprocessing.normalized(pixels.to(weight.device)).to(weight.dtype)
    opacity = _OPAQUE * explain(model, images, classes)[..., None]
    grey = to_grey(pixels.cpu().float()).permute(0, 2, 3, 1)
    mixed = grey * (1 - opacity) + torch.tensor(_ORANGE) * opacity
    drawn: npt.NDArray[np.uint8] = mixed.round().to(torch.uint8).numpy()
    return drawn


@contextmanager
def _last_map(model: nn.Module, images: Tensor) -> Iterator[list[Tensor]]:
    """Give a list whose last item is, once the model was run, the map to explain by.

    It is that of a whole block, such as a sum with what leads around it, where a net has blocks,
    and the pictures themselves where no layer has so many cells.
    """
    found, head = [images], model.get_submodule(head_name(model))
    ended: list[bool] = []

    def keep(module: nn.Module, _: object, output: object) -> None:
        if module is head:  # squeezenet's is a convolution
            ended.append(True)
        if not isinstance(output, Tensor) or output.ndim != 4 or ended:
            return
        if min(output.shape[2:]) >= _CELLS and output.requires_grad:
            found.append(output)

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
