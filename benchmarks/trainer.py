#!/usr/bin/env python
"""Run ed-train with the arguments given, and print one JSON line with its step times, as `floor.py` does."""

from __future__ import annotations

import json
import sys

from ed_train.cli import main
from timing import StepTimes

if __name__ == "__main__":
    times = StepTimes()
    status = main(sys.argv[1:])
    if status:
        sys.exit(status)
    print(json.dumps(times.result()))
