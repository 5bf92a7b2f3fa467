"""Freeze parameters by ordered patterns over their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from ed_train import Help

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class UNetFreezing:
    """Options of the section ``unet_freezing``, which may also be the bare list of rules."""

    rules: Annotated[
        tuple[str, ...],
        Help('"freeze PATTERN" and "unfreeze PATTERN" in order; for each parameter the last match wins'),
    ] = ()

    def __post_init__(self) -> None:
        if malformed := [rule for rule in self.rules if not _is_rule(rule)]:
            raise ValueError(
                f"{', '.join(map(repr, malformed))}: expected 'freeze PATTERN' or 'unfreeze PATTERN', "
                "e.g. 'freeze *' or 'unfreeze *attn2*'"
            )
        if self.rules and not _freezes(self.rules[0]):
            warnings.warn(
                f"{self.rules[0]!r} has no effect as the first rule, since everything trains before it; "
                "to train nothing else, put 'freeze *' before it",
                stacklevel=3,
            )


def freeze_unet(module: torch.nn.Module, config: UNetFreezing) -> tuple[str, ...]:
    """Freeze the parameters for which the last matching rule is a freeze rule.

    Patterns are those of `fnmatch`, compared with the full name of a parameter: ``*`` matches anything, dots included.

    Returns:
        The names of the frozen parameters, in the order of the module.

    Raises:
        ValueError: a rule matches no parameter; names every such rule, with the nearest patterns that match.
    """
    parameters = dict(module.named_parameters())
    is_frozen = dict.fromkeys(parameters, False)
    unmatched = []
    for rule in config.rules:
        matches = [name for name in parameters if fnmatchcase(name, _pattern(rule))]
        is_frozen.update(dict.fromkeys(matches, _freezes(rule)))
        if not matches:
            unmatched.append(f"{rule!r} matches no parameter; {_suggestion(_pattern(rule), list(parameters))}")
    if unmatched:
        raise ValueError("; ".join(unmatched))
    frozen = tuple(name for name, freeze in is_frozen.items() if freeze)
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def _is_rule(rule: str) -> bool:
    words = rule.split()
    return len(words) == 2 and words[0] in ("freeze", "unfreeze")


def _freezes(rule: str) -> bool:
    return rule.split()[0] == "freeze"


def _pattern(rule: str) -> str:
    return rule.split()[1]


def _suggestion(pattern: str, names: Sequence[str]) -> str:
    """Patterns that match something and look like this one, else how the names begin."""
    from difflib import get_close_matches  # here, since every command waits for what a plugin imports

    parts = [name.split(".") for name in names]
    prefixes = {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}
    inner = {part for path in parts for part in path if not part.isdigit()} - prefixes
    literals = [literal.strip(".") for literal in re.split(r"[*?\[\]]+", pattern)]
    misspelt = next((t for t in literals if not any(t in name for name in names)), max(literals, key=len))
    close = get_close_matches(misspelt, sorted(prefixes | inner), n=3)
    if close:
        return "did you mean " + " or ".join(f"'{c}*'" if c in prefixes else f"'*{c}*'" for c in close) + "?"
    return "parameter names begin with " + ", ".join(dict.fromkeys(path[0] for path in parts))
