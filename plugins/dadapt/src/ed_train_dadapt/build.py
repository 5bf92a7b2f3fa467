"""Build dadaptation's optimizers and read the step size that they arrived at."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ed_train.specs import Params

from ed_train_dadapt.configs import DAdaptAdamConfig, DAdaptAdanConfig, DAdaptLionConfig, DAdaptSGDConfig

if TYPE_CHECKING:
    import torch

OF_THE_LIBRARY = ("fsdp_in_use", "log_every")
"""What a loop of one's own can set in a group, and the fast step does not follow."""


def dadapt_adam(params: Params, config: DAdaptAdamConfig) -> torch.optim.Optimizer:
    """Build a `dadaptation.DAdaptAdam`, or ours with a faster step."""
    from dadaptation import DAdaptAdam
    from ed_train.pieces import fast_fits

    kind = DAdaptAdam
    if config.implementation == "fast" and fast_fits("dadapt_adam", params, OF_THE_LIBRARY):
        from ed_train_dadapt.fast import FastDAdaptAdam

        kind = FastDAdaptAdam
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that weight decay is decoupled
        optimizer: torch.optim.Optimizer = kind(
            params,
            lr=config.lr,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            decouple=config.decouple,
            use_bias_correction=config.use_bias_correction,
            d0=config.d0,
            growth_rate=_or_no_limit(config.growth_rate),
        )
    return optimizer


def dadapt_adan(params: Params, config: DAdaptAdanConfig) -> torch.optim.Optimizer:
    """Build a `dadaptation.DAdaptAdan`."""
    from dadaptation import DAdaptAdan

    optimizer: torch.optim.Optimizer = DAdaptAdan(
        params,
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        no_prox=config.no_prox,
        d0=config.d0,
        growth_rate=_or_no_limit(config.growth_rate),
    )
    return optimizer


def dadapt_lion(params: Params, config: DAdaptLionConfig) -> torch.optim.Optimizer:
    """Build a `dadaptation.DAdaptLion`."""
    from dadaptation import DAdaptLion

    optimizer: torch.optim.Optimizer = DAdaptLion(
        params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, d0=config.d0
    )
    return optimizer


def dadapt_sgd(params: Params, config: DAdaptSGDConfig) -> torch.optim.Optimizer:
    """Build a `dadaptation.DAdaptSGD`."""
    from dadaptation import DAdaptSGD

    optimizer: torch.optim.Optimizer = DAdaptSGD(
        params,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        d0=config.d0,
        growth_rate=_or_no_limit(config.growth_rate),
    )
    return optimizer


def _or_no_limit(growth_rate: float | None) -> float:
    return math.inf if growth_rate is None else growth_rate


def adapted_lr(group: Mapping[str, Any]) -> float:
    """The step size that the next step uses: d x lr."""
    return float(group["d"] * group["lr"])


def bias_corrected_lr(group: Mapping[str, Any]) -> float:
    """`adapted_lr`, times Adam's bias correction where that is on."""
    if not group["use_bias_correction"]:
        return adapted_lr(group)
    beta1, beta2 = group["betas"]
    step = group["k"] + 1
    return adapted_lr(group) * math.sqrt(1 - beta2**step) / float(1 - beta1**step)


def normalized_lr(group: Mapping[str, Any]) -> float:
    """`adapted_lr`, divided by the norm of the first gradient, which is not known before the first step."""
    return adapted_lr(group) / float(group.get("g0_norm", 1.0))
