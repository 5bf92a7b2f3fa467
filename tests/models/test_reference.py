from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference, check_model
from safetensors.torch import load_file, save_file


def messages(ref: str | Path, base: Path, model_config: str | None = None) -> list[str]:
    reference, found = check_model(str(ref), base=base, model_config=model_config)
    assert (reference is None) == bool(found)
    assert all(m == " ".join(m.split()) and len(m) < 600 for m in found)
    return found


def only_message(ref: str | Path, base: Path, model_config: str | None = None) -> str:
    (message,) = messages(ref, base, model_config)
    return message


def write_safetensors(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def single_file_header(*more: str, channels: int = 4) -> dict[str, Any]:
    names = (
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        "first_stage_model.quant_conv.bias",
        *more,
    )
    return {name: {"dtype": "F32", "shape": [8, channels, 3, 3], "data_offsets": [0, 0]} for name in names}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_is_found_beside_the_naming_file_and_then_in_the_current_folder(
    sd1: Path, sd2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sd2.parent)
    beside, _ = check_model("sd1", base=sd1.parent, model_config=None)
    elsewhere, _ = check_model("sd2", base=sd1.parent, model_config=None)
    assert beside is not None
    assert elsewhere is not None
    assert (beside.kind, beside.path) == ("folder", sd1)
    assert (elsewhere.kind, elsewhere.path) == ("folder", sd2)


def test_the_demos_model_whose_vae_shrinks_less_can_be_trained() -> None:
    folder = Path(__file__).parents[2] / "examples" / "demo_model" / "model"
    assert messages(folder, folder.parent) == []


def test_an_owner_and_a_name_are_a_hub_id(tmp_path: Path) -> None:
    reference, found = check_model("someone/some-model_v1.5", base=tmp_path, model_config=None)
    assert found == []
    assert reference is not None
    assert (reference.kind, reference.location) == ("hub", "someone/some-model_v1.5")


def test_a_missing_path_shows_the_folders_and_the_nearest_name(sd1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    message = only_message("sdl", sd1.parent)
    assert str(sd1.parent) in message
    assert "or /" in message
    assert "did you mean 'sd1'?" in message


def test_a_missing_path_in_a_folder_that_exists_is_not_taken_for_a_hub_id(sd1: Path) -> None:
    message = only_message(f"{sd1.parent.name}/sdl", sd1.parent.parent)
    assert f"no such file or folder in {sd1.parent}" in message
    assert "did you mean 'sd1'?" in message


@pytest.mark.parametrize(
    "ref", ["", "a\x00b", "x" * 5000, "~nobody-of-that-name/x", "a/b/c", "owner/model.safetensors"]
)
def test_a_ref_that_is_neither_a_path_nor_a_hub_id(ref: str, tmp_path: Path) -> None:
    assert only_message(ref, tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "tokenizer", "scheduler"])
def test_folder_without_a_component(part: str, own_sd1: Path) -> None:
    shutil.rmtree(own_sd1 / part)
    assert f"lacks {part};" in only_message(own_sd1, own_sd1)


def test_every_missing_component_is_named_at_once(own_sd1: Path) -> None:
    shutil.rmtree(own_sd1 / "text_encoder")
    shutil.rmtree(own_sd1 / "vae")
    assert "lacks text_encoder, vae;" in only_message(own_sd1, own_sd1)


def test_every_component_without_weights_is_named_at_once(own_sd1: Path) -> None:
    (own_sd1 / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (own_sd1 / "text_encoder" / "model.safetensors").unlink()
    unet, text_encoder = messages(own_sd1, own_sd1)
    assert "expected diffusion_pytorch_model.safetensors" in unet
    assert "expected model.safetensors" in text_encoder


def test_folder_without_a_vocabulary(own_sd1: Path) -> None:
    (own_sd1 / "tokenizer" / "merges.txt").unlink()
    assert "expected vocab.json and merges.txt" in only_message(own_sd1, own_sd1)


def test_folder_without_model_index_suggests_what_lies_in_it(sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert "no model_index.json; is it a diffusers folder?" in only_message("models", tmp_path)
    shutil.copytree(sd1, tmp_path / "models" / "inner")
    (tmp_path / "models" / "v1-5.safetensors").touch()
    assert "did you mean models/v1-5.safetensors or models/inner?" in only_message("models", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff\xfe", "[" * 100_000])
def test_unreadable_model_index(text: str, own_sd1: Path) -> None:
    (own_sd1 / "model_index.json").write_bytes(text.encode("latin-1"))
    assert "model_index.json" in only_message(own_sd1, own_sd1)


@pytest.mark.parametrize("pipeline", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_folder_of_another_kind_of_model(pipeline: str, own_sd1: Path) -> None:
    edit_json(own_sd1 / "model_index.json", _class_name=pipeline)
    assert f"holds a {pipeline}; ed-train trains Stable Diffusion 1 and 2" in only_message(own_sd1, own_sd1)


def test_folder_with_a_second_text_encoder(own_sd1: Path) -> None:
    edit_json(own_sd1 / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    assert "ed-train trains Stable Diffusion 1 and 2" in only_message(own_sd1, own_sd1)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "9 input channels, not 4 (inpainting?)"),
        ("unet/config.json", {"out_channels": 8}, "8 output channels, not 4"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "expected a UNet2DConditionModel"),
        ("vae/config.json", {"latent_channels": 16}, "the VAE has 16 latent channels, not 4"),
        ("vae/config.json", {"block_out_channels": [8] * 5}, "the VAE has 5 levels, more than 4"),
        ("vae/config.json", {"scaling_factor": "x"}, "the VAE's scaling_factor is 'x'; expected a number > 0"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "Stable Diffusion XL?"),
        ("unet/config.json", {"cross_attention_dim": 768}, "expects text embeddings of 768 and text_encoder makes 16"),
        ("text_encoder/config.json", {"model_type": "xlm-roberta"}, "text_encoder is a xlm-roberta"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "expected epsilon or v_prediction"),
    ],
)
def test_components_that_do_not_fit(part: str, changes: dict[str, Any], message: str, own_sd1: Path) -> None:
    edit_json(own_sd1 / part, **changes)
    assert message in only_message(own_sd1, own_sd1)


def test_everything_that_does_not_fit_is_named_at_once(own_sd1: Path) -> None:
    edit_json(own_sd1 / "unet" / "config.json", in_channels=9, out_channels=8)
    edit_json(own_sd1 / "vae" / "config.json", latent_channels=16)
    (own_sd1 / "tokenizer" / "merges.txt").unlink()
    assert len(messages(own_sd1, own_sd1)) == 4


def split_into_shards(weights: Path) -> tuple[Path, list[Path]]:
    """Replace a component's weights by an index and two files; returns both."""
    tensors = list(load_file(weights).items())
    half, names = len(tensors) // 2, [f"{weights.stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, (tensors[:half], tensors[half:]), strict=True):
        save_file(dict(part), weights.with_name(name))
    places = {key: names[number >= half] for number, (key, _) in enumerate(tensors)}
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    weights.unlink()
    return index, [weights.with_name(name) for name in names]


def test_weights_in_several_files(own_sd1: Path) -> None:
    index, (first, second) = split_into_shards(own_sd1 / "unet" / "diffusion_pytorch_model.safetensors")
    assert messages(own_sd1, own_sd1) == []
    first.write_bytes(b"version https://git-lfs")
    assert f'{first.name}": the file is a git-lfs pointer' in only_message(own_sd1, own_sd1)
    first.unlink()
    assert f'{first.name}": the index names this file, and it is not there' in only_message(own_sd1, own_sd1)
    index.write_text(json.dumps({"weight_map": {"a": second.name, "b": "../../secret"}}))
    assert "names ../../secret; expected files beside it" in only_message(own_sd1, own_sd1)
    index.write_text("{")
    assert "is no index of weights" in only_message(own_sd1, own_sd1)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_caches_know_weights_in_several_files(part: str, own_sd1: Path) -> None:
    whole = next((own_sd1 / part).glob("*.safetensors"))
    reference = ModelReference("folder", str(own_sd1))
    tensors = SdModel(reference).tensor_digests("text_encoder")[0]
    _, files = split_into_shards(whole)
    before = SdModel(reference).fingerprint(part)
    assert SdModel(reference).tensor_digests("text_encoder")[0] == tensors
    save_file({name: tensor + 1 for name, tensor in load_file(files[1]).items()}, files[1])
    assert SdModel(reference).fingerprint(part) != before


def test_a_part_of_a_model_leads_to_the_whole(sd1: Path) -> None:
    assert f'is a part of a model; did you mean "{sd1}"?' in only_message(sd1 / "unet", sd1)


def test_an_address_is_told_from_a_hub_id(tmp_path: Path) -> None:
    message = only_message("https://example.org/owner/name", tmp_path)
    assert "is an address; expected a diffusers folder, a file, or a hub id such as owner/name" in message


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_pipe_is_not_waited_for(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"model{suffix}")
    assert "not a regular file" in only_message(f"model{suffix}", tmp_path)


def test_repository_that_wants_remote_code(own_sd1: Path) -> None:
    edit_json(own_sd1 / "unet" / "config.json", auto_map={"AutoModel": "evil.Model"})
    edit_json(own_sd1 / "model_index.json", vae=["my_vae", "MyVae"])
    unet, vae = messages(own_sd1, own_sd1)
    assert "unet wants code from outside ({'AutoModel': 'evil.Model'}), which ed-train never runs" in unet
    assert "vae wants code from outside (['my_vae', 'MyVae'])" in vae


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"abc", "not a safetensors file, or a corrupt one"),
        (struct.pack("<Q", 1 << 62) + b"{}", "its header claims 4,611,686,018,427,387,904 bytes"),
        (struct.pack("<Q", 1000) + b"{}", "its header claims 1,000 bytes; the file has 10 bytes"),
        (struct.pack("<Q", 4) + b"oops", "header is corrupt"),
        (struct.pack("<Q", 2) + b"[]", "header is corrupt"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "header is corrupt"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"PK\x03\x04" + bytes(20), "rename it to .ckpt"),
    ],
)
def test_broken_safetensors_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert message in only_message("model.safetensors", tmp_path)


def test_oversized_safetensors_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 200_000_000))
    os.truncate(path, 300_000_000)  # sparse: it takes no space
    assert "its header claims 200,000,000 bytes; the file has 300,000,000 bytes and the limit is" in only_message(
        path, tmp_path
    )


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("percent", [0, 1, 50, 99])
def test_truncated_weights_in_a_folder(part: str, percent: int, own_sd1: Path) -> None:
    path = next((own_sd1 / part).glob("*.safetensors"))
    os.truncate(path, path.stat().st_size * percent // 100)
    assert str(path) in only_message(own_sd1, own_sd1)


def test_weights_with_something_behind_them(own_sd1: Path) -> None:
    with (own_sd1 / "unet" / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "the file is corrupt" in only_message(own_sd1, own_sd1)


def test_a_single_file(tmp_path: Path, sd1: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", single_file_header())
    reference, found = check_model("model.safetensors", base=tmp_path, model_config=str(sd1))
    assert found == []
    assert reference is not None
    assert (reference.kind, reference.path, reference.model_config) == (
        "file",
        tmp_path / "model.safetensors",
        str(sd1),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "Stable Diffusion XL"),
        ("model.diffusion_model.label_emb.0.0.weight", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.context_block.mlp.fc1.bias", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.bias", "Flux"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.alpha", "a LoRA"),
        ("control_model.input_blocks.0.0.bias", "a ControlNet"),
    ],
)
def test_single_file_of_another_kind_of_model(name: str, message: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", single_file_header(name))
    assert f"this is {message}" in only_message(path, tmp_path)


def test_single_file_without_text_encoder_and_vae(tmp_path: Path) -> None:
    header = {k: v for k, v in single_file_header().items() if k.startswith("model.")}
    path = write_safetensors(tmp_path / "model.safetensors", header)
    assert "has no text_encoder, vae in the original" in only_message(path, tmp_path)


def test_single_file_for_inpainting(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", single_file_header(channels=9))
    assert "9 input channels" in only_message(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x80\x02}q\x00.", "not a torch checkpoint"),
        (b"PK\x03\x04" + bytes(100), "truncated"),
        (struct.pack("<Q", 2) + b"{}", "rename it to .safetensors"),
    ],
)
def test_broken_ckpt_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    assert message in only_message("model.ckpt", tmp_path)


@pytest.mark.parametrize("name", ["model.gguf", "model.pt", "model", "picture.png"])
def test_file_with_another_extension(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert "expected a .safetensors or .ckpt file, or a diffusers folder" in only_message(name, tmp_path)


def test_model_config_is_checked_like_the_model_but_needs_no_weights(own_sd1: Path, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", single_file_header())
    for weights in own_sd1.rglob("*.safetensors"):
        weights.unlink()
    assert messages("model.safetensors", tmp_path, own_sd1.name) == []
    shutil.rmtree(own_sd1 / "scheduler")
    assert only_message("model.safetensors", tmp_path, own_sd1.name).startswith("model_config ")
    assert "no such file or folder" in only_message("model.safetensors", tmp_path, "nothing-here")
    assert "is not a folder" in only_message("model.safetensors", tmp_path, "model.safetensors")


def test_model_config_of_a_folder_is_refused_because_it_would_have_no_effect(sd1: Path) -> None:
    assert "only for single files" in only_message("sd1", sd1.parent, "sd1")


def test_it_needs_no_heavy_library() -> None:
    code = """
import sys, ed_train.models.reference, ed_train.models.prompts
print(sorted({"torch", "numpy", "diffusers", "transformers", "safetensors", "PIL", "pydantic"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
