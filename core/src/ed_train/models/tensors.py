"""Small facts about tensors that loading and saving share."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def non_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    A sum is NaN or infinite if any element is, and reads the memory only once; a sum that merely overflowed is looked
    at again.
    """
    suspects = [(n, t) for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t.sum())]
    return [name for name, tensor in suspects if not torch.isfinite(tensor).all()]


def listed(names: list[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
