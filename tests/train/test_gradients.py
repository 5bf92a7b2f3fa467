"""Whether gradients are finite: found in whatever way is cheapest, always with the same result."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from ed_train.train.gradients import LARGE, GradientWatch, supports_unread
from ed_train.train.step import train_step
from ed_train.train.train import after_step

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}
MISCHIEF = {"nan": [math.nan], "inf": [math.inf], "-inf": [-math.inf], "both": [math.inf, -math.inf]}


def weights(session: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for c in session.components for p in c.parameters]


def state(session: Any) -> list[torch.Tensor]:
    states = [s for c in session.components for s in c.optimizer.state.values()]
    return [t.clone() for s in states for t in s.values()]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def spoil(session: Any, component: int, index: int, value: float) -> Any:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[-1] = value
        return spoilt

    return session.components[component].parameters[index].register_hook(hook)


@pytest.mark.parametrize("values", MISCHIEF.values(), ids=MISCHIEF)
@pytest.mark.parametrize("elements", [3, LARGE - 1, LARGE, 3 * LARGE + 5])
def test_the_watch_finds_every_element_that_is_not_finite(elements, values) -> None:
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in (2 * LARGE, 7, elements)]
    watch = GradientWatch(parameters)
    places = {0, elements // 2, elements - 1 - len(values)}
    for place in [None, *places]:
        factor = torch.full((elements,), 1e3)
        if place is not None:
            factor[place : place + len(values)] = torch.tensor(values)
        for parameter in parameters:
            parameter.grad = None
        watch.begin()
        sum((p * (factor if p is parameters[2] else 1.0)).sum() for p in parameters).backward()
        assert watch.finite() == (place is None)


def test_without_any_gradient_there_is_nothing_to_find() -> None:
    watch = GradientWatch([torch.nn.Parameter(torch.ones(3))])
    watch.begin()
    assert watch.finite()


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_the_watch_changes_nothing_and_norms_are_taken_where_they_are_logged(
    make_session, write_optimizer, grad_accum
) -> None:
    write_optimizer(ADAMW)
    results = []
    for watched in (True, False):
        session = make_session(max_epochs=2, log_step=3, grad_accum=grad_accum)
        assert all(c.watch for c in session.components)
        for component in session.components:
            component.watch = component.watch if watched else None
        losses, norms = [], []
        for window in [*session.windows(), *session.windows()][:3]:
            result = train_step(session, window)
            losses.append(result.loss)
            norms.append({name: float(norm) for name, norm in result.grad_norms.items()})
            session.count(len(window))
        assert [bool(n) for n in norms] == [not watched, not watched, True]
        results.append((losses, norms[-1], weights(session), state(session)))
    watched, unwatched = results
    assert watched[1] == unwatched[1]
    for mine, others in zip((watched[0], *watched[2:]), (unwatched[0], *unwatched[2:]), strict=True):
        assert equal(mine, others)


def test_a_gradient_that_was_spoilt_in_an_earlier_batch_of_the_window_is_found(make_session, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_session(grad_accum=2, log_step=100, max_epochs=100)
    large = next(i for i, p in enumerate(session.components[1].parameters) if p.numel() >= LARGE)
    handle = spoil(session, 1, large, math.inf)
    original, count = session.diffusion.loss, iter(range(2))

    def loss(*args: Any) -> torch.Tensor:
        if next(count) == 1:
            handle.remove()
        return original(*args)

    session.diffusion.loss = loss
    before = weights(session)
    assert train_step(session, next(session.windows())).skipped == ("text_encoder",)
    assert equal(before, weights(session))


@pytest.fixture
def make_unread(make_session):
    """A session that steps as on a GPU: without reading whether gradients are finite."""

    def make(**settings: Any) -> Any:
        session = make_session(**settings)
        assert all(supports_unread(c.optimizer) for c in session.components)
        session.unread = True
        for component in session.components:
            component.watch = None
        return session

    return make


def test_steps_that_nobody_reads_are_those_that_are_read(make_session, make_unread, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine"}})
    read, unread = make_session(clip_grad_norm=0.5), make_unread(clip_grad_norm=0.5)
    for session in (read, unread):
        for window in session.windows():
            after_step(session, train_step(session, window), len(window))
    assert equal(weights(read), weights(unread))
    assert equal(state(read), state(unread))
    assert [c.lr for c in read.components] == [c.lr for c in unread.components]


@pytest.mark.parametrize("component", [0, 1])
def test_an_unread_step_that_is_not_finite_changes_nothing_and_is_said_at_the_next_log_point(
    make_unread, write_optimizer, component, capsys
) -> None:
    write_optimizer(ADAMW)
    session = make_unread(log_step=3, max_epochs=9)
    first, second, third = islice(session.windows(), 3)
    after_step(session, train_step(session, first), 1)
    handle = spoil(session, component, 5, math.nan)
    before = weights(session), state(session)
    after_step(session, train_step(session, second), 1)
    handle.remove()
    assert equal(before[0], weights(session))
    assert equal(before[1], state(session))
    assert session.skipped == 0
    assert "not finite" not in capsys.readouterr().out
    after_step(session, train_step(session, third), 1)
    assert session.skipped == 1
    assert not equal(before[0], weights(session))
    name = session.components[component].name
    assert f"warning: step 2: gradients of {name} are not finite; step skipped (" in capsys.readouterr().out


def test_a_checkpoint_knows_of_unread_steps(make_unread, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_unread(log_step=100, max_epochs=100)
    spoil(session, 0, 5, math.inf)
    after_step(session, train_step(session, next(session.windows())), 1)
    assert session.skipped == 0
    session.save(last=True)
    assert session.skipped == session.skipped_in_a_row == 1
