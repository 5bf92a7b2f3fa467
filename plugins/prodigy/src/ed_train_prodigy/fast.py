"""A faster step for `prodigyopt.Prodigy`, a piece of memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
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
from prodigyopt import Prodigy
from torch import Tensor


class FastProdigy(Prodigy):  # type: ignore[misc]  # the library has no types
    """prodigyopt's Prodigy with another `step`: its constructor, its groups and its state dict are the library's.

    A step walks over the memory twice, since the new estimate is part of the update: first over what it is estimated
    from, then over what is updated. In between a device is waited for once; in the first step over a parameter once
    more, for whether it begins as zeros.

    Attributes:
        piece: elements that are worked on together; None for what suits the device.
    """

    piece: int | None = None

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
        lr = max(group["lr"] for group in self.param_groups)
        if any(group["lr"] not in (lr, 0.0) for group in self.param_groups):
            raise RuntimeError("Prodigy: parameter groups may have the same lr, or 0, but no different ones")
        self._begin()
        self._decay_gradients()
        step_size = self._step_size(lr)
        numerator, norm = read_sums(*self._estimate(step_size))
        old = self.param_groups[0]["d"]
        if norm != 0:  # else there was no gradient, and the library does not count the step either
            self._finish(numerator, norm)
        for group in self.param_groups:
            for columns in pieces(self._averaged(group), self.piece):
                self._update(columns, group, old, step_size, moves=norm != 0)
        return loss

    def _step_size(self, lr: float) -> float:
        """The step size of this step: d x lr x bias correction, for all groups."""
        first = self.param_groups[0]
        (beta1, beta2), step = first["betas"], first["k"] + 1
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step) if first["use_bias_correction"] else 1.0
        return float(first["d"] * lr * correction)

    def _begin(self) -> None:
        """Make the state of parameters that have a gradient for the first time."""
        new = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None and not self.state[p]]
        if not new:
            return
        by_device: dict[torch.device, list[Tensor]] = {}
        for parameter, _ in new:
            by_device.setdefault(parameter.device, []).append(parameter)
        zero = {
            id(parameter): not some
            for parameters in by_device.values()
            for parameter, some in zip(parameters, torch.stack([p.any() for p in parameters]).tolist(), strict=True)
        }
        beta1 = self.param_groups[0]["betas"][0]
        for parameter, group in new:
            every = parameter.detach().reshape(-1)[:: group["slice_p"]]
            state = self.state[parameter]
            state["step"] = 0
            state["s"] = torch.zeros_like(every, memory_format=torch.contiguous_format)
            state["p0"] = parameter.new_zeros(()) if zero[id(parameter)] else every.clone()
            if beta1 > 0:
                state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _decay_gradients(self) -> None:
        """Weight decay as a penalty in the gradients, where it is not decoupled."""
        for group in self.param_groups:
            if group["weight_decay"] and not self.param_groups[0]["decouple"]:
                for params, grads in pieces(_gradients(group), self.piece):
                    torch._foreach_add_(grads, params, alpha=group["weight_decay"])

    def _estimate(self, step_size: float) -> tuple[Weighted, Weighted]:
        """Update the weighted sums of gradients; numerators and norms of what d is estimated from."""
        first = self.param_groups[0]
        d, beta3 = first["d"], first["beta3"]
        if beta3 is None:
            beta3 = math.sqrt(first["betas"][1])
        numerators: Weighted = []
        norms: Weighted = []
        for group in self.param_groups:
            if group["lr"] <= 0:
                continue
            growth = d / group["d0"]
            weight = growth * (d if group["safeguard_warmup"] else step_size)
            for params, grads, starts, sums in pieces(self._sliced(group), self.piece):
                numerators.append((growth * step_size, dot(grads, self._scratch.of("sub", starts, params))))
                add_scaled_(sums, beta3, grads, weight)
                norms.append((1.0, total(self._scratch.of("abs", sums))))
        return numerators, norms

    def _sliced(self, group: Mapping[str, Any]) -> Iterator[Row]:
        """Every slice_p-th element of parameters and gradients, in rows, with their first values and weighted sums."""
        every = group["slice_p"]
        for parameter, gradient in _gradients(group):
            state = self.state[parameter]
            values, slopes, start = parameter.reshape(-1), gradient.reshape(-1), state["p0"]
            if every > 1:
                values, slopes = values[::every], slopes[::every]
            yield values, slopes, start if start.shape == values.shape else start.expand(values.shape), state["s"]

    def _averaged(self, group: Mapping[str, Any]) -> Iterator[Row]:
        """Parameters, gradients, the average of their squares, and their own where there is a momentum."""
        has_momentum = self.param_groups[0]["betas"][0] > 0
        for parameter, gradient in _gradients(group):
            state = self.state[parameter]
            own = (state["exp_avg"],) if has_momentum else ()
            yield parameter, gradient, state["exp_avg_sq"], *own

    def _finish(self, numerator: float, norm: float) -> None:
        """Count the step, and put the new estimate into all groups."""
        first, last = self.param_groups[0], self.param_groups[-1]
        beta3 = math.sqrt(first["betas"][1]) if first["beta3"] is None else first["beta3"]
        numerator += beta3 * first["d_numerator"]
        estimate = first["d_coef"] * numerator / norm
        # In this order of arguments NaN changes nothing.
        d = max(first["d"], estimate) if first["d"] == last["d0"] else first["d"]
        largest = max(first["d_max"], estimate)
        d = min(largest, d * first["growth_rate"])
        for group in self.param_groups:
            group.update(d_numerator=numerator, d_denom=norm, d=d, d_max=largest, d_hat=estimate)
            group["k"] += 1
            for parameter, _ in _gradients(group):
                self.state[parameter]["step"] += 1

    def _update(self, columns: Columns, group: Mapping[str, Any], old: float, step_size: float, *, moves: bool) -> None:
        """Update the averages with the estimate that the step began with, and the parameters if `moves`."""
        params, grads, squares, *averages = columns
        betas, eps = self.param_groups[0]["betas"], group["d"] * group["eps"]
        decay = group["weight_decay"] if self.param_groups[0]["decouple"] else 0.0
        if moves and decay:
            torch._foreach_add_(params, params, alpha=-decay * step_size)
        if moves and group["lr"] > 0 and averages and fits_fused(columns):
            scaled = self._scratch.of("mul", grads, old)  # in the cache; the gradients themselves stay as they are
            fused_adam_((params, scaled, averages[0], squares), step_size, betas, eps)
            return
        if group["lr"] > 0:
            if averages:
                scale_(averages[0], betas[0])
                torch._foreach_add_(averages[0], grads, alpha=old * (1 - betas[0]))
            scale_(squares, betas[1])
            torch._foreach_addcmul_(squares, grads, grads, value=old * old * (1 - betas[1]))
        if not moves:
            return
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, eps)
        if averages:
            torch._foreach_addcdiv_(params, averages[0], denominators, value=-step_size)
        else:
            torch._foreach_addcdiv_(params, grads, denominators, value=-step_size * group["d"])


def _gradients(group: Mapping[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """Parameters that have a gradient, and the gradients."""
    for parameter in group["params"]:
        if parameter.grad is not None:
            yield parameter, parameter.grad
