"""Reproduce the figures of docs/audit.md.

python -m tools.audit_figures natural DATA WORK
python -m tools.audit_figures planted DATA WORK --portraits OFFICIALS
python -m tools.audit_figures flips DATA WORK
python -m tools.audit_figures sheet DATA WORK ISSUE

DATA is a folder or .zip of pictures. ``natural`` audits it into WORK/natural and compares the exact
duplicates with sha256 alone; what follows needs it. ``planted`` adds 300 altered copies and 200
pictures of no face; ``flips`` turns labels, of all pictures and of a cleaned subset;
``sheet`` writes the strongest 100 findings of an issue as WORK/ISSUE_0.png, to be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from face_gender.audit import embeddings, labels, outliers, pictures
from face_gender.audit.duplicates import near_duplicates
from face_gender.audit.run import AuditReport, audit
from face_gender.console import run_command
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.sources import FolderSource, find_images
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.weights import shipped_weights
from tools import plant

FOLDS = 5


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("natural", "planted", "flips", "sheet"):
        command = commands.add_parser(name)
        command.add_argument("data", type=Path)
        command.add_argument("work", type=Path)
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--weights", type=Path, nargs="+", default=[shipped_weights()])
        if name == "planted":
            command.add_argument("--portraits", type=Path, required=True)
        if name == "sheet":
            command.add_argument("issue")
            command.add_argument("--first", type=int, default=0)
            command.add_argument("--count", type=int, default=100)
    return parser.parse_args()


def natural(options: argparse.Namespace) -> AuditReport:
    """Audit the data as they are."""
    return audit(options.data, options.work / "natural", options.weights)


def stage(options: argparse.Namespace, name: str) -> dict[str, npt.NDArray]:
    """Return the arrays that the natural audit kept."""
    with np.load(options.work / "natural" / "stages" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def run_natural(options: argparse.Namespace) -> None:
    """Print the counts, and the exact duplicates beside what sha256 says."""
    report = natural(options)
    print(report.summary())
    by_hash: dict[str, list[str]] = defaultdict(list)
    for name in report.table["path"]:
        by_hash[hashlib.sha256(report.source.read(name)).hexdigest()].append(name)
    same = {frozenset(each) for each in by_hash.values() if len(each) > 1}
    issues = ("exact_duplicate", "duplicate_other_label")
    exact = report.findings[report.findings["issue"].isin(issues)]
    linked = pd.concat([exact["path"], exact["related"].str.split("|").explode()])
    equal = set(linked) == {name for each in same for name in each}
    print(
        f"byte-identical groups: {len(same)} by sha256, the same pictures as the audit's: {equal}"
    )


def run_planted(options: argparse.Namespace) -> None:
    """Print recall and precision on altered copies, and on pictures of no face."""
    report = natural(options)
    measured = stage(options, "pictures")
    for seed in options.seeds:
        folder = options.work / f"planted_{seed}"
        originals = write_copies(report, folder / "copies", seed)
        report_copies(report, measured, folder / "copies", originals)
        report_outliers(options, report, measured, folder / "outliers", seed)


def write_copies(report: AuditReport, folder: Path, seed: int) -> list[tuple[int, str]]:
    """Write 60 copies of each alteration; return (row of the original, alteration) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(seed).choice(len(report.table), 300, replace=False).tolist()
    chosen = [(row, list(plant.ALTERATIONS)[i % 5]) for i, row in enumerate(rows)]
    for i, (row, alteration) in enumerate(chosen):
        image = load_image(report.table["path"].iloc[row], report.source)
        (folder / f"{i:03d}.jpg").write_bytes(plant.altered(image, alteration))
    return chosen


def report_copies(
    report: AuditReport,
    measured: dict[str, npt.NDArray],
    folder: Path,
    originals: list[tuple[int, str]],
) -> None:
    """Search one picture of each content and all copies, and count."""
    source, names = find_images(folder)
    copies = pictures.measure_all(source, names, 2, int)
    unique = np.unique(measured["sha256"], return_index=True)[1]
    unique = unique[measured["reason"][unique] == ""]
    prints = np.concatenate([measured["fingerprints"][unique], copies["fingerprints"]])
    pairs = near_duplicates(prints, 2)
    group_of = report.table["group"].to_numpy()
    correct, wrong, found = 0, 0, set()
    for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if b < len(unique):
            continue
        original = originals[b - len(unique)][0]
        other = originals[a - len(unique)][0] if a >= len(unique) else unique[a]
        # A copy is a near-duplicate of its original and of what the data has of it already.
        same = group_of[other] == group_of[original]
        correct, wrong = correct + same, wrong + (not same)
        if same and measured["sha256"][other] == measured["sha256"][original]:
            found.add(b - len(unique))
    print(f"copies: {len(found)} of {len(originals)} found, {correct} pairs correct, "
          f"{wrong} wrong, natural pairs {int((pairs.second < len(unique)).sum())}")  # fmt: skip


def report_outliers(
    options: argparse.Namespace,
    report: AuditReport,
    measured: dict[str, npt.NDArray],
    folder: Path,
    seed: int,
) -> None:
    """Write 200 pictures of no face, judge them together with the data, and count."""
    folder.mkdir(parents=True, exist_ok=True)
    portraits, names = find_images(options.portraits, recursive=True)
    made = plant.outliers(np.random.default_rng(seed), 200, 200, portraits, names)
    for i, (_, data) in enumerate(made):
        (folder / f"{i:03d}.jpg").write_bytes(data)
    kinds = np.array([kind for kind, _ in made])
    table = pd.DataFrame({"path": [f"{i:03d}.jpg" for i in range(len(kinds))], "label": 0})
    embedded = []
    for i, path in enumerate(options.weights):
        own = embeddings.embed_all(load_checkpoint(path), table, FolderSource(folder), 2, int)
        embedded.append(np.concatenate([stage(options, f"embeddings_{i}")["early"], own["early"]]))
    good = np.concatenate([measured["reason"] == "", np.ones(len(kinds), dtype=bool)])
    flagged = outliers.outlier_scores(embedded, good) > 0
    real, planted = flagged[: len(report.table)], flagged[len(report.table) :]
    by_kind = {kind: f"{planted[kinds == kind].sum()}/{(kinds == kind).sum()}"
               for kind in dict.fromkeys(kinds.tolist())}  # fmt: skip
    print(f"outliers: {int(planted.sum())} of {len(kinds)} found; {int(real.sum())} of "
          f"{len(real)} pictures of the data flagged ({real.mean():.2%}); {by_kind}")  # fmt: skip


def cleaned(report: AuditReport) -> npt.NDArray[np.int64]:
    """Return the rows of a cleaned subset: without a finding, but for blur."""
    listed = set(report.findings.loc[report.findings["issue"] != "blurred", "path"])
    return np.flatnonzero(~report.table["path"].isin(listed))


def run_flips(options: argparse.Namespace) -> None:
    """Print precision and recall of the suspects among turned labels."""
    report = natural(options)
    finals = [stage(options, f"embeddings_{i}")["final"] for i in range(len(options.weights))]
    everything = np.flatnonzero(np.isfinite(report.probabilities).all(axis=1))
    for name, rows in (("cleaned", cleaned(report)), ("as published", everything)):
        truth = report.table["label"].to_numpy()[rows]
        groups = report.table["group"].iloc[rows].tolist()
        for fraction in (0.03, 0.1):
            for seed in options.seeds:
                given, turned = plant.flipped(truth, fraction, np.random.default_rng(seed))
                folds = embeddings.fold_of(groups, FOLDS, seed)
                each = [embeddings.out_of_fold(final[rows], given, folds) for final in finals]
                found = labels.label_scores(given, np.mean(each, axis=0)) >= 0.5
                hits = int((found & turned).sum())
                print(f"{name}, n {len(rows)}, {fraction:.0%} turned, seed {seed}: "
                      f"precision {hits / max(1, found.sum()):.3f}, "
                      f"recall {hits / turned.sum():.3f}, {int(found.sum())} found")  # fmt: skip


def run_sheet(options: argparse.Namespace) -> None:
    """Write a contact sheet of findings, ten in a row, each under its number and label."""
    report = natural(options)
    findings = report.findings[report.findings["issue"] == options.issue]
    if options.issue.startswith("near") or options.issue == "blurred":
        findings = findings.sample(frac=1, random_state=0)  # these score alike: draw them
    chosen = findings.iloc[options.first : options.first + options.count]
    width, side = (2 if chosen["related"].any() else 1), 112
    sheet = Image.new("RGB", (10 * (width * side + 8), -(-len(chosen) // 10) * (side + 14)))
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(chosen.itertuples()):
        x, y = i % 10 * (width * side + 8), i // 10 * (side + 14)
        for j, name in enumerate([row.path, row.related.split("|")[0]][:width]):
            try:
                face = load_image(name, report.source).resize((side, side))
            except UnreadableImage:
                continue
            sheet.paste(face, (x + j * side, y + 14))
        draw.text((x, y), f"{options.first + i} {row.label} {row.score:.2f}")
    sheet.save(options.work / f"{options.issue}_{options.first}.png")


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    commands = {
        "natural": run_natural,
        "planted": run_planted,
        "flips": run_flips,
        "sheet": run_sheet,
    }
    return run_command("audit_figures", lambda: commands[options.command](options))


if __name__ == "__main__":
    sys.exit(main())
