"""Make samples/: composites of aligned public-domain official portraits, and scenes that hold some.

    python -m tools.make_samples officials.zip samples [--seed 0]

The archive holds `female/*.jpg` and `male/*.jpg` (in any parent folder), one portrait a person,
head and shoulders. Each picture's face is the mean of 3 or 4 of them in equal parts, warped onto
their mean shape, so that none shows a real person. The portraits of a class are dealt into pools
that share none; groups.csv names the pool of each picture. Faults are planted and printed.

Using the kit does not need this tool. It needs Python 3.11 or 3.12 and, beside the kit,

    pip install mediapipe==0.10.14 scipy

whose wheel carries the models of face landmarks and of persons. One seed gives the same bytes again
as long as these packages and the machine stay the same.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from face_gender import CLASSES
from tools import draw_scenes
from tools.composites import Array, Frame, Portrait, composite, read_archive, sharpened
from tools.draw_scenes import backdrop, encode, still_life

POOLS, PER_POOL = 8, 9
MEMBERS = (3, 3, 4)
APART = 4  # portraits of a wrong label, which are in no pool: so that it may be tested by itself
# The label, the portraits' own, and their pool, from which nothing else is made.
WRONG = (("male", "female", 8), ("male", "female", 9), ("female", "male", 8))
PLAIN = Frame((240, 300), 160.0)


def portray(members: list[Portrait], frame: Frame, rng: np.random.Generator) -> Image.Image:
    """Return a composite before a backdrop of about the members' colour, mirrored by chance."""
    person, alpha = composite(members, frame)
    colour = np.mean([each.colour for each in members], axis=0)
    behind = backdrop(frame.size, colour, rng)
    pixels = behind + (person - behind) * alpha[..., None]
    light = rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3)  # and its tint
    picture = sharpened(pixels * light)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else picture


def draw_frame(kind: str, rng: np.random.Generator) -> Frame:
    """Return a frame of a kind: plain, tight (forehead to chin), middle, or loose (shoulders)."""
    if kind == "plain":
        return PLAIN
    span, ratio, high = {
        "tight": (rng.uniform(88, 112), rng.uniform(1, 1.15), rng.uniform(108, 114)),
        "middle": (rng.uniform(118, 145), rng.uniform(1, 1.3), rng.uniform(100, 110)),
        "loose": (rng.uniform(165, 195), rng.uniform(1, 1.2), rng.uniform(98, 110)),
    }[kind]
    longer = np.exp(rng.uniform(np.log(62), np.log(400)))
    size = (round(longer / ratio), round(longer))
    tilt = float(rng.choice([-1, 1]) * rng.uniform(0, 14))
    return Frame(size, span, (80 + rng.uniform(-7, 7), high), tilt)


def lookalikes(pool: list[Portrait], first: int, count: int) -> list[Portrait]:
    """Return a portrait and those of its pool that look most like it: their mean stays sharp."""
    order = sorted(
        range(len(pool)), key=lambda i: np.square(pool[i].thumbnail - pool[first].thumbnail).sum()
    )
    return [pool[i] for i in order[:count]]


KINDS = ("plain", "tight", "plain", "middle", "loose", "plain", "tight", "middle", "loose")
# How many pictures of a class each change is made to, none of them plain.
CHANGES = {"grey": 4, "dark": 3, "blurred": 4, "noisy": 3, "turned": 1}


def changed(picture: Image.Image, change: str, rng: np.random.Generator) -> Image.Image:
    """Return a picture that is worse in one way."""
    if change == "grey":
        return picture.convert("L")
    if change == "blurred":
        return picture.filter(ImageFilter.GaussianBlur(0.019 * picture.width))
    pixels = np.asarray(picture, dtype=float)
    if change == "dark":
        pixels = pixels * rng.uniform(0.18, 0.26)
    if change == "noisy":
        pixels = pixels * 0.8 + rng.normal(0, 22, pixels.shape) + 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def recropped(data: bytes, quality: int) -> bytes:
    """Return a picture cropped a little, smaller and compressed again."""
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        part = picture.crop((9, 6, width - 5, height - 14))
    return encode(part.resize((178, 216)), quality)


@dataclass(frozen=True)
class Sample:
    """A picture's bytes, its group and what is odd about it."""

    data: bytes
    group: str
    note: str = ""


class Maker:
    """Makes the samples of all classes from one seed."""

    def __init__(self, portraits: dict[str, list[Portrait]], seed: int) -> None:
        self.rng, self.seed = np.random.default_rng(seed), seed
        self.pools: dict[str, list[list[Portrait]]] = {}
        self.samples: dict[str, Sample] = {}
        for label in CLASSES:
            order = self.rng.permutation(len(portraits[label]))
            rest = order[2 * APART :]
            dealt = [*(rest[i::POOLS] for i in range(POOLS)), order[:APART], order[APART:][:APART]]
            self.pools[label] = [[portraits[label][i] for i in pool] for pool in dealt]

    def add(self, label: str, sample: Sample) -> str:
        """Keep a sample under the next name of its folder; return the name."""
        number = sum(name.startswith(f"{label}/") for name in self.samples) + 1
        name = f"{label}/{label}_{number:02d}.jpg"
        self.samples[name] = sample
        return name

    def make_class(self, label: str) -> None:
        """Make the composites of a class, the changed ones among them."""
        count = POOLS * PER_POOL
        odd = [i for i in range(count) if KINDS[i % PER_POOL] != "plain"]
        places = iter(self.rng.permutation(odd).tolist())
        change_of = {next(places): name for name, many in CHANGES.items() for _ in range(many)}
        for i in range(count):
            number, kind = i // PER_POOL, KINDS[i % PER_POOL]
            pool, change = self.pools[label][number], change_of.get(i, "")
            members = lookalikes(pool, i % PER_POOL, int(self.rng.choice(MEMBERS)))
            frame = draw_frame(kind, self.rng)
            if change in ("dark", "blurred", "turned"):  # to be seen at a glance
                frame = replace(frame, size=(200, 240))
            picture = portray(members, frame, self.rng)
            picture = changed(picture, change, self.rng) if change else picture
            data = encode(picture, int(self.rng.integers(78, 93)), turned=change == "turned")
            self.add(label, Sample(data, f"{label}_pool_{number + 1}", change))

    def plant(self) -> None:
        """Add the faults: copies, wrong labels, no faces, a file that ends too early."""
        rng = np.random.default_rng([self.seed, 1])
        names = [name for i, name in enumerate(self.samples) if KINDS[i % PER_POOL] == "plain"]
        male, female = ([n for n in names if n.startswith(f"{each}/")] for each in CLASSES)
        copied, cut = self.samples[male[4]], self.samples[female[15]]
        self.add("male", replace(copied, note=f"a copy of {male[4]}"))
        for label, name, quality in (("female", female[7], 60), ("male", male[10], 35)):
            again = recropped(self.samples[name].data, quality)
            note = f"{name} cropped, made smaller, compressed again"
            self.add(label, Sample(again, self.samples[name].group, note))
        for label, other, pool in WRONG:
            picture = portray(self.pools[other][pool], PLAIN, rng)
            note = f"labelled {label}, made of {other} portraits"
            self.add(label, Sample(encode(picture, 88), f"{other}_pool_{pool + 1}", note))
        for label, kind in (("female", "flowers"), ("male", "house")):
            data = encode(still_life(kind, (200, 240), rng), 88)
            self.add(label, Sample(data, f"drawing_of_{kind}", f"shows no face: {kind}"))
        half = cut.data[: len(cut.data) * 2 // 5]
        self.add("female", Sample(half, cut.group, "ends too early"))

    def person(self, label: str, pool: int, first: int) -> tuple[Image.Image, Array]:
        """Return a composite for a scene, RGBA of head and shoulders, and its jacket's colour."""
        members = lookalikes(self.pools[label][pool], first, 3)
        frame = Frame((320, 360), 190.0, (80.0, 107.0))
        pixels, alpha = composite(members, frame)
        cut = sharpened(pixels)
        cut.putalpha(Image.fromarray((alpha * 255).clip(0, 255).astype(np.uint8)))
        jacket = np.concatenate([pixels[330:, 40:100][alpha[330:, 40:100] > 0.9],
                                 pixels[330:, 220:280][alpha[330:, 220:280] > 0.9]])  # fmt: skip
        return cut, np.median(jacket, axis=0)


def make_samples(archive: Path, folder: Path, seed: int) -> Maker:
    """Write the pictures, groups.csv and photos/ into ``folder``; return what made them."""
    maker = Maker(read_archive(archive), seed)
    for label in CLASSES:
        maker.make_class(label)
    maker.plant()
    for name, sample in maker.samples.items():
        write(folder / name, sample.data)
    rows = [("path", "group"), *((name, each.group) for name, each in maker.samples.items())]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write(folder / "groups.csv", text.getvalue().encode())
    for name, data in draw_scenes.draw_all(maker.person, maker.rng):
        write(folder / "photos" / name, data)
    return maker


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Make the composite portraits in samples/.")
    parser.add_argument("archive", type=Path, help="zip with female/*.jpg and male/*.jpg portraits")
    parser.add_argument("folder", type=Path, help="where to write the pictures and groups.csv")
    parser.add_argument("--seed", type=int, default=0, help="what the drawing of lots starts from")
    arguments = parser.parse_args()
    maker = make_samples(arguments.archive, arguments.folder, arguments.seed)
    for name, sample in maker.samples.items():
        if sample.note:
            print(f"{name}: {sample.note}")
    print(f"{len(maker.samples)} pictures in {arguments.folder}, and photos/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
