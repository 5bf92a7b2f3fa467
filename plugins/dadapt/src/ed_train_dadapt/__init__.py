"""D-Adaptation from dadaptation: Adam, Adan, Lion and SGD that estimate their step size."""

from __future__ import annotations

from functools import partial

from ed_train import OptimizerSpec, hookimpl

from ed_train_dadapt import build, configs

PAPER = "https://arxiv.org/abs/2301.07733"
USUAL_LR = (0.01, 2.0)
"""Users stay between 0.1 and 1; a text encoder's lr is often a fraction of the UNet's."""

# Not one is shardable: with sharded parameters every process would arrive at an estimate of its own.
_Spec = partial(
    OptimizerSpec, library="dadaptation", paper=PAPER, learning_rate_free=True, usual_lr=USUAL_LR, shardable=False
)


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    """Offer the four optimizers of dadaptation."""
    return [
        _Spec(
            name="dadapt_adam",
            summary="D-Adaptation for Adam: finds its learning rate itself",
            config_type=configs.DAdaptAdamConfig,
            build=build.dadapt_adam,
            effective_lr=build.bias_corrected_lr,
            recommended={"lr": 1.0, "weight_decay": 0.8},
            state_bytes=12,  # two averages and the weighted sum of gradients
        ),
        _Spec(
            name="dadapt_adan",
            summary="D-Adaptation for Adan: finds its learning rate itself (experimental)",
            config_type=configs.DAdaptAdanConfig,
            build=build.dadapt_adan,
            effective_lr=build.adapted_lr,
            recommended={"lr": 1.0},
            state_bytes=20,  # three averages, the weighted sum of gradients, the last gradient
        ),
        _Spec(
            name="dadapt_lion",
            summary="D-Adaptation for Lion: finds its learning rate itself (experimental)",
            config_type=configs.DAdaptLionConfig,
            build=build.dadapt_lion,
            effective_lr=build.adapted_lr,
            recommended={"lr": 1.0},
            state_bytes=8,  # the momentum and the weighted sum of updates
        ),
        _Spec(
            name="dadapt_sgd",
            summary="D-Adaptation for SGD: finds its learning rate itself",
            config_type=configs.DAdaptSGDConfig,
            build=build.dadapt_sgd,
            effective_lr=build.normalized_lr,
            # lr 0 makes it divide by zero at the first step and read an unset variable at any later one.
            lr_may_be_zero=False,
            recommended={"lr": 1.0},
            state_bytes=12,  # the first weights, the averaged ones, the weighted sum of gradients
        ),
    ]
