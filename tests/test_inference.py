"""Names -> predictions: order, memory, and the same tensors as in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    SHIPPED,
    draw_face,
    make_checkpoint,
    make_faces,
    make_index,
    make_zip,
    threads_in_use,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from face_gender.classify.classifier import Classifier, choose_load, classify, load_classifier
from face_gender.classify.results import Prediction, Skipped
from face_gender.data.images import load_image, load_pixels
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import open_source
from face_gender.devices import mixed_precision
from face_gender.errors import InputError
from face_gender.evaluate.predict import evaluate
from face_gender.faces.detector import Detector, load_detector
from face_gender.model.recipes import RECIPES


class _Echo(torch.nn.Module):
    """Gives the mean of the red and of the blue channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))[:, [0, 2]]


def echo_classifier(model: torch.nn.Module | None = None) -> Classifier:
    checkpoint = make_checkpoint()
    preprocessing = Preprocessing(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    checkpoint = replace(checkpoint, preprocessing=preprocessing)
    return Classifier(checkpoint, model or _Echo(), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", RECIPES)
def test_a_net_is_given_the_tensors_of_training(name: str, tmp_path: Path) -> None:
    preprocessing = RECIPES[name].preprocessing
    taken: list[torch.Tensor] = []
    net = echo_classifier()
    net = replace(net, checkpoint=replace(net.checkpoint, preprocessing=preprocessing))
    net.model.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].clone()))
    data = make_faces(tmp_path / "data", 2, 1)
    source = open_source(make_zip(data, tmp_path / "z.zip"))
    names = sorted(source.names())
    assert [each.name for each in classify(net, source, names, 2, 1)] == names
    transform = preprocessing.eval_transform()
    for served, each in zip(torch.cat(taken), names, strict=True):
        assert torch.equal(served, transform(load_image(data / each)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 files, a third of them bad, in an order that mixes all three kinds."""
    folder = tmp_path_factory.mktemp("mixed")
    for i in range(30):
        if i % 3 == 2:
            (folder / f"{i:02}.jpg").write_bytes(b"bad")
        else:
            draw_face(("male", "female")[i % 3], i).save(folder / f"{i:02}.jpg")
    return folder


@settings(deadline=None, max_examples=12)
@given(batch_size=st.integers(1, 40), workers=st.integers(1, 4))
def test_every_name_gets_its_own_result_in_order(
    mixed: Path, batch_size: int, workers: int
) -> None:
    names = [f"{i:02}.jpg" for i in range(30)]
    source = open_source(mixed)
    results = list(classify(echo_classifier(), source, names, batch_size, workers))
    assert [result.name for result in results] == names
    for i, result in enumerate(results):
        if i % 3 == 2:
            assert isinstance(result, Skipped)
        else:
            assert isinstance(result, Prediction)
            assert result.label() == ("male", "female")[i % 3]


def test_no_more_than_a_few_batches_are_read_ahead(tmp_path: Path) -> None:
    folder = make_faces(tmp_path, 40, 40)
    asked = []

    def names():  # type: ignore[no-untyped-def]
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")):
            asked.append(name)
            yield name

    stream = classify(echo_classifier(), open_source(folder), names(), batch_size=4, workers=2)
    next(stream)
    assert len(asked) <= 2 * 2 * 4  # two batches for each thread
    stream.close()
    assert len(asked) <= 2 * 2 * 4


class _Small(_Echo):
    """A net on a device that has memory for three pictures."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried too much")
        return super().forward(images)


def test_out_of_memory_halves_the_batch(mixed: Path) -> None:
    names = [f"{i:02}.jpg" for i in range(30)]
    expected, found = (
        list(classify(echo_classifier(net), open_source(mixed), names, 16, 2))
        for net in (_Echo(), _Small())
    )
    assert found == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_picture_that_does_not_fit_into_memory_ends_in_a_sentence(
    error: RuntimeError, mixed: Path
) -> None:
    class Full(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(InputError, match="memory is too small"):
        list(classify(echo_classifier(Full()), open_source(mixed), ["00.jpg", "01.jpg"], 2, 1))


def test_other_errors_of_a_net_are_not_taken_for_memory(mixed: Path) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(InputError, match=r"cannot run on .* \(shapes cannot be multiplied\)"):
        list(classify(echo_classifier(Wrong()), open_source(mixed), ["00.jpg"]))


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, None),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, None),
        ({"architecture": "arm64", "bf16": True}, None),
    ],
)
def test_a_cpu_calculates_in_16_bits_where_that_is_faster(
    able: dict[str, object], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intel's avx512_bf16 without AMX is slower than float32."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    assert mixed_precision(torch.device("cpu")) is expected


def test_sixteen_bits_change_no_probability_by_more_than_two_hundredths(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("face_gender.classify.classifier.mixed_precision", lambda _: torch.bfloat16)
    names = [f"{i:02}.jpg" for i in range(30)]
    few, full = (
        [
            result.scores
            for result in classify(load_classifier(SHIPPED, mixed=on), open_source(mixed), names)
            if isinstance(result, Prediction)
        ]
        for on in (True, False)
    )
    assert few != full
    assert (torch.tensor(few) - torch.tensor(full)).abs().max() <= 0.02


@pytest.mark.parametrize(
    ("given_", "chosen"),
    [((10, None, 2), (5, 2)), ((1_000, None, 2), (32, 2)), ((1_000, 7, 3), (7, 3)),
     ((3, 7, 2), (2, 2)), ((None, None, 4), (32, 4)), ((1, None, 4), (1, 4)),
     ((130, None, 2), (22, 2)), ((65, None, 2), (17, 2)), ((0, None, 2), (32, 2)),
     ((10**6, None, 10**5), (32, 256))],
)  # fmt: skip
def test_a_small_folder_is_shared_by_all_threads(given_: tuple, chosen: tuple) -> None:
    assert choose_load(echo_classifier(), *given_) == chosen


@pytest.mark.parametrize(("side", "pictures"), [(96, 32), (112, 31), (224, 7), (1000, 4)])
def test_a_thread_takes_fewer_of_large_pictures_and_each_processor_has_one(
    side: int, pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("face_gender.classify.classifier.cpu_count", lambda: 5)
    net = echo_classifier()
    preprocessing = replace(net.checkpoint.preprocessing, height=side, width=side)
    net = replace(net, checkpoint=replace(net.checkpoint, preprocessing=preprocessing))
    assert choose_load(net) == (pictures, 5)
    assert choose_load(net, batch_size=20, workers=2) == (20, 2)


@pytest.mark.usefixtures("two_and_three_threads")
def test_each_thread_finds_faces_on_one_core_and_others_keep_theirs(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = set()

    def detect(*arguments: object, **options: object) -> list[object]:
        counts.add(threads_in_use())
        return []

    net = replace(echo_classifier(), detector=load_detector())
    monkeypatch.setattr(Detector, "detect", detect)
    stream = classify(net, open_source(mixed), ["00.jpg", "01.jpg"], 1, 2)
    next(stream)
    stream.close()
    assert counts == {(1, 1)}
    assert threads_in_use() == (2, 3)


def test_names_may_come_one_by_one(mixed: Path) -> None:
    names = [f"{i:02}.jpg" for i in range(30)]
    source = open_source(mixed)
    expected = list(classify(echo_classifier(), source, names))
    for workers in (1, 3):
        assert list(classify(echo_classifier(), source, iter(names), 4, workers)) == expected
    assert list(classify(echo_classifier(), source, [])) == []
    assert list(classify(echo_classifier(), source, iter([]))) == []


def test_use_and_evaluation_look_at_the_same_mirror_images(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "data", 6, 6)
    checkpoint = make_checkpoint("resnet18")
    small = replace(checkpoint.preprocessing, height=64, width=64)
    found = {}
    for within in (0.0, 1.0):
        recipe = replace(checkpoint.recipe, preprocessing=small, mirror_within=within)
        path = tmp_path / f"{within}.pth"
        replace(checkpoint, recipe=recipe, preprocessing=small).save(path)
        index = make_index(data, tmp_path / "index.csv", force=True)
        judged = evaluate(path, index, None, allow_seen=True, progress=False)
        used = classify(load_classifier(path, mixed=False), index.source, list(judged.paths))
        scores = torch.tensor([each.scores for each in used if isinstance(each, Prediction)])
        assert torch.allclose(scores, torch.from_numpy(judged.probabilities), atol=1e-5)
        found[within] = scores
    assert not torch.allclose(found[0.0], found[1.0], atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "compact_cnn", "dropout_cnn"])
def test_the_fast_form_of_a_net_gives_its_results_and_leaves_its_weights(
    name: str, faces: Path, tmp_path: Path
) -> None:
    make_checkpoint(name).save(tmp_path / "c.pth")
    net = load_classifier(tmp_path / "c.pth", mixed=False)
    kept = make_checkpoint(name)
    assert kept.weights.keys() == net.checkpoint.weights.keys()
    for key, weight in kept.weights.items():
        assert torch.equal(net.checkpoint.weights[key], weight)
    pixels = net.checkpoint.preprocessing.resized(load_pixels(faces / "male" / "m_1.jpg"))[None]
    model, transform = kept.build()
    with torch.inference_mode():
        expected = model(transform(load_image(faces / "male" / "m_1.jpg"))[None]).softmax(1)
    assert torch.allclose(net.probabilities(pixels), expected, atol=1e-4)
    assert net.probabilities(pixels).sum().item() == pytest.approx(1, abs=1e-5)


def test_names_without_a_source_are_paths(tmp_path: Path) -> None:
    draw_face("male", 1).save(tmp_path / "a.jpg")
    (result,) = classify(echo_classifier(), None, [str(tmp_path / "a.jpg")])
    assert isinstance(result, Prediction)
    assert result.label() == "male"


def test_an_output_that_is_no_number_is_skipped_with_a_reason(mixed: Path) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 2), torch.nan)

    (result,) = classify(echo_classifier(Broken()), open_source(mixed), ["00.jpg"])
    assert isinstance(result, Skipped)
    assert "not a number" in result.reason


@given(scores=st.tuples(st.floats(0, 1), st.floats(0, 1)), threshold=st.floats(0, 1))
def test_label_is_the_larger_score_or_uncertain(
    scores: tuple[float, float], threshold: float
) -> None:
    prediction = Prediction("x", ("a", "b"), scores)
    label = prediction.label(threshold)
    assert (label == "uncertain") == (max(scores) < threshold)
    if label != "uncertain":
        assert prediction.probabilities[label] == max(scores)
