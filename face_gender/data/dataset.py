"""The rows of an index as batches, decoded in threads or in workers of torch's DataLoader."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from face_gender.data.augmentation import Augmentation, sample_uniforms
from face_gender.data.images import UnreadableImage, UnreadFile, load_image, load_pixels
from face_gender.data.index import Index
from face_gender.data.landmarks import coordinates_of, face_in
from face_gender.data.preprocessing import FaceTransform, stack
from face_gender.data.sources import DriveGoneError
from face_gender.errors import InputError, UnreadablePictureWarning, excerpt, printable
from face_gender.faces.detector import Face, opencv
from face_gender.files import cpu_count
from face_gender.threads import threads_on_one_core_each

# Starting workers takes longer than reading so few pictures.
_WORTH_WORKERS = 256
_MOST_WORKERS = 16

_Result = TypeVar("_Result")


class FaceDataset(Dataset[tuple[Any, int]]):
    """The pictures of one split, each read when it is asked for.

    ``index``: an Index or the CSV's path, whose pictures lie in ``data`` where that is given;
    ``split``: "train", "val", "test", or None for all rows; ``transform``: from a PIL RGB image
    to what the model takes; ``progress``: show how faces are found where the index has none.
    ``paths`` (n,) str and ``labels`` (n,) int64 are numpy arrays: Python lists would be copied,
    object by object, into every forked worker.
    ``dataset[i]`` is ``(image, label)`` and raises UnreadableImage for a bad file.
    """

    def __init__(
        self,
        index: Index | str | os.PathLike[str],
        split: str | None,
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        rows = Index.open(index, data).split(split)
        self.paths = rows.table["path"].to_numpy(dtype=np.str_)
        self.labels = rows.table["label"].to_numpy(dtype=np.int64)
        self.source = rows.source
        self.transform = transform
        self.coordinates = None
        if isinstance(transform, FaceTransform) and transform.preprocessing.aligns:
            opencv()  # which aligns, also where the faces are known: told here, not by a worker
            self.coordinates = coordinates_of(rows.with_landmarks(progress).table)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        return self._transformed(position, self._image(position)), int(self.labels[position])

    def face(self, position: int, height: int, width: int) -> Face | None:
        """Return where the face is in a picture of that size, None where none is known."""
        if self.coordinates is None:
            return None
        return face_in(self.coordinates[position], height, width)

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Any, int]]:
        """Return ``dataset[i]`` for each position, decoded in threads: torch's hook for a batch."""
        images = in_threads(self._image, positions, cpu_count())
        # Not in the threads: the order in which random changes are drawn would be theirs.
        labels = self.labels[list(positions)].tolist()
        return [
            (self._transformed(position, image), label)
            for position, image, label in zip(positions, images, labels, strict=True)
        ]

    def _image(self, position: int) -> Image.Image:
        return load_image(str(self.paths[position]), self.source)

    def _transformed(self, position: int, image: Image.Image) -> Any:
        if isinstance(self.transform, FaceTransform):
            return self.transform(image, self.face(position, image.height, image.width))
        return self.transform(image) if self.transform else image


class Failure(NamedTuple):
    """A picture that is missing in a batch; one that is ``lasting`` will not be there later."""

    position: int
    reason: str
    lasting: bool = True


class Batch(NamedTuple):
    """A loader's batch: the pictures that could be read, and the reasons for the others.

    ``images`` (n, 3, H, W) uint8, resized, in the CPU's memory: `to_input` makes a net's input of
    them; ``labels`` and ``positions`` (n,) int64.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    failures: list[Failure]


def to_input(
    batch: Batch,
    transform: FaceTransform,
    device: torch.device | str = "cpu",
    seed: int = 0,
    epoch: int = 0,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return a batch's pictures as a net takes them: (n, 3, H, W) float32 on ``device``.

    The random changes of a training transform depend on ``seed``, ``epoch`` and each picture's
    position alone: neither the batch nor the number of workers alters them. ``change``: what else
    is done to (n, 3, H, W) with values 0..255 before it is normalised.
    """
    # Only memory that is pinned may be left while it is copied.
    images = batch.images.to(device, non_blocking=batch.images.is_pinned())
    if transform.random and transform.preprocessing.augmentation != Augmentation():
        uniforms = sample_uniforms(seed, epoch, batch.positions)
        images = transform.preprocessing.augmentation.apply(images, uniforms)
    return transform.preprocessing.normalized(change(images) if change else images)


class Sample(NamedTuple):
    """One row as a batch is made of it: ``pixels`` uint8 (3, H, W), None for a ``failure``."""

    position: int
    label: int
    pixels: Tensor | None
    failure: Failure | None = None


class PixelDataset(Dataset[Sample]):
    """A FaceDataset up to the resized pixels; what follows is done to whole batches."""

    def __init__(self, dataset: FaceDataset, threads: int) -> None:
        if not isinstance(dataset.transform, FaceTransform):
            raise TypeError("make_loader needs Preprocessing.train_transform or eval_transform.")
        self.faces = dataset
        self.paths, self.labels = dataset.paths, dataset.labels
        self.transform = dataset.transform
        self.threads = threads

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Sample:
        label = int(self.labels[position])
        try:
            name, preprocessing = str(self.paths[position]), self.transform.preprocessing
            pixels = load_pixels(name, self.faces.source, preprocessing.at_least)
        except UnreadableImage as error:
            lasting = not isinstance(error, UnreadFile)
            return Sample(position, label, None, Failure(position, error.reason, lasting))
        face = self.faces.face(position, *pixels.shape[1:])
        return Sample(position, label, preprocessing.prepare(pixels, face))

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """Return the sample at each position, decoded in threads: torch's hook for a batch."""
        return in_threads(self.__getitem__, positions, self.threads)


def in_threads(
    function: Callable[[int], _Result], positions: Sequence[int], threads: int
) -> list[_Result]:
    """Return what a function makes of each position; a worker process is a thread by itself."""
    if threads < 2 or len(positions) < 2 or get_worker_info() is not None:
        return [function(position) for position in positions]
    edges = [len(positions) * i // threads for i in range(threads + 1)]
    shards = [positions[start:end] for start, end in itertools.pairwise(edges)]
    with threads_on_one_core_each(threads) as pool:
        results = list(pool.map(lambda shard: list(map(function, shard)), shards))
    return list(itertools.chain(*results))


class EpochSampler(Sampler[list[int]]):
    """Yields the positions of each batch, in an order drawn from the seed and the epoch alone.

    Process ``rank`` of ``world_size`` is given its shard of every batch, which may be empty at
    the end. Set ``epoch`` before each epoch; positions in ``excluded`` are left out from the next
    epoch on. ``smallest``: a last batch of fewer pictures is added to the one before it.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.smallest = 1
        self.excluded: set[int] = set()

    @property
    def pictures(self) -> int:
        """How many pictures the epoch has, those of all processes together."""
        return self.size - len(self.excluded)

    def __len__(self) -> int:
        whole, rest = divmod(self.pictures, self.batch_size)
        return whole + (rest > 0 and (rest >= self.smallest or not whole))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed % 2**64, self.epoch]).permutation(order)
        if self.excluded:
            order = order[~np.isin(order, list(self.excluded))]
        starts = [batch * self.batch_size for batch in range(len(self))]
        for whole in np.split(order, starts[1:])[: len(starts)]:  # of nothing, split makes one
            first, end = (len(whole) * (self.rank + i) // self.world_size for i in (0, 1))
            yield whole[first:end].tolist()


class FaceLoader(DataLoader[Any]):
    """torch's DataLoader with an `EpochSampler`, made by `make_loader`."""

    dataset: PixelDataset
    batch_sampler: EpochSampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch.

        Raises InputError where a worker has no memory left, DriveGoneError where many files in a
        row could not be read.
        """
        try:
            # Workers inherit the setting; OpenCV may crash where a fork of its threads changes it.
            with threads_on_one_core_each(1):
                batches = super().__iter__()
            yield from batches
        except DriveGoneError as error:
            if not self.num_workers:
                raise
            # torch puts the traceback of the worker before the sentence, and the type between.
            sentence = str(error.args[0]).splitlines()[-1].partition("DriveGoneError: ")[2]
            raise DriveGoneError(sentence.removesuffix(DriveGoneError.CURE)) from error
        except (RuntimeError, OSError) as error:
            words = (
                "DataLoader worker (pid",
                "shared memory",
                "/torch_",
                "No space left on device",
            )
            if not self.num_workers or not any(word in str(error) for word in words):
                raise
            raise InputError(
                "the processes that read pictures have no room left in /dev/shm, or in memory: "
                "use --workers 0 (workers=0), a smaller batch, or in a container a larger "
                "--shm-size."
            ) from error

    def leave_out(self, failures: Sequence[Failure]) -> None:
        """Warn of each picture that was missing; leave lasting ones out of the epochs to come."""
        for position, reason, lasting in failures:
            if lasting:
                self.batch_sampler.excluded.add(position)
            if self.batch_sampler.rank == 0:
                what = "is left out" if lasting else "was missing in this epoch"
                warnings.warn(
                    printable(f"{self.dataset.paths[position]} {what}: {reason}"),
                    UnreadablePictureWarning,
                    stacklevel=2,
                )


def make_loader(
    dataset: FaceDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    threads: int | None = None,
) -> FaceLoader:
    """Return a torch DataLoader that yields each `Batch` of an epoch.

    ``dataset`` has a transform made by `Preprocessing`; `to_input` applies it to a batch.
    ``workers``: processes that read. None takes one for each processor, at most 16, where the net
    runs on another device; where it runs on the processors too, none: ``threads`` (one for each
    processor by default) then decode a batch between two steps of the net.
    ``batch_size`` is that of all processes together, of which this one is ``rank``. Raises
    InputError for one below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is a whole number above 0, not {batch_size}.")
    threads = threads or cpu_count()
    on_gpu = torch.device(device).type != "cpu"
    if workers is None:
        workers = min(_MOST_WORKERS, threads) if on_gpu and len(dataset) >= _WORTH_WORKERS else 0
    pixels = PixelDataset(dataset, threads)
    size = pixels.transform.preprocessing
    return FaceLoader(
        pixels,
        batch_sampler=EpochSampler(len(dataset), batch_size, shuffle, seed, rank, world_size),
        collate_fn=partial(collate, size=(size.height, size.width)),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.device(device).type == "cuda",
        # Else an epoch would draw from the global generator, which dropout draws from too.
        generator=torch.Generator().manual_seed(seed % 2**63),
    )


def collate(samples: Sequence[Sample], size: tuple[int, int]) -> Batch:
    """Return samples as a batch; those without pixels become its failures."""
    good = [each for each in samples if each.pixels is not None]
    memory = torch.empty((len(good), *size, 3), dtype=torch.uint8)
    if good and get_worker_info() is not None:
        # Here already, and not when it is sent: a full /dev/shm would raise where nobody looks.
        memory.share_memory_()
    if good:
        stack([each.pixels for each in good if each.pixels is not None], memory)
    return Batch(
        memory.permute(0, 3, 1, 2),
        torch.tensor([each.label for each in good], dtype=torch.int64),
        torch.tensor([each.position for each in good], dtype=torch.int64),
        [each.failure for each in samples if each.failure is not None],
    )


def soft_labels(rows: pd.DataFrame, fraction: float) -> Tensor | None:
    """Return the targets of a net, (n, 2) float32, where a teacher has a ``fraction`` in them.

    None where it has none, or the rows no column ``teacher``: the probability of female, empty for
    a picture that the label alone is known of. Raises InputError for anything else in it.
    """
    if not fraction or "teacher" not in rows:
        return None
    cells = rows["teacher"].astype(object).fillna("")
    teacher = pd.to_numeric(cells, errors="coerce").to_numpy(np.float32)
    wrong = cells[(cells != "") & ~((teacher >= 0) & (teacher <= 1))]
    if len(wrong):
        raise InputError(
            f"the index, row {wrong.index[0] + 1}: teacher {excerpt(str(wrong.iloc[0]))!r} is no "
            "probability of female from 0 to 1: correct it, or leave it empty."
        )
    label = rows["label"].to_numpy(np.float32)
    female = np.where(np.isnan(teacher), label, fraction * teacher + (1 - fraction) * label)
    return torch.from_numpy(np.stack([1 - female, female], 1).astype(np.float32))
