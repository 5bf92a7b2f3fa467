"""From the default d0 of 1e-6 the estimates overshoot on the toy task before they settle; d0 is nearer to it here."""

from ed_train.testing import OptimizerContract


class TestDAdaptAdam(OptimizerContract):
    name = "dadapt_adam"
    options = {"d0": 0.01, "weight_decay": 0.01}
    steps = 60
    loss_factor = 0.5


class TestDAdaptAdamWithOtherOptions(OptimizerContract):
    name = "dadapt_adam"
    options = {"d0": 0.01, "use_bias_correction": True, "decouple": False, "growth_rate": 1.02}
    steps = 60
    loss_factor = 0.5


class TestDAdaptAdan(OptimizerContract):
    name = "dadapt_adan"
    options = {"d0": 1e-4}
    steps = 60
    loss_factor = 0.5


class TestDAdaptLion(OptimizerContract):
    name = "dadapt_lion"
    options = {"d0": 1e-3}
    loss_factor = 0.5


class TestDAdaptSGD(OptimizerContract):
    name = "dadapt_sgd"
    options = {"d0": 0.1, "growth_rate": 1.02}  # without a limit the estimate outgrows the toy task and diverges
    loss_factor = 0.5


class TestDAdaptAdamOfTheLibrary(OptimizerContract):
    name = "dadapt_adam"
    options = {"d0": 0.01, "weight_decay": 0.01, "implementation": "reference"}
    steps = 60
    loss_factor = 0.5
