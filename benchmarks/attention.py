#!/usr/bin/env python
"""Attention in bfloat16 and in float32, casts included, on a CPU: from how many keys on bfloat16 is faster.

    python benchmarks/attention.py --threads 1 --threads 2

For the heads of the tiny, the small and SD 1.5's models, forward and backward passes over so many queries take turns;
`ed_train.train.attention.FEW_KEYS` follows from what this prints. With one thread the figure is processor time, which
other programs hardly disturb; with more it is the time that passes, since threads that wait for others count as busy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS = {
    "text encoder, tiny": (4, 32), "text encoder, SD 1.5": (12, 64), "UNet, tiny": (2, 16), "UNet, small": (2, 48),
    "UNet, small, lower": (2, 96), "UNet, SD 1.5": (8, 40), "UNet, SD 1.5, lower": (8, 80),
}  # fmt: skip
"""Heads of a layer and the width of each."""
KEYS = (24, 77, 128, 256, 384, 512, 768, 1024)


def main() -> None:
    """Measure and print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, action="append", help="threads of torch; may be repeated; default 1")
    parser.add_argument("--queries", type=int, default=256, help="of each attention")
    parser.add_argument("--batch", type=int, default=2, help="pictures")
    parser.add_argument("--turns", type=int, default=9, help="of each kind; the median counts")
    options = parser.parse_args()
    for threads in options.threads or [1]:
        torch.set_num_threads(threads)
        print(f"\nfloat32 / bfloat16, {options.queries} queries, {threads} threads\n")
        print(f"| heads | {' | '.join(f'{keys} keys' for keys in KEYS)} |")
        print("|---" * (1 + len(KEYS)) + "|")
        for name, (heads, width) in HEADS.items():
            found = [ratio((options.batch, heads, width), options.queries, keys, options.turns) for keys in KEYS]
            print(f"| {name}, {heads} of {width} | {' | '.join(f'{one:.2f}' for one in found)} |", flush=True)


def ratio(shape: tuple[int, int, int], queries: int, keys: int, turns: int) -> float:
    """Median time in float32, of bfloat16 tensors, against that in bfloat16."""
    batch, heads, width = shape
    tensors = [
        torch.randn(batch, length, heads, width).bfloat16().transpose(1, 2).requires_grad_()
        for length in (queries, keys, keys)
    ]
    gradient = torch.randn(batch, heads, queries, width).bfloat16()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[Callable[..., Tensor], list[float]] = {in_float32: [], F.scaled_dot_product_attention: []}
    for _ in range(1 + turns):
        for attention, taken in times.items():
            started = clock()
            torch.autograd.backward(attention(*tensors), gradient)
            taken.append(clock() - started)
    first, second = (statistics.median(taken[1:]) for taken in times.values())
    return first / second


def in_float32(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of bfloat16 tensors as `ed_train.train.attention` has it where there are few keys."""
    return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)


if __name__ == "__main__":
    main()
