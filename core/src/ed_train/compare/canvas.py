"""Two things to draw a plot on: SVG, whose colours follow the page's theme, and a PNG."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Point = tuple[float, float]
INK, MUTED, GRID, SURFACE = "ink", "muted", "grid", "surface"
LIGHT = {
    INK: "#1f2328", MUTED: "#59636e", GRID: "#d9dee3", SURFACE: "#ffffff",
    "c0": "#0748ff", "c1": "#bb6c14", "c2": "#3f936e", "c3": "#f22fbd", "c4": "#652700", "c5": "#024660",
    "c6": "#191a19", "c7": "#61009c",
}  # fmt: skip
DARK = {
    INK: "#e6edf3", MUTED: "#9da7b1", GRID: "#30373e", SURFACE: "#161b22",
    "c0": "#255ef0", "c1": "#fff2cc", "c2": "#0ec369", "c3": "#ae3d9c", "c4": "#f0b500", "c5": "#b8e4f7",
    "c6": "#6e7166", "c7": "#d092ff",
}  # fmt: skip
"""Chosen so that people with any kind of colour vision tell those of a theme apart, and from its ground."""
COLOURS = 8
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 3), (9, 3, 2, 3))
MARKERS = ("circle", "square", "triangle", "diamond")


class Canvas(ABC):
    """Coordinates are pixels from the upper left corner; colours are names of the tables above."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    @abstractmethod
    def line(
        self, points: Sequence[Point], colour: str, width: float = 1, dash: tuple[int, ...] = (), key: int | None = None
    ) -> None:
        """A line through points; `key` is the number of the run that it belongs to."""

    @abstractmethod
    def text(
        self, at: Point, text: str, colour: str = INK, *, size: int = 11, anchor: str = "start", bold: bool = False,
        turned: bool = False, key: int | None = None,
    ) -> None:  # fmt: skip
        """A text whose middle is at the height of `at`; anchor: ``start``, ``middle`` or ``end``."""

    @abstractmethod
    def polygon(self, points: Sequence[Point], colour: str, key: int | None = None, hint: str = "") -> None:
        """A filled area; `hint` is shown where the pointer rests on it."""

    def marker(self, at: Point, shape: str, colour: str, key: int | None = None, hint: str = "") -> None:
        """A small sign at a point."""
        x, y = at
        self.polygon([(x + dx, y + dy) for dx, dy in _SHAPES[shape]], colour, key, hint)


_SHAPES: dict[str, list[Point]] = {
    "circle": [(3 * math.cos(a * math.pi / 8), 3 * math.sin(a * math.pi / 8)) for a in range(16)],
    "square": [(-2.7, -2.7), (2.7, -2.7), (2.7, 2.7), (-2.7, 2.7)],
    "triangle": [(0, -3.6), (3.4, 2.6), (-3.4, 2.6)],
    "diamond": [(0, -3.9), (3.9, 0), (0, 3.9), (-3.9, 0)],
}


class SvgCanvas(Canvas):
    """Collects SVG elements."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._parts: list[str] = []

    def line(
        self, points: Sequence[Point], colour: str, width: float = 1, dash: tuple[int, ...] = (), key: int | None = None
    ) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ""
        style = f'stroke="var(--{colour})" stroke-width="{width:g}"{dashes}{_class(key)}'
        self._parts.append(f'<polyline points="{path}" fill="none" stroke-linejoin="round" {style}/>')

    def text(
        self, at: Point, text: str, colour: str = INK, *, size: int = 11, anchor: str = "start", bold: bool = False,
        turned: bool = False, key: int | None = None,
    ) -> None:  # fmt: skip
        x, y = at
        where = f'transform="translate({x:.1f},{y:.1f}) rotate(-90)"' if turned else f'x="{x:.1f}" y="{y:.1f}"'
        style = f'fill="var(--{colour})" font-size="{size}" text-anchor="{anchor}" dominant-baseline="central"'
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(f"<text {where} {style}{weight}{_class(key)}>{escape(text)}</text>")

    def polygon(self, points: Sequence[Point], colour: str, key: int | None = None, hint: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self._parts.append(f'<polygon points="{path}" fill="var(--{colour})"{_class(key)}>{title}</polygon>')

    def svg(self, title: str) -> str:
        """The element, for a page that defines the colours."""
        opening = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}">'
        return "\n".join([opening, *self._parts, "</svg>"])


def _class(key: int | None) -> str:
    return "" if key is None else f' class="k k{key}"'


class PngCanvas(Canvas):
    """Draws in the light theme, three times as large, for smooth lines; the file has twice the size."""

    SCALE, FILE_SCALE = 4, 2

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        super().__init__(width, height)
        self._image = Image.new("RGB", (width * self.SCALE, height * self.SCALE), LIGHT[SURFACE])
        self._pen = ImageDraw.Draw(self._image)

    def line(
        self, points: Sequence[Point], colour: str, width: float = 1, dash: tuple[int, ...] = (), key: int | None = None
    ) -> None:
        for part in _dashed(points, dash) if dash else [points]:
            scaled = [(x * self.SCALE, y * self.SCALE) for x, y in part]
            self._pen.line(scaled, LIGHT[colour], round(width * self.SCALE), "curve")

    def text(
        self, at: Point, text: str, colour: str = INK, *, size: int = 11, anchor: str = "start", bold: bool = False,
        turned: bool = False, key: int | None = None,
    ) -> None:  # fmt: skip
        font = self._font(size)
        x, y = at[0] * self.SCALE, at[1] * self.SCALE
        if not turned:
            side = {"start": "l", "middle": "m", "end": "r"}[anchor]
            self._pen.text((x, y), text, LIGHT[colour], font, f"{side}m", stroke_width=int(bold))
            return
        from PIL import Image, ImageDraw

        width, height = round(font.getlength(text)), size * self.SCALE * 2
        strip = Image.new("L", (width, height))
        ImageDraw.Draw(strip).text((0, height / 2), text, 255, font, "lm")
        strip = strip.rotate(90, expand=True)
        self._image.paste(LIGHT[colour], (round(x - height / 2), round(y - width / 2)), strip)

    def _font(self, size: int) -> FreeTypeFont:
        from PIL import ImageFont

        font: Any = ImageFont.load_default(size * self.SCALE)
        return font  # type: ignore[no-any-return]

    def polygon(self, points: Sequence[Point], colour: str, key: int | None = None, hint: str = "") -> None:
        self._pen.polygon([(x * self.SCALE, y * self.SCALE) for x, y in points], LIGHT[colour])

    def save(self, path: Path) -> None:
        """Write the file. Raises OSError."""
        from PIL import Image

        size = (self.width * self.FILE_SCALE, self.height * self.FILE_SCALE)
        self._image.resize(size, Image.Resampling.LANCZOS).save(path)


def _dashed(points: Sequence[Point], dash: tuple[int, ...]) -> list[list[Point]]:
    """The parts of a line that its dashes leave visible."""
    parts: list[list[Point]] = [[points[0]]]
    index, left = 0, float(dash[0])
    for begin, end in pairwise(points):
        length, done = math.dist(begin, end), 0.0
        while length - done > left:
            done += left
            share = done / length
            at = (begin[0] + (end[0] - begin[0]) * share, begin[1] + (end[1] - begin[1]) * share)
            if index % 2 == 0:
                parts[-1].append(at)
            else:
                parts.append([at])
            index, left = index + 1, float(dash[(index + 1) % len(dash)])
        left -= length - done
        if index % 2 == 0:
            parts[-1].append(end)
    return [part for part in parts if len(part) > 1]
