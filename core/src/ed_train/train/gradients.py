"""The norms of a step's gradients, which also tell whether they are finite. If any is not, no optimizer may step.

On a CPU the trainer looks at the norms before the step: they take less than 1 % of its time. On a GPU they are cheap,
and to wait for them is dear. torch's fused optimizers take the answer as a tensor and leave everything as it is where
it says so, as they do for a gradient scaler; the trainer reads it at the next log point. `steps_unread` says where that
is possible. Elsewhere it is read in every step: one wait per step.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ed_train.train.components import TrainedComponent


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
    norms = torch._foreach_norm([p.grad for p in component.parameters if p.grad is not None])
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


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
