"""Give the pictures of an index a teacher's answers: a column ``teacher`` to distil from.

python -m tools.teacher INDEX OUT DESCRIPTORS...

Logistic regression on the descriptors of tools.descriptors answers male or female, one for each
source. Each picture of the train split is answered by one of five fits that has not seen it, nor
its group; no other split is touched but to print how good the teacher is on val. ``teacher`` is
the probability of female, empty where there is no descriptor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from face_gender.data.tables import read_index, write_index


def read_descriptors(paths: list[Path]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the descriptor (128,) of every picture that tools.descriptors was given, by name."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for path in paths:
        part = np.load(path)
        found.update(zip(map(str, part["names"]), part["descriptors"], strict=True))
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("descriptors", type=Path, nargs="+")
    options = parser.parse_args()
    table = read_index(options.index)
    descriptors = read_descriptors(options.descriptors)
    table["teacher"] = ""
    described = table[table["path"].isin(descriptors)]
    for source, rows in described.groupby("source"):
        train, val = (rows[rows["split"] == split] for split in ("train", "val"))
        on_train, on_val = (
            np.stack([descriptors[path] for path in part["path"]]) for part in (train, val)
        )
        teacher = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        answers = cross_val_predict(
            teacher, on_train, train["label"], groups=train["group"],
            cv=GroupKFold(5), method="predict_proba",
        )  # fmt: skip
        right = (answers.argmax(1) == train["label"]).mean()
        print(f"{source} train, by fits that have not seen it: {right:.4f}, n = {len(train)}")
        teacher.fit(on_train, train["label"])
        print(f"{source} val: {teacher.score(on_val, val['label']):.4f}, n = {len(val)}")
        table.loc[train.index, "teacher"] = [f"{female:.5f}" for female in answers[:, 1]]
    write_index(table, options.out)


if __name__ == "__main__":
    main()
