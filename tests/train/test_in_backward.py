"""Steps in the backward pass: the same weights, with a few gradients at a time; and what they cannot do."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from ed_train.errors import ConfigError, PluginError
from ed_train.train import partial_steps
from ed_train.train.partial_steps import check_partial_steps
from ed_train.train.step import LOSS, forward_loss, train_step
from train.resuming import assert_equal, assert_equal_runs

BOTH = {"base": {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine"}, "text_encoder_overrides": {"lr": 1e-4}}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that the micro model has many of them."""
    monkeypatch.setattr(partial_steps, "PIECE", 20_000)


def first_batches(session, count):
    return list(islice(session.loader.iterate(0), count))


def trained(session, steps=2):
    results = [train_step(session, [batch]) for batch in first_batches(session, steps)]
    return results, [p.detach().clone() for c in session.components for p in c.parameters]


@pytest.mark.parametrize(
    ("name", "more"), [("adamw", {"gradient_checkpointing": True}), ("adamw8bit", {}), ("lion", {})]
)
def test_nothing_changes_but_the_order(make_session, write_optimizer, name, more) -> None:
    write_optimizer({**BOTH, "base": {**BOTH["base"], "optimizer": name}})
    plain, in_backward = make_session(**more), make_session(optimizer_in_backward=True, **more)
    (expected, weights), (results, got) = trained(plain), trained(in_backward)
    assert all(torch.equal(a, b) for a, b in zip(weights, got, strict=True))
    for a, b in zip(expected, results, strict=True):
        assert (a.loss, a.grad_norms, a.skipped) == (b.loss, b.grad_norms, ())
    for a, b in zip(plain.components, in_backward.components, strict=True):
        assert a.optimizer.state
        assert_equal(a.optimizer.state_dict(), b.optimizer.state_dict())
        assert a.lr == b.lr < a.config.options.lr


def test_a_few_gradients_at_a_time(make_session, write_optimizer) -> None:
    write_optimizer({**BOTH, "text_encoder_freezing": {"unfreeze_last_n_layers": 3}})
    session = make_session(optimizer_in_backward=True)
    parameters = [p for c in session.components for p in c.parameters]
    alive = []
    for component in session.components:
        component.optimizer.register_step_pre_hook(
            lambda *_: alive.append(sum(p.grad.numel() for p in parameters if p.grad is not None))
        )
    train_step(session, first_batches(session, 1))
    largest = max(p.numel() for p in parameters)
    assert (
        max(alive) < len(session.components) * partial_steps.PIECE + largest < sum(p.numel() for p in parameters) / 1.5
    )
    assert len(alive) > 10
    assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize(("name", "bad"), [("lion", float("nan")), ("adamw", float("inf"))])
def test_a_parameter_whose_gradient_is_not_finite_stays_as_it_is(make_session, write_optimizer, name, bad) -> None:
    write_optimizer({"base": {"optimizer": name, "lr": 1e-3}})
    session = make_session(optimizer_in_backward=True)
    first, second = first_batches(session, 2)
    train_step(session, [first])
    text_encoder = session.components[1]
    hurt = text_encoder.parameters[5]
    before = [p.clone() for p in text_encoder.parameters]
    state = {key: value.clone() for key, value in text_encoder.optimizer.state[hurt].items()}
    steps = text_encoder.lr_scheduler.last_epoch
    handle = hurt.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), bad))
    result = train_step(session, [second])
    handle.remove()
    assert result.skipped == ("text_encoder",)
    assert text_encoder.lr_scheduler.last_epoch == steps
    same = [torch.equal(a, b) for a, b in zip(before, text_encoder.parameters, strict=True)]
    assert same[5]
    assert sum(same) == 1, "the others have moved"
    assert_equal(state, dict(text_encoder.optimizer.state[hurt]))
    assert train_step(session, [second]).skipped == ()
    assert not torch.equal(before[5], hurt), "it is not poisoned: it goes on"


def test_the_run_says_what_stayed(make_session, write_optimizer, capsys) -> None:
    from ed_train.train.train import after_step

    write_optimizer(BOTH)
    session = make_session(optimizer_in_backward=True)
    session.components[0].parameters[0].register_hook(lambda grad: grad * float("nan"))
    after_step(session, train_step(session, first_batches(session, 1)), 1)
    said = "gradients of unet are not finite; the parameters that have them stay as they are ("
    assert f"warning: step 1: {said}" in capsys.readouterr().out


def test_after_a_loss_that_is_not_finite_nothing_steps(make_session, write_optimizer, monkeypatch) -> None:
    write_optimizer(BOTH)
    session = make_session(optimizer_in_backward=True)
    (batch,) = first_batches(session, 1)
    before = [p.clone() for c in session.components for p in c.parameters]
    monkeypatch.setattr(session.diffusion, "loss", lambda prediction, *_: prediction.sum() * float("inf"))
    assert train_step(session, [batch]).skipped == (LOSS,)
    after = [p for c in session.components for p in c.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_other_backward_passes_step_nothing(make_session, write_optimizer) -> None:
    write_optimizer(BOTH)
    session = make_session(optimizer_in_backward=True)
    (batch,) = first_batches(session, 1)
    train_step(session, [batch])
    before = [p.clone() for c in session.components for p in c.parameters]
    forward_loss(session, batch, 0).backward()
    after = [p for c in session.components for p in c.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is not None for p in after)


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer_in_backward": True}, {"weights_dtype": "bf16", "disable_amp": False, "mixed_precision": "bf16"}],
    ids=str,
)
def test_a_step_that_fails_is_the_plugins_error(make_session, write_optimizer, monkeypatch, settings) -> None:
    write_optimizer(BOTH)

    def fail(self, *args, **kwargs):
        raise RuntimeError("out of order")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    session = make_session(**settings)
    with pytest.raises(
        PluginError, match=r"^ed-train-adamw [^:]*: a step of adamw failed: RuntimeError: out of order$"
    ):
        train_step(session, first_batches(session, 1))
    held = [p for group in session.components[0].optimizer.param_groups for p in group["params"]]
    assert len(held) == len(session.components[0].parameters), "it holds all of its parameters again"


def refusal(make_session, **settings) -> str:
    with pytest.raises(ConfigError) as error:
        make_session(optimizer_in_backward=True, **settings)
    (problem,) = error.value.problems
    return str(problem)


def test_what_it_contradicts_is_said_all_at_once(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "prodigy"}, "text_encoder_overrides": {"optimizer": "dadapt_adam"}})
    settings = {"grad_accum": 2, "clip_grad_norm": 1, "mixed_precision": "fp16", "disable_amp": False}
    message = refusal(make_session, **settings)
    assert message.startswith("--optimizer_in_backward: contradicts grad_accum 2 (")
    for other in (
        "clip_grad_norm 1.0 (",
        "float16 autocast (",
        "prodigy (its step needs",
        "dadapt_adam (its step needs",
    ):
        assert f" and {other}" in message
    assert "; these do not: adamw, adamw8bit, lion, lion8bit, " in message
    assert message.endswith("; change that, or leave optimizer_in_backward out")


def test_one_component_alone_may_have_an_optimizer_that_can(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "lion"}, "text_encoder_overrides": {"optimizer": "prodigy"}})
    assert "contradicts prodigy (" in refusal(make_session)
    assert make_session(optimizer_in_backward=True, disable_textenc_training=True).components[0].partial_steps


def test_what_only_the_machine_decides(make_session, write_optimizer) -> None:
    write_optimizer(BOTH)
    run = make_session(optimizer_in_backward=True).run
    check_partial_steps(run, 1, "no")
    with pytest.raises(ConfigError) as error:
        check_partial_steps(run, 2, "fp16")
    (problem,) = error.value.problems
    assert str(problem).startswith("optimizer_in_backward: contradicts 2 processes (they exchange gradients only when")
    assert " and float16 autocast (its gradient scaler" in problem.message
    plain = replace(run, train=replace(run.train, optimizer_in_backward=False))
    check_partial_steps(plain, 2, "fp16")


@pytest.mark.slow
def test_a_whole_run_interrupted_is_the_plain_run(train_and_stop, write_optimizer) -> None:
    write_optimizer({**BOTH, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}})
    settings = {"save_optimizer": True, "max_epochs": 2, "ema_decay_rate": 0.9}
    plain = train_and_stop("plain", **settings)
    assert_equal_runs(plain, train_and_stop("parts", at=(3,), optimizer_in_backward=True, **settings))
