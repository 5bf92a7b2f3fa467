"""What a run needs, beside its weights, to go on as if it had never stopped: collected, written, read, put back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ed_train.config.changes import same_optimizers
from ed_train.config.resume import STATE_FILE
from ed_train.errors import CheckpointError
from ed_train.models.failure import load_error, one_line
from ed_train.models.tensors import listed

if TYPE_CHECKING:
    from ed_train.train.session import Session

OPTIMIZER_FILES = {"unet": "optimizer_unet.pt", "text_encoder": "optimizer_te.pt"}
"""Names that other trainers use as well; each holds the bare state dict."""


def random_state() -> dict[str, Any]:
    """The state of every global random generator of this process, in types that load without unpickling."""
    numpy_state: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def training_state(session: Session, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Everything but weights and optimizer state; all processes must call it together.

    Args:
        session: the run.
        weights: those that are others in training than in evaluation, as they are in training.
    """
    from accelerate.utils import gather_object

    return {
        "random": gather_object([random_state()]),
        "scheduler_steps": {c.name: c.lr_scheduler.last_epoch for c in session.components},
        "scaler": session.scaler.state_dict() if session.scaler else {},
        "skipped": session.skipped,
        "skipped_in_a_row": session.skipped_in_a_row,
        "validation": session.validator.state_dict() if session.validator else None,
        "training_weights": weights,
    }


def on_cpu(value: Any) -> Any:
    """A copy of a state dict in the CPU's memory, tensors that share memory still sharing it."""
    return _copied(value, {})


def _copied(value: Any, seen: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, Mapping):
        return {name: _copied(member, seen) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(member, seen) for member in value)
    return value


def size_of(value: Any) -> int:
    """Bytes of the tensors in a state dict."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    members = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(size_of, members))


def read_state(path: Path) -> Any:
    """Read a file of state; nothing in it is run.

    Raises:
        CheckpointError: it is damaged, or cannot be read.
        ConfigError: it wants to run foreign code; says which.
    """
    try:
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        state = None if foreign else torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error
    if foreign:
        advice = "nothing in it was run; remove the file to begin without it"
        raise load_error(f"{path} wants to run {listed(foreign, 10)}; {advice}")
    return state


def restore_training_state(session: Session) -> list[str]:
    """Put back schedules, gradient scaler, random generators, where a run goes on.

    Schedule-free optimizers are in training mode.

    Returns:
        Lines about what could not be put back as it was.
    """
    if session.run.resume is None:
        return []
    state, notes = read_state(session.run.resume.checkpoint / STATE_FILE), []
    for component in session.components:
        steps = state["scheduler_steps"].get(component.name)
        if steps is not None:
            component.set_schedule(steps)
    if session.scaler and state["scaler"]:
        session.scaler.load_state_dict(state["scaler"])
    elif session.scaler:
        notes.append("the checkpoint has no gradient scaler: float16's scale begins anew")
    _restore_training_weights(session, state.get("training_weights", {}))
    if session.validator:
        notes += session.validator.load(state.get("validation"), session)
    session.skipped, session.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
    generators, rank = state["random"], session.accelerator.process_index
    if len(generators) == session.accelerator.num_processes:
        set_random_state(generators[rank])
    return notes


def _restore_training_weights(session: Session, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put weights of schedule-free optimizers back as they were in training: computing them rounds.

    Only those that would come out the same but for that: not where options have changed, or state begins anew.
    """
    if not same_optimizers(session.run):
        return
    for component in session.components:
        going_on = {name for name, p in component.named_parameters() if component.optimizer.state.get(p)}
        component.set_weights({n: w for n, w in saved.get(component.name, {}).items() if n in going_on})
