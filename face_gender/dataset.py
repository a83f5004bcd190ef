"""Rows of an index -> tensors, lazily, in loader workers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from face_gender.files import InputError, Source, cpu_count, open_source
from face_gender.images import UnreadableImage, load_image
from face_gender.index import SPLITS, read_index

# Starting workers takes longer than reading so few pictures.
_WORTH_WORKERS = 256


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


class Batch(NamedTuple):
    """What the loader yields: pictures that could be read, and what became of the others.

    ``images`` (n, 3, H, W) float32, None when n is 0; ``labels`` and ``positions`` (n,) int64;
    ``failures``: (position, reason) of files that could not be read.
    """

    images: Tensor | None
    labels: Tensor
    positions: Tensor
    failures: list[tuple[int, str]]


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (position, seed of its augmentation), both drawn from the seed and the epoch alone.

    So the same seed gives the same epoch whatever the number of workers. ``excluded`` positions
    are left out from the next epoch on.
    """

    def __init__(self, size: int, shuffle: bool, seed: int) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.excluded: set[int] = set()

    def __len__(self) -> int:
        return self.size - len(self.excluded)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch, -1))
            order = torch.randperm(self.size, generator=generator)
        for position in order.tolist():
            if position not in self.excluded:
                yield position, _mix(self.seed, self.epoch, position)


def make_loader(
    dataset: FaceDataset,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    workers: int | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader of `Batch`; set ``loader.sampler.epoch`` before each training epoch.

    ``workers``: processes that read pictures; None takes one for each processor, at most 8, and
    none for a small data set.
    """
    if workers is None:
        workers = min(8, cpu_count()) if len(dataset) >= _WORTH_WORKERS else 0
    return DataLoader(
        _SeededItems(dataset),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), shuffle, seed),
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Else starting workers draws from the global generator, which dropout draws from too.
        generator=torch.Generator().manual_seed(seed),
    )


class _Item(NamedTuple):
    position: int
    image: Tensor | None
    label: int
    reason: str


class _SeededItems(Dataset[_Item]):
    """The data set as the loader asks for it: augmentation seeded, a bad file answered."""

    def __init__(self, dataset: FaceDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        position, seed = key
        try:
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed would reseed every accelerator too, for each picture.
                torch.default_generator.manual_seed(seed)
                image, label = self.dataset[position]
        except UnreadableImage as error:
            return _Item(position, None, -1, error.reason)
        return _Item(position, image, label, "")


def _collate(items: list[_Item]) -> Batch:
    good = [item for item in items if item.image is not None]
    images = [item.image for item in good if item.image is not None]
    return Batch(
        images=torch.stack(images) if images else None,
        labels=torch.tensor([item.label for item in good], dtype=torch.int64),
        positions=torch.tensor([item.position for item in good], dtype=torch.int64),
        failures=[(item.position, item.reason) for item in items if item.image is None],
    )


def _mix(seed: int, epoch: int, position: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
