"""The stages of an audit in turn, each done once and kept: from pictures to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from face_gender import CLASSES
from face_gender.audit import duplicates, embeddings, labels, outliers, pictures
from face_gender.audit.findings import Judged
from face_gender.audit.inputs import AuditInput
from face_gender.audit.stages import Arrays, Stages, key_of
from face_gender.console import progress_bar
from face_gender.data.landmarks import COLUMNS, COORDINATES, coordinates_of, find_landmarks
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import Source
from face_gender.model.checkpoint import Checkpoint
from face_gender.model.recipes import Recipe


@dataclass(frozen=True)
class Judgement:
    """What n pictures were judged to be.

    ``groups`` (n,): copies of one another share one; ``probabilities`` (n, 2) float32, out of
    fold, NaN where there are none; ``seen`` (n,) bool: a net was trained on it or on a copy.
    """

    judged: Judged
    groups: list[str]
    probabilities: npt.NDArray[np.float32]
    seen: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Judge:
    """Judges ``given`` with ``jobs`` threads; what is finished lies in ``stages``."""

    given: AuditInput
    stages: Stages
    jobs: int
    seed: int
    folds: int
    progress: bool

    def judge(self, checkpoints: Sequence[Checkpoint], recipe: Recipe | None) -> Judgement:
        """Judge by the embeddings of the nets; labels by ``recipe``, trained in folds, if named."""
        table, names = self.given.table, self.given.table["path"].tolist()
        truth = table["label"].to_numpy(dtype=np.int64)
        measured = self._measured(names)
        # "" of what is no picture: the stages that follow are others once it is one.
        hashes = np.where(measured["reason"] == "", measured["sha256"], "").tolist()
        aligns = any(net.preprocessing.aligns for net in checkpoints)
        judge = self
        if aligns and not all(name in table for name in COLUMNS):
            judge = self._with_faces(names, hashes)
        pairs = judge._pairs(names, measured, hashes)
        groups = duplicates.group_copies(names, hashes, pairs, list(table.get("group", [])))
        embedded = [judge._embedded(i, net, hashes) for i, net in enumerate(checkpoints)]
        folds = embeddings.fold_of(groups, self.folds, self.seed)
        if recipe is None:
            each = [embeddings.out_of_fold(found["final"], truth, folds) for found in embedded]
            probabilities = np.mean(each, axis=0)
        else:
            probabilities = judge._by_training(recipe, truth, folds, hashes)
        good = measured["reason"] == ""
        label_scores = labels.label_scores(truth, probabilities)
        far = outliers.outlier_scores([found["early"] for found in embedded], good)
        judged = Judged(names, truth, measured, pairs, label_scores, far, judge.given.faces)
        seen = [embeddings.seen_by(net, hashes, groups) for net in checkpoints]
        return Judgement(judged, groups, probabilities, np.any(seen, axis=0))

    def _measured(self, names: Sequence[str]) -> dict[str, npt.NDArray]:
        source = self.given.source
        # Names and not contents: these are read here. A changed size or date is another file.
        key = key_of(source.path, *names, *(_stamp(source, each) for each in names))

        is_kept = True

        def make() -> Arrays:
            nonlocal is_kept
            is_kept = False
            with progress_bar(len(names), "pictures", shown=self.progress) as bar:
                return pictures.measure_all(source, names, self.jobs, bar.update)

        found = self.stages.get("pictures", key, make)
        # Looked at again: a decoder may have come, or a permission, which no stamp shows.
        bad = np.flatnonzero(found["reason"] != "").tolist()
        if not bad or not is_kept:
            return found
        again = pictures.measure_all(source, [names[i] for i in bad], self.jobs, int)
        for name, values in again.items():
            # As wide as the longer text of both.
            found[name] = found[name].astype(np.result_type(found[name], values))
            found[name][bad] = values
        return found

    def _with_faces(self, names: Sequence[str], hashes: Sequence[str]) -> Judge:
        """Return a judge whose pictures have landmarks, found once."""

        def make() -> Arrays:
            found = find_landmarks(self.given.source, names, self.progress)
            faces = found["faces"].fillna(-1).to_numpy(np.int64)  # -1: cannot be read
            return {"faces": faces, "coordinates": found[list(COORDINATES)].to_numpy(np.float32)}

        good = _good(hashes)
        found = self.stages.get(
            "faces", key_of(*hashes), make, lambda each: (each["faces"][good] >= 0).all()
        )
        columns = dict(zip(COORDINATES, found["coordinates"].T, strict=True))
        table = self.given.table.assign(faces=found["faces"], **columns)
        return replace(self, given=replace(self.given, table=table))

    def _pairs(
        self, names: Sequence[str], measured: Mapping[str, npt.NDArray], hashes: Sequence[str]
    ) -> duplicates.Pairs:
        """Compare one picture of each content; blank ones would all resemble each other."""
        first_of: dict[str, int] = {}
        for row in sorted(range(len(names)), key=names.__getitem__):
            if hashes[row] and measured["blank"][row] < 0.5:
                first_of.setdefault(hashes[row], row)
        # By name: what just counts as the same photograph depends a little on who comes first.
        rows = np.array(list(first_of.values()), dtype=np.int64)

        def make() -> Arrays:
            prints = measured["fingerprints"][rows]
            with progress_bar(len(rows), "near-duplicates", shown=self.progress) as bar:
                found = duplicates.near_duplicates(prints, self.jobs, bar.update)
            first, second = rows[found.first], rows[found.second]
            return {
                "first": np.minimum(first, second),
                "second": np.maximum(first, second),
                "agreement": found.agreement,
                "mirrored": found.mirrored,
            }

        key = key_of(*hashes)
        return duplicates.Pairs(**self.stages.get("near_duplicates", key, make))

    def _embedded(
        self, number: int, checkpoint: Checkpoint, hashes: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float16]]:
        weights = embeddings.hash_weights(checkpoint)
        faces = self._coordinates(checkpoint.preprocessing)
        key = key_of(hashes, checkpoint.recipe.arch, checkpoint.preprocessing, weights, faces)

        def make() -> Arrays:
            table, source = self.given.table, self.given.source
            with progress_bar(len(hashes), "embeddings", shown=self.progress) as bar:
                return embeddings.embed_all(checkpoint, table, source, self.jobs, bar.update)

        good = _good(hashes)
        return self.stages.get(
            f"embeddings_{number}", key, make, lambda each: np.isfinite(each["final"][good]).all()
        )

    def _by_training(
        self,
        recipe: Recipe,
        truth: npt.NDArray[np.int64],
        folds: npt.NDArray[np.int64],
        hashes: Sequence[str],
    ) -> npt.NDArray[np.float32]:
        good = _good(hashes)
        table = self.given.table.iloc[good].assign(sha256=[hashes[row] for row in good])
        probabilities = np.full((len(truth), len(CLASSES)), np.nan, dtype=np.float32)
        faces = self._coordinates(recipe.preprocessing)
        known = hashes, truth.tolist(), recipe, folds.tolist(), self.seed, faces
        for fold in np.unique(folds[good]).tolist():
            held_out = folds[good] == fold
            key = key_of(*known, fold)

            def make(held_out: npt.NDArray[np.bool_] = held_out, fold: int = fold) -> Arrays:
                folder = self.stages.folder / f"training_{fold}"
                source = self.given.source
                made = embeddings.train_fold(
                    recipe, table, source, held_out, folder, self.seed, self.jobs, self.progress
                )
                return {"probabilities": made}

            found = self.stages.get(f"fold_{fold}", key, make)["probabilities"]
            probabilities[good[held_out]] = found[held_out]
        return probabilities

    def _coordinates(self, preprocessing: Preprocessing) -> list[list[float]]:
        """Return where the faces are that a net is shown, nothing where it is shown no faces."""
        if not preprocessing.aligns or not all(name in self.given.table for name in COLUMNS):
            return []
        found: list[list[float]] = coordinates_of(self.given.table).tolist()
        return found


def _good(hashes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the rows of pictures that could be read, and so are to be in every stage."""
    return np.array([row for row, each in enumerate(hashes) if each], dtype=np.int64)


def _stamp(source: Source, name: str) -> tuple[int, int]:
    """Return another pair where a picture is another; (0, 0) for one that is gone."""
    with suppress(OSError):
        return source.stamp(name)
    return 0, 0
