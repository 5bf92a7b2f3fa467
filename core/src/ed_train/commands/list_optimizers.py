"""``ed-train --list-optimizers``: what is installed, what of it cannot be used and why, and what could be installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER, DISTRIBUTION_OF_SECTION
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer
from ed_train.selection import LEFT_OUT_BY


def list_optimizers(registry: OptimizerRegistry, *, as_json: bool) -> None:
    """Print every installed optimizer and everything that keeps one from being used.

    As JSON: ``optimizers`` (``name`` is what to write into optimizer.json; ``reason`` says why one is not ``usable``),
    ``broken``, ``slow`` and ``not_installed`` (a list of objects each), ``left_out`` (a list of distributions).
    """
    if as_json:
        from ed_train.commands.as_json import print_json  # here, since listing must stay instant

        print_json(_listing(registry))
        return
    usable = [o for o in registry if not why_unusable(o)]
    if not registry.optimizers:
        print("no optimizer is installed")
    width = max((len(written_name(o, registry)) for o in usable), default=0)
    origins = max((len(o.origin) for o in usable), default=0)
    for o in usable:
        print(f"{written_name(o, registry):<{width}}  {o.origin:<{origins}}  {o.spec.summary}")
    for line in _remarks(registry):
        print(line)


def _listing(registry: OptimizerRegistry) -> dict[str, Any]:
    rows = [
        {
            "name": written_name(o, registry),
            "summary": o.spec.summary,
            "distribution": o.distribution,
            "version": o.version,
            "devices": list(o.spec.devices),
            "usable": not why_unusable(o),
            "reason": why_unusable(o) or None,
        }
        for o in registry
    ]
    missing = [
        {"name": name, "distribution": distribution, "install": install}
        for name, distribution, install in _not_installed(registry)
    ]
    return {
        "optimizers": rows,
        "broken": [vars(plugin) for plugin in registry.broken],
        "slow": [vars(plugin) for plugin in registry.slow],
        "not_installed": missing,
        "left_out": list(registry.left_out),
    }


def _remarks(registry: OptimizerRegistry) -> Iterator[str]:
    """A line for each thing that is not as it could be."""
    for o in registry:
        if reason := why_unusable(o):
            yield f"not usable: {written_name(o, registry)} ({o.origin}): {reason}"
    for name in registry.names:
        offers = [o for o in registry if o.spec.name == name]
        if len(offers) > 1:
            choices = " or ".join(written_name(o, registry) for o in offers)
            yield f"ambiguous: {name}: offered by {' and '.join(o.origin for o in offers)}; choose with {choices}"
    for broken in registry.broken:
        yield f"broken: {broken.distribution} {broken.version} ({broken.entry_point}): {broken.error}"
    for slow in registry.slow:
        yield f"slow: {slow.distribution} {slow.version} ({slow.entry_point}): {slow}"
    for distribution in registry.left_out:
        yield f"left out: {distribution}: by {LEFT_OUT_BY}"
    missing = _not_installed(registry)
    for install in dict.fromkeys(install for _, _, install in missing):
        yield f"not installed: {', '.join(n for n, _, needed in missing if needed == install)}: {install}"


def _not_installed(registry: OptimizerRegistry) -> list[tuple[str, str, str]]:
    """Name, distribution and the command that installs it, of optimizers and sections of ours that are not there."""
    there = {*registry.names, *(p.policy.section for p in registry.freeze_policies)}
    known_about = {*registry.left_out, *(plugin.distribution for plugin in registry.broken)}
    missing = []
    for name, distribution in {**DISTRIBUTION_OF_OPTIMIZER, **DISTRIBUTION_OF_SECTION}.items():
        if name not in there and distribution not in known_about:
            upgrade = "--upgrade " if distribution in registry.versions else ""
            missing.append((name, distribution, f"pip install {upgrade}{distribution}"))
    return missing


def written_name(optimizer: RegisteredOptimizer, registry: OptimizerRegistry) -> str:
    """What to write into optimizer.json: the name, or ``distribution:name`` where several plugins offer it."""
    name = optimizer.spec.name
    is_ambiguous = sum(o.spec.name == name for o in registry) > 1
    return f"{optimizer.distribution}:{name}" if is_ambiguous else name


def why_unusable(optimizer: RegisteredOptimizer) -> str:
    """Why an optimizer cannot be used on this machine; empty if it can."""
    devices = optimizer.spec.devices
    if not devices or any(map(_may_exist, devices)):
        return ""
    kinds = " or ".join(_DEVICE_NAMES.get(kind, kind) for kind in devices)
    return f"runs on {' and '.join(devices)} only; no {kinds} device found"


_DEVICE_NAMES = {"cuda": "CUDA", "mps": "MPS"}
_CUDA_TRACES = (
    "/dev/nvidiactl",
    "/proc/driver/nvidia/version",
    "/dev/nvhost-gpu",  # Jetson
    "/dev/dxg",  # Windows' subsystem for Linux
    "/dev/kfd",  # AMD, whose devices torch calls cuda too
)


def _may_exist(kind: str) -> bool:
    """Whether this machine shows traces of a device of a kind; True where it cannot be told without torch."""
    if kind == "mps":
        return sys.platform == "darwin" and os.uname().machine == "arm64"
    if kind != "cuda":
        return True
    if sys.platform == "win32":
        return os.path.exists(os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll"))
    programs = (os.path.join(folder, "nvidia-smi") for folder in os.environ.get("PATH", "").split(os.pathsep))
    return any(map(os.path.exists, (*_CUDA_TRACES, *programs)))
