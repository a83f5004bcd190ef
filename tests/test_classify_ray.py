"""examples/classify_ray.py on a local cluster of two nodes, whose workers and nodes are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, draw_face, snapshot

import face_gender.classify.__main__ as process
from examples import classify_ray
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint
from face_gender.model.recipes import get_recipe

needs_ray = "needs requirements-scale.txt"
pa = pytest.importorskip("pyarrow", reason=needs_ray)
pq = pytest.importorskip("pyarrow.parquet", reason=needs_ray)
from face_gender.parts import Place, make_plan  # noqa: E402

if sys.platform != "linux":
    pytest.skip("finds the workers' processes in /proc", allow_module_level=True)

LIMIT = 240  # seconds: no test hangs
PICTURES = 240
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the loopback alone, whatever address the host has
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = get_recipe("resnet18", size=(96, 96))
    path = tmp_path_factory.mktemp("net") / "net.pth"
    model = build_model(recipe.arch)
    Checkpoint(recipe, ("male", "female"), recipe.preprocessing, model.state_dict()).save(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces in subfolders, one of which is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        (folder / f"{i % 3}").mkdir(exist_ok=True)
        draw_face(("male", "female")[i % 2], i).save(folder / f"{i % 3}" / f"{i:03}.jpg")
    (folder / "0" / "000.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def expected(weights: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What process.py says."""
    out = tmp_path_factory.mktemp("out") / "full.json"
    options = ["--recursive", "--format", "full", "--quiet", "--weights", weights, "--output", out]
    assert process.main([str(each) for each in (pictures, *options)]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


class Nodes:
    """A cluster of two nodes with a processor each, on this machine's loopback alone."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.head = self._add(temp_dir=folder, include_dashboard=False)
        self.other = self._add()

    def _add(self, **options: Any) -> Any:
        memory = 80 * 2**20
        return self.cluster.add_node(
            num_cpus=1, object_store_memory=memory, node_ip_address="127.0.0.1", **options
        )

    def add_other(self) -> None:
        self.other = self._add()

    def remove_other(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)

    def workers(self) -> list[int]:
        """The processes that classify, on both nodes."""
        nodes = [
            process.process.pid
            for node in (self.head, self.other)
            for process in node.all_processes.get("raylet", [])
        ]
        return [
            pid for pid, parent, words in processes() if parent in nodes and "Classify" in words
        ]


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command line of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            yield int(folder.name), int(parent), (folder / "cmdline").read_text()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="ray")  # short: sockets in it may have 107 letters
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        # Where a cluster notes its address, unless it is told another place.
        patch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        pytest.importorskip("ray", reason=needs_ray)
        started = Nodes(folder)
        yield started
        started.cluster.shutdown()
    shutil.rmtree(folder)


class Run:
    """The command in a process of its own, which a test may disturb."""

    def __init__(self, nodes: Nodes, source: Path, output: Path, weights: Path, *more: str) -> None:
        self.nodes, self.output = nodes, output
        arguments = [source, output, "--weights", weights, "--address", nodes.cluster.address]
        self.process = subprocess.Popen(
            [sys.executable, "examples/classify_ray.py", *map(str, arguments), *more],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def parts(self) -> int:
        return len(list(self.output.glob("part-*.parquet")))

    def stop_in_the_middle(self) -> list[int]:
        """Hold both workers still when some parts are written and others are not."""
        limit = time.monotonic() + LIMIT
        while self.parts() < 3:
            if self.process.poll() is not None or time.monotonic() > limit:
                pytest.fail(f"no part was written: {self.end()}")
            time.sleep(0.005)
        workers = self.nodes.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        if self.parts() >= len(pq.read_table(self.output / "_parts.parquet")):
            go_on(workers)
            pytest.fail(f"all parts were written before anybody was stopped: {self.end()}")
        return workers

    def end(self) -> tuple[int, str]:
        """Wait for the end, but not for ever; return exit code and what was said."""
        try:
            _, said = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, said = self.process.communicate()
        return self.process.returncode, said


def go_on(workers: list[int]) -> None:
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def assert_all_are_there_once(output: Path, expected: dict) -> None:
    """Compare the files with the answers of process.py."""
    rows = pq.read_table(output).to_pylist()
    names = [row["path"] for row in rows]
    assert sorted(names) == sorted([*expected["results"], *expected["skipped"]])
    assert len(names) == PICTURES
    for row in rows:
        answer = expected["results"].get(row["path"])
        if answer is None:
            assert row["error"] == expected["skipped"][row["path"]]
            assert row["label"] is row["confidence"] is row["male"] is None
            continue
        assert row["error"] is None
        assert row["male"] == pytest.approx(answer["probabilities"]["male"], abs=1e-2)
        if answer["confidence"] > 0.51:
            assert row["label"] == answer["label"]
    assert not [name for name in os.listdir(output) if name.endswith(".tmp")]


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(
    nodes: Nodes, pictures: Path, weights: Path, expected: dict, tmp_path: Path
) -> None:
    before = snapshot(pictures)
    output = tmp_path / "out"
    run = Run(nodes, pictures, output, weights, "--recursive", "--part-size", "4")
    workers = run.stop_in_the_middle()
    os.kill(workers[0], signal.SIGKILL)
    go_on(workers[1:])
    code, said = run.end()
    assert code == 0, said
    assert "1 pictures could not be read" in said
    assert f"{PICTURES} pictures in {PICTURES // 4} files" in said
    assert_all_are_there_once(output, expected)
    assert (output / "_SUCCESS").exists()
    assert snapshot(pictures) == before


@pytest.mark.slow
def test_a_node_removed_in_the_middle_loses_and_doubles_nothing(
    nodes: Nodes, pictures: Path, weights: Path, expected: dict, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run = Run(nodes, pictures, output, weights, "--recursive", "--part-size", "4")
    workers = run.stop_in_the_middle()
    assert len(workers) == 2
    nodes.remove_other()
    try:
        go_on(workers)
        code, said = run.end()
    finally:
        nodes.add_other()
    assert code == 0, said
    assert_all_are_there_once(output, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_command_that_was_ended_goes_on_where_it_was(
    nodes: Nodes, pictures: Path, weights: Path, expected: dict, tmp_path: Path, number: int
) -> None:
    output = tmp_path / "out"
    options = ("--recursive", "--part-size", "4")
    run = Run(nodes, pictures, output, weights, *options)
    workers = run.stop_in_the_middle()
    run.process.send_signal(number)
    go_on(workers)
    code, said = run.end()
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    if number != signal.SIGKILL:
        assert "the same command goes on" in said.splitlines()[-1]
        assert "Traceback" not in said
    there = {path: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}
    assert len(there) < PICTURES // 4
    code, said = Run(nodes, pictures, output, weights, *options).end()
    assert code == 0, said
    assert_all_are_there_once(output, expected)
    untouched = sum(path.stat().st_mtime_ns == then for path, then in there.items())
    assert untouched >= len(there) - 2  # what the old workers had begun may be written again


@pytest.mark.slow
def test_bytes_in_parquet(
    nodes: Nodes, pictures: Path, weights: Path, expected: dict, tmp_path: Path
) -> None:
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.jpg"))
    data = [(pictures / name).read_bytes() for name in names]
    table = pa.table({"path": names, "bytes": data})
    pq.write_table(table, tmp_path / "faces.parquet", row_group_size=50)
    code, said = Run(nodes, tmp_path / "faces.parquet", tmp_path / "out", weights).end()
    assert code == 0, said
    assert len(list((tmp_path / "out").glob("part-*"))) == 5
    assert_all_are_there_once(tmp_path / "out", expected)


@pytest.mark.slow
def test_a_fault_of_a_worker_is_a_sentence(
    nodes: Nodes, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    place = Place.named(str(output))
    settings = {"input": str(pictures / "0"), "recursive": False, "data": None, "part_size": 1000,
                "threshold": 0.0, "weights": sha256(weights.read_bytes()).hexdigest()}  # fmt: skip
    make_plan(Place.named(str(pictures / "0")), place, False, settings)
    (output / "_names" / "000000.parquet").write_text("no parquet")
    code, said = Run(nodes, pictures / "0", output, weights, "--quiet").end()
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"classify_ray.py: {output}/_names/000000.parquet cannot be read")
    assert "Traceback" not in said


@pytest.mark.slow
def test_map_batches_takes_the_classifier_as_it_is(
    nodes: Nodes, pictures: Path, weights: Path, expected: dict
) -> None:
    import ray

    from face_gender.scale import FaceClassifier

    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.jpg"))
    ray.init(nodes.cluster.address, log_to_driver=False)
    try:
        rows = (
            ray.data.from_items([{"path": str(pictures / name), "id": name} for name in names])
            .map_batches(
                FaceClassifier,
                fn_constructor_kwargs={"weights": str(weights), "threads": 1},
                batch_size=32,
                compute=ray.data.ActorPoolStrategy(size=2),
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    assert sorted(row["id"] for row in rows) == names
    answers = {row["id"]: row for row in rows}
    assert answers["0/000.jpg"]["error"] == expected["skipped"]["0/000.jpg"]
    for name, answer in expected["results"].items():
        assert answers[name]["male"] == pytest.approx(answer["probabilities"]["male"], abs=1e-2)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says when it cannot run: one sentence, before Ray is started."""
    assert classify_ray.main([str(each) for each in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("classify_ray.py: ")
    assert said.endswith(".\n")
    assert said.count("\n") == 1
    return said


def test_what_cannot_run_is_a_sentence(
    tmp_path: Path, pictures: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    net = ("--weights", weights)
    assert "does not exist" in refused(capsys, tmp_path / "no", out, *net)
    assert "add --recursive" in refused(capsys, pictures, out, *net)
    assert "no.pth does not exist" in refused(capsys, pictures, out, "--weights", "no.pth")
    assert "holds other files" in refused(capsys, pictures, pictures / "0", *net, "--recursive")


def test_nobody_at_the_address(
    tmp_path: Path, pictures: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason=needs_ray)
    with socket.socket() as taken:  # bound and never listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = (pictures / "0", tmp_path / "out", "--weights", weights, "--quiet")
        said = refused(capsys, *arguments, "--address", address)
    assert f"no Ray cluster answers at {address}" in said


def test_missing_libraries_are_named(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(classify_ray, "find_spec", lambda name: None)
    assert "pip install -r requirements-scale.txt" in refused(capsys, "in", "out")


@pytest.mark.parametrize(
    "wrong",
    [["--workers", "0"], ["--threshold", "2"], ["--part-size", "-1"], ["--gpus", "x"], ["--no"]],
)
def test_usage(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        classify_ray.main(["in", "out", *wrong])
    assert caught.value.code == 2
