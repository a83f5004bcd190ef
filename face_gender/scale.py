"""Batches of columns, as data frames on many machines bring them: names in, answers out."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from face_gender.classify.classifier import Classifier, classify, load_classifier
from face_gender.classify.results import Prediction, Skipped
from face_gender.errors import InputError
from face_gender.files import read_file

Columns = dict[str, npt.NDArray[Any]]

# Files that are fetched at once, and those that may wait for the net: a disk or an object store
# answers one request in milliseconds, and many requests in the same time.
_READERS = 16
_AHEAD = 64


class FaceClassifier:
    """Answers a batch of columns, such as Ray Data's ``map_batches`` brings.

    It is pickled as its arguments, never with the net, which each process loads once, at its first
    batch. ``weights``: a checkpoint, which every machine must be able to read under that path.
    ``read``: path -> bytes, raises OSError; what is pickled must know it. ``device`` as in
    process.py. ``threshold``: the label is "uncertain" where the probability is below.
    ``threads``: processors that this copy may use (default: all that the process may).
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        read: Callable[[str], bytes] = read_file,
        device: str = "auto",
        threshold: float = 0.0,
        threads: int | None = None,
    ) -> None:
        self.weights = os.fspath(weights)
        self.read = read
        self.device = device
        self.threshold = threshold
        self.threads = threads
        self._net: Classifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_net": None}

    def load(self) -> Classifier:
        """Return the net, loaded at the first call. Raises InputError as `load_classifier` does."""
        if self._net is None:
            self._net = load_classifier(self.weights, device=self.device)
        return self._net

    def __call__(self, batch: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> Columns:
        """Return a row for every row, in order.

        ``batch`` has the column ``path`` (str), or ``bytes`` (the file's), which is read in place
        of the path where it is there. Added are ``label`` (str), ``confidence`` and a column for
        each class (float32, probabilities), and ``error`` (str). A picture that cannot be read has
        None, nan and the reason; the others have None for ``error``. All columns but ``bytes``
        come back as they are. Raises InputError where neither column is there.
        """
        column = "bytes" if "bytes" in batch else "path"
        if column not in batch:
            raise InputError(f"a batch has no column path or bytes (but {', '.join(batch)}).")
        net = self.load()
        cells = batch[column]
        fetch = _given_bytes if column == "bytes" else self._read_path
        with ThreadPoolExecutor(min(_READERS, max(1, len(cells)))) as pool:
            ahead = _ReadAhead(pool, lambda place: fetch(cells[place]), len(cells))
            keys = [str(place) for place in range(len(cells))]
            answers = list(classify(net, ahead, keys, workers=self.threads))
        kept = {name: np.asarray(values) for name, values in batch.items() if name != "bytes"}
        return kept | self._columns(answers, net.checkpoint.classes)

    def _read_path(self, path: Any) -> bytes:
        if not isinstance(path, str):
            raise OSError("no path in this row")
        return self.read(path)

    def _columns(
        self, answers: Sequence[Prediction | Skipped], classes: tuple[str, ...]
    ) -> Columns:
        labels: list[str | None] = []
        errors: list[str | None] = []
        scores = np.full((len(answers), len(classes)), math.nan, dtype=np.float32)
        for place, each in enumerate(answers):
            if isinstance(each, Prediction):
                scores[place] = each.scores
                labels.append(each.label(self.threshold))
                errors.append(None)
            else:
                labels.append(None)
                errors.append(each.reason)
        columns: Columns = {"label": np.array(labels, dtype=object)}
        columns["confidence"] = scores.max(axis=1)
        columns |= {name: scores[:, i] for i, name in enumerate(classes)}
        columns["error"] = np.array(errors, dtype=object)
        return columns


def _given_bytes(data: Any) -> bytes:
    if not isinstance(data, bytes):
        raise OSError("no bytes in this row")
    return data


class _ReadAhead:
    """What `classify` reads from, by place in the batch: other threads fetch what comes next."""

    def __init__(self, pool: ThreadPoolExecutor, fetch: Callable[[int], bytes], count: int) -> None:
        self._pool, self._fetch, self._count = pool, fetch, count
        self._futures: dict[int, Future[bytes]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        """Return the bytes of the row at the place ``name``. Raises OSError."""
        place = int(name)
        with self._lock:
            while self._next < self._count and (self._next <= place or len(self._futures) < _AHEAD):
                self._futures[self._next] = self._pool.submit(self._fetch, self._next)
                self._next += 1
            future = self._futures.pop(place)
        return future.result()
