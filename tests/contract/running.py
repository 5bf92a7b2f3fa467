"""Run a contract outside pytest's collection: many plugins in one process, each in a second."""

from __future__ import annotations

from typing import Any

import pytest


def checks(contract: type[Any]) -> list[str]:
    """The names of a contract's checks."""
    return [name for name in dir(contract) if name.startswith("test_")]


def outcomes(contract: type[Any], **settings: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Run all checks of a subclass with these settings.

    Returns:
        Failed checks with the text of the failure, and skipped ones with the reason.
    """
    case = type("TestOfTheContract", (contract,), settings)()
    failed, skipped = {}, {}
    for check in checks(contract):
        try:
            getattr(case, check)()
        except pytest.skip.Exception as skip:
            skipped[check] = str(skip)
        except Exception as error:
            failed[check] = f"{type(error).__name__}: {error}"
    return failed, skipped
