"""Curves of a run's scalars, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

Curve: TypeAlias = Sequence[tuple[int, float]]
"""Step and value."""

_COLOURS = (((170, 190, 220), (30, 80, 170)), ((245, 205, 170), (205, 95, 10)))
"""Of each curve, pale and strong."""
_BLACK = ((0, 0, 0), (0, 0, 0))
_MANY = 40
"""A curve of so many points jumps from one to the next: its running mean is drawn, too."""
_LEFT, _BOTTOM, _TOP = 46, 20, 22
_SCALE = 2  # painted larger and reduced, for smooth lines


def chart(title: str, curves: Mapping[str, Curve], size: tuple[int, int]) -> Image.Image:
    """Draw up to two curves by their names; those that jump pale, with their running mean strong.

    Args:
        title: written above it.
        curves: those without a point are left out.
        size: width and height in pixels.
    """
    width, height = (side * _SCALE for side in size)
    left, right, top, bottom = _LEFT * _SCALE, width - 22 * _SCALE, _TOP * _SCALE, height - _BOTTOM * _SCALE
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11 * _SCALE)
    curves = {name: curve for name, curve in curves.items() if curve}
    points = [point for curve in curves.values() for point in curve]
    last = max((step for step, _ in points), default=1)
    highest = max((value for _, value in points), default=1.0) * 1.05 or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last, bottom - (bottom - top) * value / highest

    for share in (0, 0.25, 0.5, 0.75, 1):
        _, y = place(0, highest * share)
        pen.line((left, y, right, y), fill=(225, 225, 225), width=_SCALE)
        pen.text((left - 4 * _SCALE, y), f"{highest * share:.2f}", fill="black", font=font, anchor="rm")
        x, _ = place(last * share, 0)
        pen.text((x, bottom + 4 * _SCALE), f"{last * share:.0f}", fill="black", font=font, anchor="mt")
    written = float(left)
    large = ImageFont.load_default(12 * _SCALE)
    for text, (_, colour) in zip((title, *curves), (_BLACK, *_COLOURS), strict=False):
        pen.text((written, 2 * _SCALE), text, fill=colour, font=large)
        written += pen.textlength(text + "    ", font=large)
    for curve, (pale, strong) in zip(curves.values(), _COLOURS, strict=False):
        if len(curve) >= _MANY:
            pen.line([place(*point) for point in curve], fill=pale, width=_SCALE)
            curve = running_mean(curve)
        pen.line([place(*point) for point in curve], fill=strong, width=2 * _SCALE)
    return picture.resize(size, Image.Resampling.LANCZOS)


def running_mean(curve: Curve, share: float = 0.05) -> list[tuple[int, float]]:
    """The mean of the values around each, over a twentieth of the curve."""
    reach = max(1, round(len(curve) * share / 2))
    means = []
    for index, (step, _) in enumerate(curve):
        values = [value for _, value in curve[max(0, index - reach) : index + reach + 1]]
        means.append((step, sum(values) / len(values)))
    return means
