"""--engine auto: the 8-bit graph is made where that pays, kept, and never stands in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_faces, python, save_colour_net

import face_gender.classify.__main__ as process
from face_gender.classify.classifier import Classifier, load_classifier, origin
from face_gender.classify.resume import partial_path
from face_gender.data.sources import FolderSource
from face_gender.errors import InputError
from face_gender.export import auto
from face_gender.export.auto import cache_folder, cached_path, with_graph
from face_gender.files import sha256_of
from face_gender.model.checkpoint import load_checkpoint

for library in ("openvino", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)


def save_net(path: Path, seed: int = 3, sure: float = 1_000.0) -> Path:
    """Write random weights whose outputs are ``sure`` times as far apart as they would be."""
    checkpoint = load_checkpoint(save_colour_net(path, seed))
    apart = {name: sure * checkpoint.weights[name] for name in ("fc4.weight", "fc4.bias")}
    replace(checkpoint, weights={**checkpoint.weights, **apart}).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_net(tmp_path_factory.mktemp("net") / "net.pth")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """A folder of eight drawn faces, of which one is damaged."""
    folder = make_faces(tmp_path_factory.mktemp("in"), 8, 0) / "male"
    (folder / "m_0.jpg").write_bytes(b"text")
    return FolderSource(folder)


@pytest.fixture(scope="module")
def kept(weights: Path, source: FolderSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the graph; the tests copy it."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("WORTH_COMPILING", "WORTH_MAKING"):
            patch.setattr(auto, name, 0)
        found = chosen(weights, source, said=said)
        assert found.engine is not None
        (sentence,) = said
        assert str(cache_folder()) in sentence
        assert [found.engine.path] == list(cache_folder().iterdir())
        return cache_folder()


@pytest.fixture
def cache(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a test, which holds the graph already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_folder().mkdir(parents=True)
    for path in kept.iterdir():
        (cache_folder() / path.name).write_bytes(path.read_bytes())
    return cache_folder()


def net_of(weights: Path) -> Classifier:
    return load_classifier(weights, device="cpu", mixed=False)


def chosen(
    weights: Path,
    source: FolderSource,
    begun: dict[str, Any] | None = None,
    said: list[str] | None = None,
) -> Classifier:
    say = said.append if said is not None else lambda text: pytest.fail(text)
    names = sorted(source.names())
    return with_graph(net_of(weights), weights, source, names, begun or {}, say)


def engine_of(net: Classifier) -> str:
    return "openvino" if net.engine else "torch"


def test_a_graph_that_is_kept_is_used_from_so_many_pictures_on(
    cache: Path, weights: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_of(chosen(weights, source)) == "torch"
    monkeypatch.setattr(auto, "WORTH_COMPILING", 0)
    monkeypatch.setattr(auto, "write_graph", lambda *_: pytest.fail("made again"))
    net = chosen(weights, source)
    assert net.engine is not None
    assert origin(net, weights)["engine"] == "openvino"
    batch = torch.randint(0, 256, (5, 3, 100, 80), dtype=torch.uint8)
    assert torch.allclose(net.probabilities(batch), net_of(weights).probabilities(batch), atol=0.05)


def test_few_pictures_leave_the_cache_alone(
    weights: Path, source: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert engine_of(chosen(weights, source)) == "torch"
    assert not (tmp_path / "cache").exists()


def test_a_net_that_is_unsure_of_most_pictures_predicts_alone(
    source: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("WORTH_COMPILING", "WORTH_MAKING"):
        monkeypatch.setattr(auto, name, 0)
    unsure = save_net(tmp_path / "net.pth", sure=1.0)
    assert engine_of(chosen(unsure, source)) == "torch"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("begun", "expected"), [("torch", "torch"), ("openvino", "openvino")])
def test_a_run_that_is_gone_on_with_keeps_its_engine(
    begun: str,
    expected: str,
    cache: Path,
    weights: Path,
    source: FolderSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if begun == "torch":  # else its number of pictures would not be worth it
        monkeypatch.setattr(auto, "WORTH_COMPILING", 0)
    by = [sha256_of(weights), *(map(sha256_of, cache.iterdir()) if begun == "openvino" else ())]
    # Of a run by OpenVINO, one has gone since; for one by torch, a graph of all is kept.
    names = sorted(source.names())[begun == "openvino" :]
    run = {"engine": begun, "weights": by}
    found = with_graph(net_of(weights), weights, source, names, run, pytest.fail)
    assert engine_of(found) == expected


def begun_by(weights: Path, cache: Path) -> dict[str, Any]:
    """Return the origin of a run by the graph that is kept."""
    by = [sha256_of(weights), *map(sha256_of, cache.iterdir())]
    return {"engine": "openvino", "weights": by}


def test_a_graph_of_other_weights_is_neither_taken_nor_lost(
    cache: Path, weights: Path, source: FolderSource, tmp_path: Path
) -> None:
    begun = begun_by(weights, cache)
    other = save_net(tmp_path / "other.pth", seed=4)
    assert engine_of(chosen(other, source, begun)) == "torch"
    assert engine_of(chosen(weights, source, begun)) == "openvino"


def test_a_run_that_cannot_go_on_so_keeps_its_graph(
    cache: Path, weights: Path, source: FolderSource
) -> None:
    begun = begun_by(weights, cache)
    net = net_of(weights)
    swapped = replace(net, checkpoint=replace(net.checkpoint, classes=("female", "male")))
    said: list[str] = []
    names = sorted(source.names())
    assert engine_of(with_graph(swapped, weights, source, names, begun, said.append)) == "torch"
    assert len(said) == 1
    assert engine_of(chosen(weights, source, begun)) == "openvino"


def test_a_broken_openvino_is_told_before_the_graph_is_made(
    weights: Path, source: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("WORTH_COMPILING", "WORTH_MAKING"):
        monkeypatch.setattr(auto, name, 0)
    monkeypatch.setattr(auto, "write_graph", lambda *_: pytest.fail("made"))
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("import openvino.gone")
    code = "from face_gender.classify.engines import openvino_core as core\ncore()"
    done = python("-c", code, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    sentence = done.stderr.splitlines()[-1].partition("InputError: ")[2]
    assert sentence.startswith("openvino cannot be imported (No module named 'openvino.gone')")

    def broken() -> None:
        raise InputError(sentence)

    monkeypatch.setattr(auto, "openvino_core", broken)
    said: list[str] = []
    assert engine_of(chosen(weights, source, said=said)) == "torch"
    (line,) = said
    assert "openvino cannot be imported (No module named" in line


def test_a_broken_openvino_costs_no_kept_graph(
    cache: Path, weights: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "WORTH_COMPILING", 0)
    before = list(cache.iterdir())

    def broken() -> None:
        raise InputError("openvino cannot be imported")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(auto, "openvino_core", broken)
        assert engine_of(chosen(weights, source, said=said)) == "torch"
    assert len(said) == 1
    assert list(cache.iterdir()) == before
    assert engine_of(chosen(weights, source)) == "openvino"


def test_a_graph_beside_the_weights_goes_on_too(
    cache: Path,
    weights: Path,
    source: FolderSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "net.pth"
    copy.write_bytes(weights.read_bytes())
    (graph,) = cache.iterdir()
    copy.with_suffix(".onnx").write_bytes(graph.read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    begun = {"engine": "openvino", "weights": [sha256_of(copy), sha256_of(graph)]}
    assert engine_of(chosen(copy, source, begun)) == "openvino"


def test_a_cpu_with_16_bits_and_other_devices_keep_torch(
    cache: Path, weights: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "WORTH_COMPILING", 0)
    names = sorted(source.names())
    for change in ({"dtype": torch.bfloat16}, {"device": torch.device("cuda")}):
        net = replace(net_of(weights), **change)  # type: ignore[arg-type]
        assert with_graph(net, weights, source, names, {}, pytest.fail) is net


def test_the_graph_is_bound_to_weights_and_pictures(
    weights: Path, source: FolderSource, tmp_path: Path
) -> None:
    names = sorted(source.names())
    path = cached_path(net_of(weights), weights, source, names)
    assert path == cached_path(net_of(weights), weights, source, names)
    other = save_net(tmp_path / "other.pth", seed=4)
    assert path != cached_path(net_of(other), other, source, names)
    assert path != cached_path(net_of(weights), weights, source, names[1:])


def unwritable(cache: Path, patch: pytest.MonkeyPatch) -> None:
    cache.with_name("file").write_text("", encoding="utf-8")
    patch.setenv("XDG_CACHE_HOME", str(cache.with_name("file")))


def unmade(cache: Path, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator\nand a page of details")

    next(cache.iterdir()).unlink()
    patch.setattr(auto, "write_graph", fail)


def damaged(cache: Path, patch: pytest.MonkeyPatch) -> None:
    path = next(cache.iterdir())
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("harm", [unwritable, unmade, damaged])
def test_whatever_fails_torch_classifies_and_a_sentence_says_so(
    harm: Callable[[Path, pytest.MonkeyPatch], None],
    cache: Path,
    weights: Path,
    source: FolderSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "WORTH_MAKING", 0)
    monkeypatch.setattr(auto, "WORTH_COMPILING", 0)
    harm(cache, monkeypatch)
    said: list[str] = []
    assert engine_of(chosen(weights, source, said=said)) == "torch"
    assert said[-1].startswith("by torch, as the 8-bit graph cannot be used (")
    assert "\n" not in said[-1]
    assert not any(cache.iterdir()) or harm is unwritable  # the next run makes it anew


def test_too_many_graphs_are_not_kept(
    cache: Path, weights: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        (cache / f"{i}.onnx").write_bytes(b"")
    next(path for path in cache.iterdir() if path.stat().st_size).unlink()
    for name in ("WORTH_COMPILING", "WORTH_MAKING"):
        monkeypatch.setattr(auto, name, 0)
    monkeypatch.setattr(auto, "write_graph", lambda _, __, path, ___: path.write_bytes(b"new"))
    chosen(weights, source, said=[])
    assert len(list(cache.iterdir())) < 10


# process.py itself, to which a Ctrl-C comes while the graph is fitted.
FITTED = """
import os, runpy, signal, sys
import onnxruntime.quantization
import face_gender.classify.classifier
from face_gender.export import auto
def fit(graph, written, *_, **__):
    open(written, "wb").close()
    os.kill(os.getpid(), signal.SIGINT)
onnxruntime.quantization.quantize_static = fit
face_gender.classify.classifier.mixed_precision = lambda _: None
auto.WORTH_COMPILING = auto.WORTH_MAKING = 0
sys.argv[0] = "process.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_ctrl_c_while_the_graph_is_fitted_leaves_nothing(
    weights: Path, source: FolderSource, tmp_path: Path
) -> None:
    places = {"TMPDIR": "tmp", "XDG_CACHE_HOME": "cache"}
    for place in places.values():
        (tmp_path / place).mkdir()
    output = tmp_path / "r.json"
    given = [source.path, "--weights", weights, "--device", "cpu", "--output", output]
    own = {name: str(tmp_path / place) for name, place in places.items()}
    done = python("-c", FITTED, *given, **own)
    assert done.returncode == 130, done.stderr
    fitting, sentence = done.stderr.splitlines()
    assert fitting.startswith("fitting an 8-bit graph")
    assert sentence == "process.py: interrupted, nothing was written."
    assert not [path for path in (tmp_path / "tmp").iterdir() if path.is_dir()]
    assert not output.exists() and not list(tmp_path.rglob("*.onnx"))


def test_the_command_says_what_it_does_and_goes_on_by_the_same_engine(
    cache: Path,
    weights: Path,
    source: FolderSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("face_gender.classify.classifier.mixed_precision", lambda _: None)
    monkeypatch.setattr(auto, "WORTH_COMPILING", 0)
    output = tmp_path / "r.json"
    command = [str(source.path), "--weights", str(weights), "--output", str(output)]
    command += ["--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(process, "remove_partial", lambda _: None)  # as if it had been interrupted
        assert process.main(command) == 0
    assert "on cpu by openvino" in capsys.readouterr().err
    whole, partial = output.read_bytes(), partial_path(output)
    lines = partial.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["engine"] == "openvino"
    partial.write_bytes(b"".join(lines[:4]))
    monkeypatch.setattr(auto, "WORTH_COMPILING", 1_000)
    assert process.main([*command, "--resume"]) == 0
    assert "on cpu by openvino" in capsys.readouterr().err
    assert output.read_bytes() == whole
    partial.write_bytes(b"".join(lines[:4]))
    assert process.main([*command, "--resume", "--engine", "torch"]) == 1
    assert "different engine" in capsys.readouterr().err
