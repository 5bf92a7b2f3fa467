"""Optimizers that do one thing wrong in their steps or in their state, and one that does everything right."""

from __future__ import annotations

import random

import torch

TINY_NORM = 2e-3


class Sgd(torch.optim.SGD):
    """SGD whose subclasses change what happens in a step, behind the closure."""

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.change()
        return loss

    def change(self):
        super().step()


class NeedsClosure(torch.optim.SGD):
    """Wants to compute the loss itself."""

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("no closure")
        return super().step(closure)


class CallsItStepSize(torch.optim.Optimizer):
    """Has no lr in its groups."""

    def __init__(self, params, lr, **options):
        super().__init__(params, {"step_size": lr})

    def step(self, closure=None):
        raise NotImplementedError


class ChangesTypes(Sgd):
    """Keeps the weights in bfloat16, to save memory."""

    def change(self):
        super().change()
        for p in [p for group in self.param_groups for p in group["params"]]:
            p.grad, p.data = None, p.data.bfloat16()


class LeavesBiasesOut(Sgd):
    """Is made for matrices, and passes over whatever has a single dimension."""

    def change(self):
        for p in [p for group in self.param_groups for p in group["params"]]:
            p.grad = p.grad if p.ndim > 1 else None
        super().change()


class SchedulesItself(Sgd):
    """Lets its learning rate fall by itself."""

    def change(self):
        super().change()
        for group in self.param_groups:
            group["lr"] *= 0.99


class KeepsDouble(Sgd):
    """Keeps a more precise average than torch loads again."""

    def change(self):
        for p in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
            average = self.state[p].setdefault("average", torch.zeros_like(p, dtype=torch.float64))
            average.mul_(0.7).add_(p.grad.double(), alpha=0.3)
            p.grad.copy_(average)
        super().change()


class DrawsElsewhere(Sgd):
    """Takes random numbers from Python, which nobody seeds."""

    def change(self):
        for p in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
            p.grad.mul_(random.uniform(0.9, 1.1))
        super().change()


class KeepsGradients(Sgd):
    """Adds all gradients up for good."""

    def zero_grad(self, set_to_none=True):
        pass


class ThawsBiases(Sgd):
    """Trains biases, frozen or not."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for p in [p for group in self.param_groups for p in group["params"] if p.dim() == 1]:
            p.requires_grad_(True)


class Seeds(Sgd):
    """Makes itself reproducible, and everything else."""

    def change(self):
        torch.manual_seed(0)
        super().change()


class MakesTorchDeterministic(Sgd):
    """Changes a setting of torch for the whole process."""

    def change(self):
        torch.use_deterministic_algorithms(True)
        super().change()


class FirstGroupForAll(Sgd):
    """Takes the learning rate of the first group for all."""

    def change(self):
        own = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = own[0]
        super().change()
        for group, lr in zip(self.param_groups, own, strict=True):
            group["lr"] = lr


class IgnoresAnOption(Sgd):
    """Has an option in its groups that no step reads."""

    option, value = "momentum", 0.9

    def change(self):
        own = [group[self.option] for group in self.param_groups]
        for group in self.param_groups:
            group[self.option] = self.value
        super().change()
        for group, value in zip(self.param_groups, own, strict=True):
            group[self.option] = value


class DecaysAlways(IgnoresAnOption):
    """Has a weight decay of its own."""

    option, value = "weight_decay", 0.01


class ClosureWithoutGradients(torch.optim.SGD):
    """Calls the closure where nothing can be differentiated."""

    def step(self, closure=None):
        with torch.no_grad():
            loss = closure() if closure else None
        super().step()
        return loss


class DividesByGradient(Sgd):
    """Divides each gradient by its largest number, without adding anything."""

    def change(self):
        for p in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
            p.grad.div_(p.grad.abs().max())
        super().change()


class NormalizesEach(Sgd):
    """Divides each gradient by its norm; a shard knows the norm of its own part alone."""

    def change(self):
        for p in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
            p.grad.div_(p.grad.norm() + 1e-8)
        super().change()


class DecaysFrozen(Sgd):
    """Decays the weights of parameters that have no gradient."""

    def change(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - 1e-3)
        super().change()


class ForgetsSchedules(Sgd):
    """Goes on with the learning rate that it was built with."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.lr_at_first = [group["lr"] for group in self.param_groups]

    def change(self):
        scheduled = [group["lr"] for group in self.param_groups]
        for group, lr in zip(self.param_groups, self.lr_at_first, strict=True):
            group["lr"] = lr
        super().change()
        for group, lr in zip(self.param_groups, scheduled, strict=True):
            group["lr"] = lr


class DividesByLr(Sgd):
    """Fails at a learning rate of 0."""

    def change(self):
        for group in self.param_groups:
            assert 1 / group["lr"] > 0
        super().change()


class RefusesSmallGradients(Sgd):
    """Fails where gradients were clipped to a small norm."""

    def change(self):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        if torch.cat(gradients).norm() < TINY_NORM:
            raise RuntimeError("the gradients have vanished")
        super().change()


class UsesGradientsOfBackward(Sgd):
    """Takes the gradients as backward leaves them, and misses what is done to them before the step."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.of_backward = {}
        for p in [p for group in self.param_groups for p in group["params"] if p.requires_grad]:
            p.register_post_accumulate_grad_hook(lambda p: self.of_backward.update({p: p.grad.clone()}))

    def change(self):
        for p, gradient in self.of_backward.items():
            p.grad = gradient
        super().change()


class KeepsLastGradientOnly(Sgd):
    """Of several backward passes before a step counts the last."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for p in [p for group in self.param_groups for p in group["params"] if p.requires_grad]:
            p.register_hook(lambda gradient, p=p: gradient if p.grad is None else gradient - p.grad)


class NormalizesGradients(Sgd):
    """Divides by the norm of all gradients together; a step over one parameter does not know the others'."""

    def change(self):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.div_(norm)
        super().change()


class ClaimsToUnscale(Sgd):
    """Tells a GradScaler that it divides by the scale itself, and does not."""

    _step_supports_amp_scaling = True

    def change(self):
        self.grad_scale = self.found_inf = None
        super().change()


class NeverSkips(Sgd):
    """Divides by a GradScaler's scale as it says, and steps over infinite gradients all the same."""

    _step_supports_amp_scaling = True

    def change(self):
        scale = getattr(self, "grad_scale", None)
        for p in [p for group in self.param_groups for p in group["params"] if scale is not None]:
            p.grad.div_(scale)
        self.grad_scale = self.found_inf = None
        super().change()


class LoadsOnlyAfterSteps(Sgd):
    """Cannot load the state of an optimizer that has not stepped yet."""

    def load_state_dict(self, state_dict):
        assert state_dict["state"][0]
        super().load_state_dict(state_dict)


class LoadsWithoutMomentum(Sgd):
    """Loses an option when it loads the state of an optimizer that has not stepped yet."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if not state_dict["state"]:
            self.param_groups[0]["momentum"] = 0


class Float32Only(Sgd):
    """Computes with numpy, which has no bfloat16."""

    def change(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.copy_(torch.from_numpy(p.grad.numpy().copy()))
        super().change()


class CastsToFloat32(Sgd):
    """Puts float32 values into parameters of any type."""

    def change(self):
        super().change()
        for p in [p for group in self.param_groups for p in group["params"]]:
            p.grad, p.data = None, p.data.float()


class ViewsAsOneRow(Sgd):
    """Takes for granted that every parameter is contiguous."""

    def change(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.view(-1).sub_(p.grad.view(-1), alpha=1e-3)
        super().change()


class PairsByStorage(Sgd):
    """Reads parameter and gradient in the order of their memory; here the parameter's alone."""

    def change(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    in_memory = torch.as_strided(p.data, (p.numel(),), (1,))
                    in_memory.sub_(p.grad.reshape(-1), alpha=group["lr"])
        super().change()


class Note:
    """Something that only unpickling can bring back."""


class KeepsAnObject(Sgd):
    """Has an object in its state that is no tensor, number or text."""

    def change(self):
        super().change()
        for state in self.state.values():
            state["note"] = Note()


class KeepsMomentumElsewhere(Sgd):
    """Has its momentum in an attribute, which is in no checkpoint."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.averages = {}

    def change(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.averages[p] = 0.9 * self.averages.get(p, 0) + p.grad
                    p.grad = self.averages[p]
        super().change()


class RemembersLr(Sgd):
    """Scales its momentum by changes of lr, and has the last lr in an attribute, which is in no checkpoint."""

    last_lr = 0.0

    def change(self):
        lr = self.param_groups[0]["lr"]
        if self.last_lr:
            for state in self.state.values():
                state["momentum_buffer"].mul_(lr / self.last_lr)
        self.last_lr = lr
        super().change()


class Switches(Sgd):
    """Has train() and eval(), between which the weights differ."""

    def eval(self):
        self._shift(-1)

    def train(self):
        self._shift(1)

    def _shift(self, sign):
        mode = sign > 0
        if getattr(self, "mode", True) != mode:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(sign * 0.125)
        self.mode = mode


class SwitchesNothing(Sgd):
    """Has train() and eval(), which do nothing."""

    def eval(self):
        pass

    def train(self):
        pass


class ScheduleFreeSgd(torch.optim.Optimizer):
    """Steps from the average of all earlier points, and is right in everything.

    With z the point of plain SGD and x the average of all z, gradients are taken at y = 0.9 x + 0.1 z. `eval` puts x
    into the parameters, `train` puts y there.
    """

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "count": 0, "training": True})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(z=p.clone(), x=p.clone())
                state["z"].sub_(p.grad, alpha=group["lr"])
                state["x"].lerp_(state["z"], 1 / group["count"])
                p.copy_(self._training_point(state))
        return loss

    @staticmethod
    def _training_point(state):
        return torch.lerp(state["z"], state["x"], 0.9)

    def eval(self):
        self._put(training=False)

    def train(self):
        self._put(training=True)

    @torch.no_grad()
    def _put(self, training):
        for group in self.param_groups:
            for p in group["params"]:
                if self.state[p] and group["training"] != training:
                    p.copy_(self._training_point(self.state[p]) if training else self.state[p]["x"])
            group["training"] = training
