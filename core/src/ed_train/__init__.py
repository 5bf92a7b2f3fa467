"""ed-train: the trainer for Stable Diffusion whose optimizers are plugins.

For plugin authors: `hookimpl`, `OptimizerSpec`, `FreezePolicy` and the annotations of their options.
For people with a training loop of their own: `create_optimizer` and `list_optimizers`.
"""

from ed_train.api import create_optimizer, effective_lr, list_optimizers
from ed_train.errors import CheckpointError, ConfigError, EdTrainError, PluginError
from ed_train.hookspecs import hookimpl
from ed_train.specs import (
    Bounds,
    Fraction,
    FreezePolicy,
    Help,
    NonNegative,
    OptimizerSpec,
    Params,
    Positive,
    Probability,
    TrainingPlan,
)

__version__ = "0.1.0"

__all__ = [
    "Bounds",
    "CheckpointError",
    "ConfigError",
    "EdTrainError",
    "Fraction",
    "FreezePolicy",
    "Help",
    "NonNegative",
    "OptimizerSpec",
    "Params",
    "PluginError",
    "Positive",
    "Probability",
    "TrainingPlan",
    "create_optimizer",
    "effective_lr",
    "hookimpl",
    "list_optimizers",
]
