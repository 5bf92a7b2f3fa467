"""A byte-pair tokenizer in CLIP's format whose vocabulary is the captions' words.

Like CLIP's it begins with the 256 bytes in two forms, so any other word is a row of letters or parts of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from make_tiny_sd import save_tokenizer

MAX_LENGTH = 24
"""Tokens of a caption: the longest that `scenes` gives takes 15, with those at the beginning and the end."""


def write_tokenizer(folder: Path, captions: Iterable[str]) -> int:
    """Write the tokenizer, in which every word of the captions is one token; returns the size of its vocabulary."""
    words = sorted({word for caption in captions for word in caption.split()})
    return save_tokenizer(folder, merges_of(words), MAX_LENGTH)


def merges_of(words: Iterable[str]) -> list[str]:
    """The merges that make each word one token, most frequent pair first: byte-pair encoding run to its end."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for parts in spelled for pair in pairwise(parts)):
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(f"{first} {second}")
        spelled = [_merged(parts, first, second) for parts in spelled]
    return merges


def _merged(parts: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and part == second and merged[-1] == first:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
