"""Write a safetensors file tensor by tensor, always the same bytes for the same content.

The format: 8 bytes with the header's length (little endian), that many bytes of JSON, then the tensors.
https://github.com/huggingface/safetensors#format. The library's own `save_file` puts the metadata in another order in
each process, and wants every tensor converted before the first is written, which takes another model's worth of memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ed_train.errors import NonFiniteWeightsError
from ed_train.models.tensors import listed, non_finite

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
_ALIGNMENT = 8


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata, floating-point tensors as `dtype`.

    Args:
        path: the file; nothing here is atomic, so write what `atomic_file` lends.
        tensors: of any device; integers must be int64, and stay so.
        dtype: torch.float16 or torch.float32.
        metadata: of the file's header.

    Raises:
        NonFiniteWeightsError: a tensor has NaN or infinite elements, or has them in `dtype`; names all of them.
        OSError: the disk is full or failing.
    """
    types = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))  # so that each begins at its alignment
    sizes = {name: tensors[name].numel() * types[name].itemsize for name in names}
    if sum(sizes.values()) > (free := shutil.disk_usage(path.parent).free):
        raise OSError(0, f"it needs {sum(sizes.values()) / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")
    header, end = dict[str, Any]({"__metadata__": dict(sorted(metadata.items()))}), 0
    for name in names:
        offsets, end = [end, end + sizes[name]], end + sizes[name]
        header[name] = {"dtype": _NAMES[types[name]], "shape": list(tensors[name].shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    bad = []
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name].detach().to("cpu", types[name]).contiguous()
            bad += non_finite({name: tensor})
            file.write(tensor.numpy().data)
    if bad:
        raise NonFiniteWeightsError(f"NaN or infinite weights are not saved: {listed(bad)} (as {dtype})")
