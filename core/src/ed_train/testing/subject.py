"""What the checks of the optimizer contract share: its settings, and runs of the toy task under them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ed_train.api import create_optimizer, installed_plugins
from ed_train.config.describe import annotations_of
from ed_train.config.run import UNET, ComponentConfig
from ed_train.config.validate import validated
from ed_train.errors import ConfigError
from ed_train.registry import RegisteredOptimizer
from ed_train.specs import OptimizerSpec
from ed_train.testing.explain import explained
from ed_train.testing.option_values import other_values, zeros
from ed_train.testing.toy import Run, Toy, Values, largest_difference, make_toy
from ed_train.train.components import build_scheduler

if TYPE_CHECKING:
    from ed_train.testing.basic_checks import FirstSteps

SCHEDULE_STEPS, WARMUP_STEPS = 12, 3
FLOAT32_EPSILON = 2.0**-23
ROUNDINGS = 4
"""Of a weight itself, which movements too small to show in it are below."""


class OptimizerUnderTest:
    """The settings of `OptimizerContract`, and the runs that its checks are made of."""

    name: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    other_values: Mapping[str, Any] = MappingProxyType({})
    steps: int = 30
    loss_factor: float = 1.0
    tolerance: float = 1e-4
    device_type: str = ""

    @property
    def registered(self) -> RegisteredOptimizer:
        """The optimizer and where it comes from."""
        with explained(f"name = {self.name!r} finds no optimizer; is the plugin installed (pip install -e .)?"):
            return installed_plugins().find(self.name)

    @property
    def spec(self) -> OptimizerSpec:
        return self.registered.spec

    @property
    def device(self) -> str:
        """The device that the checks run on; skips the check if the machine has none that fits."""
        if self.device_type:
            return self.device_type
        usable = [kind for kind in self.spec.devices or ("cpu",) if is_here(kind)]
        if not usable:
            pytest.skip(f"{self.name} needs {' or '.join(self.spec.devices)}, which this machine has not")
        return usable[0]

    def config(self, options: Mapping[str, Any]) -> Any:
        """The options as an instance of config_type.

        Raises:
            ConfigError: they are not valid.
        """
        config, problems, _ = validated(self.spec.config_type, dict(options))
        if problems:
            raise ConfigError(problems)
        return config

    def toy(self, dtype: torch.dtype = torch.float32) -> Toy:
        return make_toy(self.device, dtype)

    @property
    def first_steps(self) -> FirstSteps:
        """What the plainest of steps shows; taken once for each test class."""
        from ed_train.testing.basic_checks import first_steps

        assert self.registered  # which says what to do if it is not installed
        return first_steps(type(self))  # type: ignore[arg-type]  # is hashable for all mypy says

    def create(self, params: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
        """The optimizer with the options of the test class and these; skips the check if it cannot step at all."""
        if self.first_steps.problem:
            pytest.skip("it cannot take a plain step: see test_takes_a_plain_step")
        if self.first_steps.changed:
            pytest.skip("it changes torch for all checks: see test_leaves_torch_as_it_is")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that the checks have chosen, not the author
            return create_optimizer(self.name, params, **{**self.options, **options})

    def run(self, module: torch.nn.Module | None = None, **options: Any) -> Run:
        """A run over the toy, or another module, that has not begun."""
        module = self.toy() if module is None else module
        optimizer = self.create(module.parameters(), **options)
        return Run(module, optimizer, schedule_free=self.spec.schedule_free)

    def assert_close(self, start: Values, expected: Values, found: Values, advice: str) -> None:
        """Fail unless two runs from one start came to the same weights up to rounding.

        Args:
            start: the weights that both began with.
            expected: where the first came to.
            found: where the second came to.
            advice: what the failure says, with ``{}`` for the difference.
        """
        moved = self.tolerance * largest_difference(start, expected)
        for name, values in expected.items():
            difference = (values.double() - found[name].double()).abs()
            excess = difference - moved - ROUNDINGS * FLOAT32_EPSILON * values.double().abs()
            assert bool((excess <= 0).all()), advice.format(f"{float(difference.max()):.2g}")

    def scheduled_run(self, module: torch.nn.Module | None = None) -> Run:
        """A run with a warmup and a cosine decay, as the trainer builds them, whose learning rate is never 0."""
        run = self.run(module)
        nonzero = replace(self.registered, spec=replace(self.spec, lr_may_be_zero=False))
        config = ComponentConfig(
            UNET, nonzero, self.config(self.options), "cosine", SCHEDULE_STEPS, WARMUP_STEPS, sources={}
        )
        run.lr_scheduler = build_scheduler(config, run.optimizer, SCHEDULE_STEPS)
        return run

    def variants(self, option: str) -> list[list[Any]]:
        """Other values of an option; see `option_values.other_values`."""
        if option in self.other_values:
            return [[self.other_values[option]]]
        current = getattr(self.config(self.options), option)
        return other_values(annotations_of(self.spec.config_type)[option], current)

    def configurations(self) -> Iterator[dict[str, Any]]:
        """The options of the test class, and valid variations in which one of them is another."""
        yield dict(self.options)
        defaults = self.spec.config_type()
        for option, annotation in annotations_of(self.spec.config_type).items():
            for alternatives in (*self.variants(option), zeros(annotation, getattr(defaults, option))):
                valid = ({**self.options, option: value} for value in alternatives)
                yield from [options for options in valid if self.is_valid(options)][:1]

    def is_valid(self, options: Mapping[str, Any]) -> bool:
        """Whether the options pass their own checks, and do not contradict one another."""
        return not validated(self.spec.config_type, dict(options))[1]


def is_here(kind: str) -> bool:
    """Whether this machine has a device of that type."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return kind == "cpu" or (accelerator is not None and accelerator.type == kind)
