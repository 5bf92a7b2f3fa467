from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from ed_train.errors import CheckpointError
from ed_train.models.export import write_single_file
from ed_train.models.reference import check_model
from ed_train.models.single_file import unet_layout, vae_layout
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize(("version", "heads"), [(1, 2), (2, (1, 2, 2, 2))])
def test_diffusers_reads_a_model_that_predicts_v_by_its_yaml(version: int, heads: object, tmp_path: Path) -> None:
    width = 32  # the original format takes for granted that norms have 32 groups
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        cross_attention_dim=16, attention_head_dim=heads, use_linear_projection=version == 2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(width, 2 * width), layers_per_block=1, sample_size=256,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            hidden_act="quick_gelu" if version == 1 else "gelu", bos_token_id=7, eos_token_id=8,
        )
    )  # fmt: skip
    scheduler = {"prediction_type": "v_prediction", "beta_start": 0.00085, "beta_end": 0.012}
    parts = {"unet": unet, "text_encoder": text_encoder, "vae": vae}
    file, side = write_single_file(
        tmp_path / "v.safetensors", **parts, scheduler_config=scheduler, dtype=torch.float32
    )  # fmt: skip
    for wanted in (unet, vae):
        read = type(wanted).from_single_file(str(file), original_config=str(side))
        assert read.state_dict().keys() == wanted.state_dict().keys()
        assert all(torch.equal(t, wanted.state_dict()[name]) for name, t in read.state_dict().items())
    loaded = UNet2DConditionModel.from_single_file(str(file), original_config=str(side)).config
    assert loaded["attention_head_dim"] == (heads if version == 1 else list(heads))  # type: ignore[call-overload]
    assert loaded["use_linear_projection"] is (version == 2)


def test_every_name_is_one_of_the_original_layout(sd2: Path, sd1: Path, tmp_path: Path) -> None:
    """As in the published files of both versions."""
    block = r"\d+\.\d+"
    unet = (
        rf"(time_embed\.[02]|input_blocks\.0\.0|out\.[02]|(in|out)put_blocks\.{block}\.(op|conv)"
        rf"|((in|out)put_blocks\.{block}|middle_block\.[02])\.(in_layers\.[02]|emb_layers\.1|out_layers\.[03]"
        rf"|skip_connection)|((in|out)put_blocks\.{block}|middle_block\.1)\.(norm|proj_in|proj_out"
        r"|transformer_blocks\.0\.(norm[123]|attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))))\.(weight|bias)"
    )
    vae = (
        r"((post_)?quant_conv|(en|de)coder\.(conv_in|conv_out|norm_out|mid\.(block_[12]\.(norm[12]|conv[12])"
        r"|attn_1\.(norm|q|k|v|proj_out))|(up|down)\.\d\.(block\.\d\.(norm[12]|conv[12]|nin_shortcut)"
        r"|(up|down)sample\.conv)))\.(weight|bias)"
    )
    layer = r"self_attn\.(q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12]"
    texts = {
        sd1: r"cond_stage_model\.transformer\.text_model\.(embeddings\.(position_ids|(token|position)_embedding"
        rf"\.weight)|(encoder\.layers\.\d+\.({layer})|final_layer_norm)\.(weight|bias))",
        sd2: r"cond_stage_model\.model\.(token_embedding\.weight|positional_embedding|(ln_final|transformer\.resblocks"
        r"\.\d+\.(ln_[12]|attn\.out_proj|mlp\.c_(fc|proj)))\.(weight|bias)"
        r"|transformer\.resblocks\.\d+\.attn\.in_proj_(weight|bias))",
    }
    for folder, text in texts.items():
        path = export(StableDiffusionPipeline.from_pretrained(folder), tmp_path / f"{folder.name}.safetensors")
        known = re.compile(rf"model\.diffusion_model\.{unet}|first_stage_model\.{vae}|{text}")
        assert [name for name in load_file(path) if not known.fullmatch(name)] == []


def test_old_names_of_the_vaes_attention(sd1: Path, tmp_path: Path) -> None:
    """Published folders have files that diffusers before 0.18 wrote."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pipeline = StableDiffusionPipeline.from_pretrained(sd1)
    state = pipeline.vae.state_dict()
    for new, name in old.items():
        state = {n.replace(f".{new}.", f".{name}."): tensor for n, tensor in state.items()}
    assert state.keys() != pipeline.vae.state_dict().keys()
    folder = tmp_path / "vae"
    shutil.copytree(sd1 / "vae", folder)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    write_single_file(tmp_path / "old.safetensors", **parts, vae=folder, dtype=torch.float32)
    assert_read_back(pipeline, tmp_path / "old.safetensors", sd1, torch.float32)
