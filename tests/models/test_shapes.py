"""Models without weights have the names and shapes of loaded ones, however the model is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ed_train.errors import ConfigError
from ed_train.models.export import write_single_file
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference
from ed_train.models.shapes import configuration_of, empty_text_encoder, empty_unet
from safetensors.torch import load_file, save_file

Shapes = dict[str, tuple[int, ...]]


def shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def loaded(reference: ModelReference) -> tuple[Shapes, Shapes]:
    model = SdModel(reference)
    return shapes(model.load_unet()), shapes(model.load_text_encoder())


def empty(reference: ModelReference) -> tuple[Shapes, Shapes]:
    folder = configuration_of(reference).folder
    assert folder is not None
    modules = empty_unet(folder), empty_text_encoder(folder)
    for module in modules:
        assert {(p.device.type, p.dtype, p.requires_grad) for p in module.parameters()} == {
            ("meta", torch.float32, True)
        }
    return shapes(modules[0]), shapes(modules[1])


@pytest.fixture
def single_file(sd1: Path, tmp_path: Path) -> Path:
    model = SdModel(ModelReference("folder", str(sd1)))
    parts = {"unet": model.load_unet(), "text_encoder": model.load_text_encoder(), "vae": model.load_vae()}
    write_single_file(tmp_path / "model.safetensors", **parts, dtype=torch.float32)
    return tmp_path / "model.safetensors"


def without_weights(folder: Path, copy: Path) -> Path:
    return Path(shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_folder_needs_no_weights(version, request, tmp_path) -> None:
    folder = request.getfixturevalue(version)
    bare = without_weights(folder, tmp_path / "bare")
    assert empty(ModelReference("folder", str(bare))) == loaded(ModelReference("folder", str(folder)))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_has_those_of_its_configuration(suffix, single_file, sd1, tmp_path) -> None:
    path = single_file
    if suffix == ".ckpt":
        path = path.with_suffix(suffix)
        torch.save({"state_dict": load_file(single_file)}, path)
    bare = without_weights(sd1, tmp_path / "bare")
    assert empty(ModelReference("file", str(path), str(bare))) == loaded(ModelReference("file", str(path), str(sd1)))


def test_of_a_hub_repository_the_configuration_is_enough(sd1, offline_hub) -> None:
    repository = offline_hub / "models--someone--micro"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    without_weights(sd1, repository / "snapshots" / ("a" * 40))
    assert empty(ModelReference("hub", "someone/micro")) == loaded(ModelReference("folder", str(sd1)))
    with pytest.raises(ConfigError, match="has no weights"):
        SdModel(ModelReference("hub", "someone/micro"))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(("width", "hub_id"), [(768, "stable-diffusion-v1-5"), (1024, "stable-diffusion-2-1")])
def test_a_single_file_tells_its_configuration_by_shapes_alone(suffix, width, hub_id, tmp_path, offline_hub) -> None:
    query = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    state = {query: torch.zeros(320, width)}
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    with pytest.raises(ConfigError, match=rf"{hub_id}.*; set model_config to a diffusers folder"):
        configuration_of(ModelReference("file", str(path)))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_configuration_that_makes_no_model_is_named(part, own_sd1) -> None:
    path = own_sd1 / part / "config.json"
    key = "block_out_channels" if part == "unet" else "hidden_size"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "wide"}))
    with pytest.raises(ConfigError, match=rf"resume_ckpt: {own_sd1 / part}: the .* cannot be built: ") as caught:
        empty(ModelReference("folder", str(own_sd1)))
    assert "\n" not in str(caught.value)
