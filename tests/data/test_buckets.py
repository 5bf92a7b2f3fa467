from __future__ import annotations

import pytest
from ed_train.data.buckets import assign_buckets, bucket_sizes, nearest_bucket


@pytest.mark.parametrize("resolution", [64, 100, 128, 256, 448, 500, 512, 576, 640, 768, 1024])
def test_sizes_are_multiples_of_64_of_about_the_resolution_squared(resolution):
    sizes = bucket_sizes(resolution)
    square = max(64, resolution // 64 * 64)
    assert (square, square) in sizes
    assert len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert min(width, height) >= 64
        assert max(width, height) <= 4 * min(width, height)
        assert (height, width) in sizes
        assert width * height <= max(resolution, 64) ** 2
    if resolution >= 256:
        assert min(width * height for width, height in sizes) >= 0.7 * resolution**2


def test_the_sizes_at_256():
    wide = {(256, 256), (320, 192), (384, 128), (448, 128), (512, 128)}
    assert set(bucket_sizes(256)) == wide | {(height, width) for width, height in wide}


@pytest.mark.parametrize(
    ("image", "bucket"),
    [
        ((3000, 3000), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((1080, 1920), (384, 640)),
        ((4000, 1000), (1024, 256)),
        ((10_000, 1), (1024, 256)),
        ((1, 10_000), (256, 1024)),
        ((1, 1), (512, 512)),
    ],
)
def test_nearest_bucket_by_aspect(image, bucket):
    assert nearest_bucket(*image, bucket_sizes(512)) == bucket


def test_nearest_bucket_does_not_depend_on_the_order_of_sizes():
    sizes = bucket_sizes(512)
    for width in range(100, 2000, 7):
        assert nearest_bucket(width, 700, sizes) == nearest_bucket(width, 700, sizes[::-1])


def test_landscape_and_portrait_are_treated_alike():
    sizes = bucket_sizes(512)
    for width in range(100, 2000, 7):
        assert nearest_bucket(width, 700, sizes) == nearest_bucket(700, width, sizes)[::-1]


def test_1x1_and_1x10000_are_used_and_noted(make_item):
    items = [make_item("dot.png", 1, 1), make_item("line.png", 1, 10_000), make_item("good.png", 900, 900)]
    buckets, notes = assign_buckets(items, 512)
    assert buckets == [(512, 512), (256, 1024), (512, 512)]
    assert notes == [
        "aspect beyond 4:1, cropped at both ends: 1 image(s), e.g. line.png (1 x 10000)",
        "smaller than the training size, enlarged: 2 image(s), e.g. dot.png (1 x 1)",
    ]


def test_ordinary_photos_are_not_noted(make_item):
    assert assign_buckets([make_item(width=900, height=700)], 512) == ([(576, 448)], [])
