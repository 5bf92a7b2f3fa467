"""The short form of ``make torture``: a training run over real photos, killed at random moments."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from reliability.torture import kill_at_random


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path, micro_model: Path, photos: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # pytest shows it if the test fails
    counts = kill_at_random(tmp_path / "runs", micro_model, photos, kills=5, steps=40, seed=seed)
    print(counts)
    assert counts.kills == 5
    assert counts.runs_compared >= 1
