"""Aspect-ratio buckets: the few picture sizes that a run trains at, so that a batch can hold equal shapes.

Buckets were made popular by NovelAI's "Improvements on Stable Diffusion" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

from ed_train.data.files import shown
from ed_train.data.scan import ImageItem

STEP = 64
"""Sides are multiples of this many pixels: 8 of the VAE times 8 of the UNet's three halvings."""
MAX_ASPECT = 4

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


@lru_cache(maxsize=16)
def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """Return every (width, height) in pixels that is about, and at most, `resolution` squared pixels in area.

    Sides are multiples of 64, at least 64; aspects lie between 1:4 and 4:1; each size is there in both orientations.
    """
    square = max(STEP, resolution // STEP * STEP)
    sizes = {(square, square)}
    for long_side in range(square, MAX_ASPECT * square + 1, STEP):
        short_side = min(resolution**2 // long_side // STEP * STEP, long_side)
        if short_side >= STEP and long_side <= MAX_ASPECT * short_side:
            sizes |= {(long_side, short_side), (short_side, long_side)}
    return tuple(sorted(sizes))


@lru_cache(maxsize=65536)
def nearest_bucket(width: int, height: int, sizes: tuple[Size, ...]) -> Size:
    """Return the size whose aspect ratio is nearest to that of the image, the larger one if two are equally near."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1], size))


def assign_buckets(items: Iterable[ImageItem], resolution: int) -> tuple[list[Size], list[str]]:
    """Choose the bucket of each image.

    Returns:
        One bucket per item, and notes on images that lose a large part to cropping or are enlarged.
    """
    sizes = bucket_sizes(resolution)
    buckets, elongated, enlarged = [], [], []
    for item in items:
        bucket = nearest_bucket(item.width, item.height, sizes)
        buckets.append(bucket)
        if max(item.width, item.height) > MAX_ASPECT * min(item.width, item.height):
            elongated.append(item)
        if item.width < bucket[0] or item.height < bucket[1]:
            enlarged.append(item)
    return buckets, [
        f"{what}: {_example(found)}"
        for what, found in (
            ("aspect beyond 4:1, cropped at both ends", elongated),
            ("smaller than the training size, enlarged", enlarged),
        )
        if found
    ]


def _example(items: Sequence[ImageItem]) -> str:
    smallest = min(items, key=lambda item: item.width * item.height)
    return f"{len(items)} image(s), e.g. {shown(smallest.path)} ({smallest.width} x {smallest.height})"
