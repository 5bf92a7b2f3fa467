"""One optimizer step, from a window of batches to new weights: the innermost part of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from ed_train.data.loader import Batch
from ed_train.train.components import step_failed
from ed_train.train.gradients import gradient_norm, unless_unfit
from ed_train.train.noise import batch_generator, perturb
from ed_train.train.session import Session
from ed_train.train.skipped import LOSS


@dataclass(frozen=True)
class StepResult:
    """What a step did; tensors stay on the device, so that nothing waits for it.

    Attributes:
        loss: mean over this process's part of the window, a scalar.
        grad_norms: norm of each component's gradients before clipping, by name, scalars.
        skipped: the components whose gradients were not finite, or `LOSS`; if there are any, no weight has changed, but
            for those that were stepped in backward.
        images: pictures in the window, of all processes.
        files: these pictures; if the loss was not finite, those of its batch alone.
        unread: nobody has read whether the gradients are finite: `grad_norms` will tell, and say what `skipped` lacks.
    """

    loss: Tensor
    grad_norms: dict[str, Tensor]
    skipped: tuple[str, ...]
    images: int
    files: tuple[Path, ...]
    unread: bool = False


def train_step(session: Session, window: Sequence[Batch]) -> StepResult:
    """Accumulate the gradients of a window of batches and step every component's optimizer.

    Gradients are averaged over the window. If those of any component are not finite, no optimizer steps: lion-like
    ones would never move again, Adam-like ones would turn into NaN. `PartialSteps` says what holds in backward.
    """
    losses = []
    first = session.batch_number
    session.batch_number += len(window)
    files = tuple(file for batch in window for file in batch.all_images)
    for index, batch in enumerate(window):
        last = index == len(window) - 1
        with _gradient_sync(session, last=last):
            loss = forward_loss(session, batch, first + index)
            if _may_look_at(loss, session) and not torch.isfinite(loss):
                _zero_grad(session)
                nothing = {c.name: torch.full_like(loss.detach(), torch.nan) for c in session.components}
                return StepResult(loss.detach(), nothing, (LOSS,), len(files), batch.all_images)
            if last:
                _expect_gradients(session)
            share = loss / len(window)
            torch.autograd.backward(session.scaler.scale(share) if session.scaler else share)
        losses.append(loss.detach())
    norms = _norms(session)
    skipped = () if session.unread else _not_finite(norms)
    if not skipped:
        _clip(session, norms)
        with unless_unfit(session.components, norms if session.unread else {}):
            for component in session.components:
                try:
                    (component.partial_steps or component.optimizer).step()
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    raise step_failed(component, error) from error
                component.lr_scheduler.step()
    if session.scaler:
        session.scaler.update()
    _zero_grad(session)
    return StepResult(torch.stack(losses).mean(), norms, skipped, len(files), files, session.unread)


def forward_loss(session: Session, batch: Batch, number: int) -> Tensor:
    """The loss of one batch, a scalar: text encoder, UNet, error of its prediction.

    Args:
        session: the run.
        batch: this process's part of a global batch.
        number: of the global batch, which decides about everything random.
    """
    accelerator, train = session.accelerator, session.run.train
    rank, world = accelerator.process_index, accelerator.num_processes
    generator = batch_generator(train.seed, number)
    mean, std = (t.to(accelerator.device, non_blocking=True) for t in (batch.latents_mean, batch.latents_std))
    noisy = session.diffusion.add_noise(mean, std, generator, rank, world)
    embeddings = session.text.embeddings(batch.token_ids, batch.text)
    if train.embedding_perturbation:
        embeddings = perturb(embeddings, train.embedding_perturbation, generator, rank, world)
    prediction = session.unet(noisy.latents, noisy.timesteps, embeddings, return_dict=False)[0]
    return session.diffusion.loss(prediction, noisy, batch.weights) * batch.loss_scale


def _may_look_at(loss: Tensor, session: Session) -> bool:
    """Whether a loss may be read before its backward pass.

    A GPU would have to be waited for, and several processes must all go on to exchange gradients; there, a loss that
    is not finite shows in the gradients. Where steps are taken in backward, that would be too late for some of them.
    """
    if session.run.train.optimizer_in_backward:
        return True
    return loss.device.type == "cpu" and session.accelerator.num_processes == 1


def _zero_grad(session: Session) -> None:
    for component in session.components:
        component.optimizer.zero_grad(set_to_none=True)


def _gradient_sync(session: Session, *, last: bool) -> contextlib.AbstractContextManager[object]:
    """Processes exchange gradients once per step, in the window's last backward pass."""
    if last or session.accelerator.num_processes == 1:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for module in session.trained_modules:
        stack.enter_context(session.accelerator.no_sync(module))
    return stack


def _expect_gradients(session: Session) -> None:
    """Prepare for the last backward pass before a step."""
    for component in session.components:
        if component.partial_steps:
            component.partial_steps.begin(session.step)


def _norms(session: Session) -> dict[str, Tensor]:
    """The norms of all components' gradients, unscaled."""
    if session.scaler:
        for component in session.components:
            session.scaler.unscale_(component.optimizer)
    return {c.name: gradient_norm(c) for c in session.components}


def _not_finite(norms: dict[str, Tensor]) -> tuple[str, ...]:
    """The components whose gradients are not finite; waits for the device."""
    finite = torch.stack(list(norms.values())).isfinite().tolist()
    return tuple(name for name, good in zip(norms, finite, strict=True) if not good)


def _clip(session: Session, norms: dict[str, Tensor]) -> None:
    if limit := session.run.train.clip_grad_norm:
        for component in session.components:
            clip_grads_with_norm_(component.parameters, limit, norms[component.name])
