"""Steps whose gradients were not finite: counted, said, and the end of a run that has too many in a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ed_train.errors import EdTrainError

if TYPE_CHECKING:
    from ed_train.train.session import Session
    from ed_train.train.step import StepResult

LOSS = "loss"
"""Stands for a component where the loss itself is not finite."""

MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED_IN_A_ROW_FP16 = 40
"""fp16's gradient scale starts so large that the first steps overflow until it is halved often enough."""

MAX_UNREAD = 100
"""Steps after which their results are read, however seldom metrics are logged."""


def note_result(session: Session, result: StepResult) -> None:
    """Count a step that was skipped; one that nobody has read yet is counted at the next log point.

    Raises:
        EdTrainError: too many steps in a row were skipped.
    """
    session.results.append((session.step, result))
    may_wait = result.unread and not session.metrics.due(session.step) and len(session.results) < MAX_UNREAD
    if not may_wait:
        settle(session)


def settle(session: Session) -> None:
    """Read what has gathered, waiting for the device once.

    Raises:
        EdTrainError: too many steps in a row were skipped.
    """
    results, session.results = session.results, []
    for (step, result), skipped in zip(results, _read([result for _, result in results]), strict=True):
        if skipped:
            _count(session, step, result, skipped)
        else:
            session.skipped_in_a_row = 0


def _read(results: list[StepResult]) -> Iterable[tuple[str, ...]]:
    """The components of each step whose gradients were not finite."""
    if not any(result.unread for result in results):
        return [result.skipped for result in results]
    norms = torch.stack([torch.stack(list(result.grad_norms.values())) for result in results])
    return [
        tuple(name for name, good in zip(result.grad_norms, finite, strict=True) if not good)
        for result, finite in zip(results, norms.isfinite().tolist(), strict=True)
    ]


def describe_skipped(skipped: tuple[str, ...]) -> str:
    """What was not finite: ``the loss is``, ``gradients of unet and text_encoder are``."""
    return "the loss is" if skipped == (LOSS,) else f"gradients of {' and '.join(skipped)} are"


def _count(session: Session, step: int, result: StepResult, skipped: tuple[str, ...]) -> None:
    session.skipped += 1
    session.skipped_in_a_row += 1
    names = describe_skipped(skipped)
    files = ", ".join(sorted({path.name for path in result.files}))
    if not session.scaler:  # whose overflows are in the nature of fp16
        in_part = session.run.train.optimizer_in_backward and skipped != (LOSS,)
        what = "the parameters that have them stay as they are" if in_part else "step skipped"
        session.metrics.say(f"warning: step {step}: {names} not finite; {what} ({files})")
    limit = MAX_SKIPPED_IN_A_ROW_FP16 if session.scaler else MAX_SKIPPED_IN_A_ROW
    if session.skipped_in_a_row >= limit:
        raise EdTrainError(
            f"training stopped at step {step}: {names} not finite, {limit} steps in a row; "
            f"lower the lr, set clip_grad_norm or look at the pictures of the last batch: {files}"
            f"{f'; {session.output.last_good()}' if session.output else ''}"
        )
