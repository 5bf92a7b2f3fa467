"""The keys that save memory by stepping some parameters before others, and what they cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ed_train.config.describe import show
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import Problem

if TYPE_CHECKING:
    from ed_train.config.optimizer_keys import Given
    from ed_train.config.run import ComponentConfig
    from ed_train.registry import OptimizerRegistry

IN_BACKWARD = "optimizer_in_backward"
DTYPE = "weights_dtype"
BF16 = "bf16"
SCALER = "float16 autocast (its gradient scaler looks at every gradient before a step; bfloat16 has none)"


def uses_partial_steps(train: TrainConfig) -> bool:
    """Whether optimizers step over some of their parameters at a time."""
    return train.optimizer_in_backward or train.weights_dtype == BF16


def check_memory_keys(
    train: TrainConfig,
    components: Mapping[str, ComponentConfig],
    registry: OptimizerRegistry,
    given: Mapping[str, Given],
) -> list[Problem]:
    """What in the files and flags contradicts these keys, in a line for each of them."""
    unfit = dict.fromkeys(c.optimizer.spec.name for c in components.values() if not c.optimizer.spec.per_parameter)
    fit = ", ".join(sorted(o.spec.name for o in registry if o.spec.per_parameter))
    optimizers = [f"{name} (its step needs all parameters at once; these do not: {fit})" for name in unfit]
    found = []
    if train.optimizer_in_backward:
        found.append((IN_BACKWARD, [*_against_backward(train), *optimizers]))
    if train.weights_dtype == BF16:
        found.append((DTYPE, [*_against_bfloat16(train), *optimizers]))
    return [Problem(given[key].where, given[key].key, contradiction(key, what)) for key, what in found if what]


def contradiction(key: str, what: list[str]) -> str:
    """The message for a key that does not go together with other settings."""
    return f"contradicts {' and '.join(what)}; change that, or leave {key} out"


def _against_backward(train: TrainConfig) -> Iterator[str]:
    if train.grad_accum > 1:
        yield f"grad_accum {train.grad_accum} (a gradient is gone when it was used, so none can be added to it)"
    if train.clip_grad_norm is not None:
        yield f"clip_grad_norm {show(train.clip_grad_norm)} (the norm is known only when every gradient is there)"
    if train.mixed_precision == "fp16" and not train.disable_amp:
        yield SCALER


def _against_bfloat16(train: TrainConfig) -> Iterator[str]:
    if train.disable_amp:
        yield "disable_amp (computing with bfloat16 weights needs bfloat16 autocast)"
    elif train.mixed_precision not in ("auto", BF16):
        yield f"mixed_precision {show(train.mixed_precision)} (bfloat16 weights need bfloat16 autocast)"
