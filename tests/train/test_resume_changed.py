"""Resuming with another configuration: what has changed counts and is said, or is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train.cli import main
from ed_train.config.resume import STATE_FILE
from ed_train.models.atomic import MANIFEST, file_sha256, read_manifest, write_manifest
from ed_train.train import setup
from ed_train.train import train as loop
from ed_train.train.components import build_component
from ed_train.train.optimizer_state import renumbered, restore_optimizer
from filelock import FileLock

ADAMW = {"optimizer": "adamw", "lr": 1e-3}
PRODIGY = {"optimizer": "prodigy", "d0": 1e-3}


@pytest.fixture
def interrupted(flags, write_optimizer, tmp_path) -> Callable[..., Path]:
    """``interrupted(base)``: a run with that optimizer, ended after 2 of 4 steps by max_steps; its checkpoint."""

    def run(base: dict[str, Any], **settings: Any) -> Path:
        write_optimizer({"base": base} if "base" not in base else base)
        given = {**flags, "max_steps": 2, "project_name": "cut", "no_prepend_last": True, **settings}
        assert main([f"--{key}={value}" for key, value in given.items()]) == 0
        (folder,) = (tmp_path / "logs").glob("cut_*")
        (checkpoint,) = (path for path in (folder / "ckpts").iterdir() if not path.name.endswith("-ema"))
        return checkpoint

    return run


@pytest.fixture
def go_on(flags, write_optimizer, capsys) -> Callable[..., tuple[int, str, str]]:
    """``go_on(base, checkpoint)``: resume with this optimizer; exit status, and what it printed."""

    def run(base: dict[str, Any], resume: object = "latest", **settings: Any) -> tuple[int, str, str]:
        write_optimizer({"base": base} if "base" not in base else base)
        capsys.readouterr()
        given = {**flags, "project_name": "cut", "no_prepend_last": True, "resume": resume, "max_steps": "null"}
        given |= settings
        status = main([f"--{key}={value}" for key, value in given.items() if value is not None])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def last_state(checkpoint: Path, name: str = "optimizer_unet.pt") -> dict[str, Any]:
    newest = max(checkpoint.parent.iterdir(), key=lambda path: read_manifest(path)["step"])
    return torch.load(newest / name, weights_only=True)


def test_changed_options_count_and_are_said(interrupted, go_on) -> None:
    checkpoint = interrupted(ADAMW)
    status, out, _ = go_on({**ADAMW, "lr": 5e-4, "betas": [0.5, 0.9], "weight_decay": 0}, save_optimizer=True)
    assert status == 0
    assert f"note: goes on at step 2, epoch 1, from {checkpoint}\n" in out
    for line in ("unet lr 0.001 -> 0.0005", "unet betas [0.9, 0.999] -> [0.5, 0.9]", "unet weight_decay 0.01 -> 0"):
        assert f"note: changed since the checkpoint: {line}" in out
    (group,) = last_state(checkpoint)["param_groups"]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (5e-4, (0.5, 0.9), 0)
    assert {int(s["step"]) for s in last_state(checkpoint)["state"].values()} == {4}, "the averages have gone on"


def test_what_training_has_found_out_survives_a_changed_option(make_session, write_optimizer, go_on) -> None:
    write_optimizer({"base": PRODIGY})
    session = make_session(project_name="cut", save_optimizer=True)
    result = loop.train_step(session, next(session.windows()))
    loop.after_step(session, result, 1)
    session.components[0].optimizer.param_groups[0].update(d=0.005, d_max=0.005)  # as after many steps
    session.save(last=True)
    session.output.close()
    status, out, _ = go_on({**PRODIGY, "d0": 1e-5, "d_coef": 0.5, "growth_rate": 1.5}, save_optimizer=True)
    assert status == 0
    (group,) = last_state(session.output.saved[0])["param_groups"]
    assert group["d"] >= 0.005
    assert (group["d0"], group["d_coef"], group["growth_rate"], group["k"]) == (1e-5, 0.5, 1.5, 4)
    assert "changed since the checkpoint: unet d_coef 1.0 -> 0.5" in out


@pytest.mark.parametrize(("base", "option"), [(ADAMW, {"amsgrad": True}), (PRODIGY, {"slice_p": 2})], ids=str)
def test_an_option_that_needs_other_state_is_refused_or_begins_anew(base, option, interrupted, go_on) -> None:
    """A step would fail with it."""
    checkpoint = interrupted(base, disable_textenc_training=True)
    more = {"disable_textenc_training": True, "max_steps": 3}
    status, _, err = go_on({**base, **option}, **more)
    assert status == 2
    (name,) = option
    message = f"unet: its state does not go with changed options ({name} {'1' if name == 'slice_p' else 'false'} -> "
    assert f"error: --resume: {message}" in err
    status, out, _ = go_on({**base, **option}, resume_changed=True, save_optimizer=True, **more)
    assert status == 0
    assert f"note: {message}" in out
    assert "; its optimizer begins anew" in out
    saved = last_state(checkpoint)
    assert {int(s["step"]) for s in saved["state"].values()} == {1}
    assert saved["param_groups"][0].get("k", 1) == 1


def test_an_option_that_lives_on_the_optimizer_itself_counts(interrupted, go_on, monkeypatch) -> None:
    lion = {"optimizer": "lion", "lr": 1e-4}
    interrupted(lion)
    seen = []
    original = loop.train_step

    def step(session: Any, window: Any) -> Any:
        seen.append(session.components[0].optimizer.decoupled_wd)
        return original(session, window)

    monkeypatch.setattr(loop, "train_step", step)
    assert go_on({**lion, "decoupled_weight_decay": True, "weight_decay": 1e-6})[0] == 0
    assert seen == [True, True]


def test_another_optimizer_is_refused_or_begins_anew(interrupted, go_on, tmp_path) -> None:
    checkpoint = interrupted(ADAMW)
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "logs").rglob("*"))
    status, _, err = go_on(PRODIGY)
    assert status == 2
    message = "the state is that of adamw of ed-train-adamw, and this run uses prodigy of ed-train-prodigy"
    for component in ("unet", "text_encoder"):
        assert f"error: --resume: {component}: {message}; resume_changed true goes on all the same" in err
    assert sorted(p.relative_to(tmp_path) for p in (tmp_path / "logs").rglob("*")) == before, "nothing was written"
    status, out, _ = go_on(PRODIGY, resume_changed=True, save_optimizer=True)
    assert status == 0
    assert f"note: unet: {message}; its optimizer begins anew" in out
    assert last_state(checkpoint)["param_groups"][0]["k"] == 2


FROZEN = {"base": ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 1}}


@pytest.mark.parametrize(("before", "after", "message"), [
    (FROZEN, {"base": ADAMW}, "parameters train that did not"),
    ({"base": ADAMW}, FROZEN, "parameters that did train are frozen now"),
])  # fmt: skip
def test_changed_freezing(before, after, message, interrupted, go_on) -> None:
    checkpoint = interrupted(before)
    status, _, err = go_on(after)
    assert status == 2
    assert "text_encoder: " in err
    assert message in err
    assert "; changed since the checkpoint: text_encoder_freezing.unfreeze_last_n_layers" in err
    status, out, _ = go_on(after, resume_changed=True, save_optimizer=True)
    assert status == 0
    assert "state is kept by name" in out
    steps = [int(s["step"]) for s in last_state(checkpoint, "optimizer_te.pt")["state"].values()]
    assert set(steps) == ({2, 4} if before is FROZEN else {4})


def test_a_component_that_trains_only_now(interrupted, go_on) -> None:
    interrupted(ADAMW, disable_textenc_training=True)
    status, _, err = go_on(ADAMW, disable_textenc_training=False)
    assert status == 2
    assert "text_encoder: the checkpoint has no optimizer state for it: it did not train" in err
    assert go_on(ADAMW, disable_textenc_training=False, resume_changed=True)[0] == 0


def test_more_pictures_begin_the_epoch_anew(interrupted, go_on, photos, tmp_path) -> None:
    interrupted(ADAMW)
    more = tmp_path / "more"
    shutil.copytree(photos, more)
    first = next(p for p in more.iterdir() if p.suffix in (".jpg", ".png"))
    shutil.copyfile(first, first.with_name(f"another{first.suffix}"))
    status, out, _ = go_on(ADAMW, data_root=more)
    assert status == 0
    assert "the batches are not those of the checkpoint" in out
    assert "epoch 1 begins anew" in out
    assert ", 7 in all; run folder: " in out, "2 of before, and the 5 of 9 pictures"


def test_another_batch_size_and_seed_begin_the_epoch_anew(interrupted, go_on) -> None:
    interrupted(ADAMW)
    status, out, _ = go_on(ADAMW, batch_size=4, seed=1)
    assert status == 0
    assert "changed since the checkpoint: batch_size 2 -> 4" in out
    assert "changed since the checkpoint: seed 555 -> 1" in out
    assert "epoch 1 begins anew" in out
    assert ", 4 in all; run folder: " in out


def test_what_cannot_change_in_a_run_that_goes_on_is_said(
    interrupted, write_optimizer, flags, tmp_path, capsys
) -> None:
    checkpoint = interrupted(ADAMW)
    run, model = checkpoint.parents[1], flags["resume_ckpt"]
    (tmp_path / "validation.json").write_text("{}")
    own = f"has no effect: the run goes on in its own folder, {run}"
    began = f"the run began with {model}, and goes on with its checkpoint's weights"
    lines = {
        "": [],
        f"--resume_ckpt={os.path.relpath(model)}": [],
        "--resume_ckpt=gone": [f'--resume_ckpt "gone" has no effect: {began}; without resume it begins a new run'],
        f"--model_config={model}": [
            f'--model_config "{model}" has no effect: the checkpoint has the model\'s configuration'
        ],
        f"--run_name={run.name}": [],
        "--run_name=mine": [f'--run_name "mine" {own}'],
        f"--logdir={tmp_path}": [f'--logdir "{tmp_path}" {own}'],
        f"--save_ckpt_dir={run / 'ckpts'}": [],
        f"--save_ckpt_dir={tmp_path}": [
            f"checkpoints are saved in {tmp_path} from here on; those in {checkpoint.parent} are left alone"
        ],
        f"--validation_config={tmp_path / 'validation.json'}": ["changed since the checkpoint: validation off -> on"],
    }
    given = {**flags, "project_name": "cut", "no_prepend_last": True, "resume": checkpoint, "max_steps": 2}
    for argument, expected in lines.items():
        capsys.readouterr()
        assert main([*(f"--{key}={value}" for key, value in given.items()), *argument.split(), "--check"]) == 0
        notes = re.findall("note: (.*)", capsys.readouterr().out)
        assert [n for n in notes if re.search("changed|no effect|from here on", n)] == expected, argument


def test_other_prompts_and_another_beginning_of_the_average_are_said(interrupted, flags, tmp_path, capsys) -> None:
    prompts = tmp_path / "prompts.json"
    content = {"samples": [{"prompt": "a", "size": [64, 64]}], "num_inference_steps": 1, "cfgs": [1]}
    prompts.write_text(json.dumps(content))
    more = {"sample_prompts": prompts, "sample_steps": 9, "ema_decay_rate": 0.5}
    checkpoint = interrupted(ADAMW, **more)
    given = {**flags, "project_name": "cut", "no_prepend_last": True, "resume": checkpoint, "max_steps": 2, **more}
    model = flags["resume_ckpt"]
    idle = f'--ema_resume_model "{model}" has no effect: the checkpoint\'s average goes on'
    for change, expected in {
        (): [],
        ("--ema_resume_model=findlast",): [],
        (f"--ema_resume_model={model}",): [idle],
        ("edit",): ["changed since the checkpoint: sample_prompts num_inference_steps 1 -> 2"],
        ("edit", "--sample_steps=0"): ["changed since the checkpoint: sample_steps 9 -> 0"],
    }.items():
        prompts.write_text(json.dumps({**content, "num_inference_steps": 2 if "edit" in change else 1}))
        capsys.readouterr()
        arguments = [*(f"--{key}={value}" for key, value in given.items()), *(c for c in change if c != "edit")]
        assert main([*arguments, "--check"]) == 0
        notes = re.findall("note: (.*)", capsys.readouterr().out)
        assert [n for n in notes if re.search("changed|has no effect", n)] == expected, change


def test_a_folder_of_a_run_that_was_moved_goes_on_where_it_is(interrupted, go_on, tmp_path) -> None:
    checkpoint = interrupted(ADAMW)
    shutil.move(checkpoint.parents[1], tmp_path / "moved")
    checkpoint = tmp_path / "moved" / "ckpts" / checkpoint.name
    status, out, _ = go_on(ADAMW, checkpoint)
    assert status == 0
    assert f"run folder: {tmp_path / 'moved'}\n" in out
    _, newest = sorted(checkpoint.parent.iterdir())
    shutil.copytree(newest, tmp_path / "alone")
    shutil.rmtree(tmp_path / "moved")
    status, out, _ = go_on(ADAMW, tmp_path / "alone")
    assert status == 0
    assert re.search(r"note: the run's folder .* is gone: the run goes on in a new one\n", out)


def test_without_a_configuration_the_checkpoints_own_counts(interrupted, flags, capsys) -> None:
    checkpoint = interrupted({**ADAMW, "weight_decay": 0.3})
    os.unlink(flags["optimizer_config"])
    assert main(["--resume", str(checkpoint), "--max_steps=3"]) == 0
    out = capsys.readouterr().out
    assert "weight_decay 0.3" in out
    assert ", 3 in all; run folder: " in out
    assert main(["--resume=latest", f"--logdir={flags['logdir']}"]) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_finished_run_goes_on_with_more_epochs(interrupted, go_on) -> None:
    interrupted(ADAMW, max_steps=4)
    status, out, _ = go_on(ADAMW)
    assert (status, "nothing is left to train" in out) == (0, True)
    status, out, _ = go_on(ADAMW, max_epochs=2)
    assert status == 0
    assert "changed since the checkpoint: max_epochs 1 -> 2" in out
    assert ", 8 in all; run folder: " in out


def test_latest_without_any_checkpoint_begins_a_run(go_on) -> None:
    status, out, _ = go_on(ADAMW, max_steps=1)
    assert status == 0
    assert "there is nothing to go on with in" in out
    status, _, err = go_on(ADAMW, resume=None, resume_ckpt="findlast", project_name="other")
    assert status == 2
    assert '--resume_ckpt: "findlast": no checkpoint of project "other" with training state' in err


def test_findlast_goes_on(interrupted, go_on) -> None:
    interrupted(ADAMW)
    status, out, _ = go_on(ADAMW, resume=None, resume_ckpt="findlast")
    assert (status, "goes on at step 2" in out) == (0, True)


def edit_manifest(checkpoint: Path, **changes: Any) -> None:
    write_manifest(checkpoint, {**read_manifest(checkpoint), **changes})


def test_a_newer_format_and_a_missing_state_are_refused(interrupted, go_on) -> None:
    checkpoint = interrupted(ADAMW)
    (checkpoint / STATE_FILE).rename(checkpoint.parent / "aside")
    status, _, err = go_on(ADAMW, checkpoint)
    assert status == 2
    assert f"{checkpoint} has no training state: it was removed when a newer one was saved" in err
    (checkpoint.parent / "aside").rename(checkpoint / STATE_FILE)
    edit_manifest(checkpoint, format=99)
    status, _, err = go_on(ADAMW, checkpoint)
    assert status == 2
    assert "has format 99; this ed-train reads format 1; upgrade ed-train" in err


def test_what_is_no_checkpoint_is_told_from_one(interrupted, go_on, tmp_path, capsys) -> None:
    checkpoint = interrupted(ADAMW)
    of_run = f"is the folder of a run; expected one of its checkpoints: {checkpoint.name}"
    wanted = 'expected "latest" or the folder of a checkpoint'
    for resume, message in {
        checkpoint.parents[1]: f"{checkpoint.parents[1]} {of_run}",
        checkpoint.parent: f"{checkpoint.parent} {of_run}",
        checkpoint.parents[2]: "is a folder of runs; expected a checkpoint in one of them, RUN/ckpts/NAME",
        checkpoint / "unet": f"is a part of a checkpoint; expected {checkpoint}",
        checkpoint / STATE_FILE: f"is a part of a checkpoint; expected {checkpoint}",
        "LATEST": f'got "LATEST"; {wanted}',
        "findlast": f'got "findlast"; {wanted}',
        "": f'got ""; {wanted}',
    }.items():
        status, _, err = go_on(ADAMW, resume)
        assert (status, message in err) == (2, True), err
    (tmp_path / "link").symlink_to(checkpoint)
    status, out, _ = go_on(ADAMW, f"{os.path.relpath(tmp_path / 'link')}/", max_steps=2)
    assert (status, f"run folder: {checkpoint.parents[1]}\n" in out, "left alone" in out) == (0, True, False)
    assert main(["--resume=gone"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1, "the checkpoint would have said what else is missing"
    status, _, err = go_on(ADAMW, None, resume_ckpt="latest")
    assert (status, 'did you mean "resume": "latest"?' in err) == (2, True)


def test_a_run_in_use_is_refused_before_anything_of_it_is_read(interrupted, go_on, monkeypatch) -> None:
    """The process that trains it may be removing this very checkpoint."""
    checkpoint = interrupted(ADAMW)
    monkeypatch.setattr(setup, "SdModel", None)
    with FileLock(checkpoint.parents[1] / ".lock"):
        status, _, err = go_on(ADAMW, checkpoint)
    assert status == 1
    assert "is in use by another ed-train; end that one, or begin a new run" in err


def test_another_version_of_the_plugin_is_said(interrupted, go_on) -> None:
    checkpoint = interrupted(ADAMW)
    manifest = read_manifest(checkpoint)
    manifest["optimizers"]["unet"]["version"] = "0.0.9"
    write_manifest(checkpoint, manifest)
    status, out, _ = go_on(ADAMW)
    assert status == 0
    assert "unet: the state was saved by ed-train-adamw 0.0.9; ed-train-adamw 0.1.0 goes on with it" in out


def test_reordered_parameters_get_their_own_state(interrupted, make_session) -> None:
    checkpoint = interrupted(ADAMW)
    manifest = read_manifest(checkpoint)
    component = make_session().components[0]
    reordered = build_component(component.config, component.module, 4)
    reordered.parameters.reverse()
    reordered.parameter_names.reverse()
    reordered.optimizer.param_groups[0]["params"].reverse()
    restore_optimizer(reordered, checkpoint, manifest, changed=False)
    saved = torch.load(checkpoint / "optimizer_unet.pt", weights_only=True)["state"]
    for number, name in enumerate(manifest["optimizers"]["unet"]["parameters"]):
        parameter = reordered.parameters[reordered.parameter_names.index(name)]
        assert torch.equal(reordered.optimizer.state[parameter]["exp_avg"], saved[number]["exp_avg"])


def test_state_that_is_of_no_parameter_stays() -> None:
    """Some optimizers keep what they share between parameters under a name of its own."""
    saved = {"state": {0: {"a": 0}, 1: {"a": 1}, "all": {"k": 5}}, "param_groups": [{"params": [0, 1]}]}
    assert renumbered(saved, ["x", "y"], ["y", "x"])["state"] == {0: {"a": 1}, 1: {"a": 0}, "all": {"k": 5}}


def test_another_shape_is_refused(interrupted, go_on) -> None:
    checkpoint = interrupted(ADAMW)
    manifest = read_manifest(checkpoint)
    manifest["optimizers"]["unet"]["shapes"][0] = [7]
    write_manifest(checkpoint, manifest)
    status, _, err = go_on(ADAMW)
    assert status == 2
    name = manifest["optimizers"]["unet"]["parameters"][0]
    assert f"unet: parameters have another shape than the state's: {name}" in err


# Optimizer state beside a model that a new run starts from


@pytest.fixture
def model_with_state(interrupted, tmp_path) -> Path:
    """A diffusers folder with bare state dicts of adamw, as other trainers leave it."""
    target = tmp_path / "foreign"
    shutil.copytree(interrupted(ADAMW, save_optimizer=True), target)
    (target / MANIFEST).unlink()
    (target / STATE_FILE).unlink()
    return target


def begin(go_on: Any, base: dict[str, Any], model: Path, **settings: Any) -> tuple[int, str, str]:
    return go_on(base, None, resume_ckpt=model, project_name="new", max_steps=1, **settings)


def test_a_bare_state_is_loaded_with_the_options_set_now(model_with_state, go_on, tmp_path) -> None:
    status, out, _ = begin(go_on, {**ADAMW, "lr": 2e-4}, model_with_state, save_optimizer=True)
    assert status == 0
    assert f"unet: optimizer state of 440 tensors loaded from {model_with_state / 'optimizer_unet.pt'}" in out
    (checkpoint,) = (tmp_path / "logs").glob("new_*/ckpts/*")
    state = torch.load(checkpoint / "optimizer_unet.pt", weights_only=True)
    assert {int(s["step"]) for s in state["state"].values()} == {3}
    assert state["param_groups"][0]["lr"] == 2e-4


@pytest.mark.parametrize(
    "base", [PRODIGY, {"optimizer": "lion"}, {"optimizer": "adamw8bit"}], ids=lambda b: b["optimizer"]
)
def test_a_bare_state_of_another_optimizer_is_not_loaded(base, model_with_state, go_on) -> None:
    status, out, _ = begin(go_on, base, model_with_state)
    assert status == 0
    assert "is not used, its optimizer begins anew: it is not the state of" in out


def test_a_reordered_bare_state_is_not_loaded(model_with_state, go_on) -> None:
    path = model_with_state / "optimizer_unet.pt"
    saved = torch.load(path, weights_only=True)
    numbers = list(saved["state"])
    saved["state"] = dict(zip(numbers, reversed(list(saved["state"].values())), strict=True))
    torch.save(saved, path)
    status, out, _ = begin(go_on, ADAMW, model_with_state)
    assert status == 0
    assert "other parameters, or another order" in out


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def test_a_state_with_foreign_code_is_refused_and_not_run(model_with_state, go_on, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Payload(), "param_groups": []}, model_with_state / "optimizer_unet.pt")
    status, _, err = begin(go_on, ADAMW, model_with_state)
    assert status == 2
    assert "optimizer_unet.pt wants to run" in err
    assert "system; nothing in it was run; remove the file to begin without it" in err
    assert not (tmp_path / "executed").exists()


def test_a_bare_state_that_cannot_be_read_is_not_loaded(model_with_state, go_on) -> None:
    (model_with_state / "optimizer_unet.pt").write_bytes(b"no state")
    status, out, _ = begin(go_on, ADAMW, model_with_state)
    assert status == 0
    assert f"{model_with_state / 'optimizer_unet.pt'} is not used, its optimizer begins anew: " in out
    assert "text_encoder: optimizer state of" in out


def test_one_of_our_checkpoints_as_a_model_brings_its_state(interrupted, go_on) -> None:
    checkpoint = interrupted(ADAMW)
    status, out, _ = begin(go_on, ADAMW, checkpoint)
    assert status == 0
    assert "unet: optimizer state of 440 tensors loaded from" in out
    assert "goes on at" not in out
    status, out, _ = begin(go_on, PRODIGY, checkpoint)
    assert status == 0
    assert "its optimizer begins anew: the state is that of adamw of ed-train-adamw" in out


def test_resuming_leaves_the_checkpoint_as_it_is(interrupted, go_on) -> None:
    checkpoint = interrupted(ADAMW)
    before = {p: (file_sha256(p), p.stat().st_mtime_ns) for p in checkpoint.rglob("*") if p.is_file()}
    assert go_on(ADAMW, save_optimizer=True)[0] == 0
    assert {p: (file_sha256(p), p.stat().st_mtime_ns) for p in checkpoint.rglob("*") if p.is_file()} == before
