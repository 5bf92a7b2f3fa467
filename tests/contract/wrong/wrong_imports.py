"""A plugin whose only fault is that it imports numpy when it is loaded."""

import numpy
from ed_train import FreezePolicy, OptimizerSpec, hookimpl
from wrong_optimizers import Config, faulty
from wrong_policies import Settings, freeze

assert numpy


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    paper = "https://example.org"
    return [OptimizerSpec(name="imports_numpy", summary="made up", config_type=Config, build=faulty(), paper=paper)]


@hookimpl
def ed_register_freeze_policies() -> list[FreezePolicy]:
    return [
        FreezePolicy(
            section="importing_numpy",
            component="text_encoder",
            summary="made up",
            config_type=Settings,
            apply=freeze,
        )
    ]
