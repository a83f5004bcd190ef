"""The nets, by name: two published compact ones, the ResNets, every torchvision classifier.

torchvision is imported where one of its nets or ImageNet weights are asked for, since importing it
takes as long as importing torch.
"""

from __future__ import annotations

import difflib
import itertools
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from face_gender.errors import InputError, first_line
from face_gender.model.resnet import RESNETS, ResNet


class CompactCNN(nn.Module):
    """The published compact net for 100 x 80 pictures: 593,942 parameters at two classes.

    (N, 3, 100, 80) float32 -> logits (N, classes). The state_dict's names are the published
    ones: ``conv1`` to ``conv3``, ``fc1`` to ``fc4``.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 128, 3)
        self.fc1 = nn.Linear(512, 512)
        self.fc2 = nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, 412)
        self.fc4 = nn.Linear(412, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nn.functional.max_pool2d(conv(x).relu(), 3)
        x = x.flatten(1)
        for layer in (self.fc1, self.fc2, self.fc3):
            x = layer(x).relu()
        logits: Tensor = self.fc4(x)
        return logits


class DropoutCNN(nn.Module):
    """The published dropout net for 128 x 128 pictures: 683,746 parameters at two classes.

    (N, 3, 128, 128) float32 -> log-probabilities (N, classes), for NLLLoss. The state_dict's
    names are the published ones: ``conv1`` to ``conv8``, ``fc1``, ``fc2``.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        channels = [3, 32, 32, 32, 32, 64, 64, 64, 64]
        for i in range(8):
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels[i], channels[i + 1], 3))
        self.dropout = nn.Dropout(0.2)
        self.fc1 = nn.Linear(1024, 512)
        self.fc2 = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i in range(1, 9, 2):
            x = self.get_submodule(f"conv{i}")(x).relu()
            x = self.get_submodule(f"conv{i + 1}")(x).relu()
            x = nn.functional.max_pool2d(x, 2)
        # No ReLU between the two layers: the published net has none.
        x = self.fc1(self.dropout(x.flatten(1)))
        return nn.functional.log_softmax(self.fc2(self.dropout(x)), dim=1)


_OWN = {"compact_cnn": CompactCNN, "dropout_cnn": DropoutCNN}
# Smallest and largest side whose last map has the one size that the first fc layer takes.
_SIDES = {"compact_cnn": (80, 106), "dropout_cnn": (124, 139)}
# Their ImageNet weights expect other mean and std, which the net takes care of itself when told so.
_INCEPTIONS = ("googlenet", "inception_v3")


def is_own(arch: str) -> bool:
    """Tell whether ``arch`` is one of this module's nets, which have no ImageNet weights."""
    return arch in _OWN


def check_arch(arch: str) -> None:
    """Raise InputError, with the nearest names, unless ``arch`` is a net that can be built."""
    if arch in _OWN or arch in RESNETS:
        return
    from torchvision import models

    known = [*_OWN, *models.list_models(module=models)]
    if arch not in known:
        near = difflib.get_close_matches(arch, known, n=3) or sorted(_OWN)
        raise InputError(f"there is no net named {arch!r}: did you mean {' or '.join(near)}?")


def check_size(arch: str, height: int, width: int) -> None:
    """Raise ValueError where ``arch`` is one of this module's nets and cannot take that size."""
    low, high = _SIDES.get(arch, (1, math.inf))
    if not (low <= height <= high and low <= width <= high):
        raise ValueError(
            f"{arch} takes pictures of {low} to {high} pixels a side, not {height} x {width}."
        )


def build_model(arch: str, classes: int = 2, imagenet: bool = False) -> nn.Module:
    """Build a net with a last layer for ``classes`` outputs.

    ``arch`` is "compact_cnn", "dropout_cnn" or the name of any torchvision classifier;
    ``imagenet`` loads torchvision's first published ImageNet weights (the ones the recipes
    used) into all but the last layer. Raises InputError where the name is not known or the
    ImageNet file cannot be had.
    """
    check_arch(arch)
    if imagenet and is_own(arch):
        raise InputError(f"{arch} has no ImageNet weights: use init='none' or a .pth file.")
    if is_own(arch):
        return _OWN[arch](classes)
    if arch in RESNETS and not imagenet:
        return ResNet(*RESNETS[arch], classes)
    model = _with_imagenet(arch) if imagenet else _without_weights(arch)
    _drop_auxiliary_heads(model)
    _replace_head(model, classes)
    return model


def build_empty(arch: str, classes: int = 2) -> nn.Module:
    """Build a net of names and shapes without memory (torch's meta device), where that can be.

    To sample first weights that are replaced at once takes as long as to label a small folder.
    """
    try:
        with torch.device("meta"):
            return build_model(arch, classes)
    except NotImplementedError:  # RegNets calculate while they are built
        return build_model(arch, classes)


def head_name(model: nn.Module) -> str:
    """Return the name of the last layer, the one with an output for each class."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def has_batchnorm(model: nn.Module) -> bool:
    """Tell whether any layer takes its mean and variance from the batch."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return any(isinstance(module, kinds) for module in model.modules())


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Take the submodules named out of training. Raises InputError where one does not exist."""
    for name in names:
        try:
            model.get_submodule(name).requires_grad_(False)
        except AttributeError as error:
            raise InputError(
                f"there is no layer {name!r} to freeze in this net: correct frozen."
            ) from error


def freeze_all_but_head(model: nn.Module) -> None:
    """Leave the last layer alone to be trained (feature extraction)."""
    model.requires_grad_(False)
    model.get_submodule(head_name(model)).requires_grad_(True)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the model, in the memory layout that convolutions are fastest in."""
    if device.type != "mps":  # there they are slower in it, and before torch 2.14 can be wrong
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def for_inference(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Turn a trained net into the form that predicts fastest: eval mode, no gradients.

    Each batch norm is folded into the convolution before it, and weights are held in ``dtype``,
    in which the net then takes its pictures.
    """
    model = _fold_batch_norms(model.eval().requires_grad_(False))
    return to_device(model, device).to(dtype)


def _fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each batch norm that stands right behind a convolution: all nets here run it there.

    (torch.fx finds such pairs by tracing, which takes longer than to label a small folder.)
    """
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (_, conv), (next_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var,
                    norm.eps, norm.weight, norm.bias,
                )  # fmt: skip
                setattr(parent, next_name, nn.Identity())
    return model


def probabilities_of(outputs: Tensor, temperature: float) -> Tensor:
    """Return softmax(outputs / temperature), float32 (n, classes).

    A temperature above 1 brings probabilities closer together, one below 1 further apart; neither
    changes a prediction. Also right for log-probabilities, which are logits too.
    """
    return (outputs.float() / temperature).softmax(dim=1)


def lead_of(outputs: Tensor) -> Tensor:
    """Return how far softmax(outputs) of the likeliest class is above the next, float32 (n,)."""
    first, second = probabilities_of(outputs, 1.0).topk(2).values.unbind(1)
    return first - second


def with_mirror(outputs_of: Callable[[Tensor], Tensor], images: Tensor, within: float) -> Tensor:
    """Return a net's outputs, float32 (n, classes), for images (n, 3, H, W).

    Where the two likeliest classes are less than ``within`` apart (of softmax(outputs)), the mirror
    image is predicted too. Its outputs count half where they are equal, and less the further they
    are apart, so that probabilities have no step at ``within``. Test-time augmentation where it can
    change a label: on all pictures it gives no more (docs/results.md).
    """
    outputs = outputs_of(images).float()
    if within > 0 and outputs.shape[1] > 1:
        share = (1 - lead_of(outputs) / within).clamp(min=0) / 2
        close = share > 0
        if close.any():
            mirrored = outputs_of(images[close].flip(3)).float()
            outputs[close] = outputs[close].lerp(mirrored, share[close, None])
    return outputs


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Return the features of each picture, float32 (n, features).

    The mean over the picture of the last convolution at each resolution, and the input of the last
    layer: early ones tell a face from a wall, late ones one face from another.
    """
    head = head_name(model)
    means: dict[torch.Size, Tensor] = {}
    given: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        means[output.shape[2:]] = output.float().mean((2, 3))

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != head]
    hooks = [layer.register_forward_hook(keep) for _, layer in layers]
    last = model.get_submodule(head)
    hooks.append(last.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].float())))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    final = given[0].mean((2, 3)) if given[0].ndim == 4 else given[0].flatten(1)  # squeezenet
    return torch.cat([*means.values(), final], 1)


def train_mode(model: nn.Module) -> None:
    """Put the model into training mode, what is frozen in it into eval mode.

    Without the second, the running mean and variance of a frozen BatchNorm drift with every
    batch, as they did in the published run.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _replace_head(model: nn.Module, classes: int) -> None:
    name = head_name(model)
    old = model.get_submodule(name)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):  # squeezenet
        new = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _drop_auxiliary_heads(model: nn.Module) -> None:
    """Make GoogLeNet and Inception v3 return one tensor, in training too."""
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]
        for name in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, name):
                setattr(model, name, None)


def _without_weights(arch: str) -> nn.Module:
    # The same as with the ImageNet weights, or a checkpoint would be rebuilt as another net.
    from torchvision import models

    options = {"transform_input": True, "init_weights": True} if arch in _INCEPTIONS else {}
    model: nn.Module = models.get_model(arch, weights=None, **options)
    return model


def _with_imagenet(arch: str) -> nn.Module:
    from torchvision import models

    first = next(iter(models.get_model_weights(arch)))
    try:
        with _network_timeout(30):
            model: nn.Module = models.get_model(arch, weights=first)
            return model
    except Exception as error:  # no network, no space, a broken file: each has its own type
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(first.url).name
        reason = first_line(error).split(". ")[0]
        raise InputError(
            f"the ImageNet weights of {arch} cannot be had ({reason}): put the file {first.url} "
            f"at {place}, use a recipe that needs none (compact_cnn, dropout_cnn) or init='none'."
        ) from error


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    # torch.hub opens the address without a limit and would wait for ever behind a firewall.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
