"""A faster step for `dadaptation.DAdaptAdam`, a piece of memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from dadaptation import DAdaptAdam
from ed_train.pieces import (
    Columns,
    Row,
    Scratch,
    Weighted,
    add_scaled_,
    dot,
    fits_fused,
    fused_adam_,
    pieces,
    read_sums,
    scale_,
    total,
)

SMALLEST_SCALE = 1e-20
"""The kernel gets averages that are divided by the step size; with a smaller one they might leave float32's range."""


@dataclass(frozen=True)
class Settings:
    """What a group's pieces are stepped with.

    Attributes:
        step_size: d x lr x bias correction, the same for all groups.
        layer_scale: how much further than others the group steps, 1 unless a group sets it.
        betas: decay rates of the averages of the gradient and of its square.
        decay: decoupled weight decay.
        moves: False at a learning rate of 0, where the averages stay.
    """

    step_size: float
    layer_scale: float
    betas: tuple[float, float]
    eps: float
    decay: float
    moves: bool

    @property
    def scale(self) -> float:
        """Of the gradients in their running average."""
        return self.layer_scale * self.step_size


class FastDAdaptAdam(DAdaptAdam):  # type: ignore[misc]  # the library has no types
    """dadaptation's DAdaptAdam with another `step`: its constructor, its groups and its state dict are the library's.

    The estimate of a step is used from the next step on. On a CPU a piece is therefore updated while it is in the
    cache, as soon as it is known that the step does not end early for lack of gradients; on other devices all pieces
    are, after the one time that the device is waited for.

    Attributes:
        piece: elements that are worked on together; None for what suits the device.
        reads_early: whether to look at values on the way; None for what suits the device.
    """

    piece: int | None = None
    reads_early: bool | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.implementation = "fast"
        self._scratch = Scratch()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: computes the loss and its gradients anew.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: groups have different learning rates above 0, for which there is no one estimate.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        numerators: Weighted = []
        norms: Weighted = []
        waiting, begun = [], False
        for columns, settings in self._pieces():
            if settings.moves:
                self._estimate(columns, settings, numerators, norms)
                begun = begun or self._has_begun(norms)
            if settings.moves and begun:
                _update(columns, settings)
            else:
                waiting.append((columns, settings))
        numerator, norm = read_sums(numerators, norms)
        for columns, settings in waiting:
            if norm != 0:
                _update(columns, settings)
            elif settings.moves:
                _average(columns, settings)
        if norm != 0:  # else there was no gradient, and the library does not count the step either
            self._finish(numerator, norm)
        return loss

    def _pieces(self) -> Iterator[tuple[Columns, Settings]]:
        """Parameters, gradients, both averages and the weighted sum of gradients, of whatever has a gradient."""
        first = self.param_groups[0]
        lr = max(group["lr"] for group in self.param_groups)
        if any(group["lr"] not in (lr, 0.0) for group in self.param_groups):
            raise RuntimeError(
                "DAdaptAdam: parameter groups may have the same lr or 0; give a group a layer_scale to step it less far"
            )
        beta1, beta2 = first["betas"]
        step_size = first["d"] * lr
        if first["use_bias_correction"]:
            step_size *= (1 - beta2 ** (first["k"] + 1)) ** 0.5 / (1 - beta1 ** (first["k"] + 1))
        for group in self.param_groups:
            coupled = 0.0 if first["decouple"] else group["weight_decay"]
            settings = Settings(
                step_size, group["layer_scale"], (beta1, beta2), group["eps"],
                decay=group["weight_decay"] if first["decouple"] else 0.0, moves=group["lr"] > 0,
            )  # fmt: skip
            for columns in pieces(self._rows(group), self.piece):
                if coupled:
                    torch._foreach_add_(columns[1], columns[0], alpha=coupled)
                yield columns, settings

    def _rows(self, group: Mapping[str, Any]) -> Iterator[Row]:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = 0
                state.update({name: torch.zeros_like(parameter) for name in ("s", "exp_avg", "exp_avg_sq")})
            yield parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["s"]

    def _estimate(self, columns: Columns, settings: Settings, numerators: Weighted, norms: Weighted) -> None:
        """Add a piece to the weighted sum of gradients, and to what d is estimated from."""
        _, grads, _, squares, weighted = columns
        root = settings.betas[1] ** 0.5
        denominators = self._scratch.of("sqrt", squares)
        torch._foreach_add_(denominators, settings.eps)
        numerators.append((settings.scale, dot(grads, self._scratch.of("div", weighted, denominators))))
        add_scaled_(weighted, root, grads, settings.step_size * (1 - root))
        norms.append((settings.layer_scale, total(self._scratch.of("abs", weighted))))

    def _has_begun(self, norms: Weighted) -> bool:
        """Whether it is certain already that the sum of the norms is not 0."""
        (_, norm) = norms[-1]
        early = norm.device.type == "cpu" if self.reads_early is None else self.reads_early
        return early and bool(norm.tolist())

    def _finish(self, numerator: float, norm: float) -> None:
        """Count the step, and put the new estimate into all groups."""
        first = self.param_groups[0]
        root = first["betas"][1] ** 0.5
        numerator = root * first["numerator_weighted"] + (1 - root) * numerator
        estimate = numerator / ((1 - root) * norm)
        d = max(first["d"], min(estimate, first["d"] * first["growth_rate"]))  # in this order NaN changes nothing
        for group in self.param_groups:
            group["numerator_weighted"], group["d"] = numerator, d
            group["k"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["step"] += 1


def _update(columns: Columns, settings: Settings) -> None:
    """Update both averages, then the parameters."""
    params, _, averages, squares, _ = columns
    scale = settings.scale
    if settings.decay:
        torch._foreach_add_(params, params, alpha=-settings.decay * settings.step_size)
    if settings.moves and scale > SMALLEST_SCALE and fits_fused(columns[:4]):
        # The kernel averages the bare gradients, and scales the average when it steps.
        scale_(averages, 1 / scale)
        fused_adam_(columns[:4], scale, settings.betas, settings.eps)
        scale_(averages, scale)
        return
    if settings.moves:
        _average(columns, settings)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_add_(denominators, settings.eps)
    torch._foreach_addcdiv_(params, averages, denominators, value=-1)


def _average(columns: Columns, settings: Settings) -> None:
    """Update both averages."""
    _, grads, averages, squares, _ = columns
    beta1, beta2 = settings.betas
    scale_(averages, beta1)
    torch._foreach_add_(averages, grads, alpha=settings.scale * (1 - beta1))
    scale_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
