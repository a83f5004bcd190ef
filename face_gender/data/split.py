"""Which picture is for training, validation or test: drawn once, by content and group."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender import CLASSES
from face_gender.errors import InputError

SPLITS = ("train", "val", "test")


def split_rows(table: pd.DataFrame, fractions: Sequence[float], seed: int) -> npt.NDArray[np.str_]:
    """Return "train", "val" or "test" for every row, stratified by label.

    Rows that share ``sha256`` or a non-empty ``group`` form one unit, and units are dealt out
    whole: those of both labels first, then the largest first, equals in an order drawn from
    ``seed`` and their content. Each goes where the fraction of the places filled is smallest
    (Webster's method), which meets the exact quota with single pictures and stays proportional
    with large groups; while a class has only as many units left as it has empty splits, it goes
    to one of these. Raises InputError where a class has fewer units than splits.
    """
    labels, hashes = table["label"].tolist(), table["sha256"].tolist()
    units = connected(hashes, *([table["group"].tolist()] if "group" in table else []))
    counts = [_count(labels, rows) for rows in units]
    keys = [_key(seed, min(hashes[row] for row in rows)) for rows in units]
    # Were one label dealt out before, a unit of both might be owed to two splits at once.
    mixed = [min(count) > 0 for count in counts]
    order = sorted(range(len(units)), key=lambda i: (not mixed[i], -len(units[i]), keys[i]))
    used = [i for i, fraction in enumerate(fractions) if fraction > 0]
    totals = [sum(count[label] for count in counts) for label in (0, 1)]
    quota = [_quotas(total, [fractions[i] for i in used]) for total in totals]
    left = [sum(count[label] > 0 for count in counts) for label in (0, 1)]
    for label, units_left in enumerate(left):
        if 0 < units_left < len(used):
            raise InputError(
                f"class {CLASSES[label]} has only {units_left} groups of pictures that "
                f"belong together: {len(used)} splits need as many; add pictures or groups."
            )
    filled = [[0] * len(used) for _ in left]
    splits = [""] * len(labels)
    for unit in order:
        chosen = _choose(filled, quota, counts[unit], left)
        for label, count in enumerate(counts[unit]):
            filled[label][chosen] += count
            left[label] -= count > 0
        for row in units[unit]:
            splits[row] = SPLITS[used[chosen]]
    return np.array(splits, dtype="<U5")


def _count(labels: Sequence[int], rows: Sequence[int]) -> tuple[int, int]:
    """Return how many of the rows have label 0, and how many have label 1."""
    ones = sum(labels[row] for row in rows)
    return len(rows) - ones, ones


def _choose(
    filled: Sequence[Sequence[int]],
    quota: Sequence[Sequence[float]],
    count: tuple[int, int],
    left: Sequence[int],
) -> int:
    """Pick the split for a unit with ``count`` pictures of each label.

    ``filled`` and ``quota`` are by label, then by split; ``left`` are the units by label.
    """
    present = [label for label in (0, 1) if count[label]]
    levels = [
        [
            (taken + count[label] / 2) / max(places, 1e-9)
            for taken, places in zip(filled[label], quota[label], strict=True)
        ]
        for label in present
    ]
    if len(present) == 1:
        level = [each * count[present[0]] for each in levels[0]]
    else:  # numpy rounds a sum of products in its own way, by which ties have always been broken
        level = (np.array(levels).T @ np.array(count)).tolist()
    owed = [filled[label] for label in present if left[label] <= filled[label].count(0)]
    splits = range(len(level))
    if owed:
        return min((i for i in splits if any(row[i] == 0 for row in owed)), key=level.__getitem__)
    return min(splits, key=level.__getitem__)


def _quotas(total: int, fractions: Sequence[float]) -> list[float]:
    """Split ``total`` into whole numbers by largest remainder, each at least 1 if it can be."""
    exact = [total * fraction / sum(fractions) for fraction in fractions]
    quotas = [int(value) for value in exact]
    by_remainder = sorted(range(len(fractions)), key=lambda i: quotas[i] - exact[i])
    for i in by_remainder[: total - sum(quotas)]:
        quotas[i] += 1
    for i, quota in enumerate(quotas):
        if quota == 0 and max(quotas) > 1:
            quotas[quotas.index(max(quotas))] -= 1
            quotas[i] = 1
    return [float(quota) for quota in quotas]


def _key(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def connected(*columns: Sequence[str]) -> list[list[int]]:
    """Return the positions of each set of rows that a value, not "", of a column connects."""
    parent = list(range(len(columns[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for column in columns:
        first: dict[str, int] = {}
        for row, value in enumerate(column):
            if value != "" and first.setdefault(value, row) != row:
                parent[root(row)] = root(first[value])
    members: dict[int, list[int]] = {}
    for row in range(len(parent)):
        members.setdefault(root(row), []).append(row)
    return list(members.values())


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """Return the ratios of train, val and test. Raises InputError unless they add up to 100."""
    total = sum(ratios)
    finite = all(math.isfinite(ratio) for ratio in ratios)
    if len(ratios) != 3 or not finite or min(ratios) < 0 or ratios[0] == 0:
        raise InputError(
            f"ratios are three numbers for {', '.join(SPLITS)}, that of train above 0."
        )
    if abs(total - 100) > 1e-6 and abs(total - 1) > 1e-6:
        raise InputError(f"ratios must add up to 100, not to {total:g}: for example 70 15 15.")
    return tuple(ratios)
