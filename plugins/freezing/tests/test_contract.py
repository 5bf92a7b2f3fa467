from ed_train.testing import FreezePolicyContract


class TestTextEncoderFreezing(FreezePolicyContract):
    section = "text_encoder_freezing"


class TestTheLastLayers(FreezePolicyContract):
    section = "text_encoder_freezing"
    settings = {"unfreeze_last_n_layers": 1, "freeze_final_layer_norm": True}


class TestUNetFreezing(FreezePolicyContract):
    section = "unet_freezing"
    settings = {"rules": ["freeze *", "unfreeze *attn2*"]}
