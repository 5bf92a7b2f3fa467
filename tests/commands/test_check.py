"""``--check`` says what a run would do, without doing it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ed_train.config.load import load_config
from ed_train.models.load import SdModel
from ed_train.models.shapes import configuration_of
from ed_train.registry import load_registry
from ed_train.train.preview import empty_modules
from ed_train.train.setup import freeze_modules
from PIL import Image
from safetensors.torch import load_file, save_file

MIXED = {
    "base": {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine", "lr_decay_steps": 0},
    "text_encoder_overrides": {"optimizer": "prodigy", "weight_decay": 0.1, "lr_warmup_steps": 1, "lr_decay_steps": 9},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 1},
    "unet_freezing": ["freeze *", "unfreeze *attn2*"],
}


def test_it_counts_what_the_run_trains_and_does(command, write_optimizer, make_session) -> None:
    write_optimizer(MIXED)
    run = {"max_epochs": 3, "grad_accum": 3, "batch_size": 3, "clip_skip": 2}
    session = make_session(**run)
    shown = command("--check", "--json", **run).json
    assert (shown["steps"], shown["epochs"]) == (session.total_steps, session.metrics.epoch_bar.total) == (3, 3)
    assert shown["data"]["batches_per_epoch"] == session.loader.epochs.batches(0) == 3
    assert shown["components"].keys() == {"unet", "text_encoder"}
    for component in session.components:
        told = shown["components"][component.name]
        total = sum(p.numel() for p in component.module.parameters())
        assert told["trainable_parameters"] == sum(p.numel() for p in component.parameters) > 0
        assert told["trainable_parameters"] + told["frozen_parameters"] == total
        assert told["trainable_tensors"] == len(component.parameters)
    unet, text_encoder = shown["components"]["unet"], shown["components"]["text_encoder"]
    assert (unet["optimizer"], text_encoder["optimizer"]) == ("adamw", "prodigy")
    assert (unet["lr_scheduler"], unet["lr_decay_steps"], unet["lr_warmup_steps"]) == ("cosine", 4, 0)
    assert (text_encoder["lr_decay_steps"], text_encoder["lr_warmup_steps"]) == (9, 1)
    assert text_encoder["frozen_blocks"] == {"frozen": ["embeddings", "encoder.layers.0-3"]}
    freezing = text_encoder["freezing"]["text_encoder_freezing"]
    assert (freezing["value"], freezing["source"]) == ({"unfreeze_last_n_layers": 1}, "optimizer.json:1")
    assert unet["freezing"].keys() == {"unet_freezing"}


def test_every_value_has_its_source(command, write_optimizer, flags, tmp_path) -> None:
    train = tmp_path / "train.json"
    train.write_text(json.dumps({"lr": 2e-4, "batch_size": 4, "seed": 7}, indent=1))
    del flags["batch_size"]
    write_optimizer(MIXED)
    shown = command("--check", "--json", f"--config={train}", max_epochs=5).json
    origin = "default of ed-train-adamw 0.1.0"
    unet = shown["components"]["unet"]
    assert unet["options"]["lr"] == {"value": 2e-4, "source": "train.json:2 lr"}
    assert unet["options"]["betas"] == {"value": [0.9, 0.999], "source": origin}
    assert shown["components"]["text_encoder"]["options"]["weight_decay"] == {
        "value": 0.1,
        "source": "optimizer.json:1 text_encoder_overrides.weight_decay",
    }
    assert unet["sources"]["lr_scheduler"] == "optimizer.json:1 base.lr_scheduler"
    settings = shown["settings"]
    assert settings["batch_size"] == {"value": 4, "source": "train.json:3"}
    assert settings["max_epochs"] == {"value": 5, "source": "--max_epochs"}
    assert settings["clip_skip"] == {"value": 0, "source": "default"}
    assert shown["seed"] == 7
    assert "base.lr=0.001 (optimizer.json:1)" in " ".join(shown["warnings"])
    assert [p["distribution"] for p in shown["plugins"]] == ["ed-train-adamw", "ed-train-freezing", "ed-train-prodigy"]


def test_what_a_flag_goes_over_is_shown_beside_it(command, flags, tmp_path) -> None:
    train = tmp_path / "train.json"
    train.write_text(json.dumps({"lr": 2e-4, "batch_size": 4, "seed": 7}, indent=1))
    command_line = ("--check", f"--config={train}", "--lr=null", "--seed=7")
    settings = command(*command_line, "--json").json["settings"]
    assert settings["batch_size"]["overrides"] == {"value": 4, "source": "train.json:3"}
    assert settings["lr"] == {
        "value": None,
        "source": "default",
        "overrides": {"value": 2e-4, "source": "train.json:2"},
    }
    assert "overrides" not in settings["seed"], "the same value is no news"
    shown = command(*command_line).out
    assert "(--batch_size, over 4 in train.json:3)" in shown
    assert "(--lr null, over 0.0002 in train.json:2)" in shown


def test_settings_that_these_pictures_and_this_model_make_odd(command, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}})

    def notes(**settings: object) -> str:
        return "\n".join(command("--check", "--json", **settings).json["warnings"])

    assert notes(batch_size=8) == ""
    found = notes(batch_size=9, grad_accum=2, enable_zero_terminal_snr=True)
    assert "every batch is filled up with repeats, and counts for less: no size has 9 pictures (batch_size 9)" in found
    assert "grad_accum 2 is more than an epoch's batches (1): a step averages over those" in found
    assert "enable_zero_terminal_snr=true (--enable_zero_terminal_snr) is for models that predict v" in found


def test_sample_steps_of_a_prompts_file_have_that_file_as_their_source(command, tmp_path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"generate_samples_every_n_steps": 40, "samples": [{"prompt": "a cat"}]}))
    shown = command("--check", "--json", sample_prompts=prompts, sample_steps=None).json
    assert shown["settings"]["sample_steps"] == {"value": 40, "source": "prompts.json"}
    own = command("--check", "--json", sample_prompts=prompts, sample_steps=50).json
    assert own["settings"]["sample_steps"] == {"value": 50, "source": "--sample_steps"}


def test_the_text_is_for_people(command, write_optimizer, photos) -> None:
    write_optimizer(MIXED)
    saves = {"save_every_n_epochs": 2, "save_ckpts_from_n_epochs": 3, "save_every_n_steps": 1, "keep_last_n_ckpts": 4}
    shown = command("--check", max_epochs=5, project_name="cats", **saves)
    assert shown.status == 0
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    for line in (
        f"data: {photos}: 8 pictures in 1 size of about 64 x 64 pixels, 4 batches an epoch",
        "steps: 20 in 5 epochs, 2 pictures each (2 a batch x 1 accumulated x 1 process)",
        "text encoder: 12,768 of 1.6 M parameters train (18 of 68 tensors) with prodigy",
        "samples: none (sample_steps 0)",
        "checkpoints: every 2 epochs from epoch 3 on, every step and at the end; 4 of them stay",
        "frozen: embeddings, encoder.layers.0-2",
        'optimizer "adamw" (optimizer.json:1 base.optimizer; ed-train-adamw 0.1.0)',
        "lr 0.001 (optimizer.json:1 base.lr)",
        "epsilon 1e-08 (default of ed-train-adamw 0.1.0)",
        'lr_scheduler "cosine" (optimizer.json:1 base.lr_scheduler)',
        "lr_decay_steps 30 (optimizer.json:1 base.lr_decay_steps: 1.5 times the run's steps)",
        "lr_warmup_steps 1 (optimizer.json:1 text_encoder_overrides.lr_warmup_steps)",
        'project_name "cats" (--project_name)',
    ):
        assert line in lines
    assert "min_snr_gamma" not in shown.out, "what nobody set is summed up in a line"


def test_a_component_that_does_not_train_is_told_apart(command, write_optimizer) -> None:
    write_optimizer(MIXED)
    shown = command("--check", "--json", disable_textenc_training=True).json
    assert shown["components"].keys() == {"unet"}
    assert shown["not_trained"] == {
        "text_encoder": {"frozen_parameters": 1634400, "source": "--disable_textenc_training"}
    }
    assert any("text_encoder_freezing has no effect" in warning for warning in shown["warnings"])
    text = command("--check", disable_textenc_training=True).out
    assert "text encoder: does not train  (disable_textenc_training: --disable_textenc_training)\n" in text


def everything_below(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_nothing_is_written(command, write_optimizer, flags, tmp_path, photos, micro_model, monkeypatch) -> None:
    write_optimizer(MIXED)
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path, photos, micro_model]
    before = [everything_below(folder) for folder in folders]
    shown = command("--check", cache_dir=None)
    assert shown.status == 0, shown.err
    assert [everything_below(folder) for folder in folders] == before


def test_weights_and_pixels_are_not_read(command, micro_model, photos, tmp_path) -> None:
    model = Path(shutil.copytree(micro_model, tmp_path / "model"))
    for path in model.rglob("*.safetensors"):
        save_file({n: torch.full_like(t, torch.nan) for n, t in load_file(path).items()}, path, {"format": "pt"})
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    for path in data.glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:2000])
    assert command("--check", resume_ckpt=model, data_root=data).status == 0
    assert command(resume_ckpt=model, data_root=data).status == 2


@pytest.mark.parametrize("clip_skip", [0, 3])
def test_what_is_frozen_has_the_names_of_the_loaded_model(clip_skip, flags, write_optimizer) -> None:
    write_optimizer(MIXED)
    run = load_config({**flags, "clip_skip": str(clip_skip)}, load_registry())
    loaded = SdModel(run.model)
    unet, text_encoder = loaded.load_unet(), loaded.load_text_encoder()
    notes = freeze_modules(run, {"unet": unet, "text_encoder": text_encoder})
    empty, empty_notes = empty_modules(run, configuration_of(run.model))
    for real, module in ((unet, empty["unet"]), (text_encoder, empty["text_encoder"])):
        frozen = [name for name, p in real.named_parameters() if not p.requires_grad]
        assert frozen
        assert [name for name, p in module.named_parameters() if not p.requires_grad] == frozen
    assert empty_notes == notes


def test_pictures_that_validate_and_train_are_found_by_their_files(command, photos, tmp_path) -> None:
    (tmp_path / "again").symlink_to(photos)
    settings = {"val_split_mode": "manual", "val_data_root": "again", "stabilize_training_loss": True}
    (tmp_path / "validation.json").write_text(json.dumps(settings))
    shown = command("--check", "--json", validation_config=tmp_path / "validation.json").json
    (leak,) = [line for line in shown["warnings"] if "train as well" in line]
    assert leak.startswith("validation val: 8 of its 8 pictures are among those that train as well, e.g. ")


def test_pictures_that_cannot_be_used_are_warnings(command, photos, tmp_path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    (data / "empty.png").write_bytes(b"")
    Image.new("RGB", (1000, 100)).save(data / "long.png")
    shown = command("--check", "--json", data_root=data, resolution=128).json
    assert shown["data"]["pictures"] == 9
    assert shown["data"]["sizes"] == 2
    (skipped,) = shown["data"]["not_used"]
    assert skipped.startswith(f"{data / 'empty.png'}: ")
    assert f"picture not used: {skipped}" in shown["warnings"]
    assert any(warning.startswith("aspect beyond 4:1") for warning in shown["warnings"])
    assert f"warning: picture not used: {skipped}" in command("--check", data_root=data).out


def test_problems_of_all_folders_of_pictures_are_reported_at_once(command, photos, tmp_path) -> None:
    for name in ("data", "first", "second"):
        (tmp_path / name).mkdir()
    config = {"val_split_mode": "manual", "val_data_root": "first", "extra_manual_datasets": {"more": "second"}}
    (tmp_path / "validation.json").write_text(json.dumps(config))
    files = {"data_root": tmp_path / "data", "validation_config": tmp_path / "validation.json"}
    shown = command("--check", "--json", **files)
    assert shown.status == 2
    assert [e["key"] for e in shown.json["errors"]] == ["", "val_data_root", "extra_manual_datasets.more"]
    assert command("--check", **{**files, "data_root": photos}).err.count("no usable image") == 2


def test_a_noise_schedule_that_cannot_be_made(command, micro_model, tmp_path) -> None:
    model = Path(shutil.copytree(micro_model, tmp_path / "model"))
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_schedule": "nothing"}))
    shown = command("--check", resume_ckpt=model)
    assert shown.status == 2
    assert "the noise schedule cannot be made: nothing is not implemented" in shown.err


def test_problems_that_show_late_are_reported_together_with_their_places(command, write_optimizer, tmp_path) -> None:
    (tmp_path / "nothing").mkdir()
    optimizer = {"base": {"optimizer": "paged_lion8bit"}, "text_encoder_overrides": {"optimizer": "paged_adamw8bit"}}
    write_optimizer({**optimizer, "unet_freezing": ["freeze *attn9*"]})
    if torch.cuda.is_available():
        pytest.skip("paged optimizers are no problem here")
    shown = command("--check", "--json", data_root=tmp_path / "nothing")
    assert shown.status == 2
    errors = {(e["where"], e["key"]): e["message"] for e in shown.json["errors"]}
    assert errors.keys() == {
        ("optimizer.json:1", "base.optimizer"),
        ("optimizer.json:1", "text_encoder_overrides.optimizer"),
        ("optimizer.json:1", "unet_freezing"),
        ("--data_root", ""),
    }
    assert "paged_adamw8bit runs on cuda only" in errors["optimizer.json:1", "text_encoder_overrides.optimizer"]
    assert "matches no parameter" in errors["optimizer.json:1", "unet_freezing"]
    assert "no usable image" in errors["--data_root", ""]
    assert shown.err.count("error: ") == 4


@pytest.mark.parametrize(
    ("broken", "where", "message"),
    [
        ({"mixed_precision": "fp16", "disable_amp": None}, "--mixed_precision", "needs a GPU"),
        ({"clip_skip": 5}, "--clip_skip", "at most 4"),
        ({"clip_skip": "x"}, "--clip_skip", "expected an integer"),
    ],
)
def test_a_wrong_setting_is_named(broken, where, message, command) -> None:
    if "mixed_precision" in broken and torch.cuda.is_available():
        pytest.skip("fp16 is no problem here")
    shown = command("--check", "--json", **broken)
    assert shown.status == 2
    (error,) = shown.json["errors"]
    assert error["where"] == where
    assert message in error["message"]


def test_a_tokenizer_that_cannot_be_loaded_is_found(command, micro_model, tmp_path) -> None:
    model = Path(shutil.copytree(micro_model, tmp_path / "model"))
    for name in ("vocab.json", "tokenizer.json"):
        (model / "tokenizer" / name).write_text("[")
    shown = command("--check", "--json", resume_ckpt=model)
    assert shown.status == 2
    assert shown.json["errors"][0]["where"] == "--resume_ckpt"
    assert "tokenizer cannot be loaded" in shown.json["errors"][0]["message"]


SGD = """
    def build(params, config):
        import torch
        {before}
        return torch.optim.SGD(params, lr=config.lr)
"""
HOMEMADE = {"base": {"optimizer": "homemade"}}


def test_what_a_plugin_prints_is_not_in_the_output(command, install, write_optimizer) -> None:
    install(SGD.format(before="print('hello')"))
    write_optimizer(HOMEMADE)
    shown = command("--check", "--json")
    assert shown.json["components"]["unet"]["distribution"] == "homemade"
    assert "hello" in shown.err


def test_a_plugin_that_cannot_build_is_reported_as_in_the_run_with_its_place(command, install, write_optimizer) -> None:
    install(SGD.format(before="raise RuntimeError('no such\\nkernel')"))
    write_optimizer(HOMEMADE)
    checked, run = command("--check"), command()
    message = "homemade 1.2: homemade could not be built: no such kernel"
    assert run.err.splitlines()[-1] == f"error: {message}"
    assert checked.err == f"error: optimizer.json:1: base.optimizer: {message}\n"
    assert (checked.status, checked.out, run.status) == (2, "", 1)


CLASSES = """
import torch
print("hello")

class NeedsAlpha(torch.optim.SGD):
    def __init__(self, params, lr=1e-3, *, alpha):
        super().__init__(params, lr=lr)
"""


def test_a_class_of_ones_own_module(command, tmp_path, monkeypatch, write_optimizer) -> None:
    (tmp_path / "my_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    base = {"optimizer": "my_classes:NeedsAlpha", "alpha": 2}
    write_optimizer({"base": base})
    shown = command("--check", "--json")
    unet = shown.json["components"]["unet"]
    assert unet["options"]["lr"]["source"] == "default of my_classes (no distribution)"
    assert unet["options"]["alpha"]["value"] == 2
    del base["alpha"]
    write_optimizer({"base": base})
    shown = command("--check")
    assert shown.status == 2
    assert shown.err == "error: optimizer.json:1: base: NeedsAlpha needs alpha; set it\n"


def test_an_optimizer_that_needs_real_memory_to_be_built_passes(command, install, write_optimizer) -> None:
    install(SGD.format(before="params[0].sum().item()"))
    write_optimizer(HOMEMADE)
    shown = command("--check", "--json").json
    assert shown["components"]["unet"]["trainable_parameters"] == 549060


def test_an_infinity_that_a_plugin_has_as_default_is_a_text_in_json(command, install, write_optimizer) -> None:
    body = "\n    @dataclass(frozen=True)\n    class Config(Config):\n        growth: float = float('inf')\n"
    install(body + SGD.format(before=""))
    write_optimizer(HOMEMADE)
    shown = command("--check", "--json").json
    assert shown["components"]["unet"]["options"]["growth"] == {"value": "inf", "source": "default of homemade 1.2"}


def test_a_resumed_run_goes_on_where_its_checkpoint_ends(command, flags, write_optimizer, tmp_path) -> None:
    write_optimizer(MIXED)
    run = {"max_epochs": 5, "run_name": "first"}
    assert command(max_steps=6, save_optimizer=True, **run).status == 0
    (checkpoint,) = (tmp_path / "logs" / "first" / "ckpts").iterdir()
    shown = command("--check", "--json", resume=checkpoint, max_steps=15, **run).json
    assert (shown["first_step"], shown["steps"], shown["epochs"]) == (6, 15, 4)
    assert any(w.startswith(f"goes on at step 6, epoch 2, from {checkpoint}") for w in shown["warnings"])
    nothing = "nothing is left to train after step 6; a larger max_epochs or max_steps goes on"
    assert nothing not in shown["warnings"]
    assert nothing in command("--check", "--json", resume=checkpoint, max_steps=6, **run).json["warnings"]
    anew = command("--check", "--json", **{**run, "resume_ckpt": checkpoint}).json
    assert (anew["first_step"], anew["steps"]) == (0, 20)
    loaded = f"unet: the optimizer state in {checkpoint / 'optimizer_unet.pt'} is loaded if it fits"
    assert loaded in anew["warnings"]
    write_optimizer({**MIXED, "base": {"optimizer": "lion"}})
    misfit = command("--check", "--json", resume=checkpoint, **run)
    assert misfit.status == 2
    (error,) = misfit.json["errors"]
    assert error["where"] == "--resume"
    assert "the state is that of adamw of ed-train-adamw, and this run uses lion" in error["message"]


@pytest.mark.slow
def test_the_command_itself(flags, write_optimizer, tmp_path) -> None:
    write_optimizer(MIXED)
    words = [sys.executable, "-m", "ed_train", "--check", "--json", *(f"--{k}={v}" for k, v in flags.items())]
    result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["components"]["unet"]["optimizer"] == "adamw"


@pytest.mark.slow
def test_several_processes_share_the_pictures_and_one_prints(flags, write_optimizer) -> None:
    write_optimizer(MIXED)
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [sys.executable, "-m", *launcher, "-m", "ed_train", "--check", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words += [f"--{key}={value}" for key, value in flags.items()]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert (shown["processes"], shown["pictures_per_step"], shown["data"]["batches_per_epoch"]) == (2, 4, 2)


def test_a_rated_data_set_has_epochs_of_its_own_lengths(command, flags, photos, tmp_path) -> None:
    shutil.copytree(photos, tmp_path / "rated")
    (tmp_path / "rated" / "local.yaml").write_text("rating: 2")
    flags["data_root"] = str(tmp_path / "rated")
    run = {"rated_dataset": True, "max_epochs": 3, "batch_size": 3}
    shown = command("--check", "--json", **run).json
    assert shown["data"]["epochs"] == [
        {"pictures": 8, "batches": 3}, {"pictures": 6, "batches": 2}, {"pictures": 4, "batches": 2}
    ]  # fmt: skip
    assert shown["steps"] == 7
    del flags["data_root"]
    assert command("--check", "--json", data_root=photos).json["data"]["epochs"] is None
