"""Red faces against blue faces, which every net here must be able to tell apart."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import draw_face, make_faces, make_zip, snapshot
from sentences import sentence
from torch import nn

from face_gender import CLASSES, devices
from face_gender.data.dataset import UnreadablePictureWarning, soft_labels
from face_gender.data.index import IndexReport, create_csv
from face_gender.data.tables import read_index
from face_gender.errors import InputError
from face_gender.evaluate import predict as evaluation
from face_gender.evaluate.metrics import Evaluation, fit_temperature
from face_gender.evaluate.predict import LeakError, evaluate
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, hash64, load_checkpoint
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train import loop as training
from face_gender.train.loop import EpochReport, _schedule, train

QUICK = get_recipe("compact_cnn", epochs=3, batch_size=4, learning_rate=1e-3)
ONE_EPOCH = replace(QUICK, epochs=1, batch_size=16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "data", 12, 12)


@pytest.fixture
def index(data: Path) -> IndexReport:
    return create_csv(data, progress=False)


def run(
    recipe: Recipe | str,
    index: Path | IndexReport | pd.DataFrame,
    data: Path,
    out: Path,
    **options: Any,
) -> list[EpochReport]:
    return list(train(recipe, index, data, out, **{"progress": False, **options}))


def judge(weights: Path | Checkpoint, index: object, data: Path, **options: Any) -> Evaluation:
    values = {"progress": False, **options}
    return evaluate(weights, index, data, **values)  # type: ignore[arg-type]


def numbers(reports: list[EpochReport]) -> list[tuple[float, float, float]]:
    return [(each.train_loss, each.val_loss, each.val_accuracy) for each in reports]


def answering(female: float = 0.5, **changes: Any) -> Checkpoint:
    """A net that gives every picture the same probability of its second class."""
    recipe = get_recipe("compact_cnn")
    weights = {k: torch.zeros_like(v) for k, v in build_model("compact_cnn").state_dict().items()}
    weights["fc4.bias"] = torch.tensor([1 - female, female]).log()
    values = {
        "recipe": recipe,
        "classes": CLASSES,
        "preprocessing": recipe.preprocessing,
        "weights": weights,
    }
    return Checkpoint(**{**values, **changes})


def scripted(monkeypatch: pytest.MonkeyPatch, epochs: list[tuple[float, float]]) -> None:
    """Let validation answer with (accuracy, loss) of a list, one epoch after the other."""
    left = iter(epochs)

    def predict(*args: object, **options: object) -> Evaluation:
        accuracy, loss = next(left)
        right = round(accuracy * 100)
        probabilities = np.zeros((100, 2), dtype=np.float32)
        probabilities[:right, 0] = probabilities[right:, 1] = 1
        labels = np.zeros(100, dtype=np.int64)
        return Evaluation(CLASSES, np.array(["a"] * 100), labels, probabilities, loss)

    monkeypatch.setattr(training, "predict", predict)
    monkeypatch.setattr(training._Run, "_train_epoch", lambda self, epoch: (0.5, 10.0))


# What training is for


def test_red_and_blue_faces_are_learnt_in_three_epochs(data: Path, tmp_path: Path) -> None:
    index = create_csv(make_faces(data, 20, 20), progress=False)
    reports = run(QUICK, index, data, tmp_path / "w")
    assert reports[-1].val_accuracy == 1
    assert reports[-1].train_loss < 0.5 * reports[0].train_loss
    result = judge(tmp_path / "w" / "best.pth", index, data)
    assert result.accuracy == 1
    assert set(result.paths) == set(index.table["path"][index.table["split"] == "test"])


def test_the_other_recipes_make_an_epoch(data: Path, index: IndexReport, tmp_path: Path) -> None:
    for name, changes in (
        ("dropout_cnn", {}),
        ("resnet18", {"init": "none", "size": (32, 32)}),
        ("resnet50", {"init": "none", "size": (32, 32), "arch": "squeezenet1_1"}),
    ):
        recipe = get_recipe(name, epochs=1, batch_size=8, **changes)
        (report,) = run(recipe, index, data, tmp_path / "w")
        assert math.isfinite(report.train_loss + report.val_loss)
        assert load_checkpoint(report.checkpoint).recipe == recipe


def test_the_data_may_be_an_archive(data: Path, tmp_path: Path) -> None:
    packed = make_zip(data, tmp_path / "faces.zip", prefix="faces/")
    index = create_csv(packed, progress=False)
    (report,) = run(ONE_EPOCH, index, packed, tmp_path / "w", workers=1)
    assert judge(report.checkpoint, index, packed, workers=1).accuracy >= 0


def test_the_data_are_never_written_to(data: Path, index: IndexReport, tmp_path: Path) -> None:
    before = snapshot(data)
    (report,) = run(ONE_EPOCH, index, data, tmp_path / "w")
    judge(report.checkpoint, index, data)
    assert snapshot(data) == before


def test_a_recipe_may_be_named(data: Path, index: IndexReport, tmp_path: Path) -> None:
    reports = train("compact_cnn", index, data, tmp_path / "w", progress=False)
    assert next(reports).epoch == 0  # type: ignore[call-overload]
    with pytest.raises(InputError, match="did you mean compact_cnn"):
        run("compactcnn", index, data, tmp_path / "w")


# Reports


def test_reports_hold_the_figures_of_each_epoch(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    reports = run(replace(QUICK, epochs=2), index, data, tmp_path / "w")
    assert [report.epoch for report in reports] == [0, 1]
    for report in reports:
        assert report.train_loss > 0
        assert report.val_loss >= 0
        assert 0 <= report.val_accuracy <= 1
        assert set(report.recall) == {"male", "female"}
        # Two pictures of each class: accuracy is the mean of the recalls.
        assert sum(report.recall.values()) / 2 == pytest.approx(report.val_accuracy)
        assert report.seconds > 0
        assert report.images_per_second > 0
        assert report.checkpoint == tmp_path / "w" / "compact_cnn" / f"epoch_{report.epoch}.pth"
        saved = load_checkpoint(report.checkpoint)
        assert saved.epoch == report.epoch
        assert saved.metrics == {
            "train_loss": report.train_loss,
            "val_loss": report.val_loss,
            "val_accuracy": report.val_accuracy,
            "val_recall_male": report.recall["male"],
            "val_recall_female": report.recall["female"],
        }


def test_losses_are_means_per_picture_and_not_per_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch holds one picture of five; a mean of batch means would weigh it as four."""
    rows = [("male", i, "train") for i in range(4)] + [("female", 0, "train")]
    rows += [("male", i, "val") for i in range(4, 8)] + [("female", 1, "val")]
    table = pd.DataFrame(
        [(f"{name}/{name[0]}_{i}.jpg", CLASSES.index(name), split) for name, i, split in rows],
        columns=["path", "label", "split"],
    )
    constant = answering(0.1)
    constant.save(tmp_path / "start.pth")
    recipe = replace(
        QUICK, epochs=1, batch_size=4, learning_rate=1e-30, init=str(tmp_path / "start.pth")
    )
    (report,) = run(recipe, table, data, tmp_path / "w", mixed=False)
    expected = -(4 * math.log(0.9) + math.log(0.1)) / 5
    assert report.train_loss == pytest.approx(expected, rel=1e-4)
    assert report.val_loss == pytest.approx(expected, rel=1e-4)
    result = judge(constant, table, data, split="val", batch_size=4)
    assert result.loss == pytest.approx(expected, rel=1e-4)


def test_a_loss_of_zero_has_no_minus(data: Path, index: IndexReport) -> None:
    certain = answering(1.0)
    certain.weights["fc4.bias"].copy_(torch.tensor([-100.0, 100.0]))
    women = index.table[index.table["label"] == 1]
    assert math.copysign(1, judge(certain, women, data, split=None).loss) == 1


def test_the_same_seed_gives_the_same_numbers(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    recipe = get_recipe("dropout_cnn", epochs=2, batch_size=8)
    first = run(recipe, index, data, tmp_path / "a", seed=3)
    second = run(recipe, index, data, tmp_path / "b", seed=3)
    assert numbers(first) == numbers(second)
    weights = [load_checkpoint(reports[-1].checkpoint).weights for reports in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_seed_gives_other_numbers(data: Path, index: IndexReport, tmp_path: Path) -> None:
    results = [numbers(run(ONE_EPOCH, index, data, tmp_path / "w", seed=i)) for i in (0, 1)]
    assert results[0] != results[1]


def test_what_the_caller_does_between_epochs_changes_no_number(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    recipe = get_recipe("dropout_cnn", epochs=2, batch_size=8)
    undisturbed = run(recipe, index, data, tmp_path / "a")
    disturbed = []
    for report in train(recipe, index, data, tmp_path / "b", progress=False):
        disturbed.append(report)
        torch.manual_seed(99)
        judge(report.checkpoint, index, data)
    assert numbers(disturbed) == numbers(undisturbed)


def test_progress_is_shown_by_two_bars(
    data: Path, index: IndexReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ONE_EPOCH, index, data, tmp_path / "w", progress=True)
    printable = capsys.readouterr()
    assert printable.out == ""
    assert "compact_cnn" in printable.err
    assert "epoch 0" in printable.err
    run(ONE_EPOCH, index, data, tmp_path / "w")
    assert capsys.readouterr().err == ""


# Frozen layers


def weights_after(recipe: Recipe, index: IndexReport, data: Path, out: Path) -> dict[str, Any]:
    (report,) = run(recipe, index, data, out)
    return dict(load_checkpoint(report.checkpoint).weights)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A resnet18 to start from, as ImageNet's would be."""
    torch.manual_seed(1)
    torch.save(build_model("resnet18").state_dict(), tmp_path / "start.pth")
    return tmp_path / "start.pth"


def test_frozen_layers_and_their_batchnorm_stay_as_they_are(
    data: Path, index: IndexReport, tmp_path: Path, start: Path
) -> None:
    recipe = get_recipe("resnet18", epochs=1, batch_size=8, size=(32, 32), init=str(start))
    before = torch.load(start, weights_only=True)
    after = weights_after(recipe, index, data, tmp_path / "w")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"layer2", "layer3", "layer4", "fc"}
    still = [name for name in before if name.startswith(("conv1", "bn1", "layer1"))]
    assert any(name.endswith("running_mean") for name in still)
    assert not torch.equal(before["layer2.0.bn1.running_mean"], after["layer2.0.bn1.running_mean"])


def test_feature_extraction_moves_the_head_alone(
    data: Path, index: IndexReport, tmp_path: Path, start: Path
) -> None:
    recipe = get_recipe(
        "resnet18", epochs=1, batch_size=8, size=(32, 32), init=str(start), feature_extract=True
    )
    before = torch.load(start, weights_only=True)
    after = weights_after(recipe, index, data, tmp_path / "w")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_nothing_is_frozen_in_random_weights() -> None:
    model, seen = training._start(get_recipe("resnet18", init="none"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(seen) == 0


def test_imagenet_weights_are_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    model, _ = training._start(get_recipe("resnet18"))
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    frozen = {n.split(".")[0] for n, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


def test_without_imagenet_weights_nothing_is_trained_or_moved(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_download(*args: object, **options: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    out = tmp_path / "w"
    (out / "resnet18").mkdir(parents=True)
    (out / "resnet18" / "best.pth").write_bytes(b"earlier")
    with pytest.raises(InputError) as caught:
        run("resnet18", index, data, out)
    assert "resnet18-f37072fd.pth" in sentence(caught)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["best.pth"]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("resnet18", "AdamW", {"lr": 1e-3, "weight_decay": 0.01, "amsgrad": True}),
        ("resnet50", "SGD", {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}),
        ("compact_cnn", "Adam", {"lr": 3e-4, "weight_decay": 0.0, "amsgrad": False}),
        ("dropout_cnn", "Adam", {"lr": 2e-4, "weight_decay": 0.0, "amsgrad": False}),
    ],
)
def test_the_optimiser_is_the_recipes(name: str, kind: str, settings: dict[str, Any]) -> None:
    optimizer = training._optimizer(get_recipe(name), nn.Linear(1, 1))
    assert type(optimizer).__name__ == kind
    assert {key: optimizer.defaults[key] for key in settings} == settings


# Starting from a file


def rates_of(recipe: Recipe, index: object, data: Path, out: Path) -> list[float]:
    """The learning rate of each step, read from the optimiser that makes it."""
    run_of = training._Run(recipe, index, data, out, 0, "cpu", 0, False, False)  # type: ignore[arg-type]
    rates: list[float] = []
    step = run_of.optimizer.step

    def watched(*arguments: object, **options: object) -> object:
        rates.append(run_of.optimizer.param_groups[0]["lr"])
        return step(*arguments, **options)  # type: ignore[arg-type]

    run_of.optimizer.step = watched  # type: ignore[assignment, method-assign]
    for epoch in range(recipe.epochs):
        run_of.epoch(epoch)
    run_of.close()
    return rates


def test_one_cycle_raises_the_learning_rate_and_lowers_it_again(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    recipe = replace(QUICK, epochs=4, schedule="one_cycle")
    rates = rates_of(recipe, index, data, tmp_path / "w")
    top = int(np.argmax(rates))
    assert len(rates) >= 12
    assert max(rates) == pytest.approx(QUICK.learning_rate, rel=0.05)
    assert top == pytest.approx(len(rates) / 4, abs=1)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    assert rates[-1] < 0.05 * max(rates)


def test_without_a_schedule_the_learning_rate_stays(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    rates = rates_of(replace(QUICK, epochs=2), index, data, tmp_path / "w")
    assert set(rates) == {QUICK.learning_rate}


@pytest.mark.filterwarnings("ignore::face_gender.data.dataset.UnreadablePictureWarning")
def test_one_cycle_bears_pictures_that_are_left_out(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    table = index.table
    for path in table["path"][table["split"] == "train"][:7]:
        (data / path).write_bytes(b"")
    recipe = replace(QUICK, epochs=4, batch_size=3, schedule="one_cycle")
    rates = rates_of(recipe, index, data, tmp_path / "w")
    assert all(rate > 0 for rate in rates)
    assert rates[-1] < max(rates)


def test_label_smoothing_changes_the_loss_and_nothing_else_of_it() -> None:
    outputs, labels = torch.tensor([[4.0, -4.0], [-1.0, 2.0]]), torch.tensor([0, 1])
    plain = training._loss(outputs, labels, QUICK)
    smooth = training._loss(outputs, labels, replace(QUICK, label_smoothing=0.2))
    log = outputs.log_softmax(1)
    expected = -(0.9 * log[[0, 1], labels] + 0.1 * log[[0, 1], 1 - labels]).mean()
    assert smooth == pytest.approx(expected.item())
    assert plain == pytest.approx(-log[[0, 1], labels].mean().item())
    # It is not in the figure by which epochs are compared.
    zero = training._loss(outputs, labels, replace(QUICK, label_smoothing=0.0))
    assert torch.equal(zero, plain)


def test_a_teachers_answers_are_learnt_where_the_index_has_them(index: IndexReport) -> None:
    rows = index.table.iloc[:4].assign(label=[0, 1, 1, 0], teacher=["0.5", "1", "", "0.25"])
    recipe = replace(QUICK, distillation=0.8)
    targets = soft_labels(rows, 0.8)
    assert targets is not None
    expected = torch.tensor([[0.6, 0.4], [0.0, 1.0], [0.0, 1.0], [0.8, 0.2]])
    torch.testing.assert_close(targets, expected)
    # Of one that agrees with the label, the loss is the label's own.
    outputs, labels = torch.tensor([[2.0, 0.5], [0.1, 0.3]]), torch.tensor([0, 1])
    sure = nn.functional.one_hot(labels, 2).float()
    torch.testing.assert_close(
        training._loss(outputs, sure, recipe), training._loss(outputs, labels, recipe)
    )
    assert soft_labels(rows, 0.0) is None
    assert soft_labels(rows.drop(columns="teacher"), 0.8) is None
    # As pandas itself reads an empty cell.
    missing = rows.assign(teacher=[0.5, 1.0, float("nan"), 0.25])
    torch.testing.assert_close(soft_labels(missing, 0.8), expected)


@pytest.mark.parametrize("cell", ["1.5", "-0.1", "nan", "female"])
def test_a_teachers_answer_that_is_no_probability_is_one_sentence(
    cell: str, data: Path, index: IndexReport, tmp_path: Path
) -> None:
    table = index.table.assign(teacher="")
    row = int(table.index[table["split"] == "train"][3])
    table.loc[row, "teacher"] = cell
    with pytest.raises(InputError, match=rf"row {row + 1}: teacher '{cell}' is no probability"):
        next(train(replace(QUICK, distillation=0.5), table, data, tmp_path / "w", progress=False))


def test_training_follows_the_teacher_and_not_the_label(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    """A teacher that calls each man a woman and the reverse, with all the say."""
    reversed_ = (1 - index.table["label"]).astype(str)
    table = index.table.assign(teacher=reversed_)
    recipe = replace(QUICK, distillation=1.0)
    *_, last = train(recipe, table, data, tmp_path / "w", progress=False)
    assert last.val_accuracy == 0


def test_the_recipe_of_our_own_makes_an_epoch_and_comes_back_from_its_file(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    recipe = get_recipe("resnet18_tuned", epochs=1, batch_size=8, size=(32, 32))
    (report,) = run(recipe, index, data, tmp_path / "w")
    assert math.isfinite(report.train_loss)
    found = load_checkpoint(report.checkpoint)
    assert found.recipe == recipe
    assert found.preprocessing == recipe.preprocessing
    assert found.preprocessing.augmentation.zoom == (0.55, 1.6)


def test_the_average_of_the_weights_is_what_is_saved(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    """One step: a tenth of the first weights stays in the average, which is young."""
    recipe = replace(QUICK, epochs=1, batch_size=100, average=0.9)
    reports = train(recipe, index.path, data, tmp_path / "w", progress=False)
    torch.manual_seed(0)
    first = training._start(recipe)[0].state_dict()
    next(reports)
    last = tmp_path / "w" / "compact_cnn" / "last.pth"
    trained = torch.load(last, weights_only=True)["training"]["trained"]
    saved = load_checkpoint(tmp_path / "w" / "best.pth").weights
    assert any(not torch.equal(trained[name], first[name]) for name in first)
    for name, tensor in saved.items():
        expected = 0.1 * first[name] + 0.9 * trained[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)


def test_weights_that_know_the_test_are_told_of_before_training(
    data: Path, index: IndexReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(replace(QUICK, epochs=1), index, data, tmp_path / "w")
    capsys.readouterr()
    other = index.table.assign(split=index.table["split"].map(
        {"train": "test", "val": "val", "test": "train"}
    ))  # fmt: skip
    recipe = replace(QUICK, epochs=1, init=str(tmp_path / "w" / "best.pth"))
    next(train(recipe, other, data, tmp_path / "other"))
    said = capsys.readouterr().err
    tests = int((other["split"] == "test").sum())
    assert f"chosen on {tests} of the {tests} test pictures of this index" in said
    assert "val pictures of this index: figures on them are too good" in said
    # Of its own pictures, a run that goes on has nothing to tell.
    list(train(replace(QUICK, epochs=1), index.path, data, tmp_path / "w", resume=True))
    assert "was trained or chosen" not in capsys.readouterr().err


def test_without_an_average_the_weights_themselves_are_saved(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    run(replace(QUICK, epochs=1), index, data, tmp_path / "w")
    last = torch.load(tmp_path / "w" / "compact_cnn" / "last.pth", weights_only=True)
    assert last["training"]["trained"] is None


def test_pictures_of_an_epoch_have_its_share_of_the_size(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    forward = devices.forward

    def watched(model: nn.Module, images: torch.Tensor, precision: Any) -> torch.Tensor:
        sizes.append((model.training, tuple(images.shape[2:])))
        return forward(model, images, precision)

    for room in (training, evaluation):
        monkeypatch.setattr(room, "forward", watched)
    changes: dict[str, Any] = {"init": "none", "epochs": 3, "batch_size": 100, "size": (64, 48)}
    recipe = get_recipe("resnet18", start_size=0.5, **changes)
    run(recipe, index, data, tmp_path / "w")
    assert sizes == [
        (True, (32, 24)), (False, (64, 48)),
        (True, (48, 36)), (False, (64, 48)),
        (True, (64, 48)), (False, (64, 48)),
    ]  # fmt: skip


def test_a_head_of_reversed_classes_is_put_in_order(tmp_path: Path) -> None:
    """Women come first in the file; what it answers for women must stay theirs."""
    answering(0.9, classes=("female", "male")).save(tmp_path / "reversed.pth")
    recipe = replace(QUICK, init=str(tmp_path / "reversed.pth"))
    model, _ = training._start(recipe)
    probabilities = model(torch.zeros(1, 3, 100, 80)).softmax(dim=1)[0].tolist()
    assert probabilities == pytest.approx([0.9, 0.1])
    assert CLASSES == ("male", "female")


def test_a_head_for_other_classes_starts_anew_with_a_warning(tmp_path: Path) -> None:
    torch.save(build_model("compact_cnn", classes=7).state_dict(), tmp_path / "seven.pth")
    before = torch.load(tmp_path / "seven.pth", weights_only=True)
    with pytest.warns(UserWarning, match="for other classes") as caught:
        model, _ = training._start(replace(QUICK, init=str(tmp_path / "seven.pth")))
    assert len(caught) == 2
    after = model.state_dict()
    assert torch.equal(after["fc3.weight"], before["fc3.weight"])
    assert after["fc4.weight"].shape == (2, 412)


def test_a_file_in_float16_starts_a_run_in_float32(tmp_path: Path) -> None:
    answering(0.25).save(tmp_path / "half.pth", torch.float16)
    model, _ = training._start(replace(QUICK, init=str(tmp_path / "half.pth")))
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}


def test_a_file_of_another_net_is_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save(build_model("dropout_cnn").state_dict(), tmp_path / "other.pth")
    for file in ("other.pth", "missing.pth"):
        with pytest.raises(InputError) as caught:
            training._start(replace(QUICK, init=str(tmp_path / file)))
        assert file in sentence(caught)


# Files


def test_every_epoch_is_saved_and_the_best_twice(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    out = tmp_path / "w"
    reports = run(QUICK, index, data, out)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "best.pth",
        "compact_cnn/best.pth",
        "compact_cnn/history.csv",
        "compact_cnn/last.pth",
        *(f"compact_cnn/epoch_{i}.pth" for i in range(3)),
    }
    best = max(reports, key=lambda report: (report.val_accuracy, -report.val_loss))
    content = best.checkpoint.read_bytes()
    assert (out / "best.pth").read_bytes() == content
    assert (out / "compact_cnn" / "best.pth").read_bytes() == content


@pytest.mark.parametrize(
    ("best_by", "epochs", "best"),
    [
        ("val_accuracy", [(0.5, 0.9), (0.8, 0.7), (0.7, 0.1)], [0, 1]),
        ("val_accuracy", [(0.8, 0.5), (0.8, 0.4), (0.8, 0.6)], [0, 1]),  # ties: loss
        ("val_accuracy", [(0.8, 0.5), (0.8, 0.5), (0.8, 0.5)], [0]),  # ties again: the first
        ("val_loss", [(0.9, 0.5), (0.6, 0.3), (0.95, 0.4)], [0, 1]),
        ("val_loss", [(0.5, 0.5), (0.6, 0.5), (0.5, 0.5)], [0, 1]),  # ties: accuracy
    ],
)
def test_the_best_epoch_is_chosen_by_the_recipes_figure(
    best_by: Any,
    epochs: list[tuple[float, float]],
    best: list[int],
    data: Path,
    index: IndexReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, epochs)
    reports = run(replace(QUICK, best_by=best_by), index, data, tmp_path / "w")
    assert [report.epoch for report in reports if report.is_best] == best
    assert load_checkpoint(tmp_path / "w" / "best.pth").epoch == best[-1]


def test_patience_ends_the_run(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [(0.5, 0.5), (0.6, 0.5), (0.5, 0.5), (0.7, 0.5), (0.5, 0.5), (0.5, 0.5), (0.9, 0.5)]
    scripted(monkeypatch, figures)
    recipe = replace(QUICK, epochs=7, patience=2)
    assert [report.epoch for report in run(recipe, index, data, tmp_path / "w")] == list(range(6))


def test_files_of_earlier_runs_are_moved_aside_and_never_lost(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    folder, contents = tmp_path / "w" / "compact_cnn", []
    for seed in range(3):
        run(replace(ONE_EPOCH, epochs=2 - seed % 2), index, data, tmp_path / "w", seed=seed)
        contents.append((folder / "epoch_0.pth").read_bytes())
    assert len(set(contents)) == 3
    assert (folder / "earlier_1" / "epoch_0.pth").read_bytes() == contents[0]
    assert (folder / "earlier_1" / "epoch_1.pth").exists()
    assert (folder / "earlier_2" / "epoch_0.pth").read_bytes() == contents[1]
    assert not (folder / "earlier_2" / "epoch_1.pth").exists()
    assert not (folder / "earlier_3").exists()
    assert not list((tmp_path / "w").glob("best_earlier_*"))  # each best lies in its folder


def test_a_best_file_of_unknown_origin_is_kept(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    out = tmp_path / "w"
    out.mkdir()
    for number in (1, 2):
        foreign = f"somebody's weights, {number}".encode()
        (out / "best.pth").write_bytes(foreign)
        run(ONE_EPOCH, index, data, out, seed=number)
        assert (out / f"best_earlier_{number}.pth").read_bytes() == foreign
    assert load_checkpoint(out / "best.pth").epoch == 0
    run(ONE_EPOCH, index, data, out, seed=3)
    assert len(list(out.glob("best_earlier_*"))) == 2


def test_a_run_of_another_recipe_loses_nothing(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    out = tmp_path / "w"
    run(ONE_EPOCH, index, data, out)
    first = (out / "best.pth").read_bytes()
    run(replace(ONE_EPOCH, name="mine"), index, data, out)
    assert (out / "compact_cnn" / "best.pth").read_bytes() == first
    assert load_checkpoint(out / "best.pth").recipe.name == "mine"


def test_a_run_may_start_from_the_file_that_it_moves_aside(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    run(ONE_EPOCH, index, data, tmp_path / "w")
    best = tmp_path / "w" / "compact_cnn" / "best.pth"
    run(replace(ONE_EPOCH, init=str(best)), index, data, tmp_path / "w")
    assert (best.parent / "earlier_1" / "best.pth").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    (tmp_path / "w").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        run(ONE_EPOCH, index, data, tmp_path / "w")
    assert str(tmp_path / "w") in sentence(caught)


# Stopping and failing


def test_leaving_the_loop_leaves_no_workers(data: Path, index: IndexReport, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    for report in train(QUICK, index, data, tmp_path / "w", workers=1, progress=False):
        assert report.epoch == 0
        assert len(set(multiprocessing.active_children()) - before) == 2
        break
    assert set(multiprocessing.active_children()) <= before
    assert load_checkpoint(tmp_path / "w" / "best.pth").epoch == 0


def test_a_loss_that_is_not_a_number_is_one_sentence(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run(replace(QUICK, learning_rate=1e30), index, data, tmp_path / "w")
    assert "learning_rate" in sentence(caught)
    assert not (tmp_path / "w" / "best.pth").exists()


def test_a_last_batch_of_one_picture_does_not_stop_batchnorm(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    train_rows = int((index.table["split"] == "train").sum())
    recipe = get_recipe("resnet18", init="none", size=(32, 32), epochs=1, batch_size=train_rows - 1)
    (report,) = run(recipe, index, data, tmp_path / "w")
    assert math.isfinite(report.train_loss)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_nets_without_batchnorm_learn_from_batches_of_one(
    data: Path,
    index: IndexReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
) -> None:
    step, sizes = training._Run._step, []

    def watched(self: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
        sizes.append(len(labels))
        return step(self, images, labels)

    monkeypatch.setattr(training._Run, "_step", watched)
    run(replace(QUICK, epochs=1, batch_size=batch_size), index, data, tmp_path / "w")
    assert sizes == ([1] * 16 if batch_size == 1 else [5, 5, 5, 1])


def test_bad_files_are_named_once_and_left_out(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    table = read_index(index)
    bad = [table["path"][table["split"] == split].iloc[1] for split in ("train", "val")]
    for path in bad:
        (data / path).write_bytes(b"no picture")
    with pytest.warns(UnreadablePictureWarning) as caught:
        reports = run(replace(QUICK, epochs=2), index, data, tmp_path / "w")
    assert len(reports) == 2
    told = [str(w.message) for w in caught if w.category is UnreadablePictureWarning]
    assert [message.split(" is left out: ")[0] for message in told] == bad
    assert all("not an image" in message for message in told)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_bad_files_alone_is_one_sentence(
    data: Path, index: IndexReport, tmp_path: Path, split: str
) -> None:
    for path in index.table["path"][index.table["split"] == split]:
        (data / path).write_bytes(b"no picture")
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("ignore", UnreadablePictureWarning)
        run(ONE_EPOCH, index, data, tmp_path / "w")
    words = {"train": "made of other pictures", "val": "could be read"}
    assert words[split] in sentence(caught)


@pytest.mark.parametrize("device", ["cuda:99", "abacus", ""])
def test_a_device_that_is_not_there_is_one_sentence(
    data: Path, index: IndexReport, tmp_path: Path, device: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(ONE_EPOCH, index, data, tmp_path / "w", device=device)
    assert repr(device) in sentence(caught)


# Leaks


def seen_by(index: IndexReport, data: Path, splits: tuple[str, ...]) -> torch.Tensor:
    paths = index.table["path"][index.table["split"].isin(splits)]
    return hash64(hashlib.sha256((data / path).read_bytes()).hexdigest() for path in paths)


def test_a_checkpoint_knows_what_it_was_trained_and_chosen_on(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    (report,) = run(ONE_EPOCH, index, data, tmp_path / "w")
    seen = load_checkpoint(report.checkpoint).seen
    assert torch.equal(seen, seen_by(index, data, ("train", "val")))


@pytest.mark.parametrize(
    "forget",
    [
        lambda table: table,
        lambda table: table.drop(columns="sha256"),
        lambda table: table.assign(sha256=""),
        lambda table: table.assign(sha256=float("nan")),
        lambda table: table.assign(sha256="unknown"),
        lambda table: table.assign(sha256=table["sha256"].str.upper()),
    ],
    ids=["whole", "no column", "blank", "nan", "nonsense", "upper case"],
)
def test_no_index_gets_round_the_leak_check(
    forget: Any, data: Path, index: IndexReport, tmp_path: Path
) -> None:
    """Neither when the model is trained by it nor when the model is judged by it."""
    table = forget(read_index(index))
    (report,) = run(ONE_EPOCH, table, data, tmp_path / "w")
    assert torch.equal(
        load_checkpoint(report.checkpoint).seen, seen_by(index, data, ("train", "val"))
    )
    for split, count in (("train", 16), ("val", 4), (None, 20)):
        rows = int((index.table["split"] == split).sum()) if split else len(index.table)
        with pytest.raises(LeakError, match=rf"{count} of these {rows} pictures"):
            judge(report.checkpoint, table, data, split=split)
    assert len(judge(report.checkpoint, table, data, split="test").labels) == 4


def test_a_leak_is_one_sentence_that_says_how_to_go_on(data: Path, index: IndexReport) -> None:
    found = seen_by(index, data, ("test",))[:3]
    with pytest.raises(LeakError) as caught:
        judge(answering(seen=found), index, data)
    message = sentence(caught)
    assert message.startswith("LEAK")
    assert "3 of these 4 pictures" in message
    assert "allow_seen=True" in message
    assert isinstance(caught.value, InputError)


def test_allow_seen_evaluates_all_the_same(data: Path, index: IndexReport) -> None:
    leaky = answering(seen=seen_by(index, data, ("train", "val", "test")))
    assert len(judge(leaky, index, data, allow_seen=True).labels) == 4


def test_a_renamed_picture_is_still_known(data: Path, index: IndexReport) -> None:
    leaky = answering(seen=seen_by(index, data, ("train", "val", "test")))
    (data / "male" / "m_0.jpg").rename(data / "male" / "somebody else.jpg")
    table = pd.DataFrame({"path": ["male/somebody else.jpg"], "label": [0]})
    with pytest.raises(LeakError, match="1 of these 1"):
        judge(leaky, table, data, split=None)


def test_fine_tuned_weights_inherit_what_their_start_has_seen(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    test_pictures = seen_by(index, data, ("test",))
    answering(seen=test_pictures).save(tmp_path / "start.pth")
    recipe = replace(ONE_EPOCH, init=str(tmp_path / "start.pth"))
    (report,) = run(recipe, index, data, tmp_path / "w")
    seen = load_checkpoint(report.checkpoint).seen
    assert seen.tolist() == seen_by(index, data, ("train", "val", "test")).tolist()
    with pytest.raises(LeakError, match="4 of these 4"):
        judge(report.checkpoint, index, data)


# Evaluation


@pytest.mark.parametrize("classes", [("male", "female"), ("female", "male")])
def test_labels_follow_the_classes_of_the_file(
    classes: tuple[str, str], data: Path, index: IndexReport
) -> None:
    """A net that always answers with its second class is right on that class alone."""
    result = judge(answering(0.9, classes=classes), index.table[index.table["label"] == 1], data)
    assert result.classes == classes
    assert result.accuracy == (1.0 if classes[1] == "female" else 0.0)
    assert result.recall["female"] == result.accuracy


def test_a_trained_net_with_reversed_classes_is_as_good(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    run(QUICK, index, data, tmp_path / "w")
    trained = load_checkpoint(tmp_path / "w" / "best.pth")
    turned = {
        name: weight.flip(0) if name.startswith("fc4.") else weight
        for name, weight in trained.weights.items()
    }
    reversed_one = replace(trained, classes=("female", "male"), weights=turned)
    straight, other = judge(trained, index, data), judge(reversed_one, index, data)
    assert straight.accuracy == other.accuracy == 1
    assert np.allclose(straight.probabilities, other.probabilities[:, ::-1], atol=1e-6)
    assert other.confusion.tolist() == straight.confusion[::-1, ::-1].tolist()


def test_classes_that_are_not_ours_are_refused_in_a_sentence(
    data: Path, index: IndexReport
) -> None:
    with pytest.raises(InputError) as caught:
        judge(answering(classes=("woman", "man")), index, data)
    assert "woman, man" in sentence(caught)


def test_evaluation_agrees_with_the_report_of_training(
    data: Path, index: IndexReport, tmp_path: Path
) -> None:
    (report,) = run(ONE_EPOCH, index, data, tmp_path / "w", mixed=False)
    result = judge(report.checkpoint, index, data, split="val", allow_seen=True)
    assert result.accuracy == report.val_accuracy
    assert result.loss == pytest.approx(report.val_loss, rel=1e-4)
    assert result.recall == report.recall


def test_probabilities_of_log_probabilities_add_up_to_one(data: Path, index: IndexReport) -> None:
    recipe = get_recipe("dropout_cnn")
    torch.manual_seed(0)
    weights = build_model("dropout_cnn").state_dict()
    result = judge(Checkpoint(recipe, CLASSES, recipe.preprocessing, weights), index, data)
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)
    right = result.probabilities[np.arange(len(result.labels)), result.labels]
    assert result.loss == pytest.approx(-np.log(right).mean(), rel=1e-4)


def test_an_evaluation_has_the_temperature_of_its_model(data: Path, index: IndexReport) -> None:
    plain = judge(answering(0.9), index, data)
    scaled = judge(answering(0.9, temperature=2.0), index, data)
    assert np.allclose(plain.probabilities[:, 1], 0.9, atol=1e-6)
    assert np.allclose(scaled.probabilities[:, 1], 0.75, atol=1e-6)  # odds of 9 become 3
    assert scaled.predictions.tolist() == plain.predictions.tolist()
    right = scaled.probabilities[np.arange(len(scaled.labels)), scaled.labels]
    assert scaled.loss == pytest.approx(-np.log(right).mean(), rel=1e-5)


def test_each_epoch_has_the_temperature_that_fits_its_validation(
    data: Path, tmp_path: Path
) -> None:
    """Of colours that say little: a third of the pictures carries the other label."""
    for i in range(42):
        for label, other in zip(CLASSES, reversed(CLASSES), strict=True):
            drawn = draw_face(other if i % 3 == 0 else label, i)
            drawn.save(data / label / f"{label[0]}_{i}.jpg")
    index = create_csv(data, ratios=(15, 75, 10), progress=False)
    reports = run(QUICK, index, data, tmp_path / "w", mixed=False)
    fitted = []
    for report in reports:
        saved = load_checkpoint(report.checkpoint)
        plain, scaled = (
            judge(each, index, data, split="val", allow_seen=True)
            for each in (replace(saved, temperature=1.0), saved)
        )
        expected = fit_temperature(plain.log_probabilities, plain.labels)
        assert saved.temperature == pytest.approx(expected, rel=1e-3)
        assert plain.loss == pytest.approx(report.val_loss, rel=1e-4)
        assert scaled.loss <= plain.loss
        assert scaled.accuracy == plain.accuracy == report.val_accuracy
        fitted.append(saved.temperature)
    assert len({1.0, *fitted}) == 4
    folder = tmp_path / "w" / "compact_cnn"
    best = max(report.epoch for report in reports if report.is_best)
    assert load_checkpoint(folder / "last.pth").temperature == fitted[-1]
    assert load_checkpoint(folder / "best.pth").temperature == fitted[best]
    assert load_checkpoint(tmp_path / "w" / "best.pth").temperature == fitted[best]
    for i, _ in enumerate(fitted[:-1], start=1):
        resumed = tmp_path / f"after_{i}"
        half = train(QUICK, index, data, resumed, mixed=False, progress=False)
        for _ in range(i):
            next(half)
        half.close()  # type: ignore[attr-defined]
        run(QUICK, index, data, resumed, mixed=False, resume=True)
        for path in folder.glob("*[0-9t].pth"):
            if path.name != "last.pth":  # which holds times
                assert (resumed / "compact_cnn" / path.name).read_bytes() == path.read_bytes()


def test_bad_files_of_an_evaluation_are_skipped_with_their_names(
    data: Path, index: IndexReport
) -> None:
    paths = index.table["path"][index.table["split"] == "test"].tolist()
    (data / paths[1]).write_bytes(b"")
    with pytest.warns(UnreadablePictureWarning, match=paths[1]):
        result = judge(answering(), index, data)
    assert result.skipped == ((paths[1], "empty file"),)
    assert result.paths.tolist() == [paths[0], *paths[2:]]
    assert len(result.labels) == len(result.probabilities) == 3


def test_workers_change_nothing_in_an_evaluation(data: Path, index: IndexReport) -> None:
    torch.manual_seed(0)
    random = answering(weights=build_model("compact_cnn").state_dict())
    alone, helped = (judge(random, index, data, split=None, workers=n) for n in (0, 2))
    assert np.array_equal(alone.probabilities, helped.probabilities)
    assert alone.paths.tolist() == helped.paths.tolist() == index.table["path"].tolist()


def test_dropout_draws_the_same_whatever_the_number_of_workers(faces: Path, tmp_path: Path) -> None:
    index = create_csv(faces, progress=False)
    recipe = get_recipe("dropout_cnn", epochs=2, batch_size=14, init="none")
    losses = [
        [
            report.train_loss
            for report in train(recipe, index, faces, tmp_path / "w", workers=n, progress=False)
        ]
        for n in (0, 1)
    ]
    assert losses[0] == losses[1]


def test_an_index_of_other_pictures_is_refused_before_anything_is_moved(
    faces: Path, tmp_path: Path
) -> None:
    index = create_csv(faces, progress=False)
    other = tmp_path / "other"
    for i, path in enumerate(index.table["path"]):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        draw_face("male", 1000 + i).save(other / path)
    with pytest.raises(InputError, match="made of other pictures"):
        next(train(get_recipe("compact_cnn", epochs=1), index, other, tmp_path / "w"))
    with pytest.raises(InputError, match="is not there"):
        next(train(get_recipe("compact_cnn", epochs=1), index, tmp_path, tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_net_that_cannot_take_the_size_says_so_at_once(faces: Path, tmp_path: Path) -> None:
    index = create_csv(faces, progress=False)
    recipe = get_recipe("resnet18", arch="vit_b_16", init="none", size=(96, 96))
    with pytest.raises(InputError, match="cannot take pictures of 96 x 96"):
        next(train(recipe, index, faces, tmp_path / "w", progress=False))
    recipe = get_recipe("compact_cnn", start_size=0.5, init="none")
    with pytest.raises(InputError, match=r"cannot take pictures of 50 x 40 pixels: .*start_size=1"):
        next(train(recipe, index, faces, tmp_path / "w", progress=False))
    assert not (tmp_path / "w").exists()


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let the net run out of memory for more pictures than that; return the sizes it was given."""
    sizes: list[int] = []
    forward = devices.forward

    def limited(model: nn.Module, images: torch.Tensor, precision: Any) -> torch.Tensor:
        sizes.append(len(images))
        if model.training and len(images) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(model, images, precision)

    for room in (training, evaluation):
        monkeypatch.setattr(room, "forward", limited)
    return sizes


def test_out_of_memory_cuts_the_batch_and_goes_on(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (whole,) = run(ONE_EPOCH, index, data, tmp_path / "whole", mixed=False)
    sizes = limit_memory(monkeypatch, 5)
    (cut,) = run(ONE_EPOCH, index, data, tmp_path / "cut", mixed=False, progress=True)
    assert sizes[:7] == [16, 8, 4, 4, 4, 4, 4]
    # The same step by the same mean loss, as this net has no batch norm.
    assert cut.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert cut.val_loss == pytest.approx(whole.val_loss, rel=1e-4)
    said = capsys.readouterr().err
    assert said.count("out of memory") == 2
    assert "cut into 4 parts" in said


def test_a_picture_that_does_not_fit_into_memory_ends_in_a_sentence(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 0)
    with pytest.raises(InputError, match="memory is too small") as caught:
        run(ONE_EPOCH, index, data, tmp_path)
    sentence(caught)


def test_what_was_chosen_is_said(
    data: Path, index: IndexReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ONE_EPOCH, index, data, tmp_path, mixed=False, progress=True)
    assert "compact_cnn: on cpu in float32, batches of 16" in capsys.readouterr().err


def test_frozen_layers_keep_no_record_for_gradients(start: Path) -> None:
    recipe = get_recipe("resnet18", init=str(start), size=(32, 32))
    model, _ = training._start(recipe)
    records: dict[str, object] = {}
    for name in ("layer1", "layer2"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: records.update({name: output.grad_fn})
        )
    training.train_mode(model)
    model(torch.zeros(2, 3, 32, 32))
    assert records["layer1"] is None
    assert records["layer2"] is not None


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "compact_cnn"])
def test_optimisers_are_fused(name: str) -> None:
    optimizer = training._optimizer(get_recipe(name), nn.Linear(1, 1))
    assert optimizer.defaults["fused"]


def test_no_part_of_a_batch_is_too_small_for_batch_norm(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 11 and 5 pictures: what is cut into four leaves single pictures of the second."""
    sizes = limit_memory(monkeypatch, 3)
    recipe = get_recipe("resnet18", init="none", size=(32, 32), epochs=1, batch_size=11)
    (report,) = run(recipe, index, data, tmp_path / "w", mixed=False)
    assert math.isfinite(report.train_loss)
    assert sum(sizes[2:]) >= 16
    assert min(sizes) >= 2


def test_other_errors_of_a_step_are_not_taken_for_memory(
    data: Path, index: IndexReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = devices.forward

    def wrong(model: nn.Module, images: torch.Tensor, precision: Any) -> torch.Tensor:
        forward(model, images, precision)
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(training, "forward", wrong)
    with pytest.raises(RuntimeError, match="multiplied"):
        run(ONE_EPOCH, index, data, tmp_path / "w")


def test_any_whole_number_is_a_seed(data: Path, index: IndexReport, tmp_path: Path) -> None:
    results = [numbers(run(ONE_EPOCH, index, data, tmp_path / "w", seed=-1)) for _ in range(2)]
    assert results[0] == results[1]


def test_frozen_layers_have_no_gradients_after_a_step(
    data: Path, index: IndexReport, tmp_path: Path, start: Path
) -> None:
    recipe = get_recipe("resnet18", init=str(start), size=(32, 32), batch_size=8)
    run_of = training._Run(recipe, index, data, tmp_path / "w", 0, "cpu", 0, False, False)
    batch = next(iter(run_of.train_loader))
    assert batch.images is not None
    training.train_mode(run_of.model)
    run_of.share.set([len(batch.labels)], 0)
    run_of._backward(batch.images, batch.labels)
    without = {n.split(".")[0] for n, each in run_of.model.named_parameters() if each.grad is None}
    assert without == {"conv1", "bn1", "layer1"}
    run_of.close()


@pytest.mark.parametrize("steps", range(1, 9))
def test_one_cycle_of_few_steps_has_a_rate_for_each(steps: int) -> None:
    recipe = get_recipe("resnet18_tuned", epochs=1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = _schedule(recipe, optimizer, steps)
    assert schedule is not None
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        assert 0 < optimizer.param_groups[0]["lr"] <= recipe.learning_rate
