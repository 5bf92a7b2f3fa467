from ed_train.testing import OptimizerContract


class TestAdamW(OptimizerContract):
    name = "adamw"
    options = {"lr": 0.01}
    loss_factor = 0.1


class TestAdamWWithAmsgrad(OptimizerContract):
    name = "adamw"
    options = {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}
    loss_factor = 0.1
