"""rated_dataset: which pictures an epoch has, as a function of the seed and the epoch alone."""

from __future__ import annotations

from collections import Counter

import pytest
from ed_train.data.epochs import Epochs, Fading
from ed_train.data.plan import plan_epoch

SQUARE, WIDE = (512, 512), (1024, 256)


@pytest.mark.parametrize(
    ("percent", "epochs", "counts"),
    [
        (50, 5, [8, 7, 6, 5, 4]),
        (0, 3, [8, 4, 1]),  # one at least
        (100, 3, [8, 8, 8]),
        (25, 1, [8]),
        (25, 2, [8, 2]),
    ],
)
def test_the_first_epoch_has_all_and_the_last_its_percent(percent, epochs, counts) -> None:
    fading = Fading(percent, epochs)
    assert [fading.count(8, epoch) for epoch in range(epochs)] == counts


@pytest.fixture
def rated(make_item):
    """24 pictures in two buckets; every third is rated 2, every other third 0.5; the last one is never used."""
    items = [make_item(f"{i:02}.jpg", rating=[2.0, 1.0, 0.5][i % 3], multiply=float(i < 24)) for i in range(25)]
    return items, [WIDE if i % 2 else SQUARE for i in range(25)]


def test_the_number_of_batches_is_what_the_plan_has(rated) -> None:
    epochs = Epochs(*rated, 4, seed=3, fading=Fading(20, 6))
    options = {"batch_size": 4, "crops": 1, "shuffle_tags": False, "keep_tags": 0, "seed": 3}
    for epoch in range(6):
        plan = plan_epoch(*rated, **options, epoch=epoch, used=epochs.used(epoch))
        assert len(plan) == epochs.batches(epoch)
        own = Counter(sample.item for batch in plan for sample in batch.samples[: batch.real])
        assert own == Counter(epochs.used(epoch)), "each once"
        assert sum(own.values()) == epochs.pictures(epoch) == round(24 * (1 - 0.8 * epoch / 5))
    assert epochs.used(0) == list(range(24))


def test_epochs_and_seeds_differ_and_each_is_repeatable(rated) -> None:
    drawn = {(s, e): Epochs(*rated, 4, seed=s, fading=Fading(20, 6)).used(e) for s in (1, 2) for e in (4, 5)}
    assert len({tuple(used) for used in drawn.values()}) == 4
    for (seed, epoch), used in drawn.items():
        assert Epochs(*rated, 1, seed=seed, fading=Fading(20, 6)).used(epoch) == used, "whatever the batch size"


def test_a_rating_of_2_is_kept_about_twice_as_often_as_one_of_1(make_item) -> None:
    items = [make_item(f"{i}.jpg", rating=[2.0, 1.0, 0.0][i % 3]) for i in range(300)]
    epochs = Epochs(items, [SQUARE] * 300, 4, fading=Fading(5, 2))
    kept = Counter(index % 3 for seed in range(40) for index in _used(items, seed))
    assert kept[2] == 0, "a rating of 0 is never kept while there are others"
    assert kept[0] / kept[1] == pytest.approx(2, abs=0.25)
    assert epochs.pictures(1) == 15


def _used(items, seed) -> list[int]:
    return Epochs(items, [SQUARE] * len(items), 4, seed=seed, fading=Fading(5, 2)).used(1)


def test_without_ratings_every_epoch_is_alike(rated) -> None:
    epochs = Epochs(*rated, 4)
    assert epochs.used(7) == list(range(24))
    assert {epochs.batches(epoch) for epoch in range(9)} == {6}
