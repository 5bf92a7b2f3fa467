"""Put a `Session` together: device, data, models, what is frozen, optimizers, output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ed_train.config.ema import uses_ema
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.config.train_keys import TrainConfig
from ed_train.data.buckets import Size, assign_buckets
from ed_train.data.cache_folder import CacheFolder, keep_within
from ed_train.data.encode import LatentCache, vae_encoder
from ed_train.data.loader import BatchLoader
from ed_train.data.scan import ImageItem, Skipped, scan_dataset
from ed_train.data.store import TensorStore
from ed_train.data.tokens import TokenCache
from ed_train.errors import ConfigError, Problem
from ed_train.models.load import SdModel
from ed_train.models.memo import FileMemo
from ed_train.train.agreement import agreed
from ed_train.train.compiling import compile_notes, compile_unet
from ed_train.train.components import build_component, freeze, freeze_unused, schedule_notes
from ed_train.train.data_notes import idle_settings
from ed_train.train.ema import begin_ema
from ed_train.train.gradients import steps_unread
from ed_train.train.length import count_steps, fading_of
from ed_train.train.metrics import Metrics, print_line
from ed_train.train.noise import Diffusion
from ed_train.train.output import Output
from ed_train.train.partial_steps import check_partial_steps, step_in_parts
from ed_train.train.processes import make_accelerator
from ed_train.train.record import write_record
from ed_train.train.report import Pictures, Report, device_line
from ed_train.train.resume import find_position, restore_optimizers
from ed_train.train.rounding import narrow_weights
from ed_train.train.run_folder import home_of, new_home
from ed_train.train.session import Session
from ed_train.train.signals import StopSignals
from ed_train.train.state import restore_training_state
from ed_train.train.text import TextConditioning, cache_lines, needs_text_encoder, prepare_text
from ed_train.train.validation import Validator
from ed_train.train.validation_data import (
    ScannedSet,
    ValidationPictures,
    notes_on_leaks,
    problems_of_folders,
    scan_validation,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class PreparedData:
    """The batches, and what there is to say about the pictures."""

    loader: BatchLoader
    pictures: Pictures
    validator: Validator | None
    stores: tuple[TensorStore, ...]

    @property
    def token_ids(self) -> list[Tensor]:
        """Those of every caption that is known before training, to train and to validate with."""
        sets = self.validator.sets if self.validator else ()
        return [*self.loader.token_ids, *(ids for one in sets for ids in one.token_ids)]


@dataclass(frozen=True)
class ScannedData:
    """The pictures of a run and the bucket of each, before any of them is decoded.

    Attributes:
        items: those that train.
        buckets: the bucket of each.
        validation: those that validate.
        skipped: files that are not used.
        notes: lines for the user.
    """

    items: list[ImageItem]
    buckets: list[Size]
    validation: tuple[ScannedSet, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


def start(run: RunConfig, signals: StopSignals | None = None) -> tuple[Session, Report]:
    """Everything that happens before the first step, with a report of it.

    Raises:
        ConfigError: the data, the model or the plugins do not fit the configuration.
        EdTrainError: the run's folder cannot be made, or another process is training in it.
    """
    from accelerate.utils import set_seed

    accelerator, precision = make_accelerator(run)
    run = agreed(run, accelerator)
    main = accelerator.is_main_process
    home = home_of(run) if main else None  # before anything of it is read: its own process may be at work there
    notes = check_devices(run, accelerator.device)
    check_partial_steps(run, accelerator.num_processes, precision)
    set_seed(run.train.seed)
    if main:
        print_line(device_line(run, accelerator, precision))
    model = SdModel(run.model, FileMemo(Path(run.train.cache_dir or "") / "models.json"))
    data = prepare_data(run, model, accelerator)
    modules: dict[str, nn.Module] = {UNET: model.load_unet()}
    shuffles = data.loader.shuffles
    if needs_text_encoder(run, shuffles):
        modules[TEXT_ENCODER] = model.load_text_encoder()
    scheduler = model.load_noise_scheduler(zero_terminal_snr=run.train.enable_zero_terminal_snr)
    diffusion = Diffusion(scheduler, model.scaling_factor(), run.train, accelerator.device)
    notes += freeze_modules(run, modules)
    position = find_position(run, data.loader, accelerator.num_processes)
    total_steps, epochs = count_steps(run.train, data.loader.epochs, position)
    notes += narrow_weights(run, modules)  # before anything depends on their type
    unet = _placed(modules, run, accelerator)
    text = prepare_text(run, model, accelerator, precision, modules.get(TEXT_ENCODER), data.token_ids, shuffles)
    data.loader.text = text.cache
    model.close()
    components = [build_component(config, modules[name], total_steps) for name, config in run.components.items()]
    notes += [note for component in components for note in schedule_notes(component.config, total_steps)]
    step_in_parts(run, components)
    notes += [*position.notes, *restore_optimizers(run, components, model.folder)]
    ema, ema_notes = begin_ema(run, components, total_steps, position.step) if main else (None, [])
    notes += ema_notes
    output = Output(run, home or new_home(run.train)) if main else None
    if output:
        write_record(output.folder, run, accelerator, precision, position.step)
    report = Report(
        run, accelerator, precision, modules, components, diffusion.velocity, data.pictures, output, total_steps,
        epochs, notes, [*cache_lines(run, text.layers, shuffles), *_tidied(run.train, data, text, accelerator)],
    )  # fmt: skip
    report.show_start()
    metrics = Metrics(output.folder if output else None, epochs, total_steps, run.train, position.step, position.epoch)
    session = Session(
        run, accelerator, model, unet, text, components, diffusion, data.loader, output,
        metrics, total_steps, signals or StopSignals(), batch_number=position.batch_number,
        epoch=position.epoch, batches_done=position.batches_done, step=position.step, first_step=position.step,
        ema=ema, validator=data.validator, unread=steps_unread(components, accelerator.device),
    )  # fmt: skip
    session.set_training(True)
    for note in restore_training_state(session):
        metrics.say(f"note: {note}")
    compile_unet(session)
    return session, report


def scan_data(run: RunConfig) -> ScannedData:
    """Find the pictures, by their headers alone. Raises ConfigError as `scan_dataset` and `scan_validation` do."""
    train = run.train
    try:
        dataset = scan_dataset(Path(train.data_root), flip_p=train.flip_p, cond_dropout=train.cond_dropout)
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems_of_folders(run)]) from error
    buckets, notes = assign_buckets(dataset.items, train.resolution)
    validation = scan_validation(run, dataset.items, buckets)
    trained = [index for index in range(len(buckets)) if index not in validation.held_back]
    items = [dataset.items[index] for index in trained]
    return ScannedData(
        items,
        [buckets[index] for index in trained],
        validation.sets,
        (*dataset.skipped, *validation.skipped),
        (*dataset.notes, *notes, *validation.notes, *idle_settings(run, items)),
    )


def prepare_data(run: RunConfig, model: SdModel, accelerator: Accelerator) -> PreparedData:
    """Find the pictures and fill the caches; every process encodes its share, and none if nothing is missing."""
    train, rank, world = run.train, accelerator.process_index, accelerator.num_processes
    scanned = scan_data(run)
    cache, main = Path(train.cache_dir or ""), accelerator.is_main_process
    with CacheFolder(cache).being_opened():
        latents = LatentCache(
            cache / "latents", scanned.items, scanned.buckets, vae=model.fingerprint("vae"),
            crops=train.crops_per_image, progress=main,
        )  # fmt: skip
        caches: list[LatentCache | ValidationPictures] = [latents] if latents.missing() else []
        validation = None
        if scanned.validation:
            validation = ValidationPictures(cache, scanned.validation, vae=model.fingerprint("vae"), progress=main)
            caches += [validation] if validation.latents.missing() else []
        if caches:
            vae = model.load_vae().to(accelerator.device)
            for incomplete in caches:
                incomplete.build(vae_encoder(vae, accelerator.device), rank=rank, world=world)
            del vae
        accelerator.wait_for_everyone()
        usable = latents.usable()
        items, sizes = [scanned.items[i] for i in usable], [scanned.buckets[i] for i in usable]
        tokens = TokenCache(cache / "tokens", model.load_tokenizer, fingerprint=model.fingerprint("tokenizer"))
        loader = BatchLoader(
            items, sizes, latents, tokens, batch_size=train.batch_size * world, crops=train.crops_per_image,
            shuffle_tags=train.shuffle_tags, keep_tags=train.keep_tags, seed=train.seed, fading=fading_of(train),
            pin_memory=accelerator.device.type == "cuda",
        )  # fmt: skip
        tokens.add(["", *loader.captions])
        if loader.shuffles:
            _ = tokens.tokenizer  # new captions come up all the time
        skipped, notes = (*scanned.skipped, *latents.skipped), scanned.notes
        validator, stores = None, [latents.store, tokens.store]
        if validation and run.validation:
            own = TokenCache(cache / "tokens", model.load_tokenizer, fingerprint=model.fingerprint("tokenizer"))
            sets = validation.ready(own)
            stores += [validation.latents.store, own.store]
            validator = Validator(run.validation.config, sets, validation.latents, train)
            skipped = tuple(dict.fromkeys((*skipped, *validation.latents.skipped)))
            notes += tuple(notes_on_leaks(sets, {latents.content(item.path) for item in items}))
        shown = tuple(one.scanned for one in validator.sets) if validator else ()
        pictures = Pictures(len(items), len(set(sizes)), loader.epochs, skipped, notes, shown)
        return PreparedData(loader, pictures, validator, tuple(stores))


def _tidied(train: TrainConfig, data: PreparedData, text: TextConditioning, accelerator: Accelerator) -> list[str]:
    """Keep the cache folder within its limit; the main process does it, for all. Returns lines for the user."""
    accelerator.wait_for_everyone()  # until all have opened what they need
    if not accelerator.is_main_process:
        return []
    stores = [*data.stores, *([text.cache.store] if text.cache else [])]
    return keep_within(
        Path(train.cache_dir or ""), {path for store in stores for path in store.used}, train.cache_max_gb
    )


def freeze_modules(run: RunConfig, modules: Mapping[str, nn.Module]) -> list[str]:
    """Freeze what does not train: whole components, what the policies choose, what the loss never reaches.

    Args:
        run: says what trains.
        modules: the UNet, and the text encoder unless it is not in memory.

    Returns:
        Lines about policies that change nothing.
    """
    notes = []
    unused = freeze_unused(modules[TEXT_ENCODER], run.train.clip_skip) if TEXT_ENCODER in modules else []
    if unused and TEXT_ENCODER in run.components:
        notes.append(f"{len(unused)} tensors of the text encoder are not reached by the loss and stay as they are")
    for name, module in modules.items():
        if name in run.components:
            freeze(name, module, run.freezing)
        else:
            module.requires_grad_(False).eval()
    for policy in run.freezing:
        component = policy.policy.policy.component
        if component not in run.components:
            section = policy.policy.policy.section
            notes.append(f"{policy.where}: {section} has no effect: the {component} does not train")
    return notes


def _placed(modules: Mapping[str, nn.Module], run: RunConfig, accelerator: Accelerator) -> nn.Module:
    """Put the modules on the device; returns the UNet, wrapped for autocast, and for several processes if it trains."""
    unet, text_encoder = modules[UNET], modules.get(TEXT_ENCODER)
    if run.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()  # type: ignore[operator]
        if text_encoder is not None:
            # transformers 5 renamed it
            enable = getattr(text_encoder, "activation_checkpointing_enable", None)
            (enable or text_encoder.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
    if text_encoder is not None:
        text_encoder.to(accelerator.device)
    wrapped: nn.Module = accelerator.prepare_model(unet, evaluation_mode=UNET not in run.components)
    return wrapped


def check_devices(run: RunConfig, device: torch.device) -> list[str]:
    """Lines about optimizers that are slow on this device, and about torch.compile.

    Raises:
        ConfigError: an optimizer does not run on it, or the moving average cannot be kept where it should.
    """
    notes: dict[str, None] = {}
    problems = []
    for component in run.components.values():
        spec = component.optimizer.spec
        if spec.devices and device.type not in spec.devices:
            message = f"{spec.name} runs on {' and '.join(spec.devices)} only, and this run is on {device.type}"
            where, _, key = component.sources["optimizer"].partition(" ")
            problems.append(Problem(where, key, f"{message}; choose another optimizer"))
        if device.type in spec.slow_on:
            notes[f"{spec.name}: {spec.slow_on[device.type]}"] = None
    if uses_ema(run.train) and run.train.ema_device not in (None, "cpu", device.type):
        message = f'got "{run.train.ema_device}", and this run is on {device.type}; expected null or "cpu"'
        problems.append(Problem("", "ema_device", message))
    if problems:
        raise ConfigError(dict.fromkeys(problems))  # one, where the text encoder has the UNet's optimizer
    return [*notes, *compile_notes(run, device)]
