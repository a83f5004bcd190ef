from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import sentence

import face_gender
from face_gender import CLASSES
from face_gender.data.augmentation import Augmentation
from face_gender.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from face_gender.errors import InputError
from face_gender.model.recipes import RECIPES, Recipe, get_recipe

PUBLISHED: dict[str, dict[str, Any]] = {
    "resnet18": {
        "arch": "resnet18",
        "init": "imagenet",
        "frozen": ("conv1", "bn1", "layer1"),
        "feature_extract": False,
        "preprocessing": Preprocessing(224, 224, "stretch", IMAGENET_MEAN, IMAGENET_STD),
        "optimizer": "adamw",
        "amsgrad": True,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "momentum": 0.0,
        "epochs": 6,
        "batch_size": 100,
        "loss": "cross_entropy",
        "label_smoothing": 0.0,
        "distillation": 0.0,
        "schedule": "constant",
        "best_by": "val_accuracy",
        "average": 0.0,
        "start_size": 1.0,
        "patience": None,
    },
    "resnet50": {
        "arch": "resnet50",
        "init": "imagenet",
        "frozen": (),
        "feature_extract": False,
        "preprocessing": Preprocessing(224, 224, "stretch", IMAGENET_MEAN, IMAGENET_STD),
        "optimizer": "sgd",
        "amsgrad": False,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "epochs": 3,
        "batch_size": 16,
        "loss": "cross_entropy",
        "label_smoothing": 0.0,
        "distillation": 0.0,
        "schedule": "constant",
        "best_by": "val_accuracy",
        "average": 0.0,
        "start_size": 1.0,
        "patience": None,
    },
    "compact_cnn": {
        "arch": "compact_cnn",
        "init": "none",
        "frozen": (),
        "feature_extract": False,
        "preprocessing": Preprocessing(100, 80, "stretch", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "optimizer": "adam",
        "amsgrad": False,
        "learning_rate": 3e-4,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "epochs": 15,
        "batch_size": 64,
        "loss": "cross_entropy",
        "label_smoothing": 0.0,
        "distillation": 0.0,
        "schedule": "constant",
        "best_by": "val_accuracy",
        "average": 0.0,
        "start_size": 1.0,
        "patience": None,
    },
    "dropout_cnn": {
        "arch": "dropout_cnn",
        "init": "none",
        "frozen": (),
        "feature_extract": False,
        "preprocessing": Preprocessing(
            128, 128, "stretch", IMAGENET_MEAN, IMAGENET_STD, Augmentation(0.5, 15)
        ),
        "optimizer": "adam",
        "amsgrad": False,
        "learning_rate": 2e-4,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "epochs": 100,
        "batch_size": 64,
        "loss": "nll",
        "label_smoothing": 0.0,
        "distillation": 0.0,
        "schedule": "constant",
        "best_by": "val_loss",
        "average": 0.0,
        "start_size": 1.0,
        "patience": 10,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name: str) -> None:
    recipe = get_recipe(name)
    values = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    assert values == {"name": name, **PUBLISHED[name]}


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
    shares = [recipe.size_fraction(epoch) for epoch in range(9)]
    assert shares[0] == 0.5
    assert shares == sorted(shares)
    assert shares[5] < 1
    assert shares[6:] == [1, 1, 1]
    assert get_recipe("resnet18").size_fraction(0) == 1
    # The last epoch, if it is the only one too, has the size of all answers to come.
    assert get_recipe("resnet18_tuned", epochs=1).size_fraction(0) == 1
    assert get_recipe("resnet18_tuned", epochs=2).size_fraction(1) == 1
    # Weights that are there already know one size.
    assert get_recipe("resnet18_tuned", init="a.pth").size_fraction(0) == 1


def test_classes_are_in_the_order_of_the_labels() -> None:
    assert CLASSES == ("male", "female")


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
    recipe = get_recipe("dropout_cnn", size=(130, 125))
    assert (recipe.preprocessing.height, recipe.preprocessing.width) == (130, 125)
    assert recipe.preprocessing.augmentation == Augmentation(0.5, 15)


def test_size_is_also_that_of_a_preprocessing_given() -> None:
    given_one = Preprocessing(10, 10, "crop")
    recipe = get_recipe("resnet18", size=(64, 48), preprocessing=given_one)
    assert recipe.preprocessing == Preprocessing(64, 48, "crop")


def test_another_net_brings_its_name_and_freezes_nothing() -> None:
    recipe = get_recipe("resnet18", arch="mobilenet_v3_small")
    assert (recipe.name, recipe.arch, recipe.frozen) == ("mobilenet_v3_small",) * 2 + ((),)
    assert recipe.optimizer == "adamw"
    assert get_recipe("resnet18", arch="resnet34", frozen=("layer1",)).frozen == ("layer1",)


def test_the_same_net_named_again_changes_nothing() -> None:
    assert get_recipe("resnet18", arch="resnet18") == get_recipe("resnet18")


@pytest.mark.parametrize("name", ["vgg16", "resnext101_32x8d", "vit_b_16"])
def test_any_torchvision_classifier_makes_a_recipe(name: str) -> None:
    assert get_recipe("resnet50", arch=name).arch == name


def test_feature_extract_is_an_option_of_resnet50() -> None:
    assert get_recipe("resnet50", feature_extract=True).feature_extract


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
    ("name", "suggestion"),
    [("resnet81", "resnet18"), ("compactcnn", "compact_cnn"), ("dropout-cnn", "dropout_cnn")],
)
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(InputError) as caught:
        get_recipe(name)
    assert f"did you mean {suggestion}?" in sentence(caught)


def test_a_recipe_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(InputError) as caught:
        get_recipe("zzz")
    assert all(name in sentence(caught) for name in RECIPES)


def test_an_unknown_net_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        get_recipe("resnet18", arch="mobilenet_v3_smal")
    assert "mobilenet_v3_small" in sentence(caught)


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


def test_a_recipe_can_be_renamed() -> None:
    assert get_recipe("compact_cnn", name="mine").name == "mine"


@pytest.mark.parametrize(
    "changes",
    [{"size": 96}, {"size": (96,)}, {"epochs": "3"}, {"epochs": 2.5}, {"learning_rate": "fast"}],
)
def test_a_setting_of_the_wrong_kind_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        get_recipe("compact_cnn", **changes)


def test_a_changed_net_never_takes_the_name_of_another_recipe() -> None:
    assert get_recipe("compact_cnn", arch="resnet18").name == "compact_cnn_resnet18"
    assert get_recipe("resnet18", arch="vgg16").name == "vgg16"
