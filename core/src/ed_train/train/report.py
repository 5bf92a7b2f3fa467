"""What a run says at its start and at its end: what trains, with which options, and where each came from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from ed_train import __version__
from ed_train.config.describe import show
from ed_train.config.run import TEXT_ENCODER, UNET
from ed_train.train.advice import advice_for
from ed_train.train.components import TrainedComponent, component_label, decay_and_warmup_steps
from ed_train.train.metrics import print_line
from ed_train.train.validation_data import ScannedSet, notes_on_size, validation_lines

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ed_train.config.run import ComponentConfig, RunConfig
    from ed_train.data.epochs import Epochs
    from ed_train.data.scan import Skipped
    from ed_train.train.output import Output
    from ed_train.train.session import Session

MAX_SKIPPED_SHOWN = 10
MAX_EPOCHS_SHOWN = 10


@dataclass(frozen=True)
class Pictures:
    """What there is to say about the data.

    Attributes:
        used: how many pictures train.
        sizes: how many sizes they are scaled to.
        epochs: what each epoch has of them.
        skipped: files that are not used.
        notes: lines for the user.
        validation: the pictures that validate, which are not among those.
    """

    used: int
    sizes: int
    epochs: Epochs
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    validation: tuple[ScannedSet, ...] = ()


@dataclass
class Report:
    """The lines that frame a run.

    Attributes:
        modules: the UNet and, if it is in memory, the text encoder, frozen as the run freezes them.
        components: those of them that train.
        velocity: whether the model predicts v and not the noise.
        output: the run's folder; None where this process writes nothing.
        caches: lines about what is cached.
    """

    run: RunConfig
    accelerator: Accelerator
    precision: str
    modules: Mapping[str, nn.Module]
    components: list[TrainedComponent]
    velocity: bool
    pictures: Pictures
    output: Output | None
    total_steps: int
    epochs: int
    notes: list[str]
    caches: Sequence[str] = ()
    started: float = field(default_factory=time.monotonic)

    def show_start(self) -> None:
        """Print the report at the start."""
        if self.output:
            print_line("\n".join(self._start_lines()))

    def show_end(self, session: Session) -> None:
        """Print what the run came to."""
        skipped = self.pictures.skipped
        if session.output is None:
            return
        seconds = time.monotonic() - self.started
        in_all = f", {session.step} in all" if session.first_step else ""
        steps = f"{session.step - session.first_step} steps in {seconds:.0f} s{in_all}"
        print_line(f"trained {steps}; run folder: {session.output.folder}")
        if session.skipped:
            print_line(f"warning: {session.skipped} steps were skipped because their gradients were not finite")
        if skipped:
            print_line(f"warning: {len(skipped)} pictures were not used; see the list at the start")
        if session.output.saved:
            print_line(f"checkpoint: {session.output.saved[-1]}")
            if session.validator and (best := session.validator.kept(session)):
                print_line(
                    f"best checkpoint: {best.path} (validation loss of {best.name} {best.loss:.4f}, step {best.step})"
                )
            if not session.done:
                print_line(f"go on with: ed-train --resume {session.output.saved[-1]}")
            elif not self.run.train.save_single_file:
                print_line(f"as one file for other programs: ed-train --export {session.output.saved[-1]}")

    @property
    def prediction(self) -> str:
        return "v_prediction" if self.velocity else "epsilon"

    @property
    def not_trained(self) -> list[str]:
        """The components that stay as they are."""
        return [name for name in (UNET, TEXT_ENCODER) if name not in self.run.components]

    @property
    def remarks(self) -> list[str]:
        """Everything that the user should know: of the configuration, the data and the plugins; each once."""
        sizes = notes_on_size(self.run.validation.config, self.pictures.validation) if self.run.validation else []
        world = self.accelerator.num_processes
        advice = advice_for(self.run, self.pictures.epochs, processes=world, velocity=self.velocity)
        own = (*self.run.notes, *self._idle_gpuid(), *self.pictures.notes, *sizes, *advice, *self.notes)
        return list(dict.fromkeys(own))

    def _idle_gpuid(self) -> Iterator[str]:
        """A line if gpuid asks for a GPU and the device is another one; 0, the default, asks for none in particular."""
        train, device = self.run.train, self.accelerator.device.type
        if train.gpuid and device != "cuda":
            source = self.run.sources["gpuid"]
            yield f"gpuid={train.gpuid} ({source}) has no effect: no such GPU is in use, the device is {device}"

    def opening_lines(self) -> Iterator[str]:
        """Model and data."""
        run, train, pictures = self.run, self.run.train, self.pictures
        yield f"model: {run.model.location} ({self.prediction.replace('_', '-')})"
        sizes = "1 size" if pictures.sizes == 1 else f"{pictures.sizes} sizes"
        area = f"of about {train.resolution} x {train.resolution} pixels"
        batches = pictures.epochs.batches(0)
        yield f"data: {train.data_root}: {pictures.used} pictures in {sizes} {area}, {batches} batches an epoch"
        if pictures.epochs.batch_ids:
            ids, partial = pictures.epochs.batch_ids, pictures.epochs.partial_batches
            yield f"    batch_id: {ids} in use; {partial} of these batches are filled up with repeats"
        if pictures.epochs.fading:
            yield from rated_lines(pictures.epochs)
        if run.validation:
            yield from validation_lines(run.validation.config, pictures.validation)

    def steps_line(self) -> str:
        """Steps, epochs and pictures."""
        train, world = self.run.train, self.accelerator.num_processes
        effective = train.batch_size * train.grad_accum * world
        factors = f"{train.batch_size} a batch x {train.grad_accum} accumulated x {_processes(self.accelerator)}"
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        pictures = f"{effective} picture{'s' if effective > 1 else ''}"
        return f"steps: {self.total_steps} in {epochs}, {pictures} each ({factors})"

    def samples_line(self) -> str:
        """What is drawn, and when."""
        train, settings = self.run.train, self.run.samples
        if not train.sample_steps:
            return "samples: none (sample_steps 0)"
        captions = sum(sample.random_caption for sample in settings.samples)
        kinds = ((len(settings.samples) - captions, "prompt"), (captions, "caption"))
        what = " and ".join(f"{count} {kind}{'s' if count > 1 else ''}" for count, kind in kinds if count)
        what += " of the pictures" if captions else ""
        scales = f" with guidance {', '.join(f'{cfg:g}' for cfg in settings.cfgs)}"
        first = "before the first step, " if settings.generate_pretrain_samples else ""
        return f"samples: {what}{scales}; {first}every {train.sample_steps} steps and at the end"

    def checkpoints_line(self) -> str:
        """When checkpoints are saved, and how many of them stay."""
        train = self.run.train
        if train.save_nothing:
            return "checkpoints: none (save_nothing)"
        epochs, steps, minutes = train.save_every_n_epochs, train.save_every_n_steps, train.ckpt_every_n_minutes
        begun = f" from epoch {train.save_ckpts_from_n_epochs} on" if train.save_ckpts_from_n_epochs > 1 else ""
        times = [f"every {_counted(epochs, 'epoch')}{begun}"] if epochs else []
        times += [f"every {_counted(steps, 'step')}"] if steps else []
        times += [f"every {_counted(minutes, 'minute')}"] if minutes else []
        kept = f"; {train.keep_last_n_ckpts} of them stay" if train.keep_last_n_ckpts else ""
        return f"checkpoints: {', '.join(times)} and at the end{kept}" if times else "checkpoints: at the end"

    def closing_lines(self) -> Iterator[str]:
        """Remarks, and the first of the pictures that are not used."""
        skipped = self.pictures.skipped
        yield from (f"note: {remark}" for remark in self.remarks)
        for picture in skipped[:MAX_SKIPPED_SHOWN]:
            yield f"warning: picture not used: {picture}"
        if len(skipped) > MAX_SKIPPED_SHOWN:
            yield f"warning: and {len(skipped) - MAX_SKIPPED_SHOWN} more pictures not used"

    def _start_lines(self) -> Iterator[str]:
        yield from self.opening_lines()
        for component in self.components:
            yield from trained_lines(component)
            yield from _option_lines(component.config)
            yield _schedule_line(component.config, self.total_steps)
        for name in self.not_trained:
            yield f"{component_label(name)}: does not train"
        yield from self.caches
        yield self.steps_line()
        yield self.samples_line()
        yield self.checkpoints_line()
        if self.output:
            yield f"run folder: {self.output.folder}"
        yield from self.closing_lines()


def device_line(run: RunConfig, accelerator: Accelerator, precision: str) -> str:
    """What trains; the first line of all, before pictures are encoded on a device that may be the wrong one."""
    kind = {"bf16": "bfloat16 autocast", "fp16": "float16 autocast", "no": "float32"}[precision]
    return f"ed-train {__version__} on {accelerator.device}: {kind}, {_processes(accelerator)}, seed {run.train.seed}"


def _processes(accelerator: Accelerator) -> str:
    world = accelerator.num_processes
    return f"{world} processes" if world > 1 else "1 process"


def rated_lines(epochs: Epochs) -> Iterator[str]:
    """How many pictures and batches the epochs of a rated_dataset have; of many epochs, some."""
    assert epochs.fading
    last = epochs.fading.epochs - 1
    shown = sorted({round(number * last / MAX_EPOCHS_SHOWN) for number in range(MAX_EPOCHS_SHOWN + 1)})
    yield "rated_dataset: pictures are left out, those of low rating rather than others; every epoch draws anew"
    counts = ((epoch + 1, epochs.pictures(epoch), epochs.batches(epoch)) for epoch in shown)
    words = (f"{epoch}: {pictures} in {n} batch{'es' if n > 1 else ''}" for epoch, pictures, n in counts)
    yield f"    epoch {', '.join(words)}"


def trained_lines(component: TrainedComponent) -> Iterator[str]:
    """What of a component trains, with which optimizer, and which blocks are frozen."""
    parameters = list(component.module.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in component.parameters)
    counts = f"{millions(trained)} of {millions(total)} parameters train"
    tensors = f"{len(component.parameters)} of {len(parameters)} tensors"
    yield f"{component_label(component.name)}: {counts} ({tensors}) with {component.config.optimizer.spec.name}"
    for words, blocks in frozen_blocks(component.module).items():
        yield f"    {words}: {', '.join(blocks)}"


def _option_lines(config: ComponentConfig) -> Iterator[str]:
    """The optimizer's options, a line for each file that they come from."""
    by_source: dict[str, list[str]] = {}
    for key, value in vars(config.options).items():
        file = config.sources[key].partition(" ")[0] if "default" not in config.sources[key] else config.sources[key]
        by_source.setdefault(file, []).append(f"{key} {show(value)}")
    for source, options in by_source.items():
        yield f"    {', '.join(options)}  ({source})"


def _schedule_line(config: ComponentConfig, total_steps: int) -> str:
    decay, warmup = decay_and_warmup_steps(config, total_steps)
    schedule = config.lr_scheduler
    if schedule != "constant":
        schedule += f", {warmup} warm-up steps"
        schedule += f", over {decay} steps" if schedule != "constant_with_warmup" else ""
    return f"    lr schedule {schedule}  ({config.sources['lr_scheduler']})"


def frozen_blocks(module: nn.Module) -> dict[str, list[str]]:
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


def _counted(number: float, what: str) -> str:
    """``epoch``, ``2 epochs``, as it stands behind "every"."""
    return what if number == 1 else f"{number:g} {what}s"


def millions(count: int) -> str:
    """A number of parameters, short."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
