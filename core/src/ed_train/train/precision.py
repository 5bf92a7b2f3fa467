"""Autocast precision, and the fp16 gradient scaler's settings."""

from __future__ import annotations

import torch

from ed_train.config.train_keys import TrainConfig
from ed_train.errors import ConfigError, Problem

SCALER_SETTINGS = {"init_scale": 2**17.5, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 25}
"""fp16 starts at a large scale that grows quickly; see `SCALER_TWEAKS`."""

SCALER_TWEAKS = ((4000, 1.15, 2000), (2000, 1.3, 500), (1000, 1.6, 200), (500, 1.8, 100))
"""From this optimizer step on: growth factor and growth interval (``apply_grad_scaler_step_tweaks``)."""


def resolve_precision(train: TrainConfig, device: torch.device) -> str:
    """The autocast precision of a run: ``bf16``, ``fp16`` or ``no``. Weights are float32 in any case.

    Raises:
        ConfigError: fp16 is asked for where there is no GPU.
    """
    if train.disable_amp or train.mixed_precision == "no":
        return "no"
    if train.mixed_precision == "fp16" and device.type != "cuda":
        message = f'got "fp16"; it needs a GPU, and this run is on {device.type}; use auto, bf16 or no'
        raise ConfigError([Problem("", "mixed_precision", message)])
    if train.mixed_precision != "auto":
        return train.mixed_precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "no"


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 by itself: where it only emulates that, float32 is faster."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def tweak_scaler(scaler: torch.amp.GradScaler, step: int) -> None:
    """Slow the scale's growth down as training goes on; a function of the step alone, so that a resume restores it."""
    for since, factor, interval in SCALER_TWEAKS:
        if step >= since:
            scaler.set_growth_factor(factor)
            scaler.set_growth_interval(interval)
            return
