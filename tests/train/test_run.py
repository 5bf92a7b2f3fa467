"""Whole runs of the command: what they write, what they say, and how they end."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from ed_train import __version__
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import EdTrainError
from ed_train.models.atomic import MANIFEST, file_sha256
from ed_train.registry import load_registry
from ed_train.train.metrics import Metrics
from ed_train.train.step import StepResult
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "logs").iterdir()
    return folder


def test_a_run_writes_a_checkpoint_that_diffusers_opens(
    run_cli, write_optimizer, tmp_path, micro_model, capsys
) -> None:
    write_optimizer({**ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 1}})
    assert run_cli(save_optimizer=True) == 0
    (checkpoint,) = (run_folder(tmp_path) / "ckpts").iterdir()
    assert checkpoint.name == "last-myproj-ep01-gs00004"
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    images = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    before = load_file(micro_model / "text_encoder" / "model.safetensors")
    after = load_file(checkpoint / "text_encoder" / "model.safetensors")
    assert before.keys() == after.keys(), "the text_model. prefix that every reader expects is there"
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {n.split(".layers.")[1][0] for n in changed if ".layers." in n} == {"3"}
    assert not any("embeddings" in name for name in changed)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert manifest["step"] == 4
    assert manifest["optimizers"]["unet"]["optimizer"] == "adamw"
    for name, entry in manifest["files"].items():
        assert file_sha256(checkpoint / name) == entry["sha256"]
    for part, name in (("unet", "optimizer_unet.pt"), ("text_encoder", "optimizer_te.pt")):
        state = torch.load(checkpoint / name, weights_only=True)
        assert len(state["state"]) == len(manifest["optimizers"][part]["parameters"])
    assert "text encoder: " in (out := capsys.readouterr().out)
    assert "    frozen: embeddings, encoder.layers.0-2\n" in out
    assert f"checkpoint: {checkpoint}" in out
    assert f"as one file for other programs: ed-train --export {checkpoint}\n" in out


def test_the_report_says_what_trains_with_what_and_where_it_came_from(run_cli, write_optimizer, capsys) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3, "d0": 1e-5}})
    assert run_cli(max_steps=1, save_nothing=True, grad_accum=2, lowvram=True) == 0
    out = capsys.readouterr().out
    for line in (
        "UNet: 0.5 M of 0.5 M parameters train",
        "with adamw",
        "lr 0.001  (optimizer.json:1)",
        "betas [0.9, 0.999], epsilon 1e-08, weight_decay 0.01, amsgrad false  (default of ed-train-adamw",
        "steps: 1 in 1 epoch, 4 pictures each (2 a batch x 2 accumulated x 1 process)",
        "note: optimizer.json:1: base.d0 has no effect on the unet: adamw has no d0",
        "note: --lowvram true is a dead key without effect: use gradient_checkpointing",
        "step 1/1: loss ",
    ):
        assert line in out


def test_the_device_is_named_before_pictures_are_encoded_on_it(run_cli, write_optimizer, monkeypatch, capsys) -> None:
    def before_any_picture(*_: object) -> None:
        raise EdTrainError("stop")

    write_optimizer(ADAMW)
    monkeypatch.setattr("ed_train.train.setup.prepare_data", before_any_picture)
    assert run_cli() == 1
    assert capsys.readouterr().out == f"ed-train {__version__} on cpu: float32, 1 process, seed 555\n"


def test_the_8_bit_default_warns_once_on_a_cpu(run_cli, capsys) -> None:
    assert run_cli(max_steps=1, save_nothing=True) == 0
    assert capsys.readouterr().out.count("10 to 16 times") == 1


def test_a_slow_step_has_a_rate_above_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    seconds = itertools.count(step=25)
    monkeypatch.setattr("ed_train.train.metrics.time.perf_counter", lambda: next(seconds))
    metrics = Metrics(tmp_path, 1, 2, TrainConfig(log_step=1))
    metrics.after_step(1, StepResult(torch.ones(()), {}, (), 1, ()), [], lambda tensor: tensor)
    metrics.close()
    assert re.search(r"step 1/2: loss 1\.0000, img/s 0\.0\d+\n", capsys.readouterr().out)


def test_tensorboard_has_every_scalar_and_sample_pictures(
    run_cli, write_optimizer, tmp_path, micro_model, capsys
) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}, "text_encoder_overrides": {"optimizer": "prodigy"}})
    prompts = tmp_path / "prompts.json"
    settings = {"num_inference_steps": 2, "cfgs": [1, 7], "samples": [{"prompt": "a cat"}, {"random_caption": True}]}
    prompts.write_text(json.dumps(settings))
    assert run_cli(sample_steps=2, sample_prompts=prompts, save_nothing=True) == 0
    out = capsys.readouterr().out
    drawn = "samples: 1 prompt and 1 caption of the pictures with guidance 1, 7"
    assert f"{drawn}; before the first step, every 2 steps and at the end\n" in out
    steps = [line.rpartition("img/s ")[2] for line in out.splitlines() if line.startswith("step ")]
    assert [bool(re.fullmatch(r"\d+\.\d, \d\d:\d\d left", line)) for line in steps] == [False, True, True, False]
    folder = run_folder(tmp_path)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    names = {"loss", "images_per_second", "step_seconds", "memory_gb"}
    of_each = ("lr", "effective_lr", "grad_norm", "optimizer_state_mb")
    names |= {f"{n}/{c}" for n in of_each for c in ("unet", "text_encoder")}
    assert set(tags["scalars"]) == names
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("effective_lr/text_encoder")[0].value < 1e-3
    rates = zip(events.Scalars("images_per_second"), events.Scalars("step_seconds"), strict=True)
    assert all(rate.value * step.value == pytest.approx(2, rel=1e-5) for rate, step in rates), "2 pictures a step"
    (state,) = events.Scalars("optimizer_state_mb/unet")  # AdamW's two averages in float32
    parameters = sum(t.numel() for t in load_file(micro_model / "unet" / WEIGHTS).values())
    assert state.value == pytest.approx(8 * parameters / 1e6, rel=0.01)
    assert len(tags["images"]) == 5, "four pictures and a grid"
    pictures = {p.name.partition("-")[0] for p in (folder / "samples").iterdir()}
    assert pictures == {"before", "step00002", "after"}
    assert len(list((folder / "samples").iterdir())) == 3 * 5, "four pictures and a grid each time"


@pytest.mark.parametrize("at", ["diffusers.UNet2DConditionModel.forward", "torch.optim.AdamW.step"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_a_device_without_memory_to_train_is_an_error_that_says_what_takes_less(
    run_cli, write_optimizer, monkeypatch, capsys, at, in_backward
) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}})

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 3.00 GiB. And more.")

    monkeypatch.setattr(at, full)
    assert run_cli(optimizer_in_backward=in_backward) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    expected = (
        "error: the device's memory is full: CUDA out of memory. Tried to allocate 2.00 GiB; a smaller batch_size, "
    )
    assert line.startswith(expected)


def test_a_cpu_without_memory_is_an_error_of_one_line_as_well(run_cli, write_optimizer, monkeypatch, capsys) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}})
    monkeypatch.setattr("diffusers.UNet2DConditionModel.forward", lambda *a, **k: torch.empty(2**50))
    assert run_cli() == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: the device's memory is full: ")
    assert "a smaller batch_size" in line


def test_a_device_without_memory_for_samples_costs_the_samples_alone(
    run_cli, write_optimizer, monkeypatch, capsys, tmp_path
) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}})
    (tmp_path / "prompts.json").write_text('{"samples": [{"prompt": "a cat", "size": [64, 64]}]}')

    def decode(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("diffusers.AutoencoderKL.decode", decode)
    assert run_cli(sample_steps=2, sample_prompts=tmp_path / "prompts.json") == 0
    said = "warning: no samples of step00002: the device's memory is full; smaller pictures, or a smaller batch_size"
    out = capsys.readouterr().out
    assert said in out
    assert "trained 4 steps" in out


def test_samples_are_drawn_from_fixed_seeds_and_leave_training_alone(run_cli, write_optimizer, tmp_path) -> None:
    write_optimizer(ADAMW)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    losses = []
    for steps in (0, 1):
        shutil.rmtree(tmp_path / "logs", ignore_errors=True)
        assert run_cli(sample_steps=steps, sample_prompts=tmp_path / "prompts.txt", save_nothing=True) == 0
        events = EventAccumulator(str(run_folder(tmp_path))).Reload()
        losses.append([e.value for e in events.Scalars("loss")])
    assert losses[0] == losses[1]


def test_checkpoints_every_n_epochs_from_an_epoch_on(run_cli, write_optimizer, tmp_path) -> None:
    write_optimizer(ADAMW)
    settings = {"max_epochs": 5, "batch_size": 8, "save_every_n_epochs": 1, "save_ckpts_from_n_epochs": 3}
    assert run_cli(**settings, project_name="cats", no_prepend_last=True) == 0
    names = sorted(p.name for p in (run_folder(tmp_path) / "ckpts").iterdir())
    assert names == ["cats-ep03-gs00003", "cats-ep04-gs00004", "cats-ep05-gs00005"]


def test_checkpoints_every_n_steps(run_cli, write_optimizer, tmp_path, capsys) -> None:
    write_optimizer(ADAMW)
    settings = {"max_epochs": 2, "save_every_n_steps": 3, "save_every_n_epochs": 2, "keep_last_n_ckpts": 2}
    assert run_cli(**settings, ckpt_every_n_minutes=0.5, project_name="cats") == 0
    out = capsys.readouterr().out
    assert "checkpoints: every 2 epochs, every 3 steps, every 0.5 minutes and at the end; 2 of them stay\n" in out
    assert [Path(line).name for line in out.splitlines() if line.startswith("saved ")] == [
        "cats-ep01-gs00003",
        "cats-ep02-gs00006",
        "last-cats-ep02-gs00008",
    ]


def test_two_runs_of_one_name_get_folders_of_their_own(run_cli, write_optimizer, tmp_path) -> None:
    write_optimizer(ADAMW)
    for _ in range(2):
        assert run_cli(max_steps=1, run_name="same", save_ckpt_dir=tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["same", "same-2"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "last-myproj-ep01-gs00001",
        "last-myproj-ep01-gs00001-2",
    ]


def test_the_same_seed_gives_the_same_weights(run_cli, write_optimizer, tmp_path) -> None:
    write_optimizer(ADAMW)
    weights = []
    for seed in (1, 1, 2):
        shutil.rmtree(tmp_path / "logs", ignore_errors=True)
        assert run_cli(seed=seed, flip_p=0.5, cond_dropout=0.5, shuffle_tags=True, crops_per_image=2) == 0
        (checkpoint,) = (run_folder(tmp_path) / "ckpts").iterdir()
        weights.append(load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors"))
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not all(torch.equal(weights[0][n], weights[2][n]) for n in weights[0])


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_checkpointing": True, "clip_skip": 2},
        {"loss_type": "mse_huber", "min_snr_gamma": 5, "zero_frequency_noise_ratio": 0.02},
        {"enable_zero_terminal_snr": True, "pyramid_noise_discount": 0.8, "embedding_perturbation": 1},
        {"mixed_precision": "bf16", "disable_amp": None, "grad_accum": 3, "clip_grad_norm": 1},
        {"disable_textenc_training": True, "train_sampler": "ddim"},
        {"write_schedule": True},
    ],
    ids=lambda more: "-".join(more),
)
def test_settings_train(run_cli, write_optimizer, tmp_path, more) -> None:
    write_optimizer(ADAMW)
    assert run_cli(**{"max_steps": 2, "save_nothing": True, **more}) == 0
    events = EventAccumulator(str(run_folder(tmp_path))).Reload()
    assert all(0 < e.value < 100 for e in events.Scalars("loss"))
    if "write_schedule" in more:
        batches = [json.loads(line) for line in (run_folder(tmp_path) / "schedule.jsonl").read_text().splitlines()]
        assert [len(batch["samples"]) for batch in batches] == [2, 2, 2, 2]
        assert len({sample["image"] for batch in batches for sample in batch["samples"]}) == 8


def test_v_prediction_model(run_cli, write_optimizer, tmp_path, capsys) -> None:
    from make_tiny_sd import make_tiny_sd

    make_tiny_sd("micro", tmp_path / "sd2", sd2=True, v_prediction=True)
    write_optimizer(ADAMW)
    assert run_cli(resume_ckpt=tmp_path / "sd2", max_steps=2) == 0
    assert "(v-prediction)" in capsys.readouterr().out


@pytest.mark.parametrize("name", [o.spec.name for o in load_registry() if "cuda" not in o.spec.devices])
def test_every_optimizer_trains_and_saves(run_cli, write_optimizer, tmp_path, name) -> None:
    write_optimizer({"base": {"optimizer": name}})
    assert run_cli(max_steps=2, save_optimizer=True) == 0
    (checkpoint,) = (run_folder(tmp_path) / "ckpts").iterdir()
    state = torch.load(checkpoint / "optimizer_unet.pt", weights_only=True)
    assert state["param_groups"]


def test_no_pictures_end_in_one_line_and_status_2(run_cli, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run_cli(data_root=tmp_path / "empty") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "empty") in error
    assert not (tmp_path / "logs" / "ckpts").exists()


def test_a_bad_picture_is_named_and_skipped_and_the_rest_trains(
    run_cli, write_optimizer, photos, tmp_path, capsys
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "broken.jpg").write_bytes((next(photos.glob("*.jpg"))).read_bytes()[:2000])
    (folder / "text.png").write_text("not a picture")
    write_optimizer(ADAMW)
    assert run_cli(data_root=folder, max_steps=1, save_nothing=True) == 0
    out = capsys.readouterr().out
    assert "data: " in out
    assert "8 pictures" in out
    assert "warning: picture not used: " in out
    assert "broken.jpg" in out
    assert "text.png" in out
    assert "2 pictures were not used" in out


def test_a_model_that_is_not_sd_ends_in_one_line_and_status_2(run_cli, micro_model, tmp_path, capsys) -> None:
    shutil.copytree(micro_model, tmp_path / "sdxl")
    index = tmp_path / "sdxl" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    assert run_cli(resume_ckpt=tmp_path / "sdxl") == 2
    assert "--resume_ckpt" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_no_traceback(run_cli, write_optimizer, monkeypatch, capsys) -> None:
    from ed_train.train import train

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "after_step", interrupt)
    write_optimizer(ADAMW)
    assert run_cli() == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_lr_follows_its_schedule_in_optimizer_steps(run_cli, write_optimizer, tmp_path) -> None:
    """The original stepped its schedules with every batch, whatever grad_accum said."""
    schedule = {"lr": 1e-3, "lr_scheduler": "linear", "lr_warmup_steps": 0, "lr_decay_steps": 4}
    write_optimizer(
        {"base": {"optimizer": "adamw", **schedule}, "text_encoder_overrides": {"lr_scheduler": "constant"}}
    )
    assert run_cli(grad_accum=2, max_epochs=2, save_nothing=True) == 0
    events = EventAccumulator(str(run_folder(tmp_path))).Reload()
    assert [e.value for e in events.Scalars("lr/unet")] == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0])
    assert [e.value for e in events.Scalars("lr/text_encoder")] == pytest.approx([1e-3] * 4)


def test_save_nothing_means_no_checkpoint_of_any_kind(run_cli, write_optimizer, tmp_path, capsys) -> None:
    write_optimizer(ADAMW)
    settings = {"max_epochs": 2, "batch_size": 8, "save_every_n_epochs": 1, "ckpt_every_n_minutes": 1e-9}
    assert run_cli(**settings, save_every_n_steps=1, save_nothing=True) == 0
    assert "checkpoints: none (save_nothing)\n" in capsys.readouterr().out
    assert not (run_folder(tmp_path) / "ckpts").exists()


def test_gpuid_without_such_a_gpu_gets_a_line(run_cli, write_optimizer, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # put back afterwards: gpuid sets it
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    write_optimizer(ADAMW)
    assert run_cli(max_steps=1, save_nothing=True, gpuid=3) == 0
    out = capsys.readouterr()
    assert "note: gpuid=3 (--gpuid) has no effect: no such GPU is in use, the device is cpu" in out.out + out.err
