"""Weights in bfloat16: which they are, and how a step in float32 is rounded back to them without a bias.

bfloat16 has 8 bits of precision. A step of fine-tuning is far smaller than the distance between two neighbouring
numbers, so rounding to the nearest would undo nearly every one. Stochastic rounding goes up or down with probabilities
such that the expected value is the exact one (https://arxiv.org/abs/1502.02551).
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ed_train.config.run import RunConfig
from ed_train.parameters import narrowed
from ed_train.train.noise import seeded_generator

TILE = 1 << 18
"""Random bits for so many pairs of elements are drawn in a step, from which those of every element are made."""
_HALF, _UPPER_BITS = 1 << 15, -(1 << 16)


@dataclass
class RoundingNoise:
    """The random bits of one optimizer step: a function of seed, step and the parameter's name, on any device.

    Drawing 16 bits for every weight would take a CPU longer than the step itself. So one tile of bits is drawn, and
    each piece of each parameter has it XOR a number of its own: every element's bits are uniform, and any two are
    independent of one another.
    """

    seed: int
    step: int
    _tiles: dict[torch.device, Tensor] = field(default_factory=dict)

    def pieces(self, name: str, elements: int, device: torch.device) -> Generator[Tensor]:
        """Uniform int16 numbers for the elements of a parameter, piece by piece, each on the device."""
        numbers = random.Random(f"{self.seed}/{self.step}/{name}")
        tile = self._tile(device)
        for start in range(0, elements, 2 * TILE):
            number = numbers.getrandbits(16)
            both_halves = (number | number << 16) - (1 << 32 if number >> 15 else 0)  # as a signed 32-bit number
            count = min(2 * TILE, elements - start)
            yield (tile[: (count + 1) // 2] ^ both_halves).view(torch.int16)[:count]

    def _tile(self, device: torch.device) -> Tensor:
        if device not in self._tiles:
            generator = seeded_generator(f"{self.seed}/rounding/{self.step}")
            bits = torch.empty(TILE, dtype=torch.int32).random_(-(1 << 31), 1 << 31, generator=generator)
            self._tiles[device] = bits.to(device)
        return self._tiles[device]


def round_stochastically(values: Tensor, into: Tensor, name: str, noise: RoundingNoise) -> None:
    """Round float32 values to bfloat16, up or down at random, so that their expectation stays the same.

    Args:
        values: float32; scratch afterwards.
        into: bfloat16, contiguous, of the same shape.
        name: of the parameter.
        noise: of the step.
    """
    source, target = values.reshape(-1), into.view(-1)
    bits, start = source.view(torch.int32), 0
    for numbers in noise.pieces(name, len(source), source.device):
        end = start + len(numbers)
        # A number below 2^16, added to the bits, carries into the upper half as often as the lower half says.
        bits[start:end].add_(numbers).add_(_HALF).bitwise_and_(_UPPER_BITS)
        target[start:end].copy_(source[start:end])
        start = end


def widened(parameter: Tensor) -> nn.Parameter:
    """A float32 copy of a bfloat16 parameter and its gradient, for a step.

    The parameter itself must never change its type, not even for a moment: the hooks with which processes exchange
    gradients would be lost.
    """
    copy = nn.Parameter(parameter.detach().float())
    copy.grad = None if parameter.grad is None else parameter.grad.float()
    return copy


def load_in_float32(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], state: dict[str, Any]) -> None:
    """Load an optimizer's state, which torch casts to the type of the parameters: for bfloat16 ones, too, to float32.

    Raises whatever the optimizer raises.
    """
    parameters = list(parameters)
    narrow = [p for p in parameters if p.dtype == torch.bfloat16]
    stand_ins = [(p, torch.empty((), device=p.device).expand(p.shape)) for p in narrow]  # without any memory
    with narrowed(optimizer, parameters, stand_ins):
        optimizer.load_state_dict(state)


def is_narrow(parameter: Tensor) -> bool:
    """Whether `weights_dtype` bf16 keeps a parameter in bfloat16.

    Those that do not train stay as they are. So do biases and the weights of norms, which are a thousandth of all.
    """
    return parameter.requires_grad and parameter.dim() > 1


def narrow_weights(run: RunConfig, modules: Mapping[str, nn.Module]) -> list[str]:
    """Put the weights of components that train into bfloat16, if the run says so, rounded to the nearest.

    Args:
        run: its configuration.
        modules: by name, frozen as they should be.

    Returns:
        Lines for the user.
    """
    if run.train.weights_dtype != "bf16":
        return []
    notes = []
    for name in run.components:
        parameters = list(modules[name].parameters())
        narrow = [p for p in parameters if is_narrow(p)]
        for parameter in narrow:
            parameter.data = parameter.data.to(torch.bfloat16).contiguous()
        share = sum(p.numel() for p in narrow) / sum(p.numel() for p in parameters)
        notes.append(f"weights_dtype bf16: {share:.1%} of the {name} are in bfloat16; steps are rounded stochastically")
    return notes
