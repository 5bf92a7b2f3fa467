"""A faster step for `lion_pytorch.Lion`, with the same operations on each element, a piece of memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ed_train.pieces import Row, Scratch, pieces, scale_
from lion_pytorch import Lion


class FastLion(Lion):  # type: ignore[misc]  # the library has no types
    """lion_pytorch's Lion with another `step`: its constructor, its groups and its state dict are the library's.

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
        """Take a step; nothing waits for the device.

        Args:
            closure: computes the loss and its gradients anew.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lr, decay = group["lr"], group["weight_decay"]
            if self.decoupled_wd:
                decay = decay / self._init_lr
            for params, grads, averages in pieces(self._rows(group), self.piece):
                updates = self._scratch.of("mul", averages, beta1)
                torch._foreach_add_(updates, grads, alpha=1 - beta1)
                torch._foreach_sign_(updates)
                if decay:
                    scale_(params, 1 - lr * decay)
                torch._foreach_add_(params, updates, alpha=-lr)
                scale_(averages, beta2)
                torch._foreach_add_(averages, grads, alpha=1 - beta2)
        return loss

    def _rows(self, group: dict[str, Any]) -> list[Row]:
        """Parameter, gradient and momentum of whatever has a gradient."""
        rows: list[Row] = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
            rows.append((parameter.detach(), parameter.grad, state["exp_avg"]))
        return rows
