"""Weights as other programs save them: whatever is around them, the net is the same."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sentences import sentence
from torch import Tensor, nn

from face_gender import files
from face_gender.classify.classifier import load_classifier
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, load_checkpoint, read_weights, start_from
from face_gender.model.state_dict import guess_arch, load_weights

CLASSES = ["female", "male"]
Weights = dict[str, Tensor]


@cache
def built(arch: str, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(arch, classes)


def weights_of(arch: str = "compact_cnn", classes: int = 2, seed: int = 3) -> Weights:
    return built(arch, classes, seed).state_dict()


def opened(
    content: object, folder: Path, recipe: str = "compact_cnn", **options: Any
) -> Checkpoint:
    torch.save(content, folder / "net.pth", **options)
    return load_checkpoint(folder / "net.pth", recipe, CLASSES)


def refused(content: object, folder: Path, recipe: str = "compact_cnn") -> str:
    with pytest.raises(InputError) as caught:
        opened(content, folder, recipe)
    assert str(folder / "net.pth") in sentence(caught)
    return sentence(caught)


def assert_same(found: Checkpoint, expected: Weights) -> None:
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(found.weights[name], expected[name]) for name in expected)


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


BESIDE = {"epoch": 3, "hyper_parameters": {"lr": 0.1, "decay": None}, "best": [1, 2.5, "x"]}


def with_optimizer(weights: Weights) -> dict[str, Any]:
    state = {i: {"step": torch.tensor(1.0), "exp_avg": each, "exp_avg_sq": each, "max": each}
             for i, each in enumerate(weights.values())}  # fmt: skip
    groups = [{"lr": 0.1, "params": list(state)}]
    return {"optimizer": {"state": state, "param_groups": groups}, "anything": weights, **BESIDE}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.model.",
     "_orig_mod.module.", "model.net._orig_mod.", "learner.model.0.", "_fsdp_wrapped_module."],
)  # fmt: skip
def test_prefixes_come_off(prefix: str, tmp_path: Path) -> None:
    weights = weights_of()
    assert_same(opened(prefixed(prefix, weights), tmp_path), weights)


@pytest.mark.parametrize(
    "names",
    [("state_dict",), ("model_state_dict",), ("model",), ("net",), ("ema",), ("weights",),
     ("params",), ("anything",), ("ema", "state_dict"), ("checkpoint", "model", "state_dict")],
)  # fmt: skip
def test_wrappers_come_off(names: tuple[str, ...], tmp_path: Path) -> None:
    weights = weights_of()
    content: dict[str, Any] = prefixed("module.", weights)
    for name in reversed(names):
        content = {**BESIDE, "figures": {"mean": torch.zeros(3)}, name: content}
    assert_same(opened(content, tmp_path), weights)


@pytest.mark.parametrize(
    "wrap",
    [
        with_optimizer,
        lambda w: {**w, "epoch": 3, "arch": "compact_cnn"},  # all in one dict
        lambda w: {"recipe": "mine", "weights": w, "epoch": 3},  # the words of this kit
        lambda w: {"ema": weights_of(seed=9), "model": w},
        lambda w: {"model": w, "teacher": weights_of("resnet18")},
        lambda w: {"state_dict": {**prefixed("model.", w), **prefixed("ema_model.", weights_of())}},
        lambda w: {**prefixed("model.", w), **prefixed("compiled._orig_mod.", w)},
        lambda w: {**prefixed("module.", w), "n_averaged": torch.tensor(5)},  # AveragedModel
        lambda w: {**prefixed("model.", w), "criterion.weight": torch.ones(2)},
        lambda w: {**prefixed("net.", w), "loss_fn.pos_weight": torch.ones(1)},
        lambda w: {**w, "total_ops": torch.ones(1), "conv1.total_params": torch.ones(1)},
    ],
)
def test_what_lies_beside_the_weights_is_left(wrap: Any, tmp_path: Path) -> None:
    weights = weights_of()
    assert_same(opened(wrap(weights), tmp_path), weights)


def test_a_layer_compiled_by_itself_has_its_name(tmp_path: Path) -> None:
    weights = weights_of("resnet18")
    inner = {name.replace("layer1.", "layer1._orig_mod."): each for name, each in weights.items()}
    assert_same(opened(inner, tmp_path, "resnet18"), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights_of().items()}
    assert_same(opened(weights, tmp_path), {k: each.float() for k, each in weights.items()})


@pytest.mark.parametrize("name", ["fc.0", "fc.1", "fc.drop.linear", "classifier", "head", "fc2"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_last_layer_of_another_name_is_found(name: str, prefix: str, tmp_path: Path) -> None:
    weights = weights_of("resnet18")
    body = {key: each for key, each in weights.items() if not key.startswith("fc.")}
    head = {f"{name}.weight": weights["fc.weight"], f"{name}.bias": weights["fc.bias"]}
    assert_same(opened({**prefixed(prefix, body), **head}, tmp_path, "resnet18"), weights)


def test_a_head_of_several_layers_is_named(tmp_path: Path) -> None:
    weights = weights_of("resnet18")
    head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 2)).state_dict()
    body = {key: each for key, each in weights.items() if not key.startswith("fc.")}
    message = refused({**body, **prefixed("fc.", head)}, tmp_path, "resnet18")
    assert "no fc.weight but fc.0.weight" in message


@pytest.mark.parametrize("extra", ["fc9.weight", "fc9.bias"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_layer_more_is_another_net(extra: str, prefix: str, tmp_path: Path) -> None:
    """Left out, it would change every prediction without a word."""
    weights = {**prefixed(prefix, weights_of()), extra: torch.zeros(2)}
    assert f"they have {extra}, which the net has not" in refused(weights, tmp_path)


def test_two_nets_in_a_file_are_refused(tmp_path: Path) -> None:
    one, other = weights_of(seed=1), weights_of(seed=2)
    assert "several nets (a and b)" in refused({"a": one, "b": other}, tmp_path)
    both = {**prefixed("left.", one), **prefixed("right.", other)}
    assert "several nets (under left and right)" in refused(both, tmp_path)


@pytest.mark.parametrize(("arch", "other"), [("resnet50", "resnet18"), ("resnet34", "compact_cnn"),
                                             ("dropout_cnn", "resnet18")])  # fmt: skip
def test_the_weights_of_another_net_are_told(arch: str, other: str, tmp_path: Path) -> None:
    message = refused({"model": prefixed("module.", weights_of(arch, 7))}, tmp_path, other)
    assert f"these are the weights of {arch}, not those of {other} with 2 classes" in message
    assert ("no recipe" if arch == "resnet34" else f"name the recipe {arch}") in message


def test_the_right_net_under_strange_names_is_told(tmp_path: Path) -> None:
    weights = weights_of("resnet18")
    body = {f"stage.{i}": each for i, each in enumerate(weights.values()) if i < 120}
    head = {"out.weight": weights["fc.weight"], "out.bias": weights["fc.bias"]}
    message = refused({**body, **head}, tmp_path, "resnet18")
    assert "no conv1.weight but stage.0): give its layers torchvision's names" in message


@pytest.mark.parametrize("arch", ["squeezenet1_1", "mobilenet_v3_small", "vgg16", "resnet101"])
def test_known_nets_are_known_by_their_size(arch: str) -> None:
    with torch.device("meta"):
        assert guess_arch(build_model(arch, 1000).state_dict()) == arch


def test_the_numbers_of_outputs_are_told(tmp_path: Path) -> None:
    message = refused(weights_of("resnet18", 1000), tmp_path, "resnet18")
    assert "these weights have 1,000 outputs, and resnet18 with 2 classes has 2" in message
    assert "--init" in message
    message = refused(weights_of("resnet18", 5), tmp_path, "resnet18")
    assert "5 outputs" in message and "name the classes" in message


def test_a_single_output_is_a_sigmoid(tmp_path: Path) -> None:
    """BCEWithLogitsLoss: sigmoid(z) is the probability of class 1."""
    weights = weights_of("compact_cnn", 1)
    torch.save({"model": prefixed("module.", weights)}, tmp_path / "net.pth")
    found = load_classifier(tmp_path / "net.pth", "compact_cnn", CLASSES, device="cpu", mixed=False)
    preprocessing = found.checkpoint.preprocessing
    pixels = torch.randint(0, 256, (3, 3, 100, 80), dtype=torch.uint8)
    net = build_model("compact_cnn", 1).eval()
    net.load_state_dict(weights)
    with torch.inference_mode():
        male = net(preprocessing.normalized(pixels)).sigmoid()
    assert torch.allclose(found.probabilities(pixels), torch.cat([1 - male, male], 1), atol=1e-5)
    assert not torch.allclose(male, torch.tensor(0.5), atol=1e-4)
    assert found.checkpoint.classes == ("female", "male")


@pytest.mark.parametrize(("bias", "outputs"), [((), 2), ((3,), 2), ((2, 1), 2), ((2,), 5)])
def test_a_last_layer_whose_parts_do_not_fit_is_told(
    bias: tuple[int, ...], outputs: int, tmp_path: Path
) -> None:
    weights = {**weights_of("resnet18", outputs), "fc.bias": torch.zeros(bias)}
    message = refused(weights, tmp_path, "resnet18")
    assert f"fc.bias is {bias} and should be ({outputs},)" in message


def test_a_single_output_takes_two_classes(tmp_path: Path) -> None:
    torch.save(weights_of("resnet18", 1), tmp_path / "net.pth")
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "net.pth", "resnet18", ["male"])
    assert "name two with --classes" in sentence(caught)
    with pytest.raises(InputError, match="1 output, and resnet18 with 3 classes has 3"):
        load_checkpoint(tmp_path / "net.pth", "resnet18", ["a", "b", "c"])


def test_safetensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    monkeypatch.setattr(files, "MAX_BYTES", 10)  # of a picture
    weights = weights_of()
    torch_files.save_file(prefixed("model.", weights), tmp_path / "net.SafeTensors")
    assert_same(load_checkpoint(tmp_path / "net.SafeTensors", "compact_cnn", CLASSES), weights)
    whole = (tmp_path / "net.SafeTensors").read_bytes()
    for damaged in (b"", whole[:1000], b"text of no such format"):
        (tmp_path / "bad.safetensors").write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            read_weights(tmp_path / "bad.safetensors")
        assert "is not a whole .safetensors file" in sentence(caught)


def test_without_the_package_safetensors_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "net.safetensors").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        read_weights(tmp_path / "net.safetensors")
    assert "pip install safetensors" in sentence(caught)


@pytest.mark.parametrize("key", ["fc2.bias", "conv1.weight"])
def test_a_missing_layer_is_named_and_nothing_is_changed(key: str) -> None:
    net = build_model("compact_cnn")
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    weights = weights_of()
    del weights[key]
    with pytest.raises(InputError) as caught:
        load_weights(net, weights, "compact_cnn")
    assert f"no {key}" in sentence(caught)
    wrong = {**weights_of(), key: torch.zeros(3)}
    with pytest.raises(InputError, match=r"\(3,\) and should be \("):
        load_weights(net, wrong, "compact_cnn")
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())


def test_a_training_starts_from_any_such_file(tmp_path: Path) -> None:
    weights = weights_of("resnet18", 1000)
    torch.save({"state_dict": prefixed("module.", weights)}, tmp_path / "imagenet.pth")
    net = build_model("resnet18")
    new = net.state_dict()["fc.weight"].clone()
    with pytest.warns(UserWarning, match=r"fc\.\w+ is for other classes, it starts anew"):
        seen = start_from(net, tmp_path / "imagenet.pth", "resnet18")
    assert len(seen) == 0
    assert torch.equal(net.state_dict()["conv1.weight"], weights["conv1.weight"])
    assert torch.equal(net.state_dict()["fc.weight"], new)


def test_a_training_takes_the_last_layer_in_its_own_order(tmp_path: Path) -> None:
    found = opened(weights_of(), tmp_path)  # female, male
    hashes = torch.tensor([3, 5])
    replace(found, seen_hashes=hashes).save(tmp_path / "own.pth", torch.float16)
    net = build_model("compact_cnn")
    assert torch.equal(start_from(net, tmp_path / "own.pth", "compact_cnn"), hashes)
    assert torch.equal(
        net.state_dict()["fc4.bias"], found.weights["fc4.bias"].half().float().flip(0)
    )
    assert {weight.dtype for weight in net.state_dict().values()} == {torch.float32}
    with pytest.raises(InputError) as caught:
        start_from(build_model("resnet18"), tmp_path / "own.pth", "resnet18")
    assert "own.pth: these are the weights of compact_cnn, not those of resn" in sentence(caught)
