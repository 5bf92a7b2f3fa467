"""Lion (evolved sign momentum) from lion-pytorch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from ed_train import Fraction, Help, NonNegative, OptimizerSpec, Positive, hookimpl
from ed_train.specs import Params

if TYPE_CHECKING:
    import torch

STRONG_DECAY_PER_STEP = 0.01


# lion-pytorch's `use_triton` is left out: it changes no result, and without the triton package it exits the process.
@dataclass(frozen=True)
class LionConfig:
    """Options of `lion_pytorch.Lion`."""

    lr: Annotated[Positive, Help("learning rate; about a tenth of AdamW's")] = 1e-7
    betas: Annotated[
        tuple[Fraction, Fraction], Help("share of the momentum in the update, and decay rate of the momentum")
    ] = (0.9, 0.99)
    weight_decay: Annotated[
        NonNegative,
        Help("each step multiplies the weights by 1 - lr x weight_decay; about ten times AdamW's"),
    ] = 0.1
    decoupled_weight_decay: Annotated[
        bool, Help("divide weight_decay by the initial lr: at full lr each step takes this share of the weights")
    ] = False
    implementation: Annotated[
        Literal["fast", "reference"],
        Help("fast: the same step in fewer passes over the memory; reference: lion-pytorch's own"),
    ] = "fast"

    def __post_init__(self) -> None:
        if self.decoupled_weight_decay and self.weight_decay > STRONG_DECAY_PER_STEP:
            warnings.warn(
                f"decoupled_weight_decay makes weight_decay={self.weight_decay:g} a share per step: it takes "
                f"{self.weight_decay:.0%} of every weight in each step; usual are values near lr x 0.1",
                stacklevel=3,
            )


def build(params: Params, config: LionConfig) -> torch.optim.Optimizer:
    """Build a `lion_pytorch.Lion`, or ours with a faster step."""
    from ed_train.pieces import fast_fits
    from lion_pytorch import Lion

    kind = Lion
    if config.implementation == "fast" and fast_fits("lion", params):
        from ed_train_lion.fast import FastLion

        kind = FastLion
    optimizer: torch.optim.Optimizer = kind(
        params,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=config.decoupled_weight_decay,
    )
    return optimizer


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    """Offer lion."""
    return [
        OptimizerSpec(
            name="lion",
            summary="Lion: sign of a momentum; half of AdamW's state, a tenth of its learning rate",
            config_type=LionConfig,
            build=build,
            library="lion-pytorch",
            paper="https://arxiv.org/abs/2302.06675",
            per_parameter=True,
            recommended={"lr": 1e-7, "weight_decay": 0.1},
            usual_lr=(1e-9, 5e-7),  # a tenth of AdamW's for fine-tuning, which is near 1e-6
            state_bytes=4,  # the momentum
        )
    ]
