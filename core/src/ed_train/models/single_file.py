"""The original Stable Diffusion layout: the names in one file with the UNet, the text encoder and the VAE.

The names follow from how CompVis' and Stability AI's code counts blocks (https://github.com/CompVis/stable-diffusion,
ldm/modules/diffusionmodules; https://github.com/mlfoundations/open_clip for the text encoder of version 2): the layers
of all levels in one row of ``input_blocks`` and one of ``output_blocks``, a down- or upsampler as a layer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ed_train.models.save import ModelWeights, with_prefix

State = Mapping[str, torch.Tensor]

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_MID = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
}
_VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip
"""The second line: names of diffusers before 0.18, which the files of published models have."""
_POSITIONS = "text_model.embeddings.position_"
_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_BLOCK = re.compile(r"(?P<way>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>\w+)\.(?P<layer>\d+)\.(?P<rest>.+)")
_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def is_version_2(text_config: Mapping[str, object]) -> bool:
    """Whether a text encoder is one of OpenCLIP's, with which version 2 begins; its configuration tells."""
    return text_config["hidden_act"] == "gelu"


def original_layout(unet: ModelWeights, text_encoder: ModelWeights, vae: ModelWeights) -> dict[str, torch.Tensor]:
    """All tensors of a single file.

    Version 2's file has only the layers that the text encoder has: 23, not the 24th that is never used. Version 1's
    has the numbers of the positions, which are no weights, but which readers on transformers before 4.31 miss.
    """
    text = with_prefix(text_encoder.state)
    if is_version_2(text_encoder.config):
        text = _under("cond_stage_model.model.", open_clip_layout(text))
    else:
        positions = torch.arange(text[_POSITIONS + "embedding.weight"].shape[0])[None]
        text = _under("cond_stage_model.transformer.", {**text, _POSITIONS + "ids": positions})
    return {
        **_under("model.diffusion_model.", unet_layout(unet.state, unet.config["layers_per_block"])),
        **text,
        **_under("first_stage_model.", vae_layout(vae.state, len(vae.config["block_out_channels"]))),
    }


def unet_layout(state: State, layers_per_block: int) -> dict[str, torch.Tensor]:
    """A diffusers UNet's tensors under the original names."""
    with_attention = {name.split(".")[1] for name in state if name.startswith("up_blocks.") and ".attentions." in name}
    return {_unet_name(name, layers_per_block, with_attention): tensor for name, tensor in state.items()}


def _unet_name(name: str, layers: int, with_attention: set[str]) -> str:
    if not (match := _BLOCK.fullmatch(name)):
        new = _renamed(name, _UNET_ENDS)
        return _renamed_resnet(new) if name.startswith("mid_block.resnets") else new
    block, layer, rest = int(match["block"]), int(match["layer"]), match["rest"]
    row = "input_blocks" if match["way"] == "down" else "output_blocks"
    index = block * (layers + 1) + layer + (match["way"] == "down")  # input_blocks.0 is conv_in
    if match["kind"] == "resnets":
        return f"{row}.{index}.0.{_renamed(rest, _UNET_RESNET)}"
    if match["kind"] == "attentions":
        return f"{row}.{index}.1.{rest}"
    if match["kind"] == "downsamplers":
        return f"{row}.{(block + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    # an upsampler is the last member of its block's last layer: behind the resnet, and behind the attention if any
    return f"{row}.{index + layers}.{1 + (match['block'] in with_attention)}.{rest}"


def _renamed_resnet(name: str) -> str:
    head, index, rest = name.split(".", 2)
    return f"{head}.{index}.{_renamed(rest, _UNET_RESNET)}"


def vae_layout(state: State, blocks: int) -> dict[str, torch.Tensor]:
    """A diffusers VAE's tensors under the original names; its attention consists of 1 x 1 convolutions there."""
    result = {}
    for name, tensor in state.items():
        new = _vae_name(name, blocks)
        is_projection = ".attn_1." in new and tensor.ndim == 2
        result[new] = tensor[:, :, None, None] if is_projection else tensor
    return result


def _vae_name(name: str, blocks: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name  # quant_conv, post_quant_conv
    if not (match := _BLOCK.fullmatch(rest)):
        new = _renamed(rest, _VAE_MID)
        for old_part, new_part in _VAE_ATTENTION.items() if ".attn_1." in new else ():
            new = new.replace(f".attn_1.{old_part}.", f".attn_1.{new_part}.")
        return f"{side}.{new.replace('conv_shortcut', 'nin_shortcut')}"
    # the original counts the decoder's levels by resolution, from the last block to the first
    level = int(match["block"]) if match["way"] == "down" else blocks - 1 - int(match["block"])
    kind = {"resnets": f"block.{match['layer']}", "downsamplers": "downsample", "upsamplers": "upsample"}[match["kind"]]
    return f"{side}.{match['way']}.{level}.{kind}.{match['rest'].replace('conv_shortcut', 'nin_shortcut')}"


def open_clip_layout(state: State) -> dict[str, torch.Tensor]:
    """A CLIP text encoder's tensors (with the ``text_model.`` prefix) under OpenCLIP's names; q, k and v are fused."""
    result = {}
    for name, tensor in state.items():
        match = _CLIP_LAYER.fullmatch(name)
        if name in _OPEN_CLIP_ENDS:
            result[_OPEN_CLIP_ENDS[name]] = tensor
        elif match and match[2] == "self_attn.q_proj":
            fused = torch.cat([state[name.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")])
            result[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = fused
        elif match and match[2] in _OPEN_CLIP_LAYER:
            result[f"transformer.resblocks.{match[1]}.{_OPEN_CLIP_LAYER[match[2]]}.{match[3]}"] = tensor
    return result


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with its beginning replaced as `table` says."""
    for old, new in table.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def _under(prefix: str, state: State) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}
