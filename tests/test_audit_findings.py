"""What the audit measures, how it judges, and the tables that come of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import encode, make_checkpoint, make_faces, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from sentences import sentence

from face_gender import CLASSES
from face_gender.audit import embeddings
from face_gender.audit.duplicates import SIDE, Pairs, group_copies
from face_gender.audit.embeddings import (
    embed_all,
    fold_of,
    hash_weights,
    out_of_fold,
    seen_by,
    train_fold,
)
from face_gender.audit.findings import COLUMNS, Judged, clean
from face_gender.audit.labels import label_scores
from face_gender.audit.outliers import outlier_scores
from face_gender.audit.page import HEADINGS
from face_gender.audit.pictures import BLURRED, QUALITY_ISSUES, blur_effect, measure_all
from face_gender.audit.stages import Stages, key_of
from face_gender.data.index import list_pictures
from face_gender.data.sources import FolderSource
from face_gender.errors import InputError
from face_gender.model.checkpoint import hash64
from face_gender.model.recipes import get_recipe

MALE, FEMALE = 0, 1


# ---- Stages


class Maker:
    """Makes the same arrays each time, and counts how often."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.arrays


def test_a_finished_stage_is_not_made_again(tmp_path: Path) -> None:
    names = np.array(["лицо", "\udcff\r\n", ""])
    make = Maker(numbers=np.arange(6, dtype=np.float16).reshape(2, 3), names=names)
    first = Stages(tmp_path / "stages").get("some", "key", make)
    again = Stages(tmp_path / "stages").get("some", "key", make)
    assert make.calls == 1
    assert first.keys() == again.keys() == {"numbers", "names"}
    for name, array in first.items():
        assert again[name].dtype == array.dtype
        assert again[name].tolist() == array.tolist()


def test_a_stage_of_another_key_is_made_again_and_replaces_the_file(tmp_path: Path) -> None:
    stages, old, new = Stages(tmp_path), Maker(a=np.zeros(3)), Maker(a=np.ones(2))
    stages.get("some", "old", old)
    assert stages.get("some", "new", new)["a"].tolist() == [1, 1]
    assert stages.get("some", "new", new)["a"].tolist() == [1, 1]
    assert (old.calls, new.calls) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    stages, make = Stages(tmp_path), Maker(a=np.arange(1000))
    stages.get("some", "key", make)
    content = bytearray((tmp_path / "some.npz").read_bytes())
    middle = len(content) // 2
    content[middle] ^= 255
    kept = {"empty": 0, "cut": middle, "changed": len(content)}[damage]
    (tmp_path / "some.npz").write_bytes(content[:kept])
    assert stages.get("some", "key", make)["a"].tolist() == list(range(1000))
    assert make.calls == 2


def test_an_interrupted_stage_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).get("some", "key", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        Stages(tmp_path / "file" / "stages")
    assert "--output" in sentence(caught)


def test_keys_differ_where_any_part_does() -> None:
    parts = [("a", "b"), ("ab",), ("a", "b", 0), ("a", "c"), (), ("\udcff", "b"), (["a", "b"],)]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert key_of("a", "b") == key_of("a", "b")


# ---- Pictures


def textured(width: int = 96, height: int = 120) -> Image.Image:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (12, 10, 3)).astype(np.uint8)
    fine = random.integers(-40, 40, (height, width, 3))
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((soft + fine).clip(0, 255).astype(np.uint8))


def measured(folder: Path, **files: Image.Image | bytes) -> dict[str, dict[str, object]]:
    """Write and measure files; for each, sha256, reason, size and the issues that it has."""
    names = []
    for name, content in files.items():
        names.append(f"{name}.{'jpg' if isinstance(content, bytes) else 'png'}")
        if isinstance(content, bytes):
            (folder / names[-1]).write_bytes(content)
        else:
            content.save(folder / names[-1])
    seen: list[int] = []
    found = measure_all(FolderSource(folder), names, 2, seen.append)
    assert sum(seen) == len(names)
    for issue in QUALITY_ISSUES:
        assert found[issue].dtype == np.float32
        assert 0 <= found[issue].min() <= found[issue].max() <= 1
    return {
        name: {
            "sha256": str(found["sha256"][row]),
            "reason": str(found["reason"][row]),
            "size": (int(found["width"][row]), int(found["height"][row])),
            "issues": {issue for issue in QUALITY_ISSUES if found[issue][row] > 0},
            "fingerprint": found["fingerprints"][row],
        }
        for row, name in enumerate(files)
    }


def test_each_bad_picture_is_found_for_what_it_is(tmp_path: Path) -> None:
    good = textured()
    found = measured(
        tmp_path,
        good=good,
        black=Image.new("RGB", (96, 120)),
        white=Image.new("RGB", (96, 120), "white"),
        grey=Image.new("RGB", (96, 120), (120, 120, 120)),
        red=Image.new("RGB", (96, 120), (200, 30, 40)),
        blurred=good.point(lambda value: value // 2).filter(ImageFilter.GaussianBlur(2)),
        dark=good.point(lambda value: value // 20),
        bright=good.point(lambda value: 255 - value // 20),
        little=good.resize((10, 10)),
        long=good.resize((400, 40)),
        high=good.resize((40, 400)),
        one=Image.new("RGB", (1, 1)),
    )
    issues = {name: values["issues"] for name, values in found.items()}
    assert issues["good"] == set()
    assert {"blank", "dark"} <= issues["black"]
    assert {"blank", "bright"} <= issues["white"]
    assert "blank" in issues["grey"] and "blank" in issues["red"]
    assert not {"dark", "bright"} & issues["grey"]
    assert issues["blurred"] == {"blurred"}
    assert "dark" in issues["dark"] and "bright" in issues["bright"]
    assert issues["little"] == {"tiny"}
    assert issues["long"] == issues["high"] == {"odd_aspect"}
    assert "tiny" in issues["one"]
    assert all(values["reason"] == "" for values in found.values())
    assert found["long"]["size"] == (400, 40)


def test_what_is_no_picture_has_a_reason_and_no_issue(tmp_path: Path) -> None:
    whole = encode(textured())
    found = measured(
        tmp_path, good=whole, truncated=whole[: len(whole) // 2], empty=b"", text=b"no picture\n"
    )
    assert found["good"]["reason"] == ""
    for name in ("truncated", "empty", "text"):
        assert found[name]["reason"], name
        assert found[name]["issues"] == set()
        assert found[name]["size"] == (0, 0)
    assert "empty" in str(found["empty"]["reason"])
    assert found["good"]["sha256"] == hashlib.sha256(whole).hexdigest()
    assert found["text"]["sha256"] == hashlib.sha256(b"no picture\n").hexdigest()


def test_files_that_cannot_be_opened_have_no_hash(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    found = measure_all(FolderSource(tmp_path), ["gone.jpg", "folder.jpg"], 2, int)
    assert found["sha256"].tolist() == ["", ""]
    assert all("cannot be read" in reason for reason in found["reason"].tolist())
    assert not any(found[issue].any() for issue in QUALITY_ISSUES)


def test_measures_follow_the_names_and_not_the_threads(tmp_path: Path) -> None:
    make_faces(tmp_path, 20, 20)
    (tmp_path / "male" / "m_7.jpg").write_bytes(b"")
    names = list_pictures(tmp_path)[0]["path"].tolist()
    alone = measure_all(FolderSource(tmp_path), names, 1, int)
    many = measure_all(FolderSource(tmp_path), names[::-1], 8, int)
    assert alone["fingerprints"].shape == (40, SIDE, SIDE)
    for name, array in alone.items():
        assert array.tolist() == many[name][::-1].tolist(), name


# ---- Findings


def judged(
    labels: Sequence[int],
    paths: Sequence[str] = (),
    near: Sequence[tuple[int, int, float]] = (),
    **known: Sequence[object],
) -> Judged:
    """What is known of pictures that are alright but for what is said."""
    n = len(labels)
    values: dict[str, np.ndarray] = {
        "sha256": np.array([f"{i:064x}" for i in range(n)]),
        "reason": np.array([""] * n, dtype="<U40"),
        "width": np.full(n, 100),
        "height": np.full(n, 100),
        **{issue: np.zeros(n, dtype=np.float32) for issue in QUALITY_ISSUES},
    }
    values |= {name: np.array(each) for name, each in known.items()}
    none = np.zeros(n, dtype=np.float32)
    pairs = Pairs(
        np.array([a for a, _, _ in near], dtype=np.int64),
        np.array([b for _, b, _ in near], dtype=np.int64),
        np.array([agreement for _, _, agreement in near], dtype=np.float32),
        np.zeros(len(near), dtype=bool),
    )
    return Judged(
        list(paths) or [f"p{i}.jpg" for i in range(n)],
        np.array(labels, dtype=np.int64),
        values,
        pairs,
        values.pop("label_scores", none).astype(np.float32),
        values.pop("outlier_scores", none).astype(np.float32),
        values.pop("faces", np.full(n, -1)),
    )


def groups_of(found: Judged, known: Sequence[str] = ()) -> list[str]:
    return group_copies(found.paths, found.measured["sha256"].tolist(), found.pairs, known)


def rows_of(found: Judged) -> list[tuple[str, str, str]]:
    table = found.findings()
    return list(zip(table["path"], table["issue"], table["related"], strict=True))


def test_nothing_wrong_is_an_empty_table_with_all_columns() -> None:
    table = judged([MALE, FEMALE]).findings()
    assert table.empty
    assert list(table.columns) == [*COLUMNS, "looks_like"]


SAME_DIGEST, ONE_TWIN = ["x", "x", "y", "x"], ["x", "x", "x", "y"]


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        # Of copies, all but the first by name; under both labels, all.
        ([MALE] * 4, {"paths": "dbca", "sha256": SAME_DIGEST},
         [("b", "exact_duplicate", "a"), ("d", "exact_duplicate", "a")]),
        ([MALE, FEMALE, FEMALE, MALE], {"paths": "abcd", "sha256": ONE_TWIN},
         [("a", "duplicate_other_label", "b|c"), ("b", "duplicate_other_label", "a|c"),
          ("c", "duplicate_other_label", "a|b")]),
        # The larger of two is kept; of equal size, the first by name.
        ([MALE] * 2, {"paths": "ab", "near": [(0, 1, 0.98)], "width": [80, 100]},
         [("a", "near_duplicate", "b")]),
        ([MALE] * 2, {"paths": "ab", "near": [(0, 1, 0.98)]}, [("b", "near_duplicate", "a")]),
        ([MALE, FEMALE], {"paths": "ab", "near": [(0, 1, 0.97)]},
         [("a", "near_duplicate_other_label", "b"), ("b", "near_duplicate_other_label", "a")]),
        # Each is named once, with the one that it is most like.
        ([MALE] * 3, {"paths": "abc", "near": [(0, 2, 0.97), (1, 2, 0.99), (0, 1, 0.96)],
                      "width": [300, 200, 100]},
         [("c", "near_duplicate", "b"), ("b", "near_duplicate", "a")]),
    ],
)  # fmt: skip
def test_copies_name_each_other(
    labels: list[int], given: dict, expected: list[tuple[str, str, str]]
) -> None:
    found = judged(labels, **given)
    assert rows_of(found) == expected
    table = found.findings()
    named = dict(zip(found.paths, (CLASSES[label] for label in labels), strict=True))
    assert table["label"].tolist() == [named[path] for path, _, _ in expected]


def test_unreadable_files_are_no_copies_of_each_other() -> None:
    found = judged([MALE] * 3, sha256=["x", "x", ""], reason=["empty file", "empty file", "gone"])
    table = found.findings()
    assert table["issue"].tolist() == ["unreadable"] * 3
    assert table["score"].tolist() == [1.0] * 3
    assert "empty file" in table["suggestion"].iloc[0]


def test_a_placeholder_in_hundreds_of_copies_makes_no_millions_of_names() -> None:
    found = judged([MALE] * 299 + [FEMALE], sha256=["x"] * 300).findings()
    assert len(found) == 300
    assert found["related"].str.count(r"\|").max() < 30


def test_no_agreement_scores_above_one() -> None:
    assert judged([MALE] * 2, near=[(0, 1, 1.0000002)]).findings()["score"].tolist() == [1]


@st.composite
def graphs(draw: st.DrawFn) -> Judged:
    """Pictures of one label each component, copies of each other in any pattern."""
    n = draw(st.integers(2, 12))
    row = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(row, row, st.floats(0.96, 1)), max_size=20))
    contents = draw(st.lists(st.integers(0, n), min_size=n, max_size=n))
    widths = draw(st.lists(st.integers(10, 13), min_size=n, max_size=n))
    # As in the audit: near-duplicates are looked for among one picture of each content.
    first = {
        content: min(i for i, c in enumerate(contents) if c == content) for content in contents
    }
    near = {tuple(sorted((first[contents[a]], first[contents[b]]))): s for a, b, s in edges}
    return judged(
        [MALE] * n,
        [f"{i:02d}" for i in range(n)],
        [(a, b, score) for (a, b), score in near.items() if a != b],
        sha256=[str(content) for content in contents],
        width=[widths[first[content]] for content in contents],
    )


@given(graphs())
@settings(deadline=None, max_examples=50)
def test_of_every_set_of_copies_just_one_stays(found: Judged) -> None:
    table = found.findings()
    dropped = set(table["path"])
    groups = pd.Series(groups_of(found), index=list(found.paths))
    left = groups[~groups.index.isin(dropped)]
    assert set(left) == set(groups)
    # What a finding names as the reason is in the same group.
    for path, other in zip(table["path"], table["related"], strict=True):
        assert groups[path] == groups[other]


@given(graphs(), st.randoms())
@settings(deadline=None, max_examples=30)
def test_groups_are_what_copies_connect(found: Judged, random: object) -> None:
    groups = groups_of(found)
    hashes = found.measured["sha256"].tolist()
    for a, b in zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True):
        assert groups[a] == groups[b]
    for i, digest in enumerate(hashes):
        assert groups[i] == groups[hashes.index(digest)]
    links = {(hashes[a], hashes[b]) for a, b in zip(found.pairs.first, found.pairs.second)}  # noqa: B905
    assert len(set(groups)) >= len(set(hashes)) - len(links)


def test_groups_join_across_labels_and_leave_others_alone() -> None:
    found = judged(
        [MALE, FEMALE, MALE, FEMALE, MALE],
        near=[(0, 1, 0.97), (1, 3, 0.97)],
        sha256=["a", "b", "c", "d", "c"],
    )
    groups = groups_of(found)
    assert groups[0] == groups[1] == groups[3]
    assert groups[2] == groups[4] != groups[0]


def test_groups_are_numbered_by_name_whatever_the_order_of_rows() -> None:
    found = judged([MALE] * 4, ["a", "b", "c", "d"], [(1, 2, 0.97)], sha256=["x", "y", "z", "x"])
    turned = judged([MALE] * 4, ["d", "c", "b", "a"], [(1, 2, 0.97)], sha256=["x", "z", "y", "x"])
    assert groups_of(found) == ["000000", "000001", "000001", "000000"]
    assert groups_of(turned) == groups_of(found)[::-1]


def test_files_without_bytes_are_no_group_and_known_groups_join() -> None:
    found = judged([MALE] * 5, sha256=["", "", "", "a", "b"])
    assert groups_of(found) == [f"{i:06d}" for i in range(5)]
    joined = groups_of(found, ["", "anna", "boris", "anna", ""])
    assert joined == ["000000", "000001", "000002", "000001", "000004"]
    assert group_copies([], [], found.pairs) == []


def test_the_worst_comes_first() -> None:
    found = judged(
        [MALE, FEMALE, MALE, FEMALE, MALE, MALE],
        near=[(4, 5, 0.97)],
        label_scores=[0.99, 0.6, 0, 0, 0, 0],
        outlier_scores=[0, 0.6, 1, 0, 0, 0],
        dark=[0, 0, 0, 0.6, 0, 0],
        faces=[-1, 1, 0, 2, 1, 1],
    )
    table = found.findings()
    assert table["score"].is_monotonic_decreasing
    assert table["issue"].tolist() == [
        "not_a_face",
        "label",
        "near_duplicate",
        "label",
        "not_a_face",
        "dark",
        "no_face_found",
        "several_faces",
    ]
    assert "one of 2 faces" in table["suggestion"].iloc[-1]
    assert set(table["issue"]) <= set(HEADINGS)


def test_a_label_finding_says_what_the_picture_looks_like() -> None:
    table = judged([MALE, FEMALE], label_scores=[0.9, 0.8]).findings()
    assert table["looks_like"].tolist() == ["female", "male"]
    assert table["label"].tolist() == ["male", "female"]
    assert "female" in table["suggestion"].iloc[0]


def test_clean_leaves_everything_else_as_it_was() -> None:
    index = pd.DataFrame(
        {
            "note": ["x", "", "z, w", "q"],
            "path": ["d", "b", "a", "c"],
            "split": ["val", "train", "test", "train"],
            "label": [1, 0, 1, 0],
        }
    )
    findings = pd.DataFrame({"path": ["b", "a", "a", "other"], "score": [0.5, 0.49, 0.1, 1.0]})
    kept = clean(index, findings, 0.5)
    assert kept.to_dict("list") == index.drop(index=1).to_dict("list")
    assert list(kept.columns) == list(index.columns)
    assert clean(index, findings, 0.1)["path"].tolist() == ["d", "c"]
    assert clean(index, findings, 0.51).equals(index)
    assert len(index) == 4


# ---- Embeddings


@given(
    groups=st.lists(st.sampled_from([f"{i:06d}" for i in range(30)]), min_size=1, max_size=60),
    folds=st.integers(2, 9),
    seed=st.integers(-5, 2**40),
    random=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=40)
def test_folds_keep_groups_together_whatever_the_order(
    groups: list[str], folds: int, seed: int, random: object
) -> None:
    found = fold_of(groups, folds, seed)
    assert found.min() >= 0 and found.max() < folds
    of = dict(zip(groups, found.tolist(), strict=True))
    assert [of[group] for group in groups] == found.tolist()
    order = list(range(len(groups)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert fold_of([groups[i] for i in order], folds, seed).tolist() == found[order].tolist()


def test_folds_are_about_equal_and_another_seed_gives_others() -> None:
    groups = [f"{i:06d}" for i in range(2000)]
    first, second = fold_of(groups, 5, 0), fold_of(groups, 5, 1)
    assert np.bincount(first).min() > 320
    assert np.mean(first == second) < 0.3


def blobs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and folds of two clouds that can just be told apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = random.normal(size=(count, 6)) + labels[:, None] * 1.5
    return features.astype(np.float16), labels, random.integers(0, 4, count)


def test_the_label_of_a_picture_has_no_say_in_its_own_answer() -> None:
    features, labels, folds = blobs(60)
    answers = out_of_fold(features, labels, folds)
    assert np.isfinite(answers).all()
    for row in range(0, 60, 7):
        flipped = labels.copy()
        flipped[row] = 1 - flipped[row]
        others = out_of_fold(features, flipped, folds)
        same_fold = folds == folds[row]
        assert (others[same_fold] == answers[same_fold]).all()
        assert (others[~same_fold] != answers[~same_fold]).any()


def test_answers_tell_the_clouds_apart_and_add_up_to_one() -> None:
    features, labels, folds = blobs(200)
    answers = out_of_fold(features, labels, folds)
    assert np.mean(answers.argmax(axis=1) == labels) > 0.9
    assert answers.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_rows_that_are_not_finite_have_no_answer_and_no_say() -> None:
    features, labels, folds = blobs(80)
    gone = np.arange(80) % 5 == 0
    features[gone, 2] = np.nan
    found = out_of_fold(features, labels, folds)
    assert np.isnan(found).all(axis=1).tolist() == gone.tolist()
    again = out_of_fold(features, np.where(gone, 1 - labels, labels), folds)
    assert np.array_equal(again, found, equal_nan=True)


def test_a_fold_that_leaves_one_class_has_no_answer() -> None:
    features, labels, _ = blobs(20)
    alone = out_of_fold(features, labels, np.zeros(20, dtype=int))
    assert np.isnan(alone).all()
    one_class = out_of_fold(features, labels * 0, np.arange(20) % 4)
    assert np.isnan(one_class).all()


def test_pictures_that_a_checkpoint_has_seen_are_told() -> None:
    hashes = [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)]
    checkpoint = make_checkpoint(seen_hashes=hash64(hashes[1:3]))
    told = seen_by(checkpoint, [*hashes, ""], ["a", "b", "c", "d", "e"])
    assert told.tolist() == [False, True, True, False, False]
    # A re-encoded copy of a picture that it has seen lies in that one's group.
    told = seen_by(checkpoint, [*hashes, ""], ["a", "b", "c", "b", "e"])
    assert told.tolist() == [False, True, True, True, False]


@pytest.mark.usefixtures("two_and_three_threads")
def test_the_hash_of_weights_is_that_of_their_bits_for_any_threads() -> None:
    net = make_checkpoint()
    numbers = torch.linspace(-1, 1, 500_001)
    first = hash_weights(replace(net, weights={"a": numbers, "n": torch.tensor(3)}))
    torch.set_num_threads(1)
    assert first == hash_weights(replace(net, weights={"n": torch.tensor(3), "a": numbers.clone()}))
    # Which leaves the sum as it is.
    numbers[[0, -1]] = numbers[[-1, 0]]
    assert first != hash_weights(replace(net, weights={"a": numbers, "n": torch.tensor(3)}))


def test_every_picture_has_its_own_embedding_and_a_bad_one_none(tmp_path: Path) -> None:
    make_faces(tmp_path, 6, 5)
    (tmp_path / "male" / "m_2.jpg").write_bytes(b"")
    table, source, _ = list_pictures(tmp_path)
    seen: list[int] = []
    found = embed_all(make_checkpoint(), table, source, 1, seen.append)
    features = found["final"]
    # Of three convolutions, the first two.
    assert (found["early"].shape[1], features.shape[1]) == (32 + 64, 412)
    assert (features.dtype, len(features), sum(seen)) == (np.float16, 11, 11)
    bad = (table["path"] == "male/m_2.jpg").to_numpy()
    assert np.isnan(features[bad]).all()
    assert np.isfinite(features[~bad]).all()
    assert len(np.unique(features[~bad], axis=0)) == 10
    order = np.random.default_rng(0).permutation(11)
    shuffled = embed_all(make_checkpoint(), table.iloc[order], source, 1, int)["final"]
    assert np.allclose(shuffled, features[order], atol=2e-3, equal_nan=True)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each training and evaluation of a fold was to show its progress; none does."""
    found: list[bool] = []

    def noted(real: Callable[..., Any], *values: object, **options: Any) -> Any:
        found.append(options["progress"])
        return real(*values, **{**options, "progress": False})

    for real in (embeddings.train, embeddings.evaluate):
        monkeypatch.setattr(embeddings, real.__name__, partial(noted, real))
    return found


def test_a_recipe_trained_without_a_fold_answers_for_that_fold_alone(
    faces: Path, tmp_path: Path, shown: list[bool]
) -> None:
    table = list_pictures(faces)[0]
    held_out = np.arange(len(table)) % 4 == 0
    recipe = get_recipe("compact_cnn", epochs=3, batch_size=4, learning_rate=1e-3)
    before = snapshot(tmp_path)
    answers = train_fold(
        recipe, table, FolderSource(faces), held_out, tmp_path / "fold", 0, 0, True
    )
    assert shown == [True, True]
    assert np.isfinite(answers).all(axis=1).tolist() == held_out.tolist()
    assert (answers[held_out].argmax(axis=1) == table["label"][held_out]).all()
    assert not (tmp_path / "fold").exists()
    assert snapshot(tmp_path) == before


def test_an_interrupted_training_leaves_no_files(
    faces: Path, tmp_path: Path, shown: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        assert (tmp_path / "fold" / "compact_cnn" / "best.pth").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("face_gender.audit.embeddings.evaluate", interrupt)
    table = list_pictures(faces)[0]
    recipe = get_recipe("compact_cnn", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train_fold(
            recipe,
            table,
            FolderSource(faces),
            np.arange(40) % 4 == 0,
            tmp_path / "fold",
            -1,
            0,
            False,
        )
    assert shown == [False]
    assert not (tmp_path / "fold").exists()


# ---- Labels

PLANTED = [7, 30, 61]


def clear_answers(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and answers that are sure of them, most of all in PLANTED."""
    labels = np.arange(count) % 2
    right = np.random.default_rng(seed).uniform(0.9, 0.98, count)
    right[[row for row in PLANTED if row < count]] = 0.99
    answers = np.where(labels[:, None] == [0, 1], right[:, None], 1 - right[:, None])
    return labels, answers.astype(np.float32)


def test_just_the_planted_flips_are_suspects() -> None:
    labels, answers = clear_answers(100)
    labels[PLANTED] = 1 - labels[PLANTED]
    scores = label_scores(labels, answers)
    assert np.flatnonzero(scores).tolist() == PLANTED
    assert scores[PLANTED] == pytest.approx([0.99] * 3)


def test_right_labels_are_no_suspects() -> None:
    assert not label_scores(*clear_answers(60)).any()


def test_what_was_not_judged_is_no_suspect() -> None:
    labels, answers = clear_answers(100)
    labels[PLANTED] = 1 - labels[PLANTED]
    answers[30] = np.nan
    answers[40:60] = np.nan
    assert np.flatnonzero(label_scores(labels, answers)).tolist() == [7, 61]


@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_few_answers_none_or_of_one_class_end_in_no_error(
    count: int, recwarn: pytest.WarningsRecorder
) -> None:
    labels, answers = clear_answers(count)
    assert label_scores(labels, answers).tolist() == [0] * count
    assert not label_scores(labels, np.full_like(answers, np.nan)).any()
    assert not label_scores(np.zeros_like(labels), answers).any()
    assert not recwarn.list


# ---- Outliers


def cloud(count: int, features: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float16)


def test_rows_far_from_the_others_are_outliers() -> None:
    embedded, far = cloud(300), [5, 100, 250]
    embedded[far] += 12
    scores = outlier_scores([embedded], np.ones(300, dtype=bool))
    assert scores[far].min() >= 0.5
    assert (np.delete(scores, far) > 0).sum() <= 3
    assert scores.max() <= 1


def test_an_outlier_to_one_net_of_two_counts_less() -> None:
    embedded, other = cloud(300), cloud(300, seed=1)
    embedded[5] += 12
    every = np.ones(300, dtype=bool)
    assert 0 < outlier_scores([embedded, other], every)[5] < outlier_scores([embedded], every)[5]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clean_cloud_has_next_to_no_outliers(seed: int) -> None:
    scores = outlier_scores([cloud(1000, seed=seed)], np.ones(1000, dtype=bool))
    assert (scores > 0).sum() <= 10
    assert (scores >= 0.5).sum() <= 2


def test_fewer_than_fifty_pictures_have_no_shape() -> None:
    embedded = cloud(60)
    embedded[0] += 50
    assert outlier_scores([embedded], np.ones(60, dtype=bool))[0] > 0
    assert not outlier_scores([embedded], np.arange(60) < 49).any()
    assert not outlier_scores([], np.ones(60, dtype=bool)).any()


def test_unreadable_pictures_are_neither_outliers_nor_in_the_way() -> None:
    embedded, good = cloud(120), np.arange(120) % 3 != 0
    far = 4
    embedded[far] += 12
    whole = outlier_scores([embedded[good]], np.ones(80, dtype=bool))
    embedded[~good] = np.nan
    scores = outlier_scores([embedded], good)
    assert not scores[~good].any()
    assert scores[good] == pytest.approx(whole, abs=1e-4)
    # Also where they became so after they were measured.
    assert outlier_scores([embedded], np.ones(120, dtype=bool)) == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("different", [0, 5])
def test_copies_of_one_picture_alone_end_in_no_error(different: int) -> None:
    embedded = np.ones((80, 6), dtype=np.float16)
    embedded[:different] = cloud(different, 6)
    scores = outlier_scores([embedded], np.ones(80, dtype=bool))
    assert np.isfinite(scores).all()
    assert not scores[different:].any()


def test_an_outlier_of_more_features_than_pictures_is_found_too() -> None:
    embedded = cloud(60, 200)
    embedded[7] += 12
    assert np.flatnonzero(outlier_scores([embedded], np.ones(60, dtype=bool))).tolist() == [7]


def test_blur_effect_grows_with_blur_and_is_nothing_for_one_colour() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 7, 3), dtype=np.uint8)
    sharp = Image.fromarray(noise).resize((98, 112), Image.Resampling.NEAREST)
    effects = [
        max(
            blur_effect(sharp.filter(ImageFilter.GaussianBlur(radius)), side, length)
            for side, length in ((128, 11), (32, 7))
        )
        for radius in (0, 1, 3, 6)
    ]
    assert effects == sorted(effects)
    assert effects[0] < 0.3 and effects[-1] > BLURRED
    assert blur_effect(Image.new("RGB", (50, 60), "red"), 128, 11) == 0
    assert 0 <= blur_effect(Image.new("RGB", (1, 1)), 32, 7) <= 1
