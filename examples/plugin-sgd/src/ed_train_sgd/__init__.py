"""SGD with momentum for ed-train: copy this folder to ship an optimizer of your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ed_train import Fraction, Help, NonNegative, OptimizerSpec, Positive, hookimpl
from ed_train.specs import Params

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SgdConfig:
    lr: Annotated[Positive, Help("learning rate")] = 1e-3
    momentum: Annotated[Fraction, Help("share of the previous update in each update")] = 0.9
    nesterov: Annotated[bool, Help("look ahead along the momentum; needs a momentum above 0")] = False
    weight_decay: Annotated[NonNegative, Help("weight decay as an L2 penalty")] = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")


def build(params: Params, config: SgdConfig) -> torch.optim.Optimizer:
    from torch.optim import SGD  # here and not above: listing optimizers must stay instant

    return SGD(params, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov)


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    paper = "https://proceedings.mlr.press/v28/sutskever13.html"
    return [OptimizerSpec(name="sgd", summary="SGD with momentum", config_type=SgdConfig, build=build, paper=paper)]
