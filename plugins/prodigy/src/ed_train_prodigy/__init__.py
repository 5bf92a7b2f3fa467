"""Prodigy, an Adam that estimates its step size, from prodigyopt."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ed_train import Bounds, Fraction, Help, NonNegative, OptimizerSpec, Positive, hookimpl
from ed_train.specs import Params, TrainingPlan

if TYPE_CHECKING:
    import torch

AboveOne = Annotated[float, Bounds(gt=1)]


# prodigyopt's `fsdp_in_use` is left out: the optimizer is declared as not shardable below.
@dataclass(frozen=True)
class ProdigyConfig:
    """Options of `prodigyopt.Prodigy`."""

    lr: Annotated[Positive, Help("factor of the estimated step size; leave it at 1 and change d_coef")] = 1.0
    betas: Annotated[
        tuple[Fraction, Fraction], Help("decay rates of the running averages of the gradient and of its square")
    ] = (0.9, 0.999)
    beta3: Annotated[
        Fraction | None, Help("decay rate of the statistics behind the estimate; null: the square root of betas[1]")
    ] = None
    epsilon: Annotated[Positive, Help("added to the denominator, against division by zero")] = 1e-8
    weight_decay: Annotated[NonNegative, Help("weight decay; 0.01 is recommended for diffusion models")] = 0.0
    decouple: Annotated[bool, Help("decoupled weight decay as in AdamW; false: an L2 penalty as in Adam")] = True
    use_bias_correction: Annotated[bool, Help("Adam's bias correction: smaller first steps")] = True
    safeguard_warmup: Annotated[
        bool, Help("keep lr out of the estimate's denominator, so that a warmup does not raise the estimate")
    ] = True
    d0: Annotated[Positive, Help("first estimate of the step size; 1e-5 or 1e-4 if it never grows")] = 1e-6
    d_coef: Annotated[Positive, Help("factor of the estimate, the preferred way to tune; 0.5 to 2 is usual")] = 1.0
    growth_rate: Annotated[
        AboveOne | None, Help("largest factor by which the estimate grows in one step, e.g. 1.02; null: no limit")
    ] = None
    slice_p: Annotated[
        int, Bounds(ge=1), Help("estimate from every p-th element only; about 11 saves memory at little cost")
    ] = 1
    implementation: Annotated[
        Literal["fast", "reference"],
        Help("fast: the same step in fewer passes over the memory; reference: prodigyopt's own"),
    ] = "fast"


def build(params: Params, config: ProdigyConfig) -> torch.optim.Optimizer:
    """Build a `prodigyopt.Prodigy`, or ours with a faster step."""
    from ed_train.pieces import fast_fits
    from prodigyopt import Prodigy

    kind = Prodigy
    if config.implementation == "fast" and fast_fits("prodigy", params, ["fsdp_in_use"]):
        from ed_train_prodigy.fast import FastProdigy

        kind = FastProdigy
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it decays weights
        optimizer: torch.optim.Optimizer = kind(
            params,
            lr=config.lr,
            betas=config.betas,
            beta3=config.beta3,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            decouple=config.decouple,
            use_bias_correction=config.use_bias_correction,
            safeguard_warmup=config.safeguard_warmup,
            d0=config.d0,
            d_coef=config.d_coef,
            growth_rate=math.inf if config.growth_rate is None else config.growth_rate,
            slice_p=config.slice_p,
        )
    return optimizer


def effective_lr(group: Mapping[str, Any]) -> float:
    """The step size that the next step uses: d x lr, times Adam's bias correction where that is on."""
    step_size = float(group["d"] * group["lr"])
    if not group["use_bias_correction"]:
        return step_size
    beta1, beta2 = group["betas"]
    step = group["k"] + 1
    return float(step_size * math.sqrt(1 - beta2**step) / (1 - beta1**step))


def state_bytes(config: ProdigyConfig, shape: tuple[int, ...]) -> int:
    """Adam's averages, and of every slice_p-th element its first value and a statistic, in float32.

    Without momentum (``betas[0]`` of 0) there is one average only. A parameter that begins as zeros keeps no first
    values, and takes less than this.
    """
    elements = math.prod(shape)
    averages = 2 if config.betas[0] > 0 else 1
    return 4 * (averages * elements + 2 * math.ceil(elements / config.slice_p))


def advice(config: ProdigyConfig, plan: TrainingPlan) -> Iterator[str]:
    """Warn where a warmup would raise the estimate."""
    if plan.has_warmup and not config.safeguard_warmup:
        yield (
            "safeguard_warmup is false and the schedule has a warmup: the small lr at the start makes the estimated "
            "step size come out too large; set safeguard_warmup to true, or lr_warmup_steps to 0"
        )


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    """Offer prodigy; sharded parameters would give every process an estimate of its own."""
    return [
        OptimizerSpec(
            name="prodigy",
            summary="Prodigy: Adam that finds its learning rate itself",
            config_type=ProdigyConfig,
            build=build,
            library="prodigyopt",
            paper="https://arxiv.org/abs/2306.06101",
            learning_rate_free=True,
            effective_lr=effective_lr,
            shardable=False,
            recommended={
                "lr": 1.0,
                "weight_decay": 0.01,
                "use_bias_correction": True,
                "safeguard_warmup": True,
            },
            usual_lr=(0.01, 2.0),
            state_bytes=state_bytes,
            advice=advice,
        )
    ]
