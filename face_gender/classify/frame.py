"""Pictures of any kind -> a pandas table of predictions: what `face_gender.load` is for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageOps

from face_gender.classify.classifier import classify
from face_gender.classify.results import Prediction, Result, Skipped
from face_gender.console import progress_bar
from face_gender.data.base_source import without_resume
from face_gender.data.images import UnreadableImage
from face_gender.data.modes import to_rgb
from face_gender.data.sources import find_images
from face_gender.errors import InputError, first_line
from face_gender.files import read_file

if TYPE_CHECKING:
    from face_gender.classify.classifier import Classifier

Picture = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]
Pictures = Picture | Iterable[Picture]

_SLACK = 1e-3  # by which resampling may leave 0..1


@without_resume()
def classify_frame(
    classifier: Classifier,
    pictures: Pictures,
    recursive: bool = False,
    threshold: float = 0.0,
    load: tuple[int | None, int | None] = (None, None),
    progress: bool = True,
) -> pd.DataFrame:
    """Return the columns ``name, label, confidence``, one for each class, and ``error``.

    A classifier of every face gives a row for each, with its box (left, top, width, height) in
    pixels of the upright picture as ``face``, and a row without a label for a picture without one.

    ``pictures``: the path of a folder, of its .zip or of one picture; or a list of paths, PIL
    images and arrays. An array is uint8, or floats from 0 to 1, of shape (H, W, 3) RGB, (H, W)
    grey or (H, W, 4) RGBA. Rows of a folder are sorted by name. Those of a list stand in its
    order: a path is named as it was given, another picture by its place in the list. A picture
    that cannot be read has its reason in ``error``, and no label.

    ``recursive``: subfolders too. ``threshold``: the label is "uncertain" where the confidence,
    the probability of the most probable class, is below. ``load``: batch size and threads, each
    chosen where it is None. Raises InputError for a folder without pictures, an array of another
    kind, and for numbers out of range.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is a number from 0 to 1, not {threshold}.")
    if isinstance(pictures, str | os.PathLike):
        source, names = find_images(pictures, recursive)
        results = _classify(classifier, source, names, load, progress)
        results += [Skipped(*each) for each in source.unlisted]
        return _table(results, names + [name for name, _ in source.unlisted], classifier, threshold)
    if isinstance(pictures, Image.Image) or (
        isinstance(pictures, np.ndarray) and pictures.ndim in (2, 3)
    ):
        pictures = [pictures]
    listed = [each for i, one in enumerate(pictures) for each in _readers(one, i, recursive)]
    reader = SimpleNamespace(read=lambda place: listed[int(place)][1]())  # by its place in the list
    results = _classify(classifier, reader, list(map(str, range(len(listed)))), load, progress)
    return _table(results, [name for name, _ in listed], classifier, threshold)


def _classify(
    classifier: Classifier,
    source: Any,
    names: Sequence[str],
    load: tuple[int | None, int | None],
    progress: bool,
) -> list[Result]:
    stream = classify(classifier, source, names, *load)
    results = []
    with progress_bar(len(names), "classify", shown=progress) as bar:
        for result in stream:
            results.append(result)
            bar.update()
    return results


def _table(
    results: Sequence[Result], names: Sequence[str], classifier: Classifier, threshold: float
) -> pd.DataFrame:
    classes = classifier.checkpoint.classes
    rows: list[tuple[Any, ...]] = []
    for name, each in zip(names, results, strict=True):
        reason = each.reason if isinstance(each, Skipped) else None
        faces: Sequence[Prediction] = ()
        if isinstance(each, Prediction):
            faces = each.faces if classifier.every_face else [each]
        rows += [(name, f.label(threshold), f.confidence, *f.scores, None, f.box) for f in faces]
        if not faces:
            rows.append((name, None, np.nan, *[np.nan] * len(classes), reason, None))
    columns = ["name", "label", "confidence", *classes, "error", "face"]
    table = pd.DataFrame(rows, columns=columns, dtype=object)  # or None becomes nan
    if not classifier.every_face:
        table = table.drop(columns="face")
    return table.astype(dict.fromkeys(["confidence", *classes], float))


def _readers(
    picture: Picture, place: int, recursive: bool
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of a list's picture and what reads it, of a folder those of its pictures.

    What cannot be listed in a folder follows, with its reason.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        if os.path.isdir(path) or path.suffix.lower() == ".zip":
            source, names = find_images(picture, recursive)
            yield from ((f"{path}/{name}", partial(source.read, name)) for name in names)
            for name, reason in source.unlisted:
                yield f"{path}/{name}", partial(_refuse, name, reason)
        else:
            yield os.fspath(picture), partial(read_file, path)
    elif isinstance(picture, Image.Image):
        yield str(place), partial(_encoded, picture)
    else:
        _check_array(picture, place)
        yield str(place), lambda: _encoded(_from_array(picture))


def _refuse(name: str, reason: str) -> bytes:
    raise UnreadableImage(name, reason)


def _check_array(array: Any, place: int) -> None:
    found = f"of type {type(array).__name__}"
    if isinstance(array, np.ndarray):
        found = f"an array of {array.dtype} of shape {array.shape}"
        shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
        if shaped and array.size and array.dtype == np.uint8:
            return
        if shaped and array.size and array.dtype.kind == "f":
            low, high = float(array.min()), float(array.max())
            if -_SLACK <= low <= high <= 1 + _SLACK:  # which no nan is
                return
            found = f"an array of {array.dtype} from {low:g} to {high:g}"
    raise InputError(
        f"picture {place} is {found}: give a path, a PIL image or an array (H, W, 3), (H, W) or "
        "(H, W, 4) of uint8, or of floats from 0 to 1."
    )


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8:
        array = (array.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _encoded(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a file, so that one path leads from there to the net."""
    out = io.BytesIO()
    try:
        to_rgb(ImageOps.exif_transpose(image)).save(out, "PPM")
    except Exception as error:  # a file that PIL opened and cannot decode raises anything
        raise OSError(first_line(error)) from error
    return out.getvalue()
