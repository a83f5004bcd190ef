"""Rows of an index -> tensors, lazily, in loader workers."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from face_gender.data.augmentation import sample_uniforms
from face_gender.data.images import UnreadableImage, decode_pixels, load_image, read_bytes
from face_gender.data.preprocessing import FaceTransform
from face_gender.data.sources import Source, open_source
from face_gender.data.split import SPLITS
from face_gender.data.tables import read_index
from face_gender.errors import InputError, excerpt, printable
from face_gender.train.distributed import World

# Starting workers takes longer than reading so few pictures.
_WORTH_WORKERS = 256
# Batches that each worker is asked for ahead.
_AHEAD = 2


class UnreadablePictureWarning(UserWarning):
    """A picture of the index could not be read and takes no part from here on."""


# Python shows a text once; a second training in the same notebook must name its files again.
warnings.simplefilter("always", UnreadablePictureWarning)


class FaceDataset(Dataset[tuple[Any, int]]):
    """The pictures of one split, each read when it is asked for.

    ``index``: the CSV's path or its table; ``split``: "train", "val", "test", or None for all
    rows; ``data``: the folder or .zip that the index was made of; ``transform``: from a PIL RGB
    image to what the model takes. ``paths`` (n,) str and ``labels`` (n,) int64 are numpy arrays:
    Python lists would be copied, object by object, into every forked worker.
    ``dataset[i]`` is ``(image, label)`` and raises UnreadableImage for a bad file.
    """

    def __init__(
        self,
        index: str | os.PathLike[str] | pd.DataFrame,
        split: str | None,
        data: str | os.PathLike[str] | Source,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        rows = select_split(index, split)
        self.paths = rows["path"].to_numpy(dtype=np.str_)
        self.labels = rows["label"].to_numpy(dtype=np.int64)
        self.source = open_source(data) if isinstance(data, str | os.PathLike) else data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image = load_image(str(self.paths[position]), self.source)
        label = int(self.labels[position])
        return (self.transform(image) if self.transform else image), label


def select_split(index: str | os.PathLike[str] | pd.DataFrame, split: str | None) -> pd.DataFrame:
    """Return the rows of one split, of all splits for None. Raises InputError for none."""
    table = index if isinstance(index, pd.DataFrame) else read_index(index)
    name = "the index" if isinstance(index, pd.DataFrame) else os.fspath(index)
    if table.empty:
        raise InputError(f"{name} has no rows: make it with data_split.py.")
    if split is None:
        return table
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if "split" not in table:
        raise InputError(f"{name} has no split yet: run python data_split.py {name} --output NEW.")
    rows = table[table["split"] == split]
    if rows.empty:
        raise InputError(f"{name} has no pictures in split {split!r}: make it with other ratios.")
    return rows


def soft_labels(rows: pd.DataFrame, share: float) -> Tensor | None:
    """Return what a net is to answer, (n, 2) float32, where a teacher has a ``share`` in it.

    None where it has none, or the rows no column ``teacher``: the probability of female, empty for
    a picture that the label alone is known of. Raises InputError for anything else in it.
    """
    if not share or "teacher" not in rows:
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
    female = np.where(np.isnan(teacher), label, share * teacher + (1 - share) * label)
    return torch.from_numpy(np.stack([1 - female, female], 1).astype(np.float32))


class Batch(NamedTuple):
    """What the loader yields: pictures that could be read, and what became of the others.

    ``images`` (n, 3, H, W) float32, as the net takes them, on the loader's device, None when n is
    0; ``labels`` and ``positions`` (n,) int64; ``failures``: (position, reason) of files that
    could not be read.
    """

    images: Tensor | None
    labels: Tensor
    positions: Tensor
    failures: list[tuple[int, str]]


class _Task(NamedTuple):
    """The slot of the shared memory to fill, and the positions (n,) of the pictures for it."""

    slot: int
    positions: npt.NDArray[np.int64]


class _Filled(NamedTuple):
    """What stands in a slot: positions (n,) of its pictures, in order, and of those left out."""

    slot: int
    positions: npt.NDArray[np.int64]
    failures: list[tuple[int, str]]


class EpochSampler(Sampler[_Task]):
    """Yields what is in each batch, in an order drawn from the seed and the epoch alone.

    Each process of ``world`` is given its part of every batch, which may be empty at the end.
    ``excluded`` positions are left out from the next epoch on.
    """

    def __init__(
        self, size: int, batch_size: int, slots: int, shuffle: bool, seed: int, world: World
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.slots = slots
        self.shuffle = shuffle
        self.seed = seed
        self.world = world
        self.epoch = 0
        self.excluded: set[int] = set()

    @property
    def pictures(self) -> int:
        """How many pictures the epoch has."""
        return self.size - len(self.excluded)

    def __len__(self) -> int:
        return math.ceil(self.pictures / self.batch_size)

    def __iter__(self) -> Iterator[_Task]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed % 2**64, self.epoch]).permutation(order)
        if self.excluded:
            order = order[~np.isin(order, list(self.excluded))]
        for batch, start in enumerate(range(0, len(order), self.batch_size)):
            whole = order[start : start + self.batch_size]
            part = _parts(len(whole), self.world.size)[self.world.rank]
            yield _Task(batch % self.slots, whole[part.start : part.stop])


class FaceLoader:
    """The batches of an epoch, read, resized and finished on the device.

    ``dataset``: with a transform made by `Preprocessing`, whose random changes are drawn from
    the seed, the epoch and the picture's position alone: the same whatever the number of
    workers. Set ``sampler.epoch`` before each training epoch.

    ``workers``: processes that read. None takes one for each processor, at most 16, where the net
    runs on another device; where it runs on the processors too, none: threads then decode a batch
    on all of them between two steps of the net, and nobody waits for a processor.

    ``share_of_size``: of the side of the pictures, which are scaled down to it at the end.

    ``batch_size`` is that of all processes of ``world`` together; each yields its part of every
    batch, which may hold no picture.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        workers: int | None = None,
        device: torch.device | str = "cpu",
        world: World = World(),  # noqa: B008 - a frozen value
    ) -> None:
        if not isinstance(dataset.transform, FaceTransform):
            raise TypeError("a FaceLoader needs Preprocessing.train_transform or eval_transform.")
        self.dataset = dataset
        self.transform = dataset.transform
        self.device = torch.device(device)
        if workers is None:
            worthwhile = self.device.type != "cpu" and len(dataset) >= _WORTH_WORKERS
            workers = min(16, world.processors) if worthwhile else 0
        self.workers = workers
        self.share_of_size = 1.0
        batch_size = min(batch_size, max(1, len(dataset)))
        # Those that the workers are asked for ahead, the one in use, and the next.
        slots = workers * _AHEAD + 2
        size = self.transform.preprocessing
        share = math.ceil(batch_size / world.size)
        memory = _Slots((slots, share, size.height, size.width, 3), shared=workers > 0)
        self.sampler = EpochSampler(len(dataset), batch_size, slots, shuffle, seed, world)
        self._reader = _Reader(dataset, memory)
        self._processes = _Processes(self._reader, self.sampler, workers) if workers else None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.read():
            images = None
            if batch.images is not None:
                uniforms = sample_uniforms(self.sampler.seed, self.sampler.epoch, batch.positions)
                images = self.transform.finish(batch.images.to(self.device), uniforms)
                images = _scaled_down(images, self.share_of_size)
            yield batch._replace(images=images)

    def leave_out(self, failures: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Leave files that no process could read out from here on; return them, and warn of each.

        ``failures``: (position, reason), those of this process.
        """
        world = self.sampler.world
        every = sorted(each for part in world.gathered(failures) for each in part)
        for position, reason in every:
            self.sampler.excluded.add(position)
            if world.first:
                warnings.warn(
                    printable(f"{self.dataset.paths[position]} is left out: {reason}"),
                    UnreadablePictureWarning,
                    stacklevel=2,
                )
        return every

    def read(self) -> Iterator[Batch]:
        """Yield each batch as it was read: ``images`` uint8, resized, in this process's memory.

        A later batch is written over them: use them before asking for the next. Raises InputError
        where a worker was killed.
        """
        memory = self._reader.memory.tensor()
        for filled in self._processes or _in_threads(self._reader, self.sampler):
            positions = torch.from_numpy(filled.positions)
            pixels = memory[filled.slot, : len(positions)].permute(0, 3, 1, 2)
            labels = torch.from_numpy(self.dataset.labels[filled.positions])
            yield Batch(pixels if len(positions) else None, labels, positions, filled.failures)


def scaled(size: Sequence[int], share: float) -> list[int]:
    """Return a size in pixels, times ``share``."""
    return [max(1, round(side * share)) for side in size]


def _scaled_down(images: Tensor, share: float) -> Tensor:
    size = scaled(images.shape[2:], share)
    if size == list(images.shape[2:]):
        return images
    return nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


class _Slots:
    """Memory (slots, batch, H, W, 3) uint8 that forked and spawned workers share.

    New memory for every batch, as torch's own collate takes, costs as much as decoding.
    """

    def __init__(self, shape: tuple[int, ...], shared: bool) -> None:
        self.shape = shape
        size = math.prod(shape)
        # In a file of the system's choice where /dev/shm is small, as it is in containers.
        self.memory = RawArray("B", size) if shared else bytearray(size)

    def tensor(self) -> Tensor:
        """Return the memory as a tensor."""
        return torch.frombuffer(self.memory, dtype=torch.uint8).view(self.shape)


class _Reader(Dataset[_Filled]):
    """Fills slots with decoded and resized pictures; a bad file is answered with its reason."""

    def __init__(self, dataset: FaceDataset, memory: _Slots) -> None:
        self.paths = dataset.paths
        self.source = dataset.source
        assert isinstance(dataset.transform, FaceTransform)
        self.resized = dataset.transform.preprocessing.resized
        self.memory = memory

    def __getitem__(self, task: _Task) -> _Filled:
        places = range(len(task.positions))
        return self.compacted(task, self.decode(task, places, self.fetch(task, places)))

    def fetch(self, task: _Task, places: range) -> list[bytes | UnreadableImage]:
        """Return the bytes of the pictures for some places of a slot."""
        names = [str(self.paths[i]) for i in task.positions[places.start : places.stop]]
        return [_or_error(read_bytes, name, self.source) for name in names]

    def decode(
        self, task: _Task, places: range, data: Sequence[bytes | UnreadableImage]
    ) -> list[str]:
        """Fill some places of a slot; return for each "", or the reason why it stays empty."""
        slot = self.memory.tensor()[task.slot].permute(0, 3, 1, 2)
        reasons = []
        for place, encoded in zip(places, data, strict=True):
            pixels: Tensor | UnreadableImage
            if isinstance(encoded, UnreadableImage):
                pixels = encoded
            else:
                name = str(self.paths[task.positions[place]])
                pixels = _or_error(decode_pixels, encoded, name)
            if isinstance(pixels, Tensor):
                self.resized(pixels, out=slot[place])
            reasons.append("" if isinstance(pixels, Tensor) else pixels.reason)
        return reasons

    def compacted(self, task: _Task, reasons: Sequence[str]) -> _Filled:
        """Close the gaps that unreadable pictures leave in a slot."""
        good = [place for place, reason in enumerate(reasons) if not reason]
        if len(good) < len(reasons):
            slot = self.memory.tensor()[task.slot]
            slot[: len(good)] = slot[good]
        answers = zip(task.positions.tolist(), reasons, strict=True)
        failures = [(position, reason) for position, reason in answers if reason]
        return _Filled(task.slot, task.positions[good], failures)


_Result = TypeVar("_Result")


def _or_error(function: Callable[..., _Result], *arguments: Any) -> _Result | UnreadableImage:
    try:
        return function(*arguments)
    except UnreadableImage as error:
        return error


def _in_threads(reader: _Reader, sampler: EpochSampler) -> Iterator[_Filled]:
    """Decode each batch on all processors at once; the bytes of the next ones are read ahead."""
    count, threads = sampler.world.processors, torch.get_num_threads()
    disk = ThreadPoolExecutor(count)
    processors = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def start(task: _Task) -> _Started:
        parts = _parts(len(task.positions), count)
        return task, [(part, disk.submit(reader.fetch, task, part)) for part in parts]

    def finish(task: _Task, fetched: list[tuple[range, Future[Any]]]) -> _Filled:
        decoded = [
            processors.submit(reader.decode, task, part, data.result()) for part, data in fetched
        ]
        return reader.compacted(task, [each for part in decoded for each in part.result()])

    ahead: deque[_Started] = deque()
    try:
        for task in sampler:
            ahead.append(start(task))
            if len(ahead) > _AHEAD:
                yield finish(*ahead.popleft())
        while ahead:
            yield finish(*ahead.popleft())
    finally:
        disk.shutdown(cancel_futures=True)
        processors.shutdown(cancel_futures=True)
        # What new threads start from, which those of the pool have changed.
        torch.set_num_threads(threads)


_Started = tuple[_Task, list[tuple[range, Future[Any]]]]


def _parts(count: int, parts: int) -> list[range]:
    """Cut ``count`` places into ranges of nearly one length."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [range(*edge) for edge in itertools.pairwise(edges)]


class _Processes:
    """Worker processes that fill slots, kept from epoch to epoch."""

    def __init__(self, reader: _Reader, sampler: EpochSampler, workers: int) -> None:
        self.loader: DataLoader[_Filled] = DataLoader(
            reader,
            batch_size=None,  # the sampler makes the batches
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            # Else starting workers draws from the global generator, which dropout draws from too.
            generator=torch.Generator().manual_seed(sampler.seed),
        )

    def __iter__(self) -> Iterator[_Filled]:
        try:
            yield from self.loader
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise InputError(
                "a process that reads pictures was killed, for lack of memory or of shared memory: "
                "use workers=0, a smaller batch_size, or in a container a larger --shm-size."
            ) from error


def _as_it_is(filled: _Filled) -> _Filled:
    return filled
