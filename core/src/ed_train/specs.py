"""What a plugin hands to ed-train: an `OptimizerSpec` for each optimizer, a `FreezePolicy` for each way of freezing.

A spec is data. Its options are the fields of a frozen dataclass, and each field carries its type, default, range and
one line of help, so that validation, ``--help``-like output, schemas and documents all come from one place:

    @dataclass(frozen=True)
    class SgdConfig:
        lr: Annotated[Positive, Help("learning rate")] = 1e-3
        momentum: Annotated[Fraction, Help("momentum factor")] = 0.0

Nothing here imports torch: listing optimizers and reporting configuration errors must stay instant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from ed_train.errors import PluginError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Bounds",
    "Fraction",
    "FreezePolicy",
    "Help",
    "NonNegative",
    "OptimizerSpec",
    "Params",
    "Positive",
    "Probability",
    "TrainingPlan",
]


@dataclass(frozen=True)
class Help:
    """One line that says what an option does; put it into the option's ``Annotated``."""

    text: str


class Bounds:
    """The range of a number; put it into the option's ``Annotated``: ``Annotated[int, Bounds(ge=1)]``.

    A class of ours rather than annotated_types', whose import would take a fifth of the time of ``--list-optimizers``.
    """

    __slots__ = ("ge", "gt", "le", "lt")

    def __init__(
        self, *, gt: float | None = None, ge: float | None = None, lt: float | None = None, le: float | None = None
    ) -> None:
        self.gt, self.ge, self.lt, self.le = gt, ge, lt, le


Positive = Annotated[float, Bounds(gt=0)]
NonNegative = Annotated[float, Bounds(ge=0)]
Fraction = Annotated[float, Bounds(ge=0, lt=1)]
"""A decay rate such as one of Adam's betas: 1 itself would never forget."""
Probability = Annotated[float, Bounds(ge=0, le=1)]

Params: TypeAlias = "Sequence[torch.Tensor] | Sequence[dict[str, Any]] | Sequence[tuple[str, torch.Tensor]]"
"""Parameters, parameter groups or named parameters; always a sequence, so it may be read more than once."""

RESERVED_OPTIONS = frozenset({"optimizer", "lr_scheduler", "lr_decay_steps", "lr_warmup_steps", "doc", "$schema"})
"""Keys of optimizer.json's ``base`` that belong to no optimizer."""
RESERVED_SECTIONS = frozenset({
    "base", "text_encoder_overrides", "text_encoder_lr_scale", "text_encder_lr_scale",
    "apply_grad_scaler_step_tweaks", "doc", "$schema",
})  # fmt: skip
"""Keys at the top level of optimizer.json that belong to no plugin."""
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
CLASS_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*\Z")
"""``module:Class``, the name of an optimizer that comes from no plugin."""


@dataclass(frozen=True)
class TrainingPlan:
    """What a spec's `advice` may look at beside the options: how the component is going to be trained.

    Attributes:
        lr_scheduler: the name of the learning-rate schedule, e.g. ``constant`` or ``cosine``.
        has_warmup: whether the schedule begins with a rising learning rate.
        clip_grad_norm: the largest gradient norm that is let through, or None.
    """

    lr_scheduler: str
    has_warmup: bool
    clip_grad_norm: float | None


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """One optimizer as the core sees it.

    Attributes:
        name: what users write in optimizer.json: lower-case letters, digits and underscores.
        summary: one line for ``--list-optimizers``.
        config_type: frozen dataclass of the options, every field with a default, one of them ``lr``. A
            ``__post_init__`` may raise ValueError for options that contradict each other, and may call
            ``warnings.warn`` for one line that the user should see.
        build: ``build(params, config)`` returns the optimizer over exactly these parameters. It imports its library
            inside, and is the only place that knows the library's argument names.
        library: the PyPI distribution that implements the optimizer; empty if it is in the plugin itself.
        paper: address of the publication.
        learning_rate_free: the optimizer estimates its step size; ``lr`` only scales it and is about 1.
        effective_lr: maps a parameter group to the step size that is really used, where that is not ``group["lr"]``.
        schedule_free: the optimizer has ``train()`` and ``eval()``, and the core calls them around training,
            sampling and saving.
        devices: device types that it runs on, e.g. ``("cuda",)``; empty for all.
        slow_on: device type to one sentence that warns a user who trains there.
        lr_may_be_zero: False if a step fails at a learning rate of 0, as at the start of a warmup or the end of a
            decay; the core then keeps schedules above it.
        shardable: whether its parameters may be sharded over processes (FSDP), where tensors are no longer whole.
        per_parameter: whether a step over some of the parameters changes them, and their state, to exactly what a step
            over all would: nothing is summed over parameters, and no count of steps is kept for a group. Their steps
            can then be taken one after another, which saves memory.
        recommended: option values that the authors recommend where they differ from the defaults.
        usual_lr: the lowest and the highest learning rate that people train with; beyond them the core warns.
        state_bytes: bytes of optimizer state after a step: a number for each element of a float32 parameter, or
            ``state_bytes(config, shape)`` for a whole float32 parameter of that shape. None if nobody has counted:
            ``--plan-memory`` then has to take real steps.
        advice: ``advice(config, plan)`` returns a line for each combination of settings that goes wrong without an
            error. It is shown; nothing is changed.
    """

    name: str
    summary: str
    config_type: type[Any]
    build: Callable[[Params, Any], torch.optim.Optimizer]
    library: str = ""
    paper: str = ""
    learning_rate_free: bool = False
    effective_lr: Callable[[Mapping[str, Any]], float] | None = None
    schedule_free: bool = False
    devices: tuple[str, ...] = ()
    slow_on: Mapping[str, str] = field(default_factory=dict)
    lr_may_be_zero: bool = True
    shardable: bool = True
    per_parameter: bool = False
    recommended: Mapping[str, Any] = field(default_factory=dict)
    usual_lr: tuple[float, float] | None = None
    state_bytes: float | Callable[[Any, tuple[int, ...]], float] | None = None
    advice: Callable[[Any, TrainingPlan], Iterable[str]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not (_NAME.match(self.name) or CLASS_NAME.match(self.name)):
            raise PluginError(f"optimizer name {self.name!r}: expected lower-case letters, digits and underscores")
        _check_fields(self, f"optimizer {self.name!r}", _SPEC_FIELDS)
        _check_config_type(self.config_type, owner=f"optimizer {self.name!r}")
        options = option_names(self.config_type)
        if "lr" not in options:
            raise PluginError(f"optimizer {self.name!r}: {self.config_type.__name__} has no field 'lr'")
        if taken := RESERVED_OPTIONS & set(options):
            raise PluginError(f"optimizer {self.name!r}: the option {min(taken)!r} has a meaning of its own; rename it")
        if unknown := set(self.recommended) - set(options):
            raise PluginError(f"optimizer {self.name!r}: recommended has no option {min(unknown)!r}")


@dataclass(frozen=True, kw_only=True)
class FreezePolicy:
    """One way of choosing which parameters of a component do not train.

    Attributes:
        section: the key at the top level of optimizer.json that configures it, e.g. ``text_encoder_freezing``.
        component: ``unet`` or ``text_encoder``.
        summary: one line for users.
        config_type: frozen dataclass of the section's keys, every field with a default. JSON arrays arrive as tuples.
            If it has a single field, the section may also be that field's bare value.
        apply: ``apply(module, config)`` calls ``requires_grad_(False)`` on what is to be frozen, never the opposite,
            and returns the names of those parameters. It raises ValueError where the module does not fit.
    """

    section: str
    component: str
    summary: str
    config_type: type[Any]
    apply: Callable[[torch.nn.Module, Any], Iterable[str]]

    def __post_init__(self) -> None:
        if not isinstance(self.section, str) or not _NAME.match(self.section):
            raise PluginError(f"section {self.section!r}: expected lower-case letters, digits and underscores")
        if self.section in RESERVED_SECTIONS:
            raise PluginError(f"section {self.section!r} has a meaning of its own; choose another name")
        if self.component not in ("unet", "text_encoder"):
            raise PluginError(f"section {self.section!r}: component {self.component!r} is not unet or text_encoder")
        _check_fields(self, f"section {self.section!r}", _POLICY_FIELDS)
        _check_config_type(self.config_type, owner=f"section {self.section!r}")


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, tuple | list) and len(value) == 2
    return value is None or (numbers and all(isinstance(v, int | float) for v in value))


_FUNCTION = callable, "a function"
_FUNCTION_OR_NONE = (lambda value: value is None or callable(value)), "a function, or None"
_TEXT = (lambda value: isinstance(value, str)), "a text"
_BOOL = (lambda value: isinstance(value, bool)), "True or False"
_MAPPING = (lambda value: isinstance(value, Mapping)), "a dictionary"
_TEXTS = (lambda value: isinstance(value, tuple | list)), "a tuple of texts, e.g. ('cuda',)"
_RANGE = _is_range, "(lowest, highest), or None"
_BYTES = (lambda v: v is None or callable(v) or isinstance(v, int | float)), "a number, a function, or None"
_Fields: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], str]]
_SPEC_FIELDS: _Fields = {
    "summary": _TEXT, "build": _FUNCTION, "library": _TEXT, "paper": _TEXT, "learning_rate_free": _BOOL,
    "effective_lr": _FUNCTION_OR_NONE, "schedule_free": _BOOL, "devices": _TEXTS, "slow_on": _MAPPING,
    "lr_may_be_zero": _BOOL, "shardable": _BOOL, "per_parameter": _BOOL, "recommended": _MAPPING,
    "usual_lr": _RANGE, "state_bytes": _BYTES, "advice": _FUNCTION_OR_NONE,
}  # fmt: skip
_POLICY_FIELDS: _Fields = {"summary": _TEXT, "apply": _FUNCTION}
"""Field to whether a value will do, and what is expected in words: a wrong one shows here, not in some command."""


def _check_fields(offer: object, owner: str, kinds: _Fields) -> None:
    for name, (will_do, words) in kinds.items():
        value = getattr(offer, name)
        if not will_do(value):
            raise PluginError(f"{owner}: {name} is {value!r}; expected {words}")


def option_names(config_type: type[Any]) -> tuple[str, ...]:
    """Names of the options of a config_type, in the order of their declaration."""
    return tuple(f.name for f in fields(config_type))


def _check_config_type(config_type: Any, owner: str) -> None:
    if not (isinstance(config_type, type) and is_dataclass(config_type)):
        raise PluginError(f"{owner}: config_type {config_type!r} is not a dataclass")
    for f in fields(config_type):
        if f.default is MISSING and f.default_factory is MISSING:
            raise PluginError(f"{owner}: {config_type.__name__}.{f.name} has no default")
