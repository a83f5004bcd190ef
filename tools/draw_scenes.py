"""Drawn parts of samples/: backdrops, still lives, and photos/, scenes that hold composites.

Used by make_samples.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[Any]
# A class, a pool and a number in it -> head and shoulders as RGBA, the colour of the clothes.
Person = Callable[[str, int, int], tuple[Image.Image, Array]]
_TURNED = 6  # EXIF: to be turned right by 90 degrees


def encode(picture: Image.Image, quality: int = 85, *, turned: bool = False) -> bytes:
    """Return the picture as JPEG bytes; ``turned``: lying on its side, as its EXIF says."""
    exif, file = Image.Exif(), io.BytesIO()
    if turned:
        exif[0x0112] = _TURNED
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    picture.save(file, "JPEG", quality=quality, optimize=True, exif=exif)
    return file.getvalue()


def backdrop(size: tuple[int, int], colour: Array, rng: np.random.Generator) -> Array:
    """Return float64 (height, width, 3) around a colour: plain, lights out of focus, or shelves."""
    width, height = size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope = rng.uniform(-22, 22, 2)
    field = colour + (slope[0] * x + slope[1] * y)[..., None]
    kind = rng.choice(["plain", "lights", "shelves", "plain"])
    if kind == "plain":
        return field
    layer = Image.new("RGB", (160, 200), _shade(colour))
    draw = ImageDraw.Draw(layer)
    for i in range(22):
        shade = _shade(colour + rng.normal(0, 26) + rng.normal(0, 7, 3))
        left, top, radius = rng.uniform(0, 160), rng.uniform(0, 200), rng.uniform(8, 26)
        if kind == "lights":
            draw.ellipse((left - radius, top - radius, left + radius, top + radius), fill=shade)
        else:
            draw.rectangle((i * 7.4, 0, i * 7.4 + rng.uniform(4, 8), 200), fill=shade)
    blurred = layer.filter(ImageFilter.GaussianBlur(5)).resize(size, Image.Resampling.BICUBIC)
    return 0.5 * field + 0.5 * np.asarray(blurred, dtype=float)


def still_life(kind: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a drawing without a face: flowers in a vase, or a house."""
    big = Image.new("RGB", (800, 960), (196, 206, 214))
    draw = ImageDraw.Draw(big)
    if kind == "flowers":
        draw.rectangle((0, 700, 800, 960), fill=(120, 86, 60))
        for _ in range(26):
            x, y, radius = rng.uniform(180, 620), rng.uniform(120, 470), rng.uniform(28, 62)
            draw.line((400, 640, x, y), fill=(62, 110, 58), width=9)
            petal = _shade(rng.choice([(214, 92, 120), (236, 190, 70), (150, 96, 180)]))
            for angle in np.arange(0, 2 * np.pi, np.pi / 3):
                _disc(
                    draw,
                    x + radius * np.cos(angle),
                    y + radius * np.sin(angle),
                    radius * 0.6,
                    petal,
                )
            _disc(draw, x, y, radius * 0.5, (120, 70, 30))
        draw.polygon([(300, 560), (500, 560), (470, 860), (330, 860)], fill=(70, 110, 150))
    else:
        draw.rectangle((0, 0, 800, 620), fill=(140, 180, 220))
        draw.rectangle((0, 620, 800, 960), fill=(96, 140, 80))
        draw.rectangle((180, 400, 620, 780), fill=(206, 180, 140))
        draw.polygon([(140, 410), (400, 200), (660, 410)], fill=(150, 70, 56))
        draw.rectangle((240, 560, 340, 780), fill=(90, 60, 44))
        draw.rectangle((420, 470, 560, 580), fill=(90, 120, 150))
        draw.line((490, 470, 490, 580), fill=(240, 240, 240), width=8)
        _disc(draw, 690, 130, 60, (250, 226, 120))
    return _grained(big.resize(size, Image.Resampling.LANCZOS), rng)


def draw_all(person: Person, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the JPEG bytes of each scene."""
    yield "group.jpg", encode(_group(person, rng))
    yield "street.jpg", encode(_street(person, rng))
    yield "office.jpg", encode(_office(person, rng))
    yield "far_away.jpg", encode(_far_away(person, rng), 80)
    yield "turned.jpg", encode(_doorway(person, rng), turned=True)
    yield "no_face.jpg", encode(_landscape((900, 600), rng))


def _group(person: Person, rng: np.random.Generator) -> Image.Image:
    """Six people in two rows before a wall."""
    scene = _wall((1200, 800), (150, 140, 128), (96, 84, 76), 640, rng)
    back = [("male", 0, 3), ("female", 1, 2), ("male", 5, 8)]
    front = [("female", 4, 6), ("male", 3, 1), ("female", 6, 4)]
    for i, who in enumerate(back):
        _stand(scene, person(*who), (340 + 300 * i, 250 + 14 * (i % 2)), 0.62)
    for i, who in enumerate(front):
        _stand(scene, person(*who), (180 + 305 * i, 480 - 18 * (i % 2)), 0.74)
    return _grained(scene, rng)


def _street(person: Person, rng: np.random.Generator) -> Image.Image:
    """Two people of different distance in a street."""
    scene = _landscape((1100, 760), rng, houses=True)
    _stand(scene, person("male", 2, 5), (760, 430), 0.26)
    _stand(scene, person("female", 7, 3), (380, 330), 0.6)
    return _grained(scene, rng)


def _office(person: Person, rng: np.random.Generator) -> Image.Image:
    """A person behind a desk."""
    scene = _wall((1000, 700), (188, 192, 188), (120, 96, 70), 560, rng)
    draw = ImageDraw.Draw(scene)
    draw.rectangle((60, 70, 360, 330), fill=(170, 200, 226), outline=(240, 240, 240), width=12)
    draw.line((210, 70, 210, 330), fill=(240, 240, 240), width=10)
    for row in range(3):
        draw.rectangle((690, 90 + 130 * row, 960, 102 + 130 * row), fill=(110, 80, 56))
        for i in range(14):
            shade = _shade(rng.uniform(50, 190, 3))
            tall = rng.uniform(60, 105)
            draw.rectangle(
                (696 + 18 * i, 90 + 130 * row - tall, 710 + 18 * i, 89 + 130 * row), fill=shade
            )
    _stand(scene, person("female", 0, 7), (520, 300), 0.8)
    draw.rectangle((0, 560, 1000, 700), fill=(128, 92, 62))
    draw.rectangle((140, 430, 360, 575), fill=(40, 44, 50))
    draw.rectangle((700, 520, 760, 575), fill=(226, 226, 220))
    return _grained(scene, rng)


def _far_away(person: Person, rng: np.random.Generator) -> Image.Image:
    """One small face in a large landscape."""
    scene = _landscape((2000, 1400), rng)
    _stand(scene, person("male", 6, 2), (1240, 880), 0.26)
    return _grained(scene, rng)


def _doorway(person: Person, rng: np.random.Generator) -> Image.Image:
    """A person in a doorway, upright."""
    scene = _wall((600, 860), (172, 150, 120), (88, 82, 78), 760, rng)
    ImageDraw.Draw(scene).rectangle((140, 90, 460, 800), fill=(70, 60, 54))
    _stand(scene, person("female", 3, 5), (300, 330), 0.62)
    return _grained(scene, rng)


def _stand(
    scene: Image.Image, person: tuple[Image.Image, Array], place: tuple[int, int], scale: float
) -> None:
    """Put a person with the middle of the face at a place; the body below is drawn."""
    head, clothes = person
    x, y = np.meshgrid(np.linspace(-1, 1, head.width), np.linspace(0, 1, head.height))
    fade = np.clip((0.98 - y) / 0.1, 0, 1) * np.clip((0.98 - abs(x)) / 0.12, 0, 1)
    head = head.copy()
    head.putalpha(Image.fromarray((np.asarray(head.getchannel("A")) * fade).astype(np.uint8)))
    wide, tall = round(head.width * scale), round(head.height * scale)
    head = head.resize((wide, tall), Image.Resampling.LANCZOS)
    left, top = place[0] - wide // 2, place[1] - tall // 2
    shape = Image.new("L", scene.size)
    draw = ImageDraw.Draw(shape)
    edge = [(0.16, 0.8), (0.52, 0.92), (0.66, 1.06), (0.72, 1.9), (0.55, 2.0), (0.5, 2.3)]
    side = [(u * wide, top + v * tall) for u, v in edge]
    outline = [(place[0] - u, v) for u, v in side] + [(place[0] + u, v) for u, v in side[::-1]]
    hip, feet = top + 2.3 * tall, top + 4.1 * tall
    for near, far in ((-0.48, -0.06), (0.06, 0.48)):
        draw.rectangle((place[0] + near * wide, hip - 4, place[0] + far * wide, feet), fill=255)
    trousers = shape.filter(ImageFilter.GaussianBlur(1))
    scene.paste(_shade(clothes * 0.35 + 22), mask=trousers)
    jacket = Image.new("L", scene.size)
    ImageDraw.Draw(jacket).polygon(outline, fill=255)
    scene.paste(_shade(clothes), mask=jacket.filter(ImageFilter.GaussianBlur(2 * scale + 0.5)))
    scene.paste(head, (left, top), head)


def _wall(
    size: tuple[int, int], wall: tuple[int, int, int], floor: tuple[int, int, int], line: int,
    rng: np.random.Generator,
) -> Image.Image:  # fmt: skip
    """Return a room: a wall lit from one side, a floor below ``line``."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    field = np.array(wall) + (20 * x - 14 * y + _rough(size, rng, 5))[..., None]
    field[line:] = np.array(floor) + _rough(size, rng, 12)[line:, :, None]
    return Image.fromarray(field.clip(0, 255).astype(np.uint8))


def _rough(size: tuple[int, int], rng: np.random.Generator, strength: float) -> Array:
    """Return grey levels of a rough surface around 0: (height, width)."""
    total = np.zeros(size[::-1])
    for cells in (5, 14, 48):
        coarse = Image.fromarray(rng.normal(0, strength / 2, (cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return total


def _landscape(
    size: tuple[int, int], rng: np.random.Generator, *, houses: bool = False
) -> Image.Image:
    """Return sky, hills and grass, or a row of houses and a road."""
    width, height = size
    line = round(height * 0.52)
    sky = np.linspace((120, 168, 214), (214, 226, 232), line)[:, None].repeat(width, 1)
    ground = np.linspace((116, 132, 84), (88, 104, 60), height - line)[:, None].repeat(width, 1)
    if houses:
        ground = np.linspace((120, 120, 122), (92, 92, 96), height - line)[:, None].repeat(width, 1)
    clouds = np.clip(_rough((width, line), rng, 40)[..., None] - 12, 0, 60)
    ground = ground + _rough((width, height - line), rng, 16)[..., None]
    field = np.concatenate([sky + clouds, ground]).clip(0, 255)
    scene = Image.fromarray(field.astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    if not houses:
        x = np.arange(width)
        for depth, hill in ((0.16, (112, 138, 140)), (0.08, (92, 124, 92))):
            waves = np.mean([np.sin(x / width * f + rng.uniform(0, 6)) for f in (5, 9, 17)], axis=0)
            edge = line - height * depth * (0.7 + 0.5 * waves)
            points = [*zip(x.tolist(), edge.tolist(), strict=True), (width, line), (0, line)]
            draw.polygon(points, fill=hill)
        for _ in range(12):
            _tree(draw, rng.uniform(0, width), line + rng.uniform(0, 0.1) * height, height, rng)
        return scene
    left = 0.0
    while left < width:
        wide, tall = rng.uniform(110, 220), rng.uniform(0.3, 0.46) * height
        shade = _shade(rng.uniform(120, 190) + rng.uniform(-25, 25, 3))
        draw.rectangle((left, line - tall, left + wide, line + 20), fill=shade)
        for top in np.arange(line - tall + 24, line - 40, 62):
            for side in np.arange(left + 18, left + wide - 36, 48):
                draw.rectangle((side, top, side + 24, top + 36), fill=(70, 84, 100))
        left += wide
    return scene


def _tree(
    draw: ImageDraw.ImageDraw, x: float, foot: float, height: int, rng: np.random.Generator
) -> None:
    tall = height * rng.uniform(0.08, 0.16)
    draw.rectangle((x - tall * 0.05, foot - tall * 0.5, x + tall * 0.05, foot), fill=(84, 66, 48))
    for _ in range(9):
        away = rng.normal(0, 0.18, 2) * tall
        shade = _shade(np.array((66, 100, 58)) + rng.normal(0, 12))
        _disc(draw, x + away[0], foot - 0.75 * tall + away[1], tall * 0.2, shade)


def _shade(colour: Array) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(colour, 0, 255))


def _grained(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture with the grain of a camera."""
    noise = rng.normal(0, 2.0, (picture.height, picture.width, 1))
    return Image.fromarray((np.asarray(picture, float) + noise).clip(0, 255).astype(np.uint8))


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, shade: tuple[int, ...]
) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
