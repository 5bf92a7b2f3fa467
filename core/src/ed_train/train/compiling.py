"""The UNet through torch.compile, if train.json says so; as it is, with a line that says why, if that does not work."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ed_train.config.run import UNET
from ed_train.train.step import forward_loss

if TYPE_CHECKING:
    from ed_train.config.run import RunConfig
    from ed_train.data.loader import Batch
    from ed_train.train.session import Session


def compile_notes(run: RunConfig, device: torch.device) -> list[str]:
    """What the user should know of ``compile``; empty if it is off."""
    if not run.train.compile:
        return []
    if UNET not in run.components:
        return ["compile has no effect: the UNet does not train"]
    note = "compile: the first step waits for minutes until the UNet is compiled; samples are drawn without it"
    return [note + ("; it is meant for GPUs" if device.type == "cpu" else "")]


class CompiledCall:
    """What a module calls instead of its own code. The module stays itself: so do its state dict and parameters.

    In evaluation mode it runs as it is: samples have other sizes, and each would be compiled for minutes.
    """

    def __init__(self, module: nn.Module, session: Session, *, dynamic: bool) -> None:
        """Compile at the first call.

        Args:
            module: the module, without a wrapper for several processes.
            session: says why, if it does not work.
            dynamic: sizes differ from batch to batch.
        """
        self.module, self.session = module, session
        self.as_it_is: Any = module._call_impl
        self.compiled: Any = torch.compile(self.as_it_is, dynamic=dynamic or None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.module.training:
            return self.as_it_is(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.give_up(error)
            return self.as_it_is(*args, **kwargs)

    def give_up(self, error: Exception) -> None:
        """Let the module run as it is from now on."""
        self.module._compiled_call_impl = None
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:300]  # what follows is advice to developers
        message = f"the UNet runs without torch.compile, which failed: {type(error).__name__}: {reason}"
        self.session.metrics.say(f"warning: compile: {message}")


def compile_unet(session: Session) -> None:
    """Compile the UNet, if the run says so and it trains, by a trial with the batch that comes first.

    Nothing of the trial is kept but the code.
    """
    if not session.run.train.compile or UNET not in session.run.components:
        return
    unet: nn.Module = session.accelerator.unwrap_model(session.unet, keep_fp32_wrapper=True)
    with closing(session.loader.iterate(session.epoch, session.batches_done)) as batches:
        batch = next(batches, None)
    if batch is None:
        return
    call = CompiledCall(unet, session, dynamic=len(session.loader.sizes) > 1)
    unet._compiled_call_impl = call  # what nn.Module.compile sets
    for component in session.components:
        component.set_training(True)
    started = time.perf_counter()
    try:
        _try(session, batch)
    except Exception as error:  # in the backward pass, which is compiled when it is first needed
        call.give_up(error)
    if unet._compiled_call_impl is not None:
        session.metrics.say(f"compiled the UNet in {time.perf_counter() - started:.0f} s")


def _try(session: Session, batch: Batch) -> None:
    """A forward and a backward pass, as in training."""
    number = session.batch_number
    try:
        torch.autograd.backward(forward_loss(session, batch))
    finally:
        session.batch_number = number
        for component in session.components:
            component.optimizer.zero_grad(set_to_none=True)
