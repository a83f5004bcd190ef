from __future__ import annotations

import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import COLOURS, make_faces, make_zip
from PIL import Image
from sentences import sentence
from torch import Tensor

from face_gender.data.augmentation import Augmentation, sample_uniforms
from face_gender.data.dataset import Batch, FaceDataset, FaceLoader, select_split
from face_gender.data.images import UnreadableImage, load_pixels
from face_gender.data.index import create_csv
from face_gender.data.preprocessing import Preprocessing
from face_gender.data.sources import FolderSource
from face_gender.data.tables import read_index
from face_gender.errors import InputError

PLAIN = Preprocessing(12, 10, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SHAKEN = Preprocessing(12, 10, augmentation=Augmentation(0.5, 30))


@pytest.fixture
def index(faces: Path) -> Path:
    return create_csv(faces, progress=False).path


def batches(loader: FaceLoader, epoch: int = 0) -> list[Batch]:
    loader.sampler.epoch = epoch
    return list(loader)


def images_of(found: list[Batch]) -> Tensor:
    return torch.cat([batch.images for batch in found if batch.images is not None])


def positions_of(found: list[Batch]) -> list[int]:
    return [position for batch in found for position in batch.positions.tolist()]


def is_red(image: Tensor) -> bool:
    """Tell a drawn man from a drawn woman by the middle of the picture."""
    red, _, blue = image[:, 6:9, 4:6].mean(dim=(1, 2))
    return bool(red > blue)


def spoil(data: Path, dataset: FaceDataset, positions: list[int]) -> None:
    for position in positions:
        (data / str(dataset.paths[position])).write_text("no picture")


def test_an_item_is_the_picture_and_its_label(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, None, faces)
    assert len(dataset) == 40
    for i in (0, 20, 39):
        image, label = dataset[i]
        assert isinstance(image, Image.Image)
        assert type(label) is int
        folder = str(dataset.paths[i]).split("/")[0]
        assert label == ("male", "female").index(folder)
        with Image.open(faces / str(dataset.paths[i])) as original:
            assert np.array_equal(np.asarray(image), np.asarray(original))


def test_the_transform_is_applied(index: Path, faces: Path) -> None:
    image, _ = FaceDataset(index, "train", faces, PLAIN.eval_transform())[0]
    assert image.shape == (3, 12, 10)


def test_splits_are_those_of_the_csv(index: Path, faces: Path) -> None:
    table = read_index(index)
    for split in ("train", "val", "test"):
        expected = table["path"][table["split"] == split].tolist()
        assert FaceDataset(index, split, faces).paths.tolist() == expected
    assert FaceDataset(index, None, faces).paths.tolist() == table["path"].tolist()


def test_paths_and_labels_are_numpy_arrays(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces)
    assert isinstance(dataset.paths, np.ndarray)
    assert dataset.paths.dtype.kind == "U"
    assert isinstance(dataset.labels, np.ndarray)
    assert dataset.labels.dtype == np.int64


def test_no_picture_is_read_before_it_is_asked_for(index: Path, faces: Path) -> None:
    shutil.rmtree(faces / "male")
    shutil.rmtree(faces / "female")
    dataset = FaceDataset(index, "train", faces)
    with pytest.raises(UnreadableImage):
        dataset[0]


def test_a_bad_file_raises_with_its_path_and_the_reason(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces)
    spoil(faces, dataset, [3])
    with pytest.raises(UnreadableImage) as caught:
        dataset[3]
    assert caught.value.path == dataset.paths[3]
    assert "not an image" in caught.value.reason


@pytest.mark.parametrize("packed", [False, True])
def test_it_can_be_pickled(index: Path, faces: Path, tmp_path: Path, packed: bool) -> None:
    data = make_zip(faces, tmp_path / "faces.zip") if packed else faces
    dataset = FaceDataset(index, "train", data, SHAKEN.eval_transform())
    dataset[0]  # an archive is open now
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5][0], dataset[5][0])
    assert copy.labels.tolist() == dataset.labels.tolist()


def test_a_table_serves_as_the_index(index: Path, faces: Path) -> None:
    table = read_index(index)
    assert len(FaceDataset(table, "val", faces)) == (table["split"] == "val").sum()


def test_an_older_csv_has_rows_and_no_splits(faces: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.csv"
    older.write_text("image_name,class\nmale/m_0.jpg,male\nfemale/f_1.jpg,1\n")
    dataset = FaceDataset(older, None, faces)
    assert dataset.labels.tolist() == [0, 1]
    assert dataset[1][0].size == (36, 44)
    with pytest.raises(InputError) as caught:
        FaceDataset(older, "train", faces)
    assert "data_split.py" in sentence(caught)


@pytest.mark.parametrize("split", ["training", "", "Train"])
def test_an_unknown_split_is_refused_in_a_sentence(index: Path, split: str) -> None:
    with pytest.raises(InputError) as caught:
        select_split(index, split)
    assert "train, val, test" in sentence(caught)


def test_an_empty_split_is_refused_in_a_sentence(faces: Path, tmp_path: Path) -> None:
    report = create_csv(faces, tmp_path / "no_test.csv", (80, 20, 0), progress=False)
    with pytest.raises(InputError) as caught:
        select_split(report, "test")
    assert "'test'" in sentence(caught)


def test_batches_hold_every_picture_once(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    found = batches(FaceLoader(dataset, 8, shuffle=True))
    assert sorted(positions_of(found)) == list(range(len(dataset)))
    assert [len(batch.labels) for batch in found] == [8, 8, 8, 4]
    assert type(found[0].images) is Tensor
    assert found[0].images.dtype == torch.float32
    assert found[0].labels.dtype == torch.int64


def test_labels_belong_to_their_pictures(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    assert COLOURS["male"][0] > COLOURS["male"][2]
    for batch in batches(FaceLoader(dataset, 5, shuffle=True)):
        assert batch.images is not None
        assert [0 if is_red(image) else 1 for image in batch.images] == batch.labels.tolist()
        assert dataset.labels[batch.positions.numpy()].tolist() == batch.labels.tolist()


def test_without_shuffle_the_order_is_that_of_the_index(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "val", faces, PLAIN.eval_transform())
    loader = FaceLoader(dataset, 4)
    assert positions_of(batches(loader)) == list(range(len(dataset)))
    assert positions_of(batches(loader, epoch=3)) == list(range(len(dataset)))


def test_shuffling_follows_the_seed_and_the_epoch(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, PLAIN.eval_transform())

    def order(seed: int, epoch: int) -> list[int]:
        return positions_of(batches(FaceLoader(dataset, 8, True, seed), epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


def test_augmentation_differs_by_epoch_and_by_picture(index: Path, faces: Path) -> None:
    same = FaceDataset(index, "train", faces, SHAKEN.train_transform())
    same.paths[:] = same.paths[0]  # one picture in every place
    loader = FaceLoader(same, len(same))
    first, second = images_of(batches(loader, 0)), images_of(batches(loader, 1))
    assert len({image.numpy().tobytes() for image in first}) > 20
    assert not torch.equal(first, second)


def test_the_same_seed_gives_the_same_batches_with_workers(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, SHAKEN.train_transform())
    alone, helped = (FaceLoader(dataset, 8, True, 5, workers=workers) for workers in (0, 2))
    for epoch in (0, 1):
        for one, other in zip(batches(alone, epoch), batches(helped, epoch), strict=True):
            assert torch.equal(one.images, other.images)  # type: ignore[arg-type]
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.positions, other.positions)


def test_reading_leaves_the_random_numbers_of_the_net_alone(
    index: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    dataset = FaceDataset(index, "train", faces, SHAKEN.train_transform())
    loader = iter(FaceLoader(dataset, 8))
    before = torch.get_rng_state()
    next(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert reseeded == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_reported_and_no_neighbour_stands_in(
    index: Path, faces: Path, workers: int
) -> None:
    dataset = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    bad = [0, 9, 10, len(dataset) - 1]
    spoil(faces, dataset, bad)
    found = batches(FaceLoader(dataset, 5, shuffle=True, workers=workers))
    failures = dict(failure for batch in found for failure in batch.failures)
    assert sorted(failures) == bad
    assert all("not an image" in reason for reason in failures.values())
    assert sorted(positions_of(found)) == [i for i in range(len(dataset)) if i not in bad]
    for batch in found:
        assert batch.images is not None
        assert len(batch.images) == len(batch.labels) == len(batch.positions)
        for image, label, position in zip(*batch[:3], strict=True):
            assert label == dataset.labels[position]
            assert torch.equal(image, dataset[int(position)][0])


def test_a_batch_of_bad_files_alone_has_no_images(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "val", faces, PLAIN.eval_transform())
    spoil(faces, dataset, [0, 1])
    first = batches(FaceLoader(dataset, 2))[0]
    assert first.images is None
    assert (len(first.labels), len(first.positions)) == (0, 0)
    assert [position for position, _ in first.failures] == [0, 1]


def test_excluded_pictures_are_left_out_of_the_next_epoch(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    loader = FaceLoader(dataset, 8, shuffle=True)
    loader.sampler.excluded.update([2, 7])
    assert loader.sampler.pictures == len(dataset) - 2
    assert len(loader) == len(batches(loader)) == 4
    assert {2, 7}.isdisjoint(positions_of(batches(loader)))


def test_workers_read_an_archive(index: Path, faces: Path, tmp_path: Path) -> None:
    packed = make_zip(faces, tmp_path / "faces.zip", prefix="one/")
    table = read_index(index).assign(path=lambda rows: "one/" + rows["path"])
    from_zip = FaceDataset(table, "train", packed, PLAIN.eval_transform())
    from_zip[0]  # open in the parent: a forked worker must not share its file position
    from_folder = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    there = images_of(batches(FaceLoader(from_zip, 4, workers=2)))
    here = images_of(batches(FaceLoader(from_folder, 4)))
    assert torch.equal(there, here)


def test_spawned_workers_read_what_the_parent_would(index: Path, faces: Path) -> None:
    """As on Windows and macOS, where a worker gets the data set by pickle."""
    dataset = FaceDataset(index, "val", faces, SHAKEN.train_transform())
    spoil(faces, dataset, [1])
    loader = FaceLoader(dataset, 4, seed=3, workers=1)
    assert loader._processes is not None
    loader._processes.loader.multiprocessing_context = "spawn"
    spawned, alone = batches(loader), batches(FaceLoader(dataset, 4, seed=3))
    assert torch.equal(images_of(spawned), images_of(alone))
    assert positions_of(spawned) == positions_of(alone)
    assert spawned[0].failures == alone[0].failures != []


def test_processes_read_for_other_devices_and_many_pictures_alone(index: Path, faces: Path) -> None:
    few = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    rows = pd.concat([read_index(index)] * 10, ignore_index=True)
    many = FaceDataset(rows, None, faces, PLAIN.eval_transform())
    assert FaceLoader(many, 8).workers == 0
    assert FaceLoader(few, 8, device="cuda").workers == 0
    assert FaceLoader(many, 8, device="cuda").workers >= 1
    assert FaceLoader(few, 8, workers=3).workers == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_are_not_written_over(index: Path, faces: Path, workers: int) -> None:
    dataset = FaceDataset(index, None, faces, PLAIN.eval_transform())
    expected = torch.stack([dataset[i][0] for i in range(len(dataset))])
    assert torch.equal(images_of(batches(FaceLoader(dataset, 2, workers=workers))), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_as_they_were_read_are_those_of_the_picture(
    index: Path, faces: Path, workers: int
) -> None:
    dataset = FaceDataset(index, "train", faces, SHAKEN.train_transform())
    for batch in FaceLoader(dataset, 3, workers=workers).read():
        assert batch.images is not None and batch.images.dtype == torch.uint8
        for pixels, position in zip(batch.images, batch.positions.tolist(), strict=True):
            path = faces / str(dataset.paths[position])
            assert torch.equal(pixels, SHAKEN.resized(load_pixels(path)))


def test_augmentation_depends_on_neither_the_batch_nor_the_workers(
    index: Path, faces: Path
) -> None:
    dataset = FaceDataset(index, "val", faces, SHAKEN.train_transform())
    loaders = (FaceLoader(dataset, size, seed=4, workers=n) for size, n in ((1, 0), (3, 0), (3, 2)))
    one, three, helped = (images_of(batches(loader, epoch=2)) for loader in loaders)
    assert torch.allclose(one, three, atol=1e-5)
    assert torch.equal(three, helped)


class _Deadly(FolderSource):
    """Kills the process that reads, as the system does one that has no memory left."""

    def read(self, name: str) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


def test_a_killed_worker_is_answered_in_a_sentence(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", _Deadly(faces), PLAIN.eval_transform())
    with pytest.raises(InputError, match="workers=0") as caught:
        batches(FaceLoader(dataset, 4, workers=1))
    assert sentence(caught)


class _Broken(FolderSource):
    """Fails as only a mistake in the program does."""

    def read(self, name: str) -> bytes:
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_a_worker_are_not_taken_for_memory(
    index: Path, faces: Path, workers: int
) -> None:
    dataset = FaceDataset(index, "train", _Broken(faces), PLAIN.eval_transform())
    with pytest.raises(RuntimeError, match="multiplied"):
        batches(FaceLoader(dataset, 4, workers=workers))


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_whole_number_is_a_seed(index: Path, faces: Path, seed: int) -> None:
    dataset = FaceDataset(index, "train", faces, SHAKEN.train_transform())
    found, again, other = (FaceLoader(dataset, 8, True, each) for each in (seed, seed, 1))
    assert sorted(positions_of(batches(found))) == list(range(len(dataset)))
    assert torch.equal(images_of(batches(found)), images_of(batches(again)))
    assert positions_of(batches(found)) != positions_of(batches(other))


def test_a_batch_may_be_larger_than_the_data_set(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "val", faces, PLAIN.eval_transform())
    (batch,) = batches(FaceLoader(dataset, 10**9))
    assert batch.positions.tolist() == list(range(len(dataset)))


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_and_train_batches_differ_by_the_augmentation_alone(
    index: Path, faces: Path, workers: int
) -> None:
    shaken = FaceDataset(index, "val", faces, SHAKEN.train_transform())
    found = FaceLoader(shaken, 3, workers=workers, seed=8)
    uniforms = sample_uniforms(8, 5, torch.arange(len(shaken)))
    pixels = torch.stack([SHAKEN.resized(load_pixels(faces / str(path))) for path in shaken.paths])
    expected = SHAKEN.train_transform().finish(pixels, uniforms)
    assert torch.allclose(images_of(batches(found, 5)), expected, atol=1e-5)
    still = FaceDataset(index, "val", faces, SHAKEN.eval_transform())
    plain = SHAKEN.normalized(pixels)
    assert torch.equal(images_of(batches(FaceLoader(still, 3, workers=workers), 5)), plain)
    assert not torch.allclose(expected, plain, atol=0.1)


def test_an_epoch_may_be_left_and_another_begun(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, PLAIN.eval_transform())
    for workers in (0, 2):
        loader = FaceLoader(dataset, 4, workers=workers)
        next(iter(loader))
        assert positions_of(batches(loader)) == list(range(len(dataset)))


def test_other_code_keeps_its_threads(index: Path, faces: Path) -> None:
    before = torch.get_num_threads()
    batches(FaceLoader(FaceDataset(index, "train", faces, PLAIN.eval_transform()), 4))
    assert torch.get_num_threads() == before


def test_a_transform_of_ones_own_belongs_into_torchs_loader(index: Path, faces: Path) -> None:
    dataset = FaceDataset(index, "train", faces, lambda image: image)
    with pytest.raises(TypeError, match="train_transform"):
        FaceLoader(dataset, 4)


def test_cyrillic_names_and_spaces_are_read(tmp_path: Path) -> None:
    data = make_faces(tmp_path / "мои лица", 4, 4)
    (data / "male" / "m_0.jpg").rename(data / "male" / "Иван Петров.jpg")
    dataset = FaceDataset(create_csv(data, progress=False), None, data)
    names = [str(path) for path in dataset.paths]
    assert dataset[names.index("male/Иван Петров.jpg")][0].size == (36, 44)
