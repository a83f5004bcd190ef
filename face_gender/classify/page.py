"""The page on which a person goes through predictions and corrects them: one HTML file.

No server, no network: what is shown lies in the page, but for pictures beyond a limit, which are
linked to. page.html and page.js, the template, show sixty of them at a time.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from face_gender.classify.results import Box, Prediction, Skipped, around, scaled
from face_gender.data.images import UnreadableImage, decode_image, full_side, read_bytes
from face_gender.data.sources import FileSource, FolderSource, Source
from face_gender.files import cpu_count, write_atomically
from face_gender.model.explain import CAVEAT, overlays

if TYPE_CHECKING:
    from face_gender.classify.classifier import Classifier, View

THUMBNAILS_LIMIT = 64 * 2**20

# Pixels of the longer side of a thumbnail, and of a photograph that holds small faces.
_SIDE, _PHOTO_SIDE = 128, 400
# The part of a photograph from which a face is as good as the photograph, and what is shown
# around a smaller one, in sides of its box.
_WHOLE, _MARGIN = 0.4, 0.35
_BLOCK = 32  # thumbnails in one element of the page
_CHUNK = 256  # pictures read before the size is looked at
# "<" would end the script that holds the data; lone surrogates are in no encoding; the others are
# unsafe or invisible in some parser. All of them stand inside strings, where \uXXXX is the same.
_UNSAFE = re.compile("[<>&\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


def write_page(
    path: str | os.PathLike[str],
    predictions: Iterable[Prediction],
    skipped: Iterable[Skipped],
    source: Source,
    *,
    threshold: float = 0.0,
    facts: Sequence[tuple[str, str]] = (),
    thumbnails_limit: int = THUMBNAILS_LIMIT,
    explanations: Mapping[Prediction, npt.NDArray[np.uint8]] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write predictions as one self-contained HTML file, UTF-8, whole or not at all.

    Several predictions with one name are faces of one picture of ``source``, counted as they come.
    ``threshold``: below this confidence, a label is "uncertain". ``facts``: names and values for
    the head of the page. Pictures are embedded from the least confident on, up to
    ``thumbnails_limit`` bytes of the page; beyond, the page links to files of a folder, and shows
    none of an archive. ``progress`` is called with the number of pictures that were read.
    ``explanations``: what `overlays` of `model.explain` gives of some. Raises InputError where
    ``path`` cannot be written.
    """
    given = list(predictions)
    order = sorted(range(len(given)), key=lambda i: (given[i].confidence, given[i].name))
    ordered = [given[i] for i in order]
    # Of each picture, the places of its faces as they were given, as a CSV has them.
    faces: dict[str, list[int]] = {each.name: [] for each in ordered}
    for place in np.argsort(order).tolist():
        faces[ordered[place].name].append(place)
    thumbnails = _Thumbnails()
    why = _explained(ordered, explanations or {}, thumbnails)
    embedded = _embed(ordered, faces, source, thumbnails, thumbnails_limit, workers, progress)
    data = {
        **_entries(ordered, faces, threshold),
        **embedded,
        "why": why,
        "caveat": CAVEAT,
        "skipped": sorted([each.name, each.reason] for each in skipped),
        "facts": [[str(name), str(value)] for name, value in facts],
        "base": _base(source, Path(path)),
        "block": _BLOCK,
        "next": _next_step(source),
    }
    here = Path(__file__)
    pieces = {
        "data": [as_json(data)],
        "script": [here.with_suffix(".js").read_bytes()],
        "thumbnails": thumbnails.blocks(),
    }
    template = here.with_suffix(".html").read_text(encoding="utf-8")
    write_atomically(path, lambda file: file.writelines(fill(template, pieces)))


def explain_doubtful(
    classifier: Classifier, source: Source, predictions: Iterable[Prediction], most: int = 200
) -> dict[Prediction, npt.NDArray[np.uint8]]:
    """Return what spoke for the label of the ``most`` least confident predictions.

    Their pictures are read, and their faces found, once more.
    """
    model, _ = classifier.checkpoint.build()
    found = {}
    views_of: dict[str, list[View] | Skipped] = {}
    for each in heapq.nsmallest(most, predictions, key=lambda one: one.confidence):
        if each.name not in views_of:
            views_of[each.name] = classifier.views(source, each.name)
        views = views_of[each.name]
        if isinstance(views, Skipped):
            continue
        view = next((view for view in views if view.box == each.box), views[0])
        label = each.scores.index(each.confidence)
        preprocessing = classifier.checkpoint.preprocessing
        found[each] = overlays(model, preprocessing, view.prepared[None], label)[0]
    return found


def fill(template: str, pieces: Mapping[str, Iterable[bytes]]) -> Iterator[bytes]:
    """Yield a template with its {{placeholders}} replaced; what is filled in is not looked at."""
    for i, part in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        yield from pieces[part] if i % 2 else [part.encode()]


def as_json(data: object) -> bytes:
    """Return data as JSON that is safe inside a script element, whatever names it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


class _Thumbnails:
    """JPEG files in the order in which they were added, and how large they are in the page."""

    def __init__(self) -> None:
        self._encoded: list[bytes] = []
        self.size = 0

    def add(self, jpeg: bytes) -> int:
        """Keep a file; return its number."""
        self._encoded.append(base64.b64encode(jpeg) + b"\n")
        self.size += len(self._encoded[-1])
        return len(self._encoded) - 1

    def blocks(self) -> Iterator[bytes]:
        """Yield an element for some thumbnails at a time; the page decodes only what it shows."""
        for start in range(0, len(self._encoded), _BLOCK):
            yield b'<script type="text/plain" id="t%d">' % (start // _BLOCK)
            yield from self._encoded[start : start + _BLOCK]
            yield b"</script>\n"


def _entries(
    ordered: Sequence[Prediction], faces: Mapping[str, Sequence[int]], threshold: float
) -> dict[str, Any]:
    """Return the predictions as page.js reads them: a list for each of their properties."""
    number = {name: i for i, name in enumerate(faces)}
    classes = ordered[0].classes if ordered else ()
    entries = {
        "classes": classes,
        "names": list(faces),
        "picture": [number[each.name] for each in ordered],
        "label": [each.scores.index(each.confidence) for each in ordered],
        "confidence": [round(each.confidence, 4) for each in ordered],
    }
    boxes = {place: each.box for place, each in enumerate(ordered) if each.box}
    several = [own for own in faces.values() if len(own) > 1]
    return {
        **entries,
        # Labels that a person gives are kept by it: those of other predictions never show up.
        "hash": hashlib.sha256(as_json(entries)).hexdigest()[:32],
        "uncertain": sum(each.confidence < threshold for each in ordered),
        "threshold": threshold,
        "face": {place: number for own in several for number, place in enumerate(own)},
        "box": {place: [round(float(side), 1) for side in box] for place, box in boxes.items()},
    }


class _Shots(NamedTuple):
    """Of one picture: its (width, height), a JPEG file for each face, one of it all or None.

    The size is that of the file, as boxes are; of large ones, a half is read.
    """

    size: tuple[int, int]
    faces: list[bytes]
    photo: bytes | None


def _embed(
    ordered: Sequence[Prediction],
    faces: Mapping[str, Sequence[int]],
    source: Source,
    thumbnails: _Thumbnails,
    limit: int,
    workers: int | None,
    progress: Callable[[int], object] | None,
) -> dict[str, Any]:
    """Read pictures in order until their thumbnails fill the limit; return their numbers."""
    thumb = [-1] * len(ordered)
    photo: dict[int, int] = {}
    sizes: dict[int, tuple[int, int]] = {}

    def read(item: tuple[str, Sequence[int]]) -> _Shots | None:
        return _shoot(source, item[0], [ordered[place].box for place in item[1]])

    remaining = iter(enumerate(faces.items()))
    with ThreadPoolExecutor(min(workers or cpu_count(), _CHUNK)) as pool:
        while thumbnails.size < limit and (chunk := list(itertools.islice(remaining, _CHUNK))):
            shots = pool.map(read, [item for _, item in chunk])
            for (i, (_, own)), shot in zip(chunk, shots, strict=True):
                if shot is not None and thumbnails.size < limit:
                    for place, jpeg in zip(own, shot.faces, strict=True):
                        thumb[place] = thumbnails.add(jpeg)
                    sizes[i] = shot.size
                    if shot.photo:
                        photo[i] = thumbnails.add(shot.photo)
                if progress:
                    progress(1)
    boxed = {i for i, own in enumerate(faces.values()) if ordered[own[0]].box}
    return {"thumb": thumb, "photo": photo, "size": {i: sizes[i] for i in sizes.keys() & boxed}}


def _shoot(source: Source, name: str, boxes: Sequence[Box | None]) -> _Shots | None:
    """Return the thumbnails of one picture, None where it cannot be read any more."""
    try:
        data = read_bytes(name, source)
        image = decode_image(data, name)
    except UnreadableImage:
        return None
    scale = max(image.size) / full_side(data, image.size)
    size = round(image.width / scale), round(image.height / scale)
    boxes = [box and scaled(box, scale) for box in boxes]
    small = [box for box in boxes if box and box[2] * box[3] < _WHOLE * image.width * image.height]
    if not small:
        return _Shots(size, [thumbnail(image, _SIDE)] * len(boxes), None)
    shots = [thumbnail(_cut_out(image, box) if box else image, _SIDE) for box in boxes]
    return _Shots(size, shots, thumbnail(image, _PHOTO_SIDE))


def _cut_out(image: Image.Image, box: Box) -> Image.Image:
    """Return a face with something around it. The file can have changed since it was found."""
    margin = _MARGIN * max(box[2:])
    return image.crop(around(box, image.size, margin, margin))


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Return a picture as a JPEG file of at most so many pixels a side."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=78)
    return file.getvalue()


def _explained(
    ordered: Sequence[Prediction],
    explanations: Mapping[Prediction, npt.NDArray[np.uint8]],
    thumbnails: _Thumbnails,
) -> dict[int, int]:
    """Return the thumbnail's number of each explanation, by the prediction's place."""
    return {
        place: thumbnails.add(thumbnail(Image.fromarray(explanations[each]), 2 * _SIDE))
        for place, each in enumerate(ordered)
        if each in explanations
    }


def _base(source: Source, page: Path) -> str | None:
    """Return the address of a folder as the page links to it, None for an archive."""
    if not isinstance(source, FolderSource):
        return None
    folder, own = os.path.realpath(source.path), os.path.dirname(os.path.realpath(page))
    try:
        return quote(os.fsencode(Path(os.path.relpath(folder, own)).as_posix()))
    except ValueError:  # on another drive of Windows
        return Path(folder).as_uri()


def _next_step(source: Source) -> list[str]:
    """Return what to do with exported labels: in words, and the command."""
    if isinstance(source, FileSource):
        command = f"python process.py {_quoted(source.path)} --recursive"
        return ["To make a data set, label the one folder that holds all pictures:", command]
    folder, before = source.path, ""
    if not isinstance(source, FolderSource):
        before = f"Unpack {source.path} into {source.path.with_suffix('')}. "
        folder = source.path.with_suffix("") / source.top
    command = f"python data_split.py {_quoted(folder / 'labels.csv')}"
    return [f"{before}Put labels.csv into {folder}, then:", command]


def _quoted(path: Path) -> str:
    """Return a path as it stands in a command."""
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(os.fspath(path))
