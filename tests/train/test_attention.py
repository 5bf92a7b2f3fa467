"""Attention under bfloat16 autocast on a CPU: in float32 where there are few keys, else as autocast has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ed_train.train.attention import FEW_KEYS, attend_in_float32
from ed_train.train.step import forward_loss
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

QUERIES, WIDTH = 20, 32


def drawn(keys: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Query, key and value; few enough values that attention is not the mean of them all."""
    generator = torch.Generator().manual_seed(0)
    lengths = (QUERIES, keys, keys)
    found = [torch.randn(2, 3, length, WIDTH, generator=generator) for length in lengths]
    found[0] *= 4
    return [t.bfloat16().to(dtype).requires_grad_() for t in found]


def masks(keys: int) -> dict[str, dict[str, Any]]:
    padded = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    padded[1, ..., 5:] = False
    bias = torch.zeros(2, 1, QUERIES, keys).masked_fill(~padded, -torch.inf)
    return {
        "none": {}, "causal": {"is_causal": True}, "of booleans": {"attn_mask": padded},
        "of numbers": {"attn_mask": bias}, "scaled": {"scale": 0.5},
    }  # fmt: skip


def attended(tensors: list[Tensor], options: dict[str, Any], *, autocast: bool) -> list[Tensor]:
    """The result and the gradients of query, key and value."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = F.scaled_dot_product_attention(*tensors, **options)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype)
    return [result, *torch.autograd.grad(result, tensors, weights)]


@pytest.mark.parametrize("kind", masks(77))
def test_few_keys_are_attended_to_in_float32(kind: str) -> None:
    attend_in_float32()
    options = masks(77)[kind]
    found = attended(drawn(77), options, autocast=True)
    exact = attended(drawn(77, torch.float32), options, autocast=False)
    assert torch.equal(found[0], exact[0].bfloat16())
    for gradient, float32 in zip(found[1:], exact[1:], strict=True):
        assert gradient.dtype == torch.bfloat16
        assert float32.abs().max().item() > 0
        # what is rounded: the gradient that comes in, and the one that goes out
        torch.testing.assert_close(gradient.float(), float32, rtol=2**-7, atol=2**-7 * float32.abs().max().item())


def test_it_is_nearer_to_the_truth_than_bfloat16() -> None:
    attend_in_float32()
    exact = attended(drawn(77, torch.float64), {}, autocast=False)
    errors = []
    for autocast in (True, False):  # tensors in bfloat16 without autocast: what autocast's own function comes to
        found = attended(drawn(77), {}, autocast=autocast)
        errors.append([(a.double() - b).norm().item() / b.norm().item() for a, b in zip(found, exact, strict=True)])
    assert all(ours <= others for ours, others in zip(*errors, strict=True)), errors
    assert sum(errors[0]) < 0.8 * sum(errors[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["from bfloat16", "from float32"])
def test_many_keys_are_left_to_autocast(dtype: torch.dtype) -> None:
    attend_in_float32()
    expected = F.scaled_dot_product_attention(*drawn(FEW_KEYS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.scaled_dot_product_attention(*drawn(FEW_KEYS, dtype)), expected)


def test_other_precisions_are_as_they_were() -> None:
    attend_in_float32()
    with torch.autocast("cpu", torch.float16):
        half = F.scaled_dot_product_attention(*drawn(77))
    assert torch.equal(half, F.scaled_dot_product_attention(*(t.half() for t in drawn(77))))
    assert F.scaled_dot_product_attention(*drawn(77)).dtype == torch.bfloat16, "without autocast"


class Attentions(TorchDispatchMode):
    """The types and the numbers of keys with which attention is computed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[tuple[torch.dtype, int]] = []
        self.backward: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_scaled_dot_product_flash_attention_for_cpu":
            self.forward.append((args[0].dtype, args[1].shape[-2]))
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            self.backward.append((args[0].dtype, args[2].shape[-2]))
        return func(*args, **(kwargs or {}))


def test_unet_and_text_encoder_have_it_in_training(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    session = make_session(disable_amp="false", mixed_precision="bf16")
    (batch,) = next(session.windows())
    with Attentions() as seen:
        torch.autograd.backward(forward_loss(session, batch, 0))
    assert {keys for _, keys in seen.forward} >= {64, 77}, "of the UNet at 64 px, and of captions"
    assert all(keys < FEW_KEYS and dtype == torch.float32 for dtype, keys in seen.forward)
    assert sorted(seen.backward, key=str) == sorted(seen.forward, key=str)
    assert len(seen.forward) >= 4 + 2 * 7, "four layers of the text encoder, and the UNet's, twice each"
