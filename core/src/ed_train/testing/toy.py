"""The task of the optimizer contract: a convolution and a linear layer that learn a fixed regression.

The convolution has 4,608 weights: bitsandbytes keeps the state of anything below 4,096 in 32 bits, and channels_last
says something about convolutions only. The biases begin at 0, where even a tiny update shows in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler

Values: TypeAlias = "dict[str, torch.Tensor]"
CHANNELS, FEATURES, OUTPUTS, SIZE, BATCH = 16, 32, 8, 6, 8


class Toy(torch.nn.Module):
    """Pictures of shape (batch, 16, height, width) to numbers of shape (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(CHANNELS, FEATURES, 3, padding=1)
        self.linear = torch.nn.Linear(FEATURES, OUTPUTS)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.silu(self.conv(pictures)).mean(dim=(2, 3))
        outputs: torch.Tensor = self.linear(features)
        return outputs


def make_toy(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Toy:
    """The toy with its initial weights, which are always the same."""
    torch.backends.cudnn.deterministic = True  # runs are compared bit for bit, on a GPU too
    generator = torch.Generator().manual_seed(0)
    toy = Toy()
    with torch.no_grad():
        for parameter in toy.parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return toy.to(device, dtype)


def toy_loss(module: torch.nn.Module) -> torch.Tensor:
    """Mean squared error on the one batch that the toy learns."""
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=generator)
    target = torch.randn(BATCH, OUTPUTS, generator=generator)
    outputs = module(pictures.to(parameter))
    return torch.nn.functional.mse_loss(outputs, target.to(parameter))


class Run:
    """A module in training: as little of a loop as there can be.

    Attributes:
        module: what trains on `toy_loss`.
        schedule_free: whether the optimizer has to be told when training begins and ends.
        step_number: steps so far. It seeds each step, so that stochastic rounding does not depend on what ran before.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: LRScheduler | None = None,
        *,
        schedule_free: bool = False,
    ) -> None:
        self.module, self.optimizer, self.lr_scheduler = module, optimizer, lr_scheduler
        self.schedule_free = schedule_free
        self.step_number = 0
        self.switch(training=True)

    def train(self, steps: int, before_step: Callable[[], object] = lambda: None) -> Run:
        """Take so many steps; `before_step` is called between backward and step. Returns the run itself."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            torch.autograd.backward(toy_loss(self.module))
            before_step()
            self.step()
        return self

    def step(self) -> None:
        """One step of the optimizer and of its schedule, with the gradients that are there."""
        torch.manual_seed(self.step_number)
        self.optimizer.step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.step_number += 1

    def switch(self, *, training: bool) -> None:
        """Tell a schedule-free optimizer that training begins or ends, as the core does."""
        method = getattr(self.optimizer, "train" if training else "eval", None)
        if self.schedule_free and method is not None:
            method()

    def loss(self) -> float:
        """The loss of the weights that would be saved now."""
        self.switch(training=False)
        with torch.no_grad():
            loss = toy_loss(self.module).item()
        self.switch(training=True)
        return loss

    def values(self) -> Values:
        """Copies of all parameters."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    @property
    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.module.parameters())


def are_equal(a: Run, b: Run) -> bool:
    """Whether two runs have arrived at the same weights, bit for bit."""
    return largest_difference(a.values(), b.values()) == 0


def largest_difference(a: Values, b: Values) -> float:
    """The largest difference between a weight and its counterpart; infinite if one of them is not finite."""
    largest = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    return largest if math.isfinite(largest) else math.inf
