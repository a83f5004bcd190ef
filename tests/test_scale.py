"""FaceClassifier answers batches as process.py answers folders."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_face
from sentences import sentence

import face_gender.classify.__main__ as process
from face_gender import scale
from face_gender.errors import InputError
from face_gender.files import read_file
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import Checkpoint, load_checkpoint
from face_gender.model.recipes import get_recipe
from face_gender.scale import FaceClassifier

COUNT = 12


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of random weights, which answers every picture otherwise."""
    torch.manual_seed(0)
    recipe = get_recipe("compact_cnn")
    model = build_model(recipe.arch)
    path = tmp_path_factory.mktemp("net") / "net.pth"
    Checkpoint(recipe, ("male", "female"), recipe.preprocessing, model.state_dict()).save(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve faces, a text and an empty file under the names of pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT):
        draw_face(("male", "female")[i % 2], i).save(folder / f"{i:02}.jpg")
    (folder / "text.jpg").write_text("no picture")
    (folder / "void.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def expected(weights: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What process.py says of these."""
    out = tmp_path_factory.mktemp("out") / "full.json"
    options = ["--weights", weights, "--format", "full", "--output", out, "--quiet"]
    assert process.main([str(each) for each in (pictures, *options)]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def check(rows: dict, names: list[str], expected: dict) -> None:
    """Compare columns with the answers of process.py, which it rounds to six digits."""
    assert {len(values) for values in rows.values()} == {len(names)}
    for i, name in enumerate(names):
        if name in expected["skipped"]:
            assert rows["error"][i] == expected["skipped"][name]
            assert rows["label"][i] is None
            assert math.isnan(rows["confidence"][i])
            assert math.isnan(rows["male"][i])
            continue
        answer = expected["results"][name]
        assert rows["error"][i] is None
        assert rows["label"][i] == answer["label"]
        assert rows["confidence"][i] == pytest.approx(answer["confidence"], abs=1e-2)
        for label, probability in answer["probabilities"].items():
            assert rows[label][i] == pytest.approx(probability, abs=1e-2)


def test_names_give_the_answers_of_process(weights, pictures, expected) -> None:
    names = sorted(path.name for path in pictures.iterdir())
    assert len(names) == COUNT + 2
    rows = FaceClassifier(weights)({"path": np.array([str(pictures / name) for name in names])})
    check(rows, names, expected)
    assert len(set(rows["male"][:COUNT].tolist())) > COUNT // 2
    assert rows["confidence"].dtype == rows["male"].dtype == np.float32


def test_columns_have_the_temperature_of_the_weights(weights, pictures, tmp_path) -> None:
    scaled = tmp_path / "scaled.pth"
    replace(load_checkpoint(weights), temperature=0.1).save(scaled)
    batch = {"path": [str(pictures / f"{i:02}.jpg") for i in range(COUNT)]}
    before, after = (FaceClassifier(path, device="cpu")(batch) for path in (weights, scaled))
    odds = [np.log(rows["male"] / rows["female"]) for rows in (before, after)]
    assert np.allclose(odds[1], 10 * odds[0], rtol=1e-2, atol=1e-4)
    assert (after["confidence"] > before["confidence"]).all()
    assert after["label"].tolist() == before["label"].tolist()


def test_bytes_give_the_answers_of_process(weights, pictures, expected) -> None:
    names = sorted((path.name for path in pictures.iterdir()), reverse=True)
    data = np.array([(pictures / name).read_bytes() for name in names], dtype=object)
    rows = FaceClassifier(weights)({"path": names, "bytes": data, "id": np.arange(len(names))})
    check(rows, names, expected)
    assert rows["path"].tolist() == names
    assert rows["id"].tolist() == list(range(len(names)))
    assert "bytes" not in rows


def test_rows_without_a_picture_come_back_with_a_reason(weights, pictures) -> None:
    good = str(pictures / "00.jpg")
    rows = FaceClassifier(weights)({"path": [None, good, str(pictures / "no.jpg")]})
    assert rows["label"][1] in ("male", "female")
    assert rows["error"].tolist() == [
        "cannot be read (no path in this row)",
        None,
        "cannot be read (No such file or directory)",
    ]
    rows = FaceClassifier(weights)({"bytes": [None, read_file(good)]})
    assert rows["error"].tolist() == ["cannot be read (no bytes in this row)", None]


def test_a_pickle_holds_arguments_and_no_net(weights, pictures) -> None:
    batch = {"path": [str(pictures / "01.jpg")]}
    classifier = FaceClassifier(weights, device="cpu", threshold=0.4, threads=1)
    before = classifier(batch)
    assert len(pickle.dumps(classifier)) < 1_000 < weights.stat().st_size
    again = pickle.loads(pickle.dumps(classifier))
    assert (again.threshold, again.threads, again.weights) == (0.4, 1, str(weights))
    assert again(batch)["male"].tolist() == before["male"].tolist()


def test_the_net_is_loaded_once(weights, pictures, monkeypatch) -> None:
    loads = []
    load = scale.load_classifier
    monkeypatch.setattr(scale, "load_classifier", lambda *a, **k: loads.append(a) or load(*a, **k))
    classifier = FaceClassifier(weights)
    assert loads == []
    for _ in range(2):
        classifier({"path": [str(pictures / "01.jpg")]})
    assert len(loads) == 1


def test_below_the_threshold_is_uncertain(weights, pictures) -> None:
    rows = FaceClassifier(weights, threshold=1.0)({"path": [str(pictures / "01.jpg")]})
    assert rows["label"].tolist() == ["uncertain"]
    assert rows["error"].tolist() == [None]


def test_threads_are_those_that_were_given(weights, pictures, monkeypatch) -> None:
    given = []
    ask = scale.classify
    monkeypatch.setattr(
        scale, "classify", lambda *a, **k: given.append(k["workers"]) or ask(*a, **k)
    )
    FaceClassifier(weights, threads=3)({"path": [str(pictures / "01.jpg")]})
    assert given == [3]


@pytest.mark.parametrize("threads", [1, 7])
def test_every_file_of_a_long_batch_is_read_once(weights, pictures, threads: int) -> None:
    reads: Counter[str] = Counter()
    data = (pictures / "03.jpg").read_bytes()

    def read(path: str) -> bytes:
        reads[path] += 1
        return data if int(path) % 5 else b""

    names = [str(i) for i in range(4 * scale._AHEAD)]
    rows = FaceClassifier(weights, read, threads=threads)({"path": names})
    assert reads == dict.fromkeys(names, 1)
    assert [each is not None for each in rows["error"]] == [i % 5 == 0 for i in range(len(names))]


def test_files_ahead_of_the_net_are_few(weights) -> None:
    """Or a batch of large photographs fills the memory."""
    classifier = FaceClassifier(weights, threads=1)
    ahead: list[int] = []
    answered: list[int] = []
    read = scale._ReadAhead.read

    def watched(self, name: str) -> bytes:
        data = read(self, name)
        answered.append(1)
        ahead.append(self._next - len(answered))
        return data

    scale._ReadAhead.read = watched  # type: ignore[method-assign]
    try:
        classifier({"bytes": [b""] * (4 * scale._AHEAD)})
    finally:
        scale._ReadAhead.read = read  # type: ignore[method-assign]
    assert len(ahead) == 4 * scale._AHEAD
    assert max(ahead) <= scale._AHEAD


def test_a_batch_without_rows_has_all_columns(weights) -> None:
    rows = FaceClassifier(weights)({"path": np.array([], dtype=object)})
    assert list(rows) == ["path", "label", "confidence", "male", "female", "error"]
    assert {len(values) for values in rows.values()} == {0}


def test_faults_are_sentences(weights, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        FaceClassifier(weights)({"name": ["a.jpg"]})
    assert "name" in sentence(caught)
    with pytest.raises(InputError) as caught:
        FaceClassifier(tmp_path / "no.pth")({"path": ["a.jpg"]})
    assert "no.pth" in sentence(caught)
