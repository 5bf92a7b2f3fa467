"""What a process of its own does for a test: it is forked from one that has everything imported, and is then killed.

Start-up is most of a short run; everything that a run imports is imported here, before the fork.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence

import accelerate  # noqa: F401
import ed_train.train.train  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: F401
from ed_train.cli import main
from ed_train.commands import arguments, processes  # noqa: F401
from ed_train.config import load, record, resume, start, validate  # noqa: F401
from ed_train.registry import load_registry
from pydantic import ConfigDict, TypeAdapter  # noqa: F401
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

load_registry()
tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which outlives whoever is killed


def run(argv: Sequence[str], sabotage: Sequence[Callable[[], None]], log: str) -> None:
    """Run the command, with its output in a file, after things were made to fail.

    The process ends with the command's exit status.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for make_fail in sabotage:
        make_fail()
    sys.exit(main(argv))
