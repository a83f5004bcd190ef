"""Make the sample pictures in samples/: composites of aligned public-domain official portraits.

    python tools/make_samples.py officials.zip samples/ [--seed 0]

The archive holds `female/*.jpg` and `male/*.jpg` (in any parent folder), one portrait of each
person, head and shoulders. The portraits of a class are dealt into disjoint pools, and every
composite is the mean of portraits of one pool, so groups.csv lets a split keep pools apart.

Using the kit does not need this script. It needs Python 3.11 or 3.12 and

    pip install mediapipe==0.10.14 scipy pillow

whose wheel carries the face landmark and person segmentation models, so nothing is downloaded.
One seed gives the same bytes again as long as these packages and the machine stay the same.
On stderr it names the portraits that it leaves out, among some lines of mediapipe's own.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

os.environ.setdefault("GLOG_minloglevel", "2")  # read by mediapipe when it is imported
warnings.filterwarnings("ignore", module="google.protobuf")

try:
    import mediapipe
    import numpy as np
    from PIL import Image, ImageFilter
    from scipy.interpolate import LinearNDInterpolator
    from scipy.ndimage import gaussian_filter, map_coordinates
    from scipy.spatial import Delaunay
except ImportError as error:
    sys.exit(f"make_samples.py needs mediapipe==0.10.14, scipy and pillow: {error}.")

CLASSES = ("female", "male")
POOLS = 6
COMPOSITES_PER_POOL = 10
MEMBERS = 7
CANDIDATES = 0.6  # share of a pool from which one composite may choose its members
MOST_SHARED = 4  # members that two composites may have in common
SMALLEST_POOL = 18
ATTEMPTS = 1000  # sets of members drawn before a pool is given up
# Portraits in the archive that lie in the wrong folder.
MISFILED = ("male/house_maria-salazar.jpg",)
WIDTH, HEIGHT = 160, 200
QUALITY = 88

# Indices into the 478 landmarks of MediaPipe's face mesh.
EYES_AND_MOUTH = ((33, 133), (362, 263), (61, 291))
NOSE_TIP, CHEEKS = 1, (234, 454)
# Where the middles of the two eyes and of the mouth lie in a composite, (x, y) in pixels.
TEMPLATE = np.array([(59.0, 92.0), (101.0, 92.0), (80.0, 137.0)])
LEAST_FRONTAL = 0.45  # nose to one cheek / nose to the other; 1 looks straight ahead
MOST_CONTRAST = 25.0  # fine grey-level detail above the eyes; hair stays below, stripes do not

# Rays from the middle of the face over the head, on which the outline of the hair is sought.
CENTRE = np.array([80.0, 100.0])
ANGLES = np.radians(np.arange(-190, 11, 10))
RAYS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
REACH = np.arange(40.0, 130.0)
BORDER = np.array(
    [(x, y) for x in (-40, 8, 56, 104, 152, 200) for y in (-60, 240)]
    + [(x, y) for x in (-40, 200) for y in (0, 60, 120, 180)],
    dtype=float,
)


class SamplesError(Exception):
    """A reason, in one sentence, why the samples cannot be made."""


@dataclass(frozen=True)
class Portrait:
    """One source portrait, mirrored where needed so that all look to the same side.

    pixels: float64 (rows, columns, 3), 0 to 255, the backdrop replaced by its mean colour.
    points: float64 (478, 2), landmarks as (x, y) in source pixels.
    outline: float64 (21,), distance of the hair's outline from CENTRE in composite pixels.
    thumbnail: float64 (20, 16, 3), every tenth pixel of the aligned portrait.
    """

    pixels: np.ndarray
    points: np.ndarray
    outline: np.ndarray
    thumbnail: np.ndarray


def anchors(points: np.ndarray) -> np.ndarray:
    """Return the middles of the eyes and the mouth: float64 (3, 2), in the units of `points`."""
    return np.stack([points[list(pair)].mean(axis=0) for pair in EYES_AND_MOUTH])


def similarity(source: np.ndarray, target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the least-squares similarity transform that takes (n, 2) source to (n, 2) target."""
    a, b = source @ (1, 1j), target @ (1, 1j)
    factor = np.vdot(a - a.mean(), b - b.mean()) / np.vdot(a - a.mean(), a - a.mean())

    def transform(points: np.ndarray) -> np.ndarray:
        moved = (points @ (1, 1j) - a.mean()) * factor + b.mean()
        return np.stack([moved.real, moved.imag], axis=-1)

    return transform


def to_frame(points: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the transform from a portrait with these landmarks to composite pixels."""
    return similarity(anchors(points), TEMPLATE)


def from_frame(points: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the transform from composite pixels to a portrait with these landmarks."""
    return similarity(TEMPLATE, anchors(points))


def sample(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Read (rows, columns) or (rows, columns, 3) `values` at (..., 2) points (x, y), linearly."""
    if values.ndim == 3:
        return np.stack([sample(values[..., k], at) for k in range(values.shape[2])], axis=-1)
    return map_coordinates(values, [at[..., 1], at[..., 0]], order=1, mode="nearest")


def grid() -> np.ndarray:
    """Return the (x, y) of every composite pixel: float64 (200, 160, 2)."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([columns, rows], axis=-1).astype(float)


class Detector:
    """MediaPipe's face landmarks and person mask for one picture at a time."""

    def __init__(self) -> None:
        self._mesh = mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=True, min_detection_confidence=0.3
        )
        self._person = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)

    def landmarks(self, pixels: np.ndarray) -> np.ndarray | None:
        """Return float64 (478, 2) points (x, y) in pixels of a uint8 RGB picture, or None."""
        faces = self._mesh.process(pixels).multi_face_landmarks
        if not faces:
            return None
        height, width = pixels.shape[:2]
        return np.array([(p.x * width, p.y * height) for p in faces[0].landmark])

    def mask(self, pixels: np.ndarray) -> np.ndarray:
        """Return float64 (rows, columns), 0 on the backdrop and 1 on the person."""
        soft = self._person.process(pixels).segmentation_mask.astype(float)
        return np.clip((soft - 0.25) / 0.5, 0, 1)


def nose_ratio(points: np.ndarray) -> float:
    """Return nose tip to one cheek divided by nose tip to the other: 1 looks straight ahead."""
    one, other = np.linalg.norm(points[list(CHEEKS)] - points[NOSE_TIP], axis=1)
    return float(one / other)


def contrast_above_eyes(aligned: np.ndarray) -> float:
    """Return the standard deviation, in grey levels, of detail 1 to 5 pixels wide."""
    grey = aligned[:70].mean(axis=2)
    return float((gaussian_filter(grey, 1) - gaussian_filter(grey, 5)).std())


def flatten_backdrop(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return float64 pixels whose backdrop is its own mean colour: flags would leave ghosts."""
    person = mask[..., None]
    colour = (pixels * (1 - person)).sum(axis=(0, 1)) / max((1 - mask).sum(), 1)
    return pixels * person + colour * (1 - person)


def hair_outline(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return how far along each ray the person reaches: float64 (21,) in composite pixels."""
    along = CENTRE + REACH[None, :, None] * RAYS[:, None, :]
    inside = sample(mask, from_frame(points)(along)) > 0.5
    first_outside = np.where(inside.all(axis=1), len(REACH) - 1, (~inside).argmax(axis=1))
    padded = np.pad(REACH[first_outside], 1, mode="edge")
    smooth = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    return np.maximum(smooth, face_reach(to_frame(points)(points)) + 6)


def face_reach(framed: np.ndarray) -> np.ndarray:
    """Return how far the face itself reaches near each ray: float64 (21,).

    An outline inside the face would fold the warp.
    """
    offset = framed - CENTRE
    angle, radius = np.arctan2(offset[:, 1], offset[:, 0]), np.linalg.norm(offset, axis=1)
    turn = (angle[None] - ANGLES[:, None] + np.pi) % (2 * np.pi) - np.pi
    return np.where(np.abs(turn) < np.radians(12), radius[None], 0).max(axis=1)


def read_portrait(data: bytes, detector: Detector) -> Portrait | str:
    """Return the portrait in these JPEG bytes, or the reason why it is left out."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError:
        return "not a readable picture"
    points = detector.landmarks(pixels)
    if points is not None and nose_ratio(points) > 1:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        points = detector.landmarks(pixels)
    if points is None:
        return "no face found"
    if nose_ratio(points) < LEAST_FRONTAL:
        return "face turned too far to the side"
    mask = detector.mask(pixels)
    flat = flatten_backdrop(pixels, mask)
    aligned = sample(flat, from_frame(points)(grid()))
    if contrast_above_eyes(aligned) > MOST_CONTRAST:
        return "patterned headwear, which would show through the mean"
    return Portrait(flat, points, hair_outline(points, mask), aligned[::10, ::10])


def read_archive(path: Path) -> dict[str, list[Portrait]]:
    """Return the usable portraits of each class in name order; name the others on stderr."""
    detector = Detector()
    found: dict[str, list[Portrait]] = {label: [] for label in CLASSES}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            label = PurePosixPath(name).parent.name
            if label not in CLASSES or not name.lower().endswith((".jpg", ".jpeg")):
                continue
            portrait: Portrait | str = "it lies in the wrong folder"
            if not name.endswith(MISFILED):
                portrait = read_portrait(archive.read(name), detector)
            if isinstance(portrait, str):
                print(f"left out {name}: {portrait}", file=sys.stderr)
            else:
                found[label].append(portrait)
    return found


def control_points(frame_points: np.ndarray, outline: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Join landmarks, hair outline, a ring around it and the border: float64 (n, 2)."""
    hair = CENTRE + outline[:, None] * RAYS
    ring = CENTRE + (outline + margin)[:, None] * RAYS
    return np.concatenate([frame_points, hair, ring, BORDER])


def composite(members: list[Portrait]) -> Image.Image:
    """Return the mean of the members, each warped onto their mean shape: RGB 160 x 200 pixels."""
    framed = [to_frame(member.points)(member.points) for member in members]
    outline = np.mean([member.outline for member in members], axis=0)
    margin = 0.25 * outline
    shape = Delaunay(control_points(np.mean(framed, axis=0), outline, margin))
    total = np.zeros((HEIGHT, WIDTH, 3))
    for member, points in zip(members, framed, strict=True):
        own = from_frame(member.points)(control_points(points, member.outline, margin))
        total += sample(member.pixels, LinearNDInterpolator(shape, own)(grid()))
    mean = Image.fromarray(np.clip(total / len(members), 0, 255).round().astype(np.uint8))
    # A mean of several skins is softer than any one of them.
    return mean.filter(ImageFilter.UnsharpMask(radius=1.2, percent=60, threshold=0))


def choose_members(pool: list[Portrait], first: int, rng: np.random.Generator) -> list[int]:
    """Return the indices of `first` and its closest lookalikes in a random part of the pool.

    Similar hair and colours keep the mean sharp, and the composites different from each other.
    """
    others = [i for i in range(len(pool)) if i != first]
    drawn = rng.choice(others, round(CANDIDATES * len(others)), replace=False).tolist()
    drawn.sort(key=lambda i: np.square(pool[i].thumbnail - pool[first].thumbnail).sum())
    return [first, *drawn[: MEMBERS - 1]]


def pool_members(pool: list[Portrait], rng: np.random.Generator) -> list[list[int]]:
    """Return the members of each composite of a pool, no two with more than MOST_SHARED alike."""
    chosen: list[list[int]] = []
    for _ in range(ATTEMPTS):
        members = choose_members(pool, int(rng.integers(len(pool))), rng)
        if all(len(set(members) & set(other)) <= MOST_SHARED for other in chosen):
            chosen.append(members)
        if len(chosen) == COMPOSITES_PER_POOL:
            return chosen
    raise SamplesError(f"A pool of {len(pool)} portraits is too small for this seed: try another.")


def deal(portraits: list[Portrait], rng: np.random.Generator) -> list[list[Portrait]]:
    """Return the portraits in random order, dealt into POOLS disjoint pools."""
    order = rng.permutation(len(portraits))
    return [[portraits[i] for i in order[start::POOLS]] for start in range(POOLS)]


def write_file(path: Path, data: bytes) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        part.write_bytes(data)
        part.replace(path)


def encode_jpeg(picture: Image.Image) -> bytes:
    """Return the picture as JPEG bytes without metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def write_class(
    label: str, portraits: list[Portrait], folder: Path, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Write the composites of one class; return (path, group) for each, in name order."""
    rows: list[tuple[str, str]] = []
    for number, pool in enumerate(deal(portraits, rng), start=1):
        for members in pool_members(pool, rng):
            name = f"{label}/{label}_{len(rows) + 1:02d}.jpg"
            picture = composite([pool[i] for i in members])
            if rng.integers(2):
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            write_file(folder / name, encode_jpeg(picture))
            rows.append((name, f"{label}_pool_{number}"))
    return rows


def make_samples(archive: Path, folder: Path, seed: int) -> int:
    """Write the pictures and groups.csv into `folder`; return the number of pictures."""
    found = read_archive(archive)
    least = POOLS * SMALLEST_POOL
    for label, portraits in found.items():
        if len(portraits) < least:
            raise SamplesError(
                f"{archive} holds {len(portraits)} usable {label} portraits, "
                f"but at least {least} are needed."
            )
    rows: list[tuple[str, str]] = []
    for number, label in enumerate(CLASSES):
        rng = np.random.default_rng([seed, number])
        rows += write_class(label, found[label], folder, rng)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("path", "group"), *rows])
    write_file(folder / "groups.csv", text.getvalue().encode())
    return len(rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the composite portraits in samples/.")
    parser.add_argument("archive", type=Path, help="zip with female/*.jpg and male/*.jpg portraits")
    parser.add_argument("folder", type=Path, help="where to write female/, male/ and groups.csv")
    parser.add_argument("--seed", type=int, default=0, help="what the drawing of lots starts from")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error("--seed must be 0 or more")
    return arguments


def main() -> int:
    """Run the command; return its exit status."""
    arguments = parse_arguments()
    try:
        if not arguments.archive.is_file():
            raise SamplesError(f"There is no file {arguments.archive}.")
        count = make_samples(arguments.archive, arguments.folder, arguments.seed)
    except SamplesError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        print(f"The samples cannot be made from {arguments.archive}: {error}.", file=sys.stderr)
        return 1
    print(f"Wrote {count} pictures and groups.csv to {arguments.folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
