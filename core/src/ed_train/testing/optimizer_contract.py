"""The contract of every optimizer."""

from __future__ import annotations

from ed_train.testing.basic_checks import BasicChecks
from ed_train.testing.declaration_checks import DeclarationChecks
from ed_train.testing.group_checks import GroupChecks
from ed_train.testing.option_checks import OptionChecks
from ed_train.testing.state_checks import StateChecks
from ed_train.testing.training_checks import TrainingChecks


class OptimizerContract(BasicChecks, DeclarationChecks, OptionChecks, GroupChecks, TrainingChecks, StateChecks):
    """Everything that ed-train, and a loop of somebody's own, expects of an optimizer.

    Subclass it in a test file of the plugin, which must be installed; each check is a test::

        from ed_train.testing import OptimizerContract

        class TestSgd(OptimizerContract):
            name = "sgd"

    The optimizer trains a small network (a convolution and a linear layer, about 5,000 weights) on a fixed regression.
    A check that cannot say anything, on this machine or about this optimizer, is skipped with the reason. One that does
    not fit can be overridden in the subclass, as any method.

    Attributes:
        name: the optimizer's name, or ``distribution:name`` where two plugins offer it.
        options: options of all runs but those with the defaults. Give what makes the toy task learn in a few steps,
            for instance a larger ``lr`` than fine-tuning needs, or a larger first estimate ``d0``.
        other_values: for options of which no other value can be guessed from the type (texts, for example), or shows
            any effect on the toy task: option to another valid value.
        steps: steps in which the loss must go down.
        loss_factor: the loss must end below this share of what it was; 1: it must only go down.
        tolerance: largest difference between weights, as a share of how far the farthest one moved, where steps are the
            same up to rounding.
        device_type: where to run, e.g. ``cuda``; by default the first of the spec's devices that the machine has.
    """
