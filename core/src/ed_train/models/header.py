"""Look into weight files without torch: enough to tell a whole file from a broken one, and one model from another."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit for its JSON header."""

Header = dict[str, dict[str, Any]]
"""Tensor name to ``{"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}``."""


def read_safetensors_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the tensors themselves are not read.

    The format: 8 bytes with the header's length (little endian), that many bytes of JSON, then the tensors.
    https://github.com/huggingface/safetensors#format

    Raises:
        ValueError: the file is empty, truncated, corrupt or not safetensors; the text says which.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise ValueError("the file is a git-lfs pointer, not the weights; run `git lfs pull` there")
        if start[:2] in (b"PK", b"\x80\x02"):
            raise ValueError("the file is a torch checkpoint, not safetensors; rename it to .ckpt")
        if len(start) < 8 or length > MAX_HEADER_BYTES or length > size - 8:
            limit = f"the file has {size:,} bytes and the limit is {MAX_HEADER_BYTES:,}"
            raise ValueError(f"not a safetensors file, or a corrupt one: its header claims {length:,} bytes; {limit}")
        header = _parse(file.read(length))
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != needed:
        state = "truncated" if size < needed else "corrupt"
        raise ValueError(f"the file is {state}: {needed:,} bytes are expected and {size:,} are there; fetch it again")
    return header


def _parse(data: bytes) -> Header:
    try:
        header = json.loads(data)
        header.pop("__metadata__", None)
        for entry in header.values():
            _, _ = entry["data_offsets"]
            if not isinstance(entry["data_offsets"][1], int) or not isinstance(entry["shape"], list):
                raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("the safetensors header is corrupt; fetch the file again") from None
    result: Header = header
    return result


def check_torch_zip(path: Path) -> None:
    """Check that a file is a whole zip archive, as ``torch.save`` has written since version 1.6.

    Bare pickles, the older form, are refused: what they would run cannot be listed reliably.

    Raises:
        ValueError: it is not; the text says what it is instead.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError("the file is empty")
    if start[8:9] == b"{":
        raise ValueError("the file is safetensors, not a torch checkpoint; rename it to .safetensors")
    if start[:2] != b"PK":
        raise ValueError("not a torch checkpoint (a zip archive, as torch.save writes it); nothing in it was run")
    if not zipfile.is_zipfile(path):
        raise ValueError("the file is truncated: the zip archive has no end; fetch it again")
