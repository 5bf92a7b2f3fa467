"""``ed-train --plan-memory``: the memory of a run with each installed optimizer, without reading any weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ed_train.commands.list_optimizers import written_name
from ed_train.config.run import TEXT_ENCODER, RunConfig
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer

if TYPE_CHECKING:
    from torch import nn

    from ed_train.train.memory import MemoryRow

NOT_COUNTED = (
    "activations",
    "autocast's half-precision copies of the weights",
    "what an optimizer needs for a moment within a step",
    "the moving average, if there is one: 4 bytes for each parameter that trains",
    "the VAE, while pictures are encoded and samples drawn",
    "a text encoder that does not train, while samples are drawn, or if files beside pictures shuffle tags",
    "what CUDA and its libraries take for themselves",
)
COLUMNS = ("weights", "gradients", "state", "total")


def plan_memory(run: RunConfig, registry: OptimizerRegistry, *, as_json: bool) -> None:
    """Print the bytes of weights, gradients and optimizer state, as configured and with every installed optimizer.

    Raises:
        ConfigError: the model's configuration files or a freeze policy do not fit.
        PluginError: a freeze policy fails.
    """
    import torch

    from ed_train.models.shapes import configuration_of
    from ed_train.train.memory import StateCounter, memory_of_all, memory_of_run
    from ed_train.train.preview import empty_modules
    from ed_train.train.text import needs_text_encoder

    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints must not get into the output
        modules, notes = empty_modules(run, configuration_of(run.model))
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        counter = StateCounter(device or torch.device("cpu"))
        in_memory = needs_text_encoder(run, run.train.shuffle_tags)  # files beside pictures are not read
        held = {name: module for name, module in modules.items() if name != TEXT_ENCODER or in_memory}
        configured = memory_of_run(run, held, counter)
        rows = memory_of_all(run, registry, held, counter)
    here = counter.device.type
    remarks = list(dict.fromkeys((*run.notes, *notes)))
    if as_json:
        from ed_train.commands.as_json import print_json

        print_json(
            {
                "model": {**vars(run.model), "parameters": {name: _counts(m) for name, m in modules.items()}},
                "device": here,
                "configured": _as_json(configured, registry, here),
                "optimizers": [_as_json(row, registry, here) for row in rows],
                "not_counted": NOT_COUNTED,
                "warnings": remarks,
            }
        )
        return
    print("\n".join([*_component_lines(run, modules, held, registry), *_table(configured, rows, registry, here)]))
    dtype = "in float32, those of weights_dtype bf16 in bfloat16" if run.train.weights_dtype == "bf16" else "float32"
    print(f"for one process; weights and gradients are {dtype}; not counted:")
    print("\n".join(f"    {what}" for what in NOT_COUNTED))
    for note in remarks:
        print(f"note: {note}")


def _component_lines(
    run: RunConfig, modules: dict[str, nn.Module], held: dict[str, nn.Module], registry: OptimizerRegistry
) -> Iterator[str]:
    from ed_train.train.components import component_label
    from ed_train.train.report import millions

    yield f"model: {run.model.location}"
    for name, module in modules.items():
        counts = _counts(module)
        line = f"    {component_label(name)}: {millions(counts['all'])} parameters"
        if name in run.components:
            optimizer = written_name(run.components[name].optimizer, registry)
            yield f"{line}, {millions(counts['trained'])} train with {optimizer}"
        else:
            yield f"{line}, none trains" + ("" if name in held else "; not in memory: its embeddings are cached")


def _table(configured: MemoryRow, rows: Sequence[MemoryRow], registry: OptimizerRegistry, here: str) -> Iterator[str]:
    """The configured combination, then every optimizer by itself."""
    table = [(f"this run: {_called(configured, registry)}", configured)]
    table += [(_called(row, registry), row) for row in rows]
    unit, divisor = _unit([row for _, row in table])
    width = max(len(text) for text, _ in table)
    yield f"{unit + ' of memory':<{width}}" + "".join(f"{column:>11}" for column in COLUMNS)
    for text, row in table:
        numbers = [getattr(row.sum, column) for column in COLUMNS]
        cells = "".join(f"{'?' if n is None else f'{n / divisor:,.2f}':>11}" for n in numbers)
        yield f"{text:<{width}}{cells}" + "".join(f"  {remark}" for remark in _remarks(row, here))


def _called(row: MemoryRow, registry: OptimizerRegistry) -> str:
    return " and ".join(dict.fromkeys(written_name(optimizer, registry) for optimizer in row.optimizers.values()))


def _unit(rows: Sequence[MemoryRow]) -> tuple[str, int]:
    largest = max(row.sum.weights + row.sum.gradients for row in rows)
    return ("GB", 10**9) if largest >= 10**9 else ("MB", 10**6)


def _remarks(row: MemoryRow, here: str) -> Iterator[str]:
    optimizers = {o.spec.name: o for o in row.optimizers.values()}
    for name, optimizer in optimizers.items():
        if not _runs_on(optimizer, here):
            who = f"{name} runs" if len(optimizers) > 1 else "runs"
            yield f"({who} on {' and '.join(optimizer.spec.devices)} only; this machine has {here})"
    if row.refused:
        yield f"(without {' and '.join(row.refused)}, which it refuses)"
    if row.unknown:
        yield f"(state unknown: {row.unknown})"
    elif row.measured:
        yield "(state measured: two steps over each shape)"


def _runs_on(optimizer: RegisteredOptimizer, device: str) -> bool:
    return not optimizer.spec.devices or device in optimizer.spec.devices


def _counts(module: nn.Module) -> dict[str, int]:
    parameters = list(module.parameters())
    return {
        "all": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
    }


def _as_json(row: MemoryRow, registry: OptimizerRegistry, here: str) -> dict[str, Any]:
    optimizers = {
        component: {"name": o.spec.name, "distribution": o.distribution, "version": o.version}
        for component, o in row.optimizers.items()
    }
    memory = row.sum
    return {
        "optimizer": _called(row, registry),
        "optimizers": optimizers,
        **{column: getattr(memory, column) for column in COLUMNS},
        "components": {
            name: {column: getattr(part, column) for column in COLUMNS} for name, part in row.components.items()
        },
        "measured": row.measured,
        "unknown": row.unknown or None,
        "refused": row.refused,
        "runs_here": all(_runs_on(o, here) for o in row.optimizers.values()),
    }
