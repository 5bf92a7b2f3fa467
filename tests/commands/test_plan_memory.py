"""``--plan-memory``: its numbers are those of a real step, for every optimizer, at the size of real models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train.train.session import Session
from ed_train.train.step import train_step

SD15 = ({"cross_attention_dim": 768, "attention_head_dim": 8}, {"hidden_size": 768, "num_hidden_layers": 12})
SD21 = (
    {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"},
)
UNET = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 64}
PARAMETERS = {"sd15": (859_520_964, 123_060_480), "sd21": (865_910_724, 340_387_840)}
"""Of the UNet and the text encoder, as published."""


def configuration_only(micro_model: Path, folder: Path, version: str) -> Path:
    """A diffusers folder with the numbers of a published model and no weights."""
    unet, text_encoder = SD15 if version == "sd15" else SD21
    text_encoder = {"num_attention_heads": 12, **text_encoder, "intermediate_size": 4 * text_encoder["hidden_size"]}
    shutil.copytree(micro_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, numbers in (("unet", {**UNET, **unet}), ("text_encoder", text_encoder)):
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **numbers}))
    return folder


def bytes_after_two_steps(session: Session) -> dict[str, dict[str, int]]:
    """What lies in memory for each component: the sizes of real tensors, each piece of memory once."""
    gradients = {}

    def count_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients[optimizer] = sum(p.grad.nbytes for group in optimizer.param_groups for p in group["params"])

    for component in session.components:
        component.optimizer.register_step_pre_hook(count_gradients)
    windows = session.windows()
    for _ in range(2):
        train_step(session, next(windows))
    windows.close()
    found = {}
    for component in session.components:
        state = [t for s in component.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state}
        found[component.name] = {
            "weights": sum(p.nbytes for p in component.module.parameters()),
            "gradients": gradients[component.optimizer],
            "state": sum(storages.values()),
        }
    return found


HOMEMADE = """
    def build(params, config):
        import torch
        return torch.optim.Adafactor(params, lr=config.lr)
"""


@pytest.mark.parametrize(
    "name",
    ["adamw", "adamw8bit", "prodigy", "dadapt_adan", "dadapt_sgd", "lion", "lion8bit", "homemade", "torch.optim:NAdam"],
)
def test_the_plan_is_what_two_steps_allocate(name, command, install, write_optimizer, make_session) -> None:
    install(HOMEMADE)
    freezing = {"text_encoder_freezing": {"unfreeze_last_n_layers": 2}, "unet_freezing": ["freeze *conv_in*"]}
    write_optimizer({"base": {"optimizer": name}, **freezing})
    plan = command("--plan-memory", "--json").json["configured"]
    assert plan["measured"] == (name in ("homemade", "torch.optim:NAdam"))
    real = bytes_after_two_steps(make_session())
    for component, told in plan["components"].items():
        assert told["weights"] == real[component]["weights"]
        assert told["gradients"] == real[component]["gradients"]
        assert told["state"] == pytest.approx(real[component]["state"], rel=0.02)
        assert told["total"] == told["weights"] + told["gradients"] + told["state"]
    assert plan["total"] == sum(part["total"] for part in plan["components"].values())


def test_the_plan_knows_weights_in_bfloat16(command, write_optimizer, make_session) -> None:
    write_optimizer({"base": {"optimizer": "lion"}, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}})
    bf16 = {"weights_dtype": "bf16", "disable_amp": "false", "mixed_precision": "bf16"}
    plan = command("--plan-memory", "--json", **bf16).json["configured"]
    plain = command("--plan-memory", "--json").json["configured"]
    real = bytes_after_two_steps(make_session(**bf16))
    for component, told in plan["components"].items():
        assert told["weights"] == real[component]["weights"]
        assert told["gradients"] < 0.52 * plain["components"][component]["gradients"]
        assert told["state"] == real[component]["state"] == plain["components"][component]["state"]


def test_the_plan_knows_how_many_gradients_there_are_at_a_time(
    command, write_optimizer, make_session, monkeypatch
) -> None:
    from ed_train.train import memory, partial_steps

    for module in (memory, partial_steps):
        monkeypatch.setattr(module, "PIECE", 20_000)
    write_optimizer({"base": {"optimizer": "adamw"}, "text_encoder_freezing": {"unfreeze_last_n_layers": 3}})
    shown = command("--plan-memory", "--json", optimizer_in_backward="true")
    session = make_session(optimizer_in_backward=True)
    parameters = [p for c in session.components for p in c.parameters]
    alive = []
    for component in session.components:
        component.optimizer.register_step_pre_hook(
            lambda *_: alive.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))
        )
    windows = session.windows()
    train_step(session, next(windows))
    windows.close()
    told = shown.json["configured"]["gradients"]
    assert max(alive) <= told <= max(alive) + 2 * 4 * (20_000 + max(p.numel() for p in parameters))
    assert told < sum(p.nbytes for p in parameters) / 1.5
    table = rows(shown)
    assert table["adamw"]["gradients"] == told
    assert table["prodigy"]["gradients"] == sum(p.nbytes for p in parameters)
    assert (table["adamw"]["refused"], table["prodigy"]["refused"]) == ([], ["optimizer_in_backward"])


def rows(shown: Any) -> dict[str, Any]:
    return {row["optimizer"]: row for row in shown.json["optimizers"]}


def test_two_optimizers_are_each_counted_for_their_component(command, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}, "text_encoder_overrides": {"optimizer": "lion"}})
    shown = command("--plan-memory", "--json")
    configured, table = shown.json["configured"], rows(shown)
    assert configured["optimizer"] == "adamw and lion"
    for component, name in (("unet", "adamw"), ("text_encoder", "lion")):
        assert configured["components"][component] == table[name]["components"][component]
    first, second, *others = command("--plan-memory").out.split("total\n")[1].splitlines()
    assert first.startswith("this run: adamw and lion ")
    assert second.startswith("lion8bit ")
    assert any(line.startswith("dadapt_adan ") for line in others)


def test_the_options_of_the_run_count_where_it_uses_the_optimizer(command, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "amsgrad": True}, "text_encoder_overrides": {"optimizer": "lion"}})
    table = rows(command("--plan-memory", "--json"))
    write_optimizer({"base": {"optimizer": "lion"}})
    plain = rows(command("--plan-memory", "--json"))
    for component in ("unet", "text_encoder"):
        assert table["adamw"]["components"][component]["state"] == pytest.approx(
            1.5 * plain["adamw"]["components"][component]["state"], rel=0.02
        )
    assert table["prodigy"] == plain["prodigy"]
    write_optimizer({"base": {"optimizer": "adamw"}, "text_encoder_overrides": {"amsgrad": True}})
    own = rows(command("--plan-memory", "--json"))["adamw"]["components"]
    assert own["unet"] == plain["adamw"]["components"]["unet"]
    assert own["text_encoder"] == table["adamw"]["components"]["text_encoder"]


def test_a_component_that_does_not_train_has_weights_alone(command) -> None:
    held = {"disable_textenc_training": True, "cache_text_embeddings": False}
    shown = command("--plan-memory", "--json", **held)
    for row in (shown.json["configured"], *shown.json["optimizers"]):
        part = row["components"]["text_encoder"]
        assert (part["gradients"], part["state"], part["total"]) == (0, 0, 4 * 1634400)
        assert row["optimizers"].keys() == {"unet"}
    assert "text encoder: 1.6 M parameters, none trains\n" in command("--plan-memory", **held).out


def test_rows_are_sorted_and_those_for_other_cards_are_marked(command) -> None:
    shown = command("--plan-memory", "--json")
    totals = [row["total"] for row in shown.json["optimizers"]]
    assert totals == sorted(totals)
    assert rows(shown)["adamw"]["runs_here"]
    text = command("--plan-memory", optimizer_config=None).out
    assert "not counted:\n    activations\n" in text
    if torch.cuda.is_available():
        assert "runs on cuda only" not in text
    else:
        assert not rows(shown)["paged_lion8bit"]["runs_here"]
        (line,) = (line for line in text.splitlines() if line.startswith("paged_lion8bit "))
        assert line.endswith("(runs on cuda only; this machine has cpu)")


def test_an_optimizer_for_another_card_can_be_planned_for(command, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "paged_adamw8bit"}})
    shown = command("--plan-memory", "--json")
    assert shown.status == 0
    assert shown.json["configured"]["state"] == rows(shown)["adamw8bit"]["state"]


@pytest.mark.parametrize(
    ("body", "traits", "why"),
    [
        (HOMEMADE, "{'state_bytes': lambda config, shape: 1 / 0}", "division by zero"),
        (HOMEMADE, "{'devices': ('xpu',)}", "it declares no state_bytes and cannot be measured here"),
        ("\n    def build(params, config):\n        raise OSError('no library')\n", "{}", "no library"),
    ],
)
def test_a_plugin_whose_state_nobody_knows_is_a_row_without_a_number(body, traits, why, command, install) -> None:
    install(body, traits)
    shown = command("--plan-memory", "--json")
    *known, last = shown.json["optimizers"]
    assert last["optimizer"] == "homemade"
    assert (last["state"], last["total"]) == (None, None)
    assert last["weights"] == known[0]["weights"]
    assert why in last["unknown"]
    assert all(row["unknown"] is None and row["state"] for row in known)
    (line,) = (line for line in command("--plan-memory").out.splitlines() if line.startswith("homemade "))
    assert " ?  (" in line
    assert why in line


def test_pictures_and_weights_may_be_missing(command, micro_model, tmp_path) -> None:
    bare = shutil.copytree(micro_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    absent = {"resume_ckpt": bare, "data_root": tmp_path / "nothing"}
    assert command("--plan-memory", "--json", **absent).json == {
        **command("--plan-memory", "--json").json,
        "model": {**command("--plan-memory", "--json").json["model"], "location": str(bare)},
    }
    shown = command("--check", "--json", **absent)
    assert shown.status == 2, "a run needs both"
    assert {error["where"] for error in shown.json["errors"]} == {"--resume_ckpt", "--data_root"}


@pytest.mark.parametrize("version", ["sd15", "sd21"])
def test_published_models(version, command, write_optimizer, micro_model, tmp_path) -> None:
    folder = configuration_only(micro_model, tmp_path / version, version)
    write_optimizer({"base": {"optimizer": "adamw"}})
    shown = command("--plan-memory", "--json", resume_ckpt=folder)
    unet, text_encoder = PARAMETERS[version]
    told = shown.json["model"]["parameters"]
    assert (told["unet"]["all"], told["text_encoder"]["all"]) == (unet, text_encoder)
    configured = shown.json["configured"]
    assert configured["weights"] == configured["gradients"] == 4 * (unet + text_encoder)
    per_parameter = {name: row["state"] / (unet + text_encoder) for name, row in rows(shown).items()}
    for name, size in {"adamw": 8, "lion": 4, "prodigy": 16, "dadapt_adan": 20, "adamw8bit": 2, "lion8bit": 1}.items():
        assert per_parameter[name] == pytest.approx(size, rel=0.03)
    assert not any(row["measured"] for row in shown.json["optimizers"])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["sd15", "sd21"])
def test_a_plan_is_quick_and_small(version, flags, micro_model, tmp_path) -> None:
    flags["resume_ckpt"] = str(configuration_only(micro_model, tmp_path / version, version))
    words = [sys.executable, "-m", "ed_train", "--plan-memory", *(f"--{k}={v}" for k, v in flags.items())]
    program = f"""
import resource, subprocess, sys
subprocess.run([sys.executable, "-c", "import torch"], check=True)
torch = resource.getrusage(resource.RUSAGE_CHILDREN)
subprocess.run({words}, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print((used.ru_utime + used.ru_stime) / (torch.ru_utime + torch.ru_stime) - 1, used.ru_maxrss / 1e6)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "this run: adamw8bit " in result.stdout
    times, gigabytes = map(float, result.stdout.split()[-2:])
    assert times < 10, "as long as torch's import"
    assert gigabytes < 2, "neither weights nor state were allocated"


def test_a_text_encoder_that_is_not_in_memory_is_not_counted(command, write_optimizer, make_session) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}})
    flags = {"disable_textenc_training": "true"}
    for cached in ("true", "false"):
        given = {**flags, "cache_text_embeddings": cached}
        arguments = [f"--{key}={value}" for key, value in given.items()]
        plan = command("--plan-memory", "--json", *arguments).json["configured"]
        session = make_session(**given)
        assert ("text_encoder" in plan["components"]) == (session.text_encoder is not None) == (cached == "false")
        text = command("--plan-memory", *arguments).out
        assert ("none trains; not in memory: its embeddings are cached" in text) == (cached == "true")
