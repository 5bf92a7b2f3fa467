"""The contract that every plugin keeps, as pytest classes that an author subclasses with one line.

    from ed_train.testing import OptimizerContract

    class TestSgd(OptimizerContract):
        name = "sgd"

pytest then runs every check of `OptimizerContract`; `FreezePolicyContract` does the same for a section of
optimizer.json that freezes parameters. The plugin must be installed (``pip install -e .``).
"""

try:
    import pytest  # noqa: F401  # asked for here, where the answer can say what to install
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("ed_train.testing needs pytest: pip install pytest", name="pytest") from error

from ed_train.testing.freeze_contract import FreezePolicyContract
from ed_train.testing.optimizer_contract import OptimizerContract

__all__ = ["FreezePolicyContract", "OptimizerContract"]
