from __future__ import annotations

import urllib.request
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import sentence
from torch import Tensor, nn

from face_gender.data.preprocessing import Preprocessing
from face_gender.errors import InputError
from face_gender.model.architectures import (
    build_model,
    check_arch,
    check_size,
    embed,
    for_inference,
    freeze,
    freeze_all_but_head,
    has_batchnorm,
    head_name,
    is_own,
    probabilities_of,
    train_mode,
    with_mirror,
)
from face_gender.model.recipes import RECIPES

ALL = torchvision.models.list_models(module=torchvision.models)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where torch.hub looks for weights, and no way to a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args: object, **options: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    return place


def put_imagenet(arch: str, place: Path) -> dict[str, Tensor]:
    """Put drawn weights where torchvision keeps the ImageNet file of ``arch``; return them."""
    torch.manual_seed(7)
    options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    weights = torchvision.models.get_model(arch, weights=None, **options).state_dict()
    first = next(iter(torchvision.models.get_model_weights(arch)))
    torch.save(weights, place / Path(first.url).name)
    return weights


NAMES = {
    "compact_cnn": [*(f"conv{i}" for i in range(1, 4)), *(f"fc{i}" for i in range(1, 5))],
    "dropout_cnn": [*(f"conv{i}" for i in range(1, 9)), "fc1", "fc2"],
}


@pytest.mark.parametrize("arch", NAMES)
def test_own_nets_have_the_published_names(arch: str) -> None:
    """Shapes are held by the chains below and by the parameters counted in test_recipes."""
    expected = [f"{layer}.{kind}" for layer in NAMES[arch] for kind in ("weight", "bias")]
    assert list(build_model(arch).state_dict()) == expected


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnets_are_those_of_torchvision(arch: str) -> None:
    """To the bit: names, first weights, outputs in training and in use, and gradients."""
    nets = []
    for build in (build_model, partial(torchvision.models.get_model, weights=None, num_classes=2)):
        torch.manual_seed(0)
        nets.append(build(arch))
    ours, theirs = (net.state_dict() for net in nets)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        outputs = [net.train(training)(images) for net in nets]
        assert torch.equal(*outputs)
    for output in outputs:
        output.sum().backward()
    gradients = [[each.grad for each in net.parameters()] for net in nets]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("arch", ["resnet34", "resnet101", "resnet152"])
def test_larger_resnets_have_the_layers_of_torchvision(arch: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch, weights=None, num_classes=2).state_dict()
        ours = build_model(arch).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_compact_cnn_is_the_published_chain() -> None:
    """The same net written out as a sequence gives the same numbers."""
    net = build_model("compact_cnn").eval()
    m = dict(net.named_children())
    pool, relu = nn.MaxPool2d(3), nn.ReLU()
    chain = nn.Sequential(
        *(m["conv1"], relu, pool, m["conv2"], relu, pool, m["conv3"], relu, pool, nn.Flatten()),
        *(m["fc1"], relu, m["fc2"], relu, m["fc3"], relu, m["fc4"]),
    )
    images = torch.randn(3, 3, 100, 80, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(images), chain(images), atol=1e-6)


def test_dropout_cnn_is_the_published_chain() -> None:
    net = build_model("dropout_cnn").eval()
    m = dict(net.named_children())
    blocks: list[nn.Module] = []
    for i in (1, 3, 5, 7):
        blocks += [m[f"conv{i}"], nn.ReLU(), m[f"conv{i + 1}"], nn.ReLU(), nn.MaxPool2d(2)]
    chain = nn.Sequential(*blocks, nn.Flatten(), m["fc1"], m["fc2"], nn.LogSoftmax(dim=1))
    images = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(images), chain(images), atol=1e-6)


@settings(deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-80, 80, width=32), min_size=n, max_size=n), min_size=1, max_size=9
        )
    ),
    st.floats(0.01, 100),
)
def test_a_temperature_changes_no_answer(rows: list[list[float]], temperature: float) -> None:
    outputs = torch.tensor(rows)
    found = probabilities_of(outputs, temperature)
    assert torch.allclose(found.sum(1), torch.ones(len(rows)), atol=1e-5)
    assert ((found >= 0) & (found <= 1)).all()
    # Where two outputs are as good as equal, 32 bits may make them so.
    answers = outputs.argmax(1, keepdim=True)
    assert torch.equal(found.gather(1, answers), found.amax(1, keepdim=True))
    order = found.gather(1, outputs.argsort(1))
    assert (order.diff(dim=1) >= -1e-7).all()
    assert torch.equal(probabilities_of(outputs, 1.0), outputs.softmax(1))


def test_the_temperature_of_log_probabilities_is_that_of_the_outputs() -> None:
    outputs = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 5
    for temperature in (0.3, 1.0, 4.0):
        by_logs = probabilities_of(outputs.log_softmax(1), temperature)
        assert torch.allclose(by_logs, probabilities_of(outputs, temperature), atol=1e-6)


def left_and_right(images: torch.Tensor) -> torch.Tensor:
    """Outputs (n, 2): the brightness of the left and of the right half."""
    return torch.stack([half.mean((1, 2, 3)) for half in images.chunk(2, dim=3)], 1)


def halves(left: float, right: float) -> torch.Tensor:
    return torch.tensor([left, right]).expand(1, 3, 2, 2)


def test_a_mirror_image_counts_half_where_classes_are_equal() -> None:
    seen: list[int] = []

    def outputs_of(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.tensor([[0.0, 0.0], [4.0, -4.0]])[: len(images)] + (len(seen) == 2)

    found = with_mirror(outputs_of, torch.zeros(2, 3, 2, 2), within=0.5)
    assert seen == [2, 1]  # the sure one is not asked again
    assert torch.equal(found, torch.tensor([[0.5, 0.5], [4.0, -4.0]]))


@pytest.mark.parametrize("within", [0.1, 0.5, 1.0])
def test_a_mirror_image_counts_less_the_surer_the_net_is(within: float) -> None:
    shares = []
    for ahead in torch.linspace(0, 6, 200)[1:].tolist():
        images = halves(ahead, 0.0)
        plain, found = left_and_right(images), with_mirror(left_and_right, images, within)
        gap = (plain.softmax(1)[0, 0] - plain.softmax(1)[0, 1]).item()
        share = ((plain - found)[0, 0] / ahead).item()
        assert share == pytest.approx(max(0.0, 1 - gap / within) / 2, abs=1e-5)
        shares.append(share)
    assert shares == sorted(shares, reverse=True) and 0 <= shares[-1] < 0.01 < shares[0]


def test_without_mirror_images_and_with_one_class_outputs_stay() -> None:
    images = halves(0.2, 0.1)
    assert torch.equal(with_mirror(left_and_right, images, 0.0), left_and_right(images))
    one = torch.tensor([[0.3]])
    assert torch.equal(with_mirror(lambda _: one, images, 0.5), one)


def test_dropout_cnn_drops_a_fifth_in_training_alone() -> None:
    net = build_model("dropout_cnn")
    assert isinstance(net.dropout, nn.Dropout)
    assert net.dropout.p == 0.2
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    net.train()
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("mobilenet_v3_small", "classifier.3"),
        ("squeezenet1_1", "classifier.1"),
        ("densenet121", "classifier"),
        ("regnet_y_400mf", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("vgg16", "classifier.6"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_other_classifiers_have_a_last_layer_for_the_classes(arch: str, head: str) -> None:
    with torch.device("meta" if "regnet" not in arch else "cpu"):
        net = build_model(arch, 3).eval()
        assert head_name(net) == head
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in ALL if not arch.startswith("regnet")])
def test_every_torchvision_classifier_has_its_last_layer_replaced(arch: str) -> None:
    """On the meta device, which knows shapes and holds no numbers (RegNets need some)."""
    with torch.device("meta"):
        assert build_model(arch, 3).eval()(torch.empty(2, 3, 224, 224)).shape == (2, 3)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_gone_in_training_too(arch: str) -> None:
    with torch.device("meta"):
        net = build_model(arch).train()
        answers = net(torch.empty(2, 3, 96, 96))
    assert isinstance(answers, Tensor)
    assert answers.shape == (2, 2)
    assert not [name for name in net.state_dict() if "aux" in name.lower()]


@pytest.mark.parametrize(
    ("arch", "suggestion"),
    [("resnet81", "resnet18"), ("compactcnn", "compact_cnn"), ("vgg-16", "vgg16")],
)
def test_an_unknown_net_is_answered_with_the_nearest(arch: str, suggestion: str) -> None:
    with pytest.raises(InputError) as caught:
        build_model(arch)
    assert suggestion in sentence(caught)
    assert repr(arch) in sentence(caught)


@pytest.mark.parametrize("arch", ["fcn_resnet50", "raft_large", "fasterrcnn_resnet50_fpn", ""])
def test_what_is_no_classifier_is_refused(arch: str) -> None:
    with pytest.raises(InputError) as caught:
        check_arch(arch)
    sentence(caught)


def test_own_nets_have_no_imagenet_weights() -> None:
    assert [name for name in RECIPES if is_own(name)] == ["compact_cnn", "dropout_cnn"]
    with pytest.raises(InputError) as caught:
        build_model("compact_cnn", imagenet=True)
    assert "init='none'" in sentence(caught)


@pytest.mark.parametrize(
    ("arch", "low", "high"), [("compact_cnn", 80, 106), ("dropout_cnn", 124, 139)]
)
def test_own_nets_take_just_the_sizes_that_are_accepted(arch: str, low: int, high: int) -> None:
    with torch.device("meta"):
        net = build_model(arch)
        for height, width in ((low, high), (high, low)):
            check_size(arch, height, width)
            assert net(torch.empty(1, 3, height, width)).shape == (1, 2)
        for height, width in ((low - 1, low), (low, low - 1), (high + 1, high), (high, high + 1)):
            with pytest.raises(ValueError) as caught:
                check_size(arch, height, width)
            assert f"{height} x {width}" in sentence(caught)
            with pytest.raises(RuntimeError):
                net(torch.empty(1, 3, height, width))


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_imagenet_weights_come_into_all_but_the_head(arch: str, torch_home: Path) -> None:
    theirs = put_imagenet(arch, torch_home)
    net = build_model(arch, imagenet=True)
    ours, head = net.state_dict(), head_name(net)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        if name.startswith(f"{head}."):
            assert weight.shape[0] == 2
        else:
            assert torch.equal(weight, theirs[name]), name


def test_resnet50_takes_the_weights_that_the_recipe_used(torch_home: Path) -> None:
    with pytest.raises(InputError, match=r"resnet50-0676ba61\.pth"):  # IMAGENET1K_V1, not V2
        build_model("resnet50", imagenet=True)


@pytest.mark.parametrize("arch", ["googlenet"])
def test_a_net_started_from_imagenet_is_rebuilt_without(arch: str, torch_home: Path) -> None:
    """Torchvision switches an input transform on with the weights; a checkpoint has none."""
    put_imagenet(arch, torch_home)
    trained = build_model(arch, imagenet=True).eval()
    rebuilt = build_model(arch).eval()
    rebuilt.load_state_dict(trained.state_dict())
    image = Preprocessing(64, 64).eval_transform()(draw_face("male", 0))[None]
    with torch.no_grad():
        assert torch.equal(trained(image), rebuilt(image))


def test_without_the_imagenet_file_one_sentence_says_where_to_put_it(torch_home: Path) -> None:
    with pytest.raises(InputError) as caught:
        build_model("resnet18", imagenet=True)
    message = sentence(caught)
    assert str(torch_home / "resnet18-f37072fd.pth") in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert "compact_cnn, dropout_cnn" in message
    assert "init='none'" in message
    assert "no network in tests" in message


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut short", None])
def test_a_damaged_imagenet_file_is_one_sentence(content: bytes | None, torch_home: Path) -> None:
    if content is None:  # the weights of another net
        torch.save(build_model("compact_cnn").state_dict(), torch_home / "resnet18-f37072fd.pth")
    else:
        (torch_home / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(InputError) as caught:
        build_model("resnet18", imagenet=True)
    assert str(torch_home / "resnet18-f37072fd.pth") in sentence(caught)


def test_a_dead_network_is_not_waited_for_without_end(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    limits = []

    def slow(*args: object, **options: object) -> None:
        limits.append(socket.getdefaulttimeout())
        raise TimeoutError

    monkeypatch.setattr(torch.hub, "download_url_to_file", slow)
    before = socket.getdefaulttimeout()
    with pytest.raises(InputError, match="TimeoutError"):
        build_model("resnet18", imagenet=True)
    assert limits[0] is not None
    assert socket.getdefaulttimeout() == before


def test_freezing_takes_the_layers_out_of_training() -> None:
    net = build_model("resnet18")
    freeze(net, ("conv1", "bn1", "layer1"))
    frozen = {name for name, each in net.named_parameters() if not each.requires_grad}
    expected = {
        name
        for name, _ in net.named_parameters()
        if name.split(".")[0] in ("conv1", "bn1", "layer1")
    }
    assert frozen == expected
    assert len(expected) == 15


def test_freezing_what_the_net_has_not_is_one_sentence() -> None:
    with pytest.raises(InputError) as caught:
        freeze(build_model("compact_cnn"), ("conv1", "layer9"))
    assert "'layer9'" in sentence(caught)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_feature_extraction_trains_the_head_alone(arch: str) -> None:
    net = build_model(arch)
    freeze_all_but_head(net)
    trained = {name for name, each in net.named_parameters() if each.requires_grad}
    assert trained == {f"{head_name(net)}.weight", f"{head_name(net)}.bias"}


def test_train_mode_leaves_frozen_batchnorm_in_eval() -> None:
    net = build_model("resnet18")
    freeze(net, ("conv1", "bn1", "layer1"))
    net.eval()
    train_mode(net)
    norms = {n: m.training for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    still = {name for name, training in norms.items() if not training}
    assert still == {name for name in norms if name.startswith(("bn1", "layer1"))}
    assert net.training
    assert has_batchnorm(net) and not has_batchnorm(build_model("compact_cnn"))


@pytest.mark.parametrize(
    ("arch", "size", "features"),
    [
        ("resnet18", (64, 64), None),
        ("compact_cnn", (100, 80), None),
        ("dropout_cnn", (128, 128), None),
        ("squeezenet1_0", (64, 64), None),
        ("transformer", (64, 64), 2 * 32),
    ],
)
def test_embeddings_are_a_row_a_picture_and_change_no_answer(
    arch: str, size: tuple[int, int], features: int | None
) -> None:
    torch.manual_seed(0)
    small = partial(torchvision.models.VisionTransformer, 64, 16, 2, 2, 32, 64)
    model = (small() if arch == "transformer" else build_model(arch)).eval()
    images = torch.rand(3, 3, *size)
    with torch.inference_mode():
        before = model(images)
        found = embed(model, images)
        alone = embed(model, images[1:2])
        after = model(images)
    assert found.ndim == 2 and found.shape[0] == 3
    assert features is None or found.shape[1] == features
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.allclose(alone[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.equal(before, after)
    hooks = [each for m in model.modules() for each in (m._forward_hooks, m._forward_pre_hooks)]
    assert not any(hooks)


def test_an_embedding_ends_with_what_the_last_layer_is_given() -> None:
    model = build_model("compact_cnn").eval()
    images = torch.rand(2, 3, 100, 80)
    with torch.inference_mode():
        found = embed(model, images)
        assert torch.allclose(model.fc4(found[:, -412:]), model(images), atol=1e-5)
    # And before it the means of three convolutions.
    assert found.shape[1] == 32 + 64 + 128 + 412


def test_a_picture_that_the_net_cannot_take_leaves_no_hooks() -> None:
    model = build_model("compact_cnn").eval()
    with pytest.raises(RuntimeError):
        embed(model, torch.rand(1, 3, 20, 20))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def with_drawn_statistics(arch: str) -> nn.Module:
    """A net whose batch norms all do something, as those of a trained one."""
    torch.manual_seed(0)
    model, generator = build_model(arch).eval(), torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.1, generator=generator)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("resnet18", 64, 0),
        ("resnet50", 64, 0),
        ("mobilenet_v3_small", 64, 0),
        ("googlenet", 64, 0),
        ("shufflenet_v2_x0_5", 64, 0),
        ("densenet121", 64, 62),  # those that stand before a convolution stay
        ("compact_cnn", 96, 0),
    ],
)
def test_batch_norms_fold_into_convolutions_and_change_no_answer(
    arch: str, size: int, left: int
) -> None:
    model = with_drawn_statistics(arch)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = model(images)
    had = norms(model)
    fast = for_inference(model, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        after = fast(images)
    assert norms(fast) == left
    assert had > left or arch == "compact_cnn"
    assert (after - before).abs().max() < 1e-3 * before.abs().max()
    assert not fast.training
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_a_batch_norm_that_follows_no_convolution_is_left_alone() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    images = torch.randn(5, 3, 3, 3)
    model(images)  # moves the running statistics
    expected = model.eval()(images)
    fast = for_inference(model, torch.device("cpu"), torch.float32)
    assert torch.allclose(fast(images), expected, atol=1e-6)
    assert norms(fast) == 2


def test_a_net_for_answers_is_held_in_the_type_that_is_asked_for() -> None:
    fast = for_inference(build_model("resnet18"), torch.device("cpu"), torch.bfloat16)
    assert {each.dtype for each in fast.state_dict().values()} == {torch.bfloat16}
    assert fast(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    weight = fast.get_submodule("layer1.0.conv1").weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
