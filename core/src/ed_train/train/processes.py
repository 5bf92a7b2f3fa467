"""The device, the precision and the processes of a run, by Accelerate."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from ed_train.config.run import RunConfig
from ed_train.errors import EdTrainError
from ed_train.train.attention import attend_in_float32, attends_in_float32
from ed_train.train.precision import SCALER_SETTINGS, resolve_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

WAIT = timedelta(hours=2)
"""How long processes wait for one another; the main one alone draws samples, for example."""


def make_accelerator(run: RunConfig) -> tuple[Accelerator, str]:
    """The accelerator, and the autocast precision that was chosen: ``bf16``, ``fp16`` or ``no``."""
    if run.sources["gpuid"] != "default" and "LOCAL_RANK" not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else []
        index = run.train.gpuid
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index] if index < len(devices) else str(index)
    from accelerate import Accelerator, GradScalerKwargs, InitProcessGroupKwargs, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import parse_flag_from_env

    AcceleratorState._reset_state()  # a second run in one process may have another precision
    # torch's launcher on a machine without a GPU: without this, Accelerate would run the processes side by side
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=WAIT).device
    precision = resolve_precision(run.train, device)
    if attends_in_float32(device, precision):
        attend_in_float32()
    handlers = [InitProcessGroupKwargs(timeout=WAIT), GradScalerKwargs(**SCALER_SETTINGS)]
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers), precision


def _memory_is_full(error: BaseException) -> EdTrainError:
    less = "a smaller batch_size, gradient_checkpointing, optimizer_in_backward and other optimizers take less"
    what = ". ".join(str(error).split(". ")[:2]) or type(error).__name__
    return EdTrainError(f"the device's memory is full: {what}; {less}: see ed-train --plan-memory")


@contextmanager
def failures_named() -> Generator[None]:
    """A block in which failures that are nobody's mistake become one line: of the device's memory, of the network.

    Raises:
        EdTrainError: the memory is full, or another process has ended, upon which the network's errors follow.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _memory_is_full(error) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):  # torch has no class of its own for it
            raise _memory_is_full(error) from error
        if not isinstance(error, getattr(torch.distributed, "DistError", ())) and "gloo" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise EdTrainError(f"another process of this run has ended, so this one ends, too ({reason})") from error
