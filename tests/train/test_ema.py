"""The moving average: what it averages and when, what is drawn and saved of it, and that it survives a resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train.cli import main
from ed_train.config.ema import ema_folder
from ed_train.config.resume import EMA_FILE
from ed_train.models.atomic import MANIFEST, check_files, read_manifest
from ed_train.models.grid import sample_grid
from ed_train.models.prompts import SampleSettings, read_sample_prompts
from ed_train.models.samples import draw_samples, save_samples
from ed_train.train import output as output_module
from ed_train.train import train as loop
from ed_train.train.signals import Interrupted, StopSignals
from ed_train.train.state import size_of
from ed_train.train.step import StepResult, train_step
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train.resuming import assert_equal, assert_equal_runs

OPTIMIZERS = {
    "base": {"optimizer": "adamw", "lr": 1e-3},
    "text_encoder_overrides": {"optimizer": "prodigy", "d0": 1e-3},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 2},
}
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER_FILE = "text_encoder/model.safetensors"
NEVER = 10**6
"""An interval that no run reaches: the average stays what it began with."""


@pytest.fixture(autouse=True)
def two_optimizers(write_optimizer) -> None:
    write_optimizer(OPTIMIZERS)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    samples = [{"prompt": "a cat", "size": [64, 64]}, {"prompt": "a tree", "size": [64, 128]}]
    path.write_text(json.dumps({"samples": samples, "num_inference_steps": 3}))
    return path


def steps(session: Any) -> Iterator[int]:
    """Train as the loop does, and yield after each step."""
    while not session.done:
        for window in session.windows():
            loop.after_step(session, train_step(session, window), len(window))
            yield session.step
            if session.done:
                break


def weights(session: Any) -> dict[str, torch.Tensor]:
    return {
        f"{c.name}.{name}": p.detach().clone()
        for c in session.components
        for name, p in zip(c.parameter_names, c.parameters, strict=True)
    }


def averages(session: Any) -> dict[str, torch.Tensor]:
    return {name: average.clone() for name, average in session.ema.state_dict().items()}


def checkpoints(tmp_path: Path) -> list[str]:
    (run,) = (tmp_path / "logs").glob("*_*")
    return sorted(path.name for path in (run / "ckpts").iterdir())


# What is averaged


def test_the_average_is_that_of_the_formula_over_many_steps(make_session) -> None:
    session = make_session(ema_decay_rate=0.7, max_epochs=2)
    expected = {name: weight.double() for name, weight in weights(session).items()}
    for _ in steps(session):
        for name, weight in weights(session).items():
            expected[name] = 0.7 * expected[name] + 0.3 * weight.double()
    assert session.step == 8
    moved = 0
    for name, average in averages(session).items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)
        moved += not torch.allclose(average, weights(session)[name], rtol=1e-5, atol=1e-6)
    assert moved > len(expected) / 2, "the weights have left their average"


def test_only_what_trains_is_averaged_and_in_float32(make_session) -> None:
    session = make_session(ema_decay_rate=0.9)
    names = [f"{c.name}.{name}" for c in session.components for name in c.parameter_names]
    assert session.ema.names == names
    assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder"}
    assert not any("layers.0." in name or "embedding" in name for name in names if name.startswith("text_encoder."))
    assert {average.dtype for average in session.ema.averages} == {torch.float32}
    assert not any(average.requires_grad for average in session.ema.averages)
    session = make_session(ema_decay_rate=0.9, disable_unet_training=True)
    assert all(name.startswith("text_encoder.") for name in session.ema.names)


def test_the_interval_counts_steps(make_session) -> None:
    session = make_session(ema_decay_rate=0.5, ema_update_interval=3, max_epochs=2)
    before, changed = averages(session), []
    for step in steps(session):
        now = averages(session)
        if any(not torch.equal(now[name], before[name]) for name in now):
            changed.append(step)
        before = now
    assert changed == [3, 6]


def test_a_skipped_step_neither_updates_nor_counts(make_session) -> None:
    session = make_session(ema_decay_rate=0.5, ema_update_interval=2, max_epochs=2)
    running = steps(session)
    next(running)
    begun = averages(session)
    nothing = torch.tensor(math.nan)
    bad = StepResult(nothing, {c.name: nothing for c in session.components}, ("unet",), 2, ())
    loop.after_step(session, bad, 1)
    assert (session.step, session.skipped) == (2, 1)
    assert_equal(averages(session), begun)
    next(running)
    assert any(not torch.equal(average, begun[name]) for name, average in averages(session).items())


@pytest.mark.parametrize("interval", [1, 3])
def test_the_strength_target_is_what_is_left_of_the_initial_weights(make_session, interval) -> None:
    session = make_session(ema_strength_target=0.05, ema_update_interval=interval, max_epochs=5)
    assert session.total_steps == 20
    assert session.ema.plan.decay == pytest.approx(0.05 ** (1 / (20 // interval)))
    begun = averages(session)
    with torch.no_grad():
        for parameter in session.ema.parameters:
            parameter.zero_()  # so that nothing but the beginning is in the average
    for step in range(1, 21):
        session.ema.after_step(step)
    for name, average in averages(session).items():
        torch.testing.assert_close(average, 0.05 * begun[name], rtol=1e-5, atol=1e-7)


def test_off_allocates_nothing_and_saves_nothing(make_session, run_cli, tmp_path) -> None:
    assert make_session().ema is None
    shutil.rmtree(tmp_path / "logs")
    assert run_cli(max_steps=1) == 0
    assert checkpoints(tmp_path) == ["last-myproj-ep01-gs00001"]
    (checkpoint,) = (tmp_path / "logs").glob("*/ckpts/*")
    assert EMA_FILE not in read_manifest(checkpoint)["files"]
    assert "ema" not in read_manifest(checkpoint)


def test_training_is_the_same_with_an_average(run_cli, prompts, micro_model, tmp_path) -> None:
    losses = []
    for more in ({}, {"ema_decay_rate": 0.9, "ema_resume_model": micro_model, "sample_steps": 1}):
        shutil.rmtree(tmp_path / "logs", ignore_errors=True)
        assert run_cli(save_nothing=True, sample_prompts=prompts, **more) == 0
        (run,) = (tmp_path / "logs").glob("*_*")
        losses.append([event.value for event in EventAccumulator(str(run)).Reload().Scalars("loss")])
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_an_average_in_another_memory_is_the_same(make_session) -> None:
    """Without a GPU both are the CPU's, but the way through copies is the one that is taken."""
    sessions = [make_session(ema_decay_rate=0.7), make_session(ema_decay_rate=0.7)]
    sessions[1].ema._elsewhere = True
    for session in sessions:
        list(steps(session))
    here, elsewhere = (averages(session) for session in sessions)
    for name, average in here.items():
        torch.testing.assert_close(average, elsewhere[name], rtol=1e-6, atol=1e-7)
    before, session = weights(sessions[1]), sessions[1]
    storages = [p.data_ptr() for p in session.ema.parameters]
    with session.ema.in_use():
        assert_equal(weights(session), elsewhere)
        assert_equal(averages(session), before)
    assert_equal(weights(session), before)
    assert_equal(averages(session), elsewhere)
    assert [p.data_ptr() for p in session.ema.parameters] == storages


# Samples


def test_the_exchange_takes_no_memory_and_is_undone(make_session) -> None:
    session = make_session(ema_decay_rate=0.7)
    list(steps(session))
    trained, average = weights(session), averages(session)
    storages = [p.data_ptr() for p in (*session.ema.parameters, *session.ema.averages)]

    def fail_within() -> None:
        with session.ema.in_use():
            assert_equal(weights(session), average)
            assert {p.data_ptr() for p in (*session.ema.parameters, *session.ema.averages)} == set(storages)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert_equal(weights(session), trained)
    assert_equal(averages(session), average)
    assert [p.data_ptr() for p in (*session.ema.parameters, *session.ema.averages)] == storages


def test_a_signal_while_samples_are_drawn_leaves_the_weights_as_they_were(make_session, monkeypatch) -> None:
    session = make_session(ema_decay_rate=0.7, sample_steps=100)
    list(steps(session))
    trained, average, seen = weights(session), averages(session), []

    def stop(session: Any, name: str, tag: str) -> None:
        seen.append((name, weights(session)))
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal's handler has raised Interrupted")

    monkeypatch.setattr(session.output, "sample", stop)
    with StopSignals() as session.signals, session.signals.deferred():
        session.sample("after")
        assert session.signals.number == signal.SIGTERM
    ((name, drawn_with),) = seen
    assert name == "after-ema"
    assert_equal(drawn_with, average)
    assert_equal(weights(session), trained)
    with pytest.raises(Interrupted), session.signals.deferred(False):
        pass


@pytest.mark.parametrize(
    ("keys", "files"),
    [
        ((), {"after-ema"}),
        (("ema_sample_ema_model",), {"after-ema"}),
        (("ema_sample_nonema_model",), {"after"}),
        (("ema_sample_ema_model", "ema_sample_nonema_model"), {"after", "after-ema"}),
    ],
)
def test_which_weights_samples_are_drawn_from(make_session, prompts, keys, files) -> None:
    given = {"ema_decay_rate": 0.9, "sample_steps": 100, "sample_prompts": prompts, **dict.fromkeys(keys, "true")}
    session = make_session(**given)
    session.sample("after")
    grids = {path.name for path in (session.output.folder / "samples").glob("*-grid.jpg")}
    assert grids == {f"{name}-grid.jpg" for name in files}
    session.metrics.close()
    tags = set(EventAccumulator(str(session.output.folder)).Reload().Tags()["images"])
    assert {tag.partition("/")[0] for tag in tags} == {name.replace("after", "samples") for name in files}


def test_samples_are_those_of_the_folder_that_diffusers_opens(run_cli, prompts, tmp_path) -> None:
    from diffusers import StableDiffusionPipeline

    both = {"ema_sample_ema_model": True, "ema_sample_nonema_model": True}
    run = {"ema_decay_rate": 0.9, "max_epochs": 2, "sample_steps": 100, "sample_prompts": prompts}
    assert run_cli(**run, **both) == 0
    assert checkpoints(tmp_path) == ["last-myproj-ep02-gs00008", "last-myproj-ep02-gs00008-ema"]
    (checkpoint,) = (tmp_path / "logs").glob("*/ckpts/*00008")
    trained, average = ({p.name: p.read_bytes() for p in (checkpoint.parents[1] / "samples").glob(f"{name}-0*")}
                        for name in ("after", "after-ema"))  # fmt: skip
    assert len(average) == 2
    assert not set(trained.values()) & set(average.values())
    settings, _ = read_sample_prompts(prompts)
    drawn = []
    for name, folder in (("after", checkpoint), ("after-ema", ema_folder(checkpoint))):
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        samples = draw_samples(
            settings or SampleSettings(), unet=pipeline.unet, text_encoder=pipeline.text_encoder, vae=pipeline.vae,
            tokenizer=pipeline.tokenizer, scheduler_config=pipeline.scheduler.config, device="cpu", resolution=64,
        )  # fmt: skip
        paths = save_samples(samples, sample_grid(samples, ""), tmp_path / "drawn", name)
        drawn.append({path.name: path.read_bytes() for path in paths[:-1]})
    assert drawn == [trained, average]


# Checkpoints


def test_the_folder_of_the_average_and_the_exact_average_are_the_same_weights(run_cli, tmp_path, micro_model) -> None:
    assert run_cli(ema_decay_rate=0.9, max_steps=3) == 0
    (checkpoint,) = (tmp_path / "logs").glob("*/ckpts/*00003")
    exact, folder = load_file(checkpoint / EMA_FILE), ema_folder(checkpoint)
    averaged = {"unet": load_file(folder / UNET_FILE), "text_encoder": load_file(folder / TEXT_ENCODER_FILE)}
    trained = {"unet": load_file(checkpoint / UNET_FILE), "text_encoder": load_file(checkpoint / TEXT_ENCODER_FILE)}
    for component, tensors in averaged.items():
        for name, tensor in tensors.items():
            own = f"{component}.{name.removeprefix('text_model.')}"
            own = own if own in exact else f"{component}.{name}"
            assert torch.equal(tensor, exact.get(own, trained[component][name])), name
            assert torch.equal(tensor, trained[component][name]) == (own not in exact) or "bias" in name, name
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    assert "run_id" not in manifest
    assert manifest["ema_of"] == read_manifest(checkpoint)["run_id"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {p.relative_to(micro_model).as_posix() for p in micro_model.rglob("*") if p.is_file()} | {MANIFEST}


def test_keep_last_n_removes_both_together(run_cli, tmp_path) -> None:
    settings = {"max_epochs": 4, "batch_size": 8, "save_every_n_epochs": 1, "keep_last_n_ckpts": 2}
    assert run_cli(ema_decay_rate=0.9, **settings) == 0
    names = [f"{name}{ema}" for name in ("last-myproj-ep04-gs00004", "myproj-ep03-gs00003") for ema in ("", "-ema")]
    assert checkpoints(tmp_path) == names
    (older,) = (tmp_path / "logs").glob("*/ckpts/*gs00003")
    assert not (older / EMA_FILE).exists(), "an older checkpoint loses its training state, the average with it"
    assert (ema_folder(older) / UNET_FILE).exists()


def test_the_average_of_another_run_is_left_alone(run_cli, tmp_path) -> None:
    out = tmp_path / "out"
    settings = {"ema_decay_rate": 0.9, "max_steps": 1, "save_ckpt_dir": out}
    assert run_cli(**settings) == 0
    name = "last-myproj-ep01-gs00001"
    shutil.rmtree(out / name)
    before = (out / f"{name}-ema" / MANIFEST).read_bytes()
    assert run_cli(**settings) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{name}-2", f"{name}-2-ema", f"{name}-ema"]
    assert (out / f"{name}-ema" / MANIFEST).read_bytes() == before


def test_the_average_of_a_checkpoint_that_a_crash_kept_from_its_name_is_replaced(make_session) -> None:
    session = make_session(ema_decay_rate=0.9)
    next(steps(session))
    session.save(last=True)
    (checkpoint,) = session.output.saved
    shutil.rmtree(checkpoint)
    (ema_folder(checkpoint) / UNET_FILE).write_bytes(b"of the crash")
    session.output._saved_step = -1
    session.save(last=True)
    assert session.output.saved[-1] == checkpoint
    check_files(ema_folder(checkpoint), read_manifest(ema_folder(checkpoint)))


def test_a_failed_save_leaves_no_average_behind(make_session) -> None:
    session = make_session(ema_decay_rate=0.9)
    next(steps(session))
    writer = session.output.writer
    snapshot = session.output.snapshot(session, {}, copy=False, last=True)
    with pytest.raises(Exception, match="pickle"):
        writer.write(replace(snapshot, states={"training_state.pt": lambda: None}))
    assert list(writer.folder.iterdir()) == []


def test_the_copy_in_memory_counts_the_average(make_session, monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(output_module, "fits_in_memory", lambda size: sizes.append(size) or False)
    for rate in ("0.9", "null"):
        session = make_session(ema_decay_rate=rate)
        next(steps(session))
        session.save()
        extra = size_of(session.ema.averages) if session.ema else 0
        sizes[-1] -= extra
        assert (extra > 0) == (rate == "0.9")
    assert sizes[0] == sizes[1]


# Resume


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"ema_decay_rate": 0.9},
        {"ema_strength_target": 0.1, "ema_update_interval": 2, "disable_amp": "false", "mixed_precision": "bf16"},
        {"ema_decay_rate": 0.99, "ema_device": "cpu", "sample_steps": 2, "ema_sample_nonema_model": True},
    ],
    ids=["every step", "bf16 with a target and an interval", "with samples of both"],
)
def test_a_run_with_an_average_goes_on_bit_for_bit(train_and_stop, prompts, more) -> None:
    settings = {"max_epochs": 3, "cond_dropout": 0.3, "save_optimizer": True, "sample_prompts": prompts, **more}
    parts = train_and_stop("parts", at=(3, 8), **settings)
    assert (parts / EMA_FILE).exists()
    assert_equal_runs(train_and_stop("whole", **settings), parts)


@pytest.mark.slow
def test_an_average_that_begins_on_resume_goes_on_bit_for_bit(train_and_stop, flags, tmp_path, capsys) -> None:
    """The rate of a target depends on where the average began, not on where the run goes on."""
    checkpoints = []
    for name, at in (("once", (2,)), ("twice", (2, 7))):
        settings = {"max_epochs": 3, "cond_dropout": 0.3}
        given = [f"--{key}={value}" for key, value in {**flags, **settings, "project_name": name}.items()]
        begin_ema = ["--resume=latest", "--ema_strength_target=0.3", "--ema_update_interval=3"]
        with pytest.MonkeyPatch.context() as patch:
            for number, step in enumerate((*at, None)):
                _stop_at(patch, step)
                assert main([*given, *(begin_ema if number else [])]) == (143 if step else 0)
                patch.undo()
        (checkpoint,) = (tmp_path / "logs").glob(f"{name}_*/ckpts/last-*gs00012")
        checkpoints.append(checkpoint)
        assert read_manifest(checkpoint)["ema"] == {"begun": 2}
    out = capsys.readouterr().out
    assert out.count("it begins with the checkpoint's weights") == 2
    assert out.count("it goes on with the checkpoint's average") == 1
    assert out.count(f"EMA: {0.3 ** (1 / 4):.8g} of the average stays at each update, one every 3 steps") == 3
    assert_equal_runs(*checkpoints)


def _stop_at(patch: pytest.MonkeyPatch, step: int | None) -> None:
    after_step = loop.after_step

    def stop(session: Any, *rest: Any) -> bool:
        if session.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return after_step(session, *rest)

    patch.setattr(loop, "after_step", stop)


def test_an_average_that_is_switched_on_begins_with_the_checkpoints_weights(run_cli, tmp_path, capsys) -> None:
    assert run_cli(max_steps=2) == 0
    first = next((tmp_path / "logs").glob("*/ckpts/*00002"))
    assert run_cli(max_steps=3, resume="latest", ema_decay_rate=0.9, ema_update_interval=NEVER) == 0
    out = capsys.readouterr().out
    assert "note: changed since the checkpoint: ema_decay_rate null -> 0.9" in out
    assert "one every 1000000 steps; it begins with the checkpoint's weights" in out
    assert (
        "note: EMA: the average is never updated: the next would be at step 1000000, and the run ends at step 3" in out
    )
    second = next((tmp_path / "logs").glob("*/ckpts/*00003"))
    assert_equal(load_file(ema_folder(second) / UNET_FILE), load_file(first / UNET_FILE))
    assert_equal(load_file(ema_folder(second) / TEXT_ENCODER_FILE), load_file(first / TEXT_ENCODER_FILE))


def test_an_average_that_is_switched_off_says_so(run_cli, tmp_path, capsys) -> None:
    assert run_cli(max_steps=2, ema_decay_rate=0.9) == 0
    assert run_cli(max_steps=3, resume="latest", ema_decay_rate="null") == 0
    assert "note: EMA is off now: the average that the checkpoint has ends here" in capsys.readouterr().out
    assert checkpoints(tmp_path)[-1] == "last-myproj-ep01-gs00003"


def test_a_resume_without_a_configuration_keeps_the_average(run_cli, tmp_path, capsys) -> None:
    assert run_cli(max_steps=2, ema_decay_rate=0.9) == 0
    assert main([f"--resume={next((tmp_path / 'logs').glob('*/ckpts/*00002'))}", "--max_steps=3"]) == 0
    assert "0.9 of the average stays at each update, one every step; it goes on with" in capsys.readouterr().out


def test_a_parameter_that_did_not_train_begins_its_average(run_cli, write_optimizer, tmp_path, capsys) -> None:
    assert run_cli(max_steps=2, ema_decay_rate=0.9) == 0
    write_optimizer({**OPTIMIZERS, "text_encoder_freezing": {"unfreeze_last_n_layers": 3}})
    assert run_cli(max_steps=3, resume="latest", ema_decay_rate=0.9, resume_changed=True) == 0
    assert "note: EMA: 16 parameters have no average yet and begin one (text_encoder." in capsys.readouterr().out


def test_a_damaged_average_is_found(run_cli, tmp_path, capsys) -> None:
    assert run_cli(max_steps=2, ema_decay_rate=0.9) == 0
    path = next((tmp_path / "logs").glob("*/ckpts/*00002")) / EMA_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run_cli(max_steps=3, ema_decay_rate=0.9, resume=path.parent) == 2
    assert f"{EMA_FILE} has changed since it was written" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(flags, tmp_path) -> None:
    from train.test_processes import launch

    given = {**flags, "batch_size": 2, "max_epochs": 3, "cond_dropout": 0.3, "run_name": "two", "save_optimizer": True}
    given |= {"ema_decay_rate": 0.9, "save_every_n_epochs": 2}
    result = launch(2, given)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "logs" / "two" / "ckpts"
    result = launch(2, {**given, "resume": folder / "myproj-ep02-gs00004"})
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("it goes on with the checkpoint's average") == 1
    whole, again = folder / "last-myproj-ep03-gs00006", folder / "last-myproj-ep03-gs00006-2"
    assert_equal(load_file(whole / UNET_FILE), load_file(again / UNET_FILE))
    assert_equal(load_file(whole / EMA_FILE), load_file(again / EMA_FILE))
    for name in (UNET_FILE, TEXT_ENCODER_FILE):
        assert_equal(load_file(ema_folder(whole) / name), load_file(ema_folder(again) / name))
    assert not torch.equal(*(load_file(c / UNET_FILE)["conv_in.weight"] for c in (whole, ema_folder(whole))))


# Where it begins


def test_it_begins_with_the_model_that_is_named(run_cli, tmp_path, capsys) -> None:
    from make_tiny_sd import make_tiny_sd

    make_tiny_sd("micro", tmp_path / "other", seed=1)
    assert run_cli(max_steps=1, ema_decay_rate=0.9, ema_update_interval=NEVER, ema_resume_model=tmp_path / "other") == 0
    assert f"it begins with {tmp_path / 'other'}" in capsys.readouterr().out
    average = next((tmp_path / "logs").glob("*/ckpts/*-ema"))
    assert_equal(load_file(average / UNET_FILE), load_file(tmp_path / "other" / UNET_FILE))
    run = json.loads((average.parents[1] / "run.json").read_text())
    assert run["train"]["ema_resume_model"] == str(tmp_path / "other")


def test_findlast_takes_the_projects_newest_average(run_cli, tmp_path, capsys) -> None:
    assert run_cli(max_steps=2, ema_decay_rate=0.9, project_name="one") == 0
    first = next((tmp_path / "logs").glob("*/ckpts/*-ema"))
    again = {"max_steps": 1, "ema_decay_rate": 0.9, "ema_update_interval": NEVER, "ema_resume_model": "findlast"}
    assert run_cli(**again, project_name="one", run_name="second") == 0
    assert f"it begins with {first}" in capsys.readouterr().out
    second = next((tmp_path / "logs" / "second" / "ckpts").glob("*-ema"))
    assert_equal(load_file(second / UNET_FILE), load_file(first / UNET_FILE))


def test_another_kind_of_model_is_refused_before_anything_is_written(run_cli, tmp_path, capsys) -> None:
    from make_tiny_sd import make_tiny_sd

    make_tiny_sd("micro", tmp_path / "other", sd2=True)
    unet = tmp_path / "other" / UNET_FILE
    capsys.readouterr()
    assert run_cli(max_steps=1, ema_decay_rate=0.9, ema_resume_model=tmp_path / "other") == 2
    error = capsys.readouterr().err
    reason = f"{tmp_path / 'other'} is another kind of model: it has no unet."
    assert error.startswith(f"error: --ema_resume_model: {reason}")
    unet.write_bytes(unet.read_bytes()[:-1])
    assert run_cli(max_steps=1, ema_decay_rate=0.9, ema_resume_model=tmp_path / "other") == 2
    assert capsys.readouterr().err.startswith("error: --ema_resume_model: ")
    assert not list((tmp_path / "logs").glob("*_*"))


def test_check_says_how_it_averages(flags, capsys) -> None:
    given = [f"--{key}={value}" for key, value in flags.items()]
    assert main([*given, "--check", "--ema_strength_target=0.1", "--ema_update_interval=2"]) == 0
    line = f"note: EMA: {0.1**0.5:.8g} of the average stays at each update, one every 2 steps; it begins with"
    assert line in capsys.readouterr().out


def test_a_device_that_the_run_does_not_have_is_refused(run_cli, capsys) -> None:
    assert run_cli(ema_decay_rate=0.9, ema_device="cuda") == 2
    expected = 'error: --ema_device: got "cuda", and this run is on cpu; expected null or "cpu"\n'
    assert capsys.readouterr().err == expected
