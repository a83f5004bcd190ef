"""Give the pictures of an index a teacher's answers: a column ``teacher`` to distil from.

python -m tools.teacher INDEX DESCRIPTORS OUT

Logistic regression on the descriptors of tools.descriptors answers male or female. Each picture of
the train split is answered by one of five fits that has not seen it, nor its group; no other split
is touched but to print how good the teacher is on val. ``teacher`` is the probability of female,
empty where there is no descriptor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from face_gender.index import read_index, write_index


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("descriptors", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    table = read_index(options.index)
    found = np.load(options.descriptors)
    row_of = {str(name): i for i, name in enumerate(found["names"])}
    described = table["path"].isin(row_of)
    train = table[described & (table["split"] == "train")]
    val = table[described & (table["split"] == "val")]
    on_train, on_val = (
        found["descriptors"][[row_of[path] for path in rows["path"]]] for rows in (train, val)
    )
    teacher = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    answers = cross_val_predict(
        teacher, on_train, train["label"], groups=train["group"],
        cv=GroupKFold(5), method="predict_proba",
    )  # fmt: skip
    right = (answers.argmax(1) == train["label"]).mean()
    print(f"train, each picture by a fit that has not seen it: {right:.4f}, n = {len(train)}")
    teacher.fit(on_train, train["label"])
    print(f"val: {teacher.score(on_val, val['label']):.4f}, n = {len(val)}")
    table["teacher"] = ""
    table.loc[train.index, "teacher"] = [f"{probability:.5f}" for probability in answers[:, 1]]
    write_index(table, options.out)


if __name__ == "__main__":
    main()
