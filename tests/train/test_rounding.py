"""Weights in bfloat16: steps are rounded without a bias, the same for everyone, and saved as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from ed_train.train import partial_steps, rounding
from ed_train.train.rounding import RoundingNoise, round_stochastically
from ed_train.train.step import train_step
from safetensors.torch import load_file
from train.resuming import WEIGHTS, assert_equal_runs

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-6}}
BF16 = {"weights_dtype": "bf16", "disable_amp": False, "mixed_precision": "bf16"}


def rounded(values: torch.Tensor, name: str = "weight", seed: int = 1, step: int = 0) -> torch.Tensor:
    into = torch.empty_like(values, dtype=torch.bfloat16)
    round_stochastically(values.clone(), into, name, RoundingNoise(seed, step))
    return into


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [1 / 65536, 0.01, 0.3, 0.5, 0.999])
def test_the_expectation_is_the_exact_value(sign, share) -> None:
    low, high = sign * 0.02, sign * 0.02
    low = float(torch.tensor(low, dtype=torch.bfloat16))
    high = float(torch.tensor(low).view(torch.int32).add(1 << 16).view(torch.float32))
    count = 1 << 21
    values = torch.full((count,), low + share * (high - low))
    found = rounded(values).double()
    assert set(found.unique().tolist()) <= {low, high}
    went = float((found == high).double().mean())
    assert went == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5)


def test_what_bfloat16_can_hold_stays() -> None:
    exact = torch.randn(1 << 16).bfloat16()
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 2.0**-133, 3.3895e38]).bfloat16()
    for values in (exact, special):
        assert torch.equal(rounded(values.float()).view(torch.int16), values.view(torch.int16))


def test_the_noise_is_a_function_of_seed_step_and_name() -> None:
    values = torch.randn(3, 1000)
    first = rounded(values)
    assert torch.equal(first, rounded(values))
    for other in ({"seed": 2}, {"step": 1}, {"name": "bias"}):
        assert not torch.equal(first, rounded(values, **other)), other


def test_no_two_elements_share_their_noise() -> None:
    """One tile of random bits serves all pieces of all parameters: their noise must not be correlated for that."""
    drawn = []
    for step in range(40):
        noise = RoundingNoise(1, step)
        drawn.append(torch.stack([*noise.pieces("a", 4 * rounding.TILE, torch.device("cpu")),
                                   *noise.pieces("b", 2 * rounding.TILE, torch.device("cpu"))])[:, :5000])  # fmt: skip
    numbers = torch.stack(drawn, dim=1).double().flatten(1)  # [pieces, steps x elements]
    assert numbers.mean().abs() < 5 * 2**16 / (12 * numbers.numel()) ** 0.5
    # Two pieces share a tile in one step, and differ by a number of their own: it is over steps that they average out.
    correlation = torch.corrcoef(numbers).fill_diagonal_(0).abs().max()
    assert correlation < 0.6
    assert len(numbers[0].unique()) > 60_000


def session_after(make_session, steps: int = 6, **settings):
    session = make_session(max_epochs=3, **settings)
    before = [p.detach().double() for c in session.components for p in c.parameters]
    for _ in range(steps):
        for batch in islice(session.loader.iterate(session.epoch), 1):
            train_step(session, [batch])
        session.step += 1
    after = [p.detach().double() for c in session.components for p in c.parameters]
    return session, torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)])


def test_steps_of_a_millionth_move_the_weights(make_session, write_optimizer, monkeypatch) -> None:
    """On the average by as much as in float32, where rounding to the nearest undoes nearly all of it."""
    write_optimizer(ADAMW)
    exact = session_after(make_session, disable_amp=False, mixed_precision="bf16")[1]

    def share_of_the_way(in_backward: bool) -> float:
        moved = session_after(make_session, optimizer_in_backward=in_backward, **BF16)[1]
        return float(moved @ exact / (exact @ exact))

    assert share_of_the_way(False) == pytest.approx(1, abs=0.1)
    assert share_of_the_way(True) == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(partial_steps, "round_stochastically", lambda values, into, *_: into.copy_(values))
    assert share_of_the_way(False) < 0.2


@pytest.mark.parametrize("in_backward", [False, True])
def test_only_the_weights_are_in_bfloat16(make_session, write_optimizer, in_backward) -> None:
    write_optimizer({**ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}})
    session, _ = session_after(make_session, 1, optimizer_in_backward=in_backward, **BF16)
    for component in session.components:
        for name, parameter in component.module.named_parameters():
            narrow = parameter.requires_grad and parameter.dim() > 1
            assert parameter.dtype == (torch.bfloat16 if narrow else torch.float32), name
        states = [t for state in component.optimizer.state.values() for t in state.values()]
        assert len(states) == 3 * len(component.parameters)
        assert {t.dtype for t in states} == {torch.float32}


def test_a_checkpoint_is_float32_and_what_does_not_train_is_untouched(
    run_cli, write_optimizer, flags, tmp_path
) -> None:
    from diffusers import UNet2DConditionModel

    write_optimizer({"base": {"optimizer": "lion", "lr": 1e-3}, "unet_freezing": ["freeze *attentions*"]})
    assert run_cli(**BF16, optimizer_in_backward=True, run_name="r", disable_textenc_training=True, max_steps=1) == 0
    (folder,) = (tmp_path / "logs" / "r" / "ckpts").iterdir()
    before, after = (load_file(Path(f) / WEIGHTS[0]) for f in (flags["resume_ckpt"], folder))
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32
        if "attentions" in name:
            assert torch.equal(tensor, before[name])
        elif tensor.dim() > 1:
            assert torch.equal(tensor, tensor.bfloat16().float())
            assert not torch.equal(tensor, before[name].bfloat16().float())
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in after.items())


def test_the_average_is_float32_and_survives_being_drawn_from(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    session, _ = session_after(make_session, 1, ema_decay_rate=0.9, **BF16)
    ema = session.ema
    ema.update()
    averages = [a.clone() for a in ema.averages]
    weights = [p.detach().clone() for p in ema.parameters]
    assert {a.dtype for a in averages} == {torch.float32}
    assert any(not torch.equal(a, a.bfloat16().float()) for a in averages)
    with ema.in_use():
        assert all(torch.equal(p, a.to(p.dtype)) for p, a in zip(ema.parameters, averages, strict=True))
    assert all(torch.equal(p, w) and p.dtype == w.dtype for p, w in zip(ema.parameters, weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, averages, strict=True))


def test_samples_begin_with_noise_in_float32(make_session, write_optimizer, tmp_path, flags, monkeypatch) -> None:
    from diffusers import StableDiffusionPipeline

    (tmp_path / "p.txt").write_text("a cat")
    flags["sample_prompts"] = str(tmp_path / "p.txt")
    write_optimizer(ADAMW)
    session = make_session(sample_steps=1, **BF16)
    seen = []
    step = StableDiffusionPipeline.__call__
    monkeypatch.setattr(
        StableDiffusionPipeline, "__call__", lambda self, **given: seen.append(given["latents"]) or step(self, **given)
    )
    session.sample("now")
    assert {noise.dtype for noise in seen} == {torch.float32}
    assert list((session.output.folder / "samples").glob("now-*.jpg"))


def test_what_it_needs_is_said(run_cli, write_optimizer, capsys, monkeypatch) -> None:
    write_optimizer({"base": {"optimizer": "prodigy"}})
    assert run_cli(weights_dtype="bf16") == 2
    message = capsys.readouterr().err
    assert "error: --weights_dtype: contradicts disable_amp (computing with bfloat16 weights needs bfloat16" in message
    assert " and prodigy (its step needs all parameters at once; these do not: adamw, " in message
    write_optimizer(ADAMW)
    monkeypatch.setattr("ed_train.train.precision._cpu_has_bf16", lambda: False)
    assert run_cli(weights_dtype="bf16", disable_amp=None) == 2
    message = capsys.readouterr().err
    assert "error: --weights_dtype: needs bfloat16 autocast, and mixed_precision auto means no autocast on" in message


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(train_and_stop, write_optimizer) -> None:
    base = {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine"}
    write_optimizer({"base": base, "text_encoder_overrides": {"optimizer": "lion8bit"}})
    settings = {**BF16, "disable_amp": "false", "save_optimizer": True, "ema_decay_rate": 0.9, "grad_accum": 2}
    settings |= {"clip_grad_norm": 1, "max_epochs": 2}
    assert_equal_runs(train_and_stop("whole", **settings), train_and_stop("parts", at=(1, 3), **settings))


EACH_RANK = """
import hashlib, sys
from pathlib import Path
from ed_train.config.load import load_config
from ed_train.registry import load_registry
from ed_train.train.setup import start
from ed_train.train.step import train_step

session, _ = start(load_config(dict(word[2:].split("=", 1) for word in sys.argv[2:]), load_registry()))
windows = session.windows()
for _ in range(2):
    train_step(session, next(windows))
    session.count(1)
windows.close()
digest = hashlib.sha256()
for component in session.components:
    for parameter in component.parameters:
        digest.update(parameter.detach().float().numpy().tobytes())
Path(sys.argv[1], f"rank{session.accelerator.process_index}").write_text(digest.hexdigest())
session.close()
"""


@pytest.mark.slow
def test_all_processes_round_alike(flags, write_optimizer, tmp_path) -> None:
    from train.test_processes import free_port

    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    (tmp_path / "each_rank.py").write_text(EACH_RANK)
    settings = {**flags, **BF16, "disable_amp": "false", "batch_size": 1}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += [str(tmp_path / "each_rank.py"), str(tmp_path), *(f"--{k}={v}" for k, v in settings.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    digests = [path.read_text() for path in tmp_path.glob("rank*")]
    assert len(digests) == 2
    assert len(set(digests)) == 1
