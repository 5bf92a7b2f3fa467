"""One optimizer step: what it averages, clips, skips and leaves alone."""

from __future__ import annotations

import traceback
from itertools import islice

import pytest
import torch
from ed_train.cli import main
from ed_train.errors import EdTrainError
from ed_train.train import skipped
from ed_train.train import train as train_module
from ed_train.train.step import forward_loss, train_step
from torch.nn.utils import get_total_norm

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


def gradients_at_step(session, window):
    """The gradients that each component's optimizer sees in one step, by name."""
    seen = {}
    for component in session.components:

        def record(optimizer, args, kwargs, component=component):
            names = zip(component.parameter_names, component.parameters, strict=True)
            seen[component.name] = {n: p.grad.clone() for n, p in names if p.grad is not None}

        component.optimizer.register_step_pre_hook(record)
    result = train_step(session, window)
    return seen, result


def first_batches(session, count):
    return list(islice(session.loader.iterate(0), count))


def test_three_frames_of_the_project_at_optimizer_step(flags, write_optimizer, monkeypatch) -> None:
    write_optimizer(ADAMW)
    frames = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        frames.append([f.name for f in traceback.extract_stack() if "/ed_train/" in f.filename])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert main([f"--{k}={v}" for k, v in {**flags, "max_steps": 1, "save_nothing": True}.items()]) == 0
    assert frames == [["main", "train", "train_step"]] * 2


def test_accumulated_gradients_are_averaged_not_summed(make_session, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_session(grad_accum=2)
    window = first_batches(session, 2)
    expected = []
    for number, batch in enumerate(window):
        forward_loss(session, batch, number).backward()
        expected.append([p.grad.clone() for p in session.components[0].parameters])
        session.unet.zero_grad()
        session.text_encoder.zero_grad()
    seen, result = gradients_at_step(session, window)
    for got, first, second in zip(seen["unet"].values(), *expected, strict=True):
        torch.testing.assert_close(got, (first + second) / 2, rtol=1e-4, atol=1e-7)
    assert result.images == 4


def test_the_last_window_of_an_epoch_is_averaged_over_what_it_has(make_session, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_session(grad_accum=3)  # 4 batches: a window of 3 and one of 1
    windows = list(session.windows())
    assert [len(window) for window in windows] == [3, 1]
    forward_loss(session, windows[1][0], 3).backward()
    alone = [p.grad.clone() for p in session.components[0].parameters]
    session.unet.zero_grad()
    session.text_encoder.zero_grad()
    session.batch_number = 3
    seen, _ = gradients_at_step(session, windows[1])
    for got, expected in zip(seen["unet"].values(), alone, strict=True):
        torch.testing.assert_close(got, expected)


def test_each_component_is_clipped_by_its_own_norm_in_every_step(make_session, write_optimizer) -> None:
    """The original clipped the text encoder's parameters through a generator that was spent after the first step."""
    write_optimizer(ADAMW)
    session = make_session(clip_grad_norm=1e-3)
    for batch in first_batches(session, 3):
        seen, result = gradients_at_step(session, [batch])
        for name in ("unet", "text_encoder"):
            assert result.grad_norms[name] > 1e-3, "the logged norm is the one before clipping"
            clipped = get_total_norm(list(seen[name].values()))
            torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_logged_gradient_norms_are_those_of_the_gradients(make_session, write_optimizer) -> None:
    """The original logged 0.0 for ever."""
    write_optimizer(ADAMW)
    session = make_session()
    seen, result = gradients_at_step(session, first_batches(session, 1))
    for name, norm in result.grad_norms.items():
        expected = torch.stack([g.norm() for g in seen[name].values()]).norm()
        torch.testing.assert_close(norm, expected)
        assert norm > 0


@pytest.mark.parametrize("name", ["lion", "adamw"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_non_finite_gradients_changes_nothing(make_session, write_optimizer, name, bad) -> None:
    write_optimizer({"base": {"optimizer": name, "lr": 1e-3}})
    session = make_session()
    first, second = first_batches(session, 2)
    train_step(session, [first])
    before = [p.clone() for c in session.components for p in c.parameters]
    handle = session.components[1].parameters[0].register_hook(lambda grad: torch.full_like(grad, bad))
    result = train_step(session, [second])
    handle.remove()
    assert result.skipped == ("text_encoder",)
    after = [p for c in session.components for p in c.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert train_step(session, [second]).skipped == ()
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > len(moved) / 2, "the optimizer is not poisoned: it goes on"


def test_many_skipped_steps_in_a_row_end_the_run_with_a_reason(make_session, write_optimizer, monkeypatch) -> None:
    write_optimizer(ADAMW)
    monkeypatch.setattr(skipped, "MAX_SKIPPED_IN_A_ROW", 3)
    session = make_session()
    session.components[0].parameters[0].register_hook(lambda grad: grad * float("nan"))
    (batch,) = first_batches(session, 1)
    with pytest.raises(EdTrainError, match=r"at step 3: .* 3 steps in a row; lower the lr.*\.jpg"):  # noqa: PT012
        for _ in range(5):
            train_module.after_step(session, train_step(session, [batch]), 0)
    assert session.skipped == 3


def test_frozen_layers_have_no_gradient_no_state_and_do_not_change(make_session, write_optimizer) -> None:
    """The original computed and accumulated the gradients of frozen layers for ever."""
    write_optimizer({**ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 1}})
    session = make_session()
    frozen = {n: p for n, p in session.text_encoder.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in frozen.items()}
    assert any("layers.2." in n for n in frozen)
    assert not any("layers.3." in n for n in frozen)
    gradient_seen = []
    for batch in first_batches(session, 3):
        forward_loss(session, batch, 0).backward()
        gradient_seen += [n for n, p in frozen.items() if p.grad is not None]
        train_step(session, [batch])
    assert gradient_seen == []
    assert all(torch.equal(before[n], p) for n, p in frozen.items())
    optimizer = session.components[1].optimizer
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in session.text_encoder.parameters() if p.requires_grad}
    assert {id(p) for p in optimizer.state} <= held


@pytest.mark.parametrize("alone", ["unet", "text_encoder"])
def test_one_component_alone(make_session, write_optimizer, alone) -> None:
    write_optimizer(ADAMW)
    switch = {"unet": "disable_textenc_training", "text_encoder": "disable_unet_training"}[alone]
    session = make_session(**{switch: True}, cache_text_embeddings=False)
    before = {n: [p.clone() for p in m.parameters()] for n, m in modules(session).items()}
    train_step(session, first_batches(session, 1))
    for name, module in modules(session).items():
        changed = any(not torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True))
        assert changed == (name == alone)
        assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("switch", ["disable_textenc_training", "disable_unet_training"])
def test_what_does_not_train_computes_in_autocast_as_well(make_session, write_optimizer, switch) -> None:
    write_optimizer(ADAMW)
    bf16 = {"disable_amp": False, "mixed_precision": "bf16"}
    session = make_session(**{switch: True}, **bf16, cache_text_embeddings=False)
    computed = []
    for layer in (session.unet.mid_block.resnets[0].conv1, session.text_encoder.encoder.layers[0].mlp.fc1):
        layer.register_forward_hook(lambda layer, inputs, output: computed.append(output.dtype))
    forward_loss(session, first_batches(session, 1)[0], 0).backward()
    assert computed == [torch.bfloat16] * 2


def modules(session):
    return {"unet": session.unet, "text_encoder": session.text_encoder}


@pytest.mark.parametrize("clip_skip", [0, 2, 3])
def test_every_trained_parameter_gets_a_gradient(make_session, write_optimizer, clip_skip) -> None:
    write_optimizer(ADAMW)
    session = make_session(clip_skip=clip_skip)
    forward_loss(session, first_batches(session, 1)[0], 0).backward()
    for component in session.components:
        without = [n for n, p in zip(component.parameter_names, component.parameters, strict=True) if p.grad is None]
        assert without == []


def test_gradient_checkpointing_gives_the_same_gradients(make_session, write_optimizer) -> None:
    write_optimizer(ADAMW)
    seen = []
    for checkpointing in (False, True):
        session = make_session(gradient_checkpointing=checkpointing)
        seen.append(gradients_at_step(session, first_batches(session, 1))[0])
    for name in ("unet", "text_encoder"):
        for plain, recomputed in zip(seen[0][name].values(), seen[1][name].values(), strict=True):
            torch.testing.assert_close(plain, recomputed)


def test_a_runt_batch_counts_for_less(make_session, write_optimizer) -> None:
    write_optimizer(ADAMW)
    session = make_session(batch_size=3)  # 8 pictures: the third batch has 2 of its own and a repeat
    batches = first_batches(session, 3)
    assert sorted(b.loss_scale for b in batches) == [pytest.approx((2 / 3) ** 1.5), 1.0, 1.0]
    runt = min(batches, key=lambda b: b.loss_scale)
    scaled = forward_loss(session, runt, 0)
    whole = forward_loss(session, type(runt)(**{**vars(runt), "loss_scale": 1.0}), 0)
    torch.testing.assert_close(scaled, whole * (2 / 3) ** 1.5)
