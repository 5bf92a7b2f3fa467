"""What the trainer adds to a hand-written loop, in counts that do not depend on how fast or busy the machine is.

The same model takes a step over the same batch in a minimal loop and in the trainer. The difference in torch operators,
in Python calls and in waits for the device has a bound here; seconds are measured by benchmarks/run.py.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from ed_train.train import step as step_module
from ed_train.train.step import train_step
from ed_train.train.train import after_step
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Bound(NamedTuple):
    """So many more than in the minimal loop: of each step, of each batch in it."""

    step: int
    batch: int


# Measured: 24 operators and 179 calls for one batch, 25 and 199 for two.
OPERATORS = Bound(step=23, batch=2)
"""Operators of torch, those of the backward pass included."""
CALLS = Bound(step=165, batch=22)
"""Python calls, of any module."""
READS_OF_A_BATCH = 1
"""Values that are read on a CPU, where that is free: whether the loss is finite. For the gradients a list is read."""
READS_OF_A_GPU = 0
"""Waits for the device between two log points."""
ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


class Operators(TorchDispatchMode):
    """Counts torch operators, those of backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        """How often the program waited for a value: by ``item()``, ``bool()``, ``float()`` and the like."""
        return self.counts["_local_scalar_dense"]


class Copies(TorchFunctionMode):
    """Counts copies to a device, begun by the trainer itself, that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to_a_device = any(isinstance(a, torch.device) for a in (*args, *(kwargs or {}).values()))
        ours = "/ed_train/" in sys._getframe(1).f_code.co_filename
        if ours and func is torch.Tensor.to and to_a_device and not (kwargs or {}).get("non_blocking"):
            self.waiting += 1
        return func(*args, **(kwargs or {}))


def calls_of(action: Callable[[], Any]) -> int:
    """Python functions that are called in this thread."""
    count = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.fixture
def session(make_session, write_optimizer) -> Any:
    write_optimizer(ADAMW)
    return make_session(log_step=1000, max_epochs=1000)


def trainer(session: Any, window: Any) -> Callable[[], None]:
    """A step of the trainer, with everything that it does between two steps."""
    return lambda: after_step(session, train_step(session, window), 0)


def minimal_loop(session: Any, window: Any) -> Callable[[], None]:
    """A step of benchmarks/floor.py's loop."""
    from diffusers import DDPMScheduler

    unet, text_encoder = copy.deepcopy(session.components[0].module), copy.deepcopy(session.components[1].module)
    schedule = DDPMScheduler.from_config(session.model.scheduler_config())
    optimizer = torch.optim.AdamW([*unet.parameters(), *text_encoder.parameters()], lr=1e-3, fused=True)

    def step() -> None:
        for batch in window:
            mean, std = batch.latents_mean, batch.latents_std
            latents = (mean + std * torch.randn_like(mean)) * 0.18215
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(mean),))
            noisy = schedule.add_noise(latents, noise, timesteps)
            prediction = unet(noisy, timesteps, text_encoder(batch.token_ids)[0]).sample
            loss = F.mse_loss(prediction, noise)
            torch.autograd.backward(loss / len(window) if len(window) > 1 else loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def test_a_step_has_few_operators_and_calls_more_than_a_minimal_loop(session) -> None:
    batches = next(session.windows()) * 2
    for window in (batches[:1], batches):
        counts, calls = [], []
        for action in (trainer(session, window), minimal_loop(session, window)):
            action()  # the first one makes the optimizer's state
            with Operators() as operators:
                action()
            counts.append(operators.counts)
            calls.append(calls_of(action))
        assert operators.reads == 0, "the minimal loop waits for nothing"
        assert counts[0].total() - counts[1].total() <= allowed(OPERATORS, window), counts[0] - counts[1]
        assert calls[0] - calls[1] <= allowed(CALLS, window)


def allowed(bound: Bound, window: Any) -> int:
    return bound.step + bound.batch * len(window)


def test_little_is_read_on_a_cpu_and_nothing_on_a_gpu_between_log_points(session, monkeypatch) -> None:
    """The step that a GPU gets, on a CPU: the loss is not looked at, and optimizers are told by a tensor."""
    step = trainer(session, next(session.windows()))
    with Operators() as operators:
        step()
    assert operators.reads == READS_OF_A_BATCH
    monkeypatch.setattr(step_module, "_may_look_at", lambda loss, session: False)
    session.unread = True
    for limit in (None, 1.0):
        session.run = replace(session.run, train=replace(session.run.train, clip_grad_norm=limit))
        with Operators() as operators, Copies() as copies:
            step()
        assert operators.reads == READS_OF_A_GPU
        assert copies.waiting == 0
