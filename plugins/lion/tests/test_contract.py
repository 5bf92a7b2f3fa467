from ed_train.testing import OptimizerContract


class TestLion(OptimizerContract):
    name = "lion"
    options = {"lr": 3e-3}
    loss_factor = 0.5


class TestLionWithDecoupledWeightDecay(OptimizerContract):
    name = "lion"
    options = {"lr": 3e-3, "weight_decay": 1e-3, "decoupled_weight_decay": True}
    loss_factor = 0.5


class TestLionOfTheLibrary(OptimizerContract):
    name = "lion"
    options = {"lr": 3e-3, "implementation": "reference"}
    loss_factor = 0.5
