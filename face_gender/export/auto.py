"""``--engine auto``: an 8-bit graph of the net, made at first use and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from face_gender.classify.classifier import Classifier
from face_gender.classify.engines import MARGIN, OpenVino, graph_path, openvino_core
from face_gender.classify.results import Prediction
from face_gender.data.sources import Source
from face_gender.errors import first_line
from face_gender.export.graph import calibration_batches, evenly, write_graph
from face_gender.files import cpu_count, make_folder, remove_leftovers, sha256_of

# From so many pictures of 96 x 96 for each processor on, it saves more time than it takes to look
# at some and compile the graph (2 s), and to make it (17 s): 5 ms each. Of larger ones, fewer.
WORTH_COMPILING = 1_000
WORTH_MAKING = 5_000

_CALIBRATED_ON = 300  # pictures
_LOOKED_AT = 60
_MOST_KEPT = 8  # graphs, of some 10 MB each
_STALE = 3600  # seconds after which an unfinished file is nobody's
_FORMAT = 1  # of the graphs; another number makes all of them anew


def with_graph(
    classifier: Classifier,
    weights: Path,
    source: Source,
    names: Sequence[str],
    begun: Mapping[str, Any],
    say: Callable[[str], object],
) -> Classifier:
    """Return the classifier with the engine that labels these pictures soonest.

    On a CPU that calculates in float32 alone, with OpenVINO installed, that is the 8-bit graph of
    ``weights``: where it is kept already from WORTH_COMPILING pictures for each processor on, else
    from WORTH_MAKING, and not where the net is unsure of most pictures, which it would have to
    classify again. The graph is fitted to the pictures themselves. ``begun``: the
    `classifier.origin` of a run that is gone on with, whose engine is taken. Whatever fails,
    ``say`` is given the reason and the net itself classifies.
    """
    on_slow_cpu = classifier.device.type == "cpu" and classifier.dtype == torch.float32
    pictures = _equivalent(classifier, len(names))
    is_worth_it = begun.get("engine") == "openvino" if begun else pictures >= WORTH_COMPILING
    if not on_slow_cpu or not is_worth_it or not _installed("openvino"):
        return classifier
    graph: Path | None = None
    try:
        path = _kept(begun, weights) if begun else cached_path(classifier, weights, source, names)
        if path is None or not (path.is_file() or _can_make(pictures)):
            return classifier
        openvino_core()  # before the work: a broken package is told in a moment
        if not begun and _is_unsure(classifier, source, names):
            return classifier
        graph = path
        if not graph.is_file():
            _make(graph, classifier, weights, source, names, say)
        return replace(classifier, engine=OpenVino(classifier.checkpoint, weights, graph=graph))
    except Exception as error:  # of libraries that are there for speed alone
        if graph is not None and not begun:  # else another command can go on with it
            with suppress(OSError):
                graph.unlink()
        say(f"by torch, as the 8-bit graph cannot be used ({first_line(error)})")
        return classifier


def cache_folder() -> Path:
    """Return where graphs are kept: $XDG_CACHE_HOME, else the system's place for such files."""
    place = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not place.is_absolute():
        if sys.platform == "win32":
            place = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            place = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return place / "face-gender"


def cached_path(
    classifier: Classifier, weights: Path, source: Source, names: Sequence[str]
) -> Path:
    """Return where the graph of these weights lies, or would, as fitted to these pictures."""
    calibration = [(name, source.stamp(name)) for name in evenly(names, _CALIBRATED_ON)]
    checkpoint = classifier.checkpoint
    made_of = [
        _FORMAT,
        sha256_of(weights),
        checkpoint.recipe.name,
        checkpoint.classes,
        classifier.detector is not None,
        os.path.abspath(source.path),
        calibration,
    ]
    return cache_folder() / f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()}.onnx"


def _kept(begun: Mapping[str, Any], weights: Path) -> Path | None:
    """Return where the graph of an earlier run lies, whatever its pictures are by now, or None."""
    own, kept = sha256_of(weights), [graph_path(weights), *cache_folder().glob("*.onnx")]
    found = (path for path in kept if path.is_file())
    return next((path for path in found if [own, sha256_of(path)] == begun["weights"]), None)


def _equivalent(classifier: Classifier, pictures: int) -> float:
    """Return how many pictures of 96 x 96 cost each processor as much as these."""
    preprocessing = classifier.checkpoint.preprocessing
    return pictures * preprocessing.height * preprocessing.width / (96 * 96 * cpu_count())


def _can_make(pictures: float) -> bool:
    return pictures >= WORTH_MAKING and _installed("onnx", "onnxscript", "onnxruntime")


def _installed(*names: str) -> bool:
    return all(find_spec(name) is not None for name in names)


def _is_unsure(classifier: Classifier, source: Source, names: Sequence[str]) -> bool:
    """Tell whether two classes are within MARGIN of each other in most of some pictures."""
    plain = replace(classifier, checkpoint=replace(classifier.checkpoint, temperature=1.0))
    found = plain.predict(source, evenly(names, _LOOKED_AT))
    ordered = [sorted(each.scores) for each in found if isinstance(each, Prediction)]
    return 2 * sum(scores[-1] - scores[-2] < MARGIN for scores in ordered) > len(ordered)


def _make(
    path: Path,
    classifier: Classifier,
    weights: Path,
    source: Source,
    names: Sequence[str],
    say: Callable[[str], object],
) -> None:
    make_folder(path.parent, "XDG_CACHE_HOME")
    say(f"fitting an 8-bit graph to these pictures, kept in {path.parent}: --engine torch does not")
    batches = calibration_batches(
        classifier.checkpoint.preprocessing,
        classifier.detector,
        source,
        evenly(names, _CALIBRATED_ON),
    )
    write_graph(classifier.checkpoint, weights, path, batches)
    remove_leftovers(path.parent, seconds=_STALE)
    kept = sorted(path.parent.glob("*.onnx"), key=os.path.getmtime)
    for old in kept[:-_MOST_KEPT]:
        with suppress(OSError):
            old.unlink()
