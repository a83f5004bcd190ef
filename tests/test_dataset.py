"""Pictures as items, and as the batches of torch's DataLoader."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import sys
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_index, make_zip, threads_in_use
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sentences import sentence
from torch import Tensor
from torch.utils.data import DataLoader

from face_gender.data.augmentation import Augmentation, sample_uniforms
from face_gender.data.dataset import (
    Batch,
    EpochSampler,
    FaceDataset,
    FaceLoader,
    make_loader,
    soft_labels,
    to_input,
)
from face_gender.data.images import UnreadableImage, load_pixels
from face_gender.data.index import Index
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import DriveGoneError, FolderSource, ReadError, open_source
from face_gender.errors import InputError

PLAIN = Preprocessing(12, 10, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SHAKEN = Preprocessing(12, 10, augmentation=Augmentation(0.5, 30))


@pytest.fixture
def index(faces: Path) -> Index:
    return make_index(faces)


def batches(loader: FaceLoader, epoch: int = 0) -> list[Batch]:
    loader.batch_sampler.epoch = epoch
    return list(loader)


def inputs_of(loader: FaceLoader, epoch: int = 0) -> Tensor:
    """The pictures of an epoch as a net takes them."""
    seed = loader.batch_sampler.seed
    found = batches(loader, epoch)
    transform = loader.dataset.transform
    return torch.cat([to_input(each, transform, seed=seed, epoch=epoch) for each in found])


def positions_of(found: list[Batch]) -> list[int]:
    return list(chain(*(batch.positions.tolist() for batch in found)))


def spoil(dataset: FaceDataset, positions: list[int]) -> None:
    for position in positions:
        (dataset.source.path / str(dataset.paths[position])).write_text("no picture")


# Items


def test_an_item_is_the_picture_and_its_label(index: Index, faces: Path) -> None:
    dataset = FaceDataset(index, None)
    assert len(dataset) == 40
    for i in (0, 20, 39):
        image, label = dataset[i]
        assert isinstance(image, Image.Image)
        assert type(label) is int
        assert label == ("male", "female").index(str(dataset.paths[i]).split("/")[0])
        with Image.open(faces / str(dataset.paths[i])) as original:
            assert np.array_equal(np.asarray(image), np.asarray(original))
    assert dataset.paths.dtype.kind == "U" and dataset.labels.dtype == np.int64


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_index_or_its_path_has_the_splits_of_the_csv(index: Index, split: str) -> None:
    expected = index.table["path"][index.table["split"] == split].tolist()
    assert index.path is not None
    for given_ in (index, index.path):
        dataset = FaceDataset(given_, split, PLAIN.eval_transform())
        assert dataset.paths.tolist() == expected
        assert dataset[0][0].shape == (3, 12, 10)


def test_torchs_own_loader_takes_it_too_and_draws_the_same_each_time(index: Index) -> None:
    dataset = FaceDataset(index, "train", SHAKEN.train_transform())
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        loader = DataLoader(dataset, batch_size=8)
        found.append([(images, labels) for images, labels in loader])
    for (images, labels), (again, _) in zip(*found, strict=True):
        assert torch.equal(images, again) and images.shape[1:] == (3, 12, 10)
        assert labels.dtype == torch.int64
    assert [each.tolist() for _, each in found[0]] == [
        dataset.labels[i : i + 8].tolist() for i in range(0, len(dataset), 8)
    ]


def test_a_bad_file_raises_with_its_path_and_the_reason(index: Index, faces: Path) -> None:
    dataset = FaceDataset(index, "train")
    spoil(dataset, [3])
    for read in (lambda: dataset[3], lambda: dataset.__getitems__([1, 3])):
        with pytest.raises(UnreadableImage) as caught:
            read()
        assert caught.value.path == dataset.paths[3]
        assert "not an image" in caught.value.reason
    shutil.rmtree(faces / "male")  # and nothing is read before it is asked for
    with pytest.raises(UnreadableImage):
        FaceDataset(index, "train")[len(dataset) - 1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_pickled_data_set_reads_the_same(
    index: Index, faces: Path, tmp_path: Path, packed: bool
) -> None:
    data = make_zip(faces, tmp_path / "faces.zip") if packed else faces
    assert index.path is not None
    dataset = FaceDataset(index.path, "train", SHAKEN.eval_transform(), data=data)
    dataset[0]  # an archive is open now
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5][0], dataset[5][0])
    assert copy.labels.tolist() == dataset.labels.tolist()


def test_an_older_csv_has_rows_and_no_splits(faces: Path) -> None:
    older = faces / "older.csv"
    older.write_text("image_name,class\nmale/m_0.jpg,male\nfemale/f_1.jpg,1\n")
    dataset = FaceDataset(older, None)
    assert dataset.labels.tolist() == [0, 1]
    assert dataset[1][0].size == (36, 44)
    with pytest.raises(InputError) as caught:
        FaceDataset(older, "train")
    assert "data_split.py" in sentence(caught)


# Batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_every_picture_once_with_its_label(index: Index, workers: int) -> None:
    dataset = FaceDataset(index, "train", SHAKEN.train_transform())
    loader = make_loader(dataset, 8, shuffle=True, workers=workers)
    assert isinstance(loader, DataLoader) and len(loader) == 4
    found = batches(loader)  # kept: no batch is written over by a later one
    assert sorted(positions_of(found)) == list(range(len(dataset)))
    assert [len(batch.labels) for batch in found] == [8, 8, 8, 4]
    for batch in found:
        assert batch.images.dtype == torch.uint8 and batch.labels.dtype == torch.int64
        assert dataset.labels[batch.positions.numpy()].tolist() == batch.labels.tolist()
        for pixels, position in zip(batch.images, batch.positions.tolist(), strict=True):
            path = dataset.source.path / str(dataset.paths[position])
            assert torch.equal(pixels, SHAKEN.prepare(load_pixels(path)))
    next(iter(loader))  # left after a batch
    assert sorted(positions_of(batches(loader, 1))) == list(range(len(dataset)))


def test_the_order_follows_the_seed_and_the_epoch_or_the_index(index: Index) -> None:
    dataset = FaceDataset(index, "train", PLAIN.eval_transform())

    def order(seed: int, epoch: int, shuffle: bool = True) -> list[int]:
        return positions_of(batches(make_loader(dataset, 8, shuffle=shuffle, seed=seed), epoch))

    assert order(0, 0) == order(0, 0)
    assert (
        len({str(order(*each)) for each in ((0, 0), (1, 0), (0, 1), (-1, 0), (2**70 + 2, 0))}) == 5
    )
    assert order(0, 3, shuffle=False) == list(range(len(dataset)))


def test_random_changes_depend_on_seed_epoch_and_position_alone(index: Index) -> None:
    dataset = FaceDataset(index, "val", SHAKEN.train_transform())
    loaders = [make_loader(dataset, size, seed=4, workers=n) for size, n in ((1, 0), (3, 2))]
    one, helped = (inputs_of(loader, epoch=2) for loader in loaders)
    uniforms = sample_uniforms(4, 2, torch.arange(len(dataset)))
    pixels = torch.cat([each.images for each in batches(loaders[0])])
    expected = SHAKEN.normalized(SHAKEN.augmentation.apply(pixels, uniforms))
    for found in (one, helped):
        assert torch.allclose(found, expected, atol=1e-5)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(one, inputs_of(loaders[0], epoch=3))
    still = FaceDataset(index, "val", SHAKEN.eval_transform())
    assert torch.equal(inputs_of(make_loader(still, 3), 5), SHAKEN.normalized(pixels))
    assert not torch.allclose(expected, SHAKEN.normalized(pixels), atol=0.1)


@pytest.mark.usefixtures("two_and_three_threads")
def test_reading_leaves_the_random_numbers_and_threads_of_others_alone(index: Index) -> None:
    dataset = FaceDataset(index, "train", SHAKEN.train_transform())
    state = torch.get_rng_state()
    batches(make_loader(dataset, 8, threads=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert threads_in_use() == (2, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_reported_and_no_neighbour_stands_in(index: Index, workers: int) -> None:
    dataset = FaceDataset(index, "train", PLAIN.eval_transform())
    bad = [0, 1, 9, len(dataset) - 1]
    spoil(dataset, bad)
    loader = make_loader(dataset, 2, workers=workers)
    found = batches(loader)
    assert found[0].images.shape == (0, 3, 12, 10) and len(found[0].labels) == 0
    failures = {each.position: each for batch in found for each in batch.failures}
    assert sorted(failures) == bad
    assert all("not an image" in each.reason and each.lasting for each in failures.values())
    assert positions_of(found) == [i for i in range(len(dataset)) if i not in bad]
    for batch in found:
        images = to_input(batch, PLAIN.eval_transform())
        for image, position in zip(images, batch.positions.tolist(), strict=True):
            assert torch.equal(image, dataset[position][0])
    with pytest.warns(UserWarning, match="is left out: not an image"):
        loader.leave_out(list(failures.values()))
    assert loader.batch_sampler.pictures == len(dataset) - 4
    assert len(loader) == len(batches(loader)) == 12
    assert set(bad).isdisjoint(positions_of(batches(loader)))


class Unplugged:
    """A source whose drive fails for some names; picklable, for workers."""

    def __init__(self, source: FolderSource, gone: set[str], error: Exception) -> None:
        self.source, self.gone, self.error = source, gone, error

    def read(self, name: str) -> bytes:
        if name in self.gone:
            raise self.error
        return self.source.read(name)


def unplugged(index: Index, error: Exception) -> tuple[FaceDataset, Unplugged]:
    dataset = FaceDataset(index, "train", PLAIN.eval_transform())
    assert isinstance(dataset.source, FolderSource)
    source = Unplugged(dataset.source, {str(dataset.paths[3])}, error)
    dataset.source = source  # type: ignore[assignment]
    return dataset, source


def test_a_picture_that_the_drive_did_not_give_takes_part_in_the_next_epoch(
    index: Index,
) -> None:
    dataset, source = unplugged(index, ReadError(errno.EIO, "Input/output error"))
    loader = make_loader(dataset, 4)
    found = batches(loader)
    [failure] = [each for batch in found for each in batch.failures]
    assert failure == (3, "cannot be read (Input/output error)", False)
    with pytest.warns(UserWarning, match="was missing in this epoch"):
        loader.leave_out([failure])
    source.gone.clear()
    assert positions_of(batches(loader)) == list(range(len(dataset)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_drive_that_is_gone_ends_the_epoch_with_its_sentence(index: Index, workers: int) -> None:
    error = DriveGoneError("/mnt/x cannot be read any more (EIO, 10 files in a row)")
    dataset, _ = unplugged(index, error)
    with pytest.raises(DriveGoneError) as caught:
        batches(make_loader(dataset, 4, workers=workers))
    assert str(caught.value) == str(error)


def test_spawned_workers_read_an_archive_as_the_parent_would(
    index: Index, faces: Path, tmp_path: Path
) -> None:
    """As on Windows and macOS, where a worker gets the data set by pickle."""
    packed = make_zip(faces, tmp_path / "faces.zip", prefix="one/")
    table = index.table.assign(path=lambda rows: "one/" + rows["path"])
    rows = Index(table, open_source(packed))
    from_zip = FaceDataset(rows, "val", SHAKEN.train_transform())
    from_zip[0]  # open in the parent: a worker must not share its file position
    from_folder = FaceDataset(index, "val", SHAKEN.train_transform())
    for context in ("fork", "spawn"):
        loader = make_loader(from_zip, 4, seed=3, workers=1)
        loader.multiprocessing_context = context
        assert torch.equal(inputs_of(loader), inputs_of(make_loader(from_folder, 4, seed=3)))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_leave_each_other_a_processor_also_where_opencv_has_threads(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(*_: object) -> Tensor:
        return torch.full((3, 12, 10), cv2.getNumThreads(), dtype=torch.uint8)

    monkeypatch.setattr("face_gender.data.dataset.load_pixels", threads)
    dataset = FaceDataset(index, "val", PLAIN.eval_transform())
    before = cv2.getNumThreads()
    cv2.setNumThreads(8)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 3)  # which starts them
        found = batches(make_loader(dataset, 4, workers=1))
        assert cv2.getNumThreads() == 8
    finally:
        cv2.setNumThreads(before)
    assert sum(len(each.labels) for each in found) == len(dataset)
    assert all((each.images == 1).all() for each in found)


def test_processes_read_for_other_devices_and_many_pictures_alone(index: Index) -> None:
    transform = PLAIN.eval_transform()
    few = FaceDataset(index, "train", transform)
    rows = pd.concat([index.table] * 10, ignore_index=True)
    many = FaceDataset(Index(rows, index.source), None, transform)
    assert make_loader(many, 8).num_workers == 0
    assert make_loader(few, 8, device="cuda").num_workers == 0
    assert make_loader(many, 8, device="cuda", threads=4).num_workers == 4
    assert make_loader(many, 8, device="cuda").pin_memory and not make_loader(many, 8).pin_memory
    assert make_loader(few, 8, workers=3).num_workers == 3
    (batch,) = batches(make_loader(few, 10**9))
    assert batch.positions.tolist() == list(range(len(few)))
    with pytest.raises(TypeError, match="train_transform"):
        make_loader(FaceDataset(index, "train", lambda image: image), 4)


class _Killed(FolderSource):
    """Kills the process that reads, as the system does one that has no memory left."""

    def read(self, name: str) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


class _Full(FolderSource):
    """Asks for more shared memory than any machine has: the error of a tiny /dev/shm."""

    def read(self, name: str) -> bytes:
        torch.UntypedStorage._new_shared(2**50)
        return b""


class _Broken(FolderSource):
    """Fails as only a mistake in the program does."""

    def read(self, name: str) -> bytes:
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize("source", [_Killed, _Full])
def test_workers_without_memory_end_in_a_sentence(
    source: type[FolderSource], index: Index, faces: Path
) -> None:
    rows = Index(index.table, source(faces))
    with pytest.raises(InputError, match="/dev/shm") as caught:
        batches(make_loader(FaceDataset(rows, "train", PLAIN.eval_transform()), 4, workers=1))
    assert "--workers 0" in sentence(caught)


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_a_worker_are_not_taken_for_memory(
    index: Index, faces: Path, workers: int
) -> None:
    rows = Index(index.table, _Broken(faces))
    with pytest.raises(RuntimeError, match="multiplied"):
        batches(make_loader(FaceDataset(rows, "train", PLAIN.eval_transform()), 4, workers=workers))


# The sampler


@given(
    size=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    processes=st.integers(1, 6),
    smallest=st.integers(1, 12),
    excluded=st.sets(st.integers(0, 59), max_size=5),
)
def test_the_shards_of_each_batch_are_the_batch(
    size: int, batch_size: int, processes: int, smallest: int, excluded: set[int]
) -> None:
    def shards(rank: int, world_size: int) -> list[list[int]]:
        sampler = EpochSampler(size, batch_size, True, 3, rank, world_size)
        sampler.excluded = {each for each in excluded if each < size}
        sampler.smallest = min(smallest, batch_size)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    every = [shards(rank, processes) for rank in range(processes)]
    whole = shards(0, 1)
    assert [list(chain(*parts)) for parts in zip(*every, strict=True)] == whole
    assert sorted(chain(*whole)) == sorted(set(range(size)) - excluded)
    # A last batch that would be too small is part of the one before.
    assert all(len(batch) == batch_size for batch in whole[:-1])
    if len(whole) > 1:
        assert min(smallest, batch_size) <= len(whole[-1]) < batch_size + smallest
    for parts in zip(*every, strict=True):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


# Targets of a teacher


def test_a_teacher_has_its_fraction_in_the_targets() -> None:
    rows = pd.DataFrame({"label": [0, 1, 1, 0], "teacher": ["0.5", "1", "", "0.25"]})
    expected = torch.tensor([[0.6, 0.4], [0.0, 1.0], [0.0, 1.0], [0.8, 0.2]])
    # Empty cells as pandas itself reads them, too.
    for table in (rows, rows.assign(teacher=[0.5, 1.0, float("nan"), 0.25])):
        targets = soft_labels(table, 0.8)
        assert targets is not None
        torch.testing.assert_close(targets, expected)
    assert soft_labels(rows, 0.0) is None
    assert soft_labels(rows.drop(columns="teacher"), 0.8) is None


@pytest.mark.parametrize("cell", ["1.5", "-0.1", "nan", "female"])
def test_a_teachers_answer_that_is_no_probability_is_one_sentence(cell: str) -> None:
    rows = pd.DataFrame({"label": [0, 1], "teacher": ["", cell]})
    with pytest.raises(InputError, match=f"row 2: teacher '{cell}' is no probability") as caught:
        soft_labels(rows, 0.5)
    sentence(caught)
