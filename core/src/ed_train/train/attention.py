"""Attention over few keys in float32, on a CPU under bfloat16 autocast, where that is faster and more exact.

torch's attention on a CPU gains nothing from bfloat16 in the forward pass, and loses in the backward pass the more, the
fewer keys there are: with the 77 tokens of a caption it takes 1.1 to 3 times as long as in float32, casts included.
From about 512 keys on, the matrix products outweigh that. benchmarks/attention.py measures where.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_KEYS = 512
"""From so many keys on, attention runs in bfloat16, as autocast has it."""

_library: list[torch.library.Library] = []  # what it holds is taken back when it is gone


def attend_in_float32() -> None:
    """Let attention over few keys run in float32 wherever a CPU is in bfloat16 autocast, in this process, for good.

    Autocast decides about an operator's type in a function of its own, which torch lets be replaced. Here it is that of
    ``scaled_dot_product_attention``: so UNet, text encoder and VAE, training, validation and samples have it alike,
    and nothing is called where autocast is off. A call takes 20 microseconds longer, and a step has some 50.
    """
    if _library:
        return
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a function is replaced
        library.impl("scaled_dot_product_attention", _attention, "AutocastCPU")  # type: ignore[no-untyped-call]
    _library.append(library)


def attends_in_float32(device: torch.device, precision: str) -> bool:
    """Whether a run on this device, with this precision of autocast, is one that gains."""
    return device.type == "cpu" and precision == "bf16"


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What autocast does with `F.scaled_dot_product_attention`; returns autocast's type, as it does."""
    wanted = torch.get_autocast_dtype("cpu")
    used = torch.float32 if wanted == torch.bfloat16 and key.shape[-2] < FEW_KEYS else wanted
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(used)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            query.to(used), key.to(used), value.to(used), attn_mask, dropout_p, is_causal, scale=scale,
            enable_gqa=enable_gqa,
        ).to(wanted)  # fmt: skip
