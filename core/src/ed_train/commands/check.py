"""``ed-train --check``: what a configuration comes to, with the source of every value. Trains and writes nothing."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ed_train.config.describe import default_of, show
from ed_train.config.run import ComponentConfig, RunConfig
from ed_train.errors import printable

if TYPE_CHECKING:
    from torch import nn

    from ed_train.train.components import TrainedComponent
    from ed_train.train.report import Report

DEFAULT = "default"
WIDEST_COLUMN = 32


def check(run: RunConfig, *, as_json: bool) -> None:
    """Go through everything that a run does before its first step, and print what it comes to.

    Raises:
        ConfigError: the data, the model or the plugins do not fit the configuration, or a plugin fails.
    """
    from ed_train.train.preview import preview

    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints must not get into the output
        report = preview(run)
    if report.accelerator.is_main_process:
        if as_json:
            from ed_train.commands.as_json import print_json

            print_json(_summary(report))
        else:
            print("\n".join(_lines(report)))
    report.accelerator.end_training()


def _lines(report: Report) -> Iterator[str]:
    from ed_train.train.components import component_label
    from ed_train.train.report import device_line

    run = report.run
    yield device_line(run, report.accelerator, report.precision)
    yield from report.opening_lines()
    yield report.steps_line()
    yield report.samples_line()
    yield report.checkpoints_line()
    for component in report.components:
        yield from _component_lines(component, report)
    for name in report.not_trained:
        key = _switch(name)
        yield f"{component_label(name)}: does not train  ({key}: {run.sources[key]})"
    yield from report.caches
    given = [key for key, source in run.sources.items() if source != DEFAULT or key in run.overridden]
    yield "settings:"
    yield from _table((key, getattr(run.train, key), _setting_source(run, key)) for key in given)
    yield f"    the other {len(run.sources) - len(given)} have their defaults; --json shows them all"
    if run.validation and run.validation.sources:
        config, sources = run.validation.config, run.validation.sources
        yield "validation settings:"
        yield from _table((key, value, sources[key]) for key, value in vars(config).items() if key in sources)
    yield from report.closing_lines()
    yield "checked only: nothing was trained or written, and neither weights nor pixels were read"


def _component_lines(component: TrainedComponent, report: Report) -> Iterator[str]:
    from ed_train.train.components import decay_and_warmup_steps
    from ed_train.train.report import trained_lines

    config, sources = component.config, component.config.sources
    yield from trained_lines(component)
    rows: list[tuple[str, Any, str]] = [
        ("optimizer", config.optimizer.spec.name, f"{sources['optimizer']}; {config.optimizer.origin}")
    ]
    rows += [(key, value, sources[key]) for key, value in vars(config.options).items()]
    rows.append(("lr_scheduler", config.lr_scheduler, sources["lr_scheduler"]))
    if config.lr_scheduler != "constant":
        decay, warmup = decay_and_warmup_steps(config, report.total_steps)
        rows.append(("lr_warmup_steps", warmup, _steps_source(config, "lr_warmup_steps")))
        rows.append(("lr_decay_steps", decay, _steps_source(config, "lr_decay_steps")))
    frozen_by = _freezing(report.run, component.name).items()
    rows += [(key, one["value"], f"{one['source']}; {one['distribution']} {one['version']}") for key, one in frozen_by]
    yield from _table(rows)


def _freezing(run: RunConfig, component: str) -> dict[str, dict[str, Any]]:
    """The sections of optimizer.json that freeze something of a component: what is set in them, and where."""
    return {
        one.policy.policy.section: {
            "value": {key: v for key, v in vars(one.options).items() if v != default_of(type(one.options), key)},
            "source": one.where,
            "distribution": one.policy.distribution,
            "version": one.policy.version,
        }
        for one in run.freezing
        if one.policy.policy.component == component
    }


def _steps_source(config: ComponentConfig, key: str) -> str:
    """Where a number of steps comes from, which a null, or a decay below 1, leaves to be computed."""
    given, source = getattr(config, key), config.sources[key]
    if key == "lr_warmup_steps":
        return f"{source}: 2 % of lr_decay_steps" if given is None else source
    return f"{source}: 1.5 times the run's steps" if given is None or given < 1 else source


def _setting_source(run: RunConfig, key: str) -> str:
    """Where a setting comes from, and what of the file a flag went over."""
    other = run.overridden.get(key)
    if other is None:
        return run.sources[key]
    flag = f"--{key}" if run.sources[key] != DEFAULT else f"--{key} null"
    return f"{flag}, over {show(other.value)} in {other.where}"


def _table(rows: Iterable[tuple[str, Any, str]]) -> Iterator[str]:
    """Key, value and source in columns."""
    texts = [(key, printable(json.dumps(strict(value), ensure_ascii=False)), source) for key, value, source in rows]
    keys = max((len(key) for key, _, _ in texts), default=0)
    values = max((len(value) for _, value, _ in texts if len(value) <= WIDEST_COLUMN), default=0)
    for key, value, source in texts:
        yield f"    {key:<{keys}}  {value:<{values}}  ({source})"


def _switch(component: str) -> str:
    """The setting that keeps a component from training."""
    from ed_train.config.run import UNET

    return "disable_unet_training" if component == UNET else "disable_textenc_training"


def _summary(report: Report) -> dict[str, Any]:
    run, pictures = report.run, report.pictures
    settings: dict[str, dict[str, Any]] = {
        key: {"value": value, "source": run.sources[key]} for key, value in vars(run.train).items()
    }
    for key, other in run.overridden.items():
        settings[key]["overrides"] = {"value": other.value, "source": other.where}
    summary = {
        "components": {c.name: _component(c, report) for c in report.components},
        "not_trained": {
            name: {"frozen_parameters": _count(report.modules[name]), "source": run.sources[_switch(name)]}
            for name in report.not_trained
        },
        "steps": report.total_steps,
        "epochs": report.epochs,
        "first_step": run.resume.manifest["step"] if run.resume else 0,
        "pictures_per_step": run.train.batch_size * run.train.grad_accum * report.accelerator.num_processes,
        "seed": run.train.seed,
        "device": str(report.accelerator.device),
        "precision": report.precision,
        "processes": report.accelerator.num_processes,
        "model": {**vars(run.model), "prediction": report.prediction},
        "data": {
            "root": run.train.data_root,
            "pictures": pictures.used,
            "sizes": pictures.sizes,
            "batches_per_epoch": pictures.epochs.batches(0),
            "epochs": _epochs(report),
            "not_used": [str(picture) for picture in pictures.skipped],
        },
        "validation": _validation(report),
        "plugins": _plugins(run),
        "settings": settings,
        "warnings": [*report.remarks, *(f"picture not used: {picture}" for picture in pictures.skipped)],
    }
    content: dict[str, Any] = strict(summary)
    return content


def _epochs(report: Report) -> list[dict[str, int]] | None:
    """Pictures and batches of each epoch of a rated_dataset; None where all epochs have all pictures."""
    epochs = report.pictures.epochs
    counts = range(epochs.fading.epochs if epochs.fading else 0)
    return [{"pictures": epochs.pictures(n), "batches": epochs.batches(n)} for n in counts] or None


def _validation(report: Report) -> dict[str, Any] | None:
    """The sets, and every setting with its source; None where nothing is validated."""
    if report.run.validation is None:
        return None
    config, sources = report.run.validation.config, report.run.validation.sources
    return {
        "sets": {one.name: {"pictures": len(one.items), "origin": one.origin} for one in report.pictures.validation},
        "settings": {key: {"value": v, "source": sources.get(key, DEFAULT)} for key, v in vars(config).items()},
    }


def _component(component: TrainedComponent, report: Report) -> dict[str, Any]:
    from ed_train.train.components import decay_and_warmup_steps
    from ed_train.train.report import frozen_blocks

    config: ComponentConfig = component.config
    decay, warmup = decay_and_warmup_steps(config, report.total_steps)
    trained = sum(parameter.numel() for parameter in component.parameters)
    return {
        "optimizer": config.optimizer.spec.name,
        "distribution": config.optimizer.distribution,
        "version": config.optimizer.version,
        "options": {k: {"value": v, "source": config.sources[k]} for k, v in vars(config.options).items()},
        "lr_scheduler": config.lr_scheduler,
        "lr_warmup_steps": warmup,
        "lr_decay_steps": decay,
        "sources": {key: config.sources[key] for key in ("optimizer", "lr_scheduler")}
        | {key: _steps_source(config, key) for key in ("lr_warmup_steps", "lr_decay_steps")},
        "trainable_parameters": trained,
        "frozen_parameters": _count(component.module) - trained,
        "trainable_tensors": len(component.parameters),
        "frozen_tensors": len(list(component.module.parameters())) - len(component.parameters),
        "frozen_blocks": frozen_blocks(component.module),
        "freezing": _freezing(report.run, component.name),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _plugins(run: RunConfig) -> list[dict[str, str]]:
    """The distributions that this run uses."""
    versions = {c.optimizer.distribution: c.optimizer.version for c in run.components.values()}
    versions |= {f.policy.distribution: f.policy.version for f in run.freezing}
    return [{"distribution": name, "version": version} for name, version in sorted(versions.items())]


def strict(value: Any) -> Any:
    """A value as strict JSON can hold it: an infinity that is some plugin's default becomes a text."""
    if isinstance(value, dict):
        return {str(key): strict(member) for key, member in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [strict(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
