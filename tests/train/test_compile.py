"""``compile``: the same training, from a UNet that stays itself; and as it is, with a reason, where that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ed_train.train.step import train_step
from safetensors.torch import load_file

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


@pytest.fixture
def with_backend(monkeypatch):
    """``with_backend(function)``: torch.compile traces as always, and gives its graphs to this function."""
    original = torch.compile

    def use(backend: Any) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, **kwargs: original(function, backend=backend, **kwargs))

    return use


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_and_saves_the_same_names(
    run_cli, write_optimizer, with_backend, tmp_path, micro_model, capsys
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
        assert run_cli(compile=compiled, run_name=name, max_steps=3, sample_steps=0) == 0
        (checkpoint,) = (tmp_path / "logs" / name / "ckpts").iterdir()
        found.append(load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors"))
    assert graphs, "the UNet was compiled"
    assert "compiled the UNet in " in capsys.readouterr().out
    before = load_file(micro_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert found[0].keys() == found[1].keys() == before.keys()
    for key, weights in found[0].items():
        torch.testing.assert_close(weights, found[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_unet_as_it_is(make_session, write_optimizer, with_backend, capsys) -> None:
    write_optimizer(ADAMW)

    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nhere")

    with_backend(backend)
    session, plain = make_session(compile=True), make_session()
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
