"""``compile``: the same training, from a UNet that stays itself; and as it is, with a reason, where that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from ed_train.config.ema import ema_folder
from ed_train.train.step import train_step
from make_photos import make_photos
from safetensors.torch import load_file
from train.resuming import WEIGHTS, assert_equal_runs

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


@pytest.fixture(scope="module")
def shallow_model(tmp_path_factory: pytest.TempPathFactory, micro_model: Path) -> Path:
    """The micro model with a UNet of one level: tracing takes a time in proportion to the number of modules."""
    folder = tmp_path_factory.mktemp("models") / "shallow"
    shutil.copytree(micro_model, folder)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        attention_head_dim=1,
        norm_num_groups=8,
    )
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def mixed_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of five sizes at 128 pixels."""
    folder = tmp_path_factory.mktemp("mixed")
    make_photos(folder, count=16, kind="mixed")
    return folder


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """What is compiled, and counted, of other runs in this process is forgotten, as in a new process."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def with_backend(monkeypatch):
    """``with_backend(function)``: torch.compile traces as always, and gives its graphs to this function."""
    original = torch.compile

    def use(backend: Any, **more: Any) -> None:
        changed = {"backend": backend, **more}
        monkeypatch.setattr(torch, "compile", lambda function, **kwargs: original(function, **{**kwargs, **changed}))

    return use


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_and_saves_the_same_names(
    run_cli, write_optimizer, with_backend, tmp_path, shallow_model, capsys
) -> None:
    write_optimizer(ADAMW)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with_backend(backend)
    found = []
    for compiled in ("true", "false"):
        name = f"compiled-{compiled}"
        assert run_cli(resume_ckpt=shallow_model, compile=compiled, run_name=name, max_steps=3, sample_steps=0) == 0
        (checkpoint,) = (tmp_path / "logs" / name / "ckpts").iterdir()
        found.append(load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors"))
    assert graphs, "the UNet was compiled"
    assert "compiled the UNet in " in capsys.readouterr().out
    before = load_file(shallow_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert found[0].keys() == found[1].keys() == before.keys()
    for key, weights in found[0].items():
        torch.testing.assert_close(weights, found[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_unet_as_it_is(
    make_session, write_optimizer, with_backend, shallow_model, capsys, monkeypatch
) -> None:
    write_optimizer(ADAMW)
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("ed_train.train.metrics.time", clock)

    def backend(graph: Any, inputs: Any) -> Any:
        clock.now += 100
        raise RuntimeError("no compiler\nhere")

    with_backend(backend)
    session, plain = (make_session(resume_ckpt=shallow_model, compile=compiled) for compiled in (True, False))
    assert session.metrics._since == clock.now >= 100, "the first throughput that is logged is without compiling"
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("warning: compile: "))
    assert "the UNet runs without torch.compile, which failed: " in line
    assert "RuntimeError: no compiler here" in line
    assert "note: compile: the first step waits for minutes until the UNet is compiled" in out
    results = [train_step(s, next(s.windows())) for s in (session, plain)]
    assert torch.equal(results[0].loss, results[1].loss), "the trial has left no trace"
    pairs = zip(session.unet.parameters(), plain.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_compile_says_where_it_has_no_effect(make_session, write_optimizer, capsys) -> None:
    write_optimizer(ADAMW)
    make_session(compile=True, disable_unet_training=True)
    out = capsys.readouterr().out
    assert "note: compile has no effect: the UNet does not train" in out
    assert "compiled the UNet" not in out


@pytest.mark.slow
def test_compiled_runs_of_every_kind_go_on_bit_for_bit(
    write_optimizer, with_backend, train_and_stop, shallow_model, mixed_photos, tmp_path, capsys
) -> None:
    """Pictures of five sizes, a moving average, gradient checkpointing, validation and samples, in two runs."""
    write_optimizer(ADAMW)
    (tmp_path / "prompts.json").write_text(json.dumps({"samples": [{"prompt": "a"}], "num_inference_steps": 1}))
    (tmp_path / "validation.json").write_text(json.dumps({"every_n_epochs": 1}))
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with_backend(backend)
    settings = {
        "resume_ckpt": shallow_model,
        "data_root": mixed_photos,
        "resolution": 128,
        "compile": True,
        "ema_decay_rate": 0.5,
        "gradient_checkpointing": True,
        "validation_config": tmp_path / "validation.json",
        "sample_prompts": tmp_path / "prompts.json",
        "sample_steps": 4,
    }
    whole = train_and_stop("whole", **settings)
    assert len(graphs) == 1, "of all sizes"
    parts = train_and_stop("parts", at=(3,), **settings)
    out = capsys.readouterr().out
    assert out.count("compiled the UNet for 5 sizes in ") == 3
    assert "warning" not in out.lower()
    assert_equal_runs(whole, parts)
    names = load_file(shallow_model / WEIGHTS[0]).keys()
    for folder in (parts, ema_folder(parts)):
        assert load_file(folder / WEIGHTS[0]).keys() == names
    assert "_orig_mod" not in (parts / "manifest.json").read_text()


@pytest.mark.slow
def test_a_compiled_backward_pass_steps_the_same_weights(make_session, write_optimizer, with_backend, shallow_model):
    write_optimizer(ADAMW)
    with_backend("aot_eager")  # whose backward pass is one function
    weights = []
    for in_backward in (True, False):
        session = make_session(resume_ckpt=shallow_model, compile=True, optimizer_in_backward=in_backward)
        assert session.unet._compiled_call_impl
        for window, _ in zip(session.windows(), range(2), strict=False):
            assert not train_step(session, window).skipped
        weights.append([p.detach().clone() for c in session.components for p in c.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.slow
def test_sizes_beyond_dynamos_limit_run_as_they_are(
    make_session, write_optimizer, with_backend, shallow_model, mixed_photos, monkeypatch, capsys
) -> None:
    write_optimizer(ADAMW)
    with_backend("eager", dynamic=False)  # so that each size needs code of its own
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    more = {"resume_ckpt": shallow_model, "data_root": mixed_photos, "resolution": 128}
    session, plain = make_session(compile=True, **more), make_session(**more)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: compile: "))
    assert line == "warning: compile: batches of some sizes run without torch.compile, which makes 1 versions at most"
    call = session.unet._compiled_call_impl
    assert len(call.beyond_limit) == len(session.loader.sizes) - 1
    for windows in zip(session.windows(), plain.windows(), strict=True):
        losses = [train_step(s, window).loss for s, window in zip((session, plain), windows, strict=True)]
        torch.testing.assert_close(*losses)
    assert "warning" not in capsys.readouterr().out
