"""The split keeps its promises: stratified, whole groups, by content and seed alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from face_gender.data.split import SPLITS, check_ratios, split_rows
from face_gender.errors import InputError

SHARES = (70, 15, 15)


def table_of(rows: Sequence[tuple[int, int, str]]) -> pd.DataFrame:
    """Make an index of (content, label, group) rows."""
    return pd.DataFrame(
        {
            "path": [f"{i:04}.jpg" for i in range(len(rows))],
            "label": np.array([label for _, label, _ in rows], dtype=np.int64),
            "sha256": [hashlib.sha256(str(content).encode()).hexdigest() for content, _, _ in rows],
            "group": [group for _, _, group in rows],
        }
    )


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Copies, groups, groups of both labels, and groups that copies connect."""
    contents = draw(st.lists(st.integers(0, 1), min_size=1, max_size=30))
    group = st.sampled_from(["", "", "", "anna", "boris", "vera", "gleb"])
    rows = [
        (content, label, draw(group))
        for content, label in enumerate(contents)
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4])))
    ]
    return table_of(draw(st.permutations(rows)))


def units_of(table: pd.DataFrame) -> list[int]:
    """Number the sets of rows that share content or group, by spreading the smallest number."""
    keys = [*zip(table["sha256"], table["group"], strict=True)]
    numbers, before = list(range(len(keys))), [-1]
    while numbers != before:
        before = numbers
        smallest: dict[str, int] = {}
        for number, (content, group) in sorted(zip(numbers, keys, strict=True), reverse=True):
            smallest[content] = smallest[group] = number
        numbers = [
            min(smallest[content], smallest[group] if group else len(keys))
            for content, group in keys
        ]
    return numbers


def units_by_label(table: pd.DataFrame) -> Counter[int]:
    units = {(unit, label) for unit, label in zip(units_of(table), table["label"], strict=True)}
    return Counter(label for _, label in units)


def just_enough(table: pd.DataFrame) -> pd.DataFrame:
    """Add single pictures until each class has the 3 units that a split needs."""
    units = units_by_label(table)
    rows = [(-2 * i - label - 1, label, "") for label in (0, 1) for i in range(3 - units[label])]
    more = table_of(rows)
    more["path"] = [f"more_{i}.jpg" for i in range(len(rows))]
    return pd.concat([table, more], ignore_index=True)


def by_path(table: pd.DataFrame, seed: int = 0) -> dict[str, str]:
    return dict(zip(table["path"], split_rows(table, SHARES, seed), strict=True))


@settings(deadline=None, max_examples=60)
@given(table=tables().map(just_enough), seed=st.integers(0, 5))
def test_same_bytes_and_same_group_never_straddle_and_no_class_is_missing(
    table: pd.DataFrame, seed: int
) -> None:
    table["split"] = split_rows(table, SHARES, seed)
    assert set(table["split"]) <= set(SPLITS)
    assert (table.groupby("sha256")["split"].nunique() == 1).all()
    assert (table[table["group"] != ""].groupby("group")["split"].nunique() == 1).all()
    assert (table.groupby("label")["split"].nunique() == 3).all()


@settings(deadline=None, max_examples=30)
@given(table=tables())
def test_class_with_fewer_units_than_splits_is_refused(table: pd.DataFrame) -> None:
    assume(min(units_by_label(table).values()) < 3)
    with pytest.raises(InputError, match="groups of pictures that belong together"):
        split_rows(table, SHARES, 0)


@settings(deadline=None, max_examples=40)
@given(table=tables().map(just_enough), data=st.data())
def test_split_depends_neither_on_the_order_of_rows_nor_on_names(
    table: pd.DataFrame, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(table))))
    assert by_path(table.iloc[list(order)].reset_index(drop=True)) == by_path(table)
    renamed = table.assign(path=table["path"].str.replace("0", "x"))
    assert split_rows(renamed, SHARES, 0).tolist() == split_rows(table, SHARES, 0).tolist()


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.tuples(st.integers(3, 150), st.integers(3, 150)),
    shares=st.tuples(*[st.integers(1, 98)] * 3),
    seed=st.integers(0, 2**32),
)
def test_single_pictures_are_stratified_within_one_of_the_quota(
    sizes: tuple[int, int], shares: tuple[int, int, int], seed: int
) -> None:
    rows = [(i, int(i >= sizes[0]), "") for i in range(sum(sizes))]
    table = table_of(rows)
    table["split"] = split_rows(table, shares, seed)
    for label, size in enumerate(sizes):
        counts = Counter(table.loc[table["label"] == label, "split"])
        assert all(counts[split] >= 1 for split in SPLITS)
        quotas = [size * share / sum(shares) for share in shares]
        if min(quotas) >= 1:
            assert all(abs(counts[s] - q) < 1 for s, q in zip(SPLITS, quotas, strict=True))


def test_groups_of_both_labels_leave_no_class_out_of_a_split() -> None:
    counts = {"both": (5, 2), "also both": (1, 6), "men": (5, 0), "women": (0, 8)}
    labels = [
        (g, label) for g, pair in counts.items() for label in (0, 1) for _ in range(pair[label])
    ]
    table = table_of([(i, label, group) for i, (group, label) in enumerate(labels)])
    for seed in range(10):
        table["split"] = split_rows(table, (80, 5, 15), seed)
        assert (table.groupby("label")["split"].nunique() == 3).all()


def test_one_seed_gives_one_split_and_other_seeds_give_others() -> None:
    table = table_of([(i, i % 2, "") for i in range(60)])
    assert by_path(table, 3) == by_path(table.copy(), 3)
    assert len({tuple(split_rows(table, SHARES, seed)) for seed in range(20)}) == 20


def test_large_groups_keep_the_shares_about() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 120)
    rows = [(i, 0, f"person {person}") for i, person in enumerate(np.repeat(range(120), sizes))]
    rows += [(-i - 1, 1, "") for i in range(100)]
    table = table_of(rows)
    table["split"] = split_rows(table, SHARES, 0)
    counts = table[table["label"] == 0]["split"].value_counts(normalize=True)
    assert [counts[split] for split in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_share_of_zero_leaves_its_split_empty() -> None:
    splits = split_rows(table_of([(i, i % 2, "") for i in range(20)]), (80, 20, 0), 0)
    assert Counter(splits.tolist()) == {"train": 16, "val": 4}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "ratios",
    [
        (70, 30),
        (50, 20, 20),
        (-10, 60, 50),
        (0, 50, 50),
        (1, 2, 3),
        (NAN, 50, 50),
        (INF, 0, 0),
    ],
)
def test_ratios_that_make_no_sense_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="ratios"):
        check_ratios(ratios)


def test_ratios_may_be_fractions_of_one() -> None:
    assert check_ratios((0.7, 0.15, 0.15)) == (0.7, 0.15, 0.15)
