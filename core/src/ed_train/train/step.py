"""One optimizer step, from a window of batches to new weights: the innermost part of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ed_train.data.loader import Batch
from ed_train.errors import PluginError
from ed_train.train.components import TrainedComponent
from ed_train.train.noise import batch_generator, perturb
from ed_train.train.session import Session

LOSS = "loss"


@dataclass(frozen=True)
class StepResult:
    """What a step did; tensors stay on the device, so that nothing waits for it.

    Attributes:
        loss: mean over this process's part of the window, a scalar.
        grad_norms: norm of each component's gradients before clipping, by name, scalars.
        skipped: the components whose gradients were not finite, or `LOSS`; if there are any, no weight has changed.
        images: pictures in the window, of all processes.
        files: the pictures of this process.
    """

    loss: Tensor
    grad_norms: dict[str, Tensor]
    skipped: tuple[str, ...]
    images: int
    files: tuple[Path, ...]


def train_step(session: Session, window: Sequence[Batch]) -> StepResult:
    """Accumulate the gradients of a window of batches and step every component's optimizer.

    Gradients are averaged over the window. If those of any component are not finite, no optimizer steps: lion-like
    ones would never move again, Adam-like ones would turn into NaN.
    """
    losses = []
    images = sum(len(b.images) for b in window) * session.accelerator.num_processes
    files = tuple(file for batch in window for file in batch.images)
    for index, batch in enumerate(window):
        with _gradient_sync(session, last=index == len(window) - 1):
            loss = forward_loss(session, batch)
            if _may_look_at(loss, session) and not torch.isfinite(loss):
                _zero_grad(session)
                nothing = {c.name: torch.full_like(loss.detach(), torch.nan) for c in session.components}
                return StepResult(loss.detach(), nothing, (LOSS,), images, batch.images)
            share = loss / len(window)
            torch.autograd.backward(session.scaler.scale(share) if session.scaler else share)
        losses.append(loss.detach())
    norms = {c.name: _unscaled_norm(session, c) for c in session.components}
    skipped = tuple(name for name, norm in norms.items() if not torch.isfinite(norm))
    if not skipped:
        for component in session.components:
            if limit := session.run.train.clip_grad_norm:
                clip_grads_with_norm_(component.parameters, limit, norms[component.name])
            try:
                component.optimizer.step()
            except Exception as error:
                raise _step_failed(component, error) from error
            component.lr_scheduler.step()
    if session.scaler:
        session.scaler.update()
    _zero_grad(session)
    return StepResult(torch.stack(losses).mean(), norms, skipped, images, files)


def forward_loss(session: Session, batch: Batch) -> Tensor:
    """The loss of one batch, a scalar: text encoder, UNet, error of its prediction."""
    accelerator, train = session.accelerator, session.run.train
    rank, world = accelerator.process_index, accelerator.num_processes
    generator = batch_generator(train.seed, session.batch_number)
    session.batch_number += 1
    mean, std = (t.to(accelerator.device, non_blocking=True) for t in (batch.latents_mean, batch.latents_std))
    noisy = session.diffusion.add_noise(mean, std, generator, rank, world)
    embeddings = session.encode_text(batch.token_ids.to(accelerator.device, non_blocking=True))
    if train.embedding_perturbation:
        embeddings = perturb(embeddings, train.embedding_perturbation, generator, rank, world)
    prediction = session.unet(noisy.latents, noisy.timesteps, embeddings, return_dict=False)[0]
    return session.diffusion.loss(prediction, noisy) * batch.loss_scale


def _may_look_at(loss: Tensor, session: Session) -> bool:
    """Whether a loss may be read before its backward pass.

    A GPU would have to be waited for, and several processes must all go on to exchange gradients; there, a loss that
    is not finite shows in the gradients.
    """
    return loss.device.type == "cpu" and session.accelerator.num_processes == 1


def _step_failed(component: TrainedComponent, error: Exception) -> PluginError:
    optimizer = component.config.optimizer
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return PluginError(f"{optimizer.origin}: a step of {optimizer.spec.name} failed: {reason}")


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


def _unscaled_norm(session: Session, component: TrainedComponent) -> Tensor:
    if session.scaler:
        session.scaler.unscale_(component.optimizer)
    return get_total_norm([p.grad for p in component.parameters if p.grad is not None])
