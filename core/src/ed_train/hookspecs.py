"""The two hooks of ed-train. A plugin implements one or both with `hookimpl` in the module of its entry point."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from ed_train.specs import FreezePolicy, OptimizerSpec

PROJECT = "ed_train"
"""The pluggy project and the entry-point group of plugins."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def ed_register_optimizers() -> Iterable[OptimizerSpec]:
    """Return the optimizers that this plugin offers.

    The order of plugins and of specs never matters. Two plugins may offer one name: users then choose with
    ``distribution:name``. A complete plugin::

        from dataclasses import dataclass
        from typing import Annotated

        from ed_train import Fraction, Help, OptimizerSpec, Positive, hookimpl


        @dataclass(frozen=True)
        class SgdConfig:
            lr: Annotated[Positive, Help("learning rate")] = 1e-3
            momentum: Annotated[Fraction, Help("momentum factor")] = 0.0


        def build(params, config):
            import torch

            return torch.optim.SGD(params, lr=config.lr, momentum=config.momentum)


        @hookimpl
        def ed_register_optimizers():
            return [OptimizerSpec(name="sgd", summary="SGD with momentum", config_type=SgdConfig, build=build)]

    with this in its pyproject.toml::

        [project.entry-points.ed_train]
        sgd = "my_package.my_module"
    """
    raise NotImplementedError  # a hookspec is a signature; pluggy never calls it


@hookspec
def ed_register_freeze_policies() -> Iterable[FreezePolicy]:
    """Return the freeze policies that this plugin offers, each with a section of optimizer.json of its own.

    A complete plugin that trains nothing but the UNet's attention when optimizer.json says
    ``"attention_only": {"enabled": true}``::

        from dataclasses import dataclass
        from typing import Annotated

        from ed_train import FreezePolicy, Help, hookimpl


        @dataclass(frozen=True)
        class AttentionOnly:
            enabled: Annotated[bool, Help("freeze everything but attention")] = False


        def apply(module, config):
            frozen = {n: p for n, p in module.named_parameters() if config.enabled and ".attn" not in n}
            for parameter in frozen.values():
                parameter.requires_grad_(False)
            return frozen


        @hookimpl
        def ed_register_freeze_policies():
            return [FreezePolicy(section="attention_only", component="unet", summary="train attention only",
                                 config_type=AttentionOnly, apply=apply)]
    """
    raise NotImplementedError  # a hookspec is a signature; pluggy never calls it
