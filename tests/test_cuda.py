"""What depends on a GPU: left out where there is none, or without FACE_GENDER_GPU=1.

`python -m benchmarks.gpu` runs them too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_faces, make_index, save_colour_net

from face_gender.classify.classifier import classify, load_classifier
from face_gender.classify.results import Prediction
from face_gender.data.sources import find_images
from face_gender.model.recipes import get_recipe
from face_gender.train.loop import train

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU, or no FACE_GENDER_GPU=1"
)


def test_cuda_labels_as_the_cpu_does(faces: Path, tmp_path: Path) -> None:
    weights = save_colour_net(tmp_path / "net.pth")
    source, names = find_images(faces, recursive=True)
    answers = []
    for device in ("cpu", "cuda"):
        net = load_classifier(weights, device=device)
        assert net.device.type == device
        found = [each for each in classify(net, source, names) if isinstance(each, Prediction)]
        answers.append(torch.tensor([each.scores for each in found]))
    assert torch.allclose(*answers, atol=0.02)
    assert torch.equal(answers[0].argmax(1), answers[1].argmax(1))


@pytest.mark.parametrize("mixed", [True, False])
def test_a_training_on_cuda_is_gone_on_with(mixed: bool, tmp_path: Path) -> None:
    index = make_index(make_faces(tmp_path / "data"))
    recipe = get_recipe("compact_cnn", epochs=2, batch_size=8, learning_rate=1e-3)

    def start(out: str, resume: bool = False):  # type: ignore[no-untyped-def]
        return train(
            recipe, index, tmp_path / out, device="cuda", mixed=mixed, resume=resume, progress=False
        )

    whole = list(start("whole"))
    next(stopped := start("halves"))
    stopped.close()
    (last,) = start("halves", resume=True)
    assert last.epoch == 1
    assert last.val_loss == pytest.approx(whole[1].val_loss, rel=0.05)
