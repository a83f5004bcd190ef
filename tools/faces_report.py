"""Reproduce the figures of docs/faces.md.

python -m tools.faces_report recall ARCHIVE…
python -m tools.faces_report false
python -m tools.faces_report turned ARCHIVE…
python -m tools.faces_report accuracy ARCHIVE… [--weights model_weights/shipped.pth]
python -m tools.faces_report speed ARCHIVE…
python -m tools.faces_report sheet ARCHIVE… --out FOLDER

ARCHIVE holds NAME/female and NAME/male. ``recall`` pastes pictures into generated scenes at set
widths of the face; ``false`` counts faces in scenes that have none; ``accuracy`` pastes
pictures into larger scenes and patches of other pictures; ``speed`` takes seconds of the processor,
not of the clock; ``sheet`` writes 100 aligned faces of each archive, to be looked at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from face_gender.data.images import load_image
from face_gender.data.sources import find_images
from face_gender.faces.alignment import MARGIN, align, template
from face_gender.faces.detector import Detector, Face, load_detector
from face_gender.model.checkpoint import load_checkpoint

Pixels = NDArray[np.uint8]
Picture = tuple[str, Pixels]

# CelebA-64 is squeezed; its true shape is 178 x 218.
TRUE_SHAPES = {"celeba64": (64, 78)}
WIDTHS = (12, 16, 20, 24, 32, 48, 96)
MARGINS = (0.0, 0.2, 0.4, 1.0, 3.0)


def pictures(archive: Path, count: int, seed: int) -> list[Picture]:
    """Return (label, pixels) of as many pictures of either label, drawn by the seed."""
    rng = np.random.default_rng(seed)
    found: list[Picture] = []
    source, every = find_images(archive, recursive=True)
    for label in ("female", "male"):
        names = [name for name in every if f"/{label}/" in name and name.endswith(".jpg")]
        for i in rng.permutation(len(names))[: count // 2]:
            image = load_image(names[i], source)
            shape = TRUE_SHAPES.get(archive.stem, image.size)
            found.append((label, np.array(image.resize(shape, Image.Resampling.BICUBIC))))
    return found


def clouds(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return fractal noise from 0 to 1, (height, width, 3)."""
    total = np.zeros((height, width, 3))
    for octave in range(1, 8):
        cells = rng.random((2**octave + 1, 2**octave + 1, 3))
        total += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return (total - total.min()) / np.ptp(total)


def landscape(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return sky, clouds, sun and three to six ridges."""
    fall = np.linspace(0, 1, height)[:, None, None]
    scene = (1 - fall) * rng.random(3) + fall * rng.random(3) + np.zeros((1, width, 1))
    mist = clouds(rng, height, width).mean(2, keepdims=True)
    scene = np.where(mist > 0.6, scene * 0.5 + 0.5, scene)
    sun = (int(rng.integers(width)), height // 5)
    cv2.circle(scene, sun, min(height, width) // 16 + 2, (1.0, 1.0, 0.8), -1)
    for i in range(int(rng.integers(3, 7))):
        walk = np.cumsum(rng.normal(0, 1.5, width)).astype(np.float32)
        ridge = cv2.GaussianBlur(walk[None], (0, 0), 3 + 9 / (i + 1))[0] + height * (0.3 + 0.12 * i)
        ground = clouds(rng, height, width).mean(2, keepdims=True) * rng.random(3)
        scene = np.where(np.arange(height)[:, None, None] > ridge[:, None], ground, scene)
    return scene


def drawing(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return discs, boxes and lines on one colour."""
    scene = np.full((height, width, 3), rng.random(3))
    for _ in range(int(rng.integers(5, 60))):
        colour = tuple(rng.random(3))
        a, b = (tuple(int(v) for v in rng.integers(0, (width, height))) for _ in range(2))
        size = int(rng.integers(3, max(4, min(height, width) // 4)))
        kind = rng.integers(3)
        if kind == 0:
            cv2.circle(scene, a, size, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(scene, a, (a[0] + size, a[1] + size // 2), colour, -1)
        else:
            cv2.line(scene, a, b, colour, size // 8 + 1, cv2.LINE_AA)
    return scene


def waves(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return gradients and gratings, from broad to fine."""
    y, x = np.mgrid[:height, :width]
    turns = rng.uniform(-0.6, 0.6, (3, 2)) ** 3 * 4
    return np.stack([(np.sin(x * a + y * b + 9 * a) + 1) / 2 for a, b in turns], 2)


def pebbles(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return the cells nearest to random points, each shaded."""
    points = rng.random((int(rng.integers(20, 200)), 2)) * (height, width)
    y, x = np.mgrid[:height:4, :width:4]
    gaps = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1])
    colours = rng.random((len(points), 3))[gaps.argmin(2)]
    shaded = colours * (1 - 0.6 * (gaps.min(2) / gaps.min(2).max())[..., None])
    return cv2.resize(shaded, (width, height))


def noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return white noise of random brightness."""
    return rng.random((height, width, 3)) ** rng.uniform(0.3, 3)


SCENES = (noise, clouds, waves, drawing, landscape, pebbles)


def scene(seed: int, size: tuple[int, int] | None = None) -> Pixels:
    """Return one generated picture without a face, of (height, width) or a size by the seed."""
    rng = np.random.default_rng(seed)
    height, width = size or (int(side) for side in rng.integers(120, 900, 2))
    coarser = max(1, max(height, width) // 640)  # a large one is made small: it takes seconds
    made = SCENES[seed % len(SCENES)](rng, height // coarser, width // coarser)
    pixels = np.asarray(np.clip(made, 0, 1) * 255, np.uint8)
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def patches(seed: int, size: tuple[int, int], others: Sequence[Picture]) -> Pixels:
    """Return upper corners of other pictures, two to a side: real, and without a face."""
    rng = np.random.default_rng(seed)
    half = (size[1] // 2 + 1, size[0] // 2 + 1)
    cells = []
    for _ in range(4):
        other = others[int(rng.integers(len(others)))][1]
        corner = other[: other.shape[0] // 5, : other.shape[1] // 5]
        cells.append(cv2.resize(corner, half, interpolation=cv2.INTER_CUBIC))
    whole = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
    return np.asarray(whole[: size[0], : size[1]])


def hit(faces: Sequence[Face], landmarks: NDArray) -> bool:
    """Tell whether a face has these landmarks, to 0.35 of the distance of the eyes."""
    eyes = np.linalg.norm(landmarks[0] - landmarks[1])
    gaps = [np.linalg.norm(face.landmarks - landmarks, axis=1).mean() for face in faces]
    return bool(min(gaps, default=np.inf) < 0.35 * eyes)


def pasted(
    picture: Pixels, canvas: Pixels, zoom: float, rng: np.random.Generator
) -> Callable[[NDArray], NDArray]:
    """Paste a picture, scaled, somewhere into the canvas; return how its points come to lie."""
    height, width = (max(1, round(side * zoom)) for side in picture.shape[:2])
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    left, top = rng.integers(0, (canvas.shape[1] - width + 1, canvas.shape[0] - height + 1))
    canvas[top : top + height, left : left + width] = cv2.resize(
        picture, (width, height), interpolation=how
    )
    ratio = np.array((width / picture.shape[1], height / picture.shape[0]))
    return lambda points: points * ratio + (left, top)


def first_face(detector: Detector, picture: Pixels) -> tuple[NDArray, tuple] | tuple[None, None]:
    """Return landmarks and box of the most prominent face, as `align` takes them."""
    faces = detector.detect(picture)
    return (faces[0].landmarks, faces[0].box) if faces else (None, None)


def recall(detector: Detector, archive: Path, count: int, seed: int) -> None:
    """Print the fraction found as the picture is, and by the width of the face in a scene."""
    rng = np.random.default_rng(seed)
    taken = pictures(archive, count, seed)
    known = [(x, faces[0]) for _, x in taken if (faces := detector.detect(x))]
    row = [f"{len(known)} of {len(taken)}"]
    for width in WIDTHS:
        found = 0
        for i, (picture, face) in enumerate(known[:: max(1, len(known) // 100)]):
            zoom = width / face.box[2]
            size = (480, 640) if max(picture.shape) * zoom < 480 else (960, 1280)
            canvas = scene(i, size)
            place = pasted(picture, canvas, zoom, rng)
            found += hit(detector.detect(canvas, everywhere=True), place(face.landmarks))
        row.append(f"{found / (i + 1):.2f}")
    print(f"| {archive.stem} | {' | '.join(row)} |", flush=True)


def false_faces(detector: Detector, count: int) -> None:
    """Print how many of the scenes have a face for the detector, by kind."""
    hits = {each.__name__: 0 for each in SCENES}
    for i in range(count):
        hits[SCENES[i % len(SCENES)].__name__] += bool(detector.detect(scene(i)))
    print(f"{sum(hits.values())} of {count} scenes have a face: {hits}")


def turned(detector: Detector, archive: Path, count: int, seed: int) -> None:
    """Print the fraction of pictures, turned by quarters, whose first face is the right one."""
    row = []
    taken = pictures(archive, count, seed)
    known = [(x, f[0].landmarks) for _, x in taken if (f := detector.detect(x))]
    for quarters in (1, 2, 3):
        right = 0
        for picture, landmarks in known:
            height, width = picture.shape[:2]
            x, y = landmarks.T
            there = {1: (y, width - x), 2: (width - x, height - y), 3: (height - y, x)}[quarters]
            faces = detector.detect(np.rot90(picture, quarters))
            right += hit(faces[:1], np.stack(there, 1))
        row.append(f"{right / len(known):.3f}")
    print(f"| {archive.stem} | {' | '.join(row)} |", flush=True)


def accuracy(detector: Detector, archive: Path, weights: Path, count: int, seed: int) -> None:
    """Print the accuracy of whole frames and of aligned faces by the margin around a picture."""
    checkpoint = load_checkpoint(weights)
    model = checkpoint.build()[0].eval()
    shape = (checkpoint.preprocessing.height, checkpoint.preprocessing.width)
    taken = pictures(archive, count, seed)
    labels = torch.tensor([checkpoint.classes.index(label) for label, _ in taken])
    for margin in MARGINS:
        chips: dict[str, list[Pixels]] = {"frame": [], "aligned": []}
        lost = 0
        for i, (_, picture) in enumerate(taken):
            size = tuple(round(side * (1 + 2 * margin)) for side in picture.shape[:2])
            canvas = patches(i, size, taken) if i % 2 else scene(i, size)
            pasted(picture, canvas, 1.0, np.random.default_rng(i))
            landmarks, box = first_face(detector, canvas)
            lost += box is None
            chips["frame"].append(align(canvas, None, None, shape, 0))
            chips["aligned"].append(align(canvas, landmarks, box, shape, MARGIN))
        row = []
        for each in chips.values():
            pixels = torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2)
            with torch.inference_mode():
                outputs = [
                    model(checkpoint.preprocessing.normalized(part)) for part in pixels.split(50)
                ]
            row.append(f"{(torch.cat(outputs).argmax(1) == labels).float().mean():.3f}")
        print(f"| {archive.stem} | {margin:.0%} | {' | '.join(row)} | {lost} |", flush=True)


def speed(detector: Detector, archive: Path, count: int, seed: int) -> None:
    """Print milliseconds of the processor a picture: as it is, and within 4 megapixels."""
    cv2.setNumThreads(1)
    taken = [picture for _, picture in pictures(archive, count, seed)]
    large = []
    for i, picture in enumerate(taken[:20]):
        canvas = scene(i, (1728, 2304))
        pasted(picture, canvas, 500 / picture.shape[0], np.random.default_rng(i))
        large.append(canvas)
    row = []
    for group in (taken, large):
        detector.detect(group[0])
        start = time.process_time()
        faces = [first_face(detector, picture) for picture in group]
        middle = time.process_time()
        for picture, (landmarks, box) in zip(group, faces, strict=True):
            align(picture, landmarks, box, (96, 96), MARGIN)
        row += [(middle - start) / len(group), (time.process_time() - middle) / len(group)]
    print(f"| {archive.stem} | {' | '.join(f'{1000 * each:.2f}' for each in row)} |", flush=True)


def sheet(detector: Detector, archive: Path, out: Path, seed: int) -> None:
    """Write 100 aligned faces as out/NAME.png, the template's points in green on the first row."""
    chips = []
    for i, (_, picture) in enumerate(pictures(archive, 100, seed)):
        landmarks, box = first_face(detector, picture)
        chip = align(picture, landmarks, box, (112, 112), MARGIN).copy()
        for x, y in template((112, 112), MARGIN) if i < 10 else ():
            cv2.circle(chip, (round(x), round(y)), 2, (0, 255, 0), -1)
        if box is None:
            cv2.rectangle(chip, (0, 0), (111, 111), (255, 0, 0), 4)
        chips.append(chip)
    rows = [np.hstack(chips[i : i + 10]) for i in range(0, 100, 10)]
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(out / f"{archive.stem}.png")


def main() -> None:
    """Run one report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = ("recall", "false", "turned", "accuracy", "speed", "sheet")
    parser.add_argument("report", choices=kinds)
    parser.add_argument("archives", type=Path, nargs="*")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=Path("model_weights/shipped.pth"))
    parser.add_argument("--out", type=Path, default=Path("sheets"))
    o = parser.parse_args()
    detector = load_detector()
    torch.set_num_threads(1)
    if o.report == "false":
        false_faces(detector, o.count)
    for archive in o.archives:
        if o.report == "recall":
            recall(detector, archive, o.count, o.seed)
        elif o.report == "turned":
            turned(detector, archive, o.count, o.seed)
        elif o.report == "accuracy":
            accuracy(detector, archive, o.weights, o.count, o.seed)
        elif o.report == "speed":
            speed(detector, archive, o.count, o.seed)
        else:
            sheet(detector, archive, o.out, o.seed)


if __name__ == "__main__":
    main()
