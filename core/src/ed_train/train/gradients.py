"""Whether the gradients of a step are finite, found out at the least cost, and their norms where somebody wants them.

If any gradient is not finite, no optimizer may step. That must be known before the step, and costs time:

- On a CPU a pass over all gradients takes 1 to 2 % of a step, most of it to fetch them from memory. `GradientWatch`
  looks at each large one when backward has just written it, while it is in the processor's cache, and takes its sum,
  which is twice as fast as its norm. Norms are taken where they are clipped or logged.
- On a GPU the pass is cheap, and to wait for its result is dear. torch's fused optimizers take it as a tensor and leave
  everything as it is where it says so, as they do for a gradient scaler; the trainer reads it at the next log point.
  `steps_unread` says where that is possible. Elsewhere it is read in every step: one wait per step.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ed_train.train.components import TrainedComponent

LARGE = 1 << 14
"""Elements from which on a gradient is looked at by itself; smaller ones are cheaper all at once."""


class GradientWatch:
    """Looks at the gradients of one component as they arrive.

    A sum is finite only if all that it adds is: an infinity stays one, or meets its opposite and becomes NaN. Finite
    gradients have an infinite sum only with elements of about 1e30; their norm is infinite from 1e19 on.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Watch the parameters of one component, whose gradients no other process has a part in."""
        self._small = [p for p in parameters if p.numel() < LARGE]
        self._sums: list[Tensor] = []
        self._expecting = False
        for parameter in parameters:
            if parameter.numel() >= LARGE:
                parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Expect the last backward pass before a step."""
        self._sums.clear()
        self._expecting = True

    def _arrived(self, parameter: Tensor) -> None:
        if self._expecting and parameter.grad is not None:
            self._sums.append(parameter.grad.sum())

    def finite(self) -> bool:
        """Whether all gradients are finite, after that backward pass."""
        self._expecting = False
        small = [p.grad for p in self._small if p.grad is not None]
        found = [*self._sums, *(torch._foreach_norm(small) if small else ())]
        return not found or bool(torch.isfinite(torch.stack(found)).all())


def watch_gradients(components: Sequence[TrainedComponent], accelerator: Accelerator) -> None:
    """Watch the gradients where that saves time: on a CPU, in one process."""
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        for component in components:
            if component.partial_steps is None:  # which looks at every gradient itself
                component.watch = GradientWatch(component.parameters)


def steps_unread(components: Sequence[TrainedComponent], device: torch.device) -> bool:
    """Whether all optimizers can be told by a tensor, which nobody has read, to leave everything as it is."""
    return device.type != "cpu" and all(c.partial_steps is None and supports_unread(c.optimizer) for c in components)


def supports_unread(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer follows torch's protocol for that: it reads the attribute ``found_inf``."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def gradient_norm(component: TrainedComponent) -> Tensor:
    """The norm of a component's gradients, a scalar on their device; in backward, all have been stepped then."""
    if component.partial_steps:
        return component.partial_steps.norm()
    return get_total_norm([p.grad for p in component.parameters if p.grad is not None])


@contextmanager
def unless_unfit(components: Sequence[TrainedComponent], norms: Mapping[str, Tensor]) -> Generator[None]:
    """A block in which a step of an optimizer changes nothing if any of these norms is not finite; nobody waits for it.

    Args:
        components: their optimizers follow the protocol of `supports_unread`, if there are norms.
        norms: scalars on the device; without any, the block is an ordinary one.
    """
    if not norms:
        yield
        return
    unfit = torch.stack(list(norms.values())).isfinite().all().logical_not().float()
    optimizers: list[Any] = [component.optimizer for component in components]
    for optimizer in optimizers:
        optimizer.found_inf = unfit
    try:
        yield
    finally:
        for optimizer in optimizers:
            del optimizer.found_inf
