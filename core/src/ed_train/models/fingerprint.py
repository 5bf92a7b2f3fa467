"""Hashes of a model's parts for the keys of caches: they change when, and only when, what is computed changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ed_train.models.atomic import file_sha256
from ed_train.models.memo import FileMemo
from ed_train.models.save import component_config
from ed_train.models.weight_files import weight_files

CONFIG_DEFAULTS = {"hidden_act": "quick_gelu", "num_attention_heads": 8, "layer_norm_eps": 1e-5}
"""What a CLIP text encoder computes beside its weights, with transformers' defaults: files leave defaults out."""

VAE_DEFAULTS = {"act_fn": "silu", "norm_num_groups": 32}
"""The same of a VAE that encodes, with diffusers' defaults; the rest can be seen from names and shapes."""


def folder_fingerprint(path: Path, memo: FileMemo) -> str:
    """A sha256 over the files of a part's folder: configuration, vocabulary, weights."""
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".txt"))
    every = [*files, *weight_files(path)]
    hashes = [f"{p.name} {memo.value(p, 'sha256', partial(file_sha256, p))}" for p in every]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def part_fingerprint(part: Any) -> str:
    """A sha256 over a loaded module's configuration and weights, or over a tokenizer's vocabulary."""
    digest = hashlib.sha256()
    if isinstance(part, torch.nn.Module):
        digest.update(json.dumps(component_config(part), sort_keys=True).encode())
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
    else:
        digest.update(json.dumps(sorted(part.get_vocab().items())).encode())
    return digest.hexdigest()


def tensor_digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """A sha256 of each tensor of a module in float32, by its name without a text encoder's ``text_model.``."""
    return {name.removeprefix("text_model."): _digest(tensor) for name, tensor in tensors}


def weights_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a weight file, one after the other, without loading all of them. Nothing is unpickled."""
    if path.suffix == ".bin":
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
        return
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, which it cannot be iterated over without
            yield name, file.get_tensor(name)


def front_digest(digests: Mapping[str, str], config: Mapping[str, Any], layers: int, *, normed: bool) -> str:
    """A sha256 over everything that the output of a text encoder's first layers depends on, beside the token ids.

    Args:
        digests: of `tensor_digests`.
        config: the content of its config.json.
        layers: how many layers; the embeddings come before them.
        normed: whether the final layer norm follows.
    """
    parts = [
        "embeddings.",
        *(f"encoder.layers.{n}." for n in range(layers)),
        *(["final_layer_norm."] if normed else []),
    ]
    needed = {
        name: digest
        for name, digest in digests.items()
        if name.startswith(tuple(parts)) and not name.endswith("position_ids")  # which old files have, and nobody reads
    }
    settings = [config.get(key, default) for key, default in CONFIG_DEFAULTS.items()]
    return hashlib.sha256(json.dumps([parts, needed, settings], sort_keys=True).encode()).hexdigest()


def encoder_digest(digests: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """A sha256 over everything that a VAE's latents depend on, beside the pixels: not over what decodes.

    It is the same for a single file and for the checkpoints of a run that began with it.

    Args:
        digests: of `tensor_digests`.
        config: the content of its config.json.
    """
    needed = {name: digest for name, digest in digests.items() if name.startswith(("encoder.", "quant_conv."))}
    settings = [config.get(key, default) for key, default in VAE_DEFAULTS.items()]
    return hashlib.sha256(json.dumps([needed, settings], sort_keys=True).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(f"{list(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()
