from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import sentence

import face_gender
from face_gender.data.augmentation import Augmentation
from face_gender.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from face_gender.errors import InputError
from face_gender.model.architectures import build_model
from face_gender.model.recipes import RECIPES, Recipe, get_recipe

DEFAULTS: dict[str, Any] = {
    "init": "imagenet", "frozen": (), "feature_extract": False, "amsgrad": False,
    "preprocessing": Preprocessing(224, 224, "stretch", IMAGENET_MEAN, IMAGENET_STD),
    "weight_decay": 0.0, "momentum": 0.0, "loss": "cross_entropy", "label_smoothing": 0.0,
    "distillation": 0.0, "schedule": "constant", "best_by": "val_accuracy", "average": 0.0,
    "start_size": 1.0, "mirror_within": 0.0, "patience": None,
}  # fmt: skip
# As published: net, settings that are not the defaults, and the net's parameters.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18": (
        {"frozen": ("conv1", "bn1", "layer1"), "optimizer": "adamw", "amsgrad": True,
         "learning_rate": 1e-3, "weight_decay": 0.01, "epochs": 6, "batch_size": 100},
        11_177_538,
    ),
    "resnet50": (
        {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 1e-3, "epochs": 3, "batch_size": 16},
        23_512_130,
    ),
    "compact_cnn": (
        {"init": "none", "optimizer": "adam", "learning_rate": 3e-4, "epochs": 15,
         "batch_size": 64,
         "preprocessing": Preprocessing(100, 80, "stretch", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))},
        593_942,
    ),
    "dropout_cnn": (
        {"init": "none", "optimizer": "adam", "learning_rate": 2e-4, "epochs": 100,
         "batch_size": 64, "loss": "nll", "best_by": "val_loss", "patience": 10,
         "preprocessing": Preprocessing(
             128, 128, "stretch", IMAGENET_MEAN, IMAGENET_STD, Augmentation(0.5, 15))},
        683_746,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name: str) -> None:
    recipe = get_recipe(name)
    values = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    settings, parameters = PUBLISHED[name]
    assert values == {"name": name, "arch": name, **DEFAULTS, **settings}
    with torch.device("meta"):
        net = build_model(recipe.arch)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_the_recipes_are_the_names_that_commands_know() -> None:
    assert tuple(RECIPES) == (*PUBLISHED, "resnet18_tuned") == face_gender.RECIPE_NAMES


def test_a_recipe_of_our_own_needs_no_download_and_bears_small_pictures() -> None:
    recipe = get_recipe("resnet18_tuned")
    assert (recipe.arch, recipe.init, recipe.schedule) == ("resnet18", "none", "one_cycle")
    assert 0 < recipe.label_smoothing < 0.5
    assert recipe.preprocessing.augmentation.downscale > 0
    assert get_recipe("resnet18_tuned", arch="resnet34").name == "resnet34"


def test_pictures_grow_to_their_size_over_two_thirds_of_the_epochs() -> None:
    recipe = get_recipe("resnet18_tuned", epochs=9, start_size=0.5)
    fractions = [recipe.size_fraction(epoch) for epoch in range(9)]
    assert fractions[0] == 0.5
    assert fractions == sorted(fractions)
    assert fractions[5] < 1
    assert fractions[6:] == [1, 1, 1]
    assert get_recipe("resnet18").size_fraction(0) == 1
    # The last epoch, if it is the only one too, has the size of all answers to come.
    assert get_recipe("resnet18_tuned", epochs=1).size_fraction(0) == 1
    assert get_recipe("resnet18_tuned", epochs=2).size_fraction(1) == 1
    # Weights that are there already know one size.
    assert get_recipe("resnet18_tuned", init="a.pth").size_fraction(0) == 1


def test_recipes_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        get_recipe("resnet18").epochs = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        RECIPES["mine"] = get_recipe("resnet18")  # type: ignore[index]


def test_a_change_changes_that_setting_alone() -> None:
    before = asdict(get_recipe("resnet18"))
    after = asdict(get_recipe("resnet18", learning_rate=0.5))
    assert {key for key in before if before[key] != after[key]} == {"learning_rate"}
    assert asdict(get_recipe("resnet18")) == before


def test_size_is_height_and_width() -> None:
    given_one = Preprocessing(10, 10, "crop")
    recipe = get_recipe("resnet18", size=(64, 48), preprocessing=given_one)
    assert recipe.preprocessing == Preprocessing(64, 48, "crop")
    recipe = get_recipe("dropout_cnn", size=(130, 125))
    assert (recipe.preprocessing.height, recipe.preprocessing.width) == (130, 125)
    assert recipe.preprocessing.augmentation == Augmentation(0.5, 15)


def test_another_net_brings_its_name_and_freezes_nothing() -> None:
    recipe = get_recipe("resnet18", arch="mobilenet_v3_small")
    assert (recipe.name, recipe.arch, recipe.frozen) == ("mobilenet_v3_small",) * 2 + ((),)
    assert recipe.optimizer == "adamw"
    assert get_recipe("resnet18", arch="resnet34", frozen=("layer1",)).frozen == ("layer1",)
    assert get_recipe("resnet18", arch="resnet18") == get_recipe("resnet18")
    # Never the name of another recipe.
    assert get_recipe("compact_cnn", arch="resnet18").name == "compact_cnn_resnet18"


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("compact_cnn", {"init": "imagenet"}, "ImageNet"),
    ("dropout_cnn", {"init": "imagenet"}, "ImageNet"),
    ("resnet50", {"init": "none", "feature_extract": True}, "feature_extract"),
    ("resnet18", {"momentum": 0.9}, "momentum"),
    ("resnet50", {"amsgrad": True}, "amsgrad"),
    ("resnet18", {"loss": "nll"}, "loss"),
    ("dropout_cnn", {"loss": "cross_entropy"}, "loss"),
    ("dropout_cnn", {"arch": "resnet18"}, "loss"),
    ("resnet18", {"arch": "compact_cnn"}, "ImageNet"),
    ("resnet18", {"arch": "compact_cnn", "init": "none"}, "80 to 106"),
    ("compact_cnn", {"size": (80, 107)}, "80 x 107"),
    ("dropout_cnn", {"size": (224, 224)}, "224 x 224"),
    ("compact_cnn", {"optimizer": "rmsprop"}, "'rmsprop'"),
    ("compact_cnn", {"best_by": "luck"}, "'luck'"),
    ("compact_cnn", {"epochs": 0}, "epochs"),
    ("compact_cnn", {"batch_size": 0}, "batch_size"),
    ("compact_cnn", {"learning_rate": 0.0}, "learning_rate"),
    ("compact_cnn", {"patience": 0}, "patience"),
    ("resnet18", {"size": (0, 10)}, "0 x 10"),
    ("resnet18", {"schedule": "cosine"}, "'cosine'"),
    ("resnet18", {"label_smoothing": 1.0}, "label_smoothing"),
    ("resnet18", {"label_smoothing": -0.1}, "label_smoothing"),
    ("resnet18", {"label_smoothing": float("nan")}, "label_smoothing"),
    ("dropout_cnn", {"label_smoothing": 0.1}, "label_smoothing"),
    ("resnet18", {"distillation": 1.1}, "distillation"),
    ("resnet18", {"distillation": "much"}, "distillation"),
    ("dropout_cnn", {"distillation": 0.1}, "distillation"),
    ("resnet18", {"average": 1.0}, "average"),
    ("resnet18", {"average": float("nan")}, "average"),
    ("resnet18", {"start_size": 0.0}, "start_size"),
    ("resnet18", {"start_size": 1.1}, "start_size"),
    ("resnet18", {"weight_decay": -0.1}, "weight_decay"),
    ("resnet50", {"momentum": 1.0}, "momentum"),
    ("resnet18", {"size": 96}, "size"),
    ("resnet18", {"size": (96,)}, "size"),
    ("resnet18", {"epochs": "3"}, "epochs"),
    ("resnet18", {"epochs": 2.5}, "epochs"),
    ("resnet18", {"patience": 2.5}, "patience"),
    ("resnet18", {"amsgrad": 1}, "amsgrad"),
    ("resnet18", {"learning_rate": "fast"}, "learning_rate"),
    ("resnet18", {"frozen": (3,)}, "frozen"),
    ("resnet18", {"schedule": ["constant"]}, "schedule"),
]


@pytest.mark.parametrize(("name", "changes", "word"), CONTRADICTIONS)
def test_contradictions_are_refused_in_one_sentence(
    name: str, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError) as caught:
        get_recipe(name, **changes)
    assert word in sentence(caught)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "../elsewhere", "C:\\weights", "a/b"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        replace(get_recipe("compact_cnn"), name=name)
    assert repr(name) in sentence(caught)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet81", "did you mean resnet18?"), ("dropout-cnn", "did you mean dropout_cnn?"),
     ("zzz", f"choose one of {', '.join(RECIPES)}.")],
)  # fmt: skip
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        get_recipe(name)
    assert hint in sentence(caught)


def test_an_unknown_setting_is_named_and_no_other() -> None:
    with pytest.raises(ValueError) as caught:
        get_recipe("resnet18", epochs=3, learn_rate=0.1)
    message = sentence(caught)
    assert "'learn_rate': did you mean learning_rate?" in message
    assert "epochs" not in message


@given(
    name=st.sampled_from(list(RECIPES)),
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 1000),
    learning_rate=st.floats(1e-9, 10),
    weight_decay=st.floats(0, 1),
    patience=st.none() | st.integers(1, 100),
)
@settings(deadline=None, max_examples=40)
def test_plain_data_gives_the_same_recipe_back(name: str, **changes: Any) -> None:
    recipe = get_recipe(name, **changes)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_saved_before_there_were_such_settings_has_none_of_them() -> None:
    values = get_recipe("dropout_cnn").to_dict()
    for setting in ("label_smoothing", "schedule", "distillation", "average", "start_size"):
        del values[setting]
    values["preprocessing"]["augmentation"] = {"horizontal_flip": 0.5, "rotation": 15}
    assert Recipe.from_dict(values) == get_recipe("dropout_cnn")


@pytest.mark.parametrize("values", [{}, {"preprocessing": {}}, {"frozen": ()}])
def test_other_data_are_no_recipe(values: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Recipe.from_dict(values)
