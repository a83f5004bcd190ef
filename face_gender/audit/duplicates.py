"""Near-duplicates: the same photograph re-encoded, resized, brightened, cropped or mirrored.

Two steps. Small descriptors of all pictures go into a graph index (HNSW, Malkov and Yashunin,
arXiv:1603.09320, from faiss), which finds each picture's few nearest in about log n steps. Every
such pair is then laid over one another as well as shift and scale allow (Gauss-Newton on the
correlation, after Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation
Coefficient Maximization", 2008), and what counts is how well the two then agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

# Height and width of the grey fingerprints.
SIDE = 64
# Pairs that agree less are not the same photograph. Copies agree to 0.99, different photographs
# of a person to 0.94; see docs/audit.md.
SAME = 0.96

# So few are all compared: the mean of two copies leaves nothing of either that they share.
_FEW = 48
_NEAREST = 5
# Descriptors of one photograph agree to 0.99, those of nearest neighbours mostly below 0.8.
_CLOSE = 0.8
_DIMENSIONS = 64
_SAMPLE = 20_000
_CHUNK = 2_048
# Of the alignment: by how much pictures are scaled down, steps, and what agreement goes on.
_STAGES = ((4, 4, 0.9), (2, 4, 0.93), (1, 4, -1.0))
_CROPS = (1.0, 0.95, 0.9)

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows that may show the same photograph: each (m,), ``first`` < ``second``.

    ``agreement``: correlation after alignment, -1..1; ``mirrored``: one has to be flipped.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    agreement: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.bool_]

    def above(self, agreement: float) -> Pairs:
        """Return the pairs that agree at least so well."""
        keep = self.agreement >= agreement
        return Pairs(self.first[keep], self.second[keep], self.agreement[keep], self.mirrored[keep])


def near_duplicates(
    fingerprints: npt.NDArray[np.uint8], jobs: int = 1, progress: Progress = int
) -> Pairs:
    """Return the pairs of ``fingerprints`` (n, SIDE, SIDE) that agree at least to `SAME`.

    ``jobs``: threads of the search. ``progress`` is called with the number of pictures done, n in
    all, as often as there is news.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(jobs)  # torch's too, where both have the same OpenMP library
    try:
        first, second, mirrored = candidates(fingerprints, progress)
    finally:
        faiss.omp_set_num_threads(before)
    agreement = align(fingerprints, first, second, mirrored)
    return Pairs(first, second, agreement, mirrored).above(SAME)


def group_copies(
    paths: Sequence[str], hashes: Sequence[str], pairs: Pairs, known: Sequence[str] = ()
) -> list[str]:
    """Return the group (n,) of each picture: those of the same bytes and those of a pair share one.

    So do pictures of one ``known`` group (n,), such as a person's; "" in it or in ``hashes`` is
    none. Numbered by name: an index in another order gives the same groups and folds.
    """
    count = len(paths)
    links = [pairs.first, pairs.second]
    for values in filter(len, (hashes, known)):
        first_of: dict[str, int] = {}
        of_value = [first_of.setdefault(v, row) if v else row for row, v in enumerate(values)]
        links = [np.append(links[0], np.arange(count)), np.append(links[1], of_value)]
    graph = coo_array((np.ones(len(links[0])), links), (count, count))
    number, component = connected_components(graph, directed=False)
    place = np.empty(count, dtype=np.int64)
    place[sorted(range(count), key=paths.__getitem__)] = np.arange(count)
    first_place = np.full(number, count)
    np.minimum.at(first_place, component, place)
    return [f"{each:06d}" for each in first_place[component].tolist()]


def candidates(
    fingerprints: npt.NDArray[np.uint8], progress: Progress = int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return (first, second, mirrored), each (m,): pairs whose descriptors lie close together."""
    if len(fingerprints) <= _FEW:
        progress(len(fingerprints))
        first, second = np.triu_indices(len(fingerprints), k=1)
        return np.tile(first, 2), np.tile(second, 2), np.repeat([False, True], len(first))
    describe = _fit(fingerprints)
    index = faiss.IndexHNSWFlat(_DIMENSIONS, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 64, 64
    for start in range(0, len(fingerprints), _CHUNK):
        index.add(describe(_pictures(fingerprints[start : start + _CHUNK])))
    found = []
    for start in range(0, len(fingerprints), _CHUNK):
        pictures = _pictures(fingerprints[start : start + _CHUNK])
        for flip in (False, True):
            for crop in _CROPS:
                view = _view(pictures, crop, flip)
                found.append(_neighbours(index, describe(view), start, flip))
        progress(len(pictures))
    return _distinct(np.concatenate(found))


def _pictures(fingerprints: npt.NDArray[np.uint8]) -> Tensor:
    """(n, SIDE, SIDE) uint8 -> (n, 1, SIDE, SIDE) float32."""
    return torch.from_numpy(np.ascontiguousarray(fingerprints)).float()[:, None]


def _view(pictures: Tensor, crop: float, flip: bool) -> Tensor:
    """Return the centre of each picture, scaled to the whole, and mirrored if asked for."""
    pictures = pictures.flip(-1) if flip else pictures
    if crop == 1:
        return pictures
    theta = torch.tensor([[crop, 0.0, 0.0], [0.0, crop, 0.0]]).expand(len(pictures), 2, 3)
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


def _fit(fingerprints: npt.NDArray[np.uint8]) -> Callable[[Tensor], npt.NDArray[np.float32]]:
    """Return what turns pictures into unit vectors (n, _DIMENSIONS).

    Principal components of 16 x 16 pictures. Faces share the first few, which are therefore
    scaled down (by the square root of their spread), or all faces would be neighbours.
    """
    step = max(1, len(fingerprints) // _SAMPLE)
    small = _small(_pictures(fingerprints[::step]))
    mean = small.mean(0)
    _, spread, axes = torch.linalg.svd(small - mean, full_matrices=False)
    spread = spread / len(small) ** 0.5
    axes, spread = axes[:_DIMENSIONS], spread[:_DIMENSIONS]
    scale = 1 / (spread + 0.02 * spread[0]).sqrt()
    project = axes.T * scale
    missing = _DIMENSIONS - project.shape[1]

    def describe(pictures: Tensor) -> npt.NDArray[np.float32]:
        vectors = functional.pad((_small(pictures) - mean) @ project, (0, missing))
        return np.ascontiguousarray(functional.normalize(vectors).numpy(), dtype=np.float32)

    return describe


def _small(pictures: Tensor) -> Tensor:
    """(n, 1, SIDE, SIDE) -> (n, 256), each of mean 0 and length 1: brightness does not count."""
    small = functional.avg_pool2d(pictures, SIDE // 16).flatten(1)
    return functional.normalize(small - small.mean(1, keepdim=True))


def _neighbours(
    index: faiss.Index, vectors: npt.NDArray[np.float32], start: int, flip: bool
) -> npt.NDArray[np.int64]:
    """Return rows (first, second, mirrored) for the nearest of each vector."""
    closeness, nearest = index.search(vectors, _NEAREST + (not flip))
    own = np.repeat(np.arange(start, start + len(vectors)), nearest.shape[1])
    other = nearest.ravel()
    keep = (other >= 0) & (other != own) & (closeness.ravel() >= _CLOSE)
    pairs = np.stack([np.minimum(own, other), np.maximum(own, other)], axis=1)[keep]
    return np.column_stack([pairs, np.full(len(pairs), flip)]).astype(np.int64)


def _distinct(
    rows: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    rows = np.unique(rows, axis=0)
    return rows[:, 0], rows[:, 1], rows[:, 2].astype(bool)


def align(
    fingerprints: npt.NDArray[np.uint8],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    mirrored: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Return the correlation (m,) of each pair after shifting and scaling one onto the other."""
    out = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        fixed = _pictures(fingerprints[first[part]])
        moving = _pictures(fingerprints[second[part]])
        flip = torch.from_numpy(mirrored[part])[:, None, None, None]
        moving = torch.where(flip, moving.flip(-1), moving)
        out[part] = _agreement(fixed, moving).numpy()
    return out


def _agreement(fixed: Tensor, moving: Tensor) -> Tensor:
    """Align coarsely, then finely; return the correlation (n,) over what both show.

    A pair that disagrees at a coarse stage, where most do, is not looked at more finely.
    """
    agreement = torch.zeros(len(fixed))
    left = torch.arange(len(fixed))
    warp = torch.zeros(len(fixed), 4)
    for factor, steps, enough in _STAGES:
        if not len(left):  # which torch cannot resample
            break
        small = functional.avg_pool2d(fixed[left], factor)
        other = functional.avg_pool2d(moving[left], factor)
        for _ in range(steps):
            warp = _step(small, other, warp)
        agreement[left] = _correlation(small, *_warped(other, warp))
        keep = agreement[left] >= enough
        left, warp = left[keep], warp[keep]
    return agreement


def _warped(moving: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """Resample by ``warp`` (n, 4: shift x, y, log scale x, y); also where it lies inside, 0 or 1.

    Shifts are in halves of the side.
    """
    theta = torch.zeros(len(warp), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = warp[:, 2].exp(), warp[:, 3].exp()
    theta[:, :, 2] = warp[:, :2]
    grid = functional.affine_grid(theta, list(moving.shape), align_corners=False)
    inside = (grid.abs() <= 1).all(-1)[:, None].float()
    return functional.grid_sample(moving, grid, padding_mode="border", align_corners=False), inside


def _standardised(pictures: Tensor, inside: Tensor) -> Tensor:
    """Return the pictures with mean 0 and length 1 over ``inside``, and 0 outside of it."""
    count = inside.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (pictures * inside).sum((1, 2, 3), keepdim=True) / count
    centred = (pictures - mean) * inside
    return centred / centred.pow(2).sum((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-3)


def _correlation(fixed: Tensor, moved: Tensor, inside: Tensor) -> Tensor:
    return (_standardised(fixed, inside) * _standardised(moved, inside)).sum((1, 2, 3))


def _step(fixed: Tensor, moving: Tensor, warp: Tensor) -> Tensor:
    """Make one Gauss-Newton step; a step that worsens the correlation is not taken."""
    moved, inside = _warped(moving, warp)
    target, image = _standardised(fixed, inside), _standardised(moved, inside)
    side = fixed.shape[-1]
    # Central differences, in units of half a side.
    dx = functional.pad((moved[..., 2:] - moved[..., :-2]) * side / 4, (1, 1, 0, 0))
    dy = functional.pad((moved[..., 2:, :] - moved[..., :-2, :]) * side / 4, (0, 0, 1, 1))
    position = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y = position.view(1, 1, 1, -1), position.view(1, 1, -1, 1)
    jacobian = torch.cat([dx, dy, dx * x, dy * y], 1) * inside
    jacobian = jacobian.flatten(2)
    jacobian = jacobian - jacobian.mean(2, keepdim=True)
    length = ((moved - moved.mean((1, 2, 3), keepdim=True)) * inside).flatten(1).norm(dim=1)
    residual = (target - image).flatten(1) * length[:, None]
    normal = jacobian @ jacobian.transpose(1, 2)
    damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)
    normal = normal + damping[:, None, None] * torch.eye(4)
    change = torch.linalg.solve(normal, (jacobian @ residual[..., None]))[..., 0]
    new = (warp + change.clamp(-0.1, 0.1)).clamp(-0.3, 0.3)
    better = _correlation(fixed, *_warped(moving, new)) > (target * image).sum((1, 2, 3))
    return torch.where(better[:, None], new, warp)
