"""The whole audit: data in, tables and a page out."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from face_gender import CLASSES
from face_gender.audit import duplicates, embeddings, labels, outliers, pictures
from face_gender.audit.findings import COLUMNS, ISSUES, Judged, clean
from face_gender.audit.page import write_page
from face_gender.audit.stages import Arrays, Stages, key_of
from face_gender.console import Stderr
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.index import Index, list_pictures
from face_gender.data.sources import Source
from face_gender.data.split import split_rows
from face_gender.data.tables import read_cells, read_index, write_index
from face_gender.errors import InputError
from face_gender.files import check_output, cpu_count, make_folder
from face_gender.model.checkpoint import Checkpoint, read_checkpoint
from face_gender.model.recipes import Recipe, get_recipe

_WEIGHTS = Path(__file__).resolve().parents[2] / "model_weights"
# The page shows so many findings of an issue; audit.csv has them all.
_SHOWN = 2_000
_THUMBNAIL = (96, 96)
_RATIOS = (70, 15, 15)


@dataclass(frozen=True)
class AuditReport:
    """What an audit found and where it wrote it.

    ``findings``: the rows of audit.csv, and ``looks_like``; ``table``: the n pictures with
    ``path``, ``label``, ``sha256``, ``group``; ``answers`` (n, 2) float32: out-of-fold
    probabilities, NaN where there are none; ``source``: where the pictures are read from;
    ``files``: what was written; ``notes``: sentences on what could not be judged.
    """

    findings: pd.DataFrame
    table: pd.DataFrame
    answers: npt.NDArray[np.float32]
    source: Source
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def counts(self) -> pd.DataFrame:
        """Return the number of findings by issue (rows) and label."""
        counts = pd.crosstab(self.findings["issue"], self.findings["label"])
        present = [issue for issue in ISSUES if issue in counts.index]
        return counts.reindex(index=present, columns=list(CLASSES), fill_value=0)

    def summary(self) -> str:
        """Return the counts and what was written, as text of a few lines."""
        found = self.counts().to_string() if len(self.findings) else "nothing found"
        total = f"{len(self.table)} pictures, {len(self.findings)} findings"
        return "\n".join([found, *self.notes, total, *(f"wrote {path}" for path in self.files)])


@dataclass(frozen=True)
class _Input:
    """The pictures to audit; ``index``: the table that they were named in, None for a folder."""

    table: pd.DataFrame
    source: Source
    index: pd.DataFrame | None
    notes: tuple[str, ...] = ()


def audit(
    index_or_data: str | os.PathLike[str],
    output: str | os.PathLike[str] = "audit",
    weights: Sequence[str | os.PathLike[str]] = (),
    *,
    data: str | os.PathLike[str] | None = None,
    recipe: Recipe | str | None = None,
    apply: bool = False,
    score: float = 0.5,
    folds: int = 5,
    seed: int = 0,
    jobs: int | None = None,
    progress: bool = True,
) -> AuditReport:
    """Find what is wrong with a data set; write audit.csv, audit.html and groups.csv.

    ``index_or_data``: an index (its pictures beside it, or in ``data``), a folder that holds
    male/ and female/, or a .zip of one. ``weights``: checkpoints in whose embeddings pictures
    are judged, each by those that have not seen it; none: those that come with the kit.
    ``recipe``: train it in ``folds`` and judge labels by its answers instead. ``apply`` writes
    index_clean.csv too, without the pictures of findings of at least ``score``. ``jobs``: how
    many processors to use. What is finished lies in ``output``/stages and is not done again.
    Pictures are only read. Raises InputError.
    """
    output, given = Path(output), _open(index_or_data, data)
    _check(output, Path(index_or_data), folds, score, jobs)
    checkpoints = _load(weights)
    stages = Stages(output / "stages")
    run = _Run(given, stages, jobs or cpu_count(), seed, folds, progress)
    judged, groups, answers = run.judge(checkpoints, recipe)
    table = given.table.assign(sha256=judged.measured["sha256"].astype(object), group=groups)
    good = judged.measured["reason"] == ""
    notes = (*given.notes, *_not_judged(answers, good))
    report = AuditReport(judged.findings(), table, answers, given.source, (), notes)
    write_index(report.findings[list(COLUMNS)], output / "audit.csv")
    write_index(table.loc[good, ["path", "group"]], output / "groups.csv")
    files = [
        output / "audit.csv",
        output / "groups.csv",
        _write_html(output / "audit.html", report, jobs or cpu_count(), progress),
    ]
    if apply:
        files.append(_write_clean(output / "index_clean.csv", report, given, good, score, seed))
    return replace(report, files=tuple(files))


class _Run:
    """The stages of one audit, each done once and kept."""

    def __init__(
        self, given: _Input, stages: Stages, jobs: int, seed: int, folds: int, progress: bool
    ) -> None:
        self.table = given.table
        self.names: list[str] = given.table["path"].tolist()
        self.labels = given.table["label"].to_numpy(dtype=np.int64)
        self.source = given.source
        self.known_groups: list[str] = list(given.table.get("group", []))
        self.stages = stages
        self.jobs = jobs
        self.seed = seed
        self.folds = folds
        self.progress = progress

    def judge(
        self, checkpoints: Mapping[str, Checkpoint], recipe: Recipe | str | None
    ) -> tuple[Judged, list[str], npt.NDArray[np.float32]]:
        """Return what is known of each picture, its group, and its out-of-fold answers."""
        measured = self._measured()
        content = key_of(*measured["sha256"].tolist())
        pairs = self._pairs(measured, content)
        none = np.zeros(len(self.names), dtype=np.float32)
        judged = Judged(self.names, self.labels, measured, pairs, none, none)
        groups = judged.groups(self.known_groups)
        embedded = [
            self._embedded(each, f"embeddings_{i}", content)
            for i, each in enumerate(checkpoints.values())
        ]
        folds = embeddings.fold_of(groups, self.folds, self.seed)
        if recipe is not None:
            answers = self._answers_by_training(recipe, folds, measured, content)
        else:
            hashes = measured["sha256"].tolist()
            unseen = [embeddings.not_seen(each, hashes, groups) for each in checkpoints.values()]
            answers = embeddings.mean_answer([
                embeddings.out_of_fold(found["final"], self.labels, folds, rows)
                for found, rows in zip(embedded, unseen, strict=True)
            ])  # fmt: skip
        early = [found["early"] for found in embedded]
        judged = replace(
            judged,
            suspicion=labels.suspects(self.labels, answers),
            outlier_scores=outliers.strangeness(early, measured["reason"] == ""),
        )
        return judged, groups, answers

    def _measured(self) -> dict[str, npt.NDArray]:
        # Names and not contents: these are read here. A changed size or date is another file.
        key = key_of(self.source.path, *self.names, *_dates(self.source, self.names))

        def make() -> Arrays:
            with self._bar("pictures", len(self.names)) as bar:
                return pictures.measure_all(self.source, self.names, self.jobs, bar)

        return self.stages.get("pictures", key, make)

    def _pairs(self, measured: Mapping[str, npt.NDArray], content: str) -> duplicates.Pairs:
        """Compare one picture of each content; blank ones would all resemble each other."""
        first_of: dict[str, int] = {}
        for row in sorted(range(len(self.names)), key=self.names.__getitem__):
            if not measured["reason"][row] and measured["blank"][row] < 0.5:
                first_of.setdefault(str(measured["sha256"][row]), row)
        # By name: what just counts as the same photograph depends a little on who comes first.
        rows = np.array(list(first_of.values()), dtype=np.int64)

        def make() -> Arrays:
            with self._bar("near-duplicates", len(rows)) as bar:
                found = duplicates.near_duplicates(measured["fingerprints"][rows], self.jobs, bar)
            first, second = rows[found.first], rows[found.second]
            return {
                "first": np.minimum(first, second),
                "second": np.maximum(first, second),
                "agreement": found.agreement,
                "mirrored": found.mirrored,
            }

        return duplicates.Pairs(**self.stages.get("near_duplicates", content, make))

    def _embedded(
        self, checkpoint: Checkpoint, name: str, content: str
    ) -> dict[str, npt.NDArray[np.float16]]:
        sums = [tensor.sum().item() for tensor in checkpoint.weights.values()]
        key = key_of(content, checkpoint.recipe.arch, checkpoint.preprocessing, sums)

        def make() -> Arrays:
            with self._bar(name.replace("_", " "), len(self.names)) as bar:
                return embeddings.embed_all(checkpoint, self.table, self.source, self.jobs, bar)

        return self.stages.get(name, key, make)

    def _answers_by_training(
        self,
        recipe: Recipe | str,
        folds: npt.NDArray[np.int64],
        measured: Mapping[str, npt.NDArray],
        content: str,
    ) -> npt.NDArray[np.float32]:
        chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
        good = np.flatnonzero(measured["reason"] == "")
        table = self.table.iloc[good].assign(sha256=measured["sha256"][good].astype(object))
        answers = np.full((len(self.names), len(CLASSES)), np.nan, dtype=np.float32)
        for fold in np.unique(folds[good]).tolist():
            held_out = folds[good] == fold
            key = key_of(content, self.labels.tolist(), chosen, fold, self.folds, self.seed)

            def make(held_out: npt.NDArray[np.bool_] = held_out, fold: int = fold) -> Arrays:
                folder = self.stages.folder / f"training_{fold}"
                return {
                    "answers": embeddings.train_fold(
                        chosen, table, self.source.path, held_out, folder, self.seed, self.jobs
                    )
                }

            found = self.stages.get(f"fold_{fold}", key, make)["answers"]
            answers[good[held_out]] = found[held_out]
        return answers

    @contextmanager
    def _bar(self, name: str, total: int) -> Iterator[Callable[[int], object]]:
        with tqdm(
            total=total, desc=name, unit="img", disable=not self.progress, file=Stderr()
        ) as bar:
            yield bar.update


def _open(path: str | os.PathLike[str], data: str | os.PathLike[str] | None) -> _Input:
    """Read an index, or list the pictures of a folder or archive."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        if data is not None:
            raise InputError(f"{path} is no index, and --data belongs to one: leave it out.")
        table, source, unlisted = list_pictures(path)
        notes = tuple(f"not looked into: {folder}: {reason}" for folder, reason in unlisted)
        return _Input(table, source, None, notes)
    try:
        index = Index.open(path, data)
    except InputError:
        with suppress(InputError):
            # An older form, whose names may be those of pictures in male/ and female/ beside it.
            if data is None and "split" not in read_index(path):
                table, source, _ = list_pictures(path)
                return _Input(table, source, None)
        raise
    # A row that stands there twice is no copy of a picture, and clean would drop both.
    table = index.table.drop_duplicates(["path", "label"], ignore_index=True)
    table = table[[name for name in ("path", "label", "group") if name in table]]
    return _Input(table, index.source, read_cells(path, "make an index with data_split.py"))


def _check(output: Path, given: Path, folds: int, score: float, jobs: int | None) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: name a folder for the audit with --output.")
    if folds < 2:
        raise InputError("an audit needs at least 2 folds, or a picture would judge itself.")
    if not 0 < score <= 1:
        raise InputError(f"a score is above 0 and at most 1, not {score}.")
    if jobs is not None and jobs < 1:
        raise InputError("an audit takes at least one job.")
    make_folder(output)
    for name in ("audit.csv", "audit.html", "groups.csv", "index_clean.csv"):
        check_output(output / name, [given])


def _load(weights: Sequence[str | os.PathLike[str]]) -> dict[str, Checkpoint]:
    """Open the checkpoints by name; without any, those that come with the kit."""
    paths = [Path(each) for each in weights] or default_weights()
    if not paths:
        raise InputError(f"{_WEIGHTS} holds no audit_*.pth: name a checkpoint with --weights.")
    return {os.fspath(path): read_checkpoint(path) for path in paths}


def default_weights() -> list[Path]:
    """Return the checkpoints that come with the kit for audits."""
    return sorted(_WEIGHTS.glob("audit_*.pth"))


def _dates(source: Source, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return size and date of the archive, or of each file; (0, 0) for one that is gone."""
    paths = [source.path] if source.path.is_file() else [source.path / name for name in names]
    found = []
    for path in paths:
        try:
            status = path.stat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return found


def _not_judged(answers: npt.NDArray[np.float32], good: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    unknown = int((~np.isfinite(answers).all(axis=1) & good).sum())
    if not unknown:
        return ()
    return (
        f"the labels of {unknown} of {int(good.sum())} pictures were not judged, since every "
        "checkpoint has seen them or too few are left to learn from: --recipe trains one in folds.",
    )


def _write_clean(
    path: Path,
    report: AuditReport,
    given: _Input,
    good: npt.NDArray[np.bool_],
    score: float,
    seed: int,
) -> Path:
    """Write the index without what was found; of a folder, one with a split of its own."""
    table = given.index if given.index is not None else report.table[good]
    kept = clean(table, report.findings, score)
    if kept.empty:
        raise InputError(
            f"{path} would be empty: every picture has a finding of {score} or more; raise --score."
        )
    if given.index is None:
        kept.insert(2, "split", "")
        kept["split"] = split_rows(kept, _RATIOS, seed)
    write_index(kept, path)
    return path


def _write_html(path: Path, report: AuditReport, jobs: int, progress: bool) -> Path:
    printable = report.findings.groupby("issue", sort=False).head(_SHOWN)
    names = {
        *printable["path"],
        *(n for each in printable["related"] if each for n in each.split("|")),
    }
    with ThreadPoolExecutor(jobs) as pool:
        made = pool.map(lambda name: _thumbnail(name, report.source), sorted(names))
        bar = tqdm(
            made, total=len(names), desc="page", unit="img", disable=not progress, file=Stderr()
        )
        thumbnails = {n: data for n, data in zip(sorted(names), bar, strict=True) if data}
    counts = report.findings["issue"].value_counts()
    cut = [f"{issue} {count:,}" for issue, count in counts.items() if count > _SHOWN]
    summary = [
        ("data", os.fspath(report.source.path.name)),
        ("pictures", f"{len(report.table):,}"),
        ("findings", f"{len(report.findings):,}"),
        *(("not judged", note) for note in report.notes),
    ]
    if cut:
        summary.append((f"shown of each issue: {_SHOWN:,}; all in audit.csv", ", ".join(cut)))
    write_page(path, printable, thumbnails, f"Audit of {report.source.path.name}", summary)
    return path


def _thumbnail(name: str, source: Source) -> bytes:
    """Return a small JPEG of a picture, nothing for one that cannot be read."""
    try:
        image = load_image(name, source)
    except UnreadableImage:
        return b""
    image.thumbnail(_THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
