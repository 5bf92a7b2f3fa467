"""Resolve optimizer.json: one optimizer with all its options for each component, and the source of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ed_train.config.describe import default_of, show_with_type
from ed_train.config.freeze_sections import FREE_KEYS, resolve_freezing
from ed_train.config.jsontext import Document
from ed_train.config.optimizer_keys import (
    SCALE_KEYS,
    SCHEDULE_KEYS,
    STOCK_OPTIONS,
    Given,
    ScaleAndTweaks,
    ScheduleConfig,
)
from ed_train.config.run import TEXT_ENCODER, UNET, ComponentConfig, FreezeConfig
from ed_train.config.sanity import sanity_notes
from ed_train.config.train_keys import TrainConfig
from ed_train.config.validate import unknown_key, validated
from ed_train.errors import ConfigError, PluginError, Problem
from ed_train.first_party import DEFAULT_OPTIMIZER
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer
from ed_train.selection import LEFT_OUT_BY
from ed_train.specs import option_names


@dataclass(frozen=True)
class OptimizerFile:
    """What optimizer.json, with train.json's and the flags' keys over it, comes to."""

    components: dict[str, ComponentConfig]
    freezing: tuple[FreezeConfig, ...]
    grad_scaler_tweaks: bool


class OptimizerFileResolver:
    """Resolves one optimizer.json; collects problems and notes as it goes, so that all are reported at once."""

    def __init__(
        self,
        document: Document | None,
        train: TrainConfig,
        overrides: Mapping[str, Given],
        registry: OptimizerRegistry,
    ) -> None:
        """Prepare to resolve.

        Args:
            document: optimizer.json, or None for the default optimizer.
            train: the resolved train.json.
            overrides: ``lr`` and the schedule's keys where train.json or a flag sets them.
            registry: the installed plugins.
        """
        self.document = document
        self.train = train
        self.overrides = overrides
        self.registry = registry
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.known_options = {*STOCK_OPTIONS, *(n for o in registry for n in option_names(o.spec.config_type))}

    def resolve(self) -> OptimizerFile:
        """Resolve everything; meaningless where `problems` is not empty afterwards."""
        base = self._section("base")
        overrides = self._section("text_encoder_overrides")
        scale = self._scale(overrides)
        tweaks = self._single("apply_grad_scaler_step_tweaks", True)
        self._check_top_level_keys()
        freezing = resolve_freezing(self.document, self.registry, self.problems, self.notes)
        unet_name = base.pop("optimizer", Given(DEFAULT_OPTIMIZER, "default", ""))
        te_name = overrides.pop("optimizer", unet_name)
        unet_optimizer = self._optimizer(unet_name)
        te_optimizer = unet_optimizer if te_name is unet_name else self._optimizer(te_name)
        components: dict[str, ComponentConfig] = {}
        if unet_optimizer and te_optimizer:
            first = (TEXT_ENCODER, te_optimizer) if self.train.disable_unet_training else (UNET, unet_optimizer)
            self._check_keys(base, *first)
            self._check_keys(overrides, TEXT_ENCODER, te_optimizer, used=not self.train.disable_textenc_training)
            if not self.train.disable_unet_training:
                lr = self.overrides.get("lr")
                self._note_override(lr, base.get("lr"))
                self._add(components, UNET, unet_name, unet_optimizer, {**base, **({"lr": lr} if lr else {})})
            if self.train.disable_textenc_training:
                self._note_idle_overrides(overrides, scale)
            else:
                values = self._text_encoder_values(base, overrides, scale, unet_optimizer, te_optimizer)
                self._add(components, TEXT_ENCODER, te_name, te_optimizer, values)
        return OptimizerFile(components, freezing, tweaks)

    def _section(self, name: str) -> dict[str, Given]:
        """The non-null keys of an object of the file."""
        section = self.document.value.get(name) if self.document else None
        if section is None or self.document is None:
            return {}
        if not isinstance(section, dict):
            message = f"got {show_with_type(section)}; expected an object: {{...}}"
            self.problems.append(Problem(self.document.where(name), name, message))
            return {}
        return {
            key: Given(value, self.document.where(name, key), f"{name}.{key}")
            for key, value in section.items()
            if value is not None and key not in FREE_KEYS
        }

    def _scale(self, overrides: dict[str, Given]) -> Given | None:
        """The text encoder's lr scale, from any of the places and spellings that users have."""
        found = [overrides.pop(key) for key in SCALE_KEYS if key in overrides]
        if self.document:
            top = self.document.value
            found += [Given(top[k], self.document.where(k), k) for k in SCALE_KEYS if top.get(k) is not None]
        for given in found:
            _, problems, _ = validated(ScaleAndTweaks, {SCALE_KEYS[0]: given.value})
            self.problems += [replace(p, where=given.where, key=given.key) for p in problems]
            if given.value != found[0].value:
                message = f"contradicts {found[0]}; keep one of them"
                self.problems.append(Problem(given.where, given.key, message))
        return found[0] if found and not self.problems else None

    def _single(self, key: str, default: Any) -> Any:
        value = self.document.value.get(key) if self.document else None
        if value is None or self.document is None:
            return default
        _, problems, _ = validated(ScaleAndTweaks, {key: value}, where=self.document.where)
        self.problems += problems
        return value

    def _check_top_level_keys(self) -> None:
        if self.document is None:
            return
        known = {*FREE_KEYS, "base", "text_encoder_overrides", *SCALE_KEYS, "apply_grad_scaler_step_tweaks"}
        known |= {p.policy.section for p in self.registry.freeze_policies}
        for key in self.document.value.keys() - known:
            if problem := self._unknown_top_level(key, known):
                self.problems.append(Problem(self.document.where(key), key, problem))

    def _unknown_top_level(self, key: str, known: set[str]) -> str | None:
        from ed_train.first_party import DISTRIBUTION_OF_SECTION

        owner = DISTRIBUTION_OF_SECTION.get(key)
        if owner is None:
            return unknown_key(key, known)
        if self.document is None or self.document.value[key] is None:
            return None
        if owner in self.registry.left_out:
            return f"needs the distribution {owner}, which {LEFT_OUT_BY} leaves out"
        broken = [p.error for p in self.registry.broken if p.distribution == owner]
        if broken:
            return f"needs the distribution {owner}, which is installed but broken: {broken[0]}"
        return f"needs the distribution {owner}, which is not installed: pip install {owner}"

    def _optimizer(self, given: Given) -> RegisteredOptimizer | None:
        if not isinstance(given.value, str):
            message = f"got {show_with_type(given.value)}; expected the name of an optimizer"
            self.problems.append(Problem(given.where, given.key, message))
            return None
        try:
            return self.registry.find(given.value)
        except ConfigError as error:
            message = error.problems[0].message
            if given.where == "default":
                message += "; it is the default, another one is chosen with optimizer_config"
            self.problems.append(Problem(given.where, given.key, message))
            return None

    def _check_keys(
        self, section: dict[str, Given], component: str, chosen: RegisteredOptimizer, used: bool = True
    ) -> None:
        """Unknown keys are problems; keys that only other optimizers have get a line each and are taken out of use."""
        options = option_names(chosen.spec.config_type)
        for key, given in section.items():
            if key in options or key in SCHEDULE_KEYS:
                continue
            if key not in self.known_options:
                known = {"optimizer", *SCHEDULE_KEYS, *options}
                self.problems.append(Problem(given.where, given.key, unknown_key(key, known)))
            elif used:
                name = chosen.spec.name
                other = "; it has eps" if key == "epsilon" and "eps" in options else ""  # a class without a plugin
                why = f"{name} has no {key}{other}"
                self.notes.append(f"{given.where}: {given.key} has no effect on the {component}: {why}")

    def _text_encoder_values(
        self,
        base: dict[str, Given],
        overrides: dict[str, Given],
        scale: Given | None,
        unet_optimizer: RegisteredOptimizer,
        te_optimizer: RegisteredOptimizer,
    ) -> dict[str, Given]:
        """What base gives, what the overrides say over it, and the lr that follows from all its sources."""
        values = {**base, **overrides}
        values.pop("lr", None)
        lr = self._text_encoder_lr(base.get("lr"), overrides.get("lr"), scale, unet_optimizer, te_optimizer)
        return {**values, **({"lr": lr} if lr else {})}

    def _text_encoder_lr(
        self,
        base: Given | None,
        explicit: Given | None,
        scale: Given | None,
        unet_optimizer: RegisteredOptimizer,
        te_optimizer: RegisteredOptimizer,
    ) -> Given | None:
        override = self.overrides.get("lr")
        if explicit:
            if scale:
                self.notes.append(f"{scale} is ignored: text_encoder_overrides.lr is set ({explicit.where})")
            self._note_override(override, explicit)
            return override or explicit
        same_kind = unet_optimizer.spec.learning_rate_free == te_optimizer.spec.learning_rate_free
        if override is None and not same_kind:
            if base or scale:
                names = f"{unet_optimizer.spec.name} to {te_optimizer.spec.name}"
                default = default_of(te_optimizer.spec.config_type, "lr")
                dropped = " and ".join(str(g) for g in (base, scale) if g)
                self.notes.append(
                    f"{dropped}: an lr is not carried over from {names}, of which only one is learning-rate-free; "
                    f"the text encoder uses {te_optimizer.spec.name}'s default lr {default:g}"
                )
            return None
        lr = override or base
        if scale is None:
            return lr
        unet_lr = lr or Given(default_of(unet_optimizer.spec.config_type, "lr"), "", f"{unet_optimizer.origin}'s lr")
        if not isinstance(unet_lr.value, int | float) or isinstance(unet_lr.value, bool):
            return lr  # a problem that is reported where it stands
        return Given(scale.value * unet_lr.value, scale.where, f"{scale.key} {scale.value} x {unet_lr.source}")

    def _note_idle_overrides(self, overrides: dict[str, Given], scale: Given | None) -> None:
        """A line about what is set for a text encoder that does not train."""
        idle = list(dict.fromkeys(([scale.key] if scale else []) + ["text_encoder_overrides"] * bool(overrides)))
        if idle and self.document:
            where = scale.where if scale else self.document.where(idle[0])
            have = f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'}"
            self.notes.append(f"{where}: {have} no effect: the text_encoder does not train")

    def _note_override(self, override: Given | None, loser: Given | None) -> None:
        if override and loser and override.value != loser.value:
            self.notes.append(f"{override} overrides {loser}")

    def _add(
        self,
        components: dict[str, ComponentConfig],
        name: str,
        optimizer: Given,
        chosen: RegisteredOptimizer,
        values: dict[str, Given],
    ) -> None:
        """Check a component's options and schedule, and add it; a plugin that fails is a problem where it is named."""
        options = {k: g for k, g in values.items() if k in option_names(chosen.spec.config_type)}
        schedule = self._schedule(values)
        user = f"; the text encoder's {chosen.spec.name} inherits it: set" if name == TEXT_ENCODER else ""
        try:
            config = self._checked(chosen.spec.config_type, options, optimizer, user)
            schedule_config = self._checked(ScheduleConfig, schedule, optimizer)
            if config is None or schedule_config is None:
                return
            sources = dict.fromkeys(option_names(chosen.spec.config_type), f"default of {chosen.origin}")
            sources |= dict.fromkeys(SCHEDULE_KEYS, "default")
            sources |= {key: given.source for key, given in {"optimizer": optimizer, **options, **schedule}.items()}
            components[name] = ComponentConfig(
                name=name, optimizer=chosen, options=config, sources=sources, **vars(schedule_config)
            )
            self.notes += sanity_notes(components[name], self.train.clip_grad_norm)
        except PluginError as error:
            self.problems.append(Problem(optimizer.where, optimizer.key, str(error)))

    def _schedule(self, values: dict[str, Given]) -> dict[str, Given]:
        """A flag wins over optimizer.json, which wins over train.json: only it can tell the components apart."""
        schedule = {key: values[key] for key in SCHEDULE_KEYS if key in values}
        for key in SCHEDULE_KEYS:
            override, own = self.overrides.get(key), schedule.get(key)
            if override and (own is None or override.where.startswith("--")):
                schedule[key] = override
                self._note_override(override, own)
            elif override and own:
                self._note_override(own, override)
        return schedule

    def _checked(self, config_type: type[Any], given: dict[str, Given], optimizer: Given, inherits: str = "") -> Any:
        config, problems, notes = validated(config_type, {key: g.value for key, g in given.items()})
        for problem in problems:
            origin = given.get(problem.key) or next(iter(given.values()), optimizer)
            key = origin.key if problem.key in given else origin.key.rpartition(".")[0]
            advice = f"{inherits} text_encoder_overrides.{problem.key}" if inherits and key.startswith("base.") else ""
            self.problems.append(Problem(origin.where, key, problem.message + advice))
        self.notes += notes
        return config
