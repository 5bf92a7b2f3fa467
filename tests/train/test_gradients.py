"""Whether gradients are finite: found in whatever way is cheapest, always with the same result."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from ed_train.train.gradients import supports_unread
from ed_train.train.step import train_step
from ed_train.train.train import after_step

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


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


def test_a_gradient_that_was_spoilt_in_an_earlier_batch_of_the_window_is_found(make_session, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_session(grad_accum=2, log_step=100, max_epochs=100)
    handle = spoil(session, 1, 5, math.inf)
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


def test_the_size_of_the_state_is_logged_when_there_is_one(make_session, write_optimizer, monkeypatch) -> None:
    """fp16's first steps are skipped, and in them there is none."""
    write_optimizer(ADAMW)
    session = make_session()
    logged: list[Any] = []
    monkeypatch.setattr(session.metrics.events, "write", lambda scalars, step: logged.append(scalars))
    handle = spoil(session, 0, 5, math.nan)
    for window in islice(session.windows(), 3):
        after_step(session, train_step(session, window), 1)
        handle.remove()
    sizes = [scalars.get("optimizer_state_mb/unet") for scalars in logged]
    assert (sizes[0], sizes[1] > 1, sizes[2]) == (None, True, None)


def test_a_checkpoint_knows_of_unread_steps(make_unread, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_unread(log_step=100, max_epochs=100)
    spoil(session, 0, 5, math.inf)
    after_step(session, train_step(session, next(session.windows())), 1)
    assert session.skipped == 0
    session.save(last=True)
    assert session.skipped == session.skipped_in_a_row == 1
