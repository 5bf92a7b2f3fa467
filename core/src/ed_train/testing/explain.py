"""Failures that tell a plugin's author what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained(advice: str) -> Iterator[None]:
    """Turn whatever a plugin raises in this block into an `AssertionError` that begins with `advice`."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{advice} ({type(error).__name__}: {error})") from error
