"""On a CPU bitsandbytes keeps the paged state in ordinary memory and says so."""

import pytest
from ed_train.testing import OptimizerContract

on_cpu = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


class TestAdamW8bit(OptimizerContract):
    name = "adamw8bit"
    options = {"lr": 0.01}
    loss_factor = 0.1


@on_cpu
class TestPagedAdamW8bit(TestAdamW8bit):
    name = "paged_adamw8bit"
    device_type = "cpu"


class TestLion8bit(OptimizerContract):
    name = "lion8bit"
    options = {"lr": 3e-3}
    loss_factor = 0.5


@on_cpu
class TestPagedLion8bit(TestLion8bit):
    name = "paged_lion8bit"
    device_type = "cpu"
