"""Everything random about an epoch, decided in one place from seed and epoch alone.

Any step of any epoch can therefore be resumed without a replay of those before it, and every process and machine
comes to the same plan.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ed_train.data.buckets import Size
from ed_train.data.scan import ImageItem


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """One sample.

    Attributes:
        item: index of the image.
        crop: which of its crops, from 0.
        flip: whether it is mirrored.
        caption: its prompt; empty where conditional dropout took it.
    """

    item: int
    crop: int
    flip: bool
    caption: str


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One global batch: what all processes together train on in one step.

    Attributes:
        bucket: width and height in pixels of all its samples.
        samples: exactly as many as the batch size.
        real: how many of them, the first, are there on their own account; the rest fill up with the same images.
    """

    bucket: Size
    samples: tuple[SamplePlan, ...]
    real: int


def count_batches(
    items: Sequence[ImageItem], buckets: Sequence[Size], batch_size: int, used: Sequence[int] | None = None
) -> int:
    """Return the number of batches of an epoch without planning it; the arguments are those of `plan_epoch`."""
    members_of = _groups(items, buckets, used).values()
    return sum(-(-_sample_count(items, members) // batch_size) for members in members_of)


def count_partial_batches(
    items: Sequence[ImageItem], buckets: Sequence[Size], batch_size: int, used: Sequence[int] | None = None
) -> int:
    """Return how many of them are filled up with repeats; the arguments are those of `plan_epoch`."""
    return sum(_sample_count(items, group) % batch_size > 0 for group in _groups(items, buckets, used).values())


def plan_epoch(
    items: Sequence[ImageItem],
    buckets: Sequence[Size],
    *,
    batch_size: int,
    crops: int,
    shuffle_tags: bool,
    keep_tags: int,
    seed: int,
    epoch: int,
    used: Sequence[int] | None = None,
) -> list[BatchPlan]:
    """Decide order, batches, crops, flips and captions of an epoch.

    Args:
        items: the images.
        buckets: the bucket of each.
        batch_size: of all processes together.
        crops: how many crops of each image there are.
        shuffle_tags: see `Caption.render`; of images that do not say themselves.
        keep_tags: see `Caption.render`.
        seed: of the run.
        epoch: from 0.
        used: the indices, in order, of the images that the epoch may use; None for all.

    Returns:
        Batches that never mix buckets or batch_ids. The last, partial one of each is filled up by repeating its images.
    """
    rng = random.Random(f"{seed}/{epoch}")
    batches: list[tuple[Size, list[int]]] = []
    for (bucket, _), members in _groups(items, buckets, used).items():
        indices = _drawn(rng, items, members)
        rng.shuffle(indices)
        batches += [(bucket, indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    rng.shuffle(batches)

    def sample(index: int) -> SamplePlan:
        item = items[index]
        crop = int(rng.random() * crops)
        flip = rng.random() < item.flip_p
        dropped = rng.random() < item.cond_dropout
        return SamplePlan(index, crop, flip, "" if dropped else caption(item))

    def caption(item: ImageItem) -> str:
        shuffled = shuffle_tags if item.shuffle_tags is None else item.shuffle_tags
        limit = item.max_caption_length
        return item.caption.render(rng, shuffle_tags=shuffled, keep_tags=keep_tags, max_length=limit)

    return [
        BatchPlan(bucket, tuple(map(sample, itertools.islice(itertools.cycle(indices), batch_size))), len(indices))
        for bucket, indices in batches
    ]


def _groups(
    items: Sequence[ImageItem], buckets: Sequence[Size], used: Sequence[int] | None
) -> dict[tuple[Size, str], list[int]]:
    """The indices of the images of each bucket and batch_id, in order; images that are never used are left out."""
    members: dict[tuple[Size, str], list[int]] = {}
    for index in range(len(items)) if used is None else used:
        if items[index].multiply > 0:
            members.setdefault((buckets[index], items[index].batch_id), []).append(index)
    return dict(sorted(members.items()))


def _sample_count(items: Sequence[ImageItem], members: Sequence[int]) -> int:
    return sum(int(items[i].multiply) for i in members) + _part_count(items, members)


def _part_count(items: Sequence[ImageItem], members: Sequence[int]) -> int:
    """How many samples of an epoch come from the fractions of multiply: their sum, rounded.

    At least one if there is an image that would otherwise never be seen.
    """
    total = math.fsum(items[i].multiply % 1 for i in members)
    return max(math.floor(total + 0.5), any(items[i].multiply < 1 for i in members))


def _drawn(rng: random.Random, items: Sequence[ImageItem], members: Sequence[int]) -> list[int]:
    """The images of one bucket in one epoch, each as often as multiply says.

    Fractions are drawn by systematic sampling: always the same number in all, each image in proportion to its own.
    """
    indices = [i for i in members for _ in range(int(items[i].multiply))]
    parts = [i for i in members if items[i].multiply % 1]
    rng.shuffle(parts)
    ends = list(itertools.accumulate(items[i].multiply % 1 for i in parts))
    count, offset, reached = _part_count(items, members), rng.random(), 0
    for number in range(count):
        while reached < len(ends) - 1 and ends[reached] <= (number + offset) * ends[-1] / count:
            reached += 1
        indices.append(parts[reached])
    return indices
