"""The memory that a run's weights, gradients and optimizer state take, for any optimizer, before anything is loaded."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ed_train.api import build_optimizer
from ed_train.config.memory_keys import BF16, DTYPE, IN_BACKWARD
from ed_train.config.run import RunConfig
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer
from ed_train.train.partial_steps import PIECE

BYTES = torch.float32.itemsize
"""Of each weight and each gradient, whatever the autocast precision, where they are not kept in bfloat16."""

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Counter[Shape]


@dataclass(frozen=True)
class Memory:
    """Bytes; `state` is None where nobody knows it."""

    weights: int
    gradients: int
    state: int | None

    @property
    def total(self) -> int | None:
        return None if self.state is None else self.weights + self.gradients + self.state


@dataclass(frozen=True)
class MemoryRow:
    """What one choice of optimizers takes.

    Attributes:
        optimizers: the optimizer of each component that trains.
        components: the memory of each component, trained or not.
        measured: whether steps were taken to find out, because an optimizer does not declare its state's size.
        unknown: why the state's size is not known; empty if it is.
        refused: settings that this run has and the optimizers would refuse; the row is without them.
    """

    optimizers: Mapping[str, RegisteredOptimizer]
    components: Mapping[str, Memory]
    measured: bool
    unknown: str
    refused: tuple[str, ...] = ()

    @property
    def sum(self) -> Memory:
        """The memory of all components together."""
        parts = list(self.components.values())
        states = [part.state for part in parts if part.state is not None]
        state = sum(states) if len(states) == len(parts) else None
        return Memory(sum(part.weights for part in parts), sum(part.gradients for part in parts), state)


def memory_of_run(run: RunConfig, modules: Mapping[str, nn.Module], counter: StateCounter) -> MemoryRow:
    """The memory of a run as it is configured.

    Args:
        run: the run.
        modules: the UNet and the text encoder by name, frozen as they should be; the meta device will do.
        counter: counts optimizer state, and remembers what it has measured.
    """
    return _row(run, modules, {name: (c.optimizer, c.options) for name, c in run.components.items()}, counter)


def memory_of_all(
    run: RunConfig, registry: OptimizerRegistry, modules: Mapping[str, nn.Module], counter: StateCounter
) -> list[MemoryRow]:
    """The memory of the same run with each installed optimizer for all components, smallest first, unknown last.

    An optimizer that the run uses has the run's options, any other its defaults.
    """
    rows = []
    for optimizer in registry:
        chosen = {name: (optimizer, _options(run, name, optimizer)) for name in run.components}
        rows.append(_row(run, modules, chosen, counter))
    return sorted(rows, key=lambda row: math.inf if row.sum.total is None else row.sum.total)


def _options(run: RunConfig, component: str, optimizer: RegisteredOptimizer) -> Any:
    """What the run sets for this optimizer: for this component, else for the other one, else None."""
    for config in sorted(run.components.values(), key=lambda config: config.name != component):
        if (config.optimizer.distribution, config.optimizer.spec.name) == (optimizer.distribution, optimizer.spec.name):
            return config.options
    return None


def _row(
    run: RunConfig,
    modules: Mapping[str, nn.Module],
    chosen: Mapping[str, tuple[RegisteredOptimizer, Any]],
    counter: StateCounter,
) -> MemoryRow:
    """One row; optimizer and options of each component that trains, where None stands for the defaults."""
    components, measured, unknown = {}, False, ""
    in_parts = all(optimizer.spec.per_parameter for optimizer, _ in chosen.values())
    for name, module in modules.items():
        weights = sum(_bytes(p, in_parts) for p in module.parameters())
        trained: Shapes = Counter(tuple(p.shape) for p in module.parameters() if p.requires_grad)
        state: int | None = 0
        if name in chosen:
            optimizer, options = chosen[name]
            measured = measured or optimizer.spec.state_bytes is None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an optimizer that the user did not choose says nothing
                    config = optimizer.spec.config_type() if options is None else options
                    state = counter.state_bytes(optimizer, config, trained)
            except (Exception, SystemExit) as error:
                state, unknown = None, " ".join(str(error).split()) or type(error).__name__
        in_backward = in_parts and run.train.optimizer_in_backward
        gradients = _gradients(module, in_parts, in_backward=in_backward) if name in chosen else 0
        components[name] = Memory(weights, gradients, state)
    refused = () if in_parts else tuple(key for key in (IN_BACKWARD, DTYPE) if getattr(run.train, key) in (True, BF16))
    optimizers = {name: optimizer for name, (optimizer, _) in chosen.items()}
    return MemoryRow(optimizers, components, measured, unknown, refused)


def _bytes(parameter: Tensor, in_parts: bool) -> int:
    """Of a weight, or its gradient: bfloat16 is for optimizers that step parameter by parameter."""
    return parameter.numel() * (parameter.element_size() if in_parts else BYTES)


def _gradients(module: nn.Module, in_parts: bool, *, in_backward: bool) -> int:
    """The most that the gradients take at a time: all of them; in backward, a piece and the largest one behind it."""
    sizes = [_bytes(p, in_parts) for p in module.parameters() if p.requires_grad]
    return min(sum(sizes), PIECE * BYTES + max(sizes, default=0)) if in_backward else sum(sizes)


@dataclass
class StateCounter:
    """Counts optimizer state: as its spec declares it, else by taking steps.

    Attributes:
        device: this machine's; optimizers that do not run on the CPU are measured there.
    """

    device: torch.device
    _measured: dict[tuple[str, str, str, Shape], int] = field(default_factory=dict)
    _announced: set[str] = field(default_factory=set)

    def state_bytes(self, optimizer: RegisteredOptimizer, config: Any, shapes: Shapes) -> int:
        """The bytes of state after a step, over float32 parameters of these shapes.

        Raises:
            Exception: whatever the plugin's function raises, or its optimizer where it has to be measured.
        """
        declared = optimizer.spec.state_bytes
        if declared is None:
            return sum(self._measure(optimizer, config, shape) * count for shape, count in shapes.items())
        if callable(declared):
            return round(sum(declared(config, shape) * count for shape, count in shapes.items()))
        return round(sum(declared * math.prod(shape) * count for shape, count in shapes.items()))

    def _measure(self, optimizer: RegisteredOptimizer, config: Any, shape: Shape) -> int:
        key = (optimizer.origin, optimizer.spec.name, repr(config), shape)
        if key not in self._measured:
            self._measured[key] = measured_state_bytes(optimizer, config, shape, self._device_for(optimizer))
        return self._measured[key]

    def _device_for(self, optimizer: RegisteredOptimizer) -> torch.device:
        name, devices = optimizer.spec.name, optimizer.spec.devices
        if devices and "cpu" not in devices and self.device.type not in devices:
            raise ValueError("it declares no state_bytes and cannot be measured here")
        if name not in self._announced:
            print(f"measuring the state of {name}, which declares no state_bytes", file=sys.stderr, flush=True)
            self._announced.add(name)
        return torch.device("cpu") if not devices or "cpu" in devices else self.device


def measured_state_bytes(optimizer: RegisteredOptimizer, config: Any, shape: Shape, device: torch.device) -> int:
    """Take two steps over one parameter and count what the optimizer then holds: some allocate in the second one.

    Nothing is kept. Raises whatever the optimizer raises.
    """
    parameter = nn.Parameter(torch.full(shape, 0.01, device=device))
    built: Any = build_optimizer(optimizer, [parameter], config)
    if optimizer.spec.schedule_free:
        built.train()
    gradient = torch.randn(shape, device=device) * 1e-3
    for factor in (1.0, -0.5):
        parameter.grad = gradient * factor
        built.step()
    return held_bytes(built)


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that an optimizer holds beside parameters and gradients, each piece of memory once."""
    groups = optimizer.param_groups
    given = {id(t) for group in groups for p in group["params"] for t in (p, p.grad) if t is not None}
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    tensors = [t for t in _tensors([list(optimizer.state.values()), settings]) if id(t) not in given]
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers; of a quantized tensor the parts that it consists of."""
    if isinstance(value, Tensor):
        parts = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else None
        yield from [value] if parts is None else _tensors([getattr(value, part) for part in parts])
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _tensors(member)
