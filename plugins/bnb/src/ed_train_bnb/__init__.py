"""AdamW and Lion with 8-bit state from bitsandbytes, resident or paged to the CPU's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ed_train import Bounds, Fraction, Help, NonNegative, OptimizerSpec, hookimpl
from ed_train.specs import Params, TrainingPlan

if TYPE_CHECKING:
    import logging

    import torch

SLOW_ON_CPU = (
    "bitsandbytes' 8-bit optimizers are made for GPUs: on a CPU their own step takes 10 to 16 times as long as adamw's"
)
PAPER_8BIT = "https://arxiv.org/abs/2110.02861"
BLOCK = 256
"""Elements of 8-bit state that share a scale in 32 bits."""
USUAL_LR_ADAMW = (1e-8, 1e-3)
USUAL_LR_LION = (1e-9, 5e-7)
"""Lion's steps are longer: about a tenth of AdamW's learning rates for fine-tuning, which are near 1e-6."""

Min8bitSize = Annotated[int, Bounds(ge=0), Help("tensors with fewer elements keep their state in 32 bits")]


# bitsandbytes' `amsgrad` and `optim_bits` are left out: its 8-bit classes raise on any value but the default.
@dataclass(frozen=True)
class AdamW8bitConfig:
    """Options of `bitsandbytes.optim.AdamW8bit` and `PagedAdamW8bit`."""

    lr: Annotated[NonNegative, Help("learning rate")] = 1e-6
    betas: Annotated[
        tuple[Fraction, Fraction], Help("decay rates of the running averages of the gradient and of its square")
    ] = (0.9, 0.999)
    epsilon: Annotated[NonNegative, Help("added to the denominator, against division by zero")] = 1e-8
    weight_decay: Annotated[
        NonNegative, Help("decoupled weight decay: each step multiplies the weights by 1 - lr x weight_decay")
    ] = 0.01
    min_8bit_size: Min8bitSize = 4096


@dataclass(frozen=True)
class Lion8bitConfig:
    """Options of `bitsandbytes.optim.Lion8bit` and `PagedLion8bit`."""

    lr: Annotated[NonNegative, Help("learning rate; about a tenth of AdamW's")] = 1e-7
    betas: Annotated[
        tuple[Fraction, Fraction], Help("share of the momentum in the update, and decay rate of the momentum")
    ] = (0.9, 0.99)
    weight_decay: Annotated[
        NonNegative, Help("each step multiplies the weights by 1 - lr x weight_decay; about ten times AdamW's")
    ] = 0.1
    min_8bit_size: Min8bitSize = 4096


def build_adamw8bit(params: Params, config: AdamW8bitConfig) -> torch.optim.Optimizer:
    """Build a `bitsandbytes.optim.AdamW8bit`."""
    return _adamw(_bitsandbytes().optim.AdamW8bit, params, config)


def build_paged_adamw8bit(params: Params, config: AdamW8bitConfig) -> torch.optim.Optimizer:
    """Build a `bitsandbytes.optim.PagedAdamW8bit`."""
    return _adamw(_bitsandbytes().optim.PagedAdamW8bit, params, config)


def build_lion8bit(params: Params, config: Lion8bitConfig) -> torch.optim.Optimizer:
    """Build a `bitsandbytes.optim.Lion8bit`."""
    return _lion(_bitsandbytes().optim.Lion8bit, params, config)


def build_paged_lion8bit(params: Params, config: Lion8bitConfig) -> torch.optim.Optimizer:
    """Build a `bitsandbytes.optim.PagedLion8bit`."""
    return _lion(_bitsandbytes().optim.PagedLion8bit, params, config)


# Only keyword arguments below: the positions differ between the versions of bitsandbytes.
def _adamw(optimizer_class: Any, params: Params, config: AdamW8bitConfig) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = optimizer_class(
        params,
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        min_8bit_size=config.min_8bit_size,
    )
    return optimizer


def _lion(optimizer_class: Any, params: Params, config: Lion8bitConfig) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = optimizer_class(
        params,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        min_8bit_size=config.min_8bit_size,
    )
    return optimizer


def adamw_state_bytes(config: AdamW8bitConfig, shape: tuple[int, ...]) -> int:
    """Two averages. Not counted: the two tables of 1 KiB that all parameters share."""
    return 2 * _bytes_of_average(math.prod(shape), config.min_8bit_size)


def lion_state_bytes(config: Lion8bitConfig, shape: tuple[int, ...]) -> int:
    """One average. Not counted: the table of 1 KiB that all parameters share."""
    return _bytes_of_average(math.prod(shape), config.min_8bit_size)


def _bytes_of_average(elements: int, min_8bit_size: int) -> int:
    if elements < min_8bit_size:
        return 4 * elements
    return elements + 4 * math.ceil(elements / BLOCK)


def adamw_advice(config: AdamW8bitConfig, plan: TrainingPlan) -> Iterator[str]:
    """Warn where a parameter without a gradient would become NaN."""
    if config.epsilon == 0:
        yield (
            "epsilon 0 divides 0 by 0 where a gradient is 0, as for the embeddings of tokens that no caption has: "
            "these weights become NaN; use 1e-8"
        )


def _bitsandbytes() -> Any:
    """Import bitsandbytes without its warning about a 4-bit kernel for inference, which no optimizer uses."""
    import logging

    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.addFilter(_is_about_optimizers)
    try:
        import bitsandbytes
    finally:
        log.removeFilter(_is_about_optimizers)
    return bitsandbytes


def _is_about_optimizers(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    """Offer the 8-bit optimizers; none can be sharded, since bitsandbytes' kernels refuse torch's DTensor."""
    return [
        OptimizerSpec(
            name="adamw8bit",
            summary="AdamW with 8-bit state: a quarter of its memory",
            config_type=AdamW8bitConfig,
            build=build_adamw8bit,
            library="bitsandbytes",
            paper=PAPER_8BIT,
            slow_on={"cpu": SLOW_ON_CPU},
            shardable=False,
            per_parameter=True,
            usual_lr=USUAL_LR_ADAMW,
            state_bytes=adamw_state_bytes,
            advice=adamw_advice,
        ),
        OptimizerSpec(
            name="paged_adamw8bit",
            summary="AdamW with 8-bit state that moves to the CPU's memory when the GPU's is full",
            config_type=AdamW8bitConfig,
            build=build_paged_adamw8bit,
            library="bitsandbytes",
            paper="https://arxiv.org/abs/2305.14314",
            devices=("cuda",),
            shardable=False,
            per_parameter=True,
            usual_lr=USUAL_LR_ADAMW,
            state_bytes=adamw_state_bytes,
            advice=adamw_advice,
        ),
        OptimizerSpec(
            name="lion8bit",
            summary="Lion with 8-bit state: an eighth of AdamW's memory",
            config_type=Lion8bitConfig,
            build=build_lion8bit,
            library="bitsandbytes",
            paper="https://arxiv.org/abs/2302.06675",
            slow_on={"cpu": SLOW_ON_CPU},
            shardable=False,
            per_parameter=True,
            recommended={"lr": 1e-7, "weight_decay": 0.1},
            usual_lr=USUAL_LR_LION,
            state_bytes=lion_state_bytes,
        ),
        OptimizerSpec(
            name="paged_lion8bit",
            summary="Lion with 8-bit state that moves to the CPU's memory when the GPU's is full",
            config_type=Lion8bitConfig,
            build=build_paged_lion8bit,
            library="bitsandbytes",
            paper="https://arxiv.org/abs/2302.06675",
            devices=("cuda",),
            shardable=False,
            per_parameter=True,
            recommended={"lr": 1e-7, "weight_decay": 0.1},
            usual_lr=USUAL_LR_LION,
            state_bytes=lion_state_bytes,
        ),
    ]
