"""Make the one index that the shipped weights are trained and tested on.

python -m tools.sources DATA --audit AUDIT

DATA holds utkface/ and celeba64/, each with male/ and female/, and where they are at hand scut_dev/
and officials/. AUDIT is what `python -m face_gender.audit DATA/utkface --output AUDIT` wrote, or
the same of the archive utkface.zip.

DATA/index.csv: UTKFace, each group of near-duplicates in one split, and CelebA-64, each person in
one split (celeba64/labels.csv), both split 70/15/15 by seed 0. Photographs that lie under both
labels are left out. Columns: source, age (a band, in years) and race, as UTKFace's names give them.
DATA/children.csv: those of 0 to 3 years, whose sex few can tell, out of UTKFace's test split; those
of the other splits are left out.
DATA/unseen.csv: scut_dev and officials, all of it test: sources that nothing is trained or chosen
on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd

from face_gender.data.index import Index
from face_gender.data.tables import write_index
from face_gender.errors import InputError

BANDS = {0: "0-3", 4: "4-12", 13: "13-19", 20: "20-29", 30: "30-44", 45: "45-59", 60: "60-116"}
RACES = ("White", "Black", "Asian", "Indian", "other")
UNSEEN = ("scut_dev", "officials")
CONTRADICTIONS = ("duplicate_other_label", "near_duplicate_other_label")


def indexed(folder: Path, groups: Path | None = None) -> pd.DataFrame:
    """Return the rows of one source, with paths relative to what holds its folder."""
    with tempfile.TemporaryDirectory() as scratch:
        if groups is not None:  # with paths relative to the source's own folder
            table = pd.read_csv(groups, dtype=str)
            table["path"] = table["path"].str.removeprefix(f"{folder.name}/")
            groups = Path(scratch) / "groups.csv"
            table.to_csv(groups, index=False)
        index = Index.create(folder, Path(scratch) / "index.csv", groups=groups)
        print(f"{folder.name}: {index.summary()}")
    rows = index.table.assign(source=folder.name, age="", race="")
    rows["path"] = folder.name + "/" + rows["path"]
    if groups is not None:
        rows["group"] = [f"{folder.name}:{group}" if group else "" for group in rows["group"]]
    return rows


def with_ages(rows: pd.DataFrame) -> pd.DataFrame:
    """Fill ``age`` and ``race`` from UTKFace's names: age_gender_race_date."""
    fields = [Path(path).name.split("_") for path in rows["path"]]
    ages = [int(each[0]) for each in fields]
    bands = [BANDS[max(first for first in BANDS if first <= age)] for age in ages]
    races = [RACES[int(each[2])] if each[2] in set("01234") else "" for each in fields]
    return rows.assign(age=bands, race=races)


def utkface(folder: Path, audit: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return UTKFace without contradictory copies, and the test split's children of 0 to 3."""
    rows = with_ages(indexed(folder, audit / "groups.csv"))
    findings = pd.read_csv(audit / "audit.csv", dtype=str)
    wrong = findings[findings["issue"].isin(CONTRADICTIONS)]
    related = [path for cell in wrong["related"].dropna() for path in cell.split("|")]
    # An audit of the folder, and not of an archive of it, names no folder.
    named = {f"{folder.name}/{path.removeprefix(f'{folder.name}/')}" for path in
             (*wrong["path"], *related)}  # fmt: skip
    rows = rows[~rows["path"].isin(named)]
    small = rows["age"] == "0-3"
    return rows[~small], rows[small & (rows["split"] == "test")]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--audit", type=Path, required=True)
    options = parser.parse_args()
    data = options.data
    try:
        celeba = indexed(data / "celeba64", data / "celeba64" / "labels.csv")
        others, children = utkface(data / "utkface", options.audit)
        rows = pd.concat([others, celeba], ignore_index=True)
        write_index(rows, data / "index.csv")
        write_index(children, data / "children.csv")
        folders = [data / name for name in UNSEEN if (data / name).is_dir()]
        if folders:
            unseen = pd.concat([indexed(each) for each in folders], ignore_index=True)
            write_index(unseen.assign(split="test"), data / "unseen.csv")
    except (InputError, OSError) as error:
        print(f"sources.py: {error}", file=sys.stderr)
        return 1
    print(rows.groupby(["source", "split", "label"]).size().unstack())
    return 0


if __name__ == "__main__":
    sys.exit(main())
