"""``ed-train --list-optimizers``: what is installed, from which distribution."""

from __future__ import annotations

from ed_train.registry import load_registry


def list_optimizers(*, as_json: bool) -> None:
    """Print every installed optimizer and every plugin that is broken."""
    registry = load_registry()
    if as_json:
        import json  # here, since listing must stay instant

        rows = [
            {"name": o.spec.name, "summary": o.spec.summary, "distribution": o.distribution, "version": o.version}
            for o in registry
        ]
        print(json.dumps({"optimizers": rows, "broken": [vars(b) for b in registry.broken]}, indent=2))
        return
    if not registry.optimizers:
        print("no optimizer is installed; install a family, e.g. pip install ed-train-bnb")
    width = max((len(o.spec.name) for o in registry), default=0)
    origins = max((len(o.origin) for o in registry), default=0)
    for o in registry:
        print(f"{o.spec.name:<{width}}  {o.origin:<{origins}}  {o.spec.summary}")
    for plugin in registry.broken:
        print(f"broken: {plugin.distribution} {plugin.version} ({plugin.entry_point}): {plugin.error}")
