"""The notebook's figures; the only room that knows matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from face_gender import CLASSES
from face_gender.dataset import FaceDataset
from face_gender.files import Source
from face_gender.images import UnreadableImage, load_image
from face_gender.index import SPLITS
from face_gender.inference import Prediction
from face_gender.metrics import Evaluation
from face_gender.preprocessing import Preprocessing
from face_gender.training import EpochReport

COLOURS = {"male": "#3b6fb6", "female": "#c8553d"}


def class_histogram(table: pd.DataFrame) -> Figure:
    """Show the number of pictures by split and class, from an index's table."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    width = 0.38
    for label, name in enumerate(CLASSES):
        places = np.arange(len(SPLITS)) + (label - 0.5) * width
        own = table[table["label"] == label]
        heights = [int((own["split"] == split).sum()) for split in SPLITS]
        axes.bar_label(axes.bar(places, heights, width * 0.95, label=name, color=COLOURS[name]))
    axes.set_xticks(range(len(SPLITS)), SPLITS)
    axes.set(ylabel="pictures", title=f"{len(table)} pictures by split and class")
    axes.margins(y=0.12)
    axes.legend()
    return _finish(figure)


def image_sizes(dataset: FaceDataset, sample: int = 2_000, seed: int = 0) -> Figure:
    """Show width against height, in pixels, of a random sample of a data set's pictures."""
    chosen = _sample(len(dataset), sample, seed)
    sizes, labels = [], []
    for i in chosen:
        try:
            sizes.append(load_image(str(dataset.paths[i]), dataset.source).size)
            labels.append(int(dataset.labels[i]))
        except UnreadableImage:
            continue
    points = np.array(sizes).reshape(-1, 2)
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for label, name in enumerate(CLASSES):
        own = points[np.array(labels) == label]
        axes.scatter(own[:, 0], own[:, 1], s=14, alpha=0.5, label=name, color=COLOURS[name])
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
    mean = np.array(preprocessing.mean)
    std = np.array(preprocessing.std)
    arrays = images.permute(0, 2, 3, 1).cpu().numpy() * std + mean
    pictures = [Image.fromarray((each.clip(0, 1) * 255).astype(np.uint8)) for each in arrays]
    titles = [CLASSES[int(label)] for label in labels]
    size = f"{preprocessing.height} x {preprocessing.width}"
    return _gallery(pictures, titles, columns, f"A training batch as the model sees it, {size}")


def curves(reports: Sequence[EpochReport]) -> Figure:
    """Show loss and accuracy by epoch, the best epoch marked."""
    epochs = [report.epoch for report in reports]
    best = [report for report in reports if report.is_best][-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.plot(epochs, [report.train_loss for report in reports], ".-", label="train")
    left.plot(epochs, [report.val_loss for report in reports], ".-", label="validation")
    left.set(xlabel="epoch", ylabel="loss per picture", title="Loss")
    right.plot(epochs, [r.val_accuracy for r in reports], ".-", color="black", label="accuracy")
    for name in best.recall:
        values = [report.recall[name] for report in reports]
        right.plot(epochs, values, ":", color=COLOURS.get(name), label=f"recall {name}")
    right.set(xlabel="epoch", ylabel="share right", ylim=(None, 1.02))
    right.set_title(f"Validation: best {best.val_accuracy:.3f} in epoch {best.epoch}")
    for axes in (left, right):
        axes.axvline(best.epoch, color="grey", linewidth=0.8, linestyle="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return _finish(figure)


def confusion_matrix(result: Evaluation) -> Figure:
    """Show counts by label and answer; the colour is the share of the row."""
    matrix = result.confusion
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(4.4, 3.6), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        share = shares[row, column]
        axes.text(column, row, f"{count}\n{share:.1%}", ha="center", va="center",
                  color="white" if share > 0.5 else "black")  # fmt: skip
    names = list(result.classes)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    low, high = result.interval
    axes.set(xlabel="answered", ylabel="labelled")
    axes.set_title(f"Accuracy {result.accuracy:.1%} ({low:.1%} to {high:.1%})")
    return _finish(figure)


def mistakes(result: Evaluation, source: Source, most: int = 16, columns: int = 8) -> Figure:
    """Show the wrong answers given with most confidence: what was answered, and the label.

    Where no answer is wrong, the least confident ones.
    """
    wrong = result.mistakes()
    chosen = wrong if len(wrong) else result.probabilities.max(axis=1).argsort()
    chosen = chosen[:most]
    pictures = [_try_load(str(result.paths[i]), source) for i in chosen]
    titles = [
        f"{result.classes[result.predictions[i]]} {result.probabilities[i].max():.0%}\n"
        f"labelled {result.classes[result.labels[i]]}"
        for i in chosen
    ]
    order = "the most confident first" if len(wrong) else "the least confident answers"
    title = f"{len(wrong)} of {len(result.labels)} answered wrong: {order}"
    return _gallery(pictures, titles, columns, title)


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


def answers_grid(
    predictions: Sequence[Prediction], labels: Sequence[str], source: Source, columns: int = 8
) -> Figure:
    """Show classified pictures, each under the answer that it got; red where its label differs."""
    pictures = [_try_load(each.name, source) for each in predictions]
    titles = [f"{each.label()} {each.confidence:.0%}" for each in predictions]
    right = [each.label() == label for each, label in zip(predictions, labels, strict=True)]
    title = f"Answers of process.py: {sum(right)} of {len(right)} as labelled, the others in red"
    figure = _gallery(pictures, titles, columns, title)
    for axes, is_right in zip(figure.axes, right, strict=False):
        axes.title.set_color("black" if is_right else "#c00000")
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
        axes.set_title(words, fontsize=8)
        if picture is not None:
            axes.imshow(picture)
        else:
            axes.text(0.5, 0.5, "cannot be read", ha="center", fontsize=7)
    figure.suptitle(title)
    return _finish(figure)


def _sample(size: int, wanted: int, seed: int) -> list[int]:
    chosen: list[int] = np.random.default_rng(seed).permutation(size)[:wanted].tolist()
    return chosen


def _try_load(name: str, source: Source) -> Image.Image | None:
    try:
        return load_image(name, source)
    except UnreadableImage:
        return None


def _finish(figure: Figure) -> Figure:
    # Closed for pyplot, so that a notebook shows the figure once, as the cell's value.
    plt.close(figure)
    return figure
