"""A net with what belongs to it: names -> batches of pictures -> probabilities -> predictions."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from face_gender.classify.engines import MARGIN, Engine, OpenVino
from face_gender.classify.results import Box, Prediction, Result, Skipped, around, scaled
from face_gender.data.images import UnreadableImage, decode_pixels, full_side, read_bytes
from face_gender.data.preprocessing import stack
from face_gender.data.sources import Reader
from face_gender.devices import halving_on_oom, mixed_precision, pick_device
from face_gender.errors import InputError, excerpt, first_line
from face_gender.faces.alignment import align as aligned
from face_gender.faces.detector import DETECTOR_SIDE, Detector, Face, load_detector
from face_gender.files import cpu_count, sha256_of
from face_gender.model.architectures import for_inference, lead_of, probabilities_of, with_mirror
from face_gender.model.checkpoint import Checkpoint, load_checkpoint
from face_gender.threads import threads_on_one_core_each

if TYPE_CHECKING:
    import pandas as pd

    from face_gender.classify.frame import Pictures

# Pictures that a thread takes at a time: a GPU wants many, on a CPU more are no faster. There, of
# large ones fewer are, as what the net makes of them leaves the processor's caches.
_BATCH = {"cpu": 32, "cuda": 64}
_MOST_PIXELS = 400_000
# With an engine two such batches: the net is then not asked for two or three pictures at a time.
_BATCH_WITH_ENGINE = 64
# A system gives no process threads without end.
_MOST_THREADS = 256
# Faces that the net takes at a time: a group photograph may hold a thousand.
_MOST_VIEWS = 256
# Metal ends the process where two threads use it at a time (pytorch issue 197805).
_ONE_AT_A_TIME = threading.Lock()
# What weights that do not align see around each of several faces, in widths and heights of its box.
_AROUND = 0.2

Align = Literal["auto", "never"]
Faces = Literal["one", "all"]


class View(NamedTuple):
    """One face of a picture, or all of it: ``prepared`` uint8 (3, H, W) as the net takes it.

    ``box`` in pixels of the upright picture and ``crop`` as in `Prediction`.
    """

    prepared: Tensor
    box: Box | None = None
    crop: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Classifier:
    """A net on its device, in its fastest form, with what belongs to it.

    ``model`` takes ``dtype``, which is a 16-bit type where the hardware calculates in it faster.
    ``engine`` predicts before it, in lower precision: ``model`` is asked where classes are close.
    ``detector`` finds the face to classify, None for whole pictures; with ``every_face`` each face
    is classified, and with ``crop_size`` predictions carry the aligned face of that side.
    """

    checkpoint: Checkpoint
    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    engine: OpenVino | None = None
    detector: Detector | None = None
    every_face: bool = False
    crop_size: int = 0

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) uint8, resized -> (n, classes) float32 on the CPU, rows adding up to one.

        May be called from several threads. A batch that does not fit into memory is halved. Raises
        InputError where the net cannot run on pictures of this size.
        """
        alone = _ONE_AT_A_TIME if self.device.type == "mps" else nullcontext()
        try:
            with alone:
                return halving_on_oom(self._by_engine if self.engine else self._by_model, pixels)
        except (RuntimeError, AssertionError, ValueError) as error:
            height, width = pixels.shape[-2:]
            reason = first_line(error).split(". ")[0]
            raise InputError(
                f"{self.checkpoint.recipe.arch} cannot run on pictures of {height} x {width} "
                f"pixels ({reason}): use other weights, or --device cpu."
            ) from error

    def _by_model(self, pixels: Tensor) -> Tensor:
        images = self.checkpoint.preprocessing.normalized(pixels.to(self.device)).to(self.dtype)
        outputs = with_mirror(self.model, images, self.checkpoint.recipe.mirror_within)
        return probabilities_of(outputs, self.checkpoint.temperature).cpu()

    def _by_engine(self, pixels: Tensor) -> Tensor:
        assert self.engine is not None
        rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        parts = [rows[i : i + _BATCH["cpu"]] for i in range(0, len(rows), _BATCH["cpu"])]
        outputs = torch.from_numpy(np.concatenate([self.engine.outputs(part) for part in parts]))
        # Of temperature 1, as MARGIN was measured: how far off the engine is does not hang on T.
        close = lead_of(outputs) < MARGIN
        found = probabilities_of(outputs, self.checkpoint.temperature)
        if close.any():
            found[close] = self._by_model(pixels[close])
        return found

    def classify(
        self,
        pictures: Pictures,
        *,
        recursive: bool = False,
        threshold: float = 0.0,
        batch_size: int | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Return a table with a row for each picture; see `frame.classify_frame`."""
        from face_gender.classify.frame import classify_frame  # commands do without pandas

        load = (batch_size, workers)
        return classify_frame(self, pictures, recursive, threshold, load, progress)

    def predict(self, source: Reader | None, names: Sequence[str]) -> list[Result]:
        """Read and classify a batch of pictures, in order; ``source`` None: names are paths."""
        read = [self.views(source, name) for name in names]
        views = [view.prepared for item in read if not isinstance(item, Skipped) for view in item]
        parts = [views[i : i + _MOST_VIEWS] for i in range(0, len(views), _MOST_VIEWS)]
        rows = itertools.chain(*(self.probabilities(stack(part)).tolist() for part in parts))
        return [
            item if isinstance(item, Skipped) else self._prediction(name, item, rows)
            for name, item in zip(names, read, strict=True)
        ]

    def views(self, source: Reader | None, name: str) -> list[View] | Skipped:
        """Return the faces to classify in a picture, or the whole picture where there is none."""
        preprocessing = self.checkpoint.preprocessing
        try:
            data = read_bytes(name, source)
            of_all = DETECTOR_SIDE if self.every_face else 0
            least = max(preprocessing.at_least, 4 * self.crop_size, of_all)
            pixels = decode_pixels(data, name, least)
        except UnreadableImage as error:
            return Skipped(name, error.reason)
        if self.detector is None:
            return [View(preprocessing.resized(pixels))]
        array = pixels.permute(1, 2, 0).contiguous().numpy()
        faces = self.detector.detect(array, everywhere=self.every_face)
        chosen = faces if self.every_face else faces[:1]
        if not chosen:
            return [View(preprocessing.resized(pixels))]
        height, width = pixels.shape[1:]
        scale = full_side(data, (width, height)) / max(width, height)
        return [self._view(pixels, array, face, scale) for face in chosen]

    def _view(self, pixels: Tensor, array: npt.NDArray[np.uint8], face: Face, scale: float) -> View:
        """Return a face of a picture, which is ``scale`` times as large, as the weights want it."""
        preprocessing = self.checkpoint.preprocessing
        box: Box | None = scaled(face.box, scale)
        if preprocessing.aligns:
            prepared = preprocessing.prepare(pixels, face)
        elif self.every_face:
            wide, tall = _AROUND * face.box[2], _AROUND * face.box[3]
            left, top, right, bottom = around(face.box, array.shape[1::-1], wide, tall)
            prepared = preprocessing.resized(pixels[:, top:bottom, left:right])
        else:  # the face is sought for its crop alone
            prepared, box = preprocessing.resized(pixels), None
        return View(prepared, box, self._crop(array, face))

    def _crop(self, array: npt.NDArray[np.uint8], face: Face) -> npt.NDArray[np.uint8] | None:
        if not self.crop_size:
            return None
        size = (self.crop_size, self.crop_size)
        return aligned(array, face.landmarks, face.box, size, self.checkpoint.preprocessing.margin)

    def _prediction(self, name: str, views: Sequence[View], rows: Iterator[list[float]]) -> Result:
        classes = self.checkpoint.classes
        scores = [tuple(next(rows)) for _ in views]
        if not all(math.isfinite(value) for row in scores for value in row):
            return Skipped(name, "the net's output is not a number: its weights are damaged")
        first, *others = [
            Prediction(name, classes, row, view.box, crop=view.crop)
            for row, view in zip(scores, views, strict=True)
        ]
        return replace(first, others=tuple(others)) if others else first


def load_classifier(
    weights: str | os.PathLike[str],
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    mixed: bool = True,
    engine: Engine = "torch",
    align: Align = "auto",
    faces: Faces = "one",
    crop_size: int = 0,
) -> Classifier:
    """Open a checkpoint, or a plain state_dict with its ``recipe`` and ``classes``.

    ``mixed``: calculate in 16 bits where the hardware does. ``engine`` "openvino": the graph that
    `face_gender.export` wrote beside the file predicts, on the CPU, and the net in float32 where
    two classes are close. ``align`` "never": classify whole pictures, also with weights that were
    trained on aligned faces. ``faces`` "all": classify every face. ``crop_size``: side in pixels of
    the aligned faces that predictions carry, 0 for none. Raises InputError for a file that is
    neither, for a device that is not there, for a graph that is missing or of other weights, and
    where the detector's packages are missing.
    """
    _check_choice("engine", engine, ("torch", "openvino"))
    _check_choice("align", align, ("auto", "never"))
    _check_choice("faces", faces, ("one", "all"))
    if align == "never" and (faces == "all" or crop_size):
        raise InputError("faces='all' and crop_size need faces to be found: leave align out.")
    if classes is not None and not _are_names(classes):
        raise InputError(
            f"classes are a list of names such as ['female', 'male'], not {classes!r}."
        )
    checkpoint = load_checkpoint(weights, recipe, classes)
    detects = align == "auto" and (
        checkpoint.preprocessing.aligns or faces == "all" or crop_size > 0
    )
    detector = load_detector() if detects else None
    model, _ = checkpoint.build()
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise InputError(f"engine openvino runs on the CPU and not on {device}: use 'cpu'.")
    chosen = pick_device("cpu" if engine == "openvino" else device)
    dtype = (mixed_precision(chosen) if mixed else None) or torch.float32
    graph = None
    if engine == "openvino":
        graph = OpenVino(checkpoint, Path(weights), sixteen_bits=dtype != torch.float32)
        dtype = torch.float32  # of the net that is asked again
    model = for_inference(model, chosen, dtype)
    every = faces == "all" and detector is not None
    return Classifier(checkpoint, model, chosen, dtype, graph, detector, every, crop_size)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is one of {', '.join(choices)}, not {excerpt(value)}.")


def _are_names(classes: Sequence[str]) -> bool:
    return not isinstance(classes, str) and all(isinstance(each, str) for each in classes)


def origin(classifier: Classifier, weights: Path) -> dict[str, Any]:
    """Return, as plain data of JSON, what predictions depend on besides the pictures.

    Raises OSError where ``weights``, the file of the classifier, cannot be read any more.
    """
    files = [weights, classifier.engine.path] if classifier.engine else [weights]
    return {
        "engine": "openvino" if classifier.engine else "torch",
        "weights": [sha256_of(path) for path in files],
        "recipe": classifier.checkpoint.recipe.name,
        "classes": list(classifier.checkpoint.classes),
        "device": classifier.device.type,
        "precision": str(classifier.dtype),
        "faces": _faces_of(classifier),
    }


def _faces_of(classifier: Classifier) -> str:
    if classifier.detector is None:
        return "none"
    return "all" if classifier.every_face else "one"


def choose_load(
    classifier: Classifier,
    count: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> tuple[int, int]:
    """Return (pictures in a batch, threads) for ``count`` pictures, keeping what is given.

    There are at most 256 threads. Raises InputError where what is given is below 1.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{name} is a whole number above 0, not {value}.")
    workers = min(workers or cpu_count(), _MOST_THREADS)
    usual = _BATCH_WITH_ENGINE if classifier.engine else _BATCH.get(classifier.device.type, 32)
    if classifier.device.type == "cpu" and not classifier.engine:
        size = classifier.checkpoint.preprocessing
        usual = max(4, min(usual, _MOST_PIXELS // (size.height * size.width)))
    batch_size = batch_size or usual
    if count:  # batches of one size, a multiple of the threads: that none is left to work alone
        rounds = math.ceil(count / (workers * batch_size))
        batch_size = math.ceil(count / (workers * rounds))
    return batch_size, workers


def classify(
    classifier: Classifier,
    source: Reader | None,
    names: Iterable[str],
    batch_size: int | None = None,
    workers: int | None = None,
) -> Generator[Result, None, None]:
    """Yield a result for every name, in order of the names.

    ``source`` None: the names are paths. ``workers`` threads (one for each processor by default)
    take a batch each and both read it and, on a CPU, run the net on it, each on one core: nobody
    waits for anybody. A few batches for each are in memory, however many names there are.
    """
    count = len(names) if isinstance(names, Sized) else None
    batch_size, workers = choose_load(classifier, count, batch_size, workers)
    remaining = iter(names)
    with threads_on_one_core_each(workers, leave_running=True) as pool:
        waiting: deque[Future[list[Result]]] = deque()
        while batch := list(itertools.islice(remaining, batch_size)):
            waiting.append(pool.submit(classifier.predict, source, batch))
            if len(waiting) >= 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
