from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import content_of, draw_face, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import sentence
from torch import Tensor, nn

from face_gender import CLASSES
from face_gender.data.preprocessing import Preprocessing
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.checkpoint import (
    Checkpoint,
    hash64,
    load_checkpoint,
    read_weights,
    versions,
)
from face_gender.model.recipes import RECIPES, get_recipe

PLAIN_TYPES = (str, int, float, bool, type(None))


def make(name: str = "compact_cnn", **changes: Any) -> Checkpoint:
    """A checkpoint of a net with random weights."""
    values = {
        "epoch": 4,
        "metrics": {"val_accuracy": 0.75, "val_loss": 0.5},
        "seen_hashes": hash64(hashlib.sha256(bytes([i])).hexdigest() for i in range(9)),
    }
    return make_checkpoint(name, 3, **{**values, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make().save(tmp_path / "saved.pth")
    return tmp_path / "saved.pth"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file as published recipes leave it: a state_dict and nothing else."""
    torch.save(make("dropout_cnn").weights, tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


@pytest.mark.parametrize("name", ["resnet18", "compact_cnn", "dropout_cnn"])
def test_round_trip_gives_the_same_outputs_to_the_bit_and_downloads_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_download(*args: object, **options: object) -> None:
        raise AssertionError("pretrained weights were asked for")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    original = make(name)
    original.save(tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert loaded.recipe == original.recipe == RECIPES[name]
    assert loaded.preprocessing == original.preprocessing
    assert loaded.classes == ("male", "female")
    assert (loaded.epoch, loaded.metrics) == (4, {"val_accuracy": 0.75, "val_loss": 0.5})
    assert torch.equal(loaded.seen_hashes, original.seen_hashes)
    assert loaded.versions == versions()
    (net, transform), (same, _) = original.build(), loaded.build()
    assert not same.training
    images = transform(draw_face("male", 0))[None]
    assert images.shape[-2:] == (loaded.preprocessing.height, loaded.preprocessing.width)
    with torch.no_grad():
        assert torch.equal(net(images), same(images))


def test_the_file_holds_plain_data_and_tensors_alone(saved: Path) -> None:
    def check(value: object, place: str) -> None:
        if type(value) is dict:
            for key, each in value.items():
                check(key, f"{place}, a key")
                check(each, f"{place}[{key!r}]")
        elif type(value) in (list, tuple):
            for each in value:  # type: ignore[attr-defined]
                check(each, place)
        else:
            assert type(value) in (*PLAIN_TYPES, Tensor), f"{place} is a {type(value)}"

    content = content_of(saved)
    check(content, "content")
    assert set(content) == {
        *("format", "recipe", "classes", "preprocessing", "epoch", "metrics", "seen", "versions"),
        *("temperature", "weights"),
    }
    assert set(content["versions"]) > {"torch", "torchvision", "face_gender"}


def test_numpy_numbers_and_paths_become_plain_data(tmp_path: Path) -> None:
    """Or the file would not open with weights_only, which shows only after the training."""
    recipe = get_recipe(
        "resnet18",
        learning_rate=np.float64(0.01),
        epochs=np.int64(3),
        init=tmp_path / "start.pth",
        size=tuple(np.array([64, 48])),
    )
    make(recipe=recipe, metrics={"val_loss": np.float32(0.5)}).save(tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth")
    assert loaded.recipe.learning_rate == 0.01
    assert loaded.recipe.init == str(tmp_path / "start.pth")
    assert (loaded.preprocessing.height, loaded.preprocessing.width) == (64, 48)
    assert loaded.metrics == {"val_loss": 0.5}


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1 / 3, 1, 100.0])
def test_the_temperature_is_kept_to_the_bit(temperature: float, tmp_path: Path) -> None:
    make(temperature=temperature).save(tmp_path / "net.pth")
    found = load_checkpoint(tmp_path / "net.pth").temperature
    assert found == temperature
    assert type(found) is float


def test_a_file_of_an_earlier_version_has_temperature_one(saved: Path, plain: Path) -> None:
    content = content_of(saved)
    assert content.pop("temperature") == 1.0
    torch.save(content, saved)
    assert load_checkpoint(saved).temperature == 1.0
    assert load_checkpoint(plain, "dropout_cnn", ["female", "male"]).temperature == 1.0


def test_preprocessing_is_the_files_own_and_not_the_recipes(tmp_path: Path) -> None:
    make(preprocessing=Preprocessing(90, 85, "crop")).save(tmp_path / "net.pth")
    _, transform = load_checkpoint(tmp_path / "net.pth").build()
    assert transform(draw_face("male", 0)).shape == (3, 90, 85)


def test_hashes_of_100_000_pictures_take_less_than_a_megabyte(tmp_path: Path) -> None:
    hashes = hash64(hashlib.sha256(i.to_bytes(4)).hexdigest() for i in range(100_000))
    assert len(hashes) == 100_000
    make(seen_hashes=torch.empty(0, dtype=torch.int64)).save(tmp_path / "without.pth")
    make(seen_hashes=hashes).save(tmp_path / "with.pth")
    without, with_them = ((tmp_path / f"{n}.pth").stat().st_size for n in ("without", "with"))
    assert 790_000 < with_them - without < 1_000_000


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=30))
@settings(deadline=None, max_examples=50)
def test_hash64_is_the_sorted_first_64_bits(digests: list[bytes]) -> None:
    found = hash64(digest.hex() for digest in digests)
    assert found.dtype == torch.int64
    expected = {int(np.frombuffer(digest[:8], ">i8")[0]) for digest in digests}
    assert found.tolist() == sorted(expected)
    assert torch.equal(found, hash64(digest.hex().upper() for digest in reversed(digests)))


def test_float16_halves_the_file_and_builds_in_float32(tmp_path: Path) -> None:
    original = make()
    original.save(tmp_path / "full.pth")
    original.save(tmp_path / "half.pth", torch.float16)
    full, half = ((tmp_path / name).stat().st_size for name in ("full.pth", "half.pth"))
    assert half < 0.52 * full
    loaded = load_checkpoint(tmp_path / "half.pth")
    assert {weight.dtype for weight in loaded.weights.values()} == {torch.float16}
    assert torch.equal(loaded.seen_hashes, original.seen_hashes)
    net, transform = loaded.build()
    assert {weight.dtype for weight in net.state_dict().values()} == {torch.float32}
    images = transform(draw_face("female", 0))[None]
    with torch.no_grad():
        assert torch.allclose(net(images), original.build()[0](images), atol=1e-2)


def test_a_description_names_recipe_epoch_and_accuracy() -> None:
    assert make().describe() == "compact_cnn, epoch 4, validation accuracy 0.7500"
    assert make(epoch=None, metrics={}).describe() == "compact_cnn"


def test_a_plain_state_dict_opens_with_its_recipe_and_classes(plain: Path) -> None:
    loaded = load_checkpoint(plain, "dropout_cnn", ["female", "male"])
    assert loaded.classes == ("female", "male")
    assert loaded.recipe == RECIPES["dropout_cnn"]
    assert loaded.epoch is None
    net, transform = loaded.build()
    images = transform(draw_face("female", 0))[None]
    with torch.no_grad():
        assert torch.equal(net(images), make("dropout_cnn").build()[0](images))


@pytest.mark.parametrize(
    ("recipe", "classes"), [(None, None), ("dropout_cnn", None), (None, ["male", "female"])]
)
def test_a_plain_state_dict_alone_is_refused(
    plain: Path, recipe: str | None, classes: list[str] | None
) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(plain, recipe, classes)
    message = sentence(caught)
    assert "--recipe" in message
    assert "--classes" in message
    assert "dropout_cnn" in message


def test_a_class_named_twice_is_refused(plain: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(plain, "dropout_cnn", ["male", "male"])
    assert "male,male" in sentence(caught)


@pytest.mark.parametrize(
    "name",
    ["../x", "/tmp/x", "a/b", "a\\b", "C:x", ".hidden", "..", "a\0b", "a\nb", "\udc80", "uncertain",
     "label", "name", "error", "face", "confidence", "left"],
)  # fmt: skip
def test_a_class_is_called_as_a_folder_and_a_column_can_be(name: str, plain: Path) -> None:
    with pytest.raises(InputError, match="no class can be called") as caught:
        load_checkpoint(plain, "dropout_cnn", ["male", name])
    sentence(caught)
    for other in ("женский", "no face", "smile_1"):
        assert load_checkpoint(plain, "dropout_cnn", ["male", other]).classes[1] == other


def test_an_unknown_recipe_is_refused_with_a_suggestion(plain: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(plain, "dropout-cnn", ["female", "male"])
    assert "dropout_cnn" in sentence(caught)


def test_claims_that_the_file_contradicts_are_refused(saved: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved, recipe="resnet18")
    assert "compact_cnn, not resnet18" in sentence(caught)
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved, classes=["female", "male"])
    assert "male,female, not female,male" in sentence(caught)


def test_claims_that_the_file_confirms_are_taken(saved: Path) -> None:
    assert load_checkpoint(saved, "compact_cnn", ["male", "female"]).epoch == 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "format None"),
        ({"classes": None}, "not a whole checkpoint"),
        ({"classes": ["male", "female", "cat"]}, "3 classes"),
        ({"classes": ["male", "../../x"]}, "no class can be called '../../x'"),
        ({"seen": None}, "not a whole checkpoint"),
        ({"metrics": None}, "not a whole checkpoint"),
        ({"temperature": 0.0}, "temperature is no number from 0.01 to 100"),
        ({"temperature": float("nan")}, "temperature is no number"),
        ({"recipe": {}}, "not a whole checkpoint"),
        ({"recipe": "compact_cnn"}, "not a whole checkpoint"),
        ({"preprocessing": {}}, "not a whole checkpoint"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [0, 0, 0]}}, "not a whole checkpoint"),
        ({"weights": {}}, "no weights"),
        ({"weights": None}, "not a whole checkpoint"),
        ({"weights": {"conv1.weight": [1.0]}}, "no weights"),
        ({"weights": {"conv1.weight": torch.zeros(1)}}, "they have no conv1.bias"),
        ({"recipe": get_recipe("resnet18").to_dict()}, "not those of resnet18"),
    ],
)
def test_content_that_is_not_ours_is_one_sentence(
    saved: Path, change: dict[str, Any], word: str
) -> None:
    torch.save({**content_of(saved), **change}, saved)
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved).build()
    assert word in sentence(caught)


@pytest.mark.parametrize("key", ["classes", "preprocessing", "seen", "epoch", "versions"])
def test_a_missing_part_is_one_sentence(saved: Path, key: str) -> None:
    content = content_of(saved)
    del content[key]
    torch.save(content, saved)
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved)
    assert key in sentence(caught)


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_one_sentence(saved: Path, fraction: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved)
    assert str(saved) in sentence(caught)


@pytest.mark.parametrize("text", ["hello world", "<html>404</html>\n", "\x80\x02", "PK\x03\x04"])
def test_text_under_the_name_of_weights_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "text.pth").write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "text.pth")
    assert "text.pth" in sentence(caught)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), "text"])
def test_other_plain_content_is_one_sentence(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "other.pth", "compact_cnn", ["male", "female"])
    assert "no weights" in sentence(caught)


def test_a_whole_pickled_model_is_one_sentence(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "model.pth")
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "model.pth")
    assert "model.state_dict()" in sentence(caught)


def test_read_weights_tells_the_two_kinds_apart(saved: Path, plain: Path) -> None:
    assert isinstance(read_weights(saved), Checkpoint)
    assert isinstance(read_weights(plain), dict)


@pytest.mark.parametrize("arch", ["resnet18", "swin_t", "regnet_y_400mf", "googlenet"])
def test_a_net_is_built_without_first_weights_and_is_the_same(arch: str) -> None:
    """Its weights are the file's, what is in no file is calculated, and nothing is drawn."""
    recipe = get_recipe("resnet18", arch=arch, init="none")
    torch.manual_seed(3)
    made = build_model(arch).eval()
    checkpoint = Checkpoint(recipe, CLASSES, recipe.preprocessing, made.state_dict())
    before = torch.get_rng_state()
    net, _ = checkpoint.build()
    if arch != "regnet_y_400mf":  # calculates while it is built, so that it has to be
        assert torch.equal(torch.get_rng_state(), before)
    tensors = dict([*net.named_parameters(), *net.named_buffers()])
    expected = dict([*made.named_parameters(), *made.named_buffers()])
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(net(images), made(images))


def test_a_net_that_is_built_has_weights_of_its_own() -> None:
    checkpoint = make("resnet18")
    net, _ = checkpoint.build()
    for tensor in net.state_dict().values():
        tensor.fill_(7)
    assert not any((weight == 7).all() for weight in checkpoint.weights.values())


def test_a_file_without_counters_of_batches_is_built_whole() -> None:
    """PyTorch 0.4 kept none; what a file lacks must not stay without memory."""
    weights = {k: v for k, v in make("resnet18").weights.items() if "num_batches" not in k}
    assert len(weights) == 102
    net, transform = make("resnet18", weights=weights).build()
    assert not any(tensor.is_meta for tensor in net.state_dict().values())
    with torch.inference_mode():
        assert net(transform(draw_face("male", 0))[None]).isfinite().all()
