from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from ed_train.errors import CheckpointError
from ed_train.models.reference import check_model
from ed_train.models.single_file import unet_layout, vae_layout, write_single_file
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

PARTS = ("unet", "text_encoder", "vae")


def export(pipeline: StableDiffusionPipeline, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    write_single_file(path, unet=pipeline.unet, text_encoder=pipeline.text_encoder, vae=pipeline.vae, dtype=dtype)
    return path


def assert_read_back(pipeline: StableDiffusionPipeline, path: Path, config: Path, dtype: torch.dtype) -> None:
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    back = StableDiffusionPipeline.from_single_file(str(path), config=str(config), **optional)
    for part in PARTS:
        state, wanted = getattr(back, part).state_dict(), getattr(pipeline, part).state_dict()
        assert state.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(state[name].float(), wanted[name].to(dtype).float()), (part, name)


@pytest.mark.parametrize("folder", ["sd1", "sd2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_tensor_comes_back(
    folder: str, dtype: torch.dtype, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config: Path = request.getfixturevalue(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(config)
    with torch.no_grad():  # norms start as ones and zeros, which would hide an exchange
        for part in PARTS:
            for parameter in getattr(pipeline, part).parameters():
                parameter.copy_(torch.randn_like(parameter))
    path = export(pipeline, tmp_path / "model.safetensors", dtype)
    assert check_model(str(path), base=tmp_path, model_config=None)[1] == []
    assert_read_back(pipeline, path, config, dtype)


@pytest.mark.parametrize(("blocks", "layers"), [(2, 1), (3, 2), (4, 3)])
def test_other_numbers_of_blocks_and_layers(blocks: int, layers: int, sd1: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd1)
    pipeline.unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=layers, block_out_channels=(8, 16, 16, 16)[:blocks], norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    pipeline.vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 16)[:blocks], norm_num_groups=4, layers_per_block=layers, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "config")
    assert_read_back(pipeline, export(pipeline, tmp_path / "model.safetensors"), tmp_path / "config", torch.float32)


def test_names_of_version_1(tmp_path: Path) -> None:
    """Names and shapes as in the published v1-5-pruned-emaonly.safetensors, at its full size (without memory)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    names = unet_layout(unet.state_dict(), 2)
    assert len(names) == 686
    expected = {
        "time_embed.2.bias": [1280],
        "input_blocks.0.0.weight": [320, 4, 3, 3],
        "input_blocks.3.0.op.weight": [320, 320, 3, 3],
        "input_blocks.4.0.skip_connection.weight": [640, 320, 1, 1],
        "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
        "input_blocks.11.0.emb_layers.1.weight": [1280, 1280],
        "middle_block.1.proj_in.weight": [1280, 1280, 1, 1],
        "middle_block.2.out_layers.3.weight": [1280, 1280, 3, 3],
        "output_blocks.2.1.conv.weight": [1280, 1280, 3, 3],
        "output_blocks.5.2.conv.weight": [1280, 1280, 3, 3],
        "output_blocks.8.2.conv.weight": [640, 640, 3, 3],
        "output_blocks.11.0.skip_connection.weight": [320, 640, 1, 1],
        "output_blocks.11.1.norm.weight": [320],
        "out.2.weight": [4, 320, 3, 3],
    }
    assert {name: list(names[name].shape) for name in expected} == expected
    assert {name.split(".")[1] for name in names if name.startswith("input_blocks")} == {str(i) for i in range(12)}
    assert {name.split(".")[1] for name in names if name.startswith("output_blocks")} == {str(i) for i in range(12)}
    names = vae_layout(vae.state_dict(), 4)
    assert len(names) == 248
    expected = {
        "encoder.down.1.block.0.nin_shortcut.weight": [256, 128, 1, 1],
        "encoder.down.2.downsample.conv.weight": [512, 512, 3, 3],
        "encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
        "encoder.mid.block_2.norm2.bias": [512],
        "decoder.mid.attn_1.proj_out.weight": [512, 512, 1, 1],
        "decoder.up.0.block.0.nin_shortcut.weight": [128, 256, 1, 1],
        "decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
        "decoder.norm_out.weight": [128],
        "quant_conv.weight": [8, 8, 1, 1],
    }
    assert {name: list(names[name].shape) for name in expected} == expected


def test_names_of_version_2s_text_encoder(sd2: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd2)
    state = load_file(export(pipeline, tmp_path / "model.safetensors"))
    names = {
        n.removeprefix("cond_stage_model.model."): t for n, t in state.items() if n.startswith("cond_stage_model.")
    }
    assert list(names["positional_embedding"].shape) == [77, 16]
    assert list(names["transformer.resblocks.2.attn.in_proj_weight"].shape) == [48, 16]
    assert list(names["transformer.resblocks.2.attn.in_proj_bias"].shape) == [48]
    assert {"token_embedding.weight", "ln_final.bias", "transformer.resblocks.0.mlp.c_proj.weight"} <= names.keys()
    assert sum(t.numel() for t in names.values()) == sum(p.numel() for p in pipeline.text_encoder.parameters())


def test_a_text_encoder_made_here_is_written_with_the_prefix(sd1: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd1)
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(sd1 / "text_encoder"))
    state = load_file(export(pipeline, tmp_path / "model.safetensors"))
    assert "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight" in state


def test_weights_that_half_precision_cannot_hold_are_not_written(sd1: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd1)
    with torch.no_grad():
        pipeline.unet.conv_in.bias[0] = 1e6
    name = r"model\.diffusion_model\.input_blocks\.0\.0\.bias"
    with pytest.raises(CheckpointError, match=rf"NaN or infinite weights are not saved: {name} \(as torch.float16\)"):
        export(pipeline, tmp_path / "model.safetensors", torch.float16)
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_not_overwritten(sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(CheckpointError, match="already exists"):
        export(StableDiffusionPipeline.from_pretrained(sd1), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_text() == "mine"
