"""A training that was interrupted anywhere and resumed is the training that was not."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, heed_ctrl_c, make_checkpoint, make_index
from sentences import one_sentence, sentence

from face_gender.data.dataset import UnreadablePictureWarning
from face_gender.data.index import Index
from face_gender.errors import InputError
from face_gender.files import write_atomically
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.train import __main__ as train
from face_gender.train import loop, run_folder
from face_gender.train.loop import train as training
from face_gender.train.run import EpochReport, Run
from face_gender.train.run_folder import RunFolder

QUICK = get_recipe("compact_cnn", epochs=3, batch_size=8, learning_rate=1e-3)
RECIPES = {
    "plain": QUICK,
    "dropout": get_recipe("dropout_cnn", epochs=2, batch_size=8),
    # BatchNorm, a schedule, and random changes of the pictures.
    "one_cycle": get_recipe("resnet18_tuned", epochs=2, batch_size=8, size=(32, 32)),
    "patience": replace(QUICK, epochs=9, patience=1, best_by="val_loss", learning_rate=0.02),
}


@pytest.fixture(scope="module")
def whole(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run of QUICK; not to be written to."""
    out = tmp_path_factory.mktemp("whole")
    run(QUICK, index, out)
    return out


def run(recipe: Recipe | str, index: Index, out: Path, **options: Any) -> list[EpochReport]:
    return list(training(recipe, index, out, **{"progress": False, **options}))


def stop_after(epochs: int, recipe: Recipe, index: Index, out: Path) -> None:
    reports = training(recipe, index, out, progress=False)
    assert len(list(islice(reports, epochs))) == epochs
    reports.close()  # type: ignore[attr-defined]


def files(out: Path) -> dict[str, bytes | str]:
    """Return all that a run leaves; of history.csv, the columns that are no times."""
    found: dict[str, bytes | str] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != "last.pth":
            found[path.relative_to(out).as_posix()] = path.read_bytes()
    for name in [name for name in found if name.endswith("history.csv")]:
        rows = csv.DictReader((out / name).read_text(encoding="utf-8").splitlines())
        times = ("seconds", "images_per_second")
        found[name] = str([{k: v for k, v in row.items() if k not in times} for row in rows])
    return found


# Stopped by its caller


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_training_is_the_undisturbed_one_bit_for_bit(
    name: str, index: Index, tmp_path: Path
) -> None:
    recipe = RECIPES[name]
    reports = run(recipe, index, tmp_path / "whole")
    for epochs in {1, len(reports) - 1}:
        out = tmp_path / f"after_{epochs}"
        stop_after(epochs, recipe, index, out)
        torch.manual_seed(77)
        later = run(recipe, index, out, resume=True)
        assert [each.epoch for each in later] == list(range(epochs, len(reports)))
        assert files(out) == files(tmp_path / "whole")


def test_resuming_a_complete_run_does_nothing(index: Index, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "w")
    assert run(QUICK, index, out, resume=True) == []
    assert files(out) == files(whole)


def test_resuming_what_was_never_begun_begins(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = run(QUICK, index, tmp_path / "w", resume=True, progress=True)
    assert [each.epoch for each in reports] == [0, 1, 2]
    assert "last.pth does not exist yet: training begins" in capsys.readouterr().err


def test_a_name_stands_for_the_recipe_of_the_earlier_run(index: Index, tmp_path: Path) -> None:
    stop_after(1, QUICK, index, tmp_path / "w")
    (_, last) = run("compact_cnn", index, tmp_path / "w", resume=True)
    assert load_checkpoint(last.checkpoint).recipe == QUICK


def test_more_epochs_may_be_asked_for_where_the_rate_is_constant(
    index: Index, whole: Path, tmp_path: Path
) -> None:
    run(replace(QUICK, epochs=2), index, tmp_path)
    run(QUICK, index, tmp_path, resume=True)
    weights, expected = (load_checkpoint(out / "best.pth").weights for out in (tmp_path, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_pictures_left_out_before_stay_left_out(own: Index, tmp_path: Path) -> None:
    rows = own.table[own.table["split"] == "train"]["path"].tolist()
    (own.source.path / rows[0]).write_bytes(b"")
    with pytest.warns(UnreadablePictureWarning):
        run(QUICK, own, tmp_path / "whole")
    with pytest.warns(UnreadablePictureWarning):
        stop_after(1, QUICK, own, tmp_path / "w")
    run(QUICK, own, tmp_path / "w", resume=True)  # a second warning would be an error
    assert files(tmp_path / "w") == files(tmp_path / "whole")


def test_a_run_that_goes_on_needs_its_init_no_more(index: Index, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    make_checkpoint().save(start)
    recipe = replace(QUICK, init=str(start))
    stop_after(1, recipe, index, tmp_path / "w")
    start.unlink()
    assert len(run(recipe, index, tmp_path / "w", resume=True)) == 2


def test_by_its_name_a_run_goes_on_with_its_own_settings(own: Index, tmp_path: Path) -> None:
    """Also with those that use a column of the index which the recipe as published does not."""
    taught = replace(own, table=own.table.assign(teacher=0.5))
    stop_after(1, replace(QUICK, distillation=0.5), taught, tmp_path / "w")
    assert len(run(QUICK.name, taught, tmp_path / "w", resume=True)) == QUICK.epochs - 1
    other = replace(own, table=own.table.assign(teacher=0.25))
    assert "another index" in refused(other, tmp_path / "w", QUICK.name)


def test_settings_of_other_types_are_the_same_settings(index: Index, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    make_checkpoint().save(start)
    frozen: Any = ["conv1"]
    recipe = replace(QUICK, init=start, frozen=frozen, batch_size=np.int64(8))  # type: ignore[arg-type]
    options: dict[str, Any] = {"seed": np.int64(3)}
    reports = training(recipe, index, tmp_path / "w", progress=False, **options)
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert len(run(recipe, index, tmp_path / "w", resume=True, **options)) == 2


def test_last_pth_is_a_checkpoint_too(whole: Path) -> None:
    paths = [whole / "compact_cnn" / name for name in ("last.pth", "epoch_2.pth")]
    last, newest = map(load_checkpoint, paths)
    assert last.epoch == 2
    assert all(torch.equal(last.weights[k], newest.weights[k]) for k in last.weights)
    of_last, of_newest = (path.stat().st_size for path in paths)
    assert of_newest < 0.5 * of_last


def test_history_has_a_row_for_each_epoch(index: Index, tmp_path: Path) -> None:
    reports = run(QUICK, index, tmp_path / "w")
    text = (tmp_path / "w" / "compact_cnn" / "history.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    for row, report in zip(rows, reports, strict=True):
        assert {name: float(row[name]) for name in report.metrics()} == report.metrics()
        assert row["is_best"] == str(report.is_best)


# What cannot go on


def refused(index: Index, out: Path, recipe: Recipe | str = QUICK, **options: Any) -> str:
    before = files(out)
    with pytest.raises(InputError) as caught:
        run(recipe, index, out, resume=True, **options)
    assert files(out) == before
    return sentence(caught)


def test_other_settings_and_pictures_are_refused_by_name(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "w"
    stop_after(1, QUICK, index, out)
    for changes in ({"learning_rate": 0.5}, {"batch_size": 7}, {"best_by": "val_loss"}):
        (name,) = changes
        assert name in refused(index, out, replace(QUICK, **changes))
    larger = get_recipe("compact_cnn", (96, 80), epochs=3, batch_size=8, learning_rate=1e-3)
    assert "was trained with height 100, not 96: " in refused(index, out, larger)
    assert "seed 0, not 4" in refused(index, out, seed=4)
    split_otherwise = make_index(index.source.path, tmp_path / "other.csv", seed=5)
    of_other_bytes = index.table.assign(sha256=[each[::-1] for each in index.table["sha256"]])
    for other in (split_otherwise, replace(index, table=of_other_bytes)):
        assert "another index" in refused(other, out)


def test_other_epochs_are_refused_where_the_schedule_hangs_on_them(
    index: Index, tmp_path: Path
) -> None:
    recipe = RECIPES["one_cycle"]
    stop_after(1, recipe, index, tmp_path / "w")
    assert "epochs 2, not 4" in refused(index, tmp_path / "w", replace(recipe, epochs=4))


def test_a_damaged_last_pth_is_one_sentence(index: Index, tmp_path: Path) -> None:
    stop_after(1, QUICK, index, tmp_path / "w")
    last = tmp_path / "w" / "compact_cnn" / "last.pth"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert "last.pth" in refused(index, tmp_path / "w")
    shutil.copy(last.with_name("epoch_0.pth"), last)
    assert "no training that could go on" in refused(index, tmp_path / "w")
    content = torch.load(tmp_path / "w" / "best.pth", weights_only=True)
    last.write_bytes(whole)
    state = torch.load(last, weights_only=True)
    for history in (5, [5], [{"val_loss": 0.1}]):
        torch.save({**content, "training": {**state["training"], "history": history}}, last)
        assert "no training that could go on" in refused(index, tmp_path / "w")
    state["training"]["optimizer"] = {"state": {}, "param_groups": []}
    torch.save({**content, "training": state["training"]}, last)
    assert "damaged" in refused(index, tmp_path / "w")


def test_what_an_earlier_version_kept_besides_does_not_matter(index: Index, tmp_path: Path) -> None:
    stop_after(1, QUICK, index, tmp_path / "w")
    last = tmp_path / "w" / "compact_cnn" / "last.pth"
    content = torch.load(last, weights_only=True)
    content["training"] |= {"best": (0.5, -0.7), "best_epoch": 0, "waited": 0}
    torch.save(content, last)
    assert len(run(QUICK, index, tmp_path / "w", resume=True)) == 2


def test_a_folder_without_permission_is_refused_before_any_work(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w" / "compact_cnn").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError) as caught:
        next(iter(training(QUICK, index, tmp_path / "w", progress=False)))
    assert "cannot be written (Permission denied)" in sentence(caught)


# Interrupted while it writes


class Crash(BaseException):
    """The end of a process, as far as its files are concerned."""


def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """End the run just before one of its files has its name; so it ends just after the last one."""
    count = 0

    def write(path: Path, *arguments: Any, **options: bool) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Crash
        write_atomically(path, *arguments, **options)

    monkeypatch.setattr("face_gender.files.write_atomically", write)
    monkeypatch.setattr("face_gender.model.checkpoint.write_atomically", write)
    monkeypatch.setattr(run_folder, "write_atomically", write)


def test_a_crash_at_any_write_loses_nothing(index: Index, tmp_path: Path) -> None:
    recipe = replace(QUICK, epochs=2, batch_size=16)
    run(recipe, index, tmp_path / "whole")
    at, crashes = 0, 0
    while crashes == at:
        at += 1
        out = tmp_path / f"{at}"
        with pytest.MonkeyPatch.context() as patch:
            crashing(patch, at)
            try:
                run(recipe, index, out)
            except Crash:
                crashes += 1
        for path in out.rglob("*.pth"):
            assert load_checkpoint(path).recipe == recipe
        run(recipe, index, out, resume=True)
        assert files(out) == files(tmp_path / "whole")
    assert crashes >= 1 + 2 * 3  # the first; then of each epoch itself, history and last


def test_best_of_an_epoch_that_was_not_completed_is_taken_back(
    index: Index, tmp_path: Path
) -> None:
    """It will be trained again, and on a GPU not to the same numbers."""
    stop_after(1, QUICK, index, tmp_path / "w")
    folder = RunFolder(tmp_path / "w", "compact_cnn")
    first = folder.checkpoint(0).read_bytes()
    other = tmp_path / "other"
    run(replace(QUICK, epochs=1), index, other, seed=9)
    for path in (folder.path / "best.pth", tmp_path / "w" / "best.pth"):
        shutil.copy(other / "best.pth", path)
    folder.go_on(0)
    assert (folder.path / "best.pth").read_bytes() == first
    assert (tmp_path / "w" / "best.pth").read_bytes() == first


def test_best_of_another_recipe_is_left_alone(index: Index, tmp_path: Path) -> None:
    stop_after(1, QUICK, index, tmp_path / "w")
    folder = RunFolder(tmp_path / "w", "compact_cnn")
    (tmp_path / "w" / "best.pth").write_bytes(b"another's")
    (folder.path / "best.pth").write_bytes(b"of the epoch that was lost")
    folder.go_on(0)
    assert (tmp_path / "w" / "best.pth").read_bytes() == b"another's"
    assert (folder.path / "best.pth").read_bytes() == folder.checkpoint(0).read_bytes()


def test_temporary_files_of_a_killed_run_are_removed(index: Index, tmp_path: Path) -> None:
    stop_after(1, QUICK, index, tmp_path / "w")
    left = tmp_path / "w" / "compact_cnn" / ".epoch_1.pth.0a1b2c3d.tmp"
    recent = tmp_path / "w" / ".best.pth.0a1b2c3d.tmp"
    old = tmp_path / "w" / ".best.pth.0a1b2c3e.tmp"
    for path in (left, recent, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    run(QUICK, index, tmp_path / "w", resume=True)
    assert not left.exists()
    assert not old.exists()
    assert recent.exists()  # perhaps another recipe's, that is being written


def test_a_full_disk_is_one_sentence_and_training_goes_on_afterwards(
    index: Index, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError) as caught:
            run(QUICK, index, tmp_path / "w")
    assert "No space left on device" in sentence(caught)
    assert not list((tmp_path / "w").rglob(".*.tmp"))
    run(QUICK, index, tmp_path / "w", resume=True)
    assert files(tmp_path / "w") == files(whole)


# The command


@pytest.fixture
def command(index: Index, tmp_path: Path) -> Callable[..., list[str]]:
    def arguments(*more: str) -> list[str]:
        options = ["--recipe", "compact_cnn", "--output", str(tmp_path / "w"), "--batch-size", "8"]
        return [str(index.path), *options, *more]

    return arguments


def test_the_command_trains_and_says_what_it_reached(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command("--epochs", "2")) == 0
    printable = capsys.readouterr()
    lines = printable.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert "recall male" in lines[0]
    assert load_checkpoint(tmp_path / "w" / "best.pth").recipe.epochs == 2
    assert train.main(command("--epochs", "3", "--resume", "--quiet")) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "w" / "compact_cnn" / "epoch_2.pth").exists()


def test_the_learning_rate_may_be_given(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command("--epochs", "1", "--learning-rate", "5e-4", "--quiet")) == 0
    assert load_checkpoint(tmp_path / "w" / "best.pth").recipe.learning_rate == 5e-4
    for wrong in ("0", "-1", "inf", "nan", "fast"):
        with pytest.raises(SystemExit) as ended:
            train.main(command("--learning-rate", wrong))
        assert ended.value.code == 2
        assert "must be a number above 0" in capsys.readouterr().err


def test_init_and_resume_contradict_each_other_in_a_sentence(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(command("--init", "none", "--resume"))
    assert ended.value.code == 2
    assert "--init starts a new run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--init", "imagenet"], "no ImageNet weights"),
        (["--init", "missing.pth"], "missing.pth does not exist"),
        (["--size", "10x10"], "takes pictures of 80 to 106"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--seed", "3", "--resume"], "seed 0, not 3"),
        (["--size", "0x0"], "a picture of 0 x 0 pixels has no pixels"),
        (["--size", "9999x9999"], "at most 4,096 pixels a side"),
        (["--seed", "9" * 30], "the seed 999"),
    ],
)
def test_mistakes_and_numbers_out_of_range_are_one_sentence(
    options: list[str],
    words: str,
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--resume" in options:
        assert train.main(command("--epochs", "1", "--quiet")) == 0
    assert train.main(command("--quiet", *options)) == 1
    assert words in one_sentence(capsys.readouterr().err, "face_gender.train")


# Killed


def ended(arguments: list[str], sign: signal.Signals | None) -> tuple[int, list[str]]:
    """Run the command, with a signal as it says that an epoch is complete; return code, stderr."""
    child = subprocess.Popen(
        [sys.executable, "-m", "face_gender.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("epoch ")
    if sign:
        child.send_signal(sign)
    _, err = child.communicate(timeout=300)
    return child.returncode, err.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_training_killed_by_each_signal_and_resumed_gives_the_same_weights(
    index: Index, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    recipe = get_recipe("compact_cnn", epochs=6, batch_size=8)
    arguments = command("--epochs", "6", "--resume")
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, None: 0}
    for sign, code in expected.items():
        found, said = ended(arguments, sign)
        assert found == code, said
        assert not any("Traceback" in line for line in said)
        if code in (130, 143):
            assert said[-1] == (
                "face_gender.train: interrupted; what is complete is kept, and --resume goes on "
                "from it."
            )
    run(recipe, index, tmp_path / "whole")
    whole = load_checkpoint(tmp_path / "whole" / "compact_cnn" / "epoch_5.pth")
    resumed = load_checkpoint(tmp_path / "w" / "compact_cnn" / "epoch_5.pth")
    assert all(torch.equal(whole.weights[k], resumed.weights[k]) for k in whole.weights)


def test_a_rank_that_is_no_number_is_no_traceback(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "abc")
    assert train.main(command("--epochs", "1", "--quiet")) == 0  # not under torchrun


def test_one_small_picture_a_batch_is_one_sentence(index: Index, tmp_path: Path) -> None:
    recipe = get_recipe("resnet18_tuned", batch_size=1, size=(32, 32))
    with pytest.raises(InputError, match="use a larger batch_size"):
        run(recipe, index, tmp_path / "w")


def test_unreadable_pictures_are_told_in_plain_lines(
    own: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = own.table[own.table["split"] == "train"].iloc[0]
    (own.source.path / row["path"]).write_bytes(b"no picture")
    options = ["--recipe", "compact_cnn", "--output", str(tmp_path / "w"), "--epochs", "1"]
    assert train.main([str(own.path), *options, "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert row["path"] in line and "Warning" not in line


def test_a_second_training_in_the_folder_ends_the_first(index: Index, tmp_path: Path) -> None:
    first = training(replace(QUICK, epochs=4), index, tmp_path / "w", progress=False)
    next(first)
    second = run(replace(QUICK, epochs=2), index, tmp_path / "w", seed=1)
    kept = files(tmp_path / "w")
    with pytest.raises(InputError, match="another training writes into"):
        list(first)
    assert len(second) == 2
    assert files(tmp_path / "w") == kept
    assert (tmp_path / "w" / QUICK.name / "earlier_1" / "epoch_0.pth").exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_second_training_in_the_first_epoch_ends_the_first_too(
    resumed: bool, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, kept = tmp_path / "w", loop.train_epoch, []
    recipe = replace(QUICK, epochs=4)
    if resumed:
        stop_after(1, recipe, index, out)

    def meanwhile(of: Run) -> tuple[float, float]:
        monkeypatch.setattr(loop, "train_epoch", real)
        run(replace(QUICK, epochs=1), index, out, seed=1)
        kept.append(files(out))
        return real(of)

    monkeypatch.setattr(loop, "train_epoch", meanwhile)
    with pytest.raises(InputError, match="another training writes into"):
        run(recipe, index, out, resume=resumed)
    assert kept == [files(out)]


@pytest.mark.parametrize("epochs", [1, 0])
def test_foreign_weights_are_kept_when_a_run_goes_on_and_no_link_is_written_through(
    epochs: int, index: Index, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "w"
    stop_after(1, QUICK, index, out)
    if not epochs:
        began = training(QUICK, index, tmp_path / "none", progress=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(began)
        out = tmp_path / "none"
    (out / "foreign.pth").write_bytes(b"a colleague's weights")
    (out / "best.pth").unlink(missing_ok=True)
    (out / "best.pth").symlink_to("foreign.pth")
    run(QUICK, index, out, resume=True)
    assert (out / "foreign.pth").read_bytes() == b"a colleague's weights"
    assert (out / "best_earlier_1.pth").read_bytes() == b"a colleague's weights"
    assert (out / "best.pth").read_bytes() == (whole / "best.pth").read_bytes()
    assert not (out / "best.pth").is_symlink()


def test_a_last_pth_that_cannot_be_read_is_no_reason_to_begin_anew(
    index: Index, tmp_path: Path
) -> None:
    stop_after(1, QUICK, index, tmp_path)
    last = tmp_path / QUICK.name / "last.pth"
    last.unlink()
    last.mkdir()
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"last.pth") as caught:
        run(QUICK, index, tmp_path, resume=True)
    sentence(caught)
    assert files(tmp_path) == before


def test_a_last_pth_that_cannot_be_read_once_accuses_nobody(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = run_folder.sha256_of, []

    def fails_first(path: Path) -> str:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(run_folder, "sha256_of", fails_first)
    assert len(run(replace(QUICK, epochs=2), index, tmp_path)) == 2
    assert len(calls) > 1


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_stderr_that_takes_nothing_costs_no_training(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    assert train.main(command("--epochs", "1")) == 0


def test_a_place_that_cannot_be_written_is_told_before_faces_are_looked_for(
    own: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("face_gender.data.landmarks.find_landmarks", interrupted)
    recipe = get_recipe("resnet18_tuned", init="none", size=(32, 32))
    (tmp_path / "w").write_text("a file")
    with pytest.raises(InputError, match="w/resnet18_tuned cannot be written") as caught:
        run(recipe, own, tmp_path / "w")
    sentence(caught)
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    with pytest.raises(InputError, match="new/resnet18_tuned cannot be written"):
        run(recipe, own, tmp_path / "new")


@pytest.mark.parametrize("removed", [True, False])
def test_a_history_removed_or_saved_by_hand_costs_no_training(
    removed: bool, index: Index, tmp_path: Path
) -> None:
    reports = training(replace(QUICK, epochs=3), index, tmp_path / "w", progress=False)
    next(reports)
    history = tmp_path / "w" / QUICK.name / "history.csv"
    if removed:
        history.unlink()
    else:  # as a spreadsheet does
        history.write_bytes(history.read_bytes().replace(b"\n", b"\r\n"))
    assert len(list(reports)) == 2
