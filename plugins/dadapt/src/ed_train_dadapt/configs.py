"""Options of the optimizers of dadaptation 3.

Its ``log_every`` is left out, because the trainer logs the estimate itself, and ``fsdp_in_use``, because none of the
optimizers is declared as shardable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ed_train import Bounds, Fraction, Help, NonNegative, Positive

AboveOne = Annotated[float, Bounds(gt=1)]

Lr = Annotated[Positive, Help("factor of the estimated step size; 0.1 to 1.0")]
AdamBetas = Annotated[
    tuple[Fraction, Fraction], Help("decay rates of the running averages of the gradient and of its square")
]
Epsilon = Annotated[Positive, Help("added to the denominator, against division by zero")]
D0 = Annotated[Positive, Help("first estimate of the step size; rarely needs a change")]
GrowthRate = Annotated[
    AboveOne | None, Help("largest factor by which the estimate grows in one step, e.g. 1.02; null: no limit")
]


@dataclass(frozen=True)
class DAdaptAdamConfig:
    """Options of `dadaptation.DAdaptAdam`."""

    lr: Lr = 1.0
    betas: AdamBetas = (0.9, 0.999)
    epsilon: Epsilon = 1e-8
    weight_decay: Annotated[NonNegative, Help("weight decay; users train well with 0.8")] = 0.0
    decouple: Annotated[bool, Help("decoupled weight decay as in AdamW; false: an L2 penalty as in Adam")] = True
    use_bias_correction: Annotated[bool, Help("Adam's bias correction: smaller first steps")] = False
    d0: D0 = 1e-6
    growth_rate: GrowthRate = None
    implementation: Annotated[
        Literal["fast", "reference"],
        Help("fast: the same step in fewer passes over the memory; reference: dadaptation's own"),
    ] = "fast"


@dataclass(frozen=True)
class DAdaptAdanConfig:
    """Options of `dadaptation.DAdaptAdan`."""

    lr: Lr = 1.0
    betas: Annotated[
        tuple[Fraction, Fraction, Fraction],
        Help("decay rates of the running averages of the gradient, of its difference and of the square of both"),
    ] = (0.98, 0.92, 0.99)
    epsilon: Epsilon = 1e-8
    weight_decay: Annotated[NonNegative, Help("decoupled weight decay")] = 0.02
    no_prox: Annotated[bool, Help("decay the weights before the update as in AdamW, not by a division after it")] = (
        False
    )
    d0: D0 = 1e-6
    growth_rate: GrowthRate = None


@dataclass(frozen=True)
class DAdaptLionConfig:
    """Options of `dadaptation.DAdaptLion`."""

    lr: Lr = 1.0
    betas: Annotated[
        tuple[Fraction, Fraction], Help("share of the momentum in the update, and decay rate of the momentum")
    ] = (0.9, 0.99)
    weight_decay: Annotated[NonNegative, Help("decoupled weight decay")] = 0.0
    d0: D0 = 1e-6


@dataclass(frozen=True)
class DAdaptSGDConfig:
    """Options of `dadaptation.DAdaptSGD`."""

    lr: Lr = 1.0
    momentum: Annotated[Fraction, Help("share of the previous weights in each average of the weights")] = 0.0
    weight_decay: Annotated[NonNegative, Help("weight decay as an L2 penalty")] = 0.0
    d0: D0 = 1e-6
    growth_rate: GrowthRate = None
