from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ed_train.data.encode import LatentCache, vae_encoder
from ed_train.data.images import crop_box, fit, load_image
from ed_train.data.scan import scan_dataset
from ed_train.data.tokens import TokenCache
from ed_train.errors import ConfigError
from PIL import Image

BUCKET = (128, 64)


def open_cache(folder: Path, items, *, vae: str = "vae", crops: int = 1, buckets=None) -> LatentCache:
    buckets = buckets or [BUCKET] * len(items)
    return LatentCache(folder, items, buckets, vae=vae, crops=crops, jobs=2, progress=False)


def never(pixels: torch.Tensor):
    raise AssertionError("the VAE was called although nothing is missing")


def pixels_as_latents(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of a VAE: shows what it was given, in eighths."""
    small = pixels[:, :, ::8, ::8]
    return small, small + 2


@pytest.fixture
def items(tmp_path, photo):
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        photo(name, f"data/{name}")
    return scan_dataset(tmp_path / "data", flip_p=0.5, cond_dropout=0.0).items


# pictures


def close(image: Image.Image, color: tuple[int, int, int], tolerance: int = 3) -> bool:
    return bool(np.abs(np.asarray(image).astype(int) - color).max() <= tolerance)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white_whatever_colour_they_hide(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (8, 8), 3)
        image.putpalette([200, 0, 0] * 256)
        image.save(tmp_path / "a.png", transparency=3)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    assert close(load_image(tmp_path / "a.png"), (255, 255, 255))


def test_a_transparent_colour_of_a_palette_less_png(tmp_path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert close(load_image(tmp_path / "a.png"), (255, 255, 255))


def test_half_transparent_is_blended_with_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert close(load_image(tmp_path / "a.png"), (255, 127, 127))


@pytest.mark.parametrize(("mode", "color"), [("CMYK", (0, 255, 255, 0)), ("L", 76), ("1", 1), ("YCbCr", (76, 85, 255))])
def test_other_colour_modes_become_rgb(tmp_path, mode, color):
    name = "a.png" if mode in ("L", "1") else "a.jpg"
    Image.new(mode, (8, 8), color).save(tmp_path / name)
    expected = {"CMYK": (255, 0, 0), "L": (76, 76, 76), "1": (255, 255, 255), "YCbCr": (255, 0, 0)}[mode]
    assert close(load_image(tmp_path / name), expected)


def test_16_bit_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[..., 0] - np.linspace(0, 255, 64).reshape(8, 8)).max() <= 1


def test_a_palette_image_keeps_its_colours(photo, tmp_path):
    with Image.open(photo("chelsea.png")) as image:
        image.quantize(256).save(tmp_path / "a.png")
        difference = np.asarray(load_image(tmp_path / "a.png")).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 10


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_of_an_animated_picture_the_first_frame_is_used(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    if name == "a.gif":  # an extension that is not scanned for; the content is what counts
        (tmp_path / name).rename(tmp_path / "a.jpg")
        name = "a.jpg"
    assert close(load_image(tmp_path / name), (255, 0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated_pictures_are_turned_upright(tmp_path, photo, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(photo("chelsea.png")) as image:
        image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(load_image(tmp_path / "a.png"), ImageOps.exif_transpose(image))


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, photo):
    with Image.open(photo("rocket.jpg")) as image:
        image.resize((1600, 1067)).save(tmp_path / "big.jpg", quality=95)
    whole, small = load_image(tmp_path / "big.jpg"), load_image(tmp_path / "big.jpg", cover=(192, 128))
    assert (whole.size, small.size) == ((1600, 1067), (400, 267))
    scaled = [fit(image, (192, 128), crop_box(image.size, (192, 128), 0, "")).astype(int) for image in (whole, small)]
    assert np.abs(scaled[0] - scaled[1]).mean() < 1.5


def test_crop_0_is_the_largest_box_in_the_middle():
    assert crop_box((300, 100), (128, 128), 0, "x") == (100, 0, 200, 100)
    assert crop_box((100, 300), (128, 64), 0, "x") == (0, 125, 100, 175)
    assert crop_box((1, 1), (512, 512), 0, "x") == (0, 0, 1, 1)
    assert crop_box((1, 10_000), (256, 1024), 0, "x") == (0, 4998, 1, 5002)


def test_other_crops_differ_by_about_2_percent_and_stay_inside():
    rng = random.Random(0)
    boxes = set()
    for crop in range(1, 200):
        size = (rng.randint(1, 3000), rng.randint(1, 3000))
        bucket = rng.choice([(512, 512), (1024, 256), (256, 1024)])
        centred, box = (crop_box(size, bucket, number, "content") for number in (0, crop))
        assert box == crop_box(size, bucket, crop, "content")
        assert box != crop_box(size, bucket, crop, "other content")
        width, height = centred[2] - centred[0], centred[3] - centred[1]
        assert 0 <= box[0] < box[2] <= size[0]
        assert 0 <= box[1] < box[3] <= size[1]
        assert 0.979 * width <= box[2] - box[0] <= width
        assert abs(box[0] - centred[0]) <= 0.041 * width
        assert abs(box[1] - centred[1]) <= 0.041 * height
        assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(bucket[0] / bucket[1])
        boxes.add(box)
    assert len(boxes) == 199


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 2)])
def test_extreme_pictures_fit(size):
    for crop in range(3):
        pixels = fit(Image.new("RGB", size, "red"), (1024, 256), crop_box(size, (1024, 256), crop, "x"))
        assert pixels.shape == (256, 1024, 3)
        assert close(Image.fromarray(pixels), (255, 0, 0))


# latents


def test_latents_are_those_of_the_vae(tmp_path, items, vae, encode):
    """To the last bit, on a CPU; whatever layout the pixels came in."""
    cache = open_cache(tmp_path / "cache", items, crops=2)
    assert cache.missing() == list(items)
    assert cache.build(vae_encoder(vae, torch.device("cpu"))) == ()
    assert cache.missing() == []
    assert cache.usable() == [0, 1, 2]
    for item in items:
        image = load_image(item.path, cover=BUCKET)
        for crop in (0, 1):
            content = hashlib.sha256(item.path.read_bytes()).hexdigest()
            pixels = fit(image, BUCKET, crop_box(image.size, BUCKET, crop, content))
            for flip in (False, True):
                source = torch.tensor(pixels[:, ::-1].copy() if flip else pixels)
                mean, std = encode(source.permute(2, 0, 1)[None].contiguous() / 127.5 - 1)
                entry = cache.get(item.path, crop, flip)
                assert entry.dtype == torch.float32
                assert entry.shape == (8, 8, 16)
                assert (entry[4:] > 0).all()
                assert torch.equal(entry, torch.cat([mean, std], dim=1)[0])


def test_a_warm_start_hashes_decodes_and_encodes_nothing(tmp_path, items, encode, monkeypatch):
    open_cache(tmp_path / "cache", items).build(encode)
    opened = []
    real_open = Path.open

    def recording_open(self, *args, **kwargs):
        opened.append(self)
        return real_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", recording_open)
    cache = open_cache(tmp_path / "cache", items)
    assert cache.missing() == []
    assert cache.build(never) == ()
    assert set(opened) & {item.path for item in items} == set()


def test_values_reach_the_vae_between_minus_1_and_1(tmp_path, make_item):
    Image.new("RGB", (128, 64), (255, 0, 51)).save(tmp_path / "a.png")
    cache = open_cache(tmp_path / "cache", [make_item(tmp_path / "a.png", 128, 64)])
    cache.build(pixels_as_latents)
    entry = cache.get(tmp_path / "a.png", 0, False)
    assert entry[:, 0, 0].tolist() == pytest.approx([1, -1, -0.6, 3, 1, 1.4])


def test_only_what_is_needed_is_encoded(tmp_path, photo, make_item):
    path, other = photo("chelsea.png"), photo("coffee.png")
    seen = []

    def counting(pixels):
        seen.extend(pixels)
        return pixels_as_latents(pixels)

    open_cache(tmp_path / "cache", [make_item(path), make_item(other, multiply=0.0)]).build(counting)
    assert len(seen) == 1
    open_cache(tmp_path / "cache", [make_item(path, flip_p=0.1)]).build(counting)
    assert len(seen) == 2
    assert torch.equal(seen[0].flip(2), seen[1])
    open_cache(tmp_path / "cache", [make_item(path, flip_p=0.1)], crops=3).build(counting)
    assert len(seen) == 6


@pytest.mark.parametrize("change", [{"vae": "another"}, {"buckets": [(64, 128)] * 3}])
def test_another_vae_or_bucket_is_encoded_anew(tmp_path, items, change):
    open_cache(tmp_path / "cache", items).build(pixels_as_latents)
    assert open_cache(tmp_path / "cache", items, **change).missing() == list(items)
    assert open_cache(tmp_path / "cache", items).missing() == []


def test_a_picture_that_was_changed_is_encoded_anew(tmp_path, items):
    open_cache(tmp_path / "cache", items).build(pixels_as_latents)
    Image.new("RGB", (99, 99)).save(items[0].path)
    assert open_cache(tmp_path / "cache", items).missing() == [items[0]]
    shutil.copy(items[1].path, items[0].path)
    cache = open_cache(tmp_path / "cache", items)
    assert cache.missing() == []  # its new content is known
    assert torch.equal(cache.get(items[0].path, 0, False), cache.get(items[1].path, 0, False))


def test_a_moved_data_set_is_not_encoded_again(tmp_path, items):
    open_cache(tmp_path / "cache", items).build(pixels_as_latents)
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    moved = scan_dataset(tmp_path / "moved", flip_p=0.5, cond_dropout=0.0).items
    assert open_cache(tmp_path / "cache", moved).missing() == []


def test_mixed_buckets_are_encoded_in_batches_of_one_size(tmp_path, photo, make_item):
    items = [make_item(photo("chelsea.png", f"{i}.png"), flip_p=0.5) for i in range(5)]
    buckets = [(512, 512), (1024, 256), (512, 512), (1024, 256), (512, 512)]
    shapes = []

    def recording(pixels):
        shapes.append(tuple(pixels.shape))
        return pixels_as_latents(pixels)

    cache = open_cache(tmp_path / "cache", items, buckets=buckets)
    cache.build(recording)
    assert sorted(shapes) == [(2, 3, 512, 512), (4, 3, 256, 1024), (4, 3, 512, 512)]
    assert cache.get(items[1].path, 0, True).shape == (6, 32, 128)


# one bad image is skipped


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("name", ["rocket.jpg", "coffee.png"])
def test_a_truncated_picture_is_skipped_and_remembered(tmp_path, items, name, monkeypatch):
    truncate(tmp_path / "data" / name)
    cache = open_cache(tmp_path / "cache", items)
    (skipped,) = cache.build(pixels_as_latents)
    assert skipped.path.name == name
    assert "truncated" in skipped.reason or "broken" in skipped.reason
    assert [items[i].path.name for i in cache.usable()] == sorted({"chelsea.png", "coffee.png", "rocket.jpg"} - {name})
    again = open_cache(tmp_path / "cache", items)
    assert again.missing() == []
    assert again.skipped == (skipped,)
    assert again.build(never) == (skipped,)
    monkeypatch.setattr("PIL.__version__", "99.0.0")
    assert [item.path.name for item in open_cache(tmp_path / "cache", items).missing()] == [name], "it may read more"


def test_a_decompression_bomb_that_passes_for_a_large_picture_is_skipped(tmp_path, items, bomb, recwarn):
    bomb(tmp_path / "data" / "bomb.png", 9500, 9500)
    with_bomb = scan_dataset(tmp_path / "data", flip_p=0.0, cond_dropout=0.0).items
    assert len(with_bomb) == 4
    (skipped,) = open_cache(tmp_path / "cache", with_bomb).build(pixels_as_latents)
    assert skipped.path.name == "bomb.png"
    assert not recwarn.list


def test_a_file_that_vanished_since_the_scan_is_skipped(tmp_path, items):
    items[1].path.unlink()
    cache = open_cache(tmp_path / "cache", items)
    assert cache.missing() == [items[0], items[2]]
    data = items[2].path.read_bytes()
    items[2].path.unlink()  # between hashing and decoding
    assert [str(skipped) for skipped in cache.build(pixels_as_latents)] == [
        f"{items[1].path}: no such file or directory",
        f"{items[2].path}: no such file or directory",
    ]
    assert cache.usable() == [0]
    items[2].path.write_bytes(data)
    assert open_cache(tmp_path / "cache", items).missing() == [items[2]]  # not remembered as undecodable


def test_nan_latents_of_a_picture_are_skipped_with_the_reason(tmp_path, items):
    def broken(pixels):
        mean, std = pixels_as_latents(pixels)
        mean[0, 0, 0, 0] = float("nan")
        return mean, std

    cache = open_cache(tmp_path / "cache", items)
    (skipped,) = cache.build(broken)
    assert skipped.reason == "the VAE gives values that are not finite (NaN)"
    assert len(cache.usable()) == 2
    assert len(open_cache(tmp_path / "cache", items).missing()) == 1


def test_no_usable_image_at_all_is_an_error_that_says_why(tmp_path, items):
    for item in items:
        truncate(item.path)
    expected = rf"data_root: none of 3 images can be used: {items[0].path}: .*; {items[1].path}: .*; {items[2].path}: "
    for _ in range(2):
        with pytest.raises(ConfigError, match=expected):
            open_cache(tmp_path / "cache", items).build(pixels_as_latents)


# interruption, sharing


def test_what_was_done_before_an_interruption_is_kept(tmp_path, photo, make_item):
    items = [make_item(photo("chelsea.png", f"{i}.png")) for i in range(8)]
    for item in items:  # eight different files of one picture
        with item.path.open("ab") as file:
            file.write(item.path.name.encode())
    calls, others = [], set(threading.enumerate())

    def interrupted(pixels):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(pixels)
        return pixels_as_latents(pixels)

    cache = open_cache(tmp_path / "cache", items, buckets=[(1024, 1024)] * 8)
    with pytest.raises(KeyboardInterrupt) as caught:
        cache.build(interrupted)
    assert caught.traceback  # whose frames keep everything alive that was not closed
    assert [t for t in threading.enumerate() if "ThreadPool" in t.name and t not in others] == []
    again = open_cache(tmp_path / "cache", items, buckets=[(1024, 1024)] * 8)
    assert len(again.missing()) == 8 - 3
    assert again.build(pixels_as_latents) == ()
    assert again.usable() == list(range(8))


def test_processes_share_the_work_and_agree_on_what_is_usable(tmp_path, items):
    truncate(items[0].path)
    caches = [open_cache(tmp_path / "cache", items) for _ in range(2)]
    encoded = []

    def recording(pixels):
        encoded.append(len(pixels))
        return pixels_as_latents(pixels)

    for rank, cache in enumerate(caches):
        cache.build(recording, rank=rank, world=2)
    assert encoded == [2, 2]  # one good image each, also mirrored
    assert [cache.usable() for cache in caches] == [[1, 2], [1, 2]]
    assert [len(cache.skipped) for cache in caches] == [1, 1]


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"a": 1}}', '{"files": {}, "undecodable": 3}', "\0"])
def test_a_damaged_index_costs_time_only(tmp_path, items, content, caplog):
    open_cache(tmp_path / "cache", items).build(pixels_as_latents)
    index = tmp_path / "cache" / "images.json"
    index.write_text(content)
    assert open_cache(tmp_path / "cache", items).missing() == []
    assert "images are hashed again" in caplog.text
    assert len(json.loads(index.read_text())["files"]) == 3


def test_odd_names_can_be_hashed_and_encoded(tmp_path, photo, make_item):
    items = [make_item(photo("chelsea.png", name)) for name in ("🐱.png", "two\nlines.png", "\udce9.png")]
    assert open_cache(tmp_path / "cache", items).build(pixels_as_latents) == ()
    assert open_cache(tmp_path / "cache", items).build(never) == ()


def test_warnings_of_the_vae_are_not_swallowed(tmp_path, items):
    def warning(pixels):
        warnings.warn("slow", stacklevel=1)
        return pixels_as_latents(pixels)

    with pytest.warns(UserWarning, match="slow"):
        open_cache(tmp_path / "cache", items).build(warning)


# tokens


def test_token_ids_are_those_of_the_tokenizer(tmp_path, tokenizer):
    captions = ["a cat", "", "A Cat, asleep", "long " * 100, "🐱 é", "a\0b"]
    expected = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    cache = TokenCache(tmp_path, lambda: tokenizer, fingerprint="t")
    cache.add(captions[:3])
    for found in (cache.get(captions), cache.get(captions), [ids for text in captions for ids in cache.get([text])]):
        assert torch.equal(torch.stack(found), expected)
        assert {(ids.dtype, ids.shape) for ids in found} == {(torch.int64, (77,))}
    assert torch.equal(torch.stack(cache.get(["new", "a cat", "new"])[::2]), torch.stack(cache.get(["new"]) * 2))


def test_known_captions_are_tokenized_once_and_for_all(tmp_path, tokenizer):
    TokenCache(tmp_path, lambda: tokenizer, fingerprint="t").add(["a cat", "a dog", "a cat"])
    assert len(list(tmp_path.iterdir())) == 1
    cache = TokenCache(tmp_path, no_tokenizer, fingerprint="t")
    cache.add(["a dog", "a cat"])
    assert cache.get(["a cat"])[0][0] == tokenizer.bos_token_id
    with pytest.raises(AssertionError, match="the tokenizer was loaded"):
        cache.get(["new"])
    with pytest.raises(AssertionError, match="the tokenizer was loaded"):
        TokenCache(tmp_path, no_tokenizer, fingerprint="another").get(["a cat"])


def test_many_captions_are_written_in_several_packs(tmp_path, tokenizer, monkeypatch):
    """The header of a safetensors file has a limit, which half a million captions reach."""
    monkeypatch.setattr("ed_train.data.store._PACK_BYTES", 10 * 77 * 8)
    captions = [f"caption {i}" for i in range(25)]
    TokenCache(tmp_path, lambda: tokenizer, fingerprint="t").add(captions)
    assert len(list(tmp_path.iterdir())) == 3
    TokenCache(tmp_path, no_tokenizer, fingerprint="t").get(captions)


def no_tokenizer() -> None:
    raise AssertionError("the tokenizer was loaded although nothing has to be tokenized")


def test_later_captions_stay_in_memory_only_and_not_without_bound(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("ed_train.data.tokens._IN_MEMORY", 10)
    cache = TokenCache(tmp_path, lambda: tokenizer, fingerprint="t")
    assert cache.get(["a, b"])[0] is cache.get(["a, b"])[0]
    for i in range(25):
        cache.get([f"caption {i}"])
    assert len(cache._memory) <= 11
    assert list(tmp_path.iterdir()) == []
