from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from ed_train.data.buckets import assign_buckets
from ed_train.data.encode import LatentCache
from ed_train.data.loader import BatchLoader
from ed_train.data.scan import scan_dataset
from ed_train.data.tokens import TokenCache
from ed_train.errors import EdTrainError

PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "astronaut.png", "camera.png", "brick.png")


@pytest.fixture
def data(tmp_path, photo, encode, tokenizer):
    for i, name in enumerate(PHOTOS):
        photo(name, f"data/{i}_{name}").with_suffix(".txt").write_text(f"photo {i}, red, blue, green")
    items = scan_dataset(tmp_path / "data", flip_p=0.5, cond_dropout=0.2).items
    buckets, _ = assign_buckets(items, 128)
    latents = LatentCache(tmp_path / "latents", items, buckets, vae="v", crops=2, jobs=2, progress=False)
    latents.build(encode)
    tokens = TokenCache(tmp_path / "tokens", lambda: tokenizer, fingerprint="t")
    tokens.add(item.caption.main for item in items)
    return items, buckets, latents, tokens


@pytest.fixture
def loader(data):
    return BatchLoader(*data, batch_size=4, crops=2, shuffle_tags=True, keep_tags=1, seed=3)


@pytest.fixture
def threads():
    """Counts the loaders' threads that this test has begun; a failure elsewhere may keep one alive in its traceback."""
    others = set(threading.enumerate())
    return lambda: sum(t.name.startswith("batches") for t in threading.enumerate() if t not in others)


def same(one, other) -> bool:
    tensors = ("latents_mean", "latents_std", "token_ids")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors) and (
        (one.images, one.captions, one.loss_scale) == (other.images, other.captions, other.loss_scale)
    )


def test_batches_hold_latents_tokens_and_where_they_come_from(data, loader):
    items, buckets, latents, tokens = data
    bucket_of = {item.path: bucket for item, bucket in zip(items, buckets, strict=True)}
    batches = list(loader.iterate(0))
    assert len(batches) == loader.epochs.batches(0)
    assert {path for batch in batches for path in batch.images} == {item.path for item in items}
    for batch in batches:
        (width, height) = bucket_of[batch.images[0]]
        assert batch.latents_mean.shape == batch.latents_std.shape == (4, 4, height // 8, width // 8)
        assert batch.latents_mean.is_contiguous()
        assert batch.token_ids.shape == (4, 77)
        for i, (path, caption) in enumerate(zip(batch.images, batch.captions, strict=True)):
            entry = torch.cat([batch.latents_mean[i], batch.latents_std[i]])
            assert any(torch.equal(entry, latents.get(path, crop, flip)) for crop in (0, 1) for flip in (False, True))
            assert torch.equal(batch.token_ids[i], tokens.get([caption])[0])


def test_loss_scale_of_runt_batches(data):
    items, _, _, _ = data
    batches = list(BatchLoader(*data, batch_size=4, crops=2).iterate(0))
    counts = Counter(bucket for bucket in data[1])
    runts = [count % 4 for count in counts.values() if count % 4]
    expected = sorted([(real / 4) ** 1.5 for real in runts] + [1.0] * (len(batches) - len(runts)))
    assert sorted(batch.loss_scale for batch in batches) == pytest.approx(expected)
    assert len(runts) > 0
    assert len(items) == 7


def test_an_epoch_is_the_same_again_and_from_any_start(loader):
    whole = list(loader.iterate(5))
    for start in range(len(whole)):
        rest = list(loader.iterate(5, start=start))
        assert len(rest) == len(whole) - start
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))
    assert not all(same(one, other) for one, other in zip(whole, loader.iterate(6), strict=True))


def test_an_epoch_that_does_not_have_what_was_counted_is_an_error(loader):
    count = loader.epochs.batches(0)
    with pytest.raises(
        EdTrainError, match=rf"epoch 1 does not add up: {count} batches are planned, .* {count} are done"
    ):
        next(loader.iterate(0, start=count))
    loader.epochs._batches[0] = count + 1
    with pytest.raises(EdTrainError, match=f"{count} batches are planned, {count + 1} were counted and 0 are done"):
        next(loader.iterate(0))


def test_an_epoch_is_described_in_json_as_it_will_be_served(data, loader):
    lines = [json.loads(json.dumps(line)) for line in loader.described(2)]
    batches = list(loader.iterate(2))
    for number, (line, batch) in enumerate(zip(lines, batches, strict=True)):
        assert (line["epoch"], line["batch"]) == (2, number)
        assert [sample["image"] for sample in line["samples"]] == [str(path) for path in batch.images]
        assert [sample["caption"] for sample in line["samples"]] == list(batch.captions)
        assert (line["own"] / 4) ** 1.5 == batch.loss_scale
    assert loader.captions == [item.caption.main for item in data[0]]


def test_ranks_get_their_slices_of_each_global_batch(loader):
    whole = list(loader.iterate(0))
    parts = [list(loader.iterate(0, rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.latents_mean, torch.cat([first.latents_mean, second.latents_mean]))
        assert torch.equal(batch.token_ids, torch.cat([first.token_ids, second.token_ids]))
        assert batch.captions == first.captions + second.captions
        assert batch.images == first.images + second.images
        assert batch.images == batch.all_images == first.all_images == second.all_images
        assert first.loss_scale == second.loss_scale == batch.loss_scale


def test_batches_are_prepared_ahead_but_not_far(data, monkeypatch):
    loader = BatchLoader(*data, batch_size=1, crops=2)
    served = []
    real = loader._latents.get
    monkeypatch.setattr(loader._latents, "get", lambda *args: served.append(args) or real(*args))
    iterator = loader.iterate(0)
    next(iterator)
    deadline = time.monotonic() + 10
    while len(served) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(served) == 3
    iterator.close()


def test_errors_of_the_thread_reach_the_training_thread(data, loader, threads, monkeypatch):
    _, _, latents, _ = data
    real, calls = latents.get, []

    def failing(*args):
        calls.append(args)
        if len(calls) > 4:
            raise OSError("disk gone")
        return real(*args)

    monkeypatch.setattr(latents, "get", failing)
    iterator = loader.iterate(0)
    next(iterator)
    with pytest.raises(OSError, match="disk gone"):
        next(iterator)
    assert threads() == 0


def test_the_thread_ends_with_the_epoch_and_with_an_abandoned_iterator(loader, threads):
    list(loader.iterate(0))
    assert threads() == 0
    iterator = loader.iterate(0)
    next(iterator)
    assert threads() == 1
    del iterator
    assert threads() == 0
    loader.iterate(0)  # never started
    assert threads() == 0


def test_batches_may_be_written_to_without_harm_to_the_cache(data, loader):
    first = next(loader.iterate(0))
    kept = first.latents_mean.clone()
    first.latents_mean.zero_()
    first.token_ids.zero_()
    assert torch.equal(next(loader.iterate(0)).latents_mean, kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_batches_for_a_gpu_are_in_page_locked_memory(data):
    batch = next(BatchLoader(*data, batch_size=4, crops=2, pin_memory=True).iterate(0))
    assert batch.latents_mean.is_pinned()
    assert batch.latents_std.is_pinned()
    assert batch.token_ids.is_pinned()


def test_a_batch_of_each_size_is_cut_as_those_of_an_epoch_are(data, loader):
    whole = list(loader.one_of_each_size(0))
    sizes = [batch.latents_mean.shape[:1:-1] for batch in whole]
    assert sizes == sorted((w // 8, h // 8) for w, h in loader.sizes)
    parts = zip(*(loader.one_of_each_size(0, rank, 2) for rank in (0, 1)), strict=True)
    for batch, halves in zip(whole, parts, strict=True):
        assert torch.equal(batch.latents_mean, torch.cat([half.latents_mean for half in halves]))


def test_a_loss_scale_is_in_the_batch_and_in_the_hash_of_the_epoch(data, loader):
    items, *rest = data
    assert all(batch.weights is None for batch in loader.iterate(0))
    scaled = [replace(item, loss_scale=0.5) if number == 3 else item for number, item in enumerate(items)]
    options = {"batch_size": 4, "crops": 2, "shuffle_tags": True, "keep_tags": 1, "seed": 3}
    other = BatchLoader(scaled, *rest, **options)
    assert other.fingerprint(0) != loader.fingerprint(0) == BatchLoader(items, *rest, **options).fingerprint(0)
    for batch in other.iterate(0):
        weights = [0.5 if path == items[3].path else 1.0 for path in batch.images]
        assert (batch.weights is not None) == (0.5 in weights)
        if batch.weights is not None:
            assert (batch.weights.dtype, batch.weights.tolist()) == (torch.float32, weights)


def test_whether_captions_are_shuffled(data):
    items, *rest = data
    assert not BatchLoader(items, *rest, batch_size=4).shuffles
    assert BatchLoader(items, *rest, batch_size=4, shuffle_tags=True).shuffles
    assert BatchLoader([*items[:-1], replace(items[-1], shuffle_tags=True)], *rest, batch_size=4).shuffles
    never = [replace(item, shuffle_tags=False) for item in items]
    assert not BatchLoader(never, *rest, batch_size=4, shuffle_tags=True).shuffles
