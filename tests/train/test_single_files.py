"""Single files beside the checkpoints of a run: the same as exported ones, gone with them, never in their way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from ed_train.cli import main
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference
from safetensors.torch import load_file, save_file

EVERY_EPOCH = {"max_epochs": 2, "batch_size": 8, "save_every_n_epochs": 1, "run_name": "r", "lr": 1e-3}


@pytest.fixture
def ckpts(tmp_path: Path, write_optimizer) -> Path:
    write_optimizer({"base": {"optimizer": "adamw"}})
    return tmp_path / "logs" / "r" / "ckpts"


def test_each_checkpoint_and_its_average_has_one(run_cli, ckpts, capsys, tmp_path) -> None:
    assert run_cli(**EVERY_EPOCH, save_single_file=True, ema_decay_rate=0.5) == 0
    names = ["myproj-ep01-gs00001", "last-myproj-ep02-gs00002"]
    folders = {name + end for name in names for end in ("", "-ema")}
    assert {p.name for p in ckpts.iterdir()} == folders | {f"{name}.safetensors" for name in folders}
    out = capsys.readouterr()
    assert f"single files: {names[0]}.safetensors, {names[0]}-ema.safetensors" in out.out + out.err
    for name in (names[1], f"{names[1]}-ema"):
        assert main(["--export", str(ckpts / name), str(tmp_path / f"{name}.safetensors")]) == 0
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (ckpts / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("more", [{}, {"save_single_file": True}])
def test_no_save_ckpt_means_folders_only(more, run_cli, ckpts) -> None:
    assert run_cli(run_name="r", max_steps=1, lr=1e-3, no_save_ckpt=True, **more) == 0
    (folder,) = ckpts.iterdir()
    assert (folder / "unet").is_dir()


def test_full_precision_comes_back_tensor_by_tensor(run_cli, ckpts, tmp_path) -> None:
    settings = {"save_single_file": True, "save_full_precision": True, "save_ckpt_dir": tmp_path / "out"}
    assert run_cli(run_name="r", max_steps=1, lr=1e-3, **settings) == 0
    assert not ckpts.exists()
    (file,) = (tmp_path / "out").glob("*.safetensors")
    folder = file.with_suffix("")
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    back = StableDiffusionPipeline.from_single_file(str(file), config=str(folder), **optional)
    model = SdModel(ModelReference("folder", str(folder)))
    for part in ("unet", "text_encoder", "vae"):
        state, wanted = getattr(back, part).state_dict(), getattr(model, f"load_{part}")().state_dict()
        assert state.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []


@pytest.mark.slow
def test_it_goes_with_its_checkpoint_and_an_exported_one_stays(run_cli, ckpts) -> None:
    assert run_cli(**EVERY_EPOCH, save_single_file=True, keep_last_n_ckpts=1) == 0
    last = "last-myproj-ep02-gs00002"
    assert {p.name for p in ckpts.iterdir()} == {last, f"{last}.safetensors"}
    shutil.rmtree(ckpts.parent)
    assert run_cli(**{**EVERY_EPOCH, "max_epochs": 1}) == 0
    (first,) = ckpts.iterdir()
    assert main(["--export", str(first)]) == 0
    assert run_cli(**EVERY_EPOCH, resume="latest", keep_last_n_ckpts=1) == 0
    assert {p.name for p in ckpts.iterdir()} == {last, f"{first.name}.safetensors"}


def test_a_run_that_predicts_v_has_its_yaml_and_both_go(run_cli, ckpts, tmp_path) -> None:
    from make_tiny_sd import make_tiny_sd

    model = make_tiny_sd("micro", tmp_path / "v", sd2=True, v_prediction=True)
    settings = {**EVERY_EPOCH, "save_single_file": True, "keep_last_n_ckpts": 1, "enable_zero_terminal_snr": True}
    assert run_cli(**{**settings, "resume_ckpt": model}) == 0
    last = "last-myproj-ep02-gs00002"
    assert {p.name for p in ckpts.iterdir()} == {last, f"{last}.safetensors", f"{last}.yaml"}
    assert {"v_pred", "ztsnr"} <= load_file(ckpts / f"{last}.safetensors").keys()


def test_a_file_that_cannot_be_written_costs_a_line_and_not_the_checkpoint(
    run_cli, ckpts, tmp_path, micro_model, capsys
) -> None:
    """Weights beyond half precision's range are one reason; a disk that fills up is another."""
    model = Path(shutil.copytree(micro_model, tmp_path / "large"))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    state["conv_out.bias"][0] = 1e6
    save_file(state, weights, metadata={"format": "pt"})
    assert run_cli(run_name="r", max_steps=1, lr=1e-9, save_single_file=True, resume_ckpt=model) == 0
    (checkpoint,) = ckpts.iterdir()
    out = capsys.readouterr()
    assert f"warning: {checkpoint}.safetensors was not saved: NaN or infinite weights" in out.out + out.err
    assert f"the checkpoint itself is saved, and ed-train --export {checkpoint} makes the file" in out.out + out.err


def test_the_free_space_check_counts_it(tmp_path, micro_model) -> None:
    from dataclasses import replace

    from ed_train.models.save import weights_of
    from ed_train.train.checkpoint import Snapshot

    model = SdModel(ModelReference("folder", str(micro_model)))
    parts = {"unet": weights_of(model.load_unet()), "vae": model.copyable("vae")}
    plain = Snapshot(tmp_path / "c", parts, {}, {"run_id": "x"})
    sizes = [replace(plain, manifest={**plain.manifest, "single_file": p}).bytes for p in ("half", "full")]
    assert sizes == [int(1.5 * plain.bytes), 2 * plain.bytes]
    narrow = replace(parts["unet"], state={n: t.bfloat16() for n, t in parts["unet"].state.items()})
    assert Snapshot(tmp_path / "c", {**parts, "unet": narrow}, {}, {"run_id": "x"}).bytes == plain.bytes, "in float32"
