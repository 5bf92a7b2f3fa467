"""Checks of steps over a part: groups with options of their own, one parameter at a time, shards of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ed_train.parameters import narrowed
from ed_train.testing.explain import explained
from ed_train.testing.subject import OptimizerUnderTest
from ed_train.testing.toy import Run, largest_difference, toy_loss

COMPARED_STEPS = 4
SHARDED_SHAPES = ((64, 32, 3, 3), (128, 96), (64,))
"""Halves of these are whole blocks of 8-bit states, and so large that their state is kept in 8 bits."""
LARGE_DECAY = 100.0
"""Shows in float32 weights after one step at a learning rate of 1e-8."""


class GroupChecks(OptimizerUnderTest):
    """Checks of steps over a part: groups with options of their own, one parameter at a time, shards of tensors."""

    def test_groups_have_options_of_their_own(self) -> None:
        """A learning rate and a weight decay that one group has alone change the steps of that group."""
        lr = self.config(self.options).lr
        ways = {"lr": lr / 3, "weight_decay": LARGE_DECAY}
        if self.spec.learning_rate_free:
            del ways["lr"]  # one estimate is behind all groups, and libraries refuse different factors of it
        known = self.create(self.toy().parameters()).defaults
        usual = self._second_group({})
        for key, value in ((key, value) for key, value in ways.items() if key in known):
            changed = self._second_group({key: value})
            assert not torch.equal(usual, changed), (
                f"{key}={value:g} in the second parameter group changes nothing in its steps; "
                f"read group[{key!r}] of each group in step()"
            )

    def _second_group(self, own: dict[str, Any]) -> Tensor:
        """The weights of the second of two groups after some steps."""
        module = self.toy()
        groups = [{"params": list(module.conv.parameters())}, {"params": list(module.linear.parameters()), **own}]
        try:
            optimizer = self.create(groups)
        except Exception:  # whatever the library makes of groups
            optimizer = None
        if optimizer is None or len(optimizer.param_groups) != len(groups):
            pytest.skip("it does not take groups: see test_accepts_parameters_groups_and_names")
        with explained(f"training two parameter groups, the second with {own or 'no options of its own'}, fails"):
            Run(module, optimizer, schedule_free=self.spec.schedule_free).train(COMPARED_STEPS)
        return module.linear.weight.detach()

    def test_steps_parameter_by_parameter(self) -> None:
        """Steps over one parameter at a time come to what steps over all come to, if the spec says `per_parameter`."""
        if not self.spec.per_parameter:
            pytest.skip(f"{self.name} does not say per_parameter=True; optimizer_in_backward is refused with it")
        together, apart = self.run(), self.run()
        together.train(COMPARED_STEPS)
        with explained("a step over one parameter fails while the others are out of the groups"):
            for _ in range(COMPARED_STEPS):
                apart.optimizer.zero_grad()
                torch.autograd.backward(toy_loss(apart.module))
                for parameter in reversed(list(apart.module.parameters())):  # as backward brings their gradients
                    with narrowed(apart.optimizer, [parameter]):
                        torch.manual_seed(apart.step_number)
                        apart.optimizer.step()
                apart.step_number += 1
        difference = largest_difference(together.values(), apart.values())
        assert difference == 0, (
            f"steps over one parameter at a time differ by up to {difference:.2g} from steps over all; keep what a "
            "step needs in the state of each parameter, or leave per_parameter=True out"
        )

    def test_steps_shard_by_shard(self) -> None:
        """Two optimizers, each over half of every tensor, come to what one over all comes to, if `shardable`."""
        if not self.spec.shardable:
            pytest.skip(f"{self.name} says shardable=False; FSDP is refused with it")
        generator = torch.Generator().manual_seed(0)
        start = [torch.randn(shape, generator=generator) for shape in SHARDED_SHAPES]
        steps = [[torch.randn(shape, generator=generator) for shape in SHARDED_SHAPES] for _ in range(COMPARED_STEPS)]
        with explained("steps over halves of tensors fail; say shardable=False"):
            whole = self._stepped(start, steps)
            shards = [self._stepped(_half(start, i), [_half(g, i) for g in steps]) for i in range(2)]
        joined = [torch.cat(halves) for halves in zip(*shards, strict=True)]
        before, after, other = ({str(i): t for i, t in enumerate(tensors)} for tensors in (start, whole, joined))
        self.assert_close(
            before, after, other,
            "steps over halves of tensors differ by up to {} from steps over the whole: they need whole tensors, or "
            "numbers over all parameters, which a shard does not have; say shardable=False",
        )  # fmt: skip

    def _stepped(self, start: Sequence[Tensor], steps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Where an optimizer comes to over these parameters with these gradients."""
        parameters = [torch.nn.Parameter(tensor.to(self.device, copy=True)) for tensor in start]
        optimizer = self.create(parameters)
        run = Run(torch.nn.ParameterList(parameters), optimizer, schedule_free=self.spec.schedule_free)
        for gradients in steps:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.to(self.device)
            run.step()
        return [p.detach().cpu() for p in parameters]


def _half(tensors: Sequence[Tensor], index: int) -> list[Tensor]:
    """The first or the second half of each, as FSDP divides them."""
    return [tensor.chunk(2)[index].clone() for tensor in tensors]
