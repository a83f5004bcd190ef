"""Maps of where a net looked: they mark what counts, and leave the net as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHIPPED, make_checkpoint
from torch import Tensor, nn

from face_gender import CLASSES
from face_gender.data.images import load_pixels
from face_gender.data.index import Index
from face_gender.data.preprocessing import Preprocessing, stack
from face_gender.data.sources import open_source
from face_gender.evaluate.metrics import Evaluation
from face_gender.model.architectures import build_model, for_inference
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.explain import CAVEAT, explain, overlays
from face_gender.model.recipes import RECIPES
from face_gender.plots import explained_mistakes


class RedOrBlue(nn.Module):
    """Output 0 is how much red there is anywhere in a picture, output 1 how much blue."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, -1, -1], [-1, -1, 1]])[:, :, None, None]
        self.head.weight.data = torch.eye(2)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.conv(images).relu().mean((2, 3)))
        return outputs


def red_and_blue() -> Tensor:
    """A picture with a red part above on the left, and a smaller blue one below on the right."""
    image = torch.zeros(1, 3, 40, 60)
    image[0, 0, 4:16, 6:18] = 1
    image[0, 2, 30:36, 50:56] = 1
    return image


def test_a_map_marks_what_spoke_for_the_class() -> None:
    image = red_and_blue()
    for label, channel in ((0, 0), (1, 2), (None, 0)):
        (found,) = explain(RedOrBlue(), image, label)
        assert torch.equal(found > 0.5, image[0, channel] > 0)


def test_each_picture_has_its_own_class() -> None:
    images = red_and_blue().repeat(70, 1, 1, 1)
    classes = torch.arange(70) % 2
    found = explain(RedOrBlue(), images, classes)
    assert found.shape == (70, 40, 60)
    assert torch.equal(found[::2].amax(0) > 0.5, images[0, 0] > 0)
    assert torch.equal(found[1::2].amax(0) > 0.5, images[0, 2] > 0)


def test_nothing_to_mark_gives_zeros() -> None:
    assert explain(RedOrBlue(), torch.zeros(1, 3, 20, 20)).tolist() == [[[0.0] * 20] * 20]
    assert explain(RedOrBlue(), torch.zeros(0, 3, 20, 20)).shape == (0, 20, 20)


def test_an_overlay_is_grey_but_for_what_is_marked() -> None:
    preprocessing = Preprocessing(40, 60, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = (red_and_blue() * 255).to(torch.uint8)
    (drawn,) = overlays(RedOrBlue(), preprocessing, pixels)
    assert drawn.shape == (40, 60, 3)
    assert drawn.dtype == np.uint8
    red, green, blue = drawn[10, 10].astype(int)
    assert red > green + 50 > blue + 100
    assert np.ptp(drawn[20:], axis=2).max() == 0


NETS = {each.arch: each.preprocessing for each in RECIPES.values()} | {
    "squeezenet1_1": Preprocessing(64, 64),
    "mobilenet_v3_small": Preprocessing(64, 64),
}


@pytest.mark.parametrize("arch", ["compact_cnn", "dropout_cnn", "resnet18", "squeezenet1_1",
                                  "mobilenet_v3_small"])  # fmt: skip
def test_nets_are_left_as_they_were(arch: str) -> None:
    torch.manual_seed(0)
    model, sizes = build_model(arch).eval(), NETS[arch]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, sizes.height, sizes.width)
    found = explain(model, images)
    assert found.shape == (2, sizes.height, sizes.width)
    assert found.amin() >= 0
    # Untrained, a net such as squeezenet may answer zero to everything.
    assert set(found.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert torch.equal(found, explain(model, images))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_form_for_inference_is_explained_alike() -> None:
    torch.manual_seed(0)
    model = build_model("resnet18").eval()
    images = torch.randn(1, 3, 96, 96)
    expected = explain(model, images)
    model = for_inference(model, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        found = explain(model, images.clone())
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.real
def test_hiding_what_is_marked_counts(shared: Callable[[str], Path]) -> None:
    """The deletion check of docs/explanations.md, on few pictures."""
    source = open_source(shared("officials.zip"))
    names = sorted(name for name in source.names() if name.endswith(".jpg"))[::30]
    checkpoint = load_checkpoint(SHIPPED)
    model, preprocessing = checkpoint.build()[0].eval(), checkpoint.preprocessing
    pixels = stack([preprocessing.resized(load_pixels(name, source)) for name in names])
    images = preprocessing.normalized(pixels)
    maps = explain(model, images)
    moved = maps.roll((maps.shape[1] // 2, maps.shape[2] // 3), (1, 2))
    with torch.no_grad():
        before = model(images).softmax(1)
        own = before.argmax(1, keepdim=True)
        lost = []
        for each in (maps, moved):
            least = each.flatten(1).quantile(0.8, dim=1)[:, None, None]
            hidden = torch.where((each > least)[:, None], images.mean((2, 3), keepdim=True), images)
            lost.append((before - model(hidden).softmax(1)).gather(1, own).mean().item())
    assert lost[0] > 0.05 + 3 * abs(lost[1])


def test_mistakes_are_shown_with_their_maps_below(faces: Path) -> None:
    paths = np.array(["male/m_0.jpg", "male/gone.jpg", "male/m_1.jpg", "male/m_2.jpg"])
    female = np.array([0.7, 0.99, 0.9, 0.2], dtype=np.float32)
    labels = np.zeros(4, dtype=np.int64)
    result = Evaluation(CLASSES, paths, labels, np.stack([1 - female, female], 1), 0.5)
    table = pd.DataFrame({"path": paths, "label": labels})
    figure = explained_mistakes(result, Index(table, open_source(faces)), make_checkpoint())
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
    assert titles == ["female 90%", "female 70%", "", ""]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert {each.shape for each in shown} == {(100, 80, 3)}
    assert not np.array_equal(shown[0], shown[2])
    assert " ".join(figure.get_supxlabel().split()) == CAVEAT
