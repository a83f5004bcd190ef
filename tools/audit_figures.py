"""Reproduce the figures of docs/audit.md.

python -m tools.audit_figures halves DATA WORK
python -m tools.audit_figures natural DATA WORK
python -m tools.audit_figures planted DATA WORK --portraits OFFICIALS
python -m tools.audit_figures flips DATA WORK
python -m tools.audit_figures win_back DATA WORK
python -m tools.audit_figures sheet DATA WORK ISSUE

DATA is utkface.zip. ``halves`` writes the two indexes that the audit's own weights were trained
by, WORK/half_a.csv and half_b.csv. ``natural`` audits DATA into WORK/natural and compares the exact
duplicates with sha256 alone; what follows needs it. ``planted`` adds 300 altered copies and 200
strangers; ``flips`` turns labels of a cleaned subset; ``win_back`` trains on right, on turned and
on cleaned labels; ``sheet`` writes the strongest 100 findings of an issue as WORK/ISSUE_0.png, to
be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from face_gender.audit import embeddings, labels, outliers, pictures
from face_gender.audit.duplicates import Pairs, near_duplicates
from face_gender.audit.findings import Judged
from face_gender.audit.run import AuditReport, audit, default_weights
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.index import Index, list_pictures
from face_gender.data.sources import FolderSource, find_images, open_source
from face_gender.data.split import split_rows
from face_gender.data.tables import write_index
from face_gender.errors import InputError
from face_gender.evaluate.metrics import wilson_interval
from face_gender.evaluate.predict import evaluate
from face_gender.model.checkpoint import load_checkpoint
from face_gender.model.recipes import get_recipe
from face_gender.train.loop import train
from tools import plant

FOLDS = 5
OLDEST_BABY = 3


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("halves", "natural", "planted", "flips", "win_back", "sheet"):
        command = commands.add_parser(name)
        command.add_argument("data", type=Path)
        command.add_argument("work", type=Path)
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        if name == "planted":
            command.add_argument("--portraits", type=Path, required=True)
        if name == "sheet":
            command.add_argument("issue")
            command.add_argument("--first", type=int, default=0)
            command.add_argument("--count", type=int, default=100)
    return parser.parse_args()


def run_halves(options: argparse.Namespace) -> None:
    """Write two indexes: one half to train and choose on, the other as its test split; and back."""
    table, source, _ = list_pictures(options.data)
    measured = pictures.measure_all(source, table["path"].tolist(), 2, int)
    unique = np.unique(measured["sha256"], return_index=True)[1]
    found = near_duplicates(measured["fingerprints"][unique], 2)
    none = np.zeros(len(table), dtype=np.float32)
    pairs = Pairs(unique[found.first], unique[found.second], found.agreement, found.mirrored)
    paths, given = table["path"].tolist(), table["label"].to_numpy()
    table["sha256"] = measured["sha256"].astype(object)
    table["group"] = Judged(paths, given, measured, pairs, none, none).groups()
    mixed = table.groupby("sha256")["label"].transform("nunique") > 1
    table = table[~mixed].reset_index(drop=True)
    halves = split_rows(table, (50, 0, 50), 0)
    rng = np.random.default_rng(0)
    options.work.mkdir(parents=True, exist_ok=True)
    for name, own in (("a", "train"), ("b", "test")):
        split = np.where(halves == own, "train", "test")
        split[(halves == own) & (rng.random(len(table)) < 0.06)] = "val"
        write_index(table.assign(split=split), options.work / f"half_{name}.csv")


def natural(options: argparse.Namespace) -> AuditReport:
    """Audit the data as they are."""
    return audit(options.data, options.work / "natural", apply=True)


def stage(options: argparse.Namespace, name: str) -> dict[str, npt.NDArray]:
    """Return the arrays that the natural audit kept."""
    with np.load(options.work / "natural" / "stages" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def run_natural(options: argparse.Namespace) -> None:
    """Print the counts, and the exact duplicates beside what sha256 alone says."""
    report = natural(options)
    print(report.summary())
    groups: dict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(options.data) as archive:
        for name in report.table["path"]:
            groups[hashlib.sha256(archive.read(name)).hexdigest()].append(name)
    same = {frozenset(each) for each in groups.values() if len(each) > 1}
    mixed = {each for each in same if len({name.split("/")[-2] for name in each}) > 1}
    found: dict[str, set[frozenset[str]]] = defaultdict(set)
    for row in report.findings.itertuples():
        if row.issue == "duplicate_other_label":
            found["mixed"].add(frozenset([row.path, *row.related.split("|")]))
    copies = report.findings[report.findings["issue"] == "exact_duplicate"]
    for kept, rows in copies.groupby("related"):
        found["same"].add(frozenset([kept, *rows["path"]]))
    print(f"byte-identical groups: {len(same)} by sha256, of these {len(mixed)} under both labels")
    print(f"equal to the audit's: {found['same'] | found['mixed'] == same}", end=", ")
    print(f"under both labels: {found['mixed'] == mixed}")


def run_planted(options: argparse.Namespace) -> None:
    """Print recall and precision on altered copies, and on pictures of no face."""
    report = natural(options)
    measured = stage(options, "pictures")
    for seed in options.seeds:
        folder = options.work / f"planted_{seed}"
        originals = write_copies(report, folder / "copies", seed)
        report_copies(report, measured, folder / "copies", originals)
        kinds = write_strangers(options.portraits, folder / "strangers", seed)
        report_strangers(options, report, measured, folder / "strangers", kinds)


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
    right, wrong, found = 0, 0, set()
    for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if b < len(unique):
            continue
        original = originals[b - len(unique)][0]
        other = originals[a - len(unique)][0] if a >= len(unique) else unique[a]
        # A copy is a near-duplicate of its original and of what the data has of it already.
        same = group_of[other] == group_of[original]
        right, wrong = right + same, wrong + (not same)
        if same and measured["sha256"][other] == measured["sha256"][original]:
            found.add(b - len(unique))
    by_kind = {
        kind: sum(i in found for i, (_, each) in enumerate(originals) if each == kind)
        for kind in plant.ALTERATIONS
    }
    print(f"copies: {len(found)} of {len(originals)} found, {right} pairs right, {wrong} wrong, "
          f"natural pairs {int((pairs.second < len(unique)).sum())}; {by_kind}")  # fmt: skip


def write_strangers(portraits: Path, folder: Path, seed: int) -> list[str]:
    """Write 200 pictures of no face; return the kind of each."""
    folder.mkdir(parents=True, exist_ok=True)
    source, names = find_images(portraits, recursive=True)
    made = plant.strangers(np.random.default_rng(seed), 200, 200, source, names)
    for i, (_, data) in enumerate(made):
        (folder / f"{i:03d}.jpg").write_bytes(data)
    return [kind for kind, _ in made]


def report_strangers(
    options: argparse.Namespace,
    report: AuditReport,
    measured: dict[str, npt.NDArray],
    folder: Path,
    kinds: list[str],
) -> None:
    """Judge the data and the strangers together, and count."""
    table = pd.DataFrame({"path": [f"{i:03d}.jpg" for i in range(len(kinds))], "label": 0})
    embedded = []
    for i, path in enumerate(default_weights()):
        own = embeddings.embed_all(load_checkpoint(path), table, FolderSource(folder), 2, int)
        embedded.append(np.concatenate([stage(options, f"embeddings_{i}")["early"], own["early"]]))
    good = np.concatenate([measured["reason"] == "", np.ones(len(kinds), dtype=bool)])
    flagged = outliers.strangeness(embedded, good) > 0
    real, planted = flagged[: len(report.table)], flagged[len(report.table) :]
    by_kind = {
        kind: f"{int(planted[np.array(kinds) == kind].sum())}/{kinds.count(kind)}"
        for kind in dict.fromkeys(kinds)
    }
    print(f"strangers: {int(planted.sum())} of {len(kinds)} found; {int(real.sum())} of "
          f"{len(real)} pictures of the data flagged ({real.mean():.2%}); {by_kind}")  # fmt: skip


def subset(report: AuditReport) -> npt.NDArray[np.int64]:
    """Return the rows of a cleaned subset: no finding, and older than a baby by name."""
    listed = set(report.findings.loc[report.findings["issue"] != "blurred", "path"])
    ages = report.table["path"].str.extract(r"/(\d+)_")[0].astype(float)
    keep = ~report.table["path"].isin(listed) & (ages > OLDEST_BABY)
    return np.flatnonzero(keep.to_numpy())


def answers_for(
    options: argparse.Namespace,
    report: AuditReport,
    rows: npt.NDArray[np.int64],
    given: npt.NDArray[np.int64],
    seed: int,
) -> npt.NDArray[np.float32]:
    """Judge the labels ``given`` to ``rows`` as the audit does, from the kept embeddings."""
    folds = embeddings.fold_of(report.table["group"].iloc[rows].tolist(), FOLDS, seed)
    answers = []
    for i, path in enumerate(default_weights()):
        features = stage(options, f"embeddings_{i}")["final"][rows]
        known = report.table[["sha256", "group"]].iloc[rows]
        unseen = embeddings.not_seen(load_checkpoint(path), *(known[c].tolist() for c in known))
        answers.append(embeddings.out_of_fold(features, given, folds, unseen))
    return embeddings.mean_answer(answers)


def run_flips(options: argparse.Namespace) -> None:
    """Print precision and recall of the suspects among turned labels."""
    report = natural(options)
    everything = np.flatnonzero(np.isfinite(report.answers).all(axis=1))
    for name, rows in (("cleaned", subset(report)), ("as published", everything)):
        right = report.table["label"].to_numpy()[rows]
        for share in (0.03, 0.1):
            for seed in options.seeds:
                given, turned = plant.flipped(right, share, np.random.default_rng(seed))
                found = labels.suspects(
                    given, answers_for(options, report, rows, given, seed)
                ) >= 0.5  # fmt: skip
                hits = int((found & turned).sum())
                print(f"{name}, n {len(rows)}, {share:.0%} turned, seed {seed}: "
                      f"precision {hits / max(1, found.sum()):.3f}, "
                      f"recall {hits / turned.sum():.3f}, {int(found.sum())} found")  # fmt: skip


def run_win_back(options: argparse.Namespace) -> None:
    """Print test accuracies after training on right, turned and cleaned labels."""
    report = natural(options)
    rows = subset(report)
    right = report.table["label"].to_numpy()[rows]
    recipe = get_recipe("compact_cnn", epochs=8)
    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        split = rng.choice(["train", "val", "test"], len(rows), p=[0.4, 0.1, 0.5])
        learnt = split != "test"
        given = right.copy()
        given[learnt], _ = plant.flipped(right[learnt], 0.1, rng)
        suspicion = np.zeros(len(rows), dtype=np.float32)
        suspicion[learnt] = labels.suspects(
            given[learnt], answers_for(options, report, rows[learnt], given[learnt], seed)
        )
        table = report.table.iloc[rows].assign(split=split)
        accuracy = {}
        for name, own, keep in (
            ("right", right, np.ones(len(rows), dtype=bool)),
            ("turned", given, np.ones(len(rows), dtype=bool)),
            ("cleaned", given, suspicion < 0.5),
        ):
            index = Index(table.assign(label=own)[keep], report.source)
            folder = options.work / "win_back" / name
            for _ in train(recipe, index, folder, seed=seed, progress=False):
                pass
            # The last epoch: the validation labels are turned too, and to choose by them is noise.
            last = folder / recipe.name / f"epoch_{recipe.epochs - 1}.pth"
            result = evaluate(last, index, progress=False)
            accuracy[name] = result.accuracy
            low, high = wilson_interval(round(result.accuracy * len(result.labels)),
                                        len(result.labels))  # fmt: skip
            print(f"seed {seed}, {name}: {result.accuracy:.4f} ({low:.4f} to {high:.4f}, "
                  f"n = {len(result.labels)})", flush=True)  # fmt: skip
        lost = accuracy["right"] - accuracy["turned"]
        won = accuracy["cleaned"] - accuracy["turned"]
        print(f"seed {seed}: lost {lost:.4f}, won back {won:.4f} ({won / lost:.0%})", flush=True)


def run_sheet(options: argparse.Namespace) -> None:
    """Write a contact sheet of findings, ten in a row, each under its number and label."""
    report = natural(options)
    findings = report.findings[report.findings["issue"] == options.issue]
    if options.issue.startswith("near") or options.issue == "blurred":
        findings = findings.sample(frac=1, random_state=0)  # these score alike: draw them
    chosen = findings.iloc[options.first : options.first + options.count]
    paired = bool(chosen["related"].any())
    width, side = (2 if paired else 1), 112
    sheet = Image.new("RGB", (10 * (width * side + 8), -(-len(chosen) // 10) * (side + 14)))
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(chosen.itertuples()):
        x, y = i % 10 * (width * side + 8), i // 10 * (side + 14)
        for j, name in enumerate([row.path, row.related.split("|")[0]][:width]):
            try:
                face = load_image(name, open_source(options.data)).resize((side, side))
            except UnreadableImage:
                continue
            sheet.paste(face, (x + j * side, y + 14))
        draw.text((x, y), f"{options.first + i} {row.label} {row.score:.2f}")
    sheet.save(options.work / f"{options.issue}_{options.first}.png")


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    commands = {
        "halves": run_halves,
        "natural": run_natural,
        "planted": run_planted,
        "flips": run_flips,
        "win_back": run_win_back,
        "sheet": run_sheet,
    }
    try:
        commands[options.command](options)
    except (InputError, OSError, ValueError) as error:
        print(f"audit_figures.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
