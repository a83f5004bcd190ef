"""python -m face_gender.export and process.py --engine openvino, with nets of random weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import gone_drive, loaded_after, make_faces, python
from sentences import one_sentence, sentence

import face_gender.classify.__main__ as process
from face_gender.classify import engines
from face_gender.classify.classifier import Classifier, load_classifier
from face_gender.classify.engines import MARGIN, OpenVino
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import FolderSource
from face_gender.errors import InputError
from face_gender.export import __main__ as export
from face_gender.export.graph import calibration_batches, evenly
from face_gender.model.architectures import build_model, probabilities_of
from face_gender.model.checkpoint import Checkpoint
from face_gender.model.recipes import get_recipe

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def make_weights(path: Path, seed: int = 1, recipe_name: str = "resnet18") -> Path:
    """Save a net whose batch norms have something to fold."""
    size = {"size": (64, 64)} if recipe_name == "resnet18" else {}
    recipe = get_recipe(recipe_name, init="none", **size)
    torch.manual_seed(seed)
    model = build_model(recipe.arch)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    Checkpoint(recipe, ("male", "female"), recipe.preprocessing, model.state_dict()).save(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn faces in two subfolders, and a file that is none."""
    folder = make_faces(tmp_path_factory.mktemp("pictures"), 6, 6)
    (folder / "male" / "broken.jpg").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pth with its float32 .onnx beside it; the tests leave both as they are."""
    weights = make_weights(tmp_path_factory.mktemp("float") / "net.pth")
    assert export.main([str(weights)]) == 0
    return weights


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A .pth with its int8 .onnx beside it."""
    weights = make_weights(tmp_path_factory.mktemp("int8") / "net.pth")
    assert export.main([str(weights), "--calibrate", str(pictures), "--pictures", "20"]) == 0
    return weights


def some_pixels(count: int, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def onnxruntime_outputs(graph: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["images"]
    (outputs,) = session.run(["logits"], {"images": images.contiguous().numpy()})
    return torch.from_numpy(outputs)


@pytest.mark.parametrize("recipe", ["resnet18", "dropout_cnn"])
def test_the_float_graph_gives_the_probabilities_of_the_net(
    recipe: str, exported: Path, tmp_path: Path
) -> None:
    weights = exported
    if recipe != "resnet18":
        weights = make_weights(tmp_path / "net.pth", recipe_name=recipe)
        assert export.main([str(weights)]) == 0
    net = load_classifier(weights, device="cpu", mixed=False)
    preprocessing = net.checkpoint.preprocessing
    for count in (1, 5):  # any number of pictures, not that of the example alone
        pixels = some_pixels(count, (preprocessing.height, preprocessing.width))
        outputs = onnxruntime_outputs(
            weights.with_suffix(".onnx"), preprocessing.normalized(pixels)
        )
        expected = net.probabilities(pixels)
        assert torch.allclose(probabilities_of(outputs, 1.0), expected, atol=1e-4)
        assert not torch.allclose(expected, torch.full_like(expected, 0.5), atol=1e-3)


def test_the_graph_says_what_it_is(exported: Path, calibrated: Path) -> None:
    import hashlib

    import onnx

    for weights in (exported, calibrated):
        graph = onnx.load(weights.with_suffix(".onnx"))
        said = {each.key: json.loads(each.value) for each in graph.metadata_props}
        assert said["classes"] == ["male", "female"]
        settings = {
            "height": 64, "width": 64, "resize": "stretch", "align": "none",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        }  # fmt: skip
        assert {name: said["preprocessing"][name] for name in settings} == settings
        assert said["recipe"]["name"] == "resnet18"
        assert said["temperature"] == 1.0
        assert said["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert said["precision"] == ("int8" if weights == calibrated else "float32")
        kinds = [node.op_type for node in graph.graph.node]
        assert "BatchNormalization" not in kinds
        # Of a net in channels last, which OpenVINO answers wrongly in 8 bits.
        assert "Gather" not in kinds
        assert ("QuantizeLinear" in kinds) == (weights == calibrated)


def test_first_and_last_layer_stay_in_float(calibrated: Path) -> None:
    import onnx

    graph = onnx.load(calibrated.with_suffix(".onnx")).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    in_bits = [made_by.get(node.input[1]) == "DequantizeLinear" for node in layers]
    assert not in_bits[0]
    assert not in_bits[-1]
    assert in_bits[1:-1] == [True] * (len(layers) - 2)


def run_process(*arguments: str | Path) -> int:
    return process.main([str(each) for each in arguments])


def test_the_engine_answers_as_the_net_does(exported: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    answers = []
    for engine in ("torch", "openvino"):
        output = tmp_path / f"{engine}.json"
        arguments = ("--recursive", "--weights", exported, "--format", "full", "--quiet")
        assert run_process(pictures, *arguments, "--engine", engine, "--output", output) == 0
        answers.append(json.loads(output.read_text(encoding="utf-8")))
    by_net, by_engine = answers
    assert by_engine["skipped"].keys() == by_net["skipped"].keys() == {"male/broken.jpg"}
    assert by_engine["results"].keys() == by_net["results"].keys()
    for name, answer in by_net["results"].items():
        assert by_engine["results"][name]["probabilities"] == pytest.approx(
            answer["probabilities"], abs=0.02
        )


def test_the_engine_in_float32_gives_the_outputs_of_the_net(exported: Path) -> None:
    pytest.importorskip("openvino")
    net = load_classifier(exported, device="cpu", mixed=False)
    engine = load_classifier(exported, engine="openvino").engine
    assert engine is not None
    pixels = some_pixels(7)
    with torch.inference_mode():
        expected = net.model(net.checkpoint.preprocessing.normalized(pixels))
    found = engine.outputs(pixels.permute(0, 2, 3, 1).contiguous().numpy())
    # In 16 bits where the processor has them; a wrong mean or channel order is far off.
    assert np.abs(found - expected.numpy()).max() < 0.03 * expected.abs().max()


def test_the_engine_in_8_bits_calculates_what_the_graph_says(calibrated: Path) -> None:
    """Of a net exported channels last, OpenVINO made something else than ONNX Runtime."""
    pytest.importorskip("openvino")
    net = load_classifier(calibrated, engine="openvino")
    assert net.engine is not None
    pixels = some_pixels(40)
    found = net.engine.outputs(pixels.permute(0, 2, 3, 1).contiguous().numpy())
    images = net.checkpoint.preprocessing.normalized(pixels)
    by_others = onnxruntime_outputs(calibrated.with_suffix(".onnx"), images)
    spread = by_others.std(0).mean()
    assert (torch.from_numpy(found) - by_others).abs().mean() < 0.3 * spread


def test_threads_get_their_own_answers(calibrated: Path) -> None:
    pytest.importorskip("openvino")
    engine = load_classifier(calibrated, engine="openvino").engine
    assert engine is not None
    batches = [batch.permute(0, 2, 3, 1).contiguous().numpy() for batch in some_pixels(60).split(7)]
    alone = [engine.outputs(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.outputs, batches))
    for one, other in zip(alone, together, strict=True):
        assert np.allclose(one, other, atol=1e-5)


class _Fixed(OpenVino):
    """Answers with these logits."""

    def __init__(self, logits: list[list[float]]) -> None:
        self.logits = logits

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        return np.array(self.logits, dtype=np.float32)


def test_where_classes_are_close_the_net_is_asked(exported: Path) -> None:
    net = load_classifier(exported, device="cpu", mixed=False)
    just_apart = float(np.log((1 + MARGIN) / (1 - MARGIN))) + 0.01
    engine = _Fixed([[3.0, 0.0], [0.01, 0.0], [0.0, just_apart], [0.0, just_apart - 0.02]])
    mixed = Classifier(net.checkpoint, net.model, net.device, net.dtype, engine)
    pixels = some_pixels(4)
    found, by_net = mixed.probabilities(pixels), net.probabilities(pixels)
    assert torch.allclose(found[[1, 3]], by_net[[1, 3]], atol=1e-5)
    own = torch.tensor(engine.logits).softmax(1)
    assert torch.allclose(found[[0, 2]], own[[0, 2]])
    assert not torch.allclose(own[[1, 3]], by_net[[1, 3]], atol=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_what_is_close_does_not_hang_on_the_temperature(exported: Path, temperature: float) -> None:
    net = load_classifier(exported, device="cpu", mixed=False)
    checkpoint = replace(net.checkpoint, temperature=temperature)
    just_apart = float(np.log((1 + MARGIN) / (1 - MARGIN))) + 0.01
    engine = _Fixed([[just_apart, 0.0], [0.0, 0.1]])
    mixed = Classifier(checkpoint, net.model, net.device, net.dtype, engine)
    pixels = some_pixels(2)
    found = mixed.probabilities(pixels)
    by_net = replace(mixed, engine=None).probabilities(pixels)
    own = probabilities_of(torch.tensor(engine.logits), temperature)
    assert torch.allclose(found[0], own[0])
    assert torch.allclose(found[1], by_net[1], atol=1e-5)
    assert not torch.allclose(own, by_net, atol=1e-3)


def test_a_graph_of_other_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    other = make_weights(tmp_path / "net.pth", seed=2)
    graph = other.with_suffix(".onnx")
    graph.write_bytes(exported.with_suffix(".onnx").read_bytes())
    with pytest.raises(InputError) as caught:
        load_classifier(other, engine="openvino")
    assert str(graph) in sentence(caught)
    assert "face_gender.export" in str(caught.value)


def without(setting: str) -> Callable[[str], str]:
    return lambda said: json.dumps({k: v for k, v in json.loads(said).items() if k != setting})


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        (without("resize"), True),
        (without("mean"), False),
        *((lambda _, said=said: said, False) for said in ("", "{", "[" * 100_000)),
    ],
)
def test_a_graph_is_bound_to_the_settings_that_it_says_it_calculates(
    change: Callable[[str], str], taken: bool, exported: Path, tmp_path: Path
) -> None:
    """Settings of what comes before it may be newer than the graph."""
    pytest.importorskip("openvino")
    import onnx

    weights = tmp_path / "net.pth"
    weights.write_bytes(exported.read_bytes())
    graph = onnx.load(exported.with_suffix(".onnx"))
    (values,) = (each for each in graph.metadata_props if each.key == "preprocessing")
    values.value = change(values.value)
    onnx.save(graph, weights.with_suffix(".onnx"))
    if taken:
        assert load_classifier(weights, engine="openvino").engine is not None
        return
    with pytest.raises(InputError, match="was not made of"):
        load_classifier(weights, engine="openvino")


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_graph_is_refused(content: bytes | None, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    weights = tmp_path / "net.pth"
    weights.write_bytes(exported.read_bytes())
    whole = exported.with_suffix(".onnx").read_bytes()
    weights.with_suffix(".onnx").write_bytes(
        whole[: len(whole) // 2] if content is None else content
    )
    with pytest.raises(InputError) as caught:
        load_classifier(weights, engine="openvino")
    assert "is not a whole .onnx file" in sentence(caught)


def test_without_a_graph_the_command_to_make_it_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    weights = make_weights(tmp_path / "net.pth")
    output = tmp_path / "r.json"
    arguments = ("--recursive", "--weights", weights, "--output", output)
    assert run_process(pictures, *arguments, "--engine", "openvino") == 1
    said = one_sentence(capsys.readouterr().err, "face_gender.classify")
    assert str(tmp_path / "net.onnx") in said and "python -m face_gender.export" in said
    assert not output.exists()


def test_a_missing_library_is_named_with_the_cure(
    exported: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = ("openvino", "onnxscript")
    monkeypatch.setattr(engines, "find_spec", lambda n: None if n in missing else find_spec(n))
    cure = "pip install -r requirements-engine.txt"
    arguments = ("--recursive", "--weights", exported, "--engine", "openvino")
    assert run_process(pictures, *arguments) == 1
    said = one_sentence(capsys.readouterr().err, "face_gender.classify")
    assert "openvino" in said and cure in said
    assert export.main([str(exported)]) == 1
    said = one_sentence(capsys.readouterr().err, "face_gender.export")
    assert "onnxscript" in said and cure in said


def test_the_engine_is_for_the_cpu(exported: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_classifier(exported, device="cuda", engine="openvino")
    assert "cuda" in sentence(caught)


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_weights(tmp_path / "net.pth", recipe_name="compact_cnn")
    graph = weights.with_suffix(".onnx")
    graph.write_bytes(b"the former one")

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("face_gender.files.os.fsync", fail)
    assert export.main([str(weights)]) == 130
    assert graph.read_bytes() == b"the former one"
    assert {path.name for path in tmp_path.iterdir()} == {"net.pth", "net.onnx"}


# The command itself, to which a Ctrl-C comes while torch makes an error of its own of exceptions.
EXPORTED = """
import runpy, signal
import torch
def export(*_, **__):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise RuntimeError("not known") from error
torch.onnx.export = export
runpy.run_module("face_gender.export", run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_ctrl_c_is_no_error_of_the_exporter(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "net.pth", recipe_name="compact_cnn")
    done = python("-c", EXPORTED, weights)
    assert done.stderr == "face_gender.export: interrupted, nothing was written.\n"
    assert done.returncode == 130


def test_weights_are_not_replaced(exported: Path) -> None:
    before = exported.read_bytes()
    assert export.main([str(exported), "--output", str(exported)]) == 1
    assert exported.read_bytes() == before


def test_pictures_that_cannot_be_read_calibrate_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    output = tmp_path / "x.onnx"
    weights = make_weights(tmp_path / "net.pth", recipe_name="compact_cnn")
    assert export.main([str(weights), "--calibrate", str(tmp_path), "--output", str(output)]) == 1
    said = one_sentence(capsys.readouterr().err, "face_gender.export")
    assert str(tmp_path) in said and "can be read" in said
    assert not output.exists()


def test_a_drive_that_is_gone_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = make_weights(tmp_path / "net.pth", recipe_name="compact_cnn")
    gone_drive(monkeypatch, make_faces(tmp_path / "data"))
    monkeypatch.setattr("face_gender.data.base_source.PAUSES", ())
    assert export.main([str(weights), "--calibrate", str(tmp_path / "data")]) == 1
    said = one_sentence(capsys.readouterr().err, "face_gender.export")
    assert said.endswith("seems to be gone: connect it and give the same command.")


def test_calibration_takes_pictures_of_every_subfolder(tmp_path: Path) -> None:
    asked = []

    class Recorded(FolderSource):
        def read(self, name: str) -> bytes:
            asked.append(name)
            return super().read(name)

    source = Recorded(make_faces(tmp_path, 20, 20))
    names = sorted(source.names(recursive=True))
    batches = list(calibration_batches(Preprocessing(8, 8), None, source, evenly(names, 11)))
    assert sum(len(batch["images"]) for batch in batches) == len(set(asked)) == 11
    assert sum(name.startswith("male/") for name in asked) in (5, 6)
    few = evenly(names[:3], 300)
    assert len(list(calibration_batches(Preprocessing(8, 8), None, source, few))) == 1


def test_a_plain_state_dict_needs_its_recipe_and_classes(tmp_path: Path) -> None:
    torch.save(build_model("compact_cnn").state_dict(), tmp_path / "plain.pth")
    assert export.main([str(tmp_path / "plain.pth")]) == 1
    named = ["--recipe", "compact_cnn", "--classes", "female, male"]
    assert export.main([str(tmp_path / "plain.pth"), *named]) == 0
    assert (tmp_path / "plain.onnx").exists()


def test_openvino_cannot_tell_anybody_that_it_runs(exported: Path) -> None:
    """Its import sends an event to Google Analytics where openvino_telemetry can be imported."""
    pytest.importorskip("openvino")
    code = (
        "from face_gender.classify.classifier import load_classifier\n"
        f"load_classifier({str(exported)!r}, engine='openvino')\n"
        "import sys; assert sys.modules['openvino_telemetry'] is None"
    )
    loaded = loaded_after(code)
    assert "openvino" in loaded
    assert not [name for name in loaded if name.startswith("openvino_telemetry.")]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_after_an_engine_ended_in_another_thread_is_only_heard(exported: Path) -> None:
    """OpenVINO took the stack for signals from the thread that had loaded it: a crash."""
    pytest.importorskip("openvino")
    code = (
        "import gc, signal, threading, numpy\n"
        "from face_gender.classify.classifier import load_classifier\n"
        f"nets = [load_classifier({str(exported)!r}, engine='openvino')]\n"
        "def end():\n"
        "    nets.pop().engine.outputs(numpy.zeros((1, 64, 64, 3), numpy.uint8))\n"
        "    gc.collect()\n"
        "thread = threading.Thread(target=end)\n"
        "thread.start(); thread.join()\n"
        "heard = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
        "assert heard == [1] and not nets"
    )
    assert "openvino" in loaded_after(code)
