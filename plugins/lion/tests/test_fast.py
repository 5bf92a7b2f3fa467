"""The fast step against lion-pytorch's own."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from ed_train import create_optimizer
from ed_train.testing.yardstick import counted_reads, on_a_trained_task, on_recorded_gradients
from ed_train_lion.fast import FastLion
from lion_pytorch import Lion

STEPS = 500
CLOSE = 1e-4
OPTIONS = [
    {"lr": 1e-3},
    {"lr": 1e-3, "betas": (0.5, 0.95), "weight_decay": 0.0},
    {"lr": 1e-3, "weight_decay": 1e-3, "decoupled_weight_decay": True},
    {"lr": 1e-3, "betas": (0.0, 0.0)},
]


def fast(piece=None, **options):
    def create(params):
        optimizer = create_optimizer("lion", params, **options)
        assert type(optimizer) is FastLion
        optimizer.piece = piece
        return optimizer

    return create


def reference(**options):
    def create(params):
        optimizer = create_optimizer("lion", params, implementation="reference", **options)
        assert type(optimizer) is Lion
        return optimizer

    return create


@pytest.mark.parametrize("piece", [None, 100, 7], ids=["whole", "pieces of 100", "pieces of 7"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_follows_the_library(options, piece):
    steps = STEPS if piece is None else 10
    expected = on_recorded_gradients(reference(**options), steps)
    assert expected.difference(on_recorded_gradients(fast(piece, **options), steps)) < CLOSE


def test_it_follows_the_library_on_a_trained_task():
    expected = on_a_trained_task(reference(lr=1e-3), STEPS)
    assert expected.difference(on_a_trained_task(fast(lr=1e-3), STEPS)) < CLOSE


@pytest.mark.parametrize(
    ("piece", "tensors"),
    [
        (100, {"memory_format": torch.channels_last}),
        (100, {"dtype": torch.float64}),
        (None, {"dtype": torch.bfloat16}),  # the ends of pieces round differently, which shows in bfloat16
    ],
    ids=["channels_last", "float64", "bfloat16"],
)
def test_it_follows_the_library_over_other_tensors(piece, tensors):
    expected = on_recorded_gradients(reference(lr=1e-3), 50, **tensors)
    assert expected.difference(on_recorded_gradients(fast(piece, lr=1e-3), 50, **tensors)) < CLOSE


def embedding_and_layer():
    torch.manual_seed(0)
    return torch.nn.ParameterList([torch.randn(40, 30), torch.randn(30, 20).t(), torch.randn(5)])


def stepped(module, optimizer, sparse=False):
    """A step over gradients of every kind: sparse or of another layout, and none at all."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(40, 30, generator=generator)
    gradient[3:] = 0
    module[0].grad = gradient.to_sparse() if sparse else gradient
    module[1].grad = torch.randn(20, 30, generator=generator)
    optimizer.step()
    return [p.detach().clone() for p in module]


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_of_another_layout_and_none(sparse):
    results = []
    for create in (fast(100, lr=1e-3), reference(lr=1e-3)):
        module = embedding_and_layer()
        results.append(stepped(module, create(list(module)), sparse))
    assert all(map(torch.equal, *results))


def test_groups_and_a_closure():
    results = []
    for implementation in ("fast", "reference"):
        module = embedding_and_layer()
        groups = [{"params": [module[0]], "lr": 1e-2}, {"params": [module[1], module[2]], "weight_decay": 0.5}]
        optimizer = create_optimizer("lion", groups, lr=1e-3, implementation=implementation)

        def closure(module=module, optimizer=optimizer):
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in module)
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        results.append([torch.tensor(losses), *(p.detach() for p in module)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_does_what_it_does_in_the_library(value):
    results = []
    for create in (fast(lr=1e-3), reference(lr=1e-3)):
        module = embedding_and_layer()
        optimizer = create(list(module))
        for spoilt in (value, 0.0):
            module[0].grad = torch.full((40, 30), 0.1)
            module[0].grad[0, 0] = spoilt
            optimizer.step()
        results.append([module[0].detach(), optimizer.state[module[0]]["exp_avg"]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("pair", [(fast, reference), (reference, fast), (fast, fast)], ids=["to", "from", "own"])
def test_the_state_loads_into_the_other_and_training_goes_on(pair):
    before, after = (partial(create, lr=1e-3)() for create in pair)
    module = embedding_and_layer()
    optimizer = before(list(module))
    stepped(module, optimizer)
    state, again = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(module)
    other = after(list(again))
    other.load_state_dict(state)
    assert str(other.state_dict()) == str(state)
    assert all(map(torch.equal, stepped(module, optimizer), stepped(again, other)))


def test_nothing_waits_for_the_device():
    module = embedding_and_layer()
    optimizer = fast(lr=1e-3)(list(module))
    with counted_reads() as reads:
        stepped(module, optimizer)
        stepped(module, optimizer)
    assert (reads.scalars, reads.calls) == (0, 0)


def test_complex_parameters_get_the_librarys_step_and_a_line():
    parameter = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    with pytest.warns(UserWarning, match=r"lion: implementation is reference, not fast: .*torch\.complex64"):
        optimizer = create_optimizer("lion", [parameter])
    assert type(optimizer) is Lion
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_optimizer("lion", [parameter], implementation="reference")
