"""Optimizers that do one thing wrong in their steps or in their state, and one that does everything right."""

from __future__ import annotations

import torch

TINY_NORM = 2e-3


class DecaysFrozen(torch.optim.SGD):
    """Decays the weights of parameters that have no gradient."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - 1e-3)
        return super().step(closure)


class ForgetsSchedules(torch.optim.SGD):
    """Goes on with the learning rate that it was built with."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.lr_at_first = options["lr"]

    def step(self, closure=None):
        scheduled = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self.lr_at_first
        super().step(closure)
        for group, lr in zip(self.param_groups, scheduled, strict=True):
            group["lr"] = lr


class DividesByLr(torch.optim.SGD):
    """Fails at a learning rate of 0."""

    def step(self, closure=None):
        for group in self.param_groups:
            assert 1 / group["lr"] > 0
        return super().step(closure)


class RefusesSmallGradients(torch.optim.SGD):
    """Fails where gradients were clipped to a small norm."""

    def step(self, closure=None):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        if torch.cat(gradients).norm() < TINY_NORM:
            raise RuntimeError("the gradients have vanished")
        return super().step(closure)


class UsesGradientsOfBackward(torch.optim.SGD):
    """Takes the gradients as backward leaves them, and misses what is done to them before the step."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.of_backward = {}
        for p in [p for group in self.param_groups for p in group["params"] if p.requires_grad]:
            p.register_post_accumulate_grad_hook(lambda p: self.of_backward.update({p: p.grad.clone()}))

    def step(self, closure=None):
        for p, gradient in self.of_backward.items():
            p.grad = gradient
        return super().step(closure)


class KeepsLastGradientOnly(torch.optim.SGD):
    """Of several backward passes before a step counts the last."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for p in [p for group in self.param_groups for p in group["params"] if p.requires_grad]:
            p.register_hook(lambda gradient, p=p: gradient if p.grad is None else gradient - p.grad)


class NormalizesGradients(torch.optim.SGD):
    """Divides by the norm of all gradients together; a step over one parameter does not know the others'."""

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.div_(norm)
        return super().step(closure)


class ClaimsToUnscale(torch.optim.SGD):
    """Tells a GradScaler that it divides by the scale itself, and does not."""

    _step_supports_amp_scaling = True

    def step(self, closure=None):
        self.grad_scale = self.found_inf = None
        return super().step(closure)


class NeverSkips(torch.optim.SGD):
    """Divides by a GradScaler's scale as it says, and steps over infinite gradients all the same."""

    _step_supports_amp_scaling = True

    def step(self, closure=None):
        scale = getattr(self, "grad_scale", None)
        for p in [p for group in self.param_groups for p in group["params"] if scale is not None]:
            p.grad.div_(scale)
        self.grad_scale = self.found_inf = None
        return super().step(closure)


class LoadsOnlyAfterSteps(torch.optim.SGD):
    """Cannot load the state of an optimizer that has not stepped yet."""

    def load_state_dict(self, state_dict):
        assert state_dict["state"][0]
        super().load_state_dict(state_dict)


class LoadsWithoutMomentum(torch.optim.SGD):
    """Loses an option when it loads the state of an optimizer that has not stepped yet."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if not state_dict["state"]:
            self.param_groups[0]["momentum"] = 0


class Float32Only(torch.optim.SGD):
    """Computes with numpy, which has no bfloat16."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.copy_(torch.from_numpy(p.grad.numpy().copy()))
        return super().step(closure)


class CastsToFloat32(torch.optim.SGD):
    """Puts float32 values into parameters of any type."""

    def step(self, closure=None):
        super().step(closure)
        for p in [p for group in self.param_groups for p in group["params"]]:
            p.grad, p.data = None, p.data.float()


class ViewsAsOneRow(torch.optim.SGD):
    """Takes for granted that every parameter is contiguous."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.view(-1).sub_(p.grad.view(-1), alpha=1e-3)
        return super().step(closure)


class PairsByStorage(torch.optim.SGD):
    """Reads parameter and gradient in the order of their memory; here the parameter's alone."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    in_memory = torch.as_strided(p.data, (p.numel(),), (1,))
                    in_memory.sub_(p.grad.reshape(-1), alpha=group["lr"])
        return super().step(closure)


class Note:
    """Something that only unpickling can bring back."""


class KeepsAnObject(torch.optim.SGD):
    """Has an object in its state that is no tensor, number or text."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["note"] = Note()


class KeepsMomentumElsewhere(torch.optim.SGD):
    """Has its momentum in an attribute, which is in no checkpoint."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.averages = {}

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.averages[p] = 0.9 * self.averages.get(p, 0) + p.grad
                    p.grad = self.averages[p]
        return super().step(closure)


class RemembersLr(torch.optim.SGD):
    """Scales its momentum by changes of lr, and has the last lr in an attribute, which is in no checkpoint."""

    last_lr = 0.0

    def step(self, closure=None):
        lr = self.param_groups[0]["lr"]
        if self.last_lr:
            for state in self.state.values():
                state["momentum_buffer"].mul_(lr / self.last_lr)
        self.last_lr = lr
        return super().step(closure)


class Switches(torch.optim.SGD):
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


class SwitchesNothing(torch.optim.SGD):
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
