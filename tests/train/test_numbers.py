"""NaN and infinity: found, named, kept away from weights, optimizer state and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train.errors import EdTrainError
from ed_train.registry import load_registry
from ed_train.train import train as loop
from ed_train.train.noise import Diffusion
from ed_train.train.step import LOSS, train_step

USABLE = [o.spec.name for o in load_registry() if "cuda" not in o.spec.devices]
ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


@pytest.fixture
def spoil_loss(monkeypatch) -> Callable[..., None]:
    """``spoil_loss(value, batches)``: the loss of these batches, counted from 0, is that value."""

    def spoil(value: float, batches: range) -> None:
        original = Diffusion.loss
        count = iter(range(1000))

        def loss(self: Any, *args: Any) -> torch.Tensor:
            real: torch.Tensor = original(self, *args)
            return real * value if next(count) in batches else real

        monkeypatch.setattr(Diffusion, "loss", loss)

    return spoil


def weights(session: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for c in session.components for p in c.parameters]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_caught_before_backward(
    value, spoil_loss, make_session, write_optimizer, monkeypatch
) -> None:
    write_optimizer(ADAMW)
    session = make_session(grad_accum=2)
    spoil_loss(value, range(1, 2))
    calls = []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (calls.append(a), backward(*a, **k))[1])
    windows = session.windows()
    before, window = weights(session), next(windows)
    result = train_step(session, window)
    assert result.skipped == (LOSS,)
    assert result.files == window[1].images, "the pictures of the batch, not of the whole window"
    assert len(calls) == 1, "the first batch's"
    assert all(torch.equal(a, b) for a, b in zip(before, weights(session), strict=True))
    assert not any(c.optimizer.state for c in session.components)
    assert train_step(session, next(windows)).skipped == (), "the gradients of the batch before it are gone"


def test_a_window_that_ends_early_leaves_the_noise_of_later_batches_as_it_is(
    spoil_loss, make_session, write_optimizer
) -> None:
    write_optimizer(ADAMW)
    session = make_session(grad_accum=2)
    spoil_loss(math.nan, range(1))
    assert train_step(session, next(session.windows())).skipped == (LOSS,)
    assert session.batch_number == 2, "the second batch has not been looked at, and has its number all the same"


def one_element_infinite(gradient: torch.Tensor) -> torch.Tensor:
    spoilt = gradient.clone()
    spoilt.view(-1)[0] = math.inf
    return spoilt


def test_pictures_of_other_processes_are_named_too(make_session, write_optimizer, tmp_path) -> None:
    """Gradients have been exchanged: any of the pictures may be what made them infinite."""
    write_optimizer(ADAMW)
    session = make_session()
    (batch,) = next(session.windows())
    batch = replace(batch, all_images=(*batch.images, tmp_path / "of another.jpg"))
    session.components[0].parameters[0].register_hook(one_element_infinite)
    result = train_step(session, [batch])
    assert result.skipped == ("unet",)
    assert result.files == batch.all_images
    assert result.images == 3


@pytest.mark.parametrize("optimizer", USABLE)
def test_no_optimizer_is_poisoned_by_a_step_that_was_not_finite(optimizer, make_session, write_optimizer) -> None:
    free = load_registry().find(optimizer).spec.learning_rate_free
    write_optimizer({"base": {"optimizer": optimizer, **({"d0": 1e-3} if free else {"lr": 1e-4})}})
    session = make_session(max_epochs=3)
    windows = session.windows()
    train_step(session, next(windows))
    parameter = session.components[0].parameters[0]
    hook = parameter.register_hook(one_element_infinite)
    assert train_step(session, next(windows)).skipped == ("unet",)
    hook.remove()
    before = weights(session)
    for _ in range(2):
        assert train_step(session, next(windows)).skipped == ()
    after = weights(session)
    assert all(torch.isfinite(tensor).all() for tensor in after)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved > len(before) / 2


def test_the_run_says_which_pictures_and_goes_on(spoil_loss, run_cli, write_optimizer, photos, capsys) -> None:
    write_optimizer(ADAMW)
    spoil_loss(math.nan, range(1, 2))
    assert run_cli(save_nothing=True) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "not finite; step skipped" in line)
    assert line.startswith("warning: step 2: the loss is not finite; step skipped (")
    named = line.partition("(")[2].rstrip(")").split(", ")
    assert len(named) == 2
    assert all((photos / name).exists() for name in named)
    assert "warning: 1 steps were skipped" in out


def test_a_run_whose_loss_stays_nan_ends_and_names_the_last_good_checkpoint(
    spoil_loss, run_cli, write_optimizer, tmp_path, capsys
) -> None:
    write_optimizer(ADAMW)
    spoil_loss(math.nan, range(4, 1000))
    assert run_cli(max_epochs=9, save_every_n_epochs=1) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "error: training stopped at step 14: the loss is not finite, 10 steps in a row; lower the lr" in captured.err
    (folder,) = (tmp_path / "logs").iterdir()
    names = sorted(path.name for path in (folder / "ckpts").iterdir())
    assert names[0] == "myproj-ep01-gs00004"


def test_weights_that_are_not_finite_are_never_written(make_session, write_optimizer, tmp_path) -> None:
    write_optimizer(ADAMW)
    session = make_session()
    windows = session.windows()
    loop.after_step(session, train_step(session, next(windows)), 1)
    session.save(last=True)
    good = session.output.saved[-1]
    loop.after_step(session, train_step(session, next(windows)), 1)
    with torch.no_grad():
        session.components[0].parameters[5].view(-1)[3] = math.nan
    with pytest.raises(EdTrainError) as error:
        session.save(last=True)
    name = session.components[0].parameter_names[5]
    assert f"unet has NaN or infinite weights and is not saved: {name}" in str(error.value)
    assert str(good) in str(error.value)
    assert [path for path in good.parent.iterdir() if not path.name.startswith(".")] == [good]


def test_a_picture_that_the_vae_cannot_encode_is_left_out(
    run_cli, write_optimizer, monkeypatch, capsys, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    write_optimizer(ADAMW)
    original = AutoencoderKL.encode
    count = iter(range(1000))

    def encode(self: Any, pixels: torch.Tensor) -> Any:
        encoded = original(self, pixels)
        if next(count) == 0:
            encoded.latent_dist.mean[0] = math.nan
        return encoded

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    assert run_cli(save_nothing=True, cache_dir=tmp_path / "cache") == 0
    assert "picture not used: " in (out := capsys.readouterr().out)
    assert "the VAE gives values that are not finite (NaN)" in out
