"""Make the one index that the shipped weights are trained and tested on.

python -m tools.sources DATA

DATA holds utkface/, celeba64/, aaf/, appa/, mebeauty/, twfy/ and celeba_half/, each with female/
and male/, some with unsure/ and labels.csv (path, and group, age, teacher_male where known).

DATA/index.csv: path, label, split, sha256, group, source, age, teacher, known. Pictures of one
group lie in one split, 70/15/15 by the group's hash. UTKFace's and CelebA-64's pictures that the
earlier weights had not seen (--earlier) are their test split; of the others one in twelve
validates. UTKFace's children under 4 years and the same bytes under two labels are left out.
``teacher`` is the probability of female: 1 - teacher_male where labels.csv has it, else the column
of --teacher (path,female). A picture of unsure/ has its label from there, and ``known`` is no.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from face_gender.console import run_command
from face_gender.data.tables import write_index
from face_gender.files import sha256_of
from face_gender.model.checkpoint import as_int64, read_checkpoint

SOURCES = ("utkface", "celeba64", "aaf", "appa", "mebeauty", "twfy", "celeba_half")
OF_THE_EARLIER_WEIGHTS = ("utkface", "celeba64")
LABELS = {"male": 0, "female": 1, "unsure": -1}


def fraction(text: str) -> float:
    """Return a number from 0 to 1 that depends on a text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def rows_of(data: Path, source: str) -> pd.DataFrame:
    """Return path, label, sha256, group, age and teacher of one source's pictures."""
    paths = sorted((data / source).rglob("*.jpg"))
    rows = pd.DataFrame({"path": [path.relative_to(data).as_posix() for path in paths]})
    rows["source"] = source
    rows["label"] = rows["path"].str.split("/").str[1].map(LABELS)
    rows["sha256"] = [sha256_of(path) for path in paths]
    known = data / source / "labels.csv"
    nothing = pd.DataFrame({"path": []}, dtype=str)
    table = pd.read_csv(known, dtype=str) if known.exists() else nothing
    table["path"] = f"{source}/" + table["path"].str.removeprefix(f"{source}/")
    columns = [name for name in ("path", "group", "age", "teacher_male") if name in table]
    rows = rows.merge(table[columns], on="path", how="left").reindex(
        columns=[*rows, "group", "age", "teacher_male"]
    )
    groups = rows["group"].map(lambda group: f"{source}:{group}", na_action="ignore")
    rows["group"] = groups.astype(object).fillna(rows["sha256"])
    if source == "utkface":  # named age_gender_race_date
        rows["age"] = rows["path"].str.split("/").str[-1].str.split("_").str[0]
    rows["age"] = pd.to_numeric(rows["age"], errors="coerce")
    rows["teacher"] = 1 - pd.to_numeric(rows.pop("teacher_male"), errors="coerce")
    if source == "utkface":
        rows = rows[rows["age"] > 3]
    one_label = rows.groupby("sha256")["label"].transform("nunique") == 1
    return rows[one_label].drop_duplicates("sha256")


def split_of(rows: pd.DataFrame, seen: set[int]) -> list[str]:
    """Return the split of each row, by what the earlier weights have seen, or by its group."""
    if rows["source"].iloc[0] in OF_THE_EARLIER_WEIGHTS and seen:
        return [
            "test" if as_int64(sha256) not in seen
            else "val" if fraction(f"{group}new") < 0.08
            else "train"
            for sha256, group in zip(rows["sha256"], rows["group"], strict=True)
        ]  # fmt: skip
    drawn = [fraction(group) for group in rows["group"]]
    splits = ["train" if each < 0.7 else "val" if each < 0.85 else "test" for each in drawn]
    return [
        "train" if label < 0 else split
        for label, split in zip(rows["label"], splits, strict=True)
    ]  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Write the index."""
    found = read_checkpoint(options.earlier).seen_hashes if options.earlier else None
    seen = set() if found is None else set(found.tolist())
    parts = []
    for source in SOURCES:
        rows = rows_of(options.data, source)
        parts.append(rows.assign(split=split_of(rows, seen)))
    index = pd.concat(parts, ignore_index=True)
    if options.teacher:
        female = pd.read_csv(options.teacher).set_index("path")["female"]
        index["teacher"] = index["teacher"].fillna(index["path"].map(female))
    is_known = index["label"] >= 0
    index["teacher"] = index["teacher"].fillna(index["label"].where(is_known, np.nan))
    is_sure = index["teacher"].sub(0.5).abs() >= 0.2
    index["known"] = np.where(is_known, "yes", "no")
    index["label"] = index["label"].where(is_known, index["teacher"].gt(0.5).astype(int))
    index = index[is_known | is_sure].astype({"label": int}).reset_index(drop=True)
    write_index(index, options.data / "index.csv")
    print(index.groupby(["source", "split", "label"]).size().unstack())


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--earlier", type=Path, help="the earlier weights")
    parser.add_argument("--teacher", type=Path, help="CSV path,female")
    options = parser.parse_args()
    return run_command("sources", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
