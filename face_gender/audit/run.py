"""The whole audit: data in, tables and a page out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from face_gender import CLASSES
from face_gender.audit.findings import COLUMNS, clean
from face_gender.audit.inputs import AuditInput, Index, open_input
from face_gender.audit.judge import Judge, Judgement
from face_gender.audit.page import HEADINGS, write_page
from face_gender.audit.stages import Stages
from face_gender.classify.page import thumbnail
from face_gender.console import progress_bar
from face_gender.data.base_source import without_resume
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.sources import Source
from face_gender.data.split import split_rows
from face_gender.data.tables import write_index
from face_gender.errors import InputError, printable
from face_gender.files import check_output, cpu_count, make_folder
from face_gender.model.checkpoint import read_checkpoint
from face_gender.model.recipes import Recipe, get_recipe
from face_gender.model.weights import shipped_weights
from face_gender.threads import threads_on_one_core_each

# The page shows so many findings of an issue; audit.csv has them all.
_SHOWN = 2_000
_THUMBNAIL = 96  # pixels of the longer side
_RATIOS = (70, 15, 15)


@dataclass(frozen=True)
class AuditReport:
    """What an audit found and where it wrote it.

    ``findings``: the rows of audit.csv, and ``looks_like``; ``table``: the n pictures with
    ``path``, ``label``, ``sha256``, ``group``; ``probabilities`` (n, 2) float32: of the classes,
    out of fold, NaN where there are none; ``seen`` (n,) bool: the picture or a copy of it was in
    the training of the net that judged; ``source``: where the pictures are read from; ``files``:
    what was written; ``notes``: sentences on what could not be judged, or not well.
    """

    findings: pd.DataFrame
    table: pd.DataFrame
    probabilities: npt.NDArray[np.float32]
    seen: npt.NDArray[np.bool_]
    source: Source
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def counts(self) -> pd.DataFrame:
        """Return the number of findings by issue (rows) and label."""
        counts = pd.crosstab(self.findings["issue"], self.findings["label"])
        present = [issue for issue in HEADINGS if issue in counts.index]
        return counts.reindex(index=present, columns=list(CLASSES), fill_value=0)

    def summary(self) -> str:
        """Return the counts and what was written, as text of a few lines."""
        found = self.counts().to_string() if len(self.findings) else "nothing found"
        total = f"{len(self.table)} pictures, {len(self.findings)} findings"
        lines = [*self.notes, total, *(f"wrote {path}" for path in self.files)]
        return "\n".join([found, *map(printable, lines)])


@without_resume()
def audit(
    index_or_data: Index | str | os.PathLike[str],
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

    ``index_or_data``: an index (a path's pictures lie beside it, or in ``data``), a folder that
    holds male/ and female/, or a .zip of one. ``weights``: checkpoints in whose embeddings
    pictures are judged; none: the weights that come with the kit. ``recipe``: train it in
    ``folds`` and judge labels by it instead. ``apply`` writes index_clean.csv too, without the
    pictures of findings of at least ``score``. ``jobs``: how many processors to use. What is
    finished lies in ``output``/stages and is not done again. Pictures are only read. Raises
    InputError.
    """
    output, given = Path(output), open_input(index_or_data, data)
    _check(folds, score, jobs)
    _make_output(output, index_or_data)
    nets = [Path(each) for each in weights] or [shipped_weights()]
    checkpoints = [read_checkpoint(path) for path in nets]
    jobs = min(jobs or cpu_count(), cpu_count())
    judge = Judge(given, Stages(output / "stages"), jobs, seed, folds, progress)
    found = judge.judge(checkpoints, get_recipe(recipe) if isinstance(recipe, str) else recipe)
    report = _report(found, given, [] if recipe else nets)
    good = found.judged.measured["reason"] == ""
    files = [output / name for name in ("audit.csv", "groups.csv", "audit.html")]
    write_index(report.findings[list(COLUMNS)], files[0])
    write_index(report.table.loc[good, ["path", "group"]], files[1])
    _write_html(files[2], report, judge.jobs, progress)
    if apply:
        files.append(_write_clean(output / "index_clean.csv", report, given, good, score, seed))
    return replace(report, files=tuple(files))


def _check(folds: int, score: float, jobs: int | None) -> None:
    if folds < 2:
        raise InputError("with fewer than 2 folds a picture judges itself: give --folds 2 or more.")
    if not 0 < score <= 1:
        raise InputError(f"a score is above 0 and at most 1, not {score}: correct --score.")
    if jobs is not None and jobs < 1:
        raise InputError("an audit takes at least one job: give --jobs 1 or more.")


def _make_output(output: Path, given: Index | str | os.PathLike[str]) -> None:
    """Make the folder, and see that nothing that is read is replaced."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: name a folder for the audit with --output.")
    make_folder(output)
    path = given.path if isinstance(given, Index) else Path(given)
    for name in ("audit.csv", "audit.html", "groups.csv", "index_clean.csv"):
        check_output(output / name, [path] if path is not None else [])


def _report(found: Judgement, given: AuditInput, nets: Sequence[Path]) -> AuditReport:
    """Put together what was found; ``nets``: the checkpoints that the labels were judged by."""
    measured = found.judged.measured
    good = measured["reason"] == ""
    table = given.table[["path", "label"]].assign(
        sha256=measured["sha256"].astype(object), group=found.groups
    )
    notes, total, seen = list(given.notes), int(good.sum()), int((found.seen & good).sum())
    if seen and nets:
        notes.append(
            f"{seen} of {total} pictures ({seen / total:.0%}) were in the training of "
            f"{' or '.join(path.name for path in nets)}, themselves or as copies: it may have "
            "learnt wrong labels among them, which then look right; --recipe judges by nets that "
            "are trained in folds, each without the pictures that it judges."
        )
    unknown = int((~np.isfinite(found.probabilities).all(axis=1) & good).sum())
    if unknown:
        notes.append(
            f"the labels of {unknown} of {total} pictures were not judged, since too few others "
            "are left to learn from."
        )
    return AuditReport(
        findings=found.judged.findings(),
        table=table,
        probabilities=found.probabilities,
        seen=found.seen,
        source=given.source,
        files=(),
        notes=tuple(notes),
    )


def _write_clean(
    path: Path,
    report: AuditReport,
    given: AuditInput,
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


def _write_html(path: Path, report: AuditReport, jobs: int, progress: bool) -> None:
    shown = report.findings.groupby("issue", sort=False).head(_SHOWN)
    related = (name for each in shown["related"] if each for name in each.split("|"))
    names = sorted({*shown["path"], *related})
    thumbnails: dict[str, bytes] = {}
    bar = progress_bar(len(names), "page", shown=progress)
    with threads_on_one_core_each(jobs) as pool, bar:
        made = pool.map(lambda name: _thumbnail(name, report.source), names)
        for name, jpeg in zip(names, made, strict=True):
            thumbnails |= {name: jpeg} if jpeg else {}
            bar.update()
    counts = report.findings["issue"].value_counts()
    cut = [f"{issue} {count:,}" for issue, count in counts.items() if count > _SHOWN]
    summary = [
        ("data", os.fspath(report.source.path.name)),
        ("pictures", f"{len(report.table):,}"),
        ("findings", f"{len(report.findings):,}"),
        *(("note", note) for note in report.notes),
    ]
    if cut:
        summary.append((f"shown of each issue: {_SHOWN:,}; all in audit.csv", ", ".join(cut)))
    write_page(path, shown, thumbnails, f"Audit of {report.source.path.name}", summary)


def _thumbnail(name: str, source: Source) -> bytes:
    """Return a small JPEG of a picture, nothing for one that cannot be read."""
    try:
        return thumbnail(load_image(name, source), _THUMBNAIL)
    except UnreadableImage:
        return b""
