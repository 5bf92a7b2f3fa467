"""The samplers of sample pictures, by the names that EveryDream 2's files have.

Those of diffusers that need no further package and can also draw where the last timestep is pure noise. Karras'
spacing of the steps cannot: with a model that predicts the noise it begins where that prediction says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
}
"""Names to diffusers' classes and what they are made with."""


def make_sampler(name: str, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler to draw with.

    Args:
        name: one of `SAMPLERS`.
        config: of the model's own scheduler, as `SdModel.scheduler_config` returns it.
    """
    import diffusers

    class_name, settings = SAMPLERS[name]
    # latents reach far beyond [-1, 1]
    return getattr(diffusers, class_name).from_config({**config, "clip_sample": False, **settings})
