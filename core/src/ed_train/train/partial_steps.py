"""Step an optimizer over some of its parameters at a time: while backward goes on, and over weights in bfloat16.

Both need less memory. Gradients of a backward pass that is still going on are used and freed, so that they are never
all there; weights in bfloat16 are widened to float32 for their step alone, so that optimizers and their state know of
float32 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ed_train.config.memory_keys import BF16, DTYPE, IN_BACKWARD, SCALER, contradiction, uses_partial_steps
from ed_train.config.run import RunConfig
from ed_train.errors import ConfigError, Problem
from ed_train.parameters import narrowed
from ed_train.train.components import TrainedComponent, step_failed
from ed_train.train.rounding import RoundingNoise, round_stochastically, widened

PIECE = 4 << 20
"""Elements that are stepped together: few calls for small tensors, and little memory."""


@dataclass(eq=False, repr=False)
class PartialSteps:
    """Steps the optimizer of one component.

    A parameter whose gradient is not finite keeps its values and its state.

    Attributes:
        component: its optimizer holds all of its parameters; a step sees some of them.
        seed: of the run, for the rounding.
        in_backward: steps are taken as gradients arrive, and free them; else after the backward pass, by `step`.
    """

    component: TrainedComponent
    seed: int
    in_backward: bool
    _noise: RoundingNoise | None = None  # of the step that gradients are expected for
    _norms: dict[int, Tensor] = field(default_factory=dict)
    _waiting: list[int] = field(default_factory=list)
    _waiting_elements: int = 0

    def __post_init__(self) -> None:
        if self.in_backward:
            for index, parameter in enumerate(self.component.parameters):
                hook = partial(self._arrived, index)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self, step: int) -> None:
        """Expect the gradients of an optimizer step, whose number seeds the rounding."""
        self._noise = RoundingNoise(self.seed, step)
        self._norms.clear()

    def norm(self) -> Tensor:
        """The norm of all gradients, a float32 scalar; those that have not been stepped in backward are, now."""
        if self.in_backward:
            self._step_waiting()
            self._noise = None
        else:
            self._measure([i for i, p in enumerate(self.component.parameters) if p.grad is not None])
        norms = [self._norms[index] for index in sorted(self._norms)]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)

    def step(self) -> None:
        """Step over every parameter that has a gradient: none has, if they were stepped in backward."""
        for index, parameter in enumerate(self.component.parameters):
            if parameter.grad is not None and self._added(index):
                self._step(self._taken())
        self._step(self._taken())

    def _arrived(self, index: int, _: Tensor) -> None:
        """A gradient is complete. Backward passes that nobody has announced are none of training."""
        if self._noise and self._added(index):
            self._step_waiting()

    def _added(self, index: int) -> bool:
        """Let a parameter wait for its step; returns whether that makes a piece."""
        self._waiting.append(index)
        self._waiting_elements += self.component.parameters[index].numel()
        return self._waiting_elements >= PIECE

    def _taken(self) -> list[int]:
        taken, self._waiting, self._waiting_elements = self._waiting, [], 0
        return taken

    def _step_waiting(self) -> None:
        """Step over those that wait and have finite gradients, and free all of theirs."""
        waiting, parameters = self._taken(), self.component.parameters
        if not waiting:
            return
        self._measure(waiting)
        finite = torch.stack([self._norms[index] for index in waiting]).isfinite().tolist()
        try:
            self._step([index for index, good in zip(waiting, finite, strict=True) if good])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise step_failed(self.component, error) from error
        for index in waiting:
            parameters[index].grad = None

    @torch.no_grad()
    def _measure(self, indices: Sequence[int]) -> None:
        parameters = self.component.parameters
        if gradients := [gradient for i in indices if (gradient := parameters[i].grad) is not None]:
            norms = torch._foreach_norm(gradients, 2.0, dtype=torch.float32)
            self._norms.update(zip(indices, norms, strict=True))

    def _step(self, indices: Sequence[int]) -> None:
        component, noise = self.component, self._noise
        if not indices or noise is None:
            return
        members = [(component.parameter_names[index], component.parameters[index]) for index in indices]
        wide = [(name, p, widened(p)) for name, p in members if p.dtype == torch.bfloat16]
        with narrowed(component.optimizer, [p for _, p in members], [(p, copy) for _, p, copy in wide]):
            component.optimizer.step()
        for name, parameter, stepped in wide:
            round_stochastically(stepped.detach(), parameter.detach(), name, noise)


def step_in_parts(run: RunConfig, components: Sequence[TrainedComponent]) -> None:
    """Let components step in pieces, if the run is to."""
    if uses_partial_steps(run.train):
        for component in components:
            component.partial_steps = PartialSteps(component, run.train.seed, run.train.optimizer_in_backward)


def check_partial_steps(run: RunConfig, processes: int, precision: str) -> None:
    """Check what only the machine decides.

    Args:
        run: its configuration.
        processes: how many there are.
        precision: of autocast, as it was chosen.

    Raises:
        ConfigError: the settings do not work here.
    """
    against = [f"{processes} processes (they exchange gradients only when all are there)"] if processes > 1 else []
    against += [SCALER] if precision == "fp16" else []
    problems = []
    if run.train.optimizer_in_backward and against:
        problems.append(Problem("", IN_BACKWARD, contradiction(IN_BACKWARD, against)))
    if run.train.weights_dtype == BF16 and precision != BF16:
        chosen = {"fp16": "float16", "no": "no autocast"}[precision]
        message = f"needs bfloat16 autocast, and mixed_precision auto means {chosen} on this device"
        problems.append(Problem("", DTYPE, f"{message}; set mixed_precision bf16, or leave {DTYPE} out"))
    if problems:
        raise ConfigError(problems)
