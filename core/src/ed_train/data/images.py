"""Pictures as training sees them: upright RGB on white, cropped and scaled to a bucket."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".jfif")
MAX_PIXELS = 178_956_970
"""Larger pictures are refused: the size at which Pillow suspects a decompression bomb (0.5 GB of RGB)."""

_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF")  # by content, not by name; others may start other programs
_JITTER = 0.02

Box: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right, lower in pixels of the source."""


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels after EXIF rotation, from the file's header only.

    Raises:
        Exception: whatever Pillow raises for a file that is no image, or ValueError; `files.reason` words it.
    """
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def load_image(path: Path, cover: tuple[int, int] | None = None) -> Image:
    """Decode the first frame of a picture to upright RGB.

    Transparent parts become white; 16-bit values are scaled to 8 bits.

    Args:
        path: a JPEG, PNG, BMP, WebP or GIF file, whatever its name.
        cover: width and height that will be cut from the picture. A JPEG much larger than that is decoded at a
            fraction of its size, still at least twice this large, which is several times faster.

    Raises:
        Exception: whatever Pillow raises for a truncated or malformed file; `files.reason` words it.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        if cover:
            wanted = cover[::-1] if orientation in (5, 6, 7, 8) else cover
            scale = 2 * max(wanted[0] / image.width, wanted[1] / image.height)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        return _upright(_rgb(image), orientation)


def crop_box(size: tuple[int, int], bucket: tuple[int, int], crop: int, seed: str) -> Box:
    """Return the part of a picture that fills a bucket.

    Args:
        size: width and height of the picture.
        bucket: width and height that the part is scaled to.
        crop: 0 for the largest part, in the middle; others are up to 2 % smaller and shifted by up to 2 %.
        seed: with `crop` decides shift and shrinkage; the hash of the file, so that they never change.
    """
    scale = min(size[0] / bucket[0], size[1] / bucket[1])
    rng = random.Random(f"{seed}/{crop}")
    if crop:
        scale *= 1 - _JITTER * rng.random()
    start = []
    for side, part in zip(size, (bucket[0] * scale, bucket[1] * scale), strict=True):
        room = max(0.0, (side - part) / 2)
        start.append(room + (min(room, _JITTER * part) * rng.uniform(-1, 1) if crop else 0.0))
    left, upper = start
    return left, upper, min(size[0], left + bucket[0] * scale), min(size[1], upper + bucket[1] * scale)


def fit(image: Image, bucket: tuple[int, int], box: Box) -> NDArray[np.uint8]:
    """Cut a box from a picture and scale it to a bucket with a Lanczos filter; returns [height, width, 3]."""
    import numpy as np
    from PIL.Image import Resampling

    return np.asarray(image.resize(bucket, Resampling.LANCZOS, box=box, reducing_gap=3.0))


def _opened(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    try:
        image = Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError("the content is no image of a known format (JPEG, PNG, BMP, WebP)") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS // 1_000_000} million pixels; scale it down") from None
    if image.width * image.height > MAX_PIXELS:  # where another library has lifted Pillow's own limit
        image.close()
        raise ValueError(f"more than {MAX_PIXELS // 1_000_000} million pixels; scale it down")
    return image


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8, as far as the header tells; damaged EXIF data counts as none."""
    from PIL import Image

    try:
        # Of the base class: PNG's own getexif() decodes the whole picture to look for EXIF data behind it.
        value: Any = Image.Image.getexif(image).get(0x0112, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[orientation]) if orientation in steps else image


def _rgb(image: Image) -> Image:
    from PIL import Image as Images

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        import numpy as np

        values = np.asarray(image).astype(np.uint32)
        return Images.fromarray((values * 255 // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Images.alpha_composite(Images.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image.convert("RGB")
