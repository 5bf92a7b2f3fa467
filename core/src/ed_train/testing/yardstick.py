"""Compare two implementations of one optimizer: where they lead from the same gradients, and how often they wait.

For plugins that bring a faster step than their library's, whose class stays the yardstick.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ed_train.testing.toy import Toy, make_toy

Create: TypeAlias = Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]

SHAPES = ((24, 16, 3, 3), (24,), (48, 40), (48,), (7, 5, 2), (1,), ())
"""Of the parameters that recorded gradients are for; the last three are odd, and those of one dimension begin at 0."""
READS = frozenset({
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "is_nonzero",
    "equal", "allclose",
})  # fmt: skip
"""Functions of torch that wait for a device to have computed."""


@dataclass
class Trace:
    """Where an optimizer led.

    Attributes:
        start: parameters before the first step.
        end: parameters after the last one.
        estimates: d of the first group after each step, of an optimizer that has one.
    """

    start: list[Tensor]
    end: list[Tensor] = field(default_factory=list)
    estimates: list[float] = field(default_factory=list)

    def difference(self, other: Trace) -> float:
        """Root mean square of the difference of the parameters, as a share of their movement."""
        apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(self.end, other.end, strict=True))
        moved = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(self.end, self.start, strict=True))
        return float((apart / moved) ** 0.5)

    def estimate_difference(self, other: Trace) -> float:
        """The largest relative difference of d, of all steps."""
        pairs = zip(self.estimates, other.estimates, strict=True)
        return max(abs(a - b) / abs(a) for a, b in pairs)


def on_recorded_gradients(create: Create, steps: int, fade: float = 10, **tensors: Any) -> Trace:
    """Steps over gradients that do not depend on the parameters, so that rounding is not fed back.

    Args:
        create: makes the optimizer over a list of parameters.
        steps: how many.
        fade: the gradients are noise over a direction that is weaker by a factor of e after so many steps: an estimate
            of the step size grows without end where it stays, and not at all where there is none.
        **tensors: dtype and memory format of the parameters, as for `torch.Tensor.to`.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(_start(shape, generator).to(**_format(shape, tensors))) for shape in SHAPES]
    directions = [torch.randn(shape, generator=generator) for shape in SHAPES]
    optimizer = create(parameters)
    trace = Trace([p.detach().clone() for p in parameters])
    for step in range(steps):
        for parameter, direction in zip(parameters, directions, strict=True):
            gradient = torch.randn(direction.shape, generator=generator) + direction * math.exp(-step / fade)
            parameter.grad = torch.empty_like(parameter).copy_(1e-2 * gradient)
        optimizer.step()
        _record(trace, optimizer)
    trace.end = [p.detach().clone() for p in parameters]
    return trace


def on_a_trained_task(create: Create, steps: int) -> Trace:
    """Steps over the gradients of a small network that learns what another one does, from new pictures in each step."""
    student, teacher = make_toy("cpu"), make_toy("cpu")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    parameters = list(student.parameters())
    optimizer = create(parameters)
    trace = Trace([p.detach().clone() for p in parameters])
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(_task_loss(student, teacher, generator))
        optimizer.step()
        _record(trace, optimizer)
    trace.end = [p.detach().clone() for p in parameters]
    return trace


def _task_loss(student: Toy, teacher: Toy, generator: torch.Generator) -> Tensor:
    pictures = torch.randn(4, 16, 4, 4, generator=generator)
    with torch.no_grad():
        wanted = teacher(pictures)
        wanted += 0.1 * torch.randn(wanted.shape, generator=generator)  # without it the gradients would vanish
    return torch.nn.functional.mse_loss(student(pictures), wanted)


def _start(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.zeros(shape) if len(shape) == 1 else torch.randn(shape, generator=generator)


def _format(shape: tuple[int, ...], tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors if len(shape) == 4 else {k: v for k, v in tensors.items() if k != "memory_format"}


def _record(trace: Trace, optimizer: torch.optim.Optimizer) -> None:
    if "d" in optimizer.param_groups[0]:
        trace.estimates.append(float(optimizer.param_groups[0]["d"]))


@dataclass
class Reads:
    """How often values were read: a GPU is waited for each time.

    Attributes:
        scalars: calls of ``aten::_local_scalar_dense``, by which ``item`` and its like read.
        calls: calls of functions that read, such as ``tolist``, which need not go through it.
    """

    scalars: int = 0
    calls: int = 0


@contextlib.contextmanager
def counted_reads() -> Iterator[Reads]:
    """Count within this block, on any device."""
    reads = Reads()

    class Scalars(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads.scalars += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads.calls += getattr(func, "__name__", "") in READS
            return func(*args, **(kwargs or {}))

    with Scalars(), Calls():  # type: ignore[no-untyped-call]
        yield reads
