"""What a run says at its start and at its end: what trains, with which options, and where each came from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from ed_train import __version__
from ed_train.config.describe import show
from ed_train.train.components import TrainedComponent, component_label, decay_and_warmup_steps

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ed_train.config.run import RunConfig
    from ed_train.train.noise import Diffusion
    from ed_train.train.output import Output
    from ed_train.train.session import Session
    from ed_train.train.setup import PreparedData

MAX_SKIPPED_SHOWN = 10


@dataclass
class Report:
    """The lines that frame a run."""

    run: RunConfig
    accelerator: Accelerator
    precision: str
    components: list[TrainedComponent]
    diffusion: Diffusion
    data: PreparedData
    output: Output | None
    total_steps: int
    epochs: int
    notes: list[str]
    started: float = field(default_factory=time.monotonic)

    def show_start(self) -> None:
        """Print the report at the start."""
        if self.output:
            print("\n".join(self._start_lines()), flush=True)

    def show_end(self, session: Session) -> None:
        """Print what the run came to."""
        data = self.data
        if session.output is None:
            return
        seconds = time.monotonic() - self.started
        print(f"trained {session.step} steps in {seconds:.0f} s; run folder: {session.output.folder}")
        if session.skipped:
            print(f"warning: {session.skipped} steps were skipped because their gradients were not finite")
        if data.skipped:
            print(f"warning: {len(data.skipped)} pictures were not used; see the list at the start")
        if session.output.saved:
            print(f"checkpoint: {session.output.saved[-1]}")

    def _start_lines(self) -> Iterator[str]:
        run, train, data, world = self.run, self.run.train, self.data, self.accelerator.num_processes
        precision = {"bf16": "bfloat16 autocast", "fp16": "float16 autocast", "no": "float32"}[self.precision]
        processes = f"{world} processes" if world > 1 else "1 process"
        yield f"ed-train {__version__} on {self.accelerator.device}: {precision}, {processes}, seed {train.seed}"
        kind = "v-prediction" if self.diffusion.velocity else "epsilon"
        yield f"model: {run.model.location} ({kind})"
        batches, buckets = data.loader.steps_per_epoch, "1 size" if data.buckets == 1 else f"{data.buckets} sizes"
        yield f"data: {train.data_root}: {data.images} pictures in {buckets}, {batches} batches an epoch"
        for component in self.components:
            yield from _component_lines(component, self.total_steps)
        for name in ("unet", "text_encoder"):
            if name not in run.components:
                yield f"{component_label(name)}: does not train"
        effective = train.batch_size * train.grad_accum * world
        factors = f"{train.batch_size} a batch x {train.grad_accum} accumulated x {processes}"
        yield f"steps: {self.total_steps} in {self.epochs} epochs, {effective} pictures each ({factors})"
        if self.output:
            yield f"run folder: {self.output.folder}"
        yield from (f"note: {note}" for note in dict.fromkeys((*run.notes, *data.notes, *self.notes)))
        for skipped in data.skipped[:MAX_SKIPPED_SHOWN]:
            yield f"warning: picture not used: {skipped}"
        if len(data.skipped) > MAX_SKIPPED_SHOWN:
            yield f"warning: and {len(data.skipped) - MAX_SKIPPED_SHOWN} more pictures not used"


def _component_lines(component: TrainedComponent, total_steps: int) -> Iterator[str]:
    config = component.config
    parameters = list(component.module.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in component.parameters)
    counts = f"{_millions(trained)} of {_millions(total)} parameters train"
    tensors = f"{len(component.parameters)} of {len(parameters)} tensors"
    yield f"{component_label(component.name)}: {counts} ({tensors}) with {config.optimizer.spec.name}"
    for words, blocks in _frozen_blocks(component.module).items():
        yield f"    {words}: {', '.join(blocks)}"
    by_source: dict[str, list[str]] = {}
    for key, value in vars(config.options).items():
        file = config.sources[key].partition(" ")[0] if "default" not in config.sources[key] else config.sources[key]
        by_source.setdefault(file, []).append(f"{key} {show(value)}")
    for source, options in by_source.items():
        yield f"    {', '.join(options)}  ({source})"
    decay, warmup = decay_and_warmup_steps(config, total_steps)
    schedule = config.lr_scheduler
    if schedule != "constant":
        schedule += f", {warmup} warm-up steps"
        schedule += f", over {decay} steps" if schedule != "constant_with_warmup" else ""
    yield f"    lr schedule {schedule}  ({config.sources['lr_scheduler']})"


def _frozen_blocks(module: nn.Module) -> dict[str, list[str]]:
    """The blocks of a module of which everything, or something, is frozen: ``encoder.layers.0-9``, ``mid_block``."""
    trains: dict[str, set[bool]] = {}
    for name, parameter in module.named_parameters():
        path = name.removeprefix("text_model.").split(".")
        end = next((index + 1 for index, part in enumerate(path) if part.isdigit()), 1)
        trains.setdefault(".".join(path[:end]), set()).add(parameter.requires_grad)
    groups = {"frozen": {False}, "frozen in part": {True, False}}
    found = {words: _ranges([block for block in trains if trains[block] == kind]) for words, kind in groups.items()}
    return {words: blocks for words, blocks in found.items() if blocks}


def _ranges(blocks: list[str]) -> list[str]:
    """Neighbours that differ in their last number, as one: ``layers.0``, ``layers.1`` as ``layers.0-1``."""
    numbers: dict[str, list[int]] = {}
    for block in blocks:
        parent, _, last = block.rpartition(".")
        numbers.setdefault(parent if last.isdigit() else block, []).extend([int(last)] if last.isdigit() else [])
    shown = []
    for parent, found in numbers.items():
        together = len(found) > 1 and found == list(range(found[0], found[-1] + 1))
        shown += [f"{parent}.{found[0]}-{found[-1]}"] if together else [f"{parent}.{n}" for n in found] or [parent]
    return shown


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
