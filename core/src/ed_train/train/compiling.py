"""The UNet through torch.compile, if train.json says so; as it is, with a line that says why, if that does not work."""

from __future__ import annotations

import time
import warnings
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
        self.beyond_limit: set[torch.Size] = set()
        self.as_it_is: Any = module._call_impl
        self.compiled: Any = torch.compile(self.as_it_is, dynamic=dynamic or None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shape = args[0].shape
        if not self.module.training or shape in self.beyond_limit:
            return self.as_it_is(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self.leave_out(shape)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.give_up(error)
        return self.as_it_is(*args, **kwargs)

    def leave_out(self, shape: torch.Size) -> None:
        """Let the module run as it is for latents of this shape."""
        if not self.beyond_limit:
            limit = torch._dynamo.config.recompile_limit
            message = f"batches of some sizes run without torch.compile, which makes {limit} versions at most"
            self.session.metrics.say(f"warning: compile: {message}")
        self.beyond_limit.add(shape)

    def give_up(self, error: Exception) -> None:
        """Let the module run as it is from now on."""
        self.module._compiled_call_impl = None
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:300]  # what follows is advice to developers
        message = f"the UNet runs without torch.compile, which failed: {type(error).__name__}: {reason}"
        self.session.metrics.say(f"warning: compile: {message}")


def compile_unet(session: Session) -> None:
    """Compile the UNet, if the run says so and it trains, by a trial with a batch of each size.

    Nothing of the trial is kept but the code. Which sizes share code depends on their order, and the code decides
    about rounding; so the order is always the same, wherever in an epoch a run goes on.
    """
    if not session.run.train.compile or UNET not in session.run.components:
        return
    unet: nn.Module = session.accelerator.unwrap_model(session.unet, keep_fp32_wrapper=True)
    sizes = len(session.loader.sizes)
    call = CompiledCall(unet, session, dynamic=sizes > 1)
    unet._compiled_call_impl = call  # what nn.Module.compile sets
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # otherwise only torch's log tells
    torch.fx.experimental._config.use_duck_shape = False  # otherwise squares get code of their own
    started = time.perf_counter()
    rank, world = session.accelerator.process_index, session.accelerator.num_processes
    try:
        with session.metrics.paused(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # about code that is not the user's
            for batch in session.loader.one_of_each_size(session.epoch, rank, world):
                _try(session, batch)
    except Exception as error:  # in the backward pass, which is compiled when it is first needed
        call.give_up(error)
    if unet._compiled_call_impl is not None:
        of = f" for {sizes} sizes" if sizes > 1 else ""
        session.metrics.say(f"compiled the UNet{of} in {time.perf_counter() - started:.0f} s")


def _try(session: Session, batch: Batch) -> None:
    """A forward and a backward pass, as in training."""
    try:
        torch.autograd.backward(forward_loss(session, batch, session.batch_number))
    finally:
        for component in session.components:
            component.optimizer.zero_grad(set_to_none=True)
