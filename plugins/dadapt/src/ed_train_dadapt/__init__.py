"""D-Adaptation from dadaptation: Adam, Adan, Lion and SGD that estimate their step size."""

from __future__ import annotations

from ed_train import OptimizerSpec, hookimpl

from ed_train_dadapt import build, configs

PAPER = "https://arxiv.org/abs/2301.07733"


# Not one is shardable: with sharded parameters every process would arrive at an estimate of its own.
@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    """Offer the four optimizers of dadaptation."""
    return [
        OptimizerSpec(
            name="dadapt_adam",
            summary="D-Adaptation for Adam: finds its learning rate itself",
            config_type=configs.DAdaptAdamConfig,
            build=build.dadapt_adam,
            library="dadaptation",
            paper=PAPER,
            learning_rate_free=True,
            effective_lr=build.bias_corrected_lr,
            shardable=False,
            recommended={"lr": 1.0, "weight_decay": 0.8},
        ),
        OptimizerSpec(
            name="dadapt_adan",
            summary="D-Adaptation for Adan: finds its learning rate itself (experimental)",
            config_type=configs.DAdaptAdanConfig,
            build=build.dadapt_adan,
            library="dadaptation",
            paper=PAPER,
            learning_rate_free=True,
            effective_lr=build.adapted_lr,
            shardable=False,
        ),
        OptimizerSpec(
            name="dadapt_lion",
            summary="D-Adaptation for Lion: finds its learning rate itself (experimental)",
            config_type=configs.DAdaptLionConfig,
            build=build.dadapt_lion,
            library="dadaptation",
            paper=PAPER,
            learning_rate_free=True,
            effective_lr=build.adapted_lr,
            shardable=False,
        ),
        OptimizerSpec(
            name="dadapt_sgd",
            summary="D-Adaptation for SGD: finds its learning rate itself",
            config_type=configs.DAdaptSGDConfig,
            build=build.dadapt_sgd,
            library="dadaptation",
            paper=PAPER,
            learning_rate_free=True,
            effective_lr=build.normalized_lr,
            # lr 0 makes it divide by zero at the first step and read an unset variable at any later one.
            lr_may_be_zero=False,
            shardable=False,
        ),
    ]
