"""Checks that training goes on exactly after a checkpoint, and that the traits about steps are true."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import torch

from ed_train.testing.explain import explained
from ed_train.testing.subject import OptimizerUnderTest
from ed_train.testing.toy import Run, largest_difference

STEPS_BEFORE, STEPS_AFTER = 4, 4


class StateChecks(OptimizerUnderTest):
    """Checks that training goes on exactly after a checkpoint, and that the traits about steps are true."""

    def test_state_survives_a_file(self) -> None:
        """A saved state can be read without unpickling, and training goes on from it bit for bit."""
        run = self.run().train(STEPS_BEFORE)
        state, module = self._saved(run), copy.deepcopy(run.module)
        with explained(
            "torch.load(weights_only=True) cannot read state_dict(); keep nothing in it but tensors, numbers, texts, "
            "lists and dictionaries"
        ):
            state = _through_a_file(state)
        again = self.run(module)
        self._load_and_compare(run, again, state)

    def test_resume_equals_the_uninterrupted_run(self) -> None:
        """A new module, optimizer and schedule that load a checkpoint go on as if nothing had happened."""
        run = self.scheduled_run().train(STEPS_BEFORE)
        assert run.lr_scheduler is not None
        state = copy.deepcopy(self._saved(run))
        weights, schedule = copy.deepcopy((run.module.state_dict(), run.lr_scheduler.state_dict()))
        again = self.scheduled_run()
        assert again.lr_scheduler is not None
        again.module.load_state_dict(weights)
        again.lr_scheduler.load_state_dict(schedule)
        self._load_and_compare(run, again, state)

    def test_effective_lr_is_a_step_size(self) -> None:
        """What is logged as the learning rate is a positive number, and not lr where the optimizer finds its own."""
        if self.spec.learning_rate_free:
            advice = "return the step size of a group, such as group['d'] * group['lr']"
            assert self.spec.effective_lr is not None, f"learning_rate_free needs an effective_lr: {advice}"
        run = self.run()
        for _ in range(3):
            group = run.optimizer.param_groups[0]
            with explained("effective_lr(group) fails, before the first step or after one"):
                value: Any = self.spec.effective_lr(group) if self.spec.effective_lr else group["lr"]
            is_step_size = isinstance(value, float) and 0 < value < math.inf
            assert is_step_size, f"effective_lr(group) returned {value!r}; return a finite float above 0"
            if self.spec.learning_rate_free:
                assert value != group["lr"], (
                    f"effective_lr(group) returns lr itself ({value:g}), but learning_rate_free says that lr only "
                    "scales the step size; return the step size"
                )
            run.train(1)

    def test_schedule_free_is_declared(self) -> None:
        """An optimizer whose train() and eval() switch the weights says so, and no other does."""
        run = self.run()
        has_both = all(callable(getattr(run.optimizer, method, None)) for method in ("train", "eval"))
        if not self.spec.schedule_free:
            assert not has_both, "the optimizer has train() and eval(), which nobody calls; say schedule_free=True"
            return
        assert has_both, "schedule_free=True, but the optimizer has no train() and eval(); leave it out"
        before = run.values()
        training = run.train(STEPS_BEFORE).values()
        run.switch(training=False)
        assert largest_difference(training, run.values()) > 0, (
            "schedule_free=True, but eval() changes no weight; leave it out"
        )
        run.switch(training=True)
        self.assert_close(
            before, training, run.values(),
            "train() after eval() leaves weights that differ by up to {}; it must bring those back that trained",
        )  # fmt: skip

    @staticmethod
    def _saved(run: Run) -> dict[str, Any]:
        """The state as the trainer saves it: a schedule-free optimizer is told that training pauses."""
        run.switch(training=False)
        return run.optimizer.state_dict()

    def _load_and_compare(self, run: Run, again: Run, state: dict[str, Any]) -> None:
        """Load a state into a new run and continue both."""
        with explained("load_state_dict() of a new optimizer fails, or the steps after it do"):
            again.optimizer.load_state_dict(state)
            cast = _types(run) != _types(again)
            again.step_number = run.step_number
            for continued in (run, again):
                continued.switch(training=True)
                continued.train(STEPS_AFTER)
        difference = largest_difference(run.values(), again.values())
        types = ", and in the parameter's type: Optimizer.load_state_dict() casts the state to it" if cast else ""
        assert difference == 0, (
            f"{STEPS_AFTER} steps after loading a state the weights differ by up to {difference:.2g} from those of the "
            "uninterrupted run; keep everything that steps depend on in self.state or in the groups, not in attributes"
            f"{types}"
        )


def _types(run: Run) -> list[torch.dtype]:
    """The types of the state's tensors, parameter by parameter."""
    state = run.optimizer.state
    values = (value for p in run.module.parameters() for _, value in sorted(state.get(p, {}).items()))
    return [value.dtype for value in values if isinstance(value, torch.Tensor)]


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded
