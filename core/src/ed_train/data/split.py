"""Choose pictures by a hash of their place in the data folder: the same ones on every machine and in every run.

Adding, removing or captioning pictures leaves almost all of the others where they were, so that a run that goes on with
more pictures is still validated on pictures that it has not been trained on.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ed_train.data.scan import ImageItem


def chosen(items: Sequence[ImageItem], root: Path, *, proportion: float, seed: int, purpose: str) -> list[int]:
    """The indices, in order, of a share of the pictures that train: at least one, if there are any.

    Args:
        items: the pictures; those that are never used (multiply 0) are never chosen. One that is used several times
            counts once.
        root: the folder below which they lie.
        proportion: how many of them, 0 to 1.
        seed: another one chooses others.
        purpose: choices for different purposes are independent of each other.
    """
    used = [index for index, item in enumerate(items) if item.multiply > 0]
    count = min(len(used), max(1, round(proportion * len(used))))
    return sorted(sorted(used, key=lambda index: _rank(items[index], root, seed, purpose))[:count])


def _rank(item: ImageItem, root: Path, seed: int, purpose: str) -> bytes:
    name = unicodedata.normalize("NFC", item.path.relative_to(root).as_posix())  # macOS takes names apart
    text = f"{purpose}/{seed}/{name}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
