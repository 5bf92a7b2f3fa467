"""The photos that the demo learns."""

from __future__ import annotations

from pathlib import Path

from make_photos import load_sources
from PIL import ImageOps

PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
USES_PER_EPOCH = 10


def make_demo_photos(folder: Path) -> dict[str, Path]:
    """Write the middle square of each photo with its caption, and how often an epoch uses them.

    Returns:
        The picture of each caption.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "multiply.txt").write_text(f"{USES_PER_EPOCH}\n", encoding="utf-8")
    pictures = {}
    for source in load_sources(PHOTOS):
        file = folder / f"{source.name}.jpg"
        ImageOps.fit(source.picture, (256, 256)).save(file, quality=92)
        file.with_suffix(".txt").write_text(source.caption + "\n", encoding="utf-8")
        pictures[source.caption] = file
    return pictures
