"""A run up to its first step, without weights: what ``--check`` shows and ``--plan-memory`` counts.

It goes through the functions of a real start. Only the modules differ: they are on torch's meta device, where
parameters have names and shapes but no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ed_train.config.run import TEXT_ENCODER, UNET, ComponentConfig, RunConfig
from ed_train.data.epochs import Epochs
from ed_train.data.loader import shuffles
from ed_train.errors import ConfigError, PluginError, Problem
from ed_train.models.load import SdModel
from ed_train.models.shapes import configuration_of, empty_text_encoder, empty_unet
from ed_train.train.components import TrainedComponent, build_component, schedule_notes
from ed_train.train.ema import plan_ema
from ed_train.train.length import count_steps, fading_of, nothing_left
from ed_train.train.noise import Diffusion
from ed_train.train.partial_steps import check_partial_steps
from ed_train.train.processes import make_accelerator
from ed_train.train.report import Pictures, Report
from ed_train.train.resume import BEGINNING, Position, resume_optimizers
from ed_train.train.rounding import narrow_weights
from ed_train.train.setup import ScannedData, check_devices, freeze_modules, scan_data
from ed_train.train.state import OPTIMIZER_FILES
from ed_train.train.text import cache_lines, front_layers
from ed_train.train.validation_data import notes_on_same_files


def preview(run: RunConfig) -> Report:
    """Do everything that happens before the first step, except reading weights and pixels. Writes nothing.

    Raises:
        ConfigError: the data, the model or the plugins do not fit the configuration, or an optimizer or a freeze policy
            fails; lists every problem.
    """
    accelerator, precision = make_accelerator(run)
    problems: list[Problem] = []
    with _collected(run, problems):
        notes = check_devices(run, accelerator.device)
    with _collected(run, problems):
        check_partial_steps(run, accelerator.num_processes, precision)
    with _collected(run, problems):
        data = scan_data(run)
    with _collected(run, problems):
        model = configuration_of(run.model)
        modules, freezing_notes = empty_modules(run, model)
        velocity = _predicts_velocity(run, model)
    if problems:
        raise ConfigError(problems)
    pictures = _pictures(data, run, accelerator.num_processes)
    position = _position(run)
    total_steps, epochs = count_steps(run.train, pictures.epochs, position)
    if position.step >= total_steps:
        notes.append(nothing_left(total_steps))
    components = []
    for name, config in run.components.items():
        with _collected(run, problems):
            components.append(_built(config, modules[name], total_steps, accelerator.device))
    if problems:
        raise ConfigError(dict.fromkeys(problems))  # one, where the text encoder has the UNet's optimizer
    notes += [*freezing_notes, *notes_on_same_files(data.validation, data.items)]
    for component in components:
        notes += schedule_notes(component.config, total_steps)
    notes += [*position.notes, *_state_notes(run, components, model), *plan_ema(run, total_steps, position.step)[1]]
    return Report(
        run, accelerator, precision, modules, components, velocity, pictures, None, total_steps, epochs, notes,
        cache_lines(run, front_layers(run, modules[TEXT_ENCODER]), shuffles(data.items, run.train.shuffle_tags)),
    )  # fmt: skip


def empty_modules(run: RunConfig, model: SdModel) -> tuple[dict[str, nn.Module], list[str]]:
    """The UNet and the text encoder on the meta device, frozen as the run freezes them.

    Args:
        run: the run.
        model: what `configuration_of` gives for its model.

    Returns:
        The modules by name, and lines about policies that change nothing.

    Raises:
        ConfigError: the configuration files or a policy do not fit.
    """
    assert model.folder is not None
    modules: dict[str, nn.Module] = {
        UNET: empty_unet(model.folder), TEXT_ENCODER: empty_text_encoder(model.folder)
    }  # fmt: skip
    return modules, [*freeze_modules(run, modules), *narrow_weights(run, modules)]


@contextmanager
def _collected(run: RunConfig, problems: list[Problem]) -> Iterator[None]:
    """Go on after wrong input, so that all of it is reported at once."""
    try:
        yield
    except ConfigError as error:
        problems += run.located(error).problems
    except PluginError as error:
        problems.append(Problem("", "", str(error)))


def _predicts_velocity(run: RunConfig, model: SdModel) -> bool:
    """Whether the model predicts v; loads the tokenizer as well, since a run would fail without it."""
    model.load_tokenizer()
    scheduler = model.load_noise_scheduler(zero_terminal_snr=run.train.enable_zero_terminal_snr)
    diffusion = Diffusion(scheduler, model.scaling_factor(), run.train, torch.device("cpu"))
    return bool(diffusion.velocity)


def _pictures(data: ScannedData, run: RunConfig, processes: int) -> Pictures:
    items, buckets, train = data.items, data.buckets, run.train
    epochs = Epochs(items, buckets, train.batch_size * processes, seed=train.seed, fading=fading_of(train))
    return Pictures(len(items), len(set(buckets)), epochs, data.skipped, data.notes, data.validation)


def _position(run: RunConfig) -> Position:
    """Where a resumed run goes on. Whether its pictures are the same can only be told by reading them."""
    if run.resume is None:
        return BEGINNING
    manifest, checkpoint = run.resume.manifest, run.resume.checkpoint
    step, epoch, done = manifest["step"], manifest["epoch"], manifest["batches_done"]
    note = f"goes on at step {step}, epoch {epoch + 1}, from {checkpoint}, if the pictures are still the same"
    return Position(step, epoch, done, manifest["batch_number"], (note,))


def _state_notes(run: RunConfig, components: Sequence[TrainedComponent], model: SdModel) -> list[str]:
    """Lines about optimizer state that the run would load. Raises ConfigError if it belongs to another optimizer."""
    if run.resume:
        return resume_optimizers(run, run.resume, components, load=False)
    notes = []
    for component in components:
        if model.folder and (path := model.folder / OPTIMIZER_FILES[component.name]).is_file():
            notes.append(f"{component.name}: the optimizer state in {path} is loaded if it fits")
    return notes


def _built(config: ComponentConfig, module: nn.Module, total_steps: int, device: torch.device) -> TrainedComponent:
    """The component with its optimizer, whose state is not allocated before a step.

    An optimizer that cannot be built over the meta device may still be one for real memory, so that decides.
    """
    try:
        return build_component(config, module, total_steps)
    except PluginError:
        pass
    try:
        return build_component(config, module.to_empty(device=device), total_steps)
    except PluginError as error:
        where, _, key = config.sources["optimizer"].partition(" ")
        raise ConfigError([Problem(where, key, str(error))]) from error
