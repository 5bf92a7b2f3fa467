"""Walking over tensors in pieces: every element once, nothing mixed up, and a line where fast does not fit."""

from __future__ import annotations

import warnings

import pytest
import torch
from ed_train.pieces import Scratch, add_scaled_, fast_fits, pieces, scale_


def doubled(tensors, size):
    """Copies of tensors that were doubled piece by piece, with a second column to add the first to."""
    first = [t.clone() for t in tensors]
    second = [torch.zeros_like(t) for t in tensors]
    sizes = []
    for a, b in pieces(zip(first, second, strict=True), size):
        torch._foreach_add_(b, a)
        torch._foreach_mul_(a, 2)
        sizes.append(sum(t.numel() for t in a))
    return first, second, sizes


def tensors():
    return [
        torch.randn(40, 30), torch.randn(7), torch.randn(()), torch.randn(0), torch.randn(5, 6, 3, 3),
        torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last), torch.randn(30, 20).t(), torch.randn(100)[::2],
        torch.randn(9, dtype=torch.float64), torch.randn(11).bfloat16(),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 100, 10**6, None])
def test_each_element_comes_once(size):
    given = tensors()
    first, second, sizes = doubled(given, size)
    assert all(torch.equal(a, 2 * t) for a, t in zip(first, given, strict=True))
    assert all(torch.equal(b, t) for b, t in zip(second, given, strict=True))
    assert sum(sizes) == sum(t.numel() for t in given)


def test_pieces_are_about_as_large_as_asked_for():
    _, _, sizes = doubled([torch.randn(1000), *(torch.randn(6) for _ in range(34))], 100)
    assert sizes == [100] * 10 + [102] * 2
    small = [torch.randn(3, 3) for _ in range(50)]
    assert len(doubled(small, None)[2]) == 1, "small tensors come together"


def test_a_piece_has_one_dtype_in_each_column():
    rows = [(t, t.float()) for t in tensors()]
    for a, b in pieces(rows, 50):
        assert len({t.dtype for t in a}) == 1
        assert {t.dtype for t in b} == {torch.float32}


def test_columns_that_lie_in_memory_differently_are_not_mixed_up():
    a = torch.randn(8, 6, 3, 3)
    b = a.to(memory_format=torch.channels_last)
    ((first, second),) = pieces([(a, b)], 10)
    assert torch.equal(first[0], second[0])


def test_sparse_tensors_are_taken_whole():
    a = torch.zeros(40, 30)
    ((first, second),) = pieces([(a, a.to_sparse())], 10)
    assert first == [a]
    assert second[0].is_sparse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_scaling_does_not_round_the_factor(dtype):
    tensors = [torch.randn(30).to(dtype), torch.randn(4, 5).to(dtype)]
    expected = [t * 0.999 for t in tensors]
    scale_(tensors, 0.999)
    assert all(map(torch.equal, tensors, expected))


@pytest.mark.parametrize("tensors", [[torch.rand(30)], [torch.rand(2, 3), torch.rand(5)]], ids=["one", "some"])
def test_scratch_gives_the_results_of_an_operation(tensors):
    scratch, given = Scratch(), [t.clone() for t in tensors]
    roots = scratch.of("sqrt", tensors)
    assert all(map(torch.equal, roots, [t.sqrt() for t in given]))
    assert all(map(torch.equal, scratch.of("div", tensors, roots), [t / t.sqrt() for t in given]))
    assert all(map(torch.equal, scratch.of("mul", tensors, 0.3), [t * 0.3 for t in given]))
    assert all(map(torch.equal, tensors, given))


def test_fast_fits():
    dense = torch.nn.Parameter(torch.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fast_fits("some", [dense])
        assert fast_fits("some", [("name", dense)])
        assert fast_fits("some", [{"params": [dense], "log_every": 0}], ["log_every"])


class Sharded(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ([torch.zeros(3, dtype=torch.complex64)], r"no dense tensor of real numbers \(torch.complex64, torch.strided"),
        ([("name", torch.zeros(3).as_subclass(Sharded))], r"sharded or of a special kind \(Sharded\)"),
        ([{"params": [torch.zeros(3)], "log_every": 5}], "group sets log_every"),
    ],
)
def test_where_fast_does_not_fit_a_line_says_why(params, reason):
    with pytest.warns(UserWarning, match=f"^some: implementation is reference, not fast: a.* {reason}"):
        assert not fast_fits("some", params, ["log_every"])


@pytest.mark.parametrize("shape", [(1000,), (), (3, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_add_scaled_is_a_scaling_and_an_addition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]
        others = [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]
        expected = [(0.999 * a.double() + 1e-3 * b.double()).to(dtype) for a, b in zip(tensors, others, strict=True)]
        memory = [t.data_ptr() for t in tensors]
        add_scaled_(tensors, 0.999, others, 1e-3)
        assert [t.data_ptr() for t in tensors] == memory
        torch.testing.assert_close(tensors, expected)
