"""The fast step against prodigyopt's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from ed_train import create_optimizer
from ed_train.testing.yardstick import counted_reads, on_a_trained_task, on_recorded_gradients
from ed_train_prodigy.fast import FastProdigy
from prodigyopt import Prodigy

STEPS = 500
CLOSE, CLOSE_ESTIMATE = 1e-4, 1e-5


def fast(piece=None, **options):
    def create(params):
        optimizer = create_optimizer("prodigy", params, **options)
        assert type(optimizer) is FastProdigy
        optimizer.piece = piece
        return optimizer

    return create


def reference(**options):
    def create(params):
        optimizer = create_optimizer("prodigy", params, implementation="reference", **options)
        assert type(optimizer) is Prodigy
        return optimizer

    return create


def assert_follows(found, expected):
    assert math.isfinite(expected.difference(found))
    assert expected.difference(found) < CLOSE
    assert expected.estimate_difference(found) < CLOSE_ESTIMATE


OPTIONS = [
    {"weight_decay": 0.01},
    {"d0": 1e-5, "slice_p": 3, "safeguard_warmup": False, "growth_rate": 1.05},
    {
        "d0": 1e-4, "weight_decay": 0.1, "decouple": False, "growth_rate": 1.005, "betas": (0.8, 0.99), "beta3": 0.9,
        "lr": 0.5, "d_coef": 0.5, "use_bias_correction": False,
    },
    {"d0": 1e-5, "betas": (0.0, 0.99), "growth_rate": 1.05},
]  # fmt: skip
FADE = 60


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_follows_the_library(options):
    expected = on_recorded_gradients(reference(**options), STEPS, FADE)
    assert_follows(on_recorded_gradients(fast(**options), STEPS, FADE), expected)


@pytest.mark.parametrize("options", OPTIONS[::2], ids=str)
def test_it_follows_the_library_on_a_trained_task(options):
    expected = on_a_trained_task(reference(**options), STEPS)
    assert_follows(on_a_trained_task(fast(**options), STEPS), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", [{"piece": 100}, {"piece": 30}], ids=str)
def test_it_follows_the_library_in_pieces(options, how):
    expected = on_recorded_gradients(reference(**options), 30, FADE)
    assert_follows(on_recorded_gradients(fast(**how, **options), 30, FADE), expected)


@pytest.mark.parametrize("tensors", [{"memory_format": torch.channels_last}, {"dtype": torch.float64}], ids=str)
def test_it_follows_the_library_over_other_tensors(tensors):
    expected = on_recorded_gradients(reference(d0=1e-4), 50, FADE, **tensors)
    assert_follows(on_recorded_gradients(fast(100, d0=1e-4), 50, FADE, **tensors), expected)


def test_in_bfloat16_it_is_as_near_to_the_library_as_rounding_allows():
    options = {"d0": 1e-2, "growth_rate": 1.02}
    expected = on_recorded_gradients(reference(**options), 50, FADE, dtype=torch.bfloat16)
    found = on_recorded_gradients(fast(**options), 50, FADE, dtype=torch.bfloat16)
    assert expected.difference(found) < 0.02
    assert expected.estimate_difference(found) < 0.02


def some_parameters():
    torch.manual_seed(0)
    return torch.nn.ParameterList([torch.randn(40, 30), torch.randn(30, 20).t(), torch.zeros(5), torch.randn(())])


def stepped(module, optimizer, factor=1.0):
    """A step over gradients of another layout than the parameter, of one that begins as zeros, and none at all."""
    generator = torch.Generator().manual_seed(1)
    for parameter, shape in ((module[0], (40, 30)), (module[1], (20, 30)), (module[2], (5,))):
        parameter.grad = factor * torch.randn(shape, generator=generator)
    optimizer.step()
    return [p.detach().clone() for p in module]


def groups_of(optimizer):
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def assert_alike(optimizers, modules):
    """The parameters, the state and the groups of two optimizers are the same to within rounding."""
    for a, b in zip(*modules, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-12, equal_nan=True)
    groups = [groups_of(optimizer) for optimizer in optimizers]
    assert [list(map(str, g)) for g in groups[0]] == [list(map(str, g)) for g in groups[1]]
    for a, b in zip(*groups, strict=True):
        for key in a.keys() - {"betas", "beta3"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5, nan_ok=True), key


LAYOUT = {"slice_p": 3}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("gradients", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0, 1.0), (1.0, NAN, 1.0), (INF,)])
@pytest.mark.parametrize("options", [{}, {"betas": (0.9, 0.0)}, {"betas": (0.0, 0.9)}, {"decouple": False}], ids=str)
def test_gradients_of_zero_and_not_finite(gradients, options):
    given = {"d0": 1e-3, "weight_decay": 0.1, **options}
    modules = [some_parameters(), some_parameters()]
    optimizers = [create(**given)(list(m)) for create, m in zip((fast, reference), modules, strict=True)]
    for factor in gradients:
        for module, optimizer in zip(modules, optimizers, strict=True):
            stepped(module, optimizer, factor)
    assert_alike(optimizers, modules)


@pytest.mark.parametrize("lrs", [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_groups_whose_learning_rate_is_zero(lrs):
    modules, optimizers = [some_parameters(), some_parameters()], []
    for module, implementation in zip(modules, ("fast", "reference"), strict=True):
        groups = [{"params": [module[0], module[2]]}, {"params": [*module[1::2]], "weight_decay": 0.3}]
        optimizer = create_optimizer("prodigy", groups, d0=1e-3, weight_decay=0.1, implementation=implementation)
        optimizers.append(optimizer)
        stepped(module, optimizer)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        stepped(module, optimizer)
        stepped(module, optimizer, -0.5)
    assert_alike(optimizers, modules)


def test_groups_of_different_learning_rates_are_refused_as_by_the_library():
    module = some_parameters()
    groups = [{"params": [module[0]], "lr": 1.0}, {"params": [module[1]], "lr": 0.5}]
    for implementation in ("fast", "reference"):
        optimizer = create_optimizer("prodigy", groups, implementation=implementation)
        module[0].grad = torch.ones(40, 30)
        module[1].grad = torch.ones(20, 30)
        with pytest.raises(RuntimeError, match=r"different lr|same lr"):
            optimizer.step()


def test_a_closure():
    module = some_parameters()
    optimizer = fast()(list(module))

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in module)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(2)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("pair", [(fast, reference), (reference, fast), (fast, fast)], ids=["to", "from", "own"])
@pytest.mark.parametrize("options", [{}, LAYOUT], ids=str)
def test_the_state_loads_into_the_other_and_training_goes_on(pair, options):
    before, after = (create(d0=1e-3, **options) for create in pair)
    module = some_parameters()
    optimizer = before(list(module))
    for _ in range(3):
        stepped(module, optimizer)
    again = copy.deepcopy(module)
    other = after(list(again))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert str(other.state_dict()) == str(optimizer.state_dict())
    for _ in range(3):
        stepped(module, optimizer)
        stepped(again, other)
    assert_alike([optimizer, other], [module, again])
    if pair == (fast, fast):
        assert all(map(torch.equal, module, again))


def test_gradients_are_left_as_they_were():
    module = some_parameters()
    stepped(module, fast(weight_decay=0.1)(list(module)))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(module[0].grad, torch.randn(40, 30, generator=generator))


@pytest.mark.parametrize("count", [1, 30])
def test_a_step_waits_for_the_device_once(count):
    parameters = [torch.nn.Parameter(torch.randn(20, 10)) for _ in range(count)]
    optimizer = fast()(parameters)
    for step in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        with counted_reads() as reads:
            optimizer.step()
        assert (reads.scalars, reads.calls) == (0, 1 + (step == 0))


def test_the_library_waits_for_each_parameter():
    """What the test before this one counts is there to be counted."""
    parameters = [torch.nn.Parameter(torch.randn(20, 10)) for _ in range(5)]
    optimizer = reference()(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    with counted_reads() as reads:
        optimizer.step()
    assert min(reads.scalars, reads.calls) >= 10


def test_what_only_the_library_follows_gets_its_step_and_a_line():
    group = {"params": [torch.nn.Parameter(torch.randn(3))], "fsdp_in_use": True}
    with pytest.warns(UserWarning, match="prodigy: implementation is reference, not fast: a group sets fsdp_in_use"):
        assert type(create_optimizer("prodigy", [group])) is Prodigy
