"""Checks that the optimizer trains in every way in which ed-train, or a loop of somebody's own, may use it."""

from __future__ import annotations

import copy

import torch
from torch.nn.utils import clip_grad_norm_

from ed_train.testing.explain import explained
from ed_train.testing.subject import OptimizerUnderTest
from ed_train.testing.toy import Run, Values, are_equal, largest_difference, toy_loss

COMPARED_STEPS = 4
SMALL_NORM = 1e-3


class TrainingChecks(OptimizerUnderTest):
    """Checks that the optimizer trains in every way in which ed-train, or a loop of somebody's own, may use it."""

    def test_lowers_a_loss(self) -> None:
        """After some steps the loss of the toy task is lower, and every parameter has moved."""
        with explained("training the toy task fails"):
            run = self.run()
            before, weights = run.loss(), run.values()
            after = run.train(self.steps).loss()
        wanted = self.loss_factor * before
        assert after < wanted, (
            f"the loss goes from {before:.6g} to {after:.6g} in {self.steps} steps, not below {wanted:.6g}; if it only "
            "needs another learning rate or more steps here, set options = {'lr': ...} or steps = ..."
        )
        still = [name for name, value in run.values().items() if torch.equal(value, weights[name])]
        assert not still, (
            f"{', '.join(still)} got gradients in {self.steps} steps and did not change, which no user would see; "
            "train every parameter that has a gradient, those with a single dimension too"
        )

    def test_frozen_parameters_stay(self) -> None:
        """A parameter without a gradient keeps its values to the last bit, whatever weight decay there is."""
        module = self.toy()
        module.conv.weight.requires_grad_(False)
        module.register_parameter("unused", torch.nn.Parameter(torch.ones(5, device=self.device)))
        before = Run(module, torch.optim.SGD(module.parameters())).values()
        with explained("parameters without a gradient make a step fail; skip those whose .grad is None"):
            after = self.run(module).train(3).values()
        for name, kind in (("conv.weight", "does not require a gradient"), ("unused", "has no gradient")):
            unchanged = torch.equal(before[name], after[name])
            assert unchanged, f"a parameter that {kind} changes; skip parameters whose .grad is None"
        assert not torch.equal(before["linear.weight"], after["linear.weight"]), (
            "beside a frozen parameter the others do not train; go on to the next parameter where .grad is None"
        )

    def test_follows_a_learning_rate_schedule(self) -> None:
        """A schedule that changes lr in the groups, as torch's and diffusers' do, changes the steps; no step does."""
        with explained("training with a warmup and a cosine decay fails"):
            scheduled = self.scheduled_run().train(COMPARED_STEPS)
        assert scheduled.is_finite, "with a warmup and a cosine decay the weights are not finite"
        constant = self.run()
        given = [group["lr"] for group in constant.optimizer.param_groups]
        constant.train(COMPARED_STEPS)
        assert not are_equal(scheduled, constant), "a schedule changes nothing; read group['lr'] in every step"
        left = [group["lr"] for group in constant.optimizer.param_groups]
        assert left == given, (
            f"steps change lr in the groups from {given} to {left}, over what a schedule has set; keep a factor of "
            "your own under another name"
        )

    def test_a_learning_rate_of_zero_works(self) -> None:
        """A schedule may begin and end at 0, unless the spec says that it must not."""
        run = self.run()
        usual = [group["lr"] for group in run.optimizer.param_groups]
        error: Exception | None = None
        try:
            for factor in (0, 0, 1, 1, 0, 0, 1):
                for group, lr in zip(run.optimizer.param_groups, usual, strict=True):
                    group["lr"] = factor * lr
                run.train(1)
        except Exception as raised:
            error = raised
        works = error is None and run.is_finite
        if self.spec.lr_may_be_zero:
            what = f"({type(error).__name__}: {error})" if error else "(the weights are not finite)"
            assert works, f"a step at a learning rate of 0 fails; correct it, or say lr_may_be_zero=False {what}"
        else:
            assert not works, "steps at a learning rate of 0 work; leave lr_may_be_zero=False out"

    def test_works_with_gradient_clipping(self) -> None:
        """A step uses the gradients that it finds, not those that backward computed."""
        clipped = self.run()
        with explained(f"training with clip_grad_norm_(parameters, {SMALL_NORM}) fails"):
            clipped.train(COMPARED_STEPS, lambda: clip_grad_norm_(clipped.module.parameters(), SMALL_NORM))
        assert clipped.is_finite, f"with clip_grad_norm_(parameters, {SMALL_NORM}) the weights are not finite"
        given = self.run()
        for _ in range(COMPARED_STEPS):
            elsewhere = copy.deepcopy(given.module)
            elsewhere.zero_grad()
            torch.autograd.backward(toy_loss(elsewhere))
            clip_grad_norm_(elsewhere.parameters(), SMALL_NORM)
            for parameter, other in zip(given.module.parameters(), elsewhere.parameters(), strict=True):
                parameter.grad = other.grad
            given.step()
        assert are_equal(clipped, given), (
            "clipping changes something else than the gradients that a step uses; "
            "leave backward alone and read .grad in step()"
        )

    def test_works_with_gradient_accumulation(self) -> None:
        """Two backward passes of half a loss before a step are as good as one of the whole."""
        whole, halves = self.run(), self.run()
        with explained("two backward passes before a step make training fail"):
            whole.train(COMPARED_STEPS)
            for _ in range(COMPARED_STEPS):
                halves.optimizer.zero_grad()
                for _ in range(2):
                    torch.autograd.backward(toy_loss(halves.module) / 2)
                halves.step()
        assert are_equal(whole, halves), (
            "two backward passes of half a loss and a step differ from one of the whole; "
            "leave backward alone and read the sum in .grad in step()"
        )

    def test_accepts_a_closure(self) -> None:
        """`step(closure)`, as some loops call it, takes the same step and returns the loss."""
        plain, run = self.run().train(1), self.run()
        losses: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            run.optimizer.zero_grad()
            losses.append(toy_loss(run.module))
            torch.autograd.backward(losses[-1])
            return losses[-1]

        advice = "call closure() under torch.enable_grad() before anything else in step(), and return its loss"
        torch.manual_seed(0)  # as the first step of a run
        with explained(f"step(closure) fails; {advice}"):
            returned = run.optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and returns a tensor
        assert len(losses) == 1 and returned is not None, f"step(closure) does not return the loss; {advice}"  # noqa: PT018  # one fault, one advice
        assert are_equal(plain, run), f"step(closure) differs from backward() and step(); {advice}"

    def test_a_gradient_of_zeros_does_no_harm(self) -> None:
        """A parameter that the loss does not depend on for a while leaves the weights finite."""
        run, advice = self.run(), "add epsilon where the size of a gradient is divided by"
        first = next(run.module.parameters())
        with explained(f"a step with a gradient of zeros fails; {advice}"):
            run.train(2, lambda: first.grad.zero_() if first.grad is not None else None)
        assert run.is_finite, f"a parameter whose gradient is zeros makes weights that are not finite; {advice}"

    def test_works_with_a_gradient_scaler(self) -> None:
        """A GradScaler's scale has no effect on the weights, and it can skip a step."""
        plain, scaled = self.run(), self.run()
        start = plain.values()
        scaler = torch.amp.GradScaler(torch.device(self.device).type, init_scale=2.0**10)

        def step(factor: float) -> None:
            torch.manual_seed(scaled.step_number)
            scaled.optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(toy_loss(scaled.module) * factor))
            scaler.step(scaled.optimizer)
            scaler.update()
            scaled.step_number += 1

        with explained("training with torch.amp.GradScaler fails"):
            plain.train(COMPARED_STEPS)
            for _ in range(COMPARED_STEPS):
                step(1.0)
        self.assert_close(
            start, plain.values(), scaled.values(),
            "with torch.amp.GradScaler the weights differ by up to {}; "
            "declare _step_supports_amp_scaling only if step() divides by grad_scale itself",
        )  # fmt: skip
        before = scaled.values()
        with explained("torch.amp.GradScaler cannot skip a step"):
            step(float("inf"))
        assert largest_difference(before, scaled.values()) == 0, (
            "a step that torch.amp.GradScaler skips, over infinite gradients, changes weights"
        )

    def test_works_with_accelerate(self) -> None:
        """Accelerator.prepare, which moves and reloads the optimizer's state, changes nothing."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        plain, run = self.scheduled_run().train(COMPARED_STEPS), self.scheduled_run()
        AcceleratorState._reset_state(reset_partial_state=True)  # of whatever ran in this process before
        accelerator = Accelerator(cpu=self.device == "cpu", mixed_precision="no")
        try:
            with explained("training after Accelerator.prepare(module, optimizer, lr_scheduler) fails"):
                module, optimizer, scheduler = accelerator.prepare(run.module, run.optimizer, run.lr_scheduler)
                run.switch(training=True)
                for number in range(COMPARED_STEPS):
                    torch.manual_seed(number)
                    optimizer.zero_grad()
                    accelerator.backward(toy_loss(module))
                    optimizer.step()
                    scheduler.step()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        assert are_equal(plain, run), (
            "training after Accelerator.prepare differs from training without it; it calls "
            "load_state_dict(state_dict()) before the first step, which must change nothing"
        )

    def test_trains_bfloat16_parameters(self) -> None:
        """Parameters in bfloat16 move, stay finite and stay in bfloat16."""
        module = self.toy(torch.bfloat16)
        run = self.run(module)
        before = run.values()
        with explained("a step over bfloat16 parameters fails; compute in float32 inside step() if need be"):
            after = run.train(COMPARED_STEPS).values()
        self._assert_trained(run, before, after, "bfloat16")
        kept = all(p.dtype == torch.bfloat16 for p in module.parameters())
        assert kept, "bfloat16 parameters have another type after a step; write into them with copy_ or add_"

    def test_trains_channels_last_parameters(self) -> None:
        """Parameters in the memory format channels_last get the same values as others from the same gradients."""
        usual, run = self.run(), self.run(self.toy().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        before = run.values()

        def hand_over_gradients() -> None:
            for parameter, other in zip(run.module.parameters(), usual.module.parameters(), strict=True):
                parameter.grad = torch.empty_like(parameter).copy_(other.grad)  # type: ignore[arg-type]  # there is one
            run.step()

        with explained("a step over channels_last parameters fails; use reshape or flatten instead of view"):
            usual.train(COMPARED_STEPS, hand_over_gradients)
        self._assert_trained(run, before, run.values(), "channels_last")
        self.assert_close(
            before, usual.values(), run.values(),
            "channels_last parameters differ by up to {} from others with the same gradients; "
            "a parameter, its gradient and its state may lie in memory differently: never pair them by their storage",
        )  # fmt: skip

    @staticmethod
    def _assert_trained(run: Run, before: Values, after: Values, kind: str) -> None:
        assert run.is_finite, f"{kind} parameters are not finite after {COMPARED_STEPS} steps"
        moves = any(not torch.equal(before[name], after[name]) for name in before)
        assert moves, (
            f"no {kind} parameter moves in {COMPARED_STEPS} steps, not even from 0; "
            "if the steps are only too small for them here, set options = {'lr': ...}"
        )
