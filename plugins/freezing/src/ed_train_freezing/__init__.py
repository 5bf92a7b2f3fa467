"""Choose what does not train: the text encoder's layers by number, the UNet's parameters by name."""

from __future__ import annotations

from ed_train import FreezePolicy, hookimpl

from ed_train_freezing.text_encoder import TextEncoderFreezing, freeze_text_encoder
from ed_train_freezing.unet import UNetFreezing, freeze_unet


@hookimpl
def ed_register_freeze_policies() -> list[FreezePolicy]:
    """Offer text_encoder_freezing and unet_freezing."""
    return [
        FreezePolicy(
            section="text_encoder_freezing",
            component="text_encoder",
            summary="train only the last layers of the text encoder",
            config_type=TextEncoderFreezing,
            apply=freeze_text_encoder,
        ),
        FreezePolicy(
            section="unet_freezing",
            component="unet",
            summary="freeze parameters of the UNet by patterns over their names; the last match wins",
            config_type=UNetFreezing,
            apply=freeze_unet,
        ),
    ]
