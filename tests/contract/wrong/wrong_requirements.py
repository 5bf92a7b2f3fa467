"""A plugin whose only fault is that its distribution does not depend on ed-train."""

from ed_train import FreezePolicy, hookimpl
from wrong_policies import Settings, freeze


@hookimpl
def ed_register_freeze_policies() -> list[FreezePolicy]:
    return [
        FreezePolicy(
            section="requiring_nothing",
            component="text_encoder",
            summary="made up",
            config_type=Settings,
            apply=freeze,
        )
    ]
