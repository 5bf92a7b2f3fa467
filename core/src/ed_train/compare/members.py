"""The runs of a comparison: the configured one, with one optimizer after the other in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ed_train.commands.list_optimizers import why_unusable, written_name
from ed_train.compare.learning_rates import (
    ChosenLr,
    LearningRates,
    derived_lr,
    grid_of,
    is_default,
    positive_number,
    rounded,
    short,
)
from ed_train.config.load import load_config
from ed_train.config.optimizer_keys import SCHEDULE_KEYS
from ed_train.config.run import ComponentConfig, RunConfig
from ed_train.config.sanity import sanity_notes
from ed_train.config.validate import validated
from ed_train.config.validation import Validation, ValidationConfig
from ed_train.errors import ConfigError, Problem
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer
from ed_train.specs import option_names

WHERE = "--optimizers"


@dataclass(frozen=True)
class Member:
    """One run of a comparison.

    Attributes:
        label: what it is called, e.g. ``lion`` or ``lion lr 3e-5``.
        name: of its optimizer, which members with other learning rates share.
        run: its configuration; every option has its source.
        unusable: why it cannot run on this machine; empty if it can.
        seed_of: the label of what runs with several seeds, of which this is one; empty if it does not.
    """

    label: str
    name: str
    run: RunConfig
    unusable: str = ""
    seed_of: str = ""

    @property
    def main(self) -> ComponentConfig:
        """The component that stands for the run: the UNet, unless only the text encoder trains."""
        return main_component(self.run)


def main_component(run: RunConfig) -> ComponentConfig:
    """The UNet, unless only the text encoder trains."""
    return next(iter(run.components.values()))


def with_validation(run: RunConfig) -> RunConfig:
    """The run, which holds pictures back to compare on, unless a validation file says something else."""
    if run.validation or not is_default(run.sources["validation_config"]):
        return run
    validation = Validation(ValidationConfig())
    note = (
        f"no validation_config is set: {validation.config.val_split_proportion:.0%} of the pictures are held back from "
        "training, to compare on; a validation file says otherwise"
    )
    return replace(run, validation=validation, notes=(*run.notes, note))


def make_members(
    run: RunConfig,
    names: Collection[str],
    grid: LearningRates,
    registry: OptimizerRegistry,
    flags: Mapping[str, str],
    config_file: Path | None,
) -> tuple[list[Member], list[str]]:
    """The runs to make, in the order of the names, and lines for the user.

    Args:
        run: as configured.
        names: of optimizers, with or without ``@LR``, or optimizer.json files; empty for all that can be used.
        grid: learning rates to try.
        registry: the installed plugins.
        flags: the flags for the runs, for optimizer.json files.
        config_file: train.json, likewise.

    Raises:
        ConfigError: with every problem of all names.
    """
    notes = list(_notes_on_the_configured(run))
    if not names:
        usable = [o for o in registry if not why_unusable(o)]
        names = [written_name(o, registry) for o in usable]
        notes += [f"left out: {written_name(o, registry)}: {why_unusable(o)}" for o in registry if why_unusable(o)]
        notes += [f"left out: {b.distribution} {b.version} is broken: {b.error}" for b in registry.broken]
        if not names:
            raise ConfigError([Problem(WHERE, "", "no optimizer is installed; see ed-train --list-optimizers")])
    members: list[Member] = []
    problems: list[Problem] = []
    for name in dict.fromkeys(names):
        try:
            if name.endswith(".json"):
                members += _members_of_file(Path(name), run, grid, registry, flags, config_file)
            else:
                members += _members_of_name(name, run, grid, registry)
        except ConfigError as error:
            problems += [p if p.where else replace(p, where=WHERE) for p in error.problems]
    labels = [member.label for member in members]
    problems += [
        Problem(WHERE, "", f"there are two runs called {label!r}; name each once")
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return members, notes


def _notes_on_the_configured(run: RunConfig) -> Iterator[str]:
    """What of the configuration a comparison leaves out."""
    first, *others = run.components.values()
    for other in others:
        if other.optimizer != first.optimizer:
            yield (
                f"{other.name}: its own optimizer {other.optimizer.spec.name} ({other.sources['optimizer']}) is not "
                "used: every run trains all with one; an optimizer.json named in --optimizers may have two"
            )


def _members_of_file(
    file: Path,
    base: RunConfig,
    grid: LearningRates,
    registry: OptimizerRegistry,
    flags: Mapping[str, str],
    config_file: Path | None,
) -> Iterator[Member]:
    """The run with an optimizer.json of its own, as ed-train would make it."""
    if not file.is_file():
        raise ConfigError(
            [Problem(WHERE, "", f"got {str(file)!r}; expected an optimizer.json, and there is no such file")]
        )
    loaded = load_config({**flags, "optimizer_config": str(file)}, registry, config_file)
    run = replace(loaded, train=base.train, validation=base.validation)  # a random seed is drawn once for all
    main = main_component(run)
    own = ChosenLr(float(main.options.lr), main.sources["lr"])
    for lr in grid_of(grid, main.optimizer, own, pinned=False):
        changed = _with_lr(run, lr, _ratios(run)) if lr.shown else run
        yield _member(file.stem, main.optimizer.spec.name, lr, changed)


def _members_of_name(text: str, run: RunConfig, grid: LearningRates, registry: OptimizerRegistry) -> Iterator[Member]:
    name, at, short = text.rpartition("@")
    if not at:
        name = text
    optimizer = registry.find(name)
    pinned = positive_number(short) if at else None
    if at and pinned is None:
        raise ConfigError([Problem(WHERE, "", f"got {text!r}; expected a learning rate > 0 behind the @")])
    ratios = _ratios(run)
    run = replace(run, components={n: _component(c, optimizer, main_component(run)) for n, c in run.components.items()})
    main = main_component(run)
    own = ChosenLr(pinned, WHERE, True) if pinned else ChosenLr(float(main.options.lr), main.sources["lr"])
    called = written_name(optimizer, registry) if optimizer.verified else optimizer.spec.name
    for lr in grid_of(grid, optimizer, own, bool(pinned)):
        yield _member(called, called, lr, _with_lr(run, lr, ratios))


def _member(called: str, name: str, lr: ChosenLr, run: RunConfig) -> Member:
    optimizers: Iterable[RegisteredOptimizer] = (c.optimizer for c in run.components.values())
    notes = [note for c in run.components.values() for note in sanity_notes(c, run.train.clip_grad_norm)]
    unusable = dict.fromkeys(why for o in optimizers if (why := why_unusable(o)))
    run = replace(run, notes=tuple(notes))
    return Member(f"{called} lr {short(lr.value)}" if lr.shown else called, name, run, "; ".join(unusable))


def _ratios(run: RunConfig) -> dict[str, float]:
    """Each component's configured learning rate as a multiple of the first one's, if it has the same optimizer."""
    main = main_component(run)
    lr = float(main.options.lr)
    return {
        name: float(c.options.lr) / lr if lr and c.optimizer == main.optimizer else 1.0
        for name, c in run.components.items()
    }


def _component(config: ComponentConfig, optimizer: RegisteredOptimizer, main: ComponentConfig) -> ComponentConfig:
    """A component with this optimizer: as configured if it is the configured one, else as its plugin recommends."""
    if config.optimizer == optimizer and not is_default(config.sources["optimizer"]):
        return config
    spec = optimizer.spec
    lr = derived_lr(optimizer, main)
    values = {**spec.recommended, **({"lr": lr.value} if lr.value else {})}
    options = _checked(optimizer, values)
    sources = dict.fromkeys(option_names(spec.config_type), f"default of {optimizer.origin}")
    sources |= dict.fromkeys(spec.recommended, f"recommended by {optimizer.origin}")
    sources |= {key: config.sources[key] for key in SCHEDULE_KEYS} | {"optimizer": WHERE}
    if lr.value:
        sources["lr"] = lr.source
    return replace(config, optimizer=optimizer, options=options, sources=sources)


def _with_lr(run: RunConfig, lr: ChosenLr, ratios: Mapping[str, float]) -> RunConfig:
    """The run with another learning rate; that of the text encoder keeps its ratio to the UNet's."""
    components = {}
    for name, config in run.components.items():
        value = rounded(lr.value * ratios[name])
        source = lr.source if ratios[name] == 1 else f"{rounded(ratios[name]):g} x {short(lr.value)} ({lr.source})"
        if value == config.options.lr:
            components[name] = config
            continue
        options = _checked(config.optimizer, {**vars(config.options), "lr": value})
        components[name] = replace(config, options=options, sources={**config.sources, "lr": source})
    return replace(run, components=components)


def _checked(optimizer: RegisteredOptimizer, values: Mapping[str, object]) -> object:
    """The options of an optimizer. Raises ConfigError."""
    options, problems, _ = validated(optimizer.spec.config_type, values, key_prefix=f"{optimizer.spec.name}.")
    if problems:
        raise ConfigError(replace(p, where=WHERE) for p in problems)
    return options
