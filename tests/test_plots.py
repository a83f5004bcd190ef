"""Figures show what they are given."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_index
from PIL import Image

from face_gender import plots
from face_gender.classify.results import Prediction
from face_gender.data.dataset import FaceDataset
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import open_source
from face_gender.evaluate.metrics import Evaluation
from face_gender.evaluate.report import EVERY, THRESHOLDS, Tried
from face_gender.evaluate.robustness import CONDITIONS
from face_gender.train.run import EpochReport


def make_result(paths: list[str], answers: list[float]) -> Evaluation:
    """Pictures labelled male; ``answers`` are the probabilities of female."""
    female = np.array(answers, dtype=np.float32)
    return Evaluation(
        classes=("male", "female"),
        paths=np.array(paths),
        labels=np.zeros(len(paths), dtype=np.int64),
        probabilities=np.stack([1 - female, female], axis=1),
        loss=0.5,
    )


def test_histogram_counts_every_picture(faces: Path) -> None:
    report = make_index(faces)
    figure = plots.class_histogram(report.table)
    heights = sorted(int(bar.get_height()) for bar in figure.axes[0].patches)
    assert heights == [3, 3, 3, 3, 14, 14]


def test_sizes_leave_out_what_cannot_be_read(faces: Path) -> None:
    report = make_index(faces)
    dataset = FaceDataset(report, None)
    (faces / str(dataset.paths[0])).write_bytes(b"gone bad")
    assert plots.image_sizes(dataset).axes[0].get_title() == "Sizes of 39 pictures"
    assert plots.face_grid(dataset, rows=5).axes


def test_batch_grid_puts_the_colours_back() -> None:
    preprocessing = Preprocessing(8, 6)
    picture = Image.new("RGB", (6, 8), (250, 130, 10))
    batch = preprocessing.eval_transform()(picture).unsqueeze(0)
    figure = plots.batch_grid(batch, torch.tensor([1]), preprocessing, columns=1)
    printable = np.asarray(figure.axes[0].images[0].get_array())
    assert np.abs(printable.astype(int) - [250, 130, 10]).max() <= 1
    assert figure.axes[0].get_title() == "female"


def test_mistakes_come_with_the_most_confident_first(faces: Path) -> None:
    paths = [f"male/m_{i}.jpg" for i in range(4)]
    figure = plots.mistakes(make_result(paths, [0.6, 0.1, 0.9, 0.2]), open_source(faces))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == ["female 90%", "female 60%"]


def test_without_mistakes_the_least_confident_are_shown(faces: Path) -> None:
    paths = [f"male/m_{i}.jpg" for i in range(2)]
    figure = plots.mistakes(make_result(paths, [0.1, 0.4]), open_source(faces))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == ["male 60%", "male 90%"]


def test_confusion_matrix_writes_counts_and_fractions() -> None:
    figure = plots.confusion_matrix(make_result(["a", "b", "c", "d"], [0.9, 0.1, 0.1, 0.1]))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3\n75.0%", "1\n25.0%", "0\n0.0%", "0\n0.0%"]


def reports_of(epochs: range) -> list[EpochReport]:
    return [
        EpochReport(i, 0.5, 0.4, 0.7, {"male": 0.6, "female": 0.8}, 1.0, 9.0, i == 0, Path("x"))
        for i in epochs
    ]


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_mark_the_best_epoch(epochs: int) -> None:
    assert "epoch 0" in plots.curves(reports_of(range(epochs))).axes[1].get_title()


def test_curves_of_a_resumed_training_may_lack_the_best_epoch() -> None:
    figure = plots.curves(reports_of(range(1, 3)))
    assert figure.axes[1].get_title() == "Validation"
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2]


def test_answers_that_differ_from_the_label_are_red(faces: Path) -> None:
    answers = [Prediction(f"male/m_{i}.jpg", ("male", "female"), (0.9, 0.1)) for i in range(2)]
    figure = plots.predictions_grid(answers, ["male", "female"], open_source(faces))
    assert [axes.title.get_color() for axes in figure.axes[:2]] == ["black", "#c00000"]


def test_worst_findings_are_a_row_an_issue_and_copies_stand_beside_each_other(faces: Path) -> None:
    rows = [
        ("male/m_0.jpg", "male", "exact_duplicate", 1.0, "male/m_1.jpg", "leave out", ""),
        ("male/m_2.jpg", "male", "label", 0.9, "", "relabel", "female"),
        ("male/gone.jpg", "male", "unreadable", 1.0, "", "replace", ""),
    ]
    columns = ["path", "label", "issue", "score", "related", "suggestion", "looks_like"]
    figure = plots.worst_findings(pd.DataFrame(rows, columns=columns), open_source(faces))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("exact duplicate") and titles[1].strip() == "same as left"
    assert "looks female" in titles[8]
    assert titles[16].startswith("unreadable")
    assert len(figure.axes) == 24


def spread(count: int = 60) -> Evaluation:
    """Answers of every confidence, the surer the more often right."""
    return make_result(
        [f"male/m_{i}.jpg" for i in range(count)], np.linspace(0, 0.8, count).tolist()
    )


def test_reliability_has_a_point_for_each_bin_and_counts_every_picture() -> None:
    result = spread()
    upper, lower = plots.reliability(result).axes
    filled = [each for each in result.reliability() if each.pictures]
    points = upper.lines[1].get_xydata()
    assert points.tolist() == [[each.confidence, each.accuracy] for each in filled]
    assert sum(bar.get_height() for bar in lower.patches) == len(result.labels)
    assert f"{result.calibration_error:.1%}" in upper.get_title()
    low, high = upper.get_ylim()
    assert low < min(each.accuracy for each in filled) and high > 1


@pytest.mark.parametrize("answers", [[0.1], [0.9], [0.5], [0.0, 1.0], [0.3] * 30])
def test_figures_of_few_answers_are_drawn(answers: list[float]) -> None:
    result = make_result([f"{i}.jpg" for i in range(len(answers))], answers)
    for figure in (plots.reliability(result), plots.coverage(result)):
        assert plots.as_png(figure).startswith(b"\x89PNG")


def test_coverage_marks_the_thresholds() -> None:
    result = spread()
    (axes,) = plots.coverage(result).axes
    curve, marks = (line.get_xydata() for line in axes.lines)
    assert curve[0].tolist() == [1, result.accuracy]
    fractions = [each.fraction for each in result.coverage(THRESHOLDS) if each.pictures]
    assert marks[:, 0].tolist() == fractions
    assert [text.get_text() for text in axes.texts][-2:] == ["60%", "all"]


def test_thresholds_that_leave_the_same_answers_are_marked_once() -> None:
    (axes,) = plots.coverage(make_result(["a", "b", "c"], [0.04, 0.04, 0.32])).axes
    assert [text.get_text() for text in axes.texts] == ["70%", "all"]


def test_robustness_has_a_line_a_source_or_one_of_all() -> None:
    result = spread()
    half = {"web": result.subset(result.correct), "_scan": result.subset(~result.correct)}
    for parts, names in (({}, [EVERY]), ({"web": result}, [EVERY]), (half, ["web", "_scan"])):
        tried = [Tried(each, {EVERY: result, **parts}) for each in CONDITIONS]
        framing, blur, size = plots.robustness(tried).axes
        legend = framing.get_legend()
        assert [text.get_text().strip() for text in legend.get_texts()] == names
        ticks = [axes.get_xticklabels()[0].get_text() for axes in (framing, blur, size)]
        assert ticks == ["zoom\n1.4", "as\ngiven", "as\ngiven"]
        assert sum(len(axes.get_xticks()) for axes in (framing, blur, size)) == len(CONDITIONS) + 2


def test_a_mistake_that_cannot_be_shown_ends_nothing(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is gone since, its name is a formula to matplotlib, and long."""
    monkeypatch.setitem(matplotlib.rcParams, "text.parse_math", True)  # as it is in a notebook
    names = ["male/gone.jpg", "male/$\\frac$.jpg", f"male/{'a' * 60}.jpg", "male/\udcff\n.jpg"]
    figure = plots.mistakes(make_result(names, [0.9] * 4), open_source(faces))
    titles = [axes.get_title().split("\n")[2:] for axes in figure.axes[:4]]
    assert titles[:2] == [["gone.jpg"], ["$\\frac$.jpg"]]
    assert titles[2] == ["…" + "a" * 16, "a" * 13 + ".jpg"]
    assert [axes.texts[0].get_text() for axes in figure.axes[:4]] == ["cannot be read"] * 4
    assert plots.as_png(figure)
