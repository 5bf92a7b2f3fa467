"""Checks of what a spec says about its optimizer."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest
import torch

from ed_train.api import create_optimizer
from ed_train.config.train_keys import Scheduler
from ed_train.specs import TrainingPlan
from ed_train.testing import metadata
from ed_train.testing.explain import explained
from ed_train.testing.subject import OptimizerUnderTest, is_here
from ed_train.testing.toy import Run

STATE_SHAPES = ((256, 512), (512,), (32, 16, 3, 3))
"""Large enough that the 2 KB of a quantization map, of which there is one for all parameters, are below 2 %."""
STATE_TOLERANCE = 0.02
SCHEDULES = get_args(Scheduler)


class DeclarationChecks(OptimizerUnderTest):
    """Checks of what a spec says about its optimizer."""

    def test_imports_nothing_heavy(self) -> None:
        """Loading the plugin imports neither torch nor its library: every command waits for it."""
        metadata.check_imports(self.registered.distribution, self.spec.library)

    def test_requires_its_library(self) -> None:
        """Who installs the plugin gets ed-train and the optimizer's library with it."""
        metadata.check_requirements(self.registered.distribution, self.spec.library)

    def test_says_what_it_is(self) -> None:
        """There is one line for ``--list-optimizers``, and the address of a publication."""
        metadata.check_summary(self.name, self.spec.summary)
        has_address = self.spec.paper.startswith(("https://", "http://"))
        assert has_address, f"paper is {self.spec.paper!r}: give the address of the publication, or of the source code"

    def test_every_option_has_help(self) -> None:
        """Every option says in one line what it does."""
        metadata.check_help(self.spec.config_type)

    def test_options_are_frozen(self) -> None:
        """The options cannot be changed after they were checked."""
        metadata.check_frozen(self.spec.config_type)

    def test_recommended_options_work(self) -> None:
        """The recommended options are valid, and steps with them end in finite weights."""
        if not self.spec.recommended:
            pytest.skip(f"{self.name} recommends nothing beyond its defaults")
        module = self.toy()
        with explained(f"recommended = {dict(self.spec.recommended)} does not work; correct it"):
            optimizer = create_optimizer(self.name, module.parameters(), **self.spec.recommended)
            run = Run(module, optimizer, schedule_free=self.spec.schedule_free).train(2)
        assert run.is_finite, f"recommended = {dict(self.spec.recommended)} gives weights that are not finite"

    def test_usual_lr_contains_the_lr(self) -> None:
        """The default learning rate and the recommended one lie in the range that is declared as usual."""
        if self.spec.usual_lr is None:
            pytest.skip(f"{self.name} declares no usual_lr")
        low, high = self.spec.usual_lr
        assert 0 < low <= high < math.inf, f"usual_lr = {self.spec.usual_lr}: give (lowest, highest), both above 0"
        default = self.spec.config_type().lr
        for origin, lr in (("default", default), ("recommended", self.spec.recommended.get("lr", default))):
            advice = "a user who leaves it would be warned; change one of them"
            assert low <= lr <= high, f"the {origin} lr {lr:g} lies outside usual_lr {low:g} to {high:g}: {advice}"

    def test_advice_is_lines(self) -> None:
        """The advice about a combination of settings is a list of lines, for any way of training."""
        if self.spec.advice is None:
            pytest.skip(f"{self.name} gives no advice")
        configs = [self.config(options) for options in ({}, self.spec.recommended, *self.configurations())]
        for config, schedule, warmup, clip in itertools.product(configs, SCHEDULES, (False, True), (None, 1.0)):
            plan = TrainingPlan(lr_scheduler=schedule, has_warmup=warmup, clip_grad_norm=clip)
            with explained(f"advice(config, plan) fails for {config} and {plan}"):
                advice: Any = self.spec.advice(config, plan)
                lines = None if isinstance(advice, str) else list(advice)
            is_lines = lines is not None and all(isinstance(x, str) and x.strip() and "\n" not in x for x in lines)
            assert is_lines, f"advice(config, plan) returned {advice!r}; return a list of lines, empty if all is well"

    def test_devices_are_known_and_work(self) -> None:
        """The declared devices exist in torch, and the optimizer steps on those that this machine has."""
        for kind in (*self.spec.devices, *self.spec.slow_on):
            with explained(f"{kind!r} in devices or slow_on is no device type of torch, such as cpu, cuda or mps"):
                torch.device(kind)
        kinds = [kind for kind in self.spec.devices or ("cpu", "cuda", "mps", "xpu") if is_here(kind)]
        if not kinds:
            pytest.skip(f"this machine has no {' or '.join(self.spec.devices)} to step on")
        for kind in kinds:
            module, advice = self.toy().to(kind), "correct it, or name the devices that work in devices = (...)"
            with explained(f"steps fail on {kind}; {advice}"):
                run = self.run(module).train(2)
            assert run.is_finite, f"steps on {kind} give weights that are not finite; {advice}"

    def test_state_bytes_are_right(self) -> None:
        """The declared size of the state is the real one, for every option."""
        if self.spec.state_bytes is None:
            pytest.skip(f"{self.name} declares no state_bytes; --plan-memory has to take steps with it")
        for options in self.configurations():
            declared, real = self._declared_bytes(options), self._real_bytes(options)
            shapes = ", ".join(map(str, STATE_SHAPES))
            assert abs(declared - real) <= STATE_TOLERANCE * real, (
                f"state_bytes says {declared:,.0f} bytes for float32 parameters of shape {shapes} with {options}, but "
                f"the state has {real:,} bytes after two steps; correct it, or give a function of (config, shape)"
            )

    def _declared_bytes(self, options: dict[str, Any]) -> float:
        declared, config = self.spec.state_bytes, self.config(options)
        if callable(declared):
            with explained(f"state_bytes(config, shape) fails with {options}"):
                return sum(float(declared(config, shape)) for shape in STATE_SHAPES)
        return float(declared or 0) * sum(map(math.prod, STATE_SHAPES))

    def _real_bytes(self, options: dict[str, Any]) -> int:
        """Bytes of all tensors in the state after two steps; memory that several of them share counts once."""
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, device=self.device)) for shape in STATE_SHAPES]
        optimizer = self.create(parameters, **options)
        Run(torch.nn.ParameterList(parameters), optimizer, schedule_free=self.spec.schedule_free)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        values = [
            v for state in optimizer.state.values() for v in (state.values() if isinstance(state, dict) else [state])
        ]
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())
