from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
from ed_train.data.buckets import assign_buckets
from ed_train.data.captions import Caption
from ed_train.data.plan import count_batches, count_partial_batches, plan_epoch

SQUARE, WIDE = (512, 512), (1024, 256)


def plan(items, buckets, **changes):
    options = {"batch_size": 4, "crops": 1, "shuffle_tags": False, "keep_tags": 0, "seed": 1, "epoch": 0}
    return plan_epoch(items, buckets, **{**options, **changes})


def uses(batches) -> Counter[int]:
    return Counter(sample.item for batch in batches for sample in batch.samples[: batch.real])


@pytest.fixture
def mixed(make_item):
    """23 images in two buckets, with tags, flips and dropout."""
    options = {"caption": Caption("a, b, c, d"), "flip_p": 0.5, "cond_dropout": 0.3}
    items = [make_item(f"{i:02}.jpg", **options) for i in range(23)]
    return items, [WIDE if i % 3 else SQUARE for i in range(23)]


def test_every_image_once_and_no_mixed_buckets(mixed):
    items, buckets = mixed
    batches = plan(items, buckets)
    assert uses(batches) == Counter(range(23))
    for batch in batches:
        assert len(batch.samples) == 4
        assert {buckets[sample.item] for sample in batch.samples} == {batch.bucket}


def test_last_batch_of_a_bucket_is_filled_with_duplicates(mixed):
    batches = plan(*mixed)
    assert sorted(batch.real for batch in batches) == [3, 4, 4, 4, 4, 4]  # 8 squares, 15 wide ones
    (runt,) = (batch for batch in batches if batch.real == 3)
    assert runt.samples[3].item == runt.samples[0].item


def test_fewer_images_than_batch_size_times_processes(make_item):
    (batch,) = plan([make_item("a.jpg"), make_item("b.jpg")], [SQUARE] * 2, batch_size=16)
    assert (len(batch.samples), batch.real) == (16, 2)
    assert Counter(sample.item for sample in batch.samples) == {0: 8, 1: 8}


def test_epochs_and_seeds_differ_and_each_is_repeatable(mixed):
    plans = {(seed, epoch): plan(*mixed, seed=seed, epoch=epoch) for seed in (1, 2) for epoch in (0, 1, 11)}
    for (seed, epoch), batches in plans.items():
        assert plan(*mixed, seed=seed, epoch=epoch) == batches
    assert len({str(batches) for batches in plans.values()}) == len(plans)


SCRIPT = """
from pathlib import Path
from ed_train.data.captions import Caption, Tag
from ed_train.data.plan import plan_epoch
from ed_train.data.scan import ImageItem
captions = [Caption("a, b, c, d"), Caption("x", (Tag("p", 2), Tag("q", 1), Tag("r", 3)), is_tag_list=False)]
items = [ImageItem(Path(f"{i}.jpg"), 9, 9, captions[i % 2], 0.75 + i % 2, 0.5, 0.1) for i in range(50)]
buckets = [[(512, 512), (1024, 256), (256, 1024)][i % 3] for i in range(50)]
print(plan_epoch(items, buckets, batch_size=4, crops=3, shuffle_tags=True, keep_tags=1, seed=5, epoch=7))
"""


def test_the_same_plan_in_every_process_and_on_every_machine():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    (text,) = outputs
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "798cd39ea4b736ea"


def test_multiply_0_leaves_out_and_3_repeats(make_item):
    items = [make_item("a.jpg", multiply=0.0), make_item("b.jpg", multiply=3.0), make_item("c.jpg")]
    assert uses(plan(items, [SQUARE] * 3)) == {1: 3, 2: 1}


def test_a_fractional_multiply_gives_as_many_samples_in_every_epoch(make_item):
    shares = [0.5, 0.25, 2.75, 1.0, 0.1, 0.4]  # the fractions add up to 2
    items = [make_item(f"{i}.jpg", multiply=share) for i, share in enumerate(shares)]
    total: Counter[int] = Counter()
    for epoch in range(2000):
        batches = plan(items, [SQUARE] * 6, epoch=epoch)
        assert sum(batch.real for batch in batches) == 5
        assert len(batches) == count_batches(items, [SQUARE] * 6, 4) == 2
        total += uses(batches)
    for i, share in enumerate(shares):
        assert total[i] / 2000 == pytest.approx(share, abs=0.05)


def test_an_image_with_a_small_multiply_is_not_lost_for_ever(make_item):
    items = [make_item("a.jpg", multiply=0.1), make_item("b.jpg"), make_item("c.jpg", multiply=1.2)]
    buckets = [WIDE, SQUARE, SQUARE]
    assert uses(plan(items, buckets)) == {0: 1, 1: 1, 2: 1}
    assert count_batches(items, buckets, 4) == 2


def test_the_number_of_batches_is_what_the_plan_has(make_item):
    for count in range(1, 40):
        items = [make_item(f"{i}.jpg", multiply=(i % 5) * 0.4) for i in range(count)]
        buckets = [WIDE if i % 3 else SQUARE for i in range(count)]
        for batch_size in (1, 3, 8):
            assert count_batches(items, buckets, batch_size) == len(plan(items, buckets, batch_size=batch_size))


def test_flip_dropout_and_crops_have_their_probabilities(make_item):
    items = [make_item(f"{i}.jpg", flip_p=0.25, cond_dropout=0.1) for i in range(8000)]
    samples = [sample for batch in plan(items, [SQUARE] * 8000, crops=4) for sample in batch.samples]
    assert sum(sample.flip for sample in samples) / 8000 == pytest.approx(0.25, abs=0.02)
    assert sum(sample.caption == "" for sample in samples) / 8000 == pytest.approx(0.1, abs=0.02)
    crops = Counter(sample.crop for sample in samples)
    assert {crop: count / 8000 for crop, count in crops.items()} == pytest.approx(
        dict.fromkeys(range(4), 0.25), abs=0.02
    )


@pytest.mark.parametrize(("flip_p", "cond_dropout"), [(0.0, 0.0), (1.0, 1.0)])
def test_probabilities_0_and_1_are_exact(make_item, flip_p, cond_dropout):
    items = [make_item(f"{i}.jpg", flip_p=flip_p, cond_dropout=cond_dropout) for i in range(200)]
    for batch in plan(items, [SQUARE] * 200):
        assert {sample.flip for sample in batch.samples} == {flip_p == 1}
        assert {sample.caption for sample in batch.samples} == {"" if cond_dropout else "a cat"}


def test_tags_are_shuffled_anew_in_every_epoch(mixed):
    captions = {
        sample.caption
        for epoch in range(10)
        for batch in plan(*mixed, shuffle_tags=True, keep_tags=1, epoch=epoch)
        for sample in batch.samples
    }
    assert len(captions) == 1 + 6  # dropped, and the orders of b, c, d
    assert all(caption.startswith("a, ") for caption in captions - {""})


def test_order_of_batches_mixes_buckets(mixed):
    items, _ = mixed
    buckets, _ = assign_buckets(items, 512)
    order = [batch.bucket for batch in plan(items * 8, [SQUARE] * 92 + [WIDE] * 92)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)
    assert buckets == [SQUARE] * 23


def test_a_batch_has_one_batch_id(make_item):
    items = [make_item(f"{i:02}.jpg", batch_id=["", "horses", "cats"][i % 3]) for i in range(24)]
    buckets = [WIDE if i < 6 else SQUARE for i in range(24)]
    batches = plan(items, buckets)
    assert uses(batches) == Counter(range(24))
    for batch in batches:
        assert len({(items[s.item].batch_id, buckets[s.item]) for s in batch.samples}) == 1
    assert len(batches) == count_batches(items, buckets, 4) == 3 * (1 + 2)  # 2 and 6 of each
    assert count_partial_batches(items, buckets, 4) == sum(batch.real < 4 for batch in batches) == 6


def test_images_decide_about_their_own_captions(make_item):
    caption, run = Caption("a, b, c, d, e"), {"crops": 1, "keep_tags": 1}
    items = [make_item("0.jpg", caption=caption, shuffle_tags=choice) for choice in (True, False, None)]
    items.append(make_item("3.jpg", caption=caption, max_caption_length=8))
    for shuffle_tags in (True, False):
        seen: dict[int, set[str]] = {i: set() for i in range(4)}
        for epoch in range(30):
            for batch in plan(items, [SQUARE] * 4, **run, shuffle_tags=shuffle_tags, epoch=epoch):
                for sample in batch.samples[: batch.real]:
                    seen[sample.item].add(sample.caption)
        assert len(seen[0]) > 10
        assert seen[1] == {"a, b, c, d, e"}
        assert (len(seen[2]) > 10) == shuffle_tags
        assert {len(text) for text in seen[3]} == {7}
