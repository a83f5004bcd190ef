"""Weights as other programs save them -> weights under the names of a net of this kit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from face_gender.data.preprocessing import as_dict
from face_gender.errors import InputError, excerpt
from face_gender.model.architectures import head_name
from face_gender.model.recipes import RECIPES

# A net's weights and counters have these types. Others cannot be turned into float32.
_DTYPES = frozenset((
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
))  # fmt: skip
# Keys under which training scripts save weights, the ones to prefer first.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module",
             "weights", "params")  # fmt: skip
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|avg|teacher|target)([._]|$)", re.IGNORECASE)
_DEEPEST = 5  # dicts in one another
_FEWEST = 5  # layers of a net; an optimizer's dicts hold up to three tensors of a layer each
# torch.compile and FSDP put their own name before the layers that they wrap, at any depth.
_WRAPPED = re.compile(r"\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
# Tensors beside the layers: counters, those of losses and metrics, heads used in training alone.
_BESIDE = re.compile(
    r"(.*\.)?(n_averaged|num_batches_tracked|total_ops|total_params|pos_weight|class_weights?)"
    r"|([^.]+\.)?\w*(criterion|loss|metric|accuracy|auroc)\w*\..*|(.*\.)?(aux1|aux2|AuxLogits)\..*",
    re.IGNORECASE,
)
_Found = tuple[tuple[str, ...], dict[str, Tensor]]  # a dict's place in the file, and its tensors
_COUNTER = "num_batches_tracked"  # of a batch norm; files older than PyTorch 0.4.1 lack it
# Numbers in all layers but the last, which tell a user whose weights those are.
_BODIES = {
    11_186_112: "resnet18", 21_301_696: "resnet34", 23_561_152: "resnet50",
    42_605_504: "resnet101", 58_295_232: "resnet152", 593_116: "compact_cnn",
    682_720: "dropout_cnn", 57_003_840: "alexnet", 134_260_544: "vgg16", 134_277_440: "vgg16_bn",
    735_424: "squeezenet1_0", 722_496: "squeezenet1_1", 2_257_984: "mobilenet_v2",
    1_529_968: "mobilenet_v3_small", 4_226_432: "mobilenet_v3_large",
    1_269_784: "shufflenet_v2_x1_0", 4_049_564: "efficientnet_b0", 7_037_504: "densenet121",
    23_048_128: "resnext50_32x4d", 66_902_464: "wide_resnet50_2", 27_820_128: "convnext_tiny",
    85_798_656: "vit_b_16",
}  # fmt: skip
_MOST_NAMED = 100  # classes that somebody may name on a command line


def find_tensors(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return the state_dict in a file's content, however many dicts it is wrapped in.

    The largest dict of tensors, or one nearly so under a usual name; averages (``ema``) where there
    is nothing else. Raises InputError for none, for several alike, and for tensors that hold
    anything but plain numbers.
    """
    found = [each for each in _dicts_of_tensors(content) if each[1]]
    if not found:
        raise InputError(f"{path} holds no weights: save model.state_dict().")
    raw = [each for each in found if _layers(each) >= _FEWEST and not _is_average(each[0])] or found
    most = max(map(_layers, raw))
    raw = sorted((each for each in raw if 2 * _layers(each) >= most), key=_preference)
    if len(raw) > 1 and _preference(raw[0]) == _preference(raw[1]):
        names = " and ".join(excerpt(".".join(each[0])) for each in raw[:2])
        raise InputError(f"{path} holds several nets ({names}): save the state_dict of one.")
    tensors = raw[0][1]
    check_tensors(tensors, path)
    return tensors


def _dicts_of_tensors(content: Mapping[Any, Any]) -> Iterator[_Found]:
    """Yield the tensors of each dict with its place, each dict once whatever refers to it."""
    known: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for place, value in waiting:
        if id(value) in known or len(place) > _DEEPEST:
            continue
        known.add(id(value))
        items = [(k, v) for k, v in as_dict(value).items() if isinstance(k, str)]
        yield place, {key: each for key, each in items if isinstance(each, Tensor)}
        waiting += [((*place, key), each) for key, each in items if isinstance(each, dict)]


def _layers(found: _Found) -> int:
    return sum(tensor.ndim > 1 for tensor in found[1].values())


def _is_average(names: tuple[str, ...]) -> bool:
    return any(_AVERAGE.search(name) for name in names)


def _preference(found: _Found) -> tuple[int, int]:
    known = len(_WRAPPERS)
    ranks = [_WRAPPERS.index(name) if name in _WRAPPERS else known for name in found[0]]
    return max(ranks, default=-1), -_layers(found)


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError where one is anything but plain numbers, each of them in the file."""
    for name, tensor in tensors.items():
        try:
            check_tensor(tensor)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path}: {excerpt(name)} is no plain weight ({error}): "
                "save model.state_dict() of a net in float32."
            ) from error


def check_tensor(tensor: Tensor) -> None:
    """Raise TypeError or ValueError for what is not simply numbers, each of them in the file."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        raise TypeError(f"{tensor.dtype}, {tensor.layout}, on {tensor.device}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{tensor.numel():,} values, and fewer are in the file")


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights under the model's own names, as far as they have a place in it.

    Prefixes of any kind and depth come off (``module.``, ``_orig_mod.``, ``model.``, ``net.``);
    a last layer of another name (``fc.1`` of nn.Sequential(Dropout, Linear), ``head``) takes its
    own where nothing else is left over. What has no place keeps its name, without the prefix.
    Raises InputError where the file holds several such nets that differ.
    """
    own, head = model.state_dict(), head_name(model)
    weights = {_WRAPPED.sub("", name): tensor for name, tensor in weights.items()}
    body = [key for key in own if not key.startswith(f"{head}.") and not key.endswith(_COUNTER)]
    ends = [name for name in weights if f".{name}".endswith(f".{body[0]}")]
    places = [name[: len(name) - len(body[0])] for name in ends]
    copies = [place for place in places if all(place + key in weights for key in body)]
    prefix = _one_of(copies, weights, own) if copies else _likely_prefix(weights, own)
    found = {key: weights[prefix + key] for key in own if prefix + key in weights}
    others = tuple(place for place in copies if place not in (prefix, ""))
    rest = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.removeprefix(prefix) not in found
        and not _BESIDE.fullmatch(name)
        and tensor.is_floating_point()
        and not (others and name.startswith(others))
    }
    return {**found, **(rest if f"{head}.weight" in found else _as_head(rest, own, head))}


def _one_of(copies: list[str], weights: Mapping[str, Tensor], own: Iterable[str]) -> str:
    """Return the prefix of the net to take where a file holds it several times."""
    raw = [place for place in copies if not _AVERAGE.search(place)] or copies
    first = raw[0]
    for other in raw[1:]:
        pairs = [(weights.get(first + key), weights.get(other + key)) for key in own]
        if not all(_same(*pair) for pair in pairs):
            names = " and ".join(place.rstrip(".") or "the top" for place in (first, other))
            raise InputError(
                f"these weights hold several nets (under {excerpt(names)}): "
                "save the state_dict of one."
            )
    return first


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _likely_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return the prefix under which most of a net's layers are found, where some are missing."""
    first = next(iter(weights), "")
    prefixes = ["", *(first[: i + 1] for i, sign in enumerate(first) if sign == ".")]
    return max(prefixes, key=lambda prefix: sum(prefix + key in weights for key in own))


def _as_head(rest: dict[str, Tensor], own: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Give a last layer the net's own name for it, where that is all that is left over."""
    weight = next((name for name in rest if name.endswith(".weight")), "")
    layer = weight.removesuffix(".weight")
    expected = {f"{layer}{key.removeprefix(head)}" for key in own if key.startswith(f"{head}.")}
    if rest.keys() != expected or rest[weight].shape[1:] != own[f"{head}.weight"].shape[1:]:
        return rest
    return {f"{head}{name.removeprefix(layer)}": tensor for name, tensor in rest.items()}


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], name: str, assign: bool = False
) -> None:
    """Copy a state_dict into a model, all of it. Raises InputError where the two differ.

    Names are those of `rename`. A single output, sigmoid(z) = P(class 1), becomes two of the same
    probabilities, the first of them 0. ``name``: of the net, for sentences. ``assign``: the model
    has no memory yet (`build_empty`); it gets a copy, in float32.
    """
    own, head = model.state_dict(), head_name(model)
    weights = rename(weights, model)
    _check_fit(weights, own, head, name)
    if (found := len(weights[f"{head}.weight"])) != (asked := len(own[f"{head}.weight"])):
        if (found, asked) != (1, 2):
            raise InputError(_outputs(found, asked, name))
        for key in [key for key in weights if key.startswith(f"{head}.")]:
            weights[key] = torch.cat([torch.zeros_like(weights[key]), weights[key]])
    if assign:
        weights = {key: tensor.to(own[key].dtype, copy=True) for key, tensor in weights.items()}
    model.load_state_dict(weights, strict=False, assign=assign)


def _check_fit(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str, name: str
) -> None:
    """Raise InputError unless all layers are there, of the right shape but for the outputs."""
    missing = [key for key in own if key not in weights and not key.endswith(_COUNTER)]
    unexpected = [excerpt(key) for key in weights if key not in own]
    both = [key for key in own if key in weights]
    wrong = [key for key in both if weights[key].shape != _wanted(key, own, weights, head)]
    if missing or unexpected or wrong:
        arch, theirs = guess_arch(own), guess_arch(weights)
        if theirs and theirs != arch:
            raise InputError(_of_another(theirs, name))
        cure = "name the recipe that they were trained with"
        if missing and unexpected:
            example = f"they have no {missing[0]} but {unexpected[0]}"
            if theirs:
                cure = f"give its layers torchvision's names, or train a {theirs} of this kit"
        elif missing:
            example = f"they have no {missing[0]}"
        elif unexpected:
            example = f"they have {unexpected[0]}, which the net has not"
        else:
            shape, wanted = tuple(weights[wrong[0]].shape), _wanted(wrong[0], own, weights, head)
            example = f"{wrong[0]} is {shape} and should be {wanted}"
        raise InputError(f"these weights are not those of {name} ({example}): {cure}.")
    for key in both:
        if own[key].is_floating_point() and not weights[key].is_floating_point():
            raise InputError(
                f"these weights are not those of {name}: {key} holds whole numbers ("
                f"{weights[key].dtype}) and should hold fractions: save model.state_dict() instead."
            )


def _wanted(
    key: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], head: str
) -> tuple[int, ...]:
    """Return the shape that a tensor of ``weights`` needs, with as many outputs as they have."""
    shape, last = tuple(own[key].shape), weights.get(f"{head}.weight")
    if last is not None and last.ndim and key.startswith(f"{head}."):
        return (len(last), *shape[1:])
    return shape


def _of_another(arch: str, name: str) -> str:
    names = [recipe.name for recipe in RECIPES.values() if recipe.arch == arch]
    cure = f"name the recipe {' or '.join(names)}" if names else "no recipe here has that net"
    return f"these are the weights of {arch}, not those of {name}: {cure}."


def _outputs(found: int, asked: int, name: str) -> str:
    cure = "name the classes that they were trained for, in order"
    if found > _MOST_NAMED:
        cure = "they are of another task, such as ImageNet, and can start a training with --init"
    outputs = f"{found:,} output{'' if found == 1 else 's'}"
    return f"these weights have {outputs}, and {name} has {asked:,}: {cure}."


def guess_arch(weights: Mapping[str, Tensor]) -> str | None:
    """Return the usual net with as many numbers in all layers but the last, whatever their names.

    The last may be any that has a weight and a bias.
    """
    sizes = {k: t.numel() for k, t in weights.items() if t.ndim and t.is_floating_point()}
    total = sum(sizes.values())
    for name, size in sizes.items():
        if name.endswith(".weight") and weights[name].ndim > 1:
            rest = total - size - sizes.get(f"{name.removesuffix('weight')}bias", 0)
            if rest in _BODIES:
                return _BODIES[rest]
    return None
