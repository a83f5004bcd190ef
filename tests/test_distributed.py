"""Several processes share each batch, as torchrun starts them on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_faces, make_index, python
from sentences import one_sentence, sentence

from face_gender.data.tables import write_index
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.recipes import get_recipe
from face_gender.train import __main__ as train
from face_gender.train import distributed
from face_gender.train.distributed import World, join
from face_gender.train.loop import train as training
from face_gender.train.run_folder import RunFolder
from face_gender.train.step import Step

LIMIT = 300


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures to train on, 4 to choose by: no number of processes divides these batches."""
    made = make_index(make_faces(tmp_path_factory.mktemp("faces"), 16, 16), ratios=(70, 18, 12))
    assert made.path is not None
    answers = ["0.9" if i % 3 else "" for i in range(len(made.table))]
    write_index(made.table.assign(teacher=answers), made.path)
    return made.path


def launch(arguments: list[str], *, nodes: int = 1) -> tuple[int, str]:
    """Run torchrun, once for each node at the same time; return the worst exit code and stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    agents = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )
        for _ in range(nodes)
    ]  # fmt: skip
    try:
        texts = [agent.communicate(timeout=LIMIT)[1] for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    return max(abs(agent.returncode) for agent in agents), "".join(texts)


def worker(task: str, index: Path, out: Path) -> list[str]:
    out.mkdir()
    return [str(ROOT / "tests" / "distributed_worker.py"), task, str(index), str(out)]


def results(out: Path) -> list[dict[str, Any]]:
    paths = sorted(out.glob("rank_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@pytest.fixture(scope="module")
def alone(index: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process, that torchrun did not start, makes of the same task."""
    out = tmp_path_factory.mktemp("one") / "alone"
    done = python(*worker("figures", index, out))
    assert done.returncode == 0, done.stderr
    return results(out)[0]


# What several processes calculate


@pytest.mark.parametrize(
    ("processes", "nodes"),
    [
        pytest.param(2, 1, id="two"),
        pytest.param(1, 2, id="two_agents", marks=pytest.mark.slow),
    ],
)
def test_several_processes_see_each_picture_once_and_one_of_them_writes(
    processes: int, nodes: int, index: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "together"
    meeting = ["--standalone"] if nodes == 1 else at_a_free_port()
    options = [*meeting, f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    code, err = launch([*options, *worker("figures", index, out)], nodes=nodes)
    assert code == 0, err
    found = results(out)
    assert len(found) == processes * nodes
    for each in found:
        # Losses of nets without BatchNorm are those of one process; of all nets, each process's.
        assert np.allclose(each["losses"][:4], alone["losses"][:4], rtol=2e-4)
        assert each["losses"] == found[0]["losses"]
    assert by_epoch(*found) == by_epoch(alone)
    assert by_epoch(alone)["compact_cnn True 0"] == list(range(22))
    # Each looks for faces in its share of the pictures.
    assert max(len(each["looked"]) for each in found) == len(alone["looked"]) / len(found)
    assert sorted(name for each in found for name in each["looked"]) == sorted(alone["looked"])
    assert {Path(name).name for name in found[0]["written"]} >= {"last.pth", "epoch_1.pth"}
    assert all(each["written"] == [] for each in found[1:])


def by_epoch(*found: dict[str, Any]) -> dict[str, list[int]]:
    """The pictures of all processes together, sorted, by recipe, split and epoch."""
    together: dict[str, list[int]] = {}
    for each in found:
        recipe = ""
        for item in each["seen"]:
            if isinstance(item, str):
                recipe = item
            else:
                shuffled, epoch, positions = item
                together.setdefault(f"{recipe} {shuffled} {epoch}", []).extend(positions)
    return {name: sorted(positions) for name, positions in together.items()}


def at_a_free_port() -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_training_goes_on(
    index: Path, tmp_path: Path
) -> None:
    out = tmp_path / "restarted"
    options = ["--nproc-per-node=2", "--max-restarts=1", *at_a_free_port()]
    code, err = launch([*options, *worker("until_killed", index, out)])
    assert code == 0, err
    assert results(out) == [{"epochs": [1], "attempt": "1"}] * 2
    undisturbed = tmp_path / "undisturbed"
    command = ["-m", "face_gender.train", str(index), "--recipe", "dropout_cnn", "--epochs", "2"]
    options = ["--standalone", "--nproc-per-node=2"]
    code, err = launch(
        [*options, *command, "--batch-size", "8", "--output", str(undisturbed), "--quiet"]
    )
    assert code == 0, err
    whole, resumed = (
        load_checkpoint(folder / "dropout_cnn" / "epoch_1.pth").weights
        for folder in (undisturbed, out)
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_without_restarts_the_others_end_and_resume_goes_on(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "broken_off"
    options = ["--standalone", "--nproc-per-node=2"]
    code, _ = launch([*options, *worker("until_killed", index, out)])
    assert code != 0
    assert results(out) == []
    command = ["-m", "face_gender.train", str(index), "--recipe", "dropout_cnn", "--resume"]
    code, err = launch([*options, *command, "--output", str(out), "--quiet"])
    assert code == 0, err
    assert (out / "dropout_cnn" / "epoch_1.pth").exists()
    rows = (out / "dropout_cnn" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1"]


def test_processes_with_different_indexes_are_refused(index: Path, tmp_path: Path) -> None:
    make_index(index.parent, tmp_path / "other.csv", seed=9)
    script = (
        "import os, sys; from face_gender.train import __main__ as train;"
        "rank = int(os.environ['RANK']);"
        "sys.exit(train.main([sys.argv[1 + rank], *sys.argv[3:]]))"
    )
    (tmp_path / "start.py").write_text(script, encoding="utf-8")
    options = ["--recipe", "compact_cnn", "--data", str(index.parent), "--quiet"]
    arguments = [str(tmp_path / "start.py"), str(index), str(tmp_path / "other.csv"), *options]
    code, err = launch(["--standalone", "--nproc-per-node=2", *arguments])
    assert code != 0
    said = [line for line in err.splitlines() if line.startswith("face_gender.train")]
    assert any("different indexes" in line for line in said), err
    assert "loop.py" not in err  # no traceback through the package


# Its parts


def test_a_batch_that_is_too_small_for_all_processes_is_one_sentence() -> None:
    recipe = get_recipe("resnet18", init="none", size=(32, 32), batch_size=3)
    with pytest.raises(InputError, match="less than two pictures each") as caught:
        Step(recipe, build_model("resnet18"), world=World(0, 2))
    sentence(caught)


def test_a_process_alone_needs_no_others() -> None:
    world = World()
    assert world.all_gather("a") == ["a"]
    assert world.broadcast("b") == "b"
    assert world.all_counts(3, torch.device("cpu")) == [3]
    assert world.is_main


def elastic(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    names = {"rank": 0, "world_size": 1, "local_rank": 0, "local_world_size": 1}
    for name, value in {**names, "torchelastic_run_id": "job", **values}.items():
        monkeypatch.setenv(name.upper(), str(value))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    elastic(monkeypatch, world_size=4, local_world_size=4)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    available = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    tried: list[list[int]] = []

    def pick_device(name: str) -> torch.device:
        tried.append(list(taken))
        return torch.device("cuda")

    monkeypatch.setattr(distributed, "pick_device", pick_device)
    for rank in (1, 2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(InputError) as caught:
            join("cuda")
        assert "4 processes share 2 GPUs" in sentence(caught)
    assert tried == [[1], [1]]  # its own GPU first, and none that is not there
    available = False  # as with a driver that is too old, which counts GPUs all the same
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError):
        join("cuda")
    assert taken == [1]


@pytest.mark.parametrize(
    ("second", "goes_on"),
    [
        ({}, True),
        ({"torchelastic_run_id": "another"}, False),
    ],
)
def test_the_same_job_goes_on_by_itself_and_another_begins(
    second: dict[str, str], goes_on: bool, index: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    elastic(monkeypatch)
    run = trained(index, tmp_path)
    assert run(1) == [0]
    elastic(monkeypatch, **second)
    assert run(9) == ([1, 2] if goes_on else [0, 1, 2])
    # A job that is complete begins anew under the same name.
    assert run(9) == [0, 1, 2]


def test_a_job_without_a_name_is_known_by_its_launch(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic(monkeypatch, torchelastic_run_id="none")
    run = trained(index, tmp_path)
    assert run(1) == [0]
    assert run(1) == [1]
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert run(1) == [0]


@pytest.mark.parametrize("change", [{"seed": 1}, {"recipe": "compact_cnn"}, {"index": "other.csv"}])
def test_the_same_job_of_other_settings_begins(
    change: dict[str, Any], index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic(monkeypatch)
    run = trained(index, tmp_path)
    assert run(1) == [0]
    if "index" in change:
        change = {"index": tmp_path / "other.csv", "data": index.parent}
        make_index(index.parent, change["index"], seed=9)
    assert run(1, **change) == [0]


def trained(index: Path, tmp_path: Path) -> Callable[..., list[int]]:
    recipe = get_recipe("compact_cnn", epochs=3, batch_size=16)

    def run(epochs: int, **options: Any) -> list[int]:
        given = {"recipe": recipe, "index": index, "out": tmp_path / "w", **options}
        reports = training(**given, progress=False)
        found = []
        for report in reports:
            found.append(report.epoch)
            if len(found) == epochs:
                break
        reports.close()  # type: ignore[attr-defined]
        return found

    return run


def test_a_damaged_last_pth_does_not_keep_a_new_job_from_beginning(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic(monkeypatch)
    run = trained(index, tmp_path)
    run(1)
    RunFolder(tmp_path / "w", "compact_cnn").last.write_bytes(b"damaged")
    assert run(1) == [0]


def test_what_another_process_leaves_behind_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        with distributed.as_input_error():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")

    with pytest.raises(RuntimeError):
        fail()
    elastic(monkeypatch, world_size=2)
    with pytest.raises(InputError) as caught:
        fail()
    assert "--resume" in sentence(caught)


def test_errors_name_the_process_they_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elastic(monkeypatch, rank=3)
    assert train.main(["nowhere.csv", "--recipe", "compact_cnn"]) == 1
    said = one_sentence(capsys.readouterr().err, "face_gender.train (process 3)")
    assert "nowhere.csv cannot be read" in said
