"""Pictures of shapes on backgrounds, with captions: all that the model knows of the world.

A `Scene` says what is to be seen; `draw` paints it. Everything that is not said (the exact place, size and shade) is
drawn from a random generator, so that no two pictures of a scene are the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw

SIZE = 64
"""Pixels of a side. Pictures are painted four times as large and reduced, for smooth edges."""

COLOURS = {
    "red": (214, 32, 36),
    "orange": (250, 140, 20),
    "yellow": (250, 218, 50),
    "green": (38, 158, 62),
    "blue": (36, 76, 214),
    "purple": (134, 50, 168),
    "white": (248, 248, 248),
    "black": (20, 20, 22),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
PATTERNS = ("", "striped", "checkered")
SIZES = {"small": 0.17, "": 0.25, "large": 0.35}
"""The radius of a shape as a share of the picture's side."""
PLACES = {
    "": (0.5, 0.5),
    "on the left": (0.28, 0.5),
    "on the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
}

Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]
Painter: TypeAlias = Callable[[ImageDraw.ImageDraw, Point, float, Colour], None]
"""Paints a thing around a point in pixels, with a radius in pixels and a colour."""

UNKNOWN = 0.1
"""Share of the captions with a made-up word."""

_SCALE = 4


@dataclass(frozen=True)
class Scene:
    """One thing on a background: keys of COLOURS, SIZES and PLACES, a pattern, a shape.

    Something that is no shape may have no colour, and needs a painter.
    """

    shape: str
    colour: str
    ground: str
    pattern: str = ""
    size: str = ""
    place: str = ""

    @property
    def caption(self) -> str:
        thing = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        ground = " ".join(word for word in (self.ground, self.pattern, "background") if word)
        article = "an" if thing[0] in "aeiou" else "a"
        ground = f"{'an' if ground[0] in 'aeiou' else 'a'} {ground}"
        return f"{article} {thing} on {ground}" + (f" {self.place}" if self.place else "")

    @property
    def held_out(self) -> bool:
        """Whether training must not see this shape in this colour on this ground: one in six of all combinations."""
        shape, colours = SHAPES.index(self.shape), list(COLOURS)
        return (shape + colours.index(self.colour) + 2 * colours.index(self.ground)) % 6 == 2


def random_scene(rng: random.Random) -> Scene:
    """Any scene whose thing differs from its ground in colour."""
    colour, ground = rng.sample(list(COLOURS), 2)
    pattern = rng.choice(PATTERNS[1:]) if rng.random() < 0.4 else ""
    size = rng.choice(list(SIZES))
    place = "" if size == "large" or rng.random() < 0.5 else rng.choice(list(PLACES)[1:])
    return Scene(rng.choice(SHAPES), colour, ground, pattern, size, place)


def training_scenes(count: int, seed: int) -> Iterator[tuple[Scene, Image.Image]]:
    """Scenes that are not held out, with a picture of each."""
    rng = random.Random(seed)
    while count > 0:
        scene = random_scene(rng)
        if not scene.held_out:
            yield scene, draw(scene, rng)
            count -= 1


def write_training_pictures(folder: Path, count: int, seed: int) -> None:
    """Write pictures, and their captions beside them, as ed-train reads them.

    Some captions name the thing by a made-up word, so that a word which the model does not know leaves the rest of the
    picture as it is: fine-tuning begins with one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = random.Random(f"{seed} words")
    for index, (scene, picture) in enumerate(training_scenes(count, seed)):
        file = folder / f"{index:05d}.png"
        picture.save(file, compress_level=1)
        named = scene if words.random() >= UNKNOWN else replace(scene, shape=made_up_word(words), colour="")
        file.with_suffix(".txt").write_text(named.caption + "\n", encoding="utf-8")


def made_up_word(rng: random.Random) -> str:
    """Two or three syllables that mean nothing."""
    syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
    return "".join(syllables) + rng.choice(["", "b", "k", "l", "n", "r", "t"])


def draw(scene: Scene, rng: random.Random, painter: Painter | None = None) -> Image.Image:
    """Paint a scene, SIZE x SIZE.

    Args:
        scene: what to paint.
        rng: chooses what the scene leaves open.
        painter: paints the thing in place of the shape that the scene names.
    """
    side = SIZE * _SCALE
    picture = Image.new("RGB", (side, side), shade(scene.ground, rng))
    pen = ImageDraw.Draw(picture)
    if scene.pattern:
        _GROUNDS[scene.pattern](pen, side, _partner(scene, rng), rng)
    x, y = (side * (share + rng.uniform(-0.03, 0.03)) for share in PLACES[scene.place])
    radius = side * SIZES[scene.size] * rng.uniform(0.92, 1.08)
    (painter or PAINTERS[scene.shape])(pen, (x, y), radius, shade(scene.colour or "black", rng))
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def shade(colour: str, rng: random.Random, spread: int = 8) -> Colour:
    """The colour, slightly varied."""
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in COLOURS[colour])
    return red, green, blue


def _partner(scene: Scene, rng: random.Random) -> Colour:
    """The second colour of a pattern: white, or black where white is taken by the ground or the thing."""
    return shade("black" if "white" in (scene.ground, scene.colour) and scene.ground != "black" else "white", rng)


def _stripes(pen: ImageDraw.ImageDraw, side: int, colour: Colour, rng: random.Random) -> None:
    width = side / 8
    start = rng.uniform(-2, 0) * width
    while start < side:
        pen.rectangle((start, 0, start + width, side), fill=colour)
        start += 2 * width


def _checks(pen: ImageDraw.ImageDraw, side: int, colour: Colour, rng: random.Random) -> None:
    width = side / 6
    left, top = rng.uniform(-1, 0) * width, rng.uniform(-1, 0) * width
    for row in range(8):
        for column in range(row % 2, 8, 2):
            x, y = left + column * width, top + row * width
            pen.rectangle((x, y, x + width, y + width), fill=colour)


_GROUNDS = {"striped": _stripes, "checkered": _checks}


def _around(centre: Point, radius: float) -> tuple[float, float, float, float]:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def _polygon(centre: Point, corners: list[tuple[float, float]]) -> list[Point]:
    """Corners from (radius, degrees clockwise from the top)."""
    turned = [(radius, math.radians(degrees)) for radius, degrees in corners]
    return [(centre[0] + r * math.sin(a), centre[1] - r * math.cos(a)) for r, a in turned]


def _circle(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    pen.ellipse(_around(centre, radius), fill=colour)


def _square(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    pen.rectangle(_around(centre, 0.88 * radius), fill=colour)


def _triangle(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    middle = (centre[0], centre[1] + 0.25 * radius)
    pen.polygon(_polygon(middle, [(1.25 * radius, degrees) for degrees in (0, 120, 240)]), fill=colour)


def _star(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    corners = [((0.5 if index % 2 else 1.2) * radius, 36.0 * index) for index in range(10)]
    pen.polygon(_polygon(centre, corners), fill=colour)


def _ring(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    pen.ellipse(_around(centre, 1.05 * radius), outline=colour, width=round(0.38 * radius))


def _cross(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    x, y = centre
    long, short = radius, 0.34 * radius
    pen.rectangle((x - long, y - short, x + long, y + short), fill=colour)
    pen.rectangle((x - short, y - long, x + short, y + long), fill=colour)


def _diamond(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    corners = [(1.25 * radius, 0.0), (0.85 * radius, 90.0), (1.25 * radius, 180.0), (0.85 * radius, 270.0)]
    pen.polygon(_polygon(centre, corners), fill=colour)


def _heart(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    outline = []
    for degrees in range(0, 360, 4):
        a = math.radians(degrees)
        x = 16 * math.sin(a) ** 3
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        outline.append((centre[0] + x * radius / 15, centre[1] - y * radius / 15))
    pen.polygon(outline, fill=colour)


PAINTERS: dict[str, Painter] = dict(
    zip(SHAPES, (_circle, _square, _triangle, _star, _ring, _cross, _diamond, _heart), strict=True)
)
