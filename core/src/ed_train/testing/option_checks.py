"""Checks that options do what a user thinks they do, and of the forms in which parameters may come."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from ed_train.api import create_optimizer
from ed_train.config.describe import annotations_of, leaf_types
from ed_train.errors import ConfigError
from ed_train.testing.explain import explained
from ed_train.testing.option_values import refused_values, zeros
from ed_train.testing.subject import OptimizerUnderTest
from ed_train.testing.toy import Run

COMPARED_STEPS = 3
GIVE_RANGES = "give each option its range, and raise ValueError in __post_init__ for a combination that cannot work"


class OptionChecks(OptimizerUnderTest):
    """Checks that options do what a user thinks they do, and of the forms in which parameters may come."""

    def test_builds_from_its_defaults(self) -> None:
        """Without a single option there is an optimizer, and it steps."""
        if not self.options and self.first_steps.problem:
            pytest.skip("it cannot take a plain step: see test_takes_a_plain_step")
        module = self.toy()
        with explained(f"create_optimizer({self.name!r}, params) without options does not work"):
            optimizer = create_optimizer(self.name, module.parameters())
            run = Run(module, optimizer, schedule_free=self.spec.schedule_free).train(1)
        assert run.is_finite, "a step with the defaults gives weights that are not finite"

    def test_building_prints_nothing(self) -> None:
        """Nothing is printed, neither here nor by the library: it would get into the output of --json."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            self.create(self.toy().parameters())
        advice = "wrap the library's call in contextlib.redirect_stdout(io.StringIO())"
        assert not printed.getvalue(), f"building prints {printed.getvalue()!r}: {advice}"

    def test_every_option_reaches_the_optimizer(self) -> None:
        """Another value of an option, and of each number in it, makes another optimizer, and arrives unchanged."""
        problems = []
        for option, annotation in annotations_of(self.spec.config_type).items():
            variants, is_number = self.variants(option), bool({int, float} & leaf_types(annotation))
            if not variants:
                problems.append(f"{option}: its type does not say what other values there are")
            for alternatives in variants:
                valid = [value for value in alternatives if self.is_valid({**self.options, option: value})]
                if not valid:
                    problems.append(f"{option}: {alternatives} are all refused, though its type allows them")
                elif not any(self._differ({}, {option: value}, in_steps=is_number) for value in valid):
                    problems.append(f"{option}: nothing changes with {' or '.join(map(repr, valid))}")
                problems += self._altered(option, valid)[:1]
        assert not problems, (
            "options that do not reach the optimizer as they are (a number has to show in what its steps do, anything "
            "else there, in its groups or in its attributes):\n  "
            + "\n  ".join(problems)
            + "\npass them on in build; if one does, name a value that shows it: other_values = {option: value}"
        )

    def test_an_explicit_zero_is_kept(self) -> None:
        """A 0 that a user writes is not taken for nothing and replaced by the default."""
        defaults = self.spec.config_type()
        for option, annotation in annotations_of(self.spec.config_type).items():
            default = getattr(defaults, option)
            for value in zeros(annotation, default):
                if not self.is_valid({**self.options, option: value}):
                    continue  # refused in combination with the other options, which is no silent replacement
                assert self._differ({option: default}, {option: value}), (
                    f"{option}={value} gives the same optimizer as the default {default}; "
                    f"write config.{option} in build, not 'config.{option} or ...'"
                )

    def test_unknown_and_out_of_range_options_are_refused(self) -> None:
        """A wrong name or value is a ConfigError that names the option, before the library sees it."""
        defaults = self.spec.config_type()
        wrong: list[tuple[str, Any]] = [("no_such_option", 1), ("lr", -1.0)]
        for option, annotation in annotations_of(self.spec.config_type).items():
            wrong += [(option, value) for value in refused_values(annotation, getattr(defaults, option))]
        for option, value in wrong:
            text = self._refusal(option, value)
            advice = "give the option a type with its range, such as Annotated[Positive, Help(...)]"
            assert text, f"{option}={value!r} is accepted: {advice}"
            assert option in text, f"{option}={value!r} is refused without naming {option}: {text}"

    def test_accepts_parameters_groups_and_names(self) -> None:
        """Parameters, groups with a learning rate of their own and named parameters all train, also as a generator."""
        module = self.toy()
        lr = self.config(self.options).lr / 2
        groups = [{"params": [*module.conv.parameters()], "lr": lr}, {"params": module.linear.parameters(), "lr": lr}]
        forms: Mapping[str, Any] = {
            "a generator of parameters": (p for p in module.parameters()),
            "named parameters": module.named_parameters(),
            "groups": groups,
        }
        for form, params in forms.items():
            advice = f"{form}: hand params on to the optimizer as they come, and let it sort them out"
            with explained(advice):
                optimizer = self.create(params)
                found = [(len(g["params"]), g["lr"]) for g in optimizer.param_groups]  # steps may change what is there
                run = Run(module, optimizer, schedule_free=self.spec.schedule_free).train(2)
            assert run.is_finite, f"{form}: the weights are not finite after two steps"
            if form == "groups":
                assert len(found) == 2, f"{form}: 2 groups became {len(found)}; {advice}"
                assert found == [(2, lr), (2, lr)], f"{form}: (parameters, lr) of the groups became {found}; {advice}"

    def _refusal(self, option: str, value: Any) -> str:
        """The text with which a value is refused; empty if it is not."""
        parameters = list(self.toy().parameters())
        advice = f"{option}={value!r} gets past the option's type into build; give the type a range"
        with explained(advice):
            try:
                self.create(parameters, **{option: value})
            except ConfigError as error:
                return str(error)
        return ""

    def _altered(self, option: str, values: Sequence[Any]) -> list[str]:
        """Values that are others in the optimizer's groups, of an option that has its own name there."""
        found = []
        for value in (getattr(self.config(self.options), option), *values):
            with explained(f"cannot be built with {option}={value!r}, which config_type allows; {GIVE_RANGES}"):
                group = self.create(self.toy().parameters(), **{option: value}).param_groups[0]
            is_there = option in group and value is not None  # None is ours: the library has another word for it
            if is_there and _plain(group[option]) != _plain(value):
                found.append(f"{option}: {value!r} arrives as {group[option]!r}; hand it on as it is")
        return found

    def _differ(self, first: Mapping[str, Any], second: Mapping[str, Any], *, in_steps: bool = False) -> bool:
        """Whether two sets of options make two different optimizers, in what they are told or else `in_steps`."""
        with explained(
            f"cannot train with {dict(first)} or with {dict(second)}, which config_type allows; {GIVE_RANGES}"
        ):
            a, b = self.run(**first), self.run(**second)
            if not in_steps and _settings(a.optimizer) != _settings(b.optimizer):
                return True
            if _results(a.train(COMPARED_STEPS, _noise(a))) != _results(b.train(COMPARED_STEPS, _noise(b))):
                return True
            if not in_steps:
                return False
            a, b = self.run(**first), self.run(**second)  # limits of estimates show late, and on a task alone
            return bool(_results(a.train(self.steps)) != _results(b.train(self.steps)))


def _noise(run: Run) -> Callable[[], None]:
    """Makes gradients of pure noise, in place of those that point the same way in every step of a small task."""

    def replace() -> None:
        generator = torch.Generator().manual_seed(run.step_number)
        for parameter in run.module.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))

    return replace


def _settings(optimizer: torch.optim.Optimizer) -> Any:
    """What an optimizer was told: its defaults, its groups without their parameters, its public attributes."""
    told_otherwise = ("param_groups", "state", "defaults")
    attributes = {k: v for k, v in vars(optimizer).items() if k not in told_otherwise and not k.startswith("_")}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return _plain([optimizer.defaults, groups, attributes])


def _results(run: Run) -> Any:
    """What steps have led to: the weights, and the optimizer's state."""
    return _plain([run.values(), run.optimizer.state_dict()["state"]])


def _plain(value: Any) -> Any:
    """Numbers, texts and lists of them; anything else says nothing about options."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return value if isinstance(value, int | float | str | None) else "..."
