"""Curves of a run's scalars, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

Curve: TypeAlias = Sequence[tuple[int, float]]
"""Step and value."""

_PALE, _STRONG = (170, 190, 220), (30, 80, 170)
_LEFT, _BOTTOM, _TOP = 46, 20, 22
_SCALE = 2  # painted larger and reduced, for smooth lines


def chart(title: str, curve: Curve, size: tuple[int, int]) -> Image.Image:
    """Draw a curve, its logged values pale and their running mean strong.

    Args:
        title: written above it.
        curve: at least one point.
        size: width and height in pixels.
    """
    width, height = (side * _SCALE for side in size)
    left, right, top, bottom = _LEFT * _SCALE, width - 10 * _SCALE, _TOP * _SCALE, height - _BOTTOM * _SCALE
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11 * _SCALE)
    last, highest = max(step for step, _ in curve), max(value for _, value in curve) * 1.05 or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last, bottom - (bottom - top) * value / highest

    for share in (0, 0.25, 0.5, 0.75, 1):
        _, y = place(0, highest * share)
        pen.line((left, y, right, y), fill=(225, 225, 225), width=_SCALE)
        pen.text((left - 4 * _SCALE, y), f"{highest * share:.2f}", fill="black", font=font, anchor="rm")
        x, _ = place(last * share, 0)
        pen.text((x, bottom + 4 * _SCALE), f"{last * share:.0f}", fill="black", font=font, anchor="mt")
    pen.line([place(*point) for point in curve], fill=_PALE, width=_SCALE)
    pen.line([place(*point) for point in running_mean(curve)], fill=_STRONG, width=2 * _SCALE)
    pen.text((left, 2 * _SCALE), title, fill="black", font=ImageFont.load_default(12 * _SCALE))
    return picture.resize(size, Image.Resampling.LANCZOS)


def running_mean(curve: Curve, share: float = 0.1) -> list[tuple[int, float]]:
    """The mean of the values around each, over a tenth of the curve."""
    reach = max(1, round(len(curve) * share / 2))
    means = []
    for index, (step, _) in enumerate(curve):
        values = [value for _, value in curve[max(0, index - reach) : index + reach + 1]]
        means.append((step, sum(values) / len(values)))
    return means
