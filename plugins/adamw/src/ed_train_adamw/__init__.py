"""AdamW of torch, in the fastest form that the device and the parameters support."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ed_train import Fraction, Help, NonNegative, OptimizerSpec, hookimpl
from ed_train.specs import Params, TrainingPlan

if TYPE_CHECKING:
    import torch

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Device types for which torch has one kernel for the whole update, in every version that this plugin allows."""


@dataclass(frozen=True)
class AdamWConfig:
    """Options of `torch.optim.AdamW`."""

    lr: Annotated[NonNegative, Help("learning rate")] = 1e-6
    betas: Annotated[
        tuple[Fraction, Fraction], Help("decay rates of the running averages of the gradient and of its square")
    ] = (0.9, 0.999)
    epsilon: Annotated[NonNegative, Help("added to the denominator, against division by zero")] = 1e-8
    weight_decay: Annotated[
        NonNegative, Help("decoupled weight decay: each step multiplies the weights by 1 - lr x weight_decay")
    ] = 0.01
    amsgrad: Annotated[bool, Help("divide by the maximum of the running averages so far (AMSGrad)")] = False


def build(params: Params, config: AdamWConfig) -> torch.optim.Optimizer:
    """Build a `torch.optim.AdamW`."""
    import torch

    return torch.optim.AdamW(
        params,
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        amsgrad=config.amsgrad,
        # torch finds out at the first step that fused does not fit, and raises; None leaves the choice to torch.
        fused=True if all(_fits_fused(tensor) for tensor in _tensors(params)) else None,
    )


def state_bytes(config: AdamWConfig, shape: tuple[int, ...]) -> int:
    """Two averages in float32, a third array with AMSGrad, and the count of steps."""
    arrays = 3 if config.amsgrad else 2
    return 4 * (arrays * math.prod(shape) + 1)


def advice(config: AdamWConfig, plan: TrainingPlan) -> Iterator[str]:
    """Warn where a parameter without a gradient would become NaN."""
    if config.epsilon == 0:
        yield (
            "epsilon 0 divides 0 by 0 where a gradient is 0, as for the embeddings of tokens that no caption has: "
            "these weights become NaN; use 1e-8"
        )


def _fits_fused(tensor: torch.Tensor) -> bool:
    return tensor.device.type in FUSED_DEVICES and tensor.is_floating_point()


def _tensors(params: Params) -> Iterator[torch.Tensor]:
    """The bare parameters, whether they come plain, with names or in groups."""
    for item in params:
        for member in item["params"] if isinstance(item, dict) else [item]:
            yield member[1] if isinstance(member, tuple) else member


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    """Offer adamw."""
    return [
        OptimizerSpec(
            name="adamw",
            summary="AdamW: Adam with decoupled weight decay, fused where the device supports it",
            config_type=AdamWConfig,
            build=build,
            library="torch",
            paper="https://arxiv.org/abs/1711.05101",
            per_parameter=True,
            usual_lr=(1e-8, 1e-3),  # from cautious fine-tuning to training from scratch
            state_bytes=state_bytes,
            advice=advice,
        )
    ]
