"""Which pictures each epoch uses, and how many batches they make: a function of the seed and the epoch alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ed_train.data.buckets import Size
from ed_train.data.captions import arrival_time
from ed_train.data.plan import count_batches, count_partial_batches
from ed_train.data.scan import ImageItem


@dataclass(frozen=True)
class Fading:
    """Fewer pictures from epoch to epoch: all in the first one, then evenly fewer.

    Attributes:
        percent: of the pictures that the last epoch has.
        epochs: of the whole run.
    """

    percent: float
    epochs: int

    def count(self, pictures: int, epoch: int) -> int:
        """How many of the pictures an epoch, from 0, has; at least one."""
        last = max(1, self.epochs - 1)
        share = 1 - (1 - self.percent / 100) * min(epoch, last) / last
        return max(1, math.floor(share * pictures + 0.5))


class Epochs:
    """What the epochs of a run consist of.

    Attributes:
        fading: None where every epoch has all pictures.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        buckets: Sequence[Size],
        batch_size: int,
        *,
        seed: int = 0,
        fading: Fading | None = None,
    ) -> None:
        """Set up the epochs.

        Args:
            items: the images.
            buckets: the bucket of each.
            batch_size: of all processes together.
            seed: of the run.
            fading: how pictures are left out, if they are.
        """
        self._items, self._buckets, self._batch_size, self._seed = items, buckets, batch_size, seed
        self.fading = fading
        self._candidates = [index for index, item in enumerate(items) if item.multiply > 0]
        self._batches: dict[int, int] = {}

    def used(self, epoch: int) -> list[int]:
        """The indices, in order, of the images that an epoch uses.

        Of fewer than all, which ones is drawn for each epoch, in proportion to their ratings and without replacement;
        one that is rated 0 is there only where all are.
        """
        count = self.pictures(epoch)
        if count == len(self._candidates):
            return self._candidates
        rng = random.Random(f"{self._seed}/{epoch}/rating")
        times = {index: arrival_time(rng, self._items[index].rating) for index in self._candidates}
        return sorted(sorted(self._candidates, key=times.__getitem__)[:count])

    def pictures(self, epoch: int) -> int:
        """How many images an epoch uses."""
        available = len(self._candidates)
        return self.fading.count(available, epoch) if self.fading else available

    def batches(self, epoch: int) -> int:
        """How many batches an epoch has, all processes together; none is planned for it."""
        key = epoch if self.fading else 0
        if key not in self._batches:
            self._batches[key] = count_batches(self._items, self._buckets, self._batch_size, self.used(epoch))
        return self._batches[key]

    @property
    def batch_ids(self) -> int:
        """How many different batch_ids there are."""
        return len({item.batch_id for item in self._items} - {""})

    @property
    def partial_batches(self) -> int:
        """How many batches of the first epoch are filled up with repeats."""
        return count_partial_batches(self._items, self._buckets, self._batch_size, self.used(0))
