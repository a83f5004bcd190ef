"""A net with what belongs to it: names -> batches of pictures -> probabilities -> predictions."""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from face_gender.classify.engines import MARGIN, Engine, OpenVino, graph_path
from face_gender.classify.results import Prediction, Result, Skipped
from face_gender.data.images import UnreadableImage, load_pixels
from face_gender.data.preprocessing import stack
from face_gender.data.sources import Reader
from face_gender.devices import is_out_of_memory, mixed_precision, pick_device
from face_gender.errors import InputError, first_line
from face_gender.files import cpu_count, sha256_of
from face_gender.model.architectures import for_inference, probabilities_of
from face_gender.model.checkpoint import Checkpoint, load_checkpoint

if TYPE_CHECKING:
    import pandas as pd

    from face_gender.classify.frame import Pictures

# Pictures that a thread takes at a time: a core's cache is small, a GPU wants many.
_BATCH = {"cpu": 16, "cuda": 64}


@dataclass(frozen=True)
class Classifier:
    """A net on its device, in its fastest form, with what belongs to it.

    ``model`` takes ``dtype``, which is a 16-bit type where the hardware calculates in it faster.
    ``engine`` predicts before it, in lower precision: ``model`` is asked where classes are close.
    """

    checkpoint: Checkpoint
    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    engine: OpenVino | None = None

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) uint8, resized -> (n, classes) float32 on the CPU, rows adding up to one.

        May be called from several threads. A batch that does not fit into memory is halved.
        """
        try:
            return self._by_engine(pixels) if self.engine else self._by_model(pixels)
        except (RuntimeError, AssertionError, ValueError) as error:
            if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
                height, width = pixels.shape[-2:]
                reason = first_line(error).split(". ")[0]
                raise InputError(
                    f"{self.checkpoint.recipe.arch} cannot run on pictures of {height} x {width} "
                    f"pixels ({reason}): use other weights, or --device cpu."
                ) from error
        # Outside the handler, which keeps what does not fit alive.
        if len(pixels) == 1:
            raise InputError("memory is too small for a single picture: use --device cpu.")
        return torch.cat([self.probabilities(half) for half in pixels.tensor_split(2)])

    def _by_model(self, pixels: Tensor) -> Tensor:
        images = self.checkpoint.preprocessing.normalized(pixels.to(self.device))
        outputs = self.model(images.to(self.dtype))
        return probabilities_of(outputs, self.checkpoint.temperature).cpu()

    def _by_engine(self, pixels: Tensor) -> Tensor:
        assert self.engine is not None
        rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        outputs = torch.from_numpy(self.engine.outputs(rows))
        # Of temperature 1, as MARGIN was measured: how far off the engine is does not hang on T.
        first, second = probabilities_of(outputs, 1.0).topk(2).values.unbind(1)
        close = first - second < MARGIN
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
        read = [self._read(source, name) for name in names]
        good = [item for item in read if isinstance(item, Tensor)]
        rows = iter(self.probabilities(stack(good)).tolist() if good else [])
        return [
            item if isinstance(item, Skipped) else self._prediction(name, next(rows))
            for name, item in zip(names, read, strict=True)
        ]

    def _read(self, source: Reader | None, name: str) -> Tensor | Skipped:
        try:
            return self.checkpoint.preprocessing.resized(load_pixels(name, source))
        except UnreadableImage as error:
            return Skipped(name, error.reason)

    def _prediction(self, name: str, row: list[float]) -> Result:
        if all(math.isfinite(value) for value in row):
            return Prediction(name, self.checkpoint.classes, tuple(row))
        return Skipped(name, "the net's output is not a number: its weights are damaged")


def load_classifier(
    weights: str | os.PathLike[str],
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    mixed: bool = True,
    engine: Engine = "torch",
) -> Classifier:
    """Open a checkpoint, or a plain state_dict with its ``recipe`` and ``classes``.

    ``mixed``: calculate in 16 bits where the hardware does. ``engine`` "openvino": the graph that
    `face_gender.export` wrote beside the file predicts, on the CPU, and the net in float32 where
    two classes are close. Raises InputError for a file that is neither, for a device that is not
    there, and for a graph that is missing or of other weights.
    """
    checkpoint = load_checkpoint(weights, recipe, classes)
    model, _ = checkpoint.build()
    graph = None
    if engine == "openvino":
        if device not in ("auto", "cpu"):
            raise InputError(f"engine openvino runs on the CPU and not on {device}: use 'cpu'.")
        graph, device, mixed = OpenVino(checkpoint, Path(weights)), "cpu", False
    chosen = pick_device(device)
    dtype = (mixed_precision(chosen) if mixed else None) or torch.float32
    return Classifier(checkpoint, for_inference(model, chosen, dtype), chosen, dtype, graph)


def origin(classifier: Classifier, weights: Path) -> dict[str, Any]:
    """Return, as plain data of JSON, what predictions depend on besides the pictures.

    Raises OSError where ``weights``, the file of the classifier, cannot be read any more.
    """
    files = [weights, graph_path(weights)] if classifier.engine else [weights]
    return {
        "weights": [sha256_of(path) for path in files],
        "recipe": classifier.checkpoint.recipe.name,
        "classes": list(classifier.checkpoint.classes),
        "engine": "openvino" if classifier.engine else "torch",
        "device": classifier.device.type,
        "precision": str(classifier.dtype),
    }


def choose_load(
    device: torch.device,
    count: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> tuple[int, int]:
    """Return (pictures in a batch, threads) for ``count`` pictures, keeping what is given."""
    workers = workers or cpu_count()
    batch_size = batch_size or _BATCH.get(device.type, 32)
    if count is not None:  # that a small folder is shared too
        batch_size = max(1, min(batch_size, math.ceil(count / workers)))
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
    batch_size, workers = choose_load(classifier.device, count, batch_size, workers)
    remaining = iter(names)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    wait = True
    try:
        waiting: deque[Future[list[Result]]] = deque()
        while batch := list(itertools.islice(remaining, batch_size)):
            waiting.append(pool.submit(classifier.predict, source, batch))
            if len(waiting) >= 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except KeyboardInterrupt:
        wait = False  # a batch may take long
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)
        # What new threads start from, which the pool's have changed.
        torch.set_num_threads(threads)
