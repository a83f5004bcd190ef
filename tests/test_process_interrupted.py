"""process.py killed, interrupted, and out of room: nothing half-written, nothing lost."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    draw_face,
    heed_ctrl_c,
    make_zip,
    nearly_full,
    save_colour_net,
    snapshot,
)
from sentences import one_sentence

from face_gender import console, files
from face_gender.classify import __main__ as process
from face_gender.classify import classifier
from face_gender.classify.classifier import Classifier
from face_gender.data.sources import DriveGoneError
from face_gender.errors import InputError

COUNT = 20
NAMES = [f"{i:02}.jpg" for i in range(COUNT)]
LIMIT = 150  # seconds that a child process may take
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_net(tmp_path_factory.mktemp("net") / "net.pth", seed=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pictures, of which the fourth cannot be read; the working directory is another."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, name in enumerate(NAMES):
        draw_face(("male", "female")[i % 2], i).save(pictures / name)
    (pictures / NAMES[3]).write_bytes(b"no picture")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return pictures


@pytest.fixture
def run(folder: Path, weights: Path) -> Callable[..., int]:
    def command(*more: str | Path, data: Path = folder, net: Path = weights) -> int:
        given = [data, "--weights", net, "--format", "full", "--batch-size", "2", *more]
        return process.main([str(each) for each in given], name="process.py")

    return command


OUTPUT = Path("process_results.json")
PARTIAL = Path("process_results.json.partial")


def results(path: Path = OUTPUT) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def whole(run: Callable[..., int]) -> dict:
    """Return the result of a run that nothing interrupted."""
    assert run("--output", "whole.json", "--quiet") == 0
    content = results(Path("whole.json"))
    Path("whole.json").unlink()
    return content


def assert_result(expected: dict) -> None:
    """Compare with `whole`: labels exactly, probabilities but for the last digits."""
    found = results()
    assert list(found) == list(expected)
    assert list(found["results"]) == list(expected["results"])
    assert {**found, "results": 0} == {**expected, "results": 0}
    for name, details in expected["results"].items():
        assert found["results"][name]["label"] == details["label"]
        both = found["results"][name]["probabilities"], details["probabilities"]
        assert both[0] == pytest.approx(both[1], abs=1e-5)


def stop_after(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let classification end in ``error`` after so many results."""
    real = classifier.classify

    def classify(*given: object):  # type: ignore[no-untyped-def]
        stream = real(*given)  # type: ignore[arg-type]
        for _ in range(count):
            yield next(stream)
        stream.close()
        raise error

    monkeypatch.setattr(classifier, "classify", classify)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    *others, line = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in other for other in others)
    return one_sentence(line, "process.py")


def test_a_caller_keeps_its_handlers_of_signals(run) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run() == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (console.Terminated(), 143)]
)
def test_an_interruption_writes_the_results_so_far_and_says_so(
    error: BaseException, code: int, run, monkeypatch, capsys
) -> None:
    expected = whole(run)
    with monkeypatch.context() as patch:
        stop_after(10, error, patch)
        assert run() == code
    said = "interrupted, 9 of 20 predictions are in process_results.json: --resume goes on."
    assert said in last_line(capsys)
    full = results()
    assert list(full["results"]) == [name for name in NAMES[:10] if name != NAMES[3]]
    assert full["skipped"].keys() == {NAMES[3]}
    assert full["unanswered"] == 10
    assert run("--resume") == 0
    assert f"{PARTIAL}: 9 predictions" in capsys.readouterr().err
    assert_result(expected)
    assert os.listdir() == [str(OUTPUT)]


def test_interrupted_runs_write_flat_and_csv_too(run, monkeypatch) -> None:
    stop_after(2, KeyboardInterrupt(), monkeypatch)
    assert run("--format", "flat") == 130
    assert list(results()) == NAMES[:2]
    assert run("--format", "csv", "--output", "r.csv") == 130
    rows = list(csv.DictReader(io.StringIO(Path("r.csv").read_text(encoding="utf-8"))))
    assert [row["name"] for row in rows] == NAMES[:2]


def test_threshold_and_format_may_be_others_when_it_goes_on(
    run, tmp_path: Path, monkeypatch
) -> None:
    sure = save_colour_net(tmp_path / "sure.pth")
    flat = ("--format", "flat", "--threshold", "0.6")
    assert run(*flat, "--output", "whole.json", net=sure) == 0
    with monkeypatch.context() as patch:
        stop_after(10, KeyboardInterrupt(), patch)
        assert run("--threshold", "1", net=sure) == 130
    assert {each["label"] for each in results()["results"].values()} == {"uncertain"}
    assert run("--resume", *flat, net=sure) == 0
    assert results() == results(Path("whole.json"))
    assert set(results().values()) == {"male", "female"}


def test_an_interruption_before_the_first_prediction_writes_none(run, monkeypatch, capsys) -> None:
    OUTPUT.write_text("old")
    stop_after(0, KeyboardInterrupt(), monkeypatch)
    assert run() == 130
    assert "nothing was written." in last_line(capsys)
    assert OUTPUT.read_text() == "old"
    assert os.listdir() == [str(OUTPUT)]


def test_an_interruption_after_the_last_prediction_costs_nothing(run, monkeypatch) -> None:
    expected = whole(run)
    stop_after(COUNT, KeyboardInterrupt(), monkeypatch)
    assert run() == 0
    assert_result(expected)
    assert os.listdir() == [str(OUTPUT)]


def test_resume_without_partial_results_begins_and_says_so(run, capsys) -> None:
    expected = whole(run)
    assert run("--resume") == 0
    assert f"{PARTIAL}: nothing to resume" in capsys.readouterr().err
    assert_result(expected)


def predicted_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the names that a net is asked for from now on."""
    asked: list[str] = []
    real = Classifier.predict

    def predict(self: Classifier, source, names):  # type: ignore[no-untyped-def]
        asked.extend(names)
        return real(self, source, names)

    monkeypatch.setattr(Classifier, "predict", predict)
    return asked


def test_changed_pictures_and_skipped_ones_are_predicted_anew(
    run, folder: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(10, KeyboardInterrupt(), patch)
        assert run() == 130
    draw_face("female", 77).save(folder / NAMES[6])
    draw_face("female", 78).save(folder / NAMES[3])
    asked = predicted_of(monkeypatch)
    assert run("--resume") == 0
    assert sorted(asked) == sorted([NAMES[3], NAMES[6], *NAMES[10:]])
    assert_result(whole(run))


def test_members_of_an_archive_are_known_by_their_content(
    run, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    archive = make_zip(folder, tmp_path / "pictures.zip")
    with monkeypatch.context() as patch:
        stop_after(10, KeyboardInterrupt(), patch)
        assert run(data=archive) == 130
    draw_face("female", 77).save(folder / NAMES[6])
    make_zip(folder, archive)  # with other times
    asked = predicted_of(monkeypatch)
    assert run("--resume", data=archive) == 0
    assert sorted(asked) == sorted([NAMES[3], NAMES[6], *NAMES[10:]])


def test_predictions_of_other_weights_are_refused(run, tmp_path: Path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        stop_after(10, KeyboardInterrupt(), patch)
        assert run() == 130
    before = snapshot(Path())
    other = save_colour_net(tmp_path / "other.pth", seed=2)
    assert run("--resume", net=other) == 1
    assert "different weights: run without --resume." in last_line(capsys)
    assert snapshot(Path()) == before
    assert run(net=other) == 0
    assert "unanswered" not in results()


def test_a_place_that_holds_something_else_is_refused_before_any_work(
    run, monkeypatch, capsys
) -> None:
    PARTIAL.write_text("my notes")
    monkeypatch.setattr(classifier, "load_classifier", None)  # to be called is work
    before = snapshot(Path())
    for more in ([], ["--resume"]):
        assert run(*more) == 1
        assert str(PARTIAL) in last_line(capsys)
    assert snapshot(Path()) == before


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_full_disk_at_the_end_keeps_the_predictions(
    interrupted: bool, run, monkeypatch, capsys
) -> None:
    expected = whole(run)
    OUTPUT.write_text("old")
    with monkeypatch.context() as patch:
        if interrupted:
            stop_after(10, KeyboardInterrupt(), patch)
        patch.setattr(files.os, "fsync", full_disk)
        assert run() == 1
    line = last_line(capsys)
    assert "No space left on device" in line
    assert f"{PARTIAL} keeps the predictions for --resume." in line
    assert OUTPUT.read_text() == "old"
    assert sorted(os.listdir()) == [str(OUTPUT), str(PARTIAL)]
    assert run("--resume") == 0
    assert_result(expected)


def test_a_disk_that_fills_up_while_predictions_are_kept_costs_none_of_them(
    run, monkeypatch, capsys
) -> None:
    expected = whole(run)
    OUTPUT.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr("face_gender.classify.resume.open", nearly_full(1_000), raising=False)
        assert run() == 1
    line = last_line(capsys)
    assert f"{PARTIAL} cannot be written (No space left on device)" in line
    assert "--resume goes on." in line
    assert OUTPUT.read_text() == "old"
    assert sorted(os.listdir()) == [str(OUTPUT), str(PARTIAL)]
    assert run("--resume") == 0
    assert_result(expected)


# process.py itself, whose net waits for ever at the first name from sys.argv[1] on.
GATED = """
import runpy, sys, threading
from face_gender.classify.classifier import Classifier
gate = sys.argv.pop(1)
real = Classifier.predict
def predict(self, source, names):
    if names[0] >= gate:
        threading.Event().wait()
    return real(self, source, names)
Classifier.predict = predict
sys.argv[0] = "process.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def start(folder: Path, weights: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start process.py as a child that waits before ``gate``; none outlives its test."""
    children = []

    def begin(gate: str, *more: str) -> subprocess.Popen[str]:
        given = [folder, "--weights", weights, "--format", "full", "--batch-size", "2"]
        given += ["--workers", "1", "--output", OUTPUT.absolute(), *more]
        child = subprocess.Popen(
            [sys.executable, "-c", GATED, gate, *map(str, given)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def wait_for_predictions(child: subprocess.Popen[str], count: int) -> None:
    """Return once so many predictions are kept."""
    end = time.monotonic() + LIMIT
    while not PARTIAL.exists() or PARTIAL.read_bytes().count(b".jpg") < count:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def end_of(child: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Return exit code and stderr, line by line."""
    _, text = child.communicate(timeout=LIMIT)
    return child.returncode, text.splitlines()


@posix
def test_a_killed_run_is_gone_on_with(run, start) -> None:
    expected = whole(run)
    OUTPUT.write_text("old")
    child = start("06.jpg")
    wait_for_predictions(child, 5)
    child.kill()
    assert end_of(child)[0] == -signal.SIGKILL
    assert OUTPUT.read_text() == "old"
    assert run("--resume", "--workers", "1") == 0
    assert_result(expected)
    assert os.listdir() == [str(OUTPUT)]


@posix
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 1000)])
def test_signals_keep_what_there_is_even_while_the_net_is_stuck(
    number: signal.Signals, times: int, run, start
) -> None:
    expected = whole(run)
    child = start("06.jpg", "--quiet")
    wait_for_predictions(child, 5)
    for _ in range(times):
        if child.poll() is None:
            child.send_signal(number)
    code, lines = end_of(child)
    assert code == 128 + number
    assert all(line.startswith(f"skipped: {NAMES[3]}: ") for line in lines[:-1]), lines
    written = list(results()["results"])  # without what was kept and not yet passed on
    assert len(written) >= 3
    assert written == [name for name in NAMES[:6] if name != NAMES[3]][: len(written)]
    assert lines[-1].startswith(
        f"process.py: interrupted, {len(written)} of 20 predictions are in "
    )
    assert sorted(os.listdir()) == [str(OUTPUT), str(PARTIAL)]
    assert run("--resume") == 0
    assert_result(expected)


@posix
@pytest.mark.parametrize(
    ("number", "module"),
    [(signal.SIGINT, "face_gender.files"), (signal.SIGTERM, "torch.types")],
)
def test_an_interruption_while_it_starts_is_a_sentence(
    number: signal.Signals, module: str, folder: Path, weights: Path
) -> None:
    script = [sys.executable, "-X", "importtime", str(ROOT / "process.py")]
    with subprocess.Popen(
        [*script, str(folder), "--weights", str(weights)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.split("|")[-1].strip() == module:
                break
        child.send_signal(number)
        code, lines = end_of(child)
    assert code == 128 + number
    said = [line for line in lines if not line.startswith("import time:")]
    assert said == ["process.py: interrupted, nothing was written."]
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (InputError("page.html cannot be written (no room): free space there."), 1),
        (DriveGoneError("pictures cannot be read any more"), 1),
    ],
)
def test_a_page_that_is_not_made_costs_no_result_and_is_made_later(
    error: BaseException,
    code: int,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_html(*_: object) -> None:
        raise error

    expected = whole(run)
    with monkeypatch.context() as patch:
        patch.setattr(process, "write_html", write_html)
        assert run("--html", "page.html") == code
    said = "process_results.json is written, page.html is not: --resume makes it."
    assert last_line(capsys).endswith(said)
    assert_result(expected)
    assert not Path("page.html").exists()
    asked = predicted_of(monkeypatch)
    assert run("--html", "page.html", "--resume") == 0
    assert asked == [NAMES[3]]  # which was skipped
    assert_result(expected)
    assert sorted(os.listdir()) == ["page.html", str(OUTPUT)]


def test_crops_are_asked_for_from_the_beginning(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was predicted without them has none to write."""
    with monkeypatch.context() as patch:
        stop_after(5, KeyboardInterrupt(), patch)
        assert run("--faces", "all") == 130
    capsys.readouterr()
    assert run("--faces", "all", "--resume", "--crops", "crops") == 1
    assert "begun with different crops" in last_line(capsys)
