"""A Stable Diffusion so small that every test can have its own: SD 1's and SD 2's shape, 64 px, a byte tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

torch.set_num_threads(1)

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level format with no merges: every byte is a token."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = [*letters, *(c + "</w>" for c in letters), START, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def write_micro_sd(folder: Path, version: int) -> Path:
    """A random pipeline as hub repositories have it: `text_model.` prefix, vocab.json, PNDM's scheduler config."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    torch.manual_seed(version)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            hidden_act="quick_gelu" if version == 1 else "gelu", bos_token_id=512, eos_token_id=513, projection_dim=16,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(8, 8, 16, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=16, attention_head_dim=2, use_linear_projection=version == 2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=2, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        prediction_type="epsilon" if version == 1 else "v_prediction",
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    weights = folder / "text_encoder" / "model.safetensors"
    state = {name.removeprefix("text_model."): tensor for name, tensor in load_file(weights).items()}
    save_file({f"text_model.{name}": t for name, t in state.items()}, weights, metadata={"format": "pt"})
    shutil.rmtree(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD 1's layout; do not write into it."""
    return write_micro_sd(tmp_path_factory.mktemp("models") / "sd1", 1)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD 2's layout, with v-prediction; do not write into it."""
    return write_micro_sd(tmp_path_factory.mktemp("models") / "sd2", 2)


@pytest.fixture
def own_sd1(sd1: Path, tmp_path: Path) -> Path:
    """A copy of `sd1` to break."""
    return Path(shutil.copytree(sd1, tmp_path / "own-sd1"))


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of an empty hub cache, on a machine without the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
