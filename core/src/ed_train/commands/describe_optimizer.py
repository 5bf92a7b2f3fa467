"""``ed-train --describe-optimizer NAME``: an optimizer's options, recommended settings and memory. Without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from textwrap import fill
from typing import Any

from ed_train.commands.as_json import print_json
from ed_train.commands.list_optimizers import why_unusable, written_name
from ed_train.config.describe import annotations_of, default_of, expected, help_of, show
from ed_train.errors import PluginError
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer

ADAMW_STATE_BYTES = 8
"""Bytes of AdamW's state per parameter: the scale by which people judge other optimizers."""
_SHAPE = (1000, 1000)


def describe_optimizer(name: str, registry: OptimizerRegistry, *, as_json: bool) -> None:
    """Print everything that is known about an optimizer, with a section that can be pasted into optimizer.json.

    Args:
        name: a name that ``--list-optimizers`` shows, or ``module:Class``, whose module is then imported.
        registry: the installed plugins.
        as_json: print one JSON object instead of text.

    Raises:
        ConfigError: there is no such optimizer, or several plugins offer it.
        PluginError: the plugin's `state_bytes` fails.
    """
    optimizer = registry.find(name)
    description = _description(optimizer, registry)
    if as_json:
        print_json(description)
    else:
        print("\n".join(_lines(description)))


def _description(optimizer: RegisteredOptimizer, registry: OptimizerRegistry) -> dict[str, Any]:
    spec = optimizer.spec
    name = written_name(optimizer, registry)
    return {
        "name": name,
        "summary": spec.summary,
        "distribution": optimizer.distribution,
        "version": optimizer.version,
        "verified": optimizer.verified,
        "library": spec.library or None,
        "library_version": _installed_version(spec.library),
        "paper": spec.paper or None,
        "usable": not why_unusable(optimizer),
        "reason": why_unusable(optimizer) or None,
        "traits": list(_traits(optimizer)),
        "usual_lr": list(spec.usual_lr) if spec.usual_lr else None,
        "state_bytes_per_parameter": _state_bytes_per_parameter(optimizer),
        "adamw_state_bytes_per_parameter": ADAMW_STATE_BYTES,
        "options": [_option(optimizer, option) for option in annotations_of(spec.config_type)],
        "optimizer_json": {"base": {"optimizer": name, **_settings(optimizer)}},
    }


def _installed_version(library: str) -> str | None:
    try:
        return version(library) if library else None
    except PackageNotFoundError:
        return None


def _traits(optimizer: RegisteredOptimizer) -> Iterator[str]:
    """What the trainer knows about an optimizer and acts upon, in words."""
    spec = optimizer.spec
    if not optimizer.verified:
        yield "unverified: no plugin describes this class, so its options have no ranges and its needs are not known"
    if spec.learning_rate_free:
        yield "learning-rate-free: finds its step size itself; lr only scales it and is about 1"
    if spec.schedule_free:
        yield "schedule-free: needs no learning-rate schedule; the trainer switches it between training and sampling"
    if spec.devices:
        yield why_unusable(optimizer) or f"runs on {' and '.join(spec.devices)} only"
    for device, warning in spec.slow_on.items():
        yield f"slow on {device}: {warning}"
    if not spec.lr_may_be_zero:
        yield "fails at lr 0: the trainer keeps schedules above it"
    if not spec.shardable:
        yield "cannot be sharded over processes (FSDP)"
    if spec.per_parameter:
        yield "can step parameter by parameter: works with optimizer_in_backward and weights_dtype bf16"


def _state_bytes_per_parameter(optimizer: RegisteredOptimizer) -> float | None:
    """Bytes of state per parameter with the default options, of a large float32 matrix."""
    spec = optimizer.spec
    if not callable(spec.state_bytes):
        return spec.state_bytes
    try:
        return round(spec.state_bytes(spec.config_type(), _SHAPE) / math.prod(_SHAPE), 2)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"{optimizer.origin}: {spec.name}'s state_bytes failed: {reason}") from error


def _option(optimizer: RegisteredOptimizer, option: str) -> dict[str, Any]:
    spec = optimizer.spec
    annotation = annotations_of(spec.config_type)[option]
    return {
        "name": option,
        "expected": expected(annotation),
        "default": _plain(default_of(spec.config_type, option)),
        "recommended": _plain(spec.recommended.get(option)),
        "help": help_of(annotation),
    }


def _settings(optimizer: RegisteredOptimizer) -> dict[str, Any]:
    """Every option with its recommended value, else its default; those that JSON has no number for are left out."""
    config_type = optimizer.spec.config_type
    defaults = {option: default_of(config_type, option) for option in annotations_of(config_type)}
    settings = {**defaults, **optimizer.spec.recommended}
    return {option: value for option, value in settings.items() if _plain(value) == value}


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; infinity, which it cannot, as a text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _lines(description: dict[str, Any]) -> Iterator[str]:
    state, usual = description["state_bytes_per_parameter"], description["usual_lr"]
    library = description["library"]
    facts = [
        ("from", f"{description['distribution']} {description['version']}"),
        ("library", library and f"{library} {description['library_version'] or f'(missing: pip install {library})'}"),
        ("paper", description["paper"]),
        ("usual lr", f"{usual[0]:g} to {usual[1]:g}" if usual else "not declared"),
        ("state", "not declared" if state is None else f"{state:g} bytes per parameter (adamw: {ADAMW_STATE_BYTES})"),
        *(("note", trait) for trait in description["traits"]),
    ]
    yield f"{description['name']}: {description['summary']}"
    yield ""
    for label, fact in facts:
        if fact:
            yield fill(fact, 120, initial_indent=f"{label:<10}", subsequent_indent=" " * 10, break_long_words=False)
    yield ""
    yield from _option_lines(description["options"])
    yield ""
    yield "for optimizer.json:"
    yield from _section_lines(description["optimizer_json"]["base"])


def _option_lines(options: list[dict[str, Any]]) -> Iterator[str]:
    rows = [("option", "default", "recommended", "allowed")]
    for option in options:
        recommended = "" if option["recommended"] is None else show(option["recommended"])
        rows.append((option["name"], show(option["default"]), recommended, option["expected"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    helps = ["", *(option["help"] for option in options)]
    for row, help_ in zip(rows, helps, strict=True):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        if help_:
            yield f"    {help_}"


def _section_lines(base: dict[str, Any]) -> Iterator[str]:
    """The section with one option in a line, as people write it."""
    yield "{"
    yield '  "base": {'
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in base.items()]
    yield ",\n".join(lines)
    yield "  }"
    yield "}"
