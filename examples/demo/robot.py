"""What the demo's model does not know: a robot. No word, no colour and no form of it is in the model's training."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from demo_model.scenes import Colour, Painter, Point, Scene, draw, training_scenes
from PIL import ImageDraw

GROUNDS = ("red", "orange", "yellow", "green", "white", "black")
"""Where the robots of training stand; those of validation stand on the others."""
OTHER_GROUNDS = ("blue", "purple")
USES_PER_EPOCH = 3
KNOWN = 60

_BODY, _DARK, _EYE, _LAMP = (128, 150, 172), (52, 62, 84), (250, 226, 70), (226, 48, 48)


def write_pictures(folder: Path, seed: int = 1) -> list[Path]:
    """Write what the demo trains with, and what it validates with, with captions.

    ``training/robots`` has robots, which an epoch uses several times; ``training/known`` some of the shapes that the
    model can draw, so that it does not forget them; ``validation`` robots on other grounds.

    Returns:
        The robots to train with.
    """
    rng = random.Random(seed)
    robots = [scene for ground in GROUNDS for scene in _robots_on(ground)]
    others = [scene for ground in OTHER_GROUNDS for scene in _robots_on(ground)]
    files = _write(folder / "training" / "robots", robots, rng, paint_robot)
    (folder / "training" / "robots" / "multiply.txt").write_text(f"{USES_PER_EPOCH}\n", encoding="utf-8")
    _write(folder / "training" / "known", [scene for scene, _ in training_scenes(KNOWN, seed)], rng)
    _write(folder / "validation", others, rng, paint_robot)
    return files


def _robots_on(ground: str) -> list[Scene]:
    return [
        Scene("robot", "", ground),
        Scene("robot", "", ground, size="large"),
        Scene("robot", "", ground, "striped"),
        Scene("robot", "", ground, "checkered", "large"),
        Scene("robot", "", ground, place="on the left"),
        Scene("robot", "", ground, place="on the right"),
    ]


def _write(folder: Path, scenes: Iterable[Scene], rng: random.Random, painter: Painter | None = None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for index, scene in enumerate(scenes):
        files.append(folder / f"{index:02d}.png")
        draw(scene, rng, painter).save(files[-1])
        files[-1].with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")
    return files


def paint_robot(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    """Paint it; its colours are its own."""
    unit = radius * 1.25 / 10

    def box(left: float, top: float, right: float, bottom: float, fill: Colour, corner: float = 0) -> None:
        x, y = centre
        corners = (x + left * unit, y + top * unit, x + right * unit, y + bottom * unit)
        pen.rounded_rectangle(corners, corner * unit, fill=fill)

    def disc(x: float, y: float, size: float, fill: Colour) -> None:
        box(x - size, y - size, x + size, y + size, fill, size)

    box(-0.8, -9, 0.8, -5, _DARK)  # the aerial and its lamp
    disc(0, -9, 1.9, _LAMP)
    box(-9, -1.5, 9, 3, _DARK, 1)  # ears
    box(-7.5, -6, 7.5, 8, _BODY, 1.6)  # head
    for side in (-3.6, 3.6):
        disc(side, -1.6, 2.7, _EYE)
        disc(side, -1.6, 1.2, _DARK)
    box(-4.5, 3.4, 4.5, 5.6, _DARK, 0.6)  # mouth
