from ed_train.testing import OptimizerContract


class TestSgd(OptimizerContract):
    name = "sgd"
