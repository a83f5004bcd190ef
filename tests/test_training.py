"""Red faces against blue faces, which every net here must be able to tell apart."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import draw_face, make_checkpoint, make_faces, make_index, snapshot
from sentences import sentence
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from face_gender import CLASSES
from face_gender.data.dataset import UnreadablePictureWarning
from face_gender.data.index import Index
from face_gender.devices import pick_device
from face_gender.errors import InputError
from face_gender.evaluate.metrics import Evaluation, fit_temperature
from face_gender.evaluate.predict import LeakError, evaluate
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, hash64, load_checkpoint
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train.loop import train
from face_gender.train.optim import build_for, loss_of, make_optimizer, make_schedule
from face_gender.train.run import EpochReport
from face_gender.train.run_folder import best_epoch
from face_gender.train.step import Step, average_of

QUICK = get_recipe("compact_cnn", epochs=3, batch_size=4, learning_rate=1e-3)
ONE_EPOCH = replace(QUICK, epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def trained(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of QUICK; not to be written to."""
    out = tmp_path_factory.mktemp("trained")
    run(QUICK, index, out, mixed=False)
    return out


def run(recipe: Recipe | str, index: Index | Path, out: Path, **options: Any) -> list[EpochReport]:
    return list(train(recipe, index, out, **{"progress": False, **options}))


def judge(weights: Path | Checkpoint, index: Index, split: str | None = "test",
          **options: Any) -> Evaluation:  # fmt: skip
    return evaluate(weights, index, split, progress=False, **options)


def rows_of(index: Index, split: str) -> pd.DataFrame:
    return index.table[index.table["split"] == split]


def numbers(reports: list[EpochReport]) -> list[tuple[float, float, float]]:
    return [(each.train_loss, each.val_loss, each.val_accuracy) for each in reports]


def predicting(female: float = 0.5, **changes: Any) -> Checkpoint:
    """A net that gives every picture the same probability of its second class."""
    weights = {k: torch.zeros_like(v) for k, v in build_model("compact_cnn").state_dict().items()}
    weights["fc4.bias"] = torch.tensor([1 - female, female]).log()
    return make_checkpoint(weights=weights, **changes)


# What training is for


def test_red_and_blue_faces_are_learnt_in_three_epochs(index: Index, tmp_path: Path) -> None:
    before = snapshot(index.source.path)
    reports = run(QUICK, index.path or "", tmp_path / "w")
    assert reports[-1].val_accuracy == 1
    assert reports[-1].train_loss < 0.5 * reports[0].train_loss
    result = judge(tmp_path / "w" / "best.pth", index)
    assert result.accuracy == 1
    assert result.paths.tolist() == rows_of(index, "test")["path"].tolist()
    assert snapshot(index.source.path) == before
    # Another run by the same name, seed and index has the same numbers, whoever reads for it.
    assert numbers(run(QUICK, index, tmp_path / "w", workers=1)) == numbers(reports)
    assert numbers(run(QUICK, index, tmp_path / "w", seed=-1)) != numbers(reports)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dropout_cnn", {}),
        ("resnet18", {"init": "none", "size": (32, 32)}),
        ("resnet50", {"init": "none", "size": (32, 32), "arch": "squeezenet1_1"}),
        ("resnet18_tuned", {"size": (32, 32)}),
    ],
)
def test_the_other_recipes_make_an_epoch_and_come_back_from_their_files(
    name: str, changes: dict[str, Any], index: Index, tmp_path: Path
) -> None:
    recipe = get_recipe(name, epochs=1, batch_size=8, **changes)
    (report,) = run(recipe, index, tmp_path)
    assert math.isfinite(report.train_loss + report.val_loss)
    found = load_checkpoint(report.checkpoint)
    assert found.recipe == recipe
    assert found.preprocessing == recipe.preprocessing


def test_a_recipe_may_be_given_by_its_name(index: Index, tmp_path: Path) -> None:
    assert next(train("compact_cnn", index, tmp_path, progress=False)).epoch == 0  # type: ignore[call-overload]
    with pytest.raises(InputError, match="did you mean compact_cnn"):
        run("compactcnn", index, tmp_path)


# Reports


def test_reports_hold_the_figures_of_each_epoch(index: Index, tmp_path: Path) -> None:
    reports = run(replace(QUICK, epochs=2), index, tmp_path)
    assert [report.epoch for report in reports] == [0, 1]
    for report in reports:
        assert report.train_loss > 0
        assert report.val_loss >= 0
        # Two pictures of each class: accuracy is the mean of the recalls.
        assert sum(report.val_recall.values()) / 2 == pytest.approx(report.val_accuracy)
        assert report.seconds > 0
        assert report.images_per_second > 0
        assert report.checkpoint == tmp_path / "compact_cnn" / f"epoch_{report.epoch}.pth"
        saved = load_checkpoint(report.checkpoint)
        assert saved.epoch == report.epoch
        assert saved.metrics == report.metrics() == {
            "train_loss": report.train_loss,
            "val_loss": report.val_loss,
            "val_accuracy": report.val_accuracy,
            "val_recall_male": report.val_recall["male"],
            "val_recall_female": report.val_recall["female"],
        }  # fmt: skip


def test_losses_are_means_per_picture_and_not_per_batch(index: Index, tmp_path: Path) -> None:
    """The last batch holds one picture of five; a mean of batch means would weigh it as four."""
    rows = [("male", i, "train") for i in range(4)] + [("female", 0, "train")]
    rows += [("male", i, "val") for i in range(4, 8)] + [("female", 1, "val")]
    table = pd.DataFrame(
        [(f"{name}/{name[0]}_{i}.jpg", CLASSES.index(name), split) for name, i, split in rows],
        columns=["path", "label", "split"],
    )
    constant, few = predicting(0.1), replace(index, table=table)
    constant.save(tmp_path / "start.pth")
    recipe = replace(
        QUICK, epochs=1, batch_size=4, learning_rate=1e-30, init=str(tmp_path / "start.pth")
    )
    (report,) = run(recipe, few, tmp_path, mixed=False)
    expected = -(4 * math.log(0.9) + math.log(0.1)) / 5
    assert report.train_loss == pytest.approx(expected, rel=1e-4)
    assert report.val_loss == pytest.approx(expected, rel=1e-4)
    assert judge(constant, few, "val", batch_size=4).loss == pytest.approx(expected, rel=1e-4)


def test_nothing_the_caller_does_between_epochs_changes_a_number(
    index: Index, tmp_path: Path
) -> None:
    recipe = get_recipe("dropout_cnn", epochs=2, batch_size=8)
    undisturbed = run(recipe, index, tmp_path / "a")
    disturbed = []
    for report in train(recipe, index, tmp_path / "b", progress=False):
        disturbed.append(report)
        torch.manual_seed(99)
        judge(report.checkpoint, index)
    assert numbers(disturbed) == numbers(undisturbed)


def test_progress_is_said_or_not(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ONE_EPOCH, index, tmp_path, progress=True, mixed=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "compact_cnn: on cpu in float32, batches of 16" in captured.err
    run(ONE_EPOCH, index, tmp_path)
    assert capsys.readouterr().err == ""


# The net, its optimiser and its learning rate


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet18 to start from, as ImageNet's would be."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.save(build_model("resnet18").state_dict(), path)
    return path


@pytest.mark.parametrize("feature_extract", [False, True])
def test_frozen_layers_and_their_batchnorm_stay_as_they_are(
    feature_extract: bool, index: Index, tmp_path: Path, start: Path
) -> None:
    recipe = get_recipe("resnet18", epochs=1, batch_size=8, size=(32, 32), init=str(start),
                        feature_extract=feature_extract)  # fmt: skip
    before = torch.load(start, weights_only=True)
    (report,) = run(recipe, index, tmp_path)
    after = load_checkpoint(report.checkpoint).weights
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == ({"fc"} if feature_extract else {"layer2", "layer3", "layer4", "fc"})
    if not feature_extract:
        name = "layer2.0.bn1.running_mean"
        assert not torch.equal(before[name], after[name])


def test_imagenet_weights_are_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    model, seen = build_for(get_recipe("resnet18"))
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    frozen = {n.split(".")[0] for n, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert len(seen) == 0
    # Random layers that are frozen would stay random.
    model, _ = build_for(get_recipe("resnet18", init="none"))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_imagenet_weights_nothing_is_trained_or_moved(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_download(*args: object, **options: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    out = tmp_path / "w"
    (out / "resnet18").mkdir(parents=True)
    (out / "resnet18" / "best.pth").write_bytes(b"earlier")
    with pytest.raises(InputError) as caught:
        run("resnet18", index, out)
    assert "resnet18-f37072fd.pth" in sentence(caught)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["best.pth"]


def test_damaged_weights_to_start_from_and_nothing_to_train_are_sentences(
    index: Index, tmp_path: Path
) -> None:
    start = make_checkpoint()
    start.save(tmp_path / "whole.pth")
    start.weights["conv1.weight"][0] = math.nan
    start.save(tmp_path / "nan.pth")
    for name, frozen, words in (
        ("nan.pth", (), "nan.pth: weights in it are no numbers"),
        ("whole.pth", ("",), "has no layer left to train"),
    ):
        recipe = replace(QUICK, init=str(tmp_path / name), frozen=frozen)
        with pytest.raises(InputError) as caught:
            run(recipe, index, tmp_path / "w")
        assert words in sentence(caught)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("resnet18", "AdamW", {"lr": 1e-3, "weight_decay": 0.01, "amsgrad": True}),
        ("resnet50", "SGD", {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}),
        ("compact_cnn", "Adam", {"lr": 3e-4, "weight_decay": 0.0, "amsgrad": False}),
        ("dropout_cnn", "Adam", {"lr": 2e-4, "weight_decay": 0.0, "amsgrad": False}),
    ],
)
def test_the_optimiser_is_the_recipes_and_fused(
    name: str, kind: str, settings: dict[str, Any]
) -> None:
    optimizer = make_optimizer(get_recipe(name), nn.Linear(1, 1))
    assert type(optimizer).__name__ == kind
    assert {key: optimizer.defaults[key] for key in settings} == settings
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 40])
def test_one_cycle_raises_the_learning_rate_and_lowers_it_again(steps: int) -> None:
    recipe = get_recipe("resnet18_tuned", epochs=1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = make_schedule(recipe, optimizer, steps)
    assert schedule is not None
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= recipe.learning_rate for rate in rates)
    assert make_schedule(QUICK, optimizer, steps) is None
    if steps == 40:
        top = int(np.argmax(rates))
        assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.05)
        assert top == pytest.approx(10, abs=1)
        assert all(a < b for a, b in pairwise(rates[: top + 1]))
        assert all(a > b for a, b in pairwise(rates[top:]))
        assert rates[-1] < 0.05 * max(rates)


def test_label_smoothing_and_a_teacher_change_the_loss() -> None:
    outputs, labels = torch.tensor([[4.0, -4.0], [-1.0, 2.0]]), torch.tensor([0, 1])
    log = outputs.log_softmax(1)
    smooth = loss_of(outputs, labels, replace(QUICK, label_smoothing=0.2))
    expected = -(0.9 * log[[0, 1], labels] + 0.1 * log[[0, 1], 1 - labels]).mean()
    assert smooth == pytest.approx(expected.item())
    plain = loss_of(outputs, labels, QUICK)
    assert plain == pytest.approx(-log[[0, 1], labels].mean().item())
    # The loss of a teacher that agrees with the label is the label's own.
    sure = nn.functional.one_hot(labels, 2).float()
    torch.testing.assert_close(loss_of(outputs, sure, replace(QUICK, distillation=0.8)), plain)


def test_training_follows_the_teacher_and_not_the_label(index: Index, tmp_path: Path) -> None:
    """A teacher that calls each man a woman and the reverse, with all the say."""
    table = index.table.assign(teacher=(1 - index.table["label"]).astype(str))
    *_, last = run(replace(QUICK, distillation=1.0), replace(index, table=table), tmp_path)
    assert last.val_accuracy == 0


def test_an_average_follows_the_faster_the_fewer_steps_are_in_it() -> None:
    """By hand, for a net with BatchNorm, whose counter is no number to average."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ema_model = average_of(model, 0.6)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for steps in range(1, 31):
        model.train()(torch.randn(2, 3, 5, 5))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema_model.update_parameters(model)
        decay = min(0.6, steps / (9 + steps))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()
    for name, tensor in ema_model.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert int(ema_model.module.state_dict()["1.num_batches_tracked"]) == 30


@pytest.mark.parametrize("average", [0.9, 0.0])
def test_the_average_of_the_weights_is_what_is_saved(
    average: float, index: Index, tmp_path: Path
) -> None:
    """One step: a tenth of the first weights stays in the average, which is young."""
    recipe = replace(QUICK, epochs=1, batch_size=100, average=average)
    torch.manual_seed(0)
    first = build_for(recipe)[0].state_dict()
    run(recipe, index, tmp_path)
    last = tmp_path / "compact_cnn" / "last.pth"
    trained = torch.load(last, weights_only=True)["training"]["trained"]
    saved = load_checkpoint(tmp_path / "best.pth").weights
    if not average:
        assert trained is None
        return
    assert any(not torch.equal(trained[name], first[name]) for name in first)
    for name, tensor in saved.items():
        expected = 0.1 * first[name] + 0.9 * trained[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)


def test_weights_that_know_the_test_are_told_of_before_training(
    index: Index, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = index.table["split"].map({"train": "test", "val": "val", "test": "train"})
    other = replace(index, table=index.table.assign(split=turned))
    recipe = replace(QUICK, epochs=1, init=str(trained / "best.pth"))
    run(recipe, other, tmp_path, progress=True)
    said = capsys.readouterr().err
    assert "chosen on 16 of the 16 test pictures of this index" in said
    assert "val pictures of this index: figures on them are too good" in said
    # Of its own pictures, a run that goes on has nothing to tell.
    run(recipe, other, tmp_path, progress=True, resume=True)
    assert "was trained or chosen" not in capsys.readouterr().err


@pytest.fixture
def sizes() -> Iterator[list[tuple[bool, tuple[int, ...]]]]:
    """Whether the net trains, and the shape of its pictures, at each call of its first layer."""
    found: list[tuple[bool, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: Any) -> None:
        tried = torch.is_inference_mode_enabled()  # before training, on a picture of zeros
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and not tried:
            found.append((module.training, tuple(inputs[0].shape)))

    handle = register_module_forward_pre_hook(note)
    yield found
    handle.remove()


def test_pictures_of_an_epoch_have_its_fraction_of_the_size(
    index: Index, tmp_path: Path, sizes: list[Any]
) -> None:
    changes: dict[str, Any] = {"init": "none", "epochs": 3, "batch_size": 100, "size": (64, 48)}
    run(get_recipe("resnet18", start_size=0.5, **changes), index, tmp_path)
    assert [(training, shape[2:]) for training, shape in sizes] == [
        (True, (32, 24)), (False, (64, 48)),
        (True, (48, 36)), (False, (64, 48)),
        (True, (64, 48)), (False, (64, 48)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (get_recipe("resnet18", arch="vit_b_16", init="none", size=(96, 96)), "96 x 96"),
        (get_recipe("compact_cnn", start_size=0.5), "50 x 40 pixels: .*start_size=1"),
    ],
)
def test_a_net_that_cannot_take_the_size_says_so_at_once(
    recipe: Recipe, words: str, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"cannot take pictures of {words}"):
        run(recipe, index, tmp_path / "w")
    assert not (tmp_path / "w").exists()


# Files


def test_every_epoch_is_saved_and_the_best_twice(trained: Path) -> None:
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert files == {
        "best.pth",
        "compact_cnn/best.pth",
        "compact_cnn/history.csv",
        "compact_cnn/last.pth",
        *(f"compact_cnn/epoch_{i}.pth" for i in range(3)),
    }
    history = pd.read_csv(trained / "compact_cnn" / "history.csv")
    best = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
    content = (trained / "compact_cnn" / f"epoch_{best['epoch']:.0f}.pth").read_bytes()
    assert (trained / "best.pth").read_bytes() == content
    assert (trained / "compact_cnn" / "best.pth").read_bytes() == content


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
    best_by: str, epochs: list[tuple[float, float]], best: list[int]
) -> None:
    recipe = replace(QUICK, best_by=best_by)
    history = [{"val_accuracy": accuracy, "val_loss": loss} for accuracy, loss in epochs]
    found = [best_epoch(recipe, history[:count]) for count in (1, 2, 3)]
    assert sorted(set(found)) == best and found == sorted(found)


def test_patience_ends_the_run(index: Index, tmp_path: Path) -> None:
    """At a rate of nearly nothing no epoch is better than the first."""
    recipe = replace(ONE_EPOCH, epochs=7, patience=2, learning_rate=1e-30)
    assert [each.is_best for each in run(recipe, index, tmp_path)] == [True, False, False]


def test_files_of_earlier_runs_are_moved_aside_and_never_lost(index: Index, tmp_path: Path) -> None:
    folder, contents = tmp_path / "compact_cnn", []
    tmp_path.joinpath("best.pth").write_bytes(b"somebody's weights")
    for seed in range(3):
        run(replace(ONE_EPOCH, epochs=2 - seed % 2), index, tmp_path, seed=seed)
        contents.append((folder / "epoch_0.pth").read_bytes())
    assert len(set(contents)) == 3
    assert (folder / "earlier_1" / "epoch_0.pth").read_bytes() == contents[0]
    assert (folder / "earlier_1" / "epoch_1.pth").exists()
    assert (folder / "earlier_1" / "last.pth").exists()
    assert (folder / "earlier_2" / "epoch_0.pth").read_bytes() == contents[1]
    assert not (folder / "earlier_2" / "epoch_1.pth").exists()
    assert not (folder / "earlier_3").exists()
    # Each best lies in its folder; one of unknown origin is kept.
    assert (tmp_path / "best_earlier_1.pth").read_bytes() == b"somebody's weights"
    assert len(list(tmp_path.glob("best_earlier_*"))) == 1
    # A run may start from the file that it moves aside, and one of another recipe loses nothing.
    best = folder / "best.pth"
    run(replace(ONE_EPOCH, init=str(best)), index, tmp_path)
    assert (folder / "earlier_3" / "best.pth").exists()
    before = best.read_bytes()
    run(replace(ONE_EPOCH, name="mine"), index, tmp_path)
    assert best.read_bytes() == before
    assert load_checkpoint(tmp_path / "best.pth").recipe.name == "mine"


def test_a_place_that_cannot_be_written_is_one_sentence(index: Index, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        run(ONE_EPOCH, index, tmp_path / "w")
    assert str(tmp_path / "w") in sentence(caught)


# Stopping and failing


def test_leaving_the_loop_leaves_no_workers(index: Index, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    for report in train(QUICK, index, tmp_path, workers=1, progress=False):
        assert report.epoch == 0
        assert len(set(multiprocessing.active_children()) - before) == 2
        break
    assert set(multiprocessing.active_children()) <= before
    assert load_checkpoint(tmp_path / "best.pth").epoch == 0


def test_a_loss_that_is_not_a_number_is_one_sentence(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(replace(QUICK, learning_rate=1e30), index, tmp_path)
    assert "learning_rate" in sentence(caught)
    assert not (tmp_path / "best.pth").exists()


@pytest.mark.parametrize("batch_size", [15, 1])
def test_batchnorm_never_sees_a_single_picture_unless_it_was_asked_to(
    batch_size: int, index: Index, tmp_path: Path, sizes: list[Any]
) -> None:
    """And yet each of the 16 is trained on."""
    recipe = get_recipe(
        "resnet18", init="none", size=(64, 64), epochs=1, batch_size=batch_size, frozen=()
    )
    (report,) = run(recipe, index, tmp_path)
    assert math.isfinite(report.train_loss)
    assert (
        [shape[0] for training, shape in sizes if training] == [16] if batch_size > 1 else [1] * 16
    )


def test_nets_without_batchnorm_learn_from_a_last_batch_of_one(
    index: Index, tmp_path: Path, sizes: list[Any]
) -> None:
    run(replace(ONE_EPOCH, batch_size=5), index, tmp_path)
    assert [shape[0] for training, shape in sizes if training] == [5, 5, 5, 1]


def test_bad_files_are_named_once_and_left_out(own: Index, tmp_path: Path) -> None:
    bad = [rows_of(own, split)["path"].iloc[1] for split in ("train", "val")]
    for path in bad:
        (own.source.path / path).write_bytes(b"no picture")
    with pytest.warns(UnreadablePictureWarning) as caught:
        reports = run(replace(ONE_EPOCH, epochs=2, schedule="one_cycle"), own, tmp_path / "w")
    assert len(reports) == 2
    told = [str(w.message) for w in caught if w.category is UnreadablePictureWarning]
    assert [message.split(" is left out: ")[0] for message in told] == bad
    assert all("not an image" in message for message in told)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_bad_files_alone_is_one_sentence(own: Index, tmp_path: Path, split: str) -> None:
    for path in rows_of(own, split)["path"]:
        (own.source.path / path).write_bytes(b"no picture")
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("ignore", UnreadablePictureWarning)
        run(ONE_EPOCH, own, tmp_path / "w")
    assert f"no picture of the {'train ' if split == 'train' else ''}split" in sentence(caught)


def test_a_split_of_one_readable_picture_is_too_small_for_batchnorm(
    own: Index, tmp_path: Path
) -> None:
    for path in rows_of(own, "train")["path"].iloc[1:]:
        (own.source.path / path).write_bytes(b"no picture")
    recipe = get_recipe("resnet18", init="none", size=(32, 32), epochs=1, batch_size=16)
    with warnings.catch_warnings(), pytest.raises(InputError, match="BatchNorm") as caught:
        warnings.simplefilter("ignore", UnreadablePictureWarning)
        run(recipe, own, tmp_path / "w")
    sentence(caught)


@pytest.mark.parametrize("device", ["cuda:99", "abacus", ""])
def test_a_device_that_is_not_there_is_one_sentence(
    index: Index, tmp_path: Path, device: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(ONE_EPOCH, index, tmp_path, device=device)
    assert repr(device) in sentence(caught)


class _Small(nn.Module):
    """A net on a device that has no memory for more than some pictures at a time."""

    def __init__(self, most: int, batchnorm: bool = False) -> None:
        super().__init__()
        self.most, self.sizes = most, list[int]()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        if batchnorm:
            self.net.append(nn.BatchNorm1d(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        result: torch.Tensor = self.net(images)
        return result


def stepped(net: nn.Module, batches: list[int], say: Callable[[str], None] = print) -> list[float]:
    """Make a step on each of some random batches; return the mean losses."""
    step = Step(replace(QUICK, optimizer="sgd"), net, say=say)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for size in batches:
        images = torch.randn(size, 3, 2, 2, generator=generator)
        losses.append(step(images, torch.arange(size) % 2, size).item() / size)
    return losses


def test_out_of_memory_cuts_the_batch_and_goes_on() -> None:
    torch.manual_seed(0)
    whole = _Small(16)
    small = _Small(5)
    small.load_state_dict(whole.state_dict())
    said: list[str] = []
    # The same steps by the same mean losses, as this net has no batch norm.
    assert stepped(small, [16, 3, 16], said.append) == pytest.approx(stepped(whole, [16, 3, 16]))
    assert small.sizes == [16, 8, 4, 4, 4, 4, 1, 1, 1, 4, 4, 4, 4]
    assert said == ["out of memory: each batch is cut into 4 micro-batches from here on"]
    for one, other in zip(whole.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_no_micro_batch_is_too_small_for_batch_norm() -> None:
    small = _Small(3, batchnorm=True)
    stepped(small, [11, 5])
    assert small.sizes == [11, 6, 3, 3, 3, 2, 3, 2]


def test_a_picture_that_does_not_fit_into_memory_ends_in_a_sentence() -> None:
    for batchnorm in (False, True):
        with pytest.raises(InputError, match="memory is too small") as caught:
            stepped(_Small(1 if batchnorm else 0, batchnorm), [4])
        assert f"for {1 + batchnorm} of these pictures" in sentence(caught)


def test_no_memory_outside_of_a_step_ends_in_a_sentence(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for name in ("face_gender.train.run.to_device", "face_gender.train.loop.to_input"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="--device cpu") as e:
            patch.setattr(name, full)
            run(ONE_EPOCH, index, tmp_path / "w")
        sentence(e)
    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(InputError, match="'cuda' has no memory left") as caught:
        pick_device("cuda")
    sentence(caught)


def test_a_gpu_that_this_torch_cannot_use_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    make = torch.ones

    def ones(*shape: int, device: torch.device) -> torch.Tensor:
        if device.type == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available\nand more")
        return make(*shape, device=device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.warns(UserWarning, match=r"cuda cannot be used here \(CUDA error: no kernel"):
        assert pick_device() == torch.device("cpu")
    with pytest.raises(InputError, match="use 'auto'") as caught:
        pick_device("cuda")
    sentence(caught)


def test_a_torch_without_distributed_trains(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.distributed, "is_torchelastic_launched")
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert len(run(ONE_EPOCH, index, tmp_path / "w")) == 1


def test_other_errors_of_a_step_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="multiplied"):
        stepped(nn.Sequential(nn.Flatten(), nn.Linear(11, 2)), [4])


def test_a_run_without_a_loss_scaler_goes_on_with_one() -> None:
    plain, scaled = (Step(QUICK, nn.Linear(1, 1), precision) for precision in (None, torch.float16))
    scaled.load_state_dict(plain.state_dict())
    assert scaled.scaler.get_scale() > 1


def test_more_steps_than_were_planned_end_at_the_lowest_rate() -> None:
    """As where a run goes on in fewer processes."""
    step = Step(
        replace(QUICK, epochs=1, schedule="one_cycle"),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
    )
    step.plan(6)
    rates = []
    for _ in range(9):
        step(torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]), 2)
        rates.append(step.optimizer.param_groups[0]["lr"])
    assert min(rates) == rates[5] == rates[8]


# Leaks


def seen_by(index: Index, *splits: str) -> torch.Tensor:
    paths = index.table["path"][index.table["split"].isin(splits)]
    contents = [(index.source.path / path).read_bytes() for path in paths]
    return hash64(hashlib.sha256(content).hexdigest() for content in contents)


@pytest.mark.parametrize(
    "forget",
    [
        lambda table: table,
        lambda table: table.drop(columns="sha256"),
        lambda table: table.assign(sha256=float("nan")),
        lambda table: table.assign(sha256="unknown"),
        lambda table: table.assign(sha256=table["sha256"].str.upper()),
    ],
    ids=["whole", "no column", "nan", "nonsense", "upper case"],
)
def test_no_index_gets_round_the_leak_check(forget: Any, index: Index, tmp_path: Path) -> None:
    """Neither when the model is trained by it nor when the model is judged by it."""
    other = replace(index, table=forget(index.table))
    (report,) = run(ONE_EPOCH, other, tmp_path)
    seen = load_checkpoint(report.checkpoint).seen_hashes
    assert torch.equal(seen, seen_by(index, "train", "val"))
    for split, count, rows in (("train", 16, 16), ("val", 4, 4), (None, 20, 24)):
        with pytest.raises(LeakError, match=rf"{count} of these {rows} pictures"):
            judge(report.checkpoint, other, split)
    assert len(judge(report.checkpoint, other, "test").labels) == 4


def test_a_leak_is_one_sentence_that_says_how_to_go_on(index: Index) -> None:
    leaky = predicting(seen_hashes=seen_by(index, "test")[:3])
    with pytest.raises(LeakError) as caught:
        judge(leaky, index)
    message = sentence(caught)
    assert message.startswith("LEAK")
    assert "3 of these 4 pictures" in message
    assert "allow_seen=True" in message
    assert isinstance(caught.value, InputError)
    assert len(judge(leaky, index, allow_seen=True).labels) == 4


def test_a_renamed_picture_is_still_known(own: Index) -> None:
    leaky = predicting(seen_hashes=seen_by(own, "train", "val", "test"))
    male = own.source.path / "male"
    (male / "m_0.jpg").rename(male / "somebody else.jpg")
    table = pd.DataFrame({"path": ["male/somebody else.jpg"], "label": [0]})
    with pytest.raises(LeakError, match="1 of these 1"):
        judge(leaky, Index(table, own.source), None)


def test_fine_tuned_weights_inherit_what_their_start_has_seen(index: Index, tmp_path: Path) -> None:
    predicting(seen_hashes=seen_by(index, "test")).save(tmp_path / "start.pth")
    (report,) = run(replace(ONE_EPOCH, init=str(tmp_path / "start.pth")), index, tmp_path)
    seen = load_checkpoint(report.checkpoint).seen_hashes
    assert seen.tolist() == seen_by(index, "train", "val", "test").tolist()
    with pytest.raises(LeakError, match="4 of these 4"):
        judge(report.checkpoint, index)


# Evaluation


@pytest.mark.parametrize("classes", [("male", "female"), ("female", "male")])
def test_labels_follow_the_classes_of_the_file(classes: tuple[str, str], index: Index) -> None:
    """A net that always predicts its second class is correct on that class alone."""
    women = replace(index, table=index.table[index.table["label"] == 1])
    certain = predicting(1.0, classes=classes)
    certain.weights["fc4.bias"].copy_(torch.tensor([-100.0, 100.0]))
    result = judge(certain, women)
    assert result.classes == classes
    assert result.accuracy == (1.0 if classes[1] == "female" else 0.0)
    assert result.recall["female"] == result.accuracy
    assert math.copysign(1, result.loss) == 1  # nor is a loss of zero minus zero


def test_a_trained_net_with_reversed_classes_is_as_good(index: Index, trained: Path) -> None:
    given = load_checkpoint(trained / "best.pth")
    turned = {
        name: weight.flip(0) if name.startswith("fc4.") else weight
        for name, weight in given.weights.items()
    }
    reversed_one = replace(given, classes=("female", "male"), weights=turned)
    straight, other = judge(given, index), judge(reversed_one, index, workers=1)
    assert straight.accuracy == other.accuracy == 1
    assert np.allclose(straight.probabilities, other.probabilities[:, ::-1], atol=1e-6)
    assert other.confusion.tolist() == straight.confusion[::-1, ::-1].tolist()


def test_classes_that_are_not_ours_are_refused_in_a_sentence(index: Index) -> None:
    with pytest.raises(InputError) as caught:
        judge(predicting(classes=("woman", "man")), index)
    assert "woman, man" in sentence(caught)


def test_evaluation_agrees_with_the_report_of_training(index: Index, trained: Path) -> None:
    last = trained / "compact_cnn" / "epoch_2.pth"
    result = judge(last, index, "val", allow_seen=True)
    metrics = load_checkpoint(last).metrics
    assert result.accuracy == metrics["val_accuracy"]
    assert result.loss == pytest.approx(metrics["val_loss"], rel=1e-4)
    assert result.recall == {name: metrics[f"val_recall_{name}"] for name in CLASSES}


def test_probabilities_of_log_probabilities_add_up_to_one(index: Index) -> None:
    result = judge(make_checkpoint("dropout_cnn"), index)
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)
    true = result.probabilities[np.arange(len(result.labels)), result.labels]
    assert result.loss == pytest.approx(-np.log(true).mean(), rel=1e-4)


def test_an_evaluation_has_the_temperature_of_its_model(index: Index) -> None:
    plain = judge(predicting(0.9), index)
    scaled = judge(predicting(0.9, temperature=2.0), index)
    assert np.allclose(plain.probabilities[:, 1], 0.9, atol=1e-6)
    assert np.allclose(scaled.probabilities[:, 1], 0.75, atol=1e-6)  # odds of 9 become 3
    assert scaled.predictions.tolist() == plain.predictions.tolist()
    true = scaled.probabilities[np.arange(len(scaled.labels)), scaled.labels]
    assert scaled.loss == pytest.approx(-np.log(true).mean(), rel=1e-5)


def test_each_epoch_has_the_temperature_that_fits_its_validation(tmp_path: Path) -> None:
    """With colours that say little: a third of the pictures carries the other label."""
    data = make_faces(tmp_path / "data", 1, 1)
    for i in range(42):
        for label, other in zip(CLASSES, reversed(CLASSES), strict=True):
            drawn = draw_face(other if i % 3 == 0 else label, i)
            drawn.save(data / label / f"{label[0]}_{i}.jpg")
    index = make_index(data, ratios=(15, 75, 10))
    reports = run(QUICK, index, tmp_path / "w", mixed=False)
    fitted = []
    for report in reports:
        saved = load_checkpoint(report.checkpoint)
        plain, scaled = (
            judge(each, index, "val", allow_seen=True)
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


def test_bad_files_of_an_evaluation_are_skipped_with_their_names(own: Index) -> None:
    paths = rows_of(own, "test")["path"].tolist()
    (own.source.path / paths[1]).write_bytes(b"")
    with pytest.warns(UnreadablePictureWarning, match=paths[1]):
        result = judge(predicting(), own)
    assert result.skipped == ((paths[1], "empty file"),)
    assert result.paths.tolist() == [paths[0], *paths[2:]]
    assert len(result.labels) == len(result.probabilities) == 3
