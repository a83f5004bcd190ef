"""The figures of the notebook and of an evaluation; the only module that imports matplotlib."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

from face_gender import CLASSES
from face_gender.classify.results import Prediction
from face_gender.data.dataset import FaceDataset, PixelDataset
from face_gender.data.images import UnreadableImage, load_image
from face_gender.data.index import Index
from face_gender.data.preprocessing import Preprocessing, stack
from face_gender.data.sources import Source
from face_gender.data.split import SPLITS
from face_gender.errors import printable
from face_gender.evaluate.metrics import Evaluation, wilson_interval
from face_gender.evaluate.report import EVERY, THRESHOLDS, Tried
from face_gender.model.checkpoint import Checkpoint
from face_gender.model.explain import CAVEAT, overlays
from face_gender.train.loop import EpochReport

COLOURS = {"male": "#3b6fb6", "female": "#c8553d"}
# Told apart by the colour-blind too (Okabe and Ito), and by their marks where colours come again.
_SIGNS = {"male": "s", "female": "^"}
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_NAME_LINE = 17  # letters of a name that fit over a picture of a gallery
_FEWEST = 20  # predictions of which a fraction says something


def class_histogram(table: pd.DataFrame) -> Figure:
    """Show the number of pictures by split and class, from an index's table."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for label, name in enumerate(CLASSES):
        places = np.arange(len(SPLITS)) + (label - 0.5) * 0.38
        own = table[table["label"] == label]
        heights = [int((own["split"] == split).sum()) for split in SPLITS]
        bars = axes.bar(places, heights, 0.36, label=name, color=COLOURS[name], hatch="//" * label)
        axes.bar_label(bars)
    axes.set_xticks(range(len(SPLITS)), SPLITS)
    axes.set(ylabel="pictures", title=f"{len(table)} pictures by split and class")
    axes.margins(y=0.12)
    axes.legend()
    return _finish(figure)


def image_sizes(dataset: FaceDataset, sample: int = 2_000, seed: int = 0) -> Figure:
    """Show width against height, in pixels, of a random sample of a data set's pictures."""
    sizes, labels = [], []
    for i in _sample(len(dataset), sample, seed):
        try:
            sizes.append(load_image(str(dataset.paths[i]), dataset.source).size)
            labels.append(int(dataset.labels[i]))
        except UnreadableImage:
            continue
    points = np.array(sizes).reshape(-1, 2)
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for label, name in enumerate(CLASSES):
        x, y = points[np.array(labels) == label].T
        axes.scatter(x, y, 18, COLOURS[name], marker=_SIGNS[name], alpha=0.5, label=name)
    right, top = points.max(axis=0, initial=1) * 1.1
    axes.set(xlabel="width in pixels", ylabel="height in pixels", xlim=(0, right), ylim=(0, top))
    axes.set_title(f"Sizes of {len(points)} pictures")
    axes.legend()
    return _finish(figure)


def face_grid(dataset: FaceDataset, columns: int = 8, rows: int = 2, seed: int = 0) -> Figure:
    """Show random pictures as they lie on disk, each under its label."""
    chosen = _sample(len(dataset), columns * rows, seed)
    pictures = [_try_load(str(dataset.paths[i]), dataset.source) for i in chosen]
    titles = [CLASSES[dataset.labels[i]] for i in chosen]
    return _gallery(pictures, titles, columns, "Pictures as they are on disk")


def batch_grid(
    images: Tensor, labels: Tensor, preprocessing: Preprocessing, columns: int = 8
) -> Figure:
    """Show a batch (n, 3, H, W) as the model sees it: resized, augmented, colours put back."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy() * preprocessing.std + preprocessing.mean
    pictures = [Image.fromarray((each.clip(0, 1) * 255).astype(np.uint8)) for each in arrays]
    titles = [CLASSES[int(label)] for label in labels]
    size = f"{preprocessing.height} x {preprocessing.width}"
    return _gallery(pictures, titles, columns, f"A training batch as the model sees it, {size}")


def curves(reports: Sequence[EpochReport]) -> Figure:
    """Show loss and accuracy by epoch, the best epoch marked if it is one of these."""
    epochs = [report.epoch for report in reports]
    best = [report for report in reports if report.is_best][-1:]  # before these in a resumed run
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.plot(epochs, [report.train_loss for report in reports], "o-", label="train")
    left.plot(epochs, [report.val_loss for report in reports], "s--", label="validation")
    left.set(xlabel="epoch", ylabel="loss per picture", title="Loss")
    right.plot(epochs, [r.val_accuracy for r in reports], ".-", color="black", label="accuracy")
    for name in reports[0].val_recall:
        values = [report.val_recall[name] for report in reports]
        style = {"color": COLOURS.get(name), "marker": _SIGNS.get(name)}
        right.plot(epochs, values, ":", label=f"recall {name}", **style)
    right.set(xlabel="epoch", ylabel="fraction correct", ylim=(None, 1.02))
    found = [f"best {each.val_accuracy:.3f} in epoch {each.epoch}" for each in best]
    right.set_title(": ".join(["Validation", *found]))
    for axes in (left, right):
        for each in best:
            axes.axvline(each.epoch, color="grey", linewidth=0.8, linestyle="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return _finish(figure)


def confusion_matrix(result: Evaluation) -> Figure:
    """Show counts by label and prediction; the colour is the fraction of the row."""
    matrix = result.confusion
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(4.4, 3.6), layout="constrained")
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        fraction = fractions[row, column]
        axes.text(column, row, f"{count}\n{fraction:.1%}", ha="center", va="center",
                  color="white" if fraction > 0.5 else "black")  # fmt: skip
    names = list(result.classes)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    low, high = result.interval
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_title(
        f"{result.accuracy:.1%} of {len(result.labels)} predicted as labelled\n"
        f"(95 % interval {low:.1%} to {high:.1%})",
        fontsize=11,
    )
    return _finish(figure)


def reliability(result: Evaluation) -> Figure:
    """Show the fraction correct by confidence, with 95 % intervals, and how many there are.

    Confidence is what it should be where the points lie on the diagonal.
    """
    bins = [each for each in result.reliability() if each.pictures]
    said, was = [each.confidence for each in bins], [each.accuracy for each in bins]
    bounds = [wilson_interval(round(b.accuracy * b.pictures), b.pictures) for b in bins]
    below = [max(0, mean - low) for mean, (low, _) in zip(was, bounds, strict=True)]
    above = [max(0, high - mean) for mean, (_, high) in zip(was, bounds, strict=True)]
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(5.2, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    upper.plot([0, 1], [0, 1], "--", color="grey", label="as sure as it is correct")
    upper.errorbar(said, was, yerr=[below, above], fmt="o-", color=_LINES[0], capsize=2,
                   label="this model, with 95 % intervals")  # fmt: skip
    upper.text(
        0.03, 0.78, "more often correct\nthan it says", transform=upper.transAxes, color="grey"
    )
    upper.text(0.97, 0.05, "less often correct\nthan it says", transform=upper.transAxes,
               color="grey", ha="right")  # fmt: skip
    upper.set(ylabel="fraction correct", ylim=(min(0.5, *(low for low, _ in bounds)) - 0.02, 1.02))
    upper.set_title(
        "Is it correct as often as it says?\n"
        f"Confidence is off by {result.calibration_error:.1%} on average (ECE)"
    )
    upper.legend(loc="upper left", fontsize=8)
    lower.bar([each.low for each in bins], [each.pictures for each in bins], 1 / 15 * 0.95,
              align="edge", color=_LINES[0])  # fmt: skip
    lower.set(xlabel="confidence of the prediction", ylabel="pictures")
    lower.set_xlim(1 / len(result.classes) - 0.02, 1.02)
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _finish(figure)


def coverage(result: Evaluation) -> Figure:
    """Show the accuracy of the predictions that are left without the unsure ones."""
    every = result.coverage(np.unique(result.confidence.astype(np.float64)).tolist())
    every = tuple(each for each in every if each.pictures >= _FEWEST) or every
    fractions = [each.fraction for each in every]
    bounds = np.array([wilson_interval(each.correct, each.pictures) for each in every])
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.fill_between(fractions, bounds[:, 0], bounds[:, 1], color=_LINES[0], alpha=0.15,
                      label="95 % interval", linewidth=0)  # fmt: skip
    axes.plot(fractions, [each.accuracy for each in every], color=_LINES[0])
    marked = [each for each in result.coverage(THRESHOLDS) if each.pictures]
    axes.plot([each.fraction for each in marked], [each.accuracy for each in marked], "o",
              color=_LINES[1], label="predictions of at least this confidence alone")  # fmt: skip
    for each in {each.fraction: each for each in reversed(marked)}.values():
        axes.annotate(f"{each.threshold:.0%}" if each.threshold else "all",
                      (each.fraction, each.accuracy), (4, 6),
                      textcoords="offset points")  # fmt: skip
    lowest = min(each.accuracy for each in marked)
    axes.set(xlabel="fraction of the pictures that is predicted", xlim=(0, 1.06))
    axes.set(ylabel="fraction of these correct", ylim=(max(0, lowest - 0.04), 1.01))
    axes.set_title("Accuracy of the predictions when unsure ones are left out")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower left", fontsize=8)
    return _finish(figure)


def robustness(tried: Sequence[Tried]) -> Figure:
    """Show accuracy when pictures are framed otherwise, blurred or coarser; a line a source."""
    panels = {
        "Face cut or with a margin": ("zoom", "none", "margin"),
        "Blurred": ("none", "blur"),
        "Scaled down": ("none", "size"),
    }
    under = (
        "zoom into the picture, or margin added around it",
        "sigma as a fraction of the picture's side",
        "pixels on the shorter side",
    )
    figure, row = plt.subplots(1, 3, figsize=(12.5, 4), sharey=True, layout="constrained")
    for axes, (title, kinds), words in zip(row, panels.items(), under, strict=True):
        _accuracy_lines(axes, [each for each in tried if each.condition.kind in kinds])
        axes.set(title=title, xlabel=words)
    row[0].set_ylabel("fraction correct")
    row[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    row[0].legend(fontsize=8)
    figure.suptitle("Accuracy when the same pictures are framed otherwise, blurred or scaled down")
    return _finish(figure)


def _accuracy_lines(axes: Axes, tried: Sequence[Tried]) -> None:
    """Draw a line for each source, of all pictures where there is one source, with intervals."""
    names = [name for name in tried[0].parts if name != EVERY]
    for i, name in enumerate(names if len(names) > 1 else [EVERY]):
        parts = [each.parts[name] for each in tried]
        fractions = np.array([part.accuracy for part in parts])
        bounds = np.array([part.interval for part in parts])
        # After a space: of what begins with "_", a legend knows nothing.
        gaps = np.maximum(np.abs(bounds.T - fractions), 0)
        places = np.arange(len(parts)) + 0.05 * i  # that intervals do not cover each other
        axes.errorbar(places, fractions, yerr=gaps, capsize=2, label=f" {printable(name)}",
                      color=_LINES[i % len(_LINES)], marker=_MARKS[i % len(_MARKS)])  # fmt: skip
    labels = [str(each.condition).replace(" ", "\n", 1) for each in tried]
    axes.set_xticks(range(len(tried)), labels, fontsize=8)
    for i, each in enumerate(tried):
        if each.condition.kind == "none":
            axes.axvline(i, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axes.grid(axis="y", alpha=0.3)


def mistakes(result: Evaluation, source: Source, most: int = 16, columns: int = 8) -> Figure:
    """Show the wrong predictions of most confidence: prediction, label and name.

    Where none is wrong, the least confident ones.
    """
    wrong = result.mistakes()
    chosen = wrong if len(wrong) else result.confidence.argsort()
    chosen = chosen[:most]
    pictures = [_try_load(str(result.paths[i]), source) for i in chosen]
    titles = [
        f"{result.classes[result.predictions[i]]} {result.confidence[i]:.0%}\n"
        f"labelled {result.classes[result.labels[i]]}\n{_in_two_lines(str(result.paths[i]))}"
        for i in chosen
    ]
    order = "the most confident first" if len(wrong) else "the least confident predictions"
    title = f"{len(wrong)} of {len(result.labels)} wrong: {order} (prediction, label, name)"
    return _gallery(pictures, titles, columns, title)


def explained_mistakes(result: Evaluation, index: Index, checkpoint: Checkpoint) -> Figure:
    """Show the first of `mistakes` as the net saw them, and below each where it looked."""
    wrong = result.mistakes()
    chosen = (wrong if len(wrong) else result.confidence.argsort())[:8].tolist()
    preprocessing = checkpoint.preprocessing
    row_of = {path: row for row, path in enumerate(index.table["path"])}
    table = index.table.iloc[[row_of[path] for path in result.paths[chosen]]]
    rows = replace(index, table=table)
    faces = FaceDataset(rows, None, preprocessing.eval_transform(), progress=False)
    seen = PixelDataset(faces, 1)
    readable = {i: x for n, i in enumerate(chosen) if (x := seen[n].pixels) is not None}
    what = "most confident mistakes" if len(wrong) else "least confident predictions"
    title = f"The {what}, and where the net looked"
    if not readable:
        return _gallery([None], [""], 1, title)
    pixels = stack(list(readable.values()))
    answers = torch.tensor([int(result.predictions[i]) for i in readable])
    maps = overlays(checkpoint.build()[0], preprocessing, pixels, answers)
    titles = [
        f"{result.classes[result.predictions[i]]} {result.confidence[i]:.0%}\n"
        f"labelled {result.classes[result.labels[i]]}"
        for i in readable
    ]
    pictures = [Image.fromarray(each) for each in (*pixels.permute(0, 2, 3, 1).numpy(), *maps)]
    figure = _gallery(pictures, titles + [""] * len(maps), len(maps), title)
    figure.set_figwidth(max(8, figure.get_figwidth()))  # that the sentence has room
    figure.supxlabel(textwrap.fill(CAVEAT, 110), fontsize=9)
    return figure


def worst_findings(findings: pd.DataFrame, source: Source, columns: int = 8) -> Figure:
    """Show the worst pictures of each issue of an audit, a row an issue.

    ``findings`` has the columns of audit.csv and ``looks_like``, worst first. A copy is followed
    by what it is a copy of.
    """
    pictures: list[Image.Image | None] = []
    titles: list[str] = []
    for issue, rows in findings.groupby("issue", sort=False):
        cells: list[tuple[str, str]] = []
        for row in rows.head(columns).itertuples():
            words = f"looks {row.looks_like}" if row.looks_like else f"{row.score:.2f}"
            cells.append((row.path, f"{str(issue).replace('_', ' ')}\n{row.label}, {words}"))
            if row.related:
                cells.append((row.related.split("|")[0], "\nsame as left"))
        cells = cells[: columns - columns % 2] if rows["related"].any() else cells[:columns]
        pictures += [_try_load(path, source) for path, _ in cells]
        titles += [words for _, words in cells]
        empty = -len(cells) % columns
        pictures += [Image.new("RGB", (1, 1), "white")] * empty
        titles += [""] * empty
    return _gallery(pictures, titles, columns, f"{len(findings)} findings: the worst of each kind")


def predictions_grid(
    predictions: Sequence[Prediction], labels: Sequence[str], source: Source
) -> Figure:
    """Show classified pictures, each under its prediction; red where its label differs."""
    pictures = [_try_load(each.name, source) for each in predictions]
    correct = [each.label() == label for each, label in zip(predictions, labels, strict=True)]
    titles = [f"{each.label()} {each.confidence:.0%}" for each in predictions]
    title = f"Predictions of process.py: {sum(correct)} of {len(correct)} correct, others in red"
    figure = _gallery(pictures, titles, 8, title)
    for axes, label, is_correct in zip(figure.axes, labels, correct, strict=False):
        if not is_correct:
            axes.title.set(text=f"{axes.get_title()}\nlabelled {label}", color="#c00000")
    return figure


def _gallery(
    pictures: Sequence[Image.Image | None], titles: Sequence[str], columns: int, title: str
) -> Figure:
    rows = max(1, -(-len(pictures) // columns))
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.25 * columns, 1.75 * rows + 0.5), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture, words in zip(grid.flat, pictures, titles, strict=False):
        axes.set_title(words, fontsize=8, parse_math=False)  # a name may hold dollar signs
        if picture is not None:
            axes.imshow(picture)
        else:
            axes.text(0.5, 0.5, "cannot be read", ha="center", fontsize=8)
    figure.suptitle(title)
    return _finish(figure)


def _sample(size: int, wanted: int, seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).permutation(size)[:wanted]]


def _try_load(name: str, source: Source) -> Image.Image | None:
    try:
        return load_image(name, source)
    except UnreadableImage:
        return None


def _in_two_lines(path: str) -> str:
    """Return a picture's name, the end of it where it is longer: names of a kind begin alike."""
    name = printable(path.rsplit("/", 1)[-1])
    if len(name) > 2 * _NAME_LINE:
        name = f"…{name[1 - 2 * _NAME_LINE :]}"
    return f"{name[:_NAME_LINE]}\n{name[_NAME_LINE:]}".rstrip("\n")


def draw_for_files() -> None:
    """Let this process draw where there is no display, and names with dollar signs as they are."""
    plt.switch_backend("agg")
    plt.rcParams["text.parse_math"] = False


def as_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A sign of a name that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _finish(figure: Figure) -> Figure:
    # Closed for pyplot, so that a notebook shows the figure once, as the cell's value.
    plt.close(figure)
    return figure
