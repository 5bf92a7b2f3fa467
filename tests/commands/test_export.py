"""``ed-train --export``: a checkpoint as one file; whatever is no whole model, or in the way, is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from ed_train.cli import main
from ed_train.models.atomic import MANIFEST
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PARTS = ("unet", "text_encoder", "vae")
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

Export = Callable[..., tuple[int, str]]


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run the command; returns its exit status and what it printed, or its errors."""

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["--export", *map(str, words)])
        out, err = capsys.readouterr()
        return status, err if status else out

    return run


@pytest.fixture(scope="session")
def sd2_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from make_tiny_sd import make_tiny_sd

    return make_tiny_sd("micro", tmp_path_factory.mktemp("models") / "sd2-v", sd2=True, v_prediction=True)


@pytest.fixture(scope="module")
def checkpoint(micro_model: Path, photos: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a real run, with its moving average beside it; do not write into it."""
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "resume_ckpt": micro_model, "data_root": photos, "cache_dir": cache, "logdir": folder, "run_name": "r",
        "resolution": 64, "max_steps": 1, "sample_steps": 0, "lr": 1e-3, "ema_decay_rate": 0.5, "disable_amp": True,
    }  # fmt: skip
    assert main([f"--{key}={value}" for key, value in settings.items()]) == 0
    (saved,) = (path for path in (folder / "r" / "ckpts").iterdir() if not path.name.endswith("-ema"))
    return saved


def assert_equal(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Every tensor that diffusers reads from the file is that of the folder in this precision."""
    back = StableDiffusionPipeline.from_single_file(str(file), config=str(folder), **WITHOUT_CHECKER)
    model = SdModel(ModelReference("folder", str(folder)))
    for part in PARTS:
        state, wanted = getattr(back, part).state_dict(), getattr(model, f"load_{part}")().state_dict()
        assert state.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(state[name].float(), wanted[name].to(dtype).float())] == []


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


# What is written


def test_a_checkpoint_of_a_run_comes_back_in_half_precision(checkpoint, export, tmp_path) -> None:
    status, out = export(checkpoint, tmp_path / "model.safetensors")
    assert status == 0, out
    assert out.startswith(f"wrote {tmp_path / 'model.safetensors'}: stable-diffusion-v1, half precision, ")
    assert_equal(tmp_path / "model.safetensors", checkpoint, torch.float16)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}
    state = load_file(tmp_path / "model.safetensors")
    positions = state.pop("cond_stage_model.transformer.text_model.embeddings.position_ids")
    assert torch.equal(positions, torch.arange(77)[None])
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    metadata = metadata_of(tmp_path / "model.safetensors")
    assert metadata["modelspec.title"] == checkpoint.name
    assert metadata["modelspec.resolution"] == "64x64"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["ed_train.step"] == "1"


def test_the_average_in_full_precision(checkpoint, export, tmp_path) -> None:
    average = checkpoint.with_name(f"{checkpoint.name}-ema")
    status, out = export(average, tmp_path, "--save_full_precision")
    assert status == 0, out
    assert "full precision" in out
    assert_equal(tmp_path / f"{average.name}.safetensors", average, torch.float32)


def test_beside_the_folder_without_a_name(micro_model, export, tmp_path, monkeypatch) -> None:
    shutil.copytree(micro_model, tmp_path / "a model 1.5")
    monkeypatch.chdir(tmp_path)
    assert export("a model 1.5")[0] == 0
    assert (tmp_path / "a model 1.5.safetensors").is_file()
    monkeypatch.chdir(tmp_path / "a model 1.5")
    status, err = export(".")
    assert (status, "a model 1.5.safetensors already exists" in err) == (2, True)
    assert "ed_train.step" not in metadata_of(tmp_path / "a model 1.5.safetensors")


def test_version_2_with_v_prediction_has_a_yaml_that_describes_it(sd2_v, export, tmp_path) -> None:
    file, side = tmp_path / "v.safetensors", tmp_path / "v.yaml"
    status, out = export(sd2_v, file)
    assert status == 0, out
    assert "stable-diffusion-v2-768-v" in out
    assert f"wrote {side}: says that the model predicts v" in out
    assert_equal(file, sd2_v, torch.float16)
    assert {"v_pred"} == {name for name, tensor in load_file(file).items() if tensor.numel() == 0}
    assert metadata_of(file)["modelspec.prediction_type"] == "v"
    params = yaml.safe_load(side.read_text())["model"]["params"]
    assert params["parameterization"] == "v"
    assert params["cond_stage_config"]["params"]["layer"] == "penultimate"


def test_zero_terminal_snr_is_said(checkpoint, export, tmp_path) -> None:
    from ed_train.models.atomic import read_manifest, write_manifest

    folder = Path(shutil.copytree(checkpoint, tmp_path / "z"))
    manifest = read_manifest(folder)
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    del manifest["files"]["scheduler/scheduler_config.json"]
    write_manifest(folder, manifest)
    status, out = export(folder)
    assert status == 0, out
    assert "note: the model was trained with zero terminal SNR; set that in the program that draws with it" in out
    assert "ztsnr" in load_file(tmp_path / "z.safetensors")
    assert metadata_of(tmp_path / "z.safetensors")["ed_train.zero_terminal_snr"] == "true"


def test_the_same_model_gives_the_same_bytes(micro_model, export, tmp_path) -> None:
    for name in ("a", "b"):
        assert export(micro_model, tmp_path / f"{name}.safetensors")[0] == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    header = (tmp_path / "a.safetensors").read_bytes()[8:2000].decode()
    keys = [part.split('"')[0] for part in header.partition("}")[0].split('"modelspec.')[1:]]
    assert keys == sorted(keys)  # the order that the library gives them changes from process to process


def test_overwrite_replaces_the_file(micro_model, export, tmp_path) -> None:
    (tmp_path / "m.safetensors").write_text("mine")
    status, err = export(micro_model, tmp_path / "m.safetensors")
    assert (status, (tmp_path / "m.safetensors").read_text()) == (2, "mine")
    assert err.endswith("m.safetensors already exists; give another name, or --overwrite to replace it\n")
    assert export(micro_model, tmp_path / "m.safetensors", "--overwrite")[0] == 0
    assert_equal(tmp_path / "m.safetensors", micro_model, torch.float16)


# What is not


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda c: flip_a_bit(c / "unet" / "diffusion_pytorch_model.safetensors"),
            "is damaged: unet/diffusion_pytorch_model.safetensors has changed since it was written",
        ),
        (lambda c: (c / "vae" / "config.json").unlink(), "is damaged: vae/config.json is missing"),
        (lambda c: (c / MANIFEST).write_text("{"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage, message, checkpoint, export, tmp_path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    damage(broken)
    status, err = export(broken)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "broken.safetensors").exists()


def test_a_checkpoint_without_its_training_state_is_whole(checkpoint, export, tmp_path) -> None:
    older = Path(shutil.copytree(checkpoint, tmp_path / "older"))
    flip_a_bit(older / "optimizer_unet.pt")
    (older / "training_state.pt").unlink()
    assert export(older)[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_index.json": {"_class_name": "StableDiffusionXLPipeline"}}, "holds a StableDiffusionXLPipeline"),
        ({"unet/config.json": {"in_channels": 9}}, "has 9 input channels, not 4 (inpainting?)"),
    ],
)
def test_another_kind_of_model_is_named(changes, message, micro_model, export, tmp_path) -> None:
    folder = Path(shutil.copytree(micro_model, tmp_path / "other"))
    for file, values in changes.items():
        edit_json(folder / file, **values)
    status, err = export(folder)
    assert status == 2
    assert message in err


def test_whatever_is_no_checkpoint_is_named(checkpoint, micro_model, export, tmp_path) -> None:
    run = checkpoint.parents[1]
    partial = tmp_path / ".x.partial-1"
    partial.mkdir()
    (tmp_path / "m.ckpt").write_text("")
    for source, message in {
        tmp_path / "absent": "expected a checkpoint or a diffusers folder",
        tmp_path / "m.ckpt": "m.ckpt is a single file already",
        run: f"is the folder of a run; expected one of its checkpoints: {checkpoint.name}",
        run / "ckpts": f"is the folder of a run; expected one of its checkpoints: {checkpoint.name}",
        partial: "was never finished",
        micro_model / "unet": "is a part of a model; did you mean",
    }.items():
        status, err = export(source)
        assert (status, message in err, err.count("\n")) == (2, True, 1), err


def test_all_problems_at_once(export, micro_model, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    _, err = export(tmp_path / "absent", tmp_path / "model.ckpt")
    assert len(err.splitlines()) == 2
    assert "got model.ckpt; expected a file that ends in .safetensors" in err
    _, err = export(micro_model, tmp_path / "file" / "m.safetensors")
    assert "expected a folder, but" in err
    _, err = export(micro_model, "--lr", "1", "--config", "train.json", "--save_full_precision", "maybe")
    assert [line.split(": ")[1] for line in err.splitlines()] == ["--lr", "--config", "--save_full_precision"]
    assert export("a", "b", "c")[1] == "error: --export: got 3 values; expected FOLDER [FILE]\n"
    assert main(["--list-optimizers", "--overwrite"]) == 2
    assert "--overwrite: goes with --export only" in capsys.readouterr().err


def test_numbers_that_half_precision_cannot_hold(micro_model, export, tmp_path) -> None:
    folder = Path(shutil.copytree(micro_model, tmp_path / "large"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    state["conv_in.bias"][0] = 1e6
    save_file(state, weights, metadata={"format": "pt"})
    status, err = export(folder)
    assert status == 1
    assert "model.diffusion_model.input_blocks.0.0.bias (as torch.float16); full precision holds larger" in err
    assert [p.name for p in tmp_path.iterdir()] == ["large"]
    assert export(folder, "--save_full_precision")[0] == 0


def test_a_full_disk_leaves_nothing(sd2_v, export, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    status, err = export(sd2_v, tmp_path / "v.safetensors")
    assert status == 1
    assert "v.safetensors was not saved: it needs 0.00 GB, and 0.00 GB are free" in err
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_is_wrong_without_torch(tmp_path) -> None:
    import subprocess
    import sys

    script = "import sys; from ed_train.cli import main; s = main(sys.argv[1:]); print('torch' in sys.modules); exit(s)"
    command = [sys.executable, "-c", script, "--export", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "False\n")
