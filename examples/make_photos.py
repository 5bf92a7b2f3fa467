#!/usr/bin/env python
"""Make folders of real photos with captions, from the pictures that the package scikit-image ships.

    python examples/make_photos.py OUT --kind mixed

Every picture is a random crop of one of twelve photos, saved as NNN_name_WxH.jpg with its caption beside it in a .txt
of the same stem. The same arguments give the same files. All twelve are in the public domain or under CC0
(skimage.data documents each); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.Image import Resampling, Transpose

CAPTIONS = {
    "astronaut.png": "a portrait of a smiling astronaut in an orange suit, a flag on the left",
    "brick.png": "a brick wall, black and white",
    "camera.png": "a man with a camera on a tripod in a park, black and white",
    "chelsea.png": "a tabby cat with green eyes, close up",
    "coffee.png": "a cup of coffee on a red saucer, wooden table",
    "coins.png": "ancient coins in rows on a dark ground, black and white",
    "gravel.png": "gravel on the ground, black and white",
    "hubble_deep_field.jpg": "distant galaxies on a black sky",
    "moon.png": "craters on the surface of the moon, black and white",
    "motorcycle_left.png": "a red motorcycle in a garage",
    "retina.jpg": "a human retina with its blood vessels, orange on black",
    "rocket.jpg": "a rocket on its launch pad at dusk",
}
DETAILS = ("", ", detailed", ", a photograph", ", cropped", ", soft light, high resolution")

ASPECTS = {
    "square": ((1, 1),),
    # Of every 16 pictures 6 are square, 6 are 2:1 or 1:2 and 4 are 4:1 or 1:4: of 64, each number divides by 4, so that
    # batches of 2 or 4 leave no remainder in any aspect-ratio bucket.
    "mixed": (
        *((1, 1), (2, 1), (1, 1), (1, 2), (4, 1), (1, 1), (2, 1), (1, 2)),
        *((1, 1), (1, 4), (2, 1), (1, 1), (1, 2), (4, 1), (1, 1), (1, 4)),
    ),
}
ASPECTS["large"] = ASPECTS["mixed"]
LARGE_SHORT_SIDE = 1200


@dataclass(frozen=True)
class Source:
    """A photo and what is on it."""

    name: str
    picture: Image.Image
    caption: str


def load_sources(names: tuple[str, ...] = tuple(CAPTIONS)) -> list[Source]:
    """Open the photos called `names`, keys of CAPTIONS; all of them unless told otherwise."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("make_photos: the photos are in scikit-image: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    return [Source(Path(n).stem, Image.open(folder / n).convert("RGB"), CAPTIONS[n]) for n in names]


def make_photos(folder: str | Path, kind: str = "square", count: int = 64, seed: int = 7) -> list[Path]:
    """Write `count` pictures with captions.

    Args:
        folder: where to write them; made if it does not exist.
        kind: ``square``; ``mixed`` has aspect ratios from 4:1 to 1:4; ``large`` is mixed, enlarged so that the
            short side has 1200 pixels, which costs as much to decode as a camera's photos.
        count: number of pictures.
        seed: of the crops, flips and captions.

    Returns:
        The picture files, in order.

    Raises:
        KeyError: `kind` is none of the three.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources, aspects = load_sources(), ASPECTS[kind]
    rng = random.Random(seed)
    files = []
    for i in range(count):
        source, (width, height) = sources[i % len(sources)], aspects[i % len(aspects)]
        picture = random_crop(source.picture, width / height, rng)
        if kind == "large":
            factor = LARGE_SHORT_SIDE / min(picture.size)
            picture = picture.resize(
                (round(picture.width * factor), round(picture.height * factor)), Resampling.LANCZOS
            )
        files.append(folder / f"{i:03d}_{source.name}_{width}x{height}.jpg")
        picture.save(files[-1], quality=92)
        files[-1].with_suffix(".txt").write_text(source.caption + rng.choice(DETAILS) + "\n", encoding="utf-8")
    return files


def random_crop(picture: Image.Image, aspect: float, rng: random.Random) -> Image.Image:
    """Cut out 85 to 100 % of the largest rectangle of an aspect ratio, somewhere, and mirror every second one.

    A ratio other than 1 is varied by up to 6 %, as the shapes of people's photos vary; squares stay exact.
    """
    if aspect != 1:
        aspect *= rng.uniform(0.94, 1.06)
    scale = rng.uniform(0.85, 1)
    height = min(picture.height, picture.width / aspect) * scale
    size = round(height * aspect), round(height)
    left, top = rng.randint(0, picture.width - size[0]), rng.randint(0, picture.height - size[1])
    crop = picture.crop((left, top, left + size[0], top + size[1]))
    return crop.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def main() -> None:
    parser = argparse.ArgumentParser(description="make real photos with captions, for demos, tests and benchmarks")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=ASPECTS, default="square")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    files = make_photos(**vars(parser.parse_args()))
    print(f"{len(files)} photos with captions in {files[0].parent if files else 'no folder'}")


if __name__ == "__main__":
    main()
