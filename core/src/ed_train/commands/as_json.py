"""Print a command's result as JSON, in one manner for all commands."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print JSON as RFC 8259 has it: no NaN, no infinity, readable texts."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
