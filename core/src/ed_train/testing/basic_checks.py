"""Checks of what every training loop takes for granted; where they fail, no other check could say anything."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from ed_train.api import create_optimizer
from ed_train.testing.explain import explained
from ed_train.testing.subject import OptimizerUnderTest
from ed_train.testing.toy import Run, are_equal, largest_difference, toy_loss

NEEDS_MORE = (
    "ed-train calls backward() once and then step() without arguments: an optimizer that needs a closure, second "
    "derivatives or the module cannot be offered"
)


class BasicChecks(OptimizerUnderTest):
    """Checks of what every training loop takes for granted."""

    def test_takes_a_plain_step(self) -> None:
        """After a backward pass `step()` takes a step, which comes out the same again, and `zero_grad()` works.

        Where this fails, the checks that train are skipped.
        """
        assert not self.first_steps.problem, self.first_steps.problem

    def test_building_changes_nothing(self) -> None:
        """An optimizer that has not stepped leaves weights, their types and what is frozen as they were."""
        module = self.toy()
        for frozen in (module.conv.weight, module.linear.bias):
            frozen.requires_grad_(False)
        before, kinds = Run(module, torch.optim.SGD(module.parameters())).values(), _kinds(module)
        self.create(module.parameters())
        advice = "build makes the optimizer and changes nothing else"
        assert _kinds(module) == kinds, f"building changes {_changed(kinds, _kinds(module))}: {advice}"
        difference = largest_difference(before, {name: p.detach() for name, p in module.named_parameters()})
        assert difference == 0, f"building changes weights, by up to {difference:.2g}: {advice}"

    def test_leaves_torch_as_it_is(self) -> None:
        """Building and stepping neither seed torch's random numbers nor change its settings for everyone else."""
        changed = self.first_steps.changed
        assert not changed, f"building or stepping changes {', '.join(changed)} for the whole process; put it back"
        states = []
        for seed in (1, 2):
            run = self.run()
            torch.manual_seed(seed)
            torch.autograd.backward(toy_loss(run.module))
            run.optimizer.step()
            self.create(self.toy().parameters())
            states.append(torch.get_rng_state())
        assert not torch.equal(*states), (
            "building or stepping seeds torch's random numbers, and so those of everything else that is trained; "
            "use a torch.Generator of your own"
        )


@dataclass(frozen=True)
class FirstSteps:
    """What the first steps of a test class showed.

    Attributes:
        problem: what keeps the optimizer from the plainest of steps; empty if nothing does.
        changed: settings of torch that were others afterwards.
    """

    problem: str
    changed: tuple[str, ...]


@functools.cache  # torch's settings change only once
def first_steps(case_type: type[OptimizerUnderTest]) -> FirstSteps:
    """Take steps in the plainest of loops, twice."""
    case, problem = case_type(), ""
    before = _settings_of_torch()
    try:
        runs = [_plain_steps(case) for _ in range(2)]
    except AssertionError as error:
        problem = str(error)
    after = _settings_of_torch()
    changed = tuple(name for name in before if before[name] != after[name])
    if not problem and not changed and not are_equal(*runs):
        problem = (
            "two runs with the same seeds come to different weights, so that no resume can be exact; draw random "
            "numbers from torch alone, whose state is saved and seeded"
        )
    return FirstSteps(problem, changed)


def _plain_steps(case: OptimizerUnderTest) -> Run:
    """Two steps in the plainest of loops.

    Raises:
        AssertionError: they fail, and why.
    """
    module = case.toy()
    kinds = _kinds(module)
    options = "".join(f", {name}={value!r}" for name, value in case.options.items())
    with explained(f"create_optimizer({case.name!r}, params{options}) does not work"):
        optimizer = create_optimizer(case.name, module.parameters(), **case.options)
    run = Run(module, optimizer, schedule_free=case.spec.schedule_free)
    with explained(f"a backward pass and a step fail; {NEEDS_MORE}"):
        run.train(2)
    assert _kinds(module) == kinds, (
        f"a step changes {_changed(kinds, _kinds(module))}; write into parameters with copy_ or add_, and leave "
        "their type, shape and requires_grad alone"
    )
    optimizer.zero_grad()
    left = any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert not left, "zero_grad() leaves gradients behind, which the next step would add to its own"
    return run


def _kinds(module: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    """All but the values of each parameter."""
    return {n: (p.dtype, p.shape, p.device, p.requires_grad) for n, p in module.named_parameters()}


def _changed(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> str:
    what = ("type", "shape", "device", "requires_grad")
    name = next(name for name in before if before[name] != after[name])
    pairs = zip(what, before[name], after[name], strict=True)
    return f"{name}: " + ", ".join(f"{kind} from {old} to {new}" for kind, old, new in pairs if old != new)


def _settings_of_torch() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "whether torch computes gradients": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "whether torch's algorithms are deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of float32 products": torch.get_float32_matmul_precision(),
    }
