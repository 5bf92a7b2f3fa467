"""From its default d0 of 1e-6 the estimate needs some 70 steps to grow; a larger one shows the same in 30."""

from ed_train.testing import OptimizerContract

SLOW_GROWTH = {"growth_rate": 1.001}
"""Larger limits are never reached on the contract's task."""


class TestProdigy(OptimizerContract):
    name = "prodigy"
    options = {"d0": 1e-3}
    other_values = SLOW_GROWTH
    loss_factor = 0.6


class TestProdigyWithOtherOptions(OptimizerContract):
    name = "prodigy"
    options = {"d0": 1e-3, "slice_p": 3, "growth_rate": 1.5, "weight_decay": 0.01, "decouple": False}
    other_values = SLOW_GROWTH
    loss_factor = 0.6


class TestProdigyOfTheLibrary(OptimizerContract):
    name = "prodigy"
    options = {"d0": 1e-3, "implementation": "reference"}
    other_values = SLOW_GROWTH
    loss_factor = 0.6
