"""See which shape a picture shows, without a person: by what it has in common with each shape, painted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from demo_model.scenes import COLOURS, PAINTERS, Scene

_SIDE = 128


def shape_in(picture: Image.Image, scene: Scene) -> str:
    """The shape that overlaps most with what has the scene's colour in a picture; "" if nothing has.

    Each shape is painted as large, and around the same middle, as what is there.

    Args:
        picture: of any size.
        scene: says which colour the thing has, and which colours its ground has.
    """
    there = pixels_of(picture, scene)
    if there.sum() < there.size / 200:
        return ""
    return max(PAINTERS, key=lambda shape: _overlap(there, shape))


def pixels_of(picture: Image.Image, scene: Scene) -> Any:
    """Whether each pixel, [_SIDE, _SIDE], has the colour of the scene's thing and not one of its ground."""
    pixels = np.asarray(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), dtype=float)
    others = [scene.ground, *(["white", "black"] if scene.pattern else [])]
    colours = [COLOURS[name] for name in (scene.colour, *(name for name in others if name != scene.colour))]
    distances = np.stack([((pixels - colour) ** 2).sum(axis=2) for colour in colours])
    return distances.argmin(axis=0) == 0


def _overlap(there: Any, shape: str) -> float:
    """Intersection over union with a shape of the same area and centre of gravity."""
    middle = (_SIDE / 2, _SIDE / 2)
    unit = _painted(shape, middle, 30)
    radius = 30 * math.sqrt(there.sum() / unit.sum())
    drift = (_centre(unit) - middle) * radius / 30
    painted = _painted(shape, tuple(_centre(there) - drift), radius)
    return float((there & painted).sum() / (there | painted).sum())


def _painted(shape: str, middle: tuple[float, float], radius: float) -> Any:
    picture = Image.new("RGB", (_SIDE, _SIDE))
    PAINTERS[shape](ImageDraw.Draw(picture), middle, radius, (255, 255, 255))
    return np.asarray(picture)[:, :, 0] > 0


def _centre(mask: Any) -> Any:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])
